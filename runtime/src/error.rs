//! Every way the runtime can refuse, each a sentence that says what to do.

/// Anything this crate can refuse to do.
///
/// Each floor of the house has its own enum, so that a caller can match on what it cares about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file concerned.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A container broke a rule of the format.
    #[error(transparent)]
    Format(#[from] crate::format::FormatError),
    /// `saccade.json` (or a checkpoint's model description) broke a rule.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The engine that was asked for cannot be had on this machine.
    #[error(transparent)]
    Engine(#[from] crate::engine::EngineError),
    /// A source of frames failed.
    #[error(transparent)]
    Source(#[from] crate::source::SourceError),
}

/// The result of anything that can be refused.
pub type Result<T> = std::result::Result<T, Error>;
