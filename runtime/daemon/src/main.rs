//! `saccaded`: serves a bundle on this device, says what the device is, and measures the frame loop.

mod admit;
mod answer;
mod app;
mod bench;
mod count;
mod doctor;
mod draw;
mod error;
mod exit;
mod infer;
mod job;
mod listen;
mod metrics;
mod patience;
mod picture;
mod routes;
mod serve;
mod shipped;
mod tokens;
mod turns;
mod wire;

#[cfg(test)]
mod http_tests;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use saccade::engine::{DeviceChoice, DeviceOptions, EngineOptions, Placement};
use saccade::onnx::{OnnxOptions, Provider};

/// The on-device service of Saccade.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, after_help = exit::CODES)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a bundle over HTTP: /health, /v1/models, /v1/chat/completions, /v1/images/generations, /metrics.
    Serve {
        /// The bundle to serve: a folder with saccade.json [default: examples/models/nano].
        #[arg(long, value_name = "DIR")]
        model: Option<PathBuf>,
        /// The loopback address and port to listen on.
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8484")]
        listen: SocketAddr,
        /// Threads of the engine; 0 means one per core.
        #[arg(long, value_name = "N", default_value_t = 0)]
        threads: usize,
        /// Tokens of a conversation with its answer that a language model has room for; at most those it was trained for.
        #[arg(long, value_name = "N", default_value_t = 2048)]
        context: usize,
        /// What the model runs on: auto (a card where there is one), cpu or cuda.
        #[arg(long, value_name = "NAME", default_value = "auto")]
        device: DeviceChoice,
        /// Do not start without a card.
        #[arg(long)]
        require_gpu: bool,
        /// The folder of compiled CUDA kernels [default: `cuda` beside this program]; for developers, nvrtc or nvrtc:LIBRARY.
        #[arg(long, value_name = "DIR")]
        kernels: Option<PathBuf>,
        /// Where a card finds the weights: mapped (the file's own pages), device (copied), or auto.
        #[arg(long, value_name = "NAME", default_value = "auto")]
        weights: Placement,
        /// What runs the ONNX graph of a bundle that has one: cpu, cuda or tensorrt.
        #[arg(long, value_name = "NAME")]
        onnx_provider: Option<Provider>,
        /// ONNX Runtime's library [default: what ORT_DYLIB_PATH names, or libonnxruntime.so].
        #[arg(long, value_name = "FILE")]
        onnx_library: Option<PathBuf>,
    },
    /// Say what this machine is and what its user should know.
    Doctor {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Measure the frame loop: frames a second, frame to answer, frame to action, allocations.
    Bench(bench::Args),
}

/// Counts for the bench; costs one relaxed load per allocation otherwise.
#[global_allocator]
static ALLOCATOR: count::Counting = count::Counting;

fn main() -> ExitCode {
    let args = Args::parse();
    // The service tells its story; the other commands only answer.
    let level = if matches!(args.command, Command::Serve { .. }) { "info" } else { "warn" };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level)).init();
    match run(args.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The last word of the program: nothing is left to do if stderr is closed.
            let _ = writeln!(std::io::stderr(), "saccaded: {error:#}");
            exit::code(&error)
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve {
            model,
            listen,
            threads,
            context,
            device,
            require_gpu,
            kernels,
            weights,
            onnx_provider,
            onnx_library,
        } => {
            let onnx = OnnxOptions { provider: onnx_provider, library: onnx_library };
            let choice = if require_gpu { DeviceChoice::Cuda } else { device };
            let device = DeviceOptions { choice, kernels, weights, ..DeviceOptions::default() };
            let engine = EngineOptions { threads, onnx, device, ..EngineOptions::default() };
            serve::run(model, listen, engine, context)
        }
        Command::Doctor { json } => doctor::run(json),
        Command::Bench(args) => bench::run(&args),
    }
}
