//! The folder below which everything is read: `/`, or a fixture tree.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// More than any file of `/proc` and `/sys` that is read here.
const TEXT_BYTES: u64 = 256 * 1024;

/// The root of the file system that is looked at. What is missing or unreadable there counts as not known.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

impl Root {
    /// This machine.
    pub fn system() -> Self {
        Self(PathBuf::from("/"))
    }

    /// Another machine's files, below `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where the absolute path `absolute` lies below this root.
    pub(crate) fn path(&self, absolute: &str) -> PathBuf {
        self.0.join(Path::new(absolute).strip_prefix("/").unwrap_or(Path::new(absolute)))
    }

    /// The text of a small file, without the blanks and NUL bytes at its end.
    pub(crate) fn text(&self, absolute: &str) -> Option<String> {
        self.text_up_to(absolute, TEXT_BYTES)
    }

    /// As [`Self::text`], for a file that may be larger; what exceeds `bytes` is cut off.
    pub(crate) fn text_up_to(&self, absolute: &str, bytes: u64) -> Option<String> {
        let mut content = Vec::new();
        File::open(self.path(absolute)).ok()?.take(bytes).read_to_end(&mut content).ok()?;
        let text = String::from_utf8_lossy(&content);
        Some(text.trim_end_matches(|c: char| c == '\0' || c.is_whitespace()).to_owned())
    }

    /// The number that a file holds and nothing else.
    pub(crate) fn number<T: FromStr>(&self, absolute: &str) -> Option<T> {
        self.text(absolute)?.trim().parse().ok()
    }

    /// The names in a folder, sorted; none where there is no such folder.
    pub(crate) fn names(&self, absolute: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(absolute)).into_iter().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Whether there is such a file or folder.
    pub(crate) fn exists(&self, absolute: &str) -> bool {
        self.path(absolute).exists()
    }
}
