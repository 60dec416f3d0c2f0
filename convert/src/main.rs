//! `saccade-convert`: results on stdout, progress and refusals on stderr, exit code 0 or 1 (2 for a wrong command line).

mod args;

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use args::{Args, Command};
use clap::Parser;
use saccade::config::WeightDtype;
use saccade::engine::{DeviceOptions, EngineOptions};
use saccade::onnx::OnnxOptions;
use saccade_convert::bundle::{self, Plan, Recipe, Report};
use saccade_convert::checkpoint::Checkpoint;
use saccade_convert::compare::{Given, compare};
use saccade_convert::golden::Subject;
use saccade_convert::inspect::inspect;
use saccade_convert::place::Place;
use saccade_convert::progress::Progress;
use saccade_convert::random;
use saccade_convert::rounding::Group;
use saccade_convert::verify::verify;

/// Tokens of a conversation whose keys and values count when boards are compared: the daemon's default.
const CONTEXT: u64 = 2048;
/// What a board's system leaves of its memory: of 8 GB about 5.2 are reported.
const USABLE_PERCENT: u64 = 65;

#[allow(clippy::print_stderr, reason = "the one place where a refusal is said")]
fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Convert {
            checkpoint,
            out,
            dtype,
            one_part,
            keep_float,
            vision_graph,
            json,
            dry_run,
            force,
        } => {
            let recipe = Recipe { dtype: dtype.into(), two_part: !one_part, keep_float };
            let from = (&*checkpoint, vision_graph.as_deref());
            if dry_run {
                return plan(from, &out, &recipe, force, json);
            }
            convert(from, &out, recipe, force, json)
        }
        Command::Random { shape, out } => {
            let model = random::shape(shape.into());
            let recipe = Recipe { two_part: false, ..WeightDtype::Int8.into() };
            Ok(random::write_bundle(&out, &model, recipe, 1)?)
        }
        Command::Inspect { bundle, json } => {
            let found = inspect(&bundle)?;
            if json { print_json(&found) } else { print(&found.to_text()) }
        }
        Command::Verify { path } => print(&(verify(&path)? + "\n")),
        Command::Golden {
            model,
            golden,
            precision,
            vision_graph,
            provider,
            device,
            kernels,
            weights,
            json,
        } => {
            let engine = EngineOptions {
                onnx: OnnxOptions { provider, ..OnnxOptions::default() },
                device: DeviceOptions { choice: device, kernels, weights, ..DeviceOptions::default() },
                ..EngineOptions::default()
            };
            let subject = Subject { path: &model, graph: vision_graph.as_deref(), engine };
            let report = saccade_convert::golden::golden(&subject, &golden, precision.into())?;
            if json {
                print_json(&report)?
            } else {
                print(&report.to_text())?
            }
            if !report.pass {
                bail!("{} does not compute what {} has", model.display(), golden.display());
            }
            Ok(())
        }
        Command::Compare { bundle, reference, data, text, image, window, json } => {
            let report = compare(&bundle, &reference, &Given { data, texts: text, images: image, window })?;
            if json { print_json(&report) } else { print(&report.to_text()) }
        }
    }
}

/// Says what a conversion would do.
fn plan(
    from: (&Path, Option<&Path>),
    out: &Path,
    recipe: &Recipe,
    force: bool,
    json: bool,
) -> anyhow::Result<()> {
    let (checkpoint, graph) = from;
    let plan = bundle::plan(&with_graph(Checkpoint::open_plan(checkpoint)?, graph)?, recipe)?;
    let verb = if Place::look(out, force)?.replaces { "would be replaced by" } else { "would be" };
    if json {
        return print_json(&plan);
    }
    let memory = plan.peak_bytes;
    print(&(summary(out, verb, &plan) + &format!("at most {memory} bytes of memory for one tensor\n")))?;
    print(&boards(&plan)?)
}

/// Puts a graph that was named to a checkpoint.
fn with_graph(checkpoint: Checkpoint, graph: Option<&Path>) -> anyhow::Result<Checkpoint> {
    match graph {
        Some(graph) => Ok(checkpoint.with_graph(graph)?),
        None => Ok(checkpoint),
    }
}

fn convert(
    (checkpoint, graph): (&Path, Option<&Path>),
    out: &Path,
    recipe: Recipe,
    force: bool,
    json: bool,
) -> anyhow::Result<()> {
    let mut checkpoint = with_graph(Checkpoint::open(checkpoint)?, graph)?;
    let mut progress = Progress::new("convert", bundle::plan(&checkpoint, &recipe)?.weights_bytes);
    let report = bundle::convert(&mut checkpoint, out, recipe, force, &mut progress)?;
    drop(progress);
    if json {
        return print_json(&report);
    }
    let Report { plan, resumed_tensors, rounding, peak_memory_bytes, largest_tensor_bytes } = &report;
    let mut text = summary(out, "is", plan);
    if *resumed_tensors > 0 {
        text += &format!("an earlier run had written {resumed_tensors} of the tensors\n");
    }
    if !rounding.is_empty() {
        text += &Group::to_text(rounding);
    }
    if let Some(peak) = peak_memory_bytes {
        text += &format!("peak memory {peak} bytes; the largest tensor has {largest_tensor_bytes} in F32\n");
    }
    print(&text)
}

fn summary(out: &Path, verb: &str, plan: &Plan) -> String {
    let Plan { dtype, parameters, tensors, weights_bytes, kept_float, kept_float_bytes, .. } = plan;
    let mut text = format!(
        "{} {verb} a bundle in {dtype:?}: {parameters} parameters in {tensors} tensors, {weights_bytes} bytes of weights\n",
        out.display()
    );
    if !kept_float.is_empty() {
        text += &format!(
            "linear layers that stay float: {}, for {kept_float_bytes} bytes more\n",
            kept_float.len()
        );
    }
    text
}

/// Which boards the bundle fits, by their memory.
fn boards(plan: &Plan) -> anyhow::Result<String> {
    let kv = plan.kv_bytes_per_token.saturating_mul(CONTEXT);
    let needed = (plan.weights_bytes + plan.graph_bytes + kv).div_ceil(1 << 20);
    let mut text = format!("{needed} MiB while it runs, with keys and values of {CONTEXT} tokens\n");
    let mut boards: Vec<_> = saccade_boards::profiles(&saccade_boards::Root::system())?
        .into_iter()
        .map(|board| (board.memory_mib.value, board.name))
        .collect();
    boards.sort();
    for (memory, name) in boards.into_iter().filter(|(memory, _)| *memory > 0) {
        let share = 100 * needed / memory;
        let verdict = if share <= USABLE_PERCENT { "fits" } else { "does not fit" };
        text += &format!("  {name:<28} {memory:>6} MiB  {share:>4} %  {verdict}\n");
    }
    Ok(text)
}

fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Writes to stdout; a reader that has seen enough (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("stdout"),
    }
}
