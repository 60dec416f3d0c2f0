//! `cargo xtask bench --shape M`: the engine on random weights of a size that engines are compared at.
//!
//! `--peer SCRIPT` runs a program that measures another engine on the same shape first and prints one JSON object
//! (`models.M-q8_0.prefill.576.tok_s` and so on), then prints how many times as fast this engine is. `--record` adds what was measured to
//! `boards/bench/BOARD/DATE.jsonl`. `--board NAME` reckons what the card of a board would need instead.

use std::io::Write as _;

use super::{BENCH, DOCTOR, answer, member, now_and_commit, record_path};
use crate::Outcome;
use crate::step::{Step, root};

/// What is compared: its name, where our report has it, where the peer's model has it, and whether less is better.
const RATIOS: [(&str, &[&str], &[&str], bool); 7] = [
    ("prefill 256", &["prefill", "256", "tokens_per_s"], &["prefill", "256", "tok_s"], false),
    ("prefill 576", &["prefill", "576", "tokens_per_s"], &["prefill", "576", "tok_s"], false),
    ("decode 1", &["decode", "tokens_per_s"], &["decode", "1", "tok_s"], false),
    ("decode 2", &["batch", "2", "tokens_per_s"], &["decode", "2", "tok_s"], false),
    ("decode 4", &["batch", "4", "tokens_per_s"], &["decode", "4", "tok_s"], false),
    ("decode 8", &["batch", "8", "tokens_per_s"], &["decode", "8", "tok_s"], false),
    ("first token", &["first_token_ms", "warm"], &["load_to_first_token_ms", "median"], true),
];

pub(super) fn run(args: &[String]) -> Outcome {
    let mut rest = args.to_vec();
    let shape = value(&mut rest, "--shape")?.ok_or("--shape needs a name: S, M or L")?;
    let peer = value(&mut rest, "--peer")?;
    let board = value(&mut rest, "--board")?;
    let threads = value(&mut rest, "--threads")?.unwrap_or_else(|| "0".into());
    let [json, record] = ["--json", "--record"].map(|flag| take(&mut rest, flag));
    if let Some(other) = rest.first() {
        return Err(format!(
            "the engine's bench does not take `{other}`; it takes --shape, --threads, --peer, --board, --json and --record"
        ));
    }
    let bundle = bundle(&shape)?;
    if let Some(board) = board {
        let step = Step::cargo(BENCH).args(["--board", &board, "--model", &bundle]);
        return if json { step.args(["--json"]) } else { step }.run();
    }
    let bench = || Step::cargo(BENCH).args(["--engine", "--threads", &threads, "--model", &bundle]);
    if peer.is_none() && !record {
        return if json { bench().args(["--json"]) } else { bench() }.run();
    }
    let peer = match peer {
        Some(script) => Some(of_peer(&script, &shape, &threads)?),
        None => None,
    };
    let ours = answer(bench().args(["--json"]), "bench --engine --json")?;
    let ratios: Vec<(&str, f64)> = peer.iter().flat_map(|peer| ratios(&ours, peer, &shape)).collect();
    let list: Vec<String> = ratios.iter().map(|(name, ratio)| format!("\"{name}\":{ratio:.2}")).collect();
    let of_peer = peer.as_deref().unwrap_or("null");
    let report = format!("{{\"saccade\":{ours},\"peer\":{of_peer},\"times_peer\":{{{}}}}}", list.join(","));
    if json {
        println!("{report}");
    } else {
        println!("{ours}");
        for (name, ratio) in ratios {
            println!("{name:<12} {ratio:>6.2} times the peer");
        }
    }
    if record { keep(&report) } else { Ok(()) }
}

/// The folder of a shape's bundle, made at the first time.
fn bundle(shape: &str) -> Result<String, String> {
    let dir = root().join("target/bench").join(shape);
    let shown = dir.to_string_lossy().into_owned();
    if !dir.join("saccade.json").is_file() {
        std::fs::create_dir_all(root().join("target/bench")).map_err(|e| format!("target/bench: {e}"))?;
        Step::cargo("run --quiet --release -p saccade-convert -- random").args([shape, &shown]).run()?;
    }
    Ok(shown)
}

fn of_peer(script: &str, shape: &str, threads: &str) -> Result<String, String> {
    let threads = match threads {
        "0" => std::thread::available_parallelism().map_or(1, std::num::NonZero::get).to_string(),
        threads => threads.to_owned(),
    };
    let [venv, dir] = ["venv", "peer"].map(|name| root().join("target/bench").join(name));
    let step = Step::new("python3").args([script, "--shapes", shape, "-t", &threads]);
    let step = step.args(["--venv".as_ref(), venv.as_os_str(), "--dir".as_ref(), dir.as_os_str()]);
    let report = step.output().ok_or(format!("{script} failed: run it alone to see why"))?;
    // One line, whatever it looked like.
    Ok(report.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// How many times as fast we are, where both have a number.
fn ratios<'a>(ours: &str, peer: &str, shape: &str) -> Vec<(&'a str, f64)> {
    let model = format!("{shape}-q8_0");
    let number = |json: &str, path: &[&str]| member(json, path)?.parse::<f64>().ok();
    let ratio = |(name, our, their, less): &(&'a str, &[&str], &[&str], bool)| {
        let their: Vec<&str> = [&["models", model.as_str()], *their].concat();
        let (ours, theirs) = (number(ours, our)?, number(peer, &their)?);
        Some((*name, if *less { theirs / ours } else { ours / theirs }))
    };
    RATIOS.iter().filter_map(ratio).collect()
}

fn keep(report: &str) -> Outcome {
    let doctor = answer(Step::cargo(DOCTOR), "doctor --json")?;
    let (now, commit) = now_and_commit()?;
    let processor = member(&doctor, &["cpu", "core"]).unwrap_or_default();
    let path = record_path(&doctor, &now, "jsonl")?;
    let written = || -> std::io::Result<()> {
        std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path)?;
        let head = format!("\"commit\":\"{commit}\",\"time\":\"{now}\",\"processor\":\"{processor}\"");
        writeln!(file, "{{{head},{}", report.strip_prefix('{').unwrap_or(report))
    };
    written().map_err(|e| format!("{} cannot be written: {e}", path.display()))?;
    eprintln!("a line was added to {}", path.display());
    Ok(())
}

/// Takes `flag VALUE` out of the arguments.
fn value(args: &mut Vec<String>, flag: &str) -> Result<Option<String>, String> {
    let Some(at) = args.iter().position(|arg| arg == flag) else { return Ok(None) };
    if at + 1 == args.len() {
        return Err(format!("{flag} needs a value"));
    }
    args.remove(at);
    Ok(Some(args.remove(at)))
}

/// Takes a flag out of the arguments; whether it was there.
fn take(args: &mut Vec<String>, flag: &str) -> bool {
    let before = args.len();
    args.retain(|arg| arg != flag);
    args.len() < before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_say_how_many_times_as_fast() {
        let ours = r#"{"prefill":{"256":{"tokens_per_s":30},"576":{"tokens_per_s":20}},"decode":{"tokens_per_s":9},
            "batch":{"2":{"tokens_per_s":18},"4":{"tokens_per_s":1},"8":{"tokens_per_s":1}},"first_token_ms":{"warm":5}}"#;
        let peer = r#"{"models":{"M-q8_0":{"prefill":{"256":{"tok_s":10},"576":{"tok_s":40}},"decode":{"1":{"tok_s":3}},
            "load_to_first_token_ms":{"median":20}}}}"#;
        let found = ratios(ours, peer, "M");
        assert_eq!(
            found,
            [("prefill 256", 3.0), ("prefill 576", 0.5), ("decode 1", 3.0), ("first token", 4.0)]
        );
    }

    #[test]
    fn arguments_are_taken_out() {
        let mut args = ["--json", "--shape", "M"].map(String::from).to_vec();
        assert_eq!(value(&mut args, "--shape").unwrap().as_deref(), Some("M"));
        assert!(take(&mut args, "--json") && !take(&mut args, "--json") && args.is_empty());
        assert!(value(&mut vec!["--peer".into()], "--peer").is_err());
    }
}
