//! Picture files, one or many, as a recording.

use std::cmp::Ordering;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Frame;
use super::decode::{MAX_PICTURE_BYTES, decode_picture};
use super::error::{FrameError, SourceError};
use super::recorded::{Next, Playback, Recorded, Recording};

/// How many damaged pictures in a row opening looks past for one that tells the size.
const TRIES: usize = 64;

/// Pictures in a row.
#[derive(Debug)]
pub(super) struct Pictures {
    paths: Vec<PathBuf>,
    index: usize,
    bytes: Vec<u8>,
}

impl Pictures {
    /// Opens these pictures in this order.
    pub(super) fn open(
        paths: Vec<PathBuf>,
        uri: &str,
        playback: Playback,
    ) -> Result<Recorded<Self>, SourceError> {
        let (mut bytes, mut frame, mut size) = (Vec::new(), Frame::default(), Err((0, FrameError::Empty)));
        for (tried, path) in paths.iter().take(TRIES).enumerate() {
            match load(path, &mut bytes, &mut frame) {
                Ok(()) => {
                    size = Ok((frame.width, frame.height));
                    break;
                }
                Err(reason) => size = Err((tried as u64 + 1, reason)),
            }
        }
        let size = size.map_err(|(frames, reason)| match paths.len() {
            1 => SourceError::Unusable { origin: uri.to_owned(), reason },
            _ => SourceError::AllBad { origin: uri.to_owned(), frames, reason },
        })?;
        let kind = match paths.len() {
            1 => "picture".to_owned(),
            n => format!("{n} pictures"),
        };
        let recording = Self { paths, index: 0, bytes };
        Ok(Recorded::new(recording, uri, kind, size, None, playback))
    }
}

impl Recording for Pictures {
    fn next(&mut self, frame: &mut Frame, _timeout: Duration) -> Result<Next, SourceError> {
        let Some(path) = self.paths.get(self.index) else { return Ok(Next::End) };
        self.index += 1;
        match load(path, &mut self.bytes, frame) {
            Ok(()) => Ok(Next::Frame),
            Err(reason) => {
                log::debug!("path={} {reason}", path.display());
                Ok(Next::Bad(reason))
            }
        }
    }

    fn rewind(&mut self) -> Result<(), SourceError> {
        self.index = 0;
        Ok(())
    }
}

/// Reads and decodes one picture, of bounded size; `bytes` is scratch memory.
fn load(path: &Path, bytes: &mut Vec<u8>, frame: &mut Frame) -> Result<(), FrameError> {
    let unreadable = |e: std::io::Error| FrameError::Read(e.to_string());
    bytes.clear();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_PICTURE_BYTES + 1).read_to_end(bytes).map_err(unreadable)?;
    decode_picture(bytes, frame)
}

/// The pictures of a folder by name, numbers in numeric order.
pub(super) fn in_folder(folder: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let entries = fs::read_dir(folder).map_err(|e| SourceError::io(folder, e))?;
    let mut paths: Vec<_> =
        entries.flatten().map(|entry| entry.path()).filter(|path| is_picture(path)).collect();
    if paths.is_empty() {
        return Err(SourceError::NoPictures { path: folder.to_owned() });
    }
    paths.sort_by(|a, b| natural(a, b));
    Ok(paths)
}

/// What a glob matches, in natural order. `*` and `?` stand for names, not for `/`.
pub(super) fn in_glob(pattern: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let mut found = vec![PathBuf::new()];
    for part in pattern.components() {
        let name = part.as_os_str().to_string_lossy();
        if !is_glob(&name) {
            found.iter_mut().for_each(|path| path.push(part));
            continue;
        }
        let wanted: Vec<char> = name.chars().collect();
        found = found
            .iter()
            .flat_map(|folder| {
                let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
                fs::read_dir(here).into_iter().flatten().flatten().map(|entry| folder.join(entry.file_name()))
            })
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let chars: Vec<char> = name.chars().collect();
                // As in a shell, hidden files are matched only by who asks for them.
                (!name.starts_with('.') || wanted[0] == '.') && matches(&wanted, &chars)
            })
            .collect();
    }
    found.retain(|path| is_picture(path));
    if found.is_empty() {
        return Err(SourceError::NoPictures { path: pattern.to_owned() });
    }
    found.sort_by(|a, b| natural(a, b));
    Ok(found)
}

pub(super) fn is_glob(text: &str) -> bool {
    text.contains(['*', '?'])
}

fn is_picture(path: &Path) -> bool {
    let ends = |ext: &str| path.extension().is_some_and(|found| found.eq_ignore_ascii_case(ext));
    ["jpg", "jpeg", "png"].into_iter().any(ends) && path.is_file()
}

/// Whether `name` matches `pattern`; takes at most the product of their lengths.
fn matches(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => (p, n) = (p + 1, n + 1),
            _ => match star {
                // The last star takes one more letter.
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    (p, n) = (at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

/// Orders `frame_2` before `frame_10`.
fn natural(a: &Path, b: &Path) -> Ordering {
    let (a, b) = (a.to_string_lossy(), b.to_string_lossy());
    let (mut x, mut y) = (a.chars().peekable(), b.chars().peekable());
    loop {
        match (x.peek().copied(), y.peek().copied()) {
            (Some(i), Some(j)) if i.is_ascii_digit() && j.is_ascii_digit() => {
                let digits = |from: &mut std::iter::Peekable<std::str::Chars>| {
                    let all: String = std::iter::from_fn(|| from.next_if(char::is_ascii_digit)).collect();
                    let short = all.trim_start_matches('0').to_owned();
                    (short.len(), short)
                };
                match digits(&mut x).cmp(&digits(&mut y)) {
                    Ordering::Equal => {}
                    different => return different,
                }
            }
            (i, j) if i == j && i.is_some() => {
                x.next();
                y.next();
            }
            // Names that differ in leading zeros alone fall back to their letters.
            (None, None) => return a.cmp(&b),
            (i, j) => return i.cmp(&j),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_in_a_shell() {
        let matches = |pattern: &str, name: &str| {
            matches(&pattern.chars().collect::<Vec<_>>(), &name.chars().collect::<Vec<_>>())
        };
        for (pattern, name, expected) in [
            ("*.jpg", "a.jpg", true),
            ("*.jpg", ".jpg", true),
            ("*.jpg", "a.jpeg", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a*b*c", "a__b__b__c", true),
            ("a*b*c", "a__c__b", false),
            ("*", "", true),
            ("?", "", false),
            ("ä*", "äöü", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
        let long = "a".repeat(5000);
        assert!(!matches(&format!("{}b", "a*".repeat(50)), &long), "and in no more than a moment");
    }

    #[test]
    fn numbers_sort_as_numbers() {
        let mut names = ["b", "f10.jpg", "f9.jpg", "f09.jpg", "f100.jpg", "f", "a/2", "a/11", ""];
        names.sort_by(|a, b| natural(Path::new(a), Path::new(b)));
        assert_eq!(names, ["", "a/2", "a/11", "b", "f", "f09.jpg", "f9.jpg", "f10.jpg", "f100.jpg"]);
    }
}
