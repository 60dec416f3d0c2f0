//! How we work. `cargo xtask` lists the verbs; each lives in the file of its name.
//!
//! No dependencies on purpose: this is the first thing a newcomer compiles, and it must take seconds. What a
//! machine lacks is installed when that may be done without asking, and is otherwise one line to type.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program speaks on its terminal"
)]

mod aarch64;
mod bench;
mod check;
mod cubin;
mod demo;
mod fuzz;
mod golden;
mod machine;
mod onnx;
mod package;
mod smollm2;
mod step;
mod test;
mod train;

use std::process::ExitCode;

/// What a verb returns: nothing, or the sentence that says what to do.
type Outcome = Result<(), String>;

/// One line of the list: the name, what it does, the function.
type Verb = (&'static str, &'static str, fn(&[String]) -> Outcome);

const VERBS: [Verb; 11] = [
    ("demo", "the camera demo: first camera, or the bundled clip; arguments go to `camera`", demo::run),
    ("test", "every test of the default members; arguments go to the test runner", test::run),
    ("check", "formatting, lints, documentation, examples: all warnings are errors", check::run),
    (
        "bench",
        "the frame loop, or with `--shape M` the engine; `--record` keeps it in boards/bench",
        bench::run,
    ),
    ("cubin", "the CUDA kernels for every board, compiled without a card, with what each uses", cubin::run),
    (
        "package",
        "one archive: programs, CUDA kernels, model, clip; `[--target aarch64-unknown-linux-gnu]`",
        package::run,
    ),
    ("smollm2", "SmolLM2 whole on the emulated card, to the bit what the CPU says", smollm2::run),
    ("golden", "make the stored outputs that tests compare with", golden::run),
    ("fuzz", "the readers of files on whatever bytes come; `[TARGET] [--seconds N]`", fuzz::run),
    ("train", "saccade-train on libtorch, which is installed first; arguments go to it", train::run),
    ("aarch64", "the kernel tests for Arm boards, under emulation", aarch64::run),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((name, rest)) = args.split_first() else {
        list();
        return ExitCode::SUCCESS;
    };
    if matches!(name.as_str(), "-h" | "--help" | "help") {
        list();
        return ExitCode::SUCCESS;
    }
    let Some((_, _, run)) = VERBS.iter().find(|(verb, _, _)| verb == name) else {
        eprintln!("error: there is no verb `{name}`; `cargo xtask` lists those there are");
        return ExitCode::from(2);
    };
    // `cargo xtask demo -- --frames 3` and `cargo xtask demo --frames 3` are the same.
    let rest = rest.strip_prefix(&["--".to_owned()]).unwrap_or(rest);
    match run(rest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("error: {sentence}");
            ExitCode::FAILURE
        }
    }
}

fn list() {
    println!("cargo xtask VERB [ARGUMENTS]\n");
    for (name, what, _) in VERBS {
        println!("  {name:<8} {what}");
    }
}
