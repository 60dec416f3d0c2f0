//! `cargo xtask bench`: the frame loop, or with `--shape` the engine, measured by the daemon's own bench program.
//!
//! With `--record` a row is added to `boards/bench/BOARD/DATE.csv`: a claim of speed needs one.

mod shape;

use std::io::Write as _;
use std::path::PathBuf;

use crate::Outcome;
use crate::step::{Step, root};

/// `--quiet`: with `--json` stdout is one object, and stderr is for what went wrong.
const BENCH: &str = "run --quiet --release -p saccaded -- bench";
const DOCTOR: &str = "run --quiet --release -p saccaded -- doctor --json";

/// The columns after commit and time: the heading, which program's answer has it, and the way to it there.
const COLUMNS: [(&str, From, &[&str]); 15] = [
    ("processor", From::Doctor, &["cpu", "core"]),
    ("power_mode", From::Doctor, &["power", "mode", "current", "name"]),
    ("gpu_min_mhz", From::Doctor, &["sensors", "gpu", "min_mhz"]),
    ("gpu_max_mhz", From::Doctor, &["sensors", "gpu", "max_mhz"]),
    ("total_mw", From::Doctor, &["power", "total_mw"]),
    ("memory_mib", From::Doctor, &["memory", "total_mib"]),
    ("l4t_version", From::Doctor, &["l4t_version"]),
    ("frames_per_s", From::Bench, &["frames_per_s"]),
    ("answer_p50_ms", From::Bench, &["frame_to_answer_ms", "p50"]),
    ("answer_p95_ms", From::Bench, &["frame_to_answer_ms", "p95"]),
    ("answer_p99_ms", From::Bench, &["frame_to_answer_ms", "p99"]),
    ("action_p50_ms", From::Bench, &["frame_to_action_ms", "p50"]),
    ("action_p95_ms", From::Bench, &["frame_to_action_ms", "p95"]),
    ("action_p99_ms", From::Bench, &["frame_to_action_ms", "p99"]),
    ("allocs_per_frame", From::Bench, &["allocs_per_frame"]),
];

/// Which program's answer a column is from.
#[derive(Clone, Copy)]
enum From {
    Doctor,
    Bench,
}

pub(crate) fn run(args: &[String]) -> Outcome {
    if args.iter().any(|arg| arg == "--shape") {
        return shape::run(args);
    }
    if !args.iter().any(|arg| arg == "--record") {
        return Step::cargo(BENCH).args(args).run();
    }
    let rest = args.iter().filter(|arg| *arg != "--record" && *arg != "--json");
    let doctor = answer(Step::cargo(DOCTOR), "doctor --json")?;
    let bench = answer(Step::cargo(BENCH).args(["--json"]).args(rest), "bench --json")?;
    record(&doctor, &bench)
}

fn answer(step: Step, name: &str) -> Result<String, String> {
    step.output()
        .ok_or_else(|| format!("`saccaded {name}` failed: run `cargo run --release -p saccaded -- {name}`"))
}

fn record(doctor: &str, bench: &str) -> Outcome {
    let (now, commit) = now_and_commit()?;
    let path = record_path(doctor, &now, "csv")?;
    let written = || -> std::io::Result<()> {
        std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
        let fresh = !path.exists();
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path)?;
        if fresh {
            let names: Vec<&str> = COLUMNS.iter().map(|(name, _, _)| *name).collect();
            writeln!(file, "commit,time,{}", names.join(","))?;
        }
        let values: Vec<String> = COLUMNS
            .iter()
            .map(|(_, from, path)| {
                let text = if matches!(from, From::Doctor) { doctor } else { bench };
                member(text, path).unwrap_or_default()
            })
            .collect();
        writeln!(file, "{commit},{now},{}", values.join(","))
    };
    written().map_err(|e| format!("{} cannot be written: {e}", path.display()))?;
    eprintln!("a row was added to {}", path.display());
    Ok(())
}

/// The time, and the commit that is measured.
fn now_and_commit() -> Result<(String, String), String> {
    let now = Step::new("date").args(["-u", "+%FT%TZ"]).output().ok_or("`date` does not answer")?;
    let commit = Step::new("git").args(["describe", "--always", "--dirty"]).output().unwrap_or_default();
    Ok((now, commit))
}

/// Where today's results of this machine go.
fn record_path(doctor: &str, now: &str, extension: &str) -> Result<PathBuf, String> {
    let board = member(doctor, &["variant"]).ok_or("`saccaded doctor --json` names no variant")?;
    let board = board.to_lowercase().replace(' ', "-");
    let day = now.split('T').next().unwrap_or(now);
    Ok(root().join("boards/bench").join(&board).join(day).with_extension(extension))
}

/// The value of a nested member in an answer of our own programs, as CSV; `None` for null and where there is none.
///
/// It follows keys in the order of the text, which is enough for objects that we print ourselves.
fn member(json: &str, path: &[&str]) -> Option<String> {
    let mut rest = json;
    for key in path {
        let key = format!("\"{key}\"");
        rest = rest.split_once(key.as_str())?.1.trim_start().strip_prefix(':')?.trim_start();
        if rest.starts_with("null") {
            return None;
        }
    }
    let value = match rest.strip_prefix('"') {
        Some(text) => text.split('"').next()?,
        None => rest.split([',', '}', ']', '\n']).next()?.trim(),
    };
    Some(value.replace(',', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_members_of_both_programs() {
        let json = r#"{"cpu": {"core":"AMD, EPYC"}, "power":{"mode":null,"total_mw":5473},
            "frame_to_answer_ms":{"p50":1.5,"p95":2},"frame_to_action_ms":{"p50":0.5},"allocs_per_frame":0}"#;
        assert_eq!(
            member(json, &["cpu", "core"]).as_deref(),
            Some("AMD  EPYC"),
            "a comma would be a new column"
        );
        assert_eq!(member(json, &["power", "mode", "current", "name"]), None, "null has no members");
        assert_eq!(member(json, &["power", "total_mw"]).as_deref(), Some("5473"));
        assert_eq!(member(json, &["frame_to_answer_ms", "p95"]).as_deref(), Some("2"));
        assert_eq!(member(json, &["frame_to_action_ms", "p50"]).as_deref(), Some("0.5"));
        assert_eq!(member(json, &["allocs_per_frame"]).as_deref(), Some("0"));
        assert_eq!(member(json, &["none"]), None);
    }
}
