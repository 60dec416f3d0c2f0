//! What can go wrong while training, one sentence each.

use std::path::{Path, PathBuf};

/// An error of the trainer; the message says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A data set, checkpoint or bundle is not what it should be.
    #[error("{}: {what}", path.display())]
    Content {
        /// The file or folder.
        path: PathBuf,
        /// Which rule is broken, and what to do.
        what: String,
    },
    /// A setting that cannot work.
    #[error("{0}")]
    Setting(String),
    /// The runtime refused.
    #[error(transparent)]
    Runtime(#[from] saccade::Error),
    /// A held-out episode was refused.
    #[error(transparent)]
    HeldOut(#[from] saccade_convert::error::ConvertError),
}

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A file error with its path.
    pub fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::File { path, source }
    }

    /// A content error: the path and the sentence.
    pub fn content(path: &Path, what: impl Into<String>) -> Error {
        Error::Content { path: path.to_owned(), what: what.into() }
    }
}
