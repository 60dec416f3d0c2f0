//! `saccaded bench`: the frame loop on a clip, one frame at a time, with its allocations counted; with `--engine` the engine
//! beside the limits of the machine.

#[cfg(feature = "cuda")]
mod card;
mod engine;
mod first;
mod forecast;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
#[cfg(feature = "cuda")]
use saccade::engine::DeviceOptions;
use saccade::engine::{DeviceChoice, EngineOptions, Placement};
use saccade::family::Model;
use saccade::sample::Sampler;
use saccade::session::{ActionChunk, Session, SessionOptions};
use saccade::source::{self, Frame, Pace, Read, Repeat, Source, SourceOptions};
use saccade::tokenize::{ImageTokenizer, Tokenizer as _};
use serde_json::{Value, json};

use self::first::First;
use crate::count::Count;
use crate::shipped;

/// Frames before the measurement: the windows fill up, every buffer has met its size, the caches are warm.
const WARM_UP: usize = 12;
/// How long a source may keep the bench waiting.
const PATIENCE: Duration = Duration::from_secs(5);

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The bundle to run [default: examples/models/nano].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Where frames come from [default: the clip in examples/clips].
    source: Option<String>,
    /// Frames to measure.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    frames: u32,
    /// Threads of the engine; 0 means one per core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Measure prefill, decoding, batches and the first token instead, beside what memory and the INT8 instruction allow.
    #[arg(long, conflicts_with_all = ["source", "frames"])]
    engine: bool,
    /// What the engine's bench runs on: cpu, or cuda (in a build with that feature).
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    device: DeviceChoice,
    /// The folder of compiled CUDA kernels; for developers, nvrtc or nvrtc:LIBRARY compiles them now.
    #[arg(long, value_name = "DIR")]
    kernels: Option<PathBuf>,
    /// Where the card finds the weights: mapped (the file's own pages), device (copied), or auto.
    #[arg(long, value_name = "NAME", default_value = "auto")]
    weights: Placement,
    /// Run every part of the card's bench on a handful of tokens: a check of the program, whose figures mean nothing.
    #[arg(long, requires = "engine")]
    quick: bool,
    /// Reckon what the card of a board would need for the model instead, from its profile.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["source", "frames", "engine"])]
    board: Option<String>,
    /// What the engine's bench starts as a new process.
    #[arg(long, hide = true)]
    first_token: bool,
    /// Map the weights by 4 KiB pages.
    #[arg(long, hide = true)]
    small_pages: bool,
}

/// Measures and prints.
///
/// # Errors
/// If the model or the source cannot be opened, or fail on the way.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let dir = shipped::model(args.model.as_deref())?;
    if args.first_token {
        return print(&format!("{}\n", json!(First::measure(&dir, args.threads, args.small_pages)?)));
    }
    if let Some(board) = &args.board {
        let report = forecast::run(board, &dir)?;
        return print(&if args.json { format!("{report}\n") } else { forecast::to_table(&report) });
    }
    let of_card = args.quick || args.kernels.is_some() || args.weights != Placement::Auto;
    if of_card && !(args.engine && args.device != DeviceChoice::Cpu) {
        bail!("--quick, --kernels and --weights are for the bench of a card; add `--engine --device cuda`");
    }
    if args.engine && args.device != DeviceChoice::Cpu {
        return print(&format!("{}\n", on_card(&dir, args)?));
    }
    if args.engine {
        let report = engine::run(&dir, args.threads)?;
        return print(&if args.json { format!("{report}\n") } else { engine::to_table(&report) });
    }
    if args.device != DeviceChoice::Cpu {
        bail!("the frame loop is measured on the CPU; add `--engine` for the bench of a card");
    }
    let uri = match &args.source {
        Some(uri) => uri.clone(),
        None => shipped::clip()?.to_string_lossy().into_owned(),
    };
    let model = Model::open(&dir, &EngineOptions { threads: args.threads, ..EngineOptions::default() })?;
    let options = SourceOptions { pace: Pace::All, repeat: Repeat::Forever, ..SourceOptions::default() };
    let mut source = source::open(&uri, &options)?;
    let measured = measure(&model, &mut *source, args.frames as usize)?;
    let text = if args.json {
        format!("{}\n", measured.to_json(&model))
    } else {
        measured.to_table(&model, &dir, &uri)
    };
    print(&text)
}

#[cfg(feature = "cuda")]
fn on_card(dir: &Path, args: &Args) -> anyhow::Result<Value> {
    let device = DeviceOptions {
        choice: DeviceChoice::Cuda,
        kernels: args.kernels.clone(),
        weights: args.weights,
        ..DeviceOptions::default()
    };
    let sizes = if args.quick { card::Sizes::QUICK } else { card::Sizes::WHOLE };
    card::run(dir, args.threads, device, &sizes)
}

#[cfg(not(feature = "cuda"))]
fn on_card(_: &Path, args: &Args) -> anyhow::Result<Value> {
    bail!("this build has no CUDA engine to measure on {:?}; build it with `--features cuda`", args.device)
}

fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("stdout cannot be written")
}

/// Milliseconds of every frame, and the allocations of all of them together.
#[derive(Debug, Default)]
struct Measured {
    to_action_ms: Vec<f64>,
    to_answer_ms: Vec<f64>,
    tokenize_ms: Vec<f64>,
    prefill_ms: Vec<f64>,
    tokens: usize,
    allocations: u64,
    elapsed: Duration,
}

/// Frame by frame: read and decoded, then counted from here to the token ids and action values.
fn measure(model: &Arc<Model>, source: &mut dyn Source, frames: usize) -> anyhow::Result<Measured> {
    let config = model.unimodal()?;
    let question =
        model.text()?.encode(&format!("{}{}", config.chat.caption, config.chat.question_suffix))?;
    let mut session = Session::new(model, &SessionOptions::default())?;
    session.begin(&config.tasks[0], &[])?;
    let mut images = ImageTokenizer::new(model)?;
    let max_new = config.generation.max_new_tokens;
    let mut codes = Vec::with_capacity(config.image_codes());
    let mut answer = Vec::with_capacity(max_new);
    let mut chunk = ActionChunk {
        bins: Vec::with_capacity(config.chunk_len()),
        values: Vec::with_capacity(config.chunk_len()),
    };
    let mut frame = Frame::default();
    let mut out = Measured::default();
    let mut start = Instant::now();
    for i in 0..WARM_UP + frames {
        if i == WARM_UP {
            start = Instant::now();
        }
        match source.read(&mut frame, PATIENCE)? {
            Read::Frame => {}
            Read::End => bail!("the source ended after {i} frames: it has to repeat or be longer"),
            Read::Timeout => bail!("the source gave no frame for {} seconds", PATIENCE.as_secs()),
        }
        let count = Count::start();
        let taken = Instant::now();
        images.encode(frame.picture(), &mut codes)?;
        let tokenized = Instant::now();
        session.push_image(&codes)?;
        let prefilled = Instant::now();
        session.act(&mut chunk)?;
        let to_action = frame.age();
        session.answer(&question, max_new, &mut Sampler::greedy(), &mut answer, &mut |_| true)?;
        let to_answer = frame.age();
        let allocations = count.stop();
        if i >= WARM_UP {
            out.allocations += allocations;
            out.tokens += answer.len();
            out.to_action_ms.push(ms(to_action));
            out.to_answer_ms.push(ms(to_answer));
            out.tokenize_ms.push(ms(tokenized - taken));
            out.prefill_ms.push(ms(prefilled - tokenized));
        }
    }
    out.elapsed = start.elapsed();
    Ok(out)
}

#[allow(clippy::cast_precision_loss, reason = "counts of frames and tokens, far below 2^52")]
impl Measured {
    fn frames_per_s(&self) -> f64 {
        self.to_answer_ms.len() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn allocs_per_frame(&self) -> f64 {
        self.allocations as f64 / self.to_answer_ms.len() as f64
    }

    fn to_json(&self, model: &Model) -> Value {
        json!({
            "frames_per_s": rounded(self.frames_per_s()),
            "frame_to_answer_ms": percentiles(&self.to_answer_ms),
            "frame_to_action_ms": percentiles(&self.to_action_ms),
            "allocs_per_frame": rounded(self.allocs_per_frame()),
            "frames": self.to_answer_ms.len(),
            "tokens_per_answer": rounded(self.tokens as f64 / self.to_answer_ms.len() as f64),
            "model": model.config().name(),
            "kernels": model.engine().kernels().name,
            "threads": model.engine().threads(),
        })
    }

    fn to_table(&self, model: &Model, dir: &Path, uri: &str) -> String {
        let mut text = format!(
            "{} of {}, {} kernels, {} threads\n{} frames of {uri}, {} warm-up\n\n{:<18}{:>9}{:>9}{:>9}\n",
            model.config().name(),
            dir.display(),
            model.engine().kernels().name,
            model.engine().threads(),
            self.to_answer_ms.len(),
            WARM_UP,
            "ms",
            "p50",
            "p95",
            "p99",
        );
        let rows = [
            ("tokenize", &self.tokenize_ms),
            ("prefill", &self.prefill_ms),
            ("frame to action", &self.to_action_ms),
            ("frame to answer", &self.to_answer_ms),
        ];
        for (name, samples) in rows {
            let p = percentiles(samples);
            let cell = |key: &str| p[key].as_f64().unwrap_or(f64::NAN);
            text += &format!("{name:<18}{:>9.2}{:>9.2}{:>9.2}\n", cell("p50"), cell("p95"), cell("p99"));
        }
        text + &format!(
            "\n{:.1} frames/s, {:.1} tokens per answer, {} allocations per frame\n",
            self.frames_per_s(),
            self.tokens as f64 / self.to_answer_ms.len() as f64,
            rounded(self.allocs_per_frame()),
        )
    }
}

/// p50, p95 and p99.
fn percentiles(samples: &[f64]) -> Value {
    let rank = |percent| percentile(samples, percent).map_or(Value::Null, |value| json!(rounded(value)));
    json!({"p50": rank(50), "p95": rank(95), "p99": rank(99)})
}

/// By nearest rank; `None` of no samples.
fn percentile(samples: &[f64], percent: usize) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied()
}

fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_by_hand() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentiles(&hundred), json!({"p50": 50.0, "p95": 95.0, "p99": 99.0}));
        assert_eq!(percentiles(&[2.5]), json!({"p50": 2.5, "p95": 2.5, "p99": 2.5}));
        assert_eq!(percentiles(&[]), json!({"p50": null, "p95": null, "p99": null}));
    }

    #[test]
    fn the_allocator_counts_only_while_it_is_told_to() {
        let count = Count::start();
        let some: Vec<Vec<u8>> = (0..5).map(|_| Vec::with_capacity(100)).collect();
        let counted = count.stop();
        drop(std::hint::black_box(some));
        // Other tests may run on other threads of this process, so this is a lower bound.
        assert!(counted >= 5, "{counted}");
    }
}
