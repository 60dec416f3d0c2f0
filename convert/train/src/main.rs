//! `saccade-train`: trains, exports and evaluates Saccade's own models.

#[cfg(feature = "train")]
mod verbs;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(name = "saccade-train", version, about)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Stage one: train the image tokenizer on all pictures.
    #[cfg(feature = "train")]
    Tokenizer(verbs::TokenizerArgs),
    /// Turn all pictures into codes, once.
    #[cfg(feature = "train")]
    Encode(verbs::EncodeArgs),
    /// Train the byte-pair tokenizer on all texts.
    #[cfg(feature = "train")]
    Bpe(verbs::BpeArgs),
    /// Stage two: train the transformer on mixed sequences.
    #[cfg(feature = "train")]
    Pretrain(verbs::LmArgs),
    /// Stage three: go on under fake quantisation.
    #[cfg(feature = "train")]
    Tune(verbs::LmArgs),
    /// Write the checkpoint that `saccade-convert` reads.
    #[cfg(feature = "train")]
    Export(verbs::ExportArgs),
    /// Write the golden tensors of the runtime's tests.
    #[cfg(feature = "train")]
    Golden(verbs::GoldenArgs),
    /// Measure a bundle on held-out data, through the runtime.
    Eval(EvalArgs),
}

#[derive(Args)]
struct EvalArgs {
    /// The bundle's folder.
    #[arg(long, default_value = "examples/models/nano")]
    bundle: PathBuf,
    /// Held-out episodes.
    #[arg(long, default_value = "examples/heldout")]
    held_out: PathBuf,
    /// Folder with `easy-vqa`, the unpacked wheel.
    #[arg(long, default_value_os_t = cache())]
    data: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Where a run reads and writes.
#[cfg(feature = "train")]
#[derive(Debug, Clone, Args)]
struct Folders {
    /// Folder with the data sets: `metaworld-mt10` (or `-small`), `easy-vqa`, `cifar10`.
    #[arg(long, default_value_os_t = cache())]
    data: PathBuf,
    /// Folder of the run: checkpoints, codes, tokenizer, log.
    #[arg(long, default_value_os_t = cache().join("runs/nano"))]
    out: PathBuf,
    /// Episodes to train on; by default `metaworld-mt10`, or `metaworld-mt10-small` when that is missing.
    #[arg(long)]
    episodes: Option<PathBuf>,
    /// Held-out episodes that validation is measured on.
    #[arg(long, default_value = "examples/heldout")]
    held_out: PathBuf,
    /// Seed of everything random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn cache() -> PathBuf {
    std::env::home_dir().unwrap_or_default().join(".cache/saccade")
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.verb {
        #[cfg(feature = "train")]
        Verb::Tokenizer(args) => verbs::tokenizer(args),
        #[cfg(feature = "train")]
        Verb::Encode(args) => verbs::encode(args),
        #[cfg(feature = "train")]
        Verb::Bpe(args) => verbs::bpe(args),
        #[cfg(feature = "train")]
        Verb::Pretrain(args) => verbs::pretrain(args),
        #[cfg(feature = "train")]
        Verb::Tune(args) => verbs::tune(args),
        #[cfg(feature = "train")]
        Verb::Export(args) => verbs::export(args),
        #[cfg(feature = "train")]
        Verb::Golden(args) => verbs::golden(args),
        Verb::Eval(args) => eval(args),
    }
}

#[expect(clippy::print_stdout, reason = "the result is what the program is asked for")]
fn eval(args: EvalArgs) -> anyhow::Result<()> {
    let report = saccade_train::eval::evaluate(&args.bundle, &args.held_out, &args.data.join("easy-vqa"))?;
    let text =
        if args.json { serde_json::to_string(&report)? } else { serde_json::to_string_pretty(&report)? };
    println!("{text}");
    Ok(())
}
