//! What a path leads to: a picture, a folder or glob of them, an MJPEG AVI, or a video for ffmpeg.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use super::Source;
use super::error::{AviError, SourceError};
use super::ffmpeg::Ffmpeg;
use super::pictures::{self, Pictures};
use super::recorded::Playback;
use super::uri::{Query, SourceOptions};
use super::video::MjpegAvi;

/// Opens whatever `path` leads to.
pub(super) fn open(
    path: &Path,
    query: &Query,
    options: &SourceOptions,
) -> Result<Box<dyn Source>, SourceError> {
    query.allow(&["pace", "loop", "rate"])?;
    let playback = Playback::new(query, options)?;
    let uri = &query.uri;
    let found = match fs::metadata(path) {
        Err(_) if pictures::is_glob(&path.to_string_lossy()) => {
            return Ok(Box::new(Pictures::open(pictures::in_glob(path)?, uri, playback)?));
        }
        found => found.map_err(|e| SourceError::io(path, e))?,
    };
    if found.is_dir() {
        return Ok(Box::new(Pictures::open(pictures::in_folder(path)?, uri, playback)?));
    }
    if !found.is_file() {
        // A pipe or device would keep whoever opens it waiting.
        return Err(SourceError::NotAVideo { path: path.to_owned() });
    }
    let head = read_head(path)?;
    match sniff(&head) {
        Kind::Picture => Ok(Box::new(Pictures::open(vec![path.to_owned()], uri, playback)?)),
        Kind::Avi => match MjpegAvi::open(path, uri, playback) {
            Ok(Some(avi)) => Ok(Box::new(avi)),
            Ok(None) => Ok(Box::new(Ffmpeg::open(path, uri, playback)?)),
            Err(SourceError::Avi { reason: AviError::NotAvi, .. }) => {
                Err(SourceError::NotAVideo { path: path.to_owned() })
            }
            Err(error) => Err(error),
        },
        Kind::Video => Ok(Box::new(Ffmpeg::open(path, uri, playback)?)),
        Kind::Other => Err(SourceError::NotAVideo { path: path.to_owned() }),
    }
}

/// The first bytes of a file, enough to tell its kind.
fn read_head(path: &Path) -> Result<Vec<u8>, SourceError> {
    let mut head = Vec::new();
    let file = File::open(path).map_err(|e| SourceError::io(path, e))?;
    file.take(4096).read_to_end(&mut head).map_err(|e| SourceError::io(path, e))?;
    Ok(head)
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// JPEG or PNG.
    Picture,
    /// AVI, of whatever codec.
    Avi,
    /// Perhaps something that ffmpeg knows.
    Video,
    /// Certainly no video: text or nothing. (ffmpeg would draw a text file as letters on a screen.)
    Other,
}

fn sniff(head: &[u8]) -> Kind {
    if head.starts_with(&[0xff, 0xd8, 0xff]) || head.starts_with(b"\x89PNG\r\n\x1a\n") {
        Kind::Picture
    } else if head.starts_with(b"RIFF") && head.get(8..12) == Some(b"AVI ") {
        Kind::Avi
    } else if head.is_empty() || is_text(head) {
        Kind::Other
    } else {
        Kind::Video
    }
}

/// Whether these bytes are text: UTF-8 (perhaps cut inside its last letter) without control characters.
fn is_text(head: &[u8]) -> bool {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(e) if e.error_len().is_none() => std::str::from_utf8(&head[..e.valid_up_to()]).unwrap_or(""),
        Err(_) => return false,
    };
    text.chars().all(|c| !c.is_control() || matches!(c, '\t' | '\n' | '\r' | '\x0c' | '\x1b'))
}

#[cfg(test)]
mod tests;
