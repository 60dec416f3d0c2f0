//! What can be wrong with a board file: each variant names the rule that was broken.

use std::path::PathBuf;

/// An error of this crate. The message says where; [`source`](std::error::Error::source) says what, where it has more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error("board file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML, or holds a key that no board has, or a value of another type.
    #[error("board file {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column, the line itself, and what was expected there.
        source: Box<toml::de::Error>,
    },
    /// The file parses, but one of its facts breaks a rule.
    #[error("board file {}: `{key}` {rule}", path.display())]
    Fact {
        /// The file.
        path: PathBuf,
        /// The key of the fact.
        key: String,
        /// The rule, as the rest of a sentence that begins with the key.
        rule: String,
    },
}
