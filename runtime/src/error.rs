//! Every way the runtime can refuse, each a sentence that says what to do.

use std::path::PathBuf;

/// Anything this crate can refuse to do.
///
/// Each floor of the house has its own enum below this one, so that a caller can match on what it cares about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}")]
    Io {
        /// The file concerned.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A folder, a pipe or a device where a file should be.
    #[error("{path} is a folder, a pipe or a device; put a file there, or name one")]
    NotAFile {
        /// Where it lies.
        path: PathBuf,
    },
    /// A file of a bundle is not there.
    #[error("{path} is missing; copy the bundle again")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The folder is no bundle.
    #[error(
        "{path} has no saccade.json, so it is no bundle; make one with `saccade-convert convert CHECKPOINT {path}`"
    )]
    NoBundle {
        /// The folder.
        path: PathBuf,
    },
    /// A file of a bundle has another size than its description says.
    #[error(
        "{path} has {found} bytes, expected {expected}; it is damaged or half copied, copy the bundle again"
    )]
    FileSize {
        /// The file.
        path: PathBuf,
        /// Bytes that it should have (at most).
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// A card cannot be used, or stopped working.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] crate::cuda::CudaError),
    /// A container of weights broke a rule of the format.
    #[error(transparent)]
    Format(#[from] crate::format::FormatError),
    /// `saccade.json` broke a rule.
    #[error("{path}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The rule.
        source: crate::config::ConfigError,
    },
    /// A tensor is missing, of another shape or type, or does not belong to the model.
    #[error("{path}: {reason}")]
    Tensor {
        /// The weights file.
        path: PathBuf,
        /// Which tensor, and what is wrong with it.
        reason: String,
    },
    /// More memory is needed than this process can have.
    #[error(
        "{what} needs {needed_mib} MiB of memory, more than this process can have ({available_mib} MiB are available); take a smaller model or shorter texts"
    )]
    Memory {
        /// What needs it.
        what: &'static str,
        /// How much it needs.
        needed_mib: u128,
        /// How much the system says is available.
        available_mib: String,
    },
    /// `tokenizer.json` cannot be used.
    #[error("{path}: {reason}; convert the checkpoint again")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The engine cannot be made as asked.
    #[error(transparent)]
    Engine(#[from] crate::engine::EngineError),
    /// An imported graph cannot be had or run.
    #[error(transparent)]
    Onnx(#[from] crate::onnx::OnnxError),
    /// A session was given something that does not fit the model or its memory.
    #[error(transparent)]
    Session(#[from] crate::session::SessionError),
    /// A source of frames failed.
    #[error(transparent)]
    Source(#[from] crate::source::SourceError),
}

impl Error {
    /// The whole sentence: this error and everything beneath it.
    #[must_use]
    pub fn sentence(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        text
    }

    /// Whether a card was lost: nothing that this process asks of it will be answered.
    #[must_use]
    pub fn is_card_lost(&self) -> bool {
        #[cfg(feature = "cuda")]
        let lost = matches!(self, Self::Cuda(crate::cuda::CudaError::Lost { .. }));
        #[cfg(not(feature = "cuda"))]
        let lost = false;
        lost
    }

    /// Whether there was too little memory, on a card or for this process: less at a time may work.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        #[cfg(feature = "cuda")]
        if let Self::Cuda(error) = self {
            use crate::cuda::CudaError;
            return matches!(error, CudaError::OutOfMemory { .. } | CudaError::Exhausted { .. });
        }
        matches!(self, Self::Memory { .. })
    }
}

/// The result of anything that can be refused.
pub type Result<T> = std::result::Result<T, Error>;
