//! What a user may write to name a source, and the options behind it.

use std::path::{Path, PathBuf};

use super::error::SourceError;
use super::pace::Pace;

/// Widest and highest frame that a source may be asked for.
const MAX_SIDE: u32 = 4096;

/// How often a recorded source starts again when it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// This many times more; 0 plays it once.
    Times(u32),
    /// Until the reader stops.
    Forever,
}

impl Default for Repeat {
    fn default() -> Self {
        Self::Times(0)
    }
}

impl Repeat {
    /// Whether one more pass is wanted; counts it.
    pub(super) fn again(&mut self) -> bool {
        match self {
            Self::Forever => true,
            Self::Times(0) => false,
            Self::Times(left) => {
                *left -= 1;
                true
            }
        }
    }
}

/// What applies to a source where its URI says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SourceOptions {
    /// `pace=`: whether recorded sources are read completely or in real time.
    pub pace: Pace,
    /// `loop=`: how often files start again.
    pub repeat: Repeat,
    /// `width=` of cameras and patterns, in pixels.
    pub width: Option<u32>,
    /// `height=` of cameras and patterns, in pixels.
    pub height: Option<u32>,
    /// `rate=`: frames a second.
    pub rate_hz: Option<f64>,
    /// Whether a camera's frames keep its pixels as it delivers them, where those are no JPEG, rather than become RGB on the way:
    /// for a model that runs on a card, which turns them into RGB itself.
    pub raw: bool,
}

/// Where frames come from, before anything was opened.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Location {
    Camera { node: String, query: Query },
    File { path: PathBuf, query: Query },
    Pattern { query: Query },
}

impl Location {
    pub(super) fn parse(uri: &str) -> Result<Self, SourceError> {
        let bad = |reason| Err(SourceError::BadUri { uri: uri.to_owned(), reason });
        if uri.trim().is_empty() {
            return bad(
                "the source is empty; use v4l2:///dev/videoN, file://PATH, test://pattern or a plain path",
            );
        }
        if uri.bytes().all(|b| b.is_ascii_digit()) {
            return Err(SourceError::NotYet {
                uri: uri.to_owned(),
                what: "csi cameras (a plain number is csi://N)",
            });
        }
        let Some((scheme, rest)) = uri.split_once("://") else {
            return if uri.starts_with("/dev/video") || uri.starts_with("/dev/v4l/") {
                Self::camera(uri, uri)
            } else {
                Self::file(uri, uri, false)
            };
        };
        match scheme {
            "file" if rest.is_empty() => bad("the path is missing; write file://PATH"),
            "file" => Self::file(uri, rest, true),
            "v4l2" if rest.starts_with("/dev/") => Self::camera(uri, rest),
            "v4l2" => {
                bad("a camera is named by its node; write v4l2:///dev/video0 or v4l2:///dev/v4l/by-id/NAME")
            }
            "test" => {
                let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
                if path.trim_end_matches('/') != "pattern" {
                    return bad("the only test source is test://pattern");
                }
                Ok(Self::Pattern { query: Query::parse(uri, query)? })
            }
            "csi" => Err(SourceError::NotYet { uri: uri.to_owned(), what: "csi cameras" }),
            "rtsp" | "rtp" | "webrtc" | "http" | "https" => {
                Err(SourceError::NotYet { uri: uri.to_owned(), what: "network streams" })
            }
            _ => Err(SourceError::UnknownScheme { uri: uri.to_owned(), scheme: scheme.to_owned() }),
        }
    }

    fn camera(uri: &str, rest: &str) -> Result<Self, SourceError> {
        let (node, query) = rest.split_once('?').unwrap_or((rest, ""));
        Ok(Self::Camera { node: node.to_owned(), query: Query::parse(uri, query)? })
    }

    fn file(uri: &str, rest: &str, percent: bool) -> Result<Self, SourceError> {
        // `?` is also a glob's letter, and may stand in a name: options are what follows the last one, if it looks so.
        let (path, query) = match rest.rsplit_once('?') {
            Some((path, query)) if query.contains('=') && !Path::new(rest).exists() => (path, query),
            _ => (rest, ""),
        };
        let path = if percent { percent_decode(path) } else { path.to_owned() };
        if path.is_empty() {
            let reason = "the path is missing; write PATH?OPTION=VALUE";
            return Err(SourceError::BadUri { uri: uri.to_owned(), reason });
        }
        Ok(Self::File { path: PathBuf::from(path), query: Query::parse(uri, query)? })
    }
}

/// `%41` is `A`; what is no valid escape stays as it is.
fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(hex.unwrap_or(bytes[at]));
        at += if hex.is_some() { 3 } else { 1 };
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

/// The options behind the `?` of a URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    /// The whole URI, for error messages.
    pub(super) uri: String,
    pairs: Vec<(String, String)>,
}

impl Query {
    fn parse(uri: &str, query: &str) -> Result<Self, SourceError> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                let reason = "an option is written `name=value`, several are joined by `&`";
                return Err(SourceError::BadUri { uri: uri.to_owned(), reason });
            };
            if pairs.iter().any(|(k, _)| k == key) {
                let reason = "an option is given twice; keep one";
                return Err(SourceError::BadUri { uri: uri.to_owned(), reason });
            }
            pairs.push((key.to_owned(), value.to_owned()));
        }
        Ok(Self { uri: uri.to_owned(), pairs })
    }

    /// Refuses every option that is not among `known`.
    pub(super) fn allow(&self, known: &[&str]) -> Result<(), SourceError> {
        match self.pairs.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some((key, _)) => Err(SourceError::UnknownOption {
                uri: self.uri.clone(),
                option: key.clone(),
                known: known.join(", "),
            }),
        }
    }

    fn value<T>(
        &self,
        option: &'static str,
        expected: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, SourceError> {
        let Some((_, value)) = self.pairs.iter().find(|(key, _)| key == option) else { return Ok(None) };
        parse(value).map(Some).ok_or_else(|| SourceError::BadOption {
            uri: self.uri.clone(),
            option,
            value: value.clone(),
            expected,
        })
    }

    pub(super) fn pace(&self) -> Result<Option<Pace>, SourceError> {
        self.value("pace", "`all` (every frame) or `real` (real time, with drops)", |v| match v {
            "all" => Some(Pace::All),
            "real" => Some(Pace::Real),
            _ => None,
        })
    }

    pub(super) fn repeat(&self) -> Result<Option<Repeat>, SourceError> {
        self.value("loop", "-1 (for ever), 0 (once) or the number of repeats", |v| {
            if v == "-1" { Some(Repeat::Forever) } else { v.parse().ok().map(Repeat::Times) }
        })
    }

    pub(super) fn width(&self) -> Result<Option<u32>, SourceError> {
        self.value("width", "a width in pixels from 16 to 4096", side)
    }

    pub(super) fn height(&self) -> Result<Option<u32>, SourceError> {
        self.value("height", "a height in pixels from 16 to 4096", side)
    }

    pub(super) fn rate_hz(&self) -> Result<Option<f64>, SourceError> {
        self.value("rate", "frames a second from 0.1 to 1000, as a number or a fraction", rate)
    }

    pub(super) fn frames(&self) -> Result<Option<u64>, SourceError> {
        self.value("frames", "a number of frames of at least 1", |v| v.parse().ok().filter(|&n| n > 0))
    }
}

fn side(text: &str) -> Option<u32> {
    text.parse().ok().filter(|side| (16..=MAX_SIDE).contains(side))
}

fn rate(text: &str) -> Option<f64> {
    let hz: f64 = match text.split_once('/') {
        Some((num, den)) => f64::from(num.parse::<u32>().ok()?) / f64::from(den.parse::<u32>().ok()?),
        None => text.parse().ok()?,
    };
    (0.1..=1000.0).contains(&hz).then_some(hz)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(uri: &str) -> String {
        Location::parse(uri).unwrap_err().to_string()
    }

    #[test]
    fn every_known_form_is_understood() {
        let file = |path: &str| PathBuf::from(path);
        for (uri, path) in [
            ("file:///a/b.avi", "/a/b.avi"),
            ("file://b.avi?pace=all", "b.avi"),
            ("file:///a%20b.avi", "/a b.avi"),
            ("dir/", "dir/"),
            ("*.jpg?loop=-1&pace=real", "*.jpg"),
            ("img_0?.jpg", "img_0?.jpg"),
            ("img_0?.jpg?rate=5", "img_0?.jpg"),
            ("100%.png", "100%.png"),
        ] {
            match Location::parse(uri).unwrap() {
                Location::File { path: found, .. } => assert_eq!(found, file(path), "{uri}"),
                other => panic!("{uri}: {other:?}"),
            }
        }
        for (uri, name) in [
            ("v4l2:///dev/video3?width=640", "/dev/video3"),
            ("/dev/video0", "/dev/video0"),
            ("/dev/v4l/by-id/usb-cam-index0?rate=30", "/dev/v4l/by-id/usb-cam-index0"),
        ] {
            match Location::parse(uri).unwrap() {
                Location::Camera { node, .. } => assert_eq!(node, name, "{uri}"),
                other => panic!("{uri}: {other:?}"),
            }
        }
        assert!(matches!(Location::parse("test://pattern?frames=3"), Ok(Location::Pattern { .. })));
    }

    #[test]
    fn what_is_unknown_gets_a_sentence_that_lists_what_is_known() {
        assert!(sentence("ftp://x").contains("`ftp://` is not known; use v4l2:///dev/videoN"));
        assert!(sentence("0").contains("csi cameras (a plain number is csi://N) are not supported yet"));
        assert!(sentence("csi://0").contains("csi cameras are not supported yet"));
        assert!(sentence("rtsp://host/stream").contains("network streams are not supported yet"));
        assert!(sentence("test://bars").contains("the only test source is test://pattern"));
        assert!(sentence("v4l2://0").contains("v4l2:///dev/video0"));
        assert!(sentence("").contains("empty"));
        assert!(sentence("file://").contains("path is missing"));
        assert!(sentence("test://pattern?frames").contains("name=value"));
        assert!(sentence("test://pattern?frames=1&frames=2").contains("twice"));
    }

    #[test]
    fn options_are_checked_by_name_and_value() {
        let query = |text: &str| Query::parse("test://pattern", text).unwrap();
        let error = query("widht=3").allow(&["width", "height"]).unwrap_err().to_string();
        assert!(error.ends_with("unknown option `widht`; known here: width, height"), "{error}");
        for (text, good) in [
            ("rate=30", 30.0),
            ("rate=29.97", 29.97),
            ("rate=30000/1001", 30000.0 / 1001.0),
            ("rate=0.1", 0.1),
        ] {
            assert_eq!(query(text).rate_hz().unwrap(), Some(good));
        }
        for text in ["rate=0", "rate=-1", "rate=nan", "rate=inf", "rate=1/0", "rate=x", "rate=1e9"] {
            assert!(query(text).rate_hz().is_err(), "{text}");
        }
        for text in ["width=15", "width=4097", "width=-1", "width=99999999999", "width="] {
            assert!(query(text).width().is_err(), "{text}");
        }
        assert_eq!(query("width=4096").width().unwrap(), Some(4096));
        assert_eq!(query("loop=-1").repeat().unwrap(), Some(Repeat::Forever));
        assert_eq!(query("loop=2").repeat().unwrap(), Some(Repeat::Times(2)));
        assert!(query("loop=-2").repeat().is_err());
        assert!(query("pace=fast").pace().unwrap_err().to_string().contains("`all`"));
        assert!(query("frames=0").frames().is_err());
        assert_eq!(query("").pace().unwrap(), None);
    }

    #[test]
    fn a_repeat_counts_down() {
        let mut twice = Repeat::Times(2);
        assert_eq!([twice.again(), twice.again(), twice.again()], [true, true, false]);
        assert!(Repeat::Forever.again());
    }
}
