//! A camera, a model, and what the model says: live in the terminal, on a local page, or as JSON lines.
//!
//! ```text
//! cargo run --release -p saccade-examples --features v4l2               # the first camera, or the bundled clip
//! cargo run --release -p saccade-examples -- --page 8485 FILE.avi       # a file, in the terminal and on a page
//! cargo run --release -p saccade-examples -- --headless --frames 20 test://pattern    # JSON lines on stdout
//! ```
//!
//! Needs the bundle in `examples/models/nano` (or `--model`). A JSON line looks like this:
//! `{"seq":0,"capture_ns":…,"age_ms":9.1,"text":"the robot opens the door. …","action":[[0.1,…],…],"codes":[…],"timings_ms":{…},"dropped":0}`
//!
//! Four threads: capture reads the source, this example's loop runs the model (`run`), the publisher writes what it
//! saw (`publish`), and the main one shows it (`view`); each page client has one more (`page`).

mod open;
mod page;
mod publish;
mod run;
mod shown;
mod stats;
mod view;

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use clap::Parser;
use saccade::engine::{DeviceChoice, DeviceOptions, DeviceReport, EngineOptions, Placement};
use saccade::family::Model;
use saccade::source::{Capture, CaptureOptions, Pace};

/// Says what a camera sees.
#[derive(Debug, Parser)]
#[command(name = "camera", version)]
struct Args {
    /// v4l2:///dev/videoN, a picture, folder, glob or video, or test://pattern [default: the first camera, else the bundled clip].
    source: Option<String>,
    /// The bundle to run [default: examples/models/nano].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// What to ask of each frame [default: the model's question for a caption].
    #[arg(long, value_name = "TEXT")]
    ask: Option<String>,
    /// Stop after this many processed frames; a file starts again until then.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    frames: Option<u64>,
    /// No terminal view; JSON lines go to stdout unless --jsonl names a file.
    #[arg(long)]
    headless: bool,
    /// Write one JSON object a frame to this file.
    #[arg(long, value_name = "PATH")]
    jsonl: Option<PathBuf>,
    /// Save each picture, and the JSON lines, to this folder.
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// Serve a live page at this address; a plain port means 127.0.0.1.
    #[arg(long, value_name = "ADDR", value_parser = page_address)]
    page: Option<SocketAddr>,
    /// Threads of the engine; 0 means one per core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// What the model runs on: auto (a card where there is one), cpu or cuda.
    #[arg(long, value_name = "NAME", default_value = "auto")]
    device: DeviceChoice,
    /// Do not start without a card.
    #[arg(long)]
    require_gpu: bool,
    /// The folder of compiled CUDA kernels [default: `cuda` beside this program, or target/cubin].
    #[arg(long, value_name = "DIR")]
    kernels: Option<PathBuf>,
    /// Where a card finds the weights: mapped (the file's own pages), device (copied), or auto.
    #[arg(long, value_name = "NAME", default_value = "auto")]
    weights: Placement,
}

fn main() -> ExitCode {
    let mut args = Args::parse();
    if !args.headless && !std::io::stdout().is_terminal() {
        args.headless = true;
        say("stdout is no terminal, so this runs as with --headless");
    }
    // A log line in the middle of the picture would tear it; with a view only what ends the program is said.
    let level = if args.headless { "info" } else { "off" };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level)).init();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("camera: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// A line for the person at the keyboard; stdout belongs to the JSON lines.
fn say(line: &str) {
    // Nothing is left to say it with when stderr is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn run(args: &Args) -> anyhow::Result<()> {
    let model = match &args.model {
        Some(dir) => dir.clone(),
        None => open::shipped("models/nano")
            .context("there is no examples/models/nano here: name a bundle with --model DIR")?,
    };
    let choice = if args.require_gpu { DeviceChoice::Cuda } else { args.device };
    let (kernels, weights) = (args.kernels.clone(), args.weights);
    let device = DeviceOptions { choice, kernels, weights, ..DeviceOptions::default() };
    let options = EngineOptions { threads: args.threads, device, ..EngineOptions::default() };
    let model = Model::open(&model, &options)?;
    let DeviceReport { name, what, reason, .. } = model.device();
    say(&format!("the model runs on {name}, {what}: {reason}"));

    let stop = Arc::new(AtomicBool::new(false));
    ctrlc::set_handler({
        let stop = Arc::clone(&stop);
        move || stop.store(true, Ordering::Relaxed)
    })
    .context("Ctrl-C cannot be watched")?;

    let capture = Capture::start(open::source(args, &model)?, &CaptureOptions::default())?;
    let every_frame = capture.description().pace == Pace::All;
    let page = args.page.map(page::bind).transpose()?;
    let sinks = publish::Sinks::open(args.headless, args.jsonl.as_deref(), args.save.as_deref())?;
    let eye = run::Eye::new(&model, args.ask.as_deref())?;
    let publisher = publish::Publisher::start(&model, eye.question_text(), sinks, Arc::clone(&stop))?;
    let shown = publisher.shown();
    if let Some(listener) = page {
        let address = page::serve(listener, Arc::clone(&shown))?;
        say(&format!("live page: http://{address}"));
    }
    let looking = std::thread::Builder::new().name("inference".into()).spawn({
        let (stop, frames) = (Arc::clone(&stop), args.frames);
        let outlet = publisher.outlet(every_frame);
        move || run::watch(eye, &capture, outlet, frames, &stop)
    })?;
    if !args.headless {
        view::show(&shown, &stop, &looking)?;
    }
    let watched =
        looking.join().map_err(|_| anyhow::anyhow!("the loop has died: this is a bug, please report it"))?;
    let published = publisher.finish();
    let summary = watched?;
    published?;
    say(&format!("{summary}\n{}", shown.read(|shown| shown.summary.to_string())));
    Ok(())
}

fn page_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
    }
    text.parse().map_err(|_| "write a port such as 8485, or an address such as 127.0.0.1:8485".into())
}
