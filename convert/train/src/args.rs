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
#[derive(Debug, Args)]
pub(crate) struct TokenizerArgs {
    #[command(flatten)]
    pub(crate) folders: Folders,
    /// Optimiser steps.
    #[arg(long, default_value_t = 1500, value_parser = at_least_one)]
    pub(crate) steps: usize,
    /// Frames a step.
    #[arg(long, default_value_t = 64, value_parser = at_least_one)]
    pub(crate) batch: usize,
    /// Peak learning rate.
    #[arg(long, default_value_t = 1e-3, value_parser = positive)]
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
#[derive(Debug, Args)]
pub(crate) struct LmArgs {
    #[command(flatten)]
    pub(crate) folders: Folders,
    /// Optimiser steps.
    #[arg(long, value_parser = at_least_one)]
    pub(crate) steps: usize,
    /// Tokens of one packed batch.
    #[arg(long, default_value_t = 3000, value_parser = at_least_one)]
    pub(crate) tokens: usize,
    /// Packed batches a step.
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    pub(crate) accumulate: usize,
    /// Peak learning rate.
    #[arg(long, value_parser = positive)]
    pub(crate) lr: Option<f64>,
    /// Temperature of the mixture.
    #[arg(long, default_value_t = 2.0, value_parser = positive)]
    pub(crate) tau: f64,
    /// Steps between validations.
    #[arg(long, default_value_t = 200, value_parser = at_least_one)]
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

/// A count of something that must happen.
#[cfg(feature = "train")]
fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least 1".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("it must be a whole number of at least 1".into()),
    }
}

/// A rate or a temperature.
#[cfg(feature = "train")]
fn positive(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|v: &f64| v.is_finite() && *v > 0.0)
        .ok_or("it must be a finite number above 0".into())
}

#[cfg(all(test, feature = "train"))]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Lm {
        #[command(flatten)]
        args: LmArgs,
    }

    #[derive(Debug, Parser)]
    struct Vq {
        #[command(flatten)]
        args: TokenizerArgs,
    }

    #[test]
    fn options_that_cannot_work_are_refused_in_a_sentence() {
        for (option, values, words) in [
            ("--steps", &["0", "x", "1.5"][..], "at least 1"),
            ("--tokens", &["0"], "at least 1"),
            ("--accumulate", &["0"], "at least 1"),
            ("--validate-every", &["0"], "at least 1"),
            ("--lr", &["0", "nan", "inf", "1e999", "", "x"], "finite number above 0"),
            ("--tau", &["0", "NaN", "inf"], "finite number above 0"),
        ] {
            for value in values {
                let mut line = vec!["train", option, value];
                if option != "--steps" {
                    line.extend(["--steps", "3"]);
                }
                let sentence = Lm::try_parse_from(line).unwrap_err().to_string();
                assert!(
                    sentence.contains(option) && sentence.contains(words),
                    "{option} {value}: {sentence}"
                );
            }
        }
        for option in ["--steps", "--batch"] {
            let sentence = Vq::try_parse_from(["train", option, "0"]).unwrap_err().to_string();
            assert!(sentence.contains(option) && sentence.contains("at least 1"), "{sentence}");
        }
        assert_eq!(Vq::try_parse_from(["train", "--lr", "0.5", "--steps", "1"]).unwrap().args.lr, 0.5);
    }
}
