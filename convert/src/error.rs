//! Every way a conversion can be refused, each a sentence that says what to do.

use std::path::{Path, PathBuf};

/// Anything this crate can refuse to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// A file could not be read or written.
    #[error("{path}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The runtime refused a container, a configuration, a tensor, or a whole bundle.
    #[error(transparent)]
    Runtime(#[from] saccade::Error),
    /// A GGUF file that breaks a rule of its container.
    #[error("{path}")]
    Gguf {
        /// The file.
        path: PathBuf,
        /// The rule.
        source: crate::gguf::GgufError,
    },
    /// A safetensors file that no trainer of ours wrote.
    #[error(
        "{path} is a safetensors file but no Saccade checkpoint: {reason}; convert takes the file that saccade-train writes"
    )]
    NoCheckpoint {
        /// The file.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The model description or the text tokenizer inside a checkpoint cannot be used.
    #[error("{path}: its metadata `{key}`: {reason}; write the checkpoint again")]
    Metadata {
        /// The file.
        path: PathBuf,
        /// The metadata key.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor of a checkpoint is missing, of another shape or type, unknown, or not finite.
    #[error("{path}: tensor `{name}`: {reason}")]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A pattern of layers to keep float that does not fit the model.
    #[error("--keep-float {pattern}: {reason}")]
    KeepFloat {
        /// The pattern.
        pattern: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A file of a bundle in the making could not be written; what there is of it stays for the next run.
    #[error(
        "{path} cannot be written any further; {advice} and give the same command again, which goes on from what {part} holds, or \
         remove that folder"
    )]
    Stopped {
        /// The file.
        path: PathBuf,
        /// The folder of the bundle in the making.
        part: PathBuf,
        /// What to do about the disk.
        advice: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something lies where the bundle should go.
    #[error("{path} exists; choose another folder or replace it with --force")]
    Exists {
        /// The folder asked for.
        path: PathBuf,
    },
    /// Something that is no bundle lies where the bundle should go.
    #[error(
        "{path} is no bundle, so --force does not replace it; remove it yourself or choose another folder"
    )]
    NotReplaced {
        /// The folder asked for.
        path: PathBuf,
    },
    /// A file whose content is not what its description says.
    #[error(
        "{path}: its BLAKE3 is {found}, saccade.json says {expected}; it was damaged or changed, copy the bundle again"
    )]
    Hash {
        /// The file.
        path: PathBuf,
        /// The hash in `saccade.json`.
        expected: String,
        /// The hash of the file.
        found: String,
    },
    /// A file or folder that cannot serve: of another kind, missing, in the way.
    #[error("{path}: {reason}")]
    Refused {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A held-out episode, text or picture that the model cannot be given.
    #[error("{path} does not fit the model")]
    Episode {
        /// The file.
        path: PathBuf,
        /// What the runtime refused.
        source: saccade::Error,
    },
    /// A model whose logits are NaN or infinite, which no share and no mean may hide.
    #[error(
        "{path}: the {model} gives logits that are no finite numbers, so nothing can be compared; verify the bundle, and if \
         the float model does this, train again"
    )]
    NotANumber {
        /// The file.
        path: PathBuf,
        /// Which of the two.
        model: &'static str,
    },
    /// A bundle and a checkpoint that do not belong together.
    #[error(
        "{bundle} was not made from {reference}: {reason}; compare a bundle with the checkpoint it was converted from"
    )]
    OtherModel {
        /// The bundle.
        bundle: PathBuf,
        /// The checkpoint.
        reference: PathBuf,
        /// Where they differ.
        reason: String,
    },
}

/// The result of anything that can be refused.
pub type Result<T> = std::result::Result<T, ConvertError>;

/// For `map_err`: what was being read or written when the system refused.
pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> ConvertError + use<> {
    let path = path.to_path_buf();
    move |source| ConvertError::Io { path, source }
}
