//! The options of every verb.

use std::path::PathBuf;

use clap::Args;

/// Where a run reads and writes.
#[cfg(feature = "train")]
#[derive(Debug, Clone, Args)]
pub(crate) struct Folders {
    /// Folder with the data sets: `metaworld-mt10` (or `-small`), `easy-vqa`, `cifar10`.
    #[arg(long, default_value_os_t = cache())]
    pub(crate) data: PathBuf,
    /// Folder of the run: checkpoints, codes, tokenizer, log.
    #[arg(long, default_value_os_t = cache().join("runs/nano"))]
    pub(crate) out: PathBuf,
    /// Episodes to train on; by default `metaworld-mt10`, or `metaworld-mt10-small` when that is missing.
    #[arg(long)]
    pub(crate) episodes: Option<PathBuf>,
    /// Seed of everything random.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

/// Where data sets and runs lie unless it is said otherwise.
pub(crate) fn cache() -> PathBuf {
    std::env::home_dir().unwrap_or_default().join(".cache/saccade")
}

#[cfg(feature = "train")]
/// Options of stage one.
#[derive(Args)]
pub(crate) struct TokenizerArgs {
    #[command(flatten)]
    pub(crate) folders: Folders,
    /// Optimiser steps.
    #[arg(long, default_value_t = 1500)]
    pub(crate) steps: usize,
    /// Frames a step.
    #[arg(long, default_value_t = 64)]
    pub(crate) batch: usize,
    /// Peak learning rate.
    #[arg(long, default_value_t = 1e-3)]
    pub(crate) lr: f64,
}

#[cfg(feature = "train")]
/// Options of `encode`.
#[derive(Args)]
pub(crate) struct EncodeArgs {
    #[command(flatten)]
    pub(crate) folders: Folders,
}

#[cfg(feature = "train")]
/// Options of `bpe`.
#[derive(Args)]
pub(crate) struct BpeArgs {
    #[command(flatten)]
    pub(crate) folders: Folders,
}

#[cfg(feature = "train")]
/// Options of stages two and three.
#[derive(Args)]
pub(crate) struct LmArgs {
    #[command(flatten)]
    pub(crate) folders: Folders,
    /// Optimiser steps.
    #[arg(long)]
    pub(crate) steps: usize,
    /// Tokens of one packed batch.
    #[arg(long, default_value_t = 3000)]
    pub(crate) tokens: usize,
    /// Packed batches a step.
    #[arg(long, default_value_t = 1)]
    pub(crate) accumulate: usize,
    /// Peak learning rate.
    #[arg(long)]
    pub(crate) lr: Option<f64>,
    /// Temperature of the mixture.
    #[arg(long, default_value_t = 2.0)]
    pub(crate) tau: f64,
    /// Steps between validations.
    #[arg(long, default_value_t = 200)]
    pub(crate) validate_every: usize,
}

#[cfg(feature = "train")]
/// Options of `export`.
#[derive(Args)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(crate) folders: Folders,
    /// The checkpoint to write.
    #[arg(long, default_value = "examples/models/nano-f16.safetensors")]
    pub(crate) to: PathBuf,
}

#[cfg(feature = "train")]
/// Options of `golden`.
#[derive(Args)]
pub(crate) struct GoldenArgs {
    /// Folder for the two files.
    #[arg(long, default_value = "convert/train/tests/golden")]
    pub(crate) to: PathBuf,
    /// Seed of the random model.
    #[arg(long, default_value_t = 7)]
    pub(crate) seed: u64,
}

/// Options of `eval`.
#[derive(Args)]
pub(crate) struct EvalArgs {
    /// The bundle's folder.
    #[arg(long, default_value = "examples/models/nano")]
    pub(crate) bundle: PathBuf,
    /// The folder of held-out episodes, as in `saccade-convert compare`.
    #[arg(long, default_value = "examples/heldout")]
    pub(crate) data: PathBuf,
    /// Folder with `easy-vqa`; what is missing there is fetched with pip.
    #[arg(long, default_value_os_t = cache())]
    pub(crate) cache: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}
