//! `saccade-train`: trains, exports and evaluates Saccade's own models.

mod args;
#[cfg(feature = "train")]
mod verbs;

use std::process::ExitCode;

use args::EvalArgs;
use clap::{Parser, Subcommand};

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
    Tokenizer(args::TokenizerArgs),
    /// Turn all pictures into codes, once.
    #[cfg(feature = "train")]
    Encode(args::EncodeArgs),
    /// Train the byte-pair tokenizer on all texts.
    #[cfg(feature = "train")]
    Bpe(args::BpeArgs),
    /// Stage two: train the transformer on mixed sequences.
    #[cfg(feature = "train")]
    Pretrain(args::LmArgs),
    /// Stage three: go on under fake quantisation.
    #[cfg(feature = "train")]
    Tune(args::LmArgs),
    /// Write the checkpoint that `saccade-convert` reads.
    #[cfg(feature = "train")]
    Export(args::ExportArgs),
    /// Write the golden tensors of the runtime's tests.
    #[cfg(feature = "train")]
    Golden(args::GoldenArgs),
    /// Measure a bundle on held-out data, through the runtime.
    Eval(EvalArgs),
}

#[expect(clippy::print_stderr, reason = "the one place where a refusal is said, whatever the log level")]
fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
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
    let report = saccade_train::eval::evaluate(&args.bundle, &args.data, &args.cache)?;
    let text =
        if args.json { serde_json::to_string(&report)? } else { serde_json::to_string_pretty(&report)? };
    println!("{text}");
    Ok(())
}
