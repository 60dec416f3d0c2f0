//! `cargo xtask test`: every test that needs no CUDA, no camera and no root.

use crate::step::Step;
use crate::{Outcome, onnx};

pub(crate) fn run(args: &[String]) -> Outcome {
    let (without_onnx, args): (Vec<_>, Vec<_>) = args.iter().partition(|arg| *arg == onnx::FLAG);
    // Documentation first, so that the runner's own closing line is the last one on the screen.
    if args.is_empty() {
        Step::cargo("test --release --doc --quiet").run()?;
    }
    let (runner, targets) = if Step::cargo("nextest --version").succeeds() {
        ("nextest run --release", "")
    } else {
        eprintln!(
            "cargo-nextest is not installed, so `cargo test` runs the tests one program after the other;"
        );
        eprintln!("to have the quicker runner: cargo install --locked cargo-nextest");
        ("test --release", " --lib --bins --tests")
    };
    Step::cargo(&format!("{runner}{targets}")).args(&args).run()?;
    if !args.is_empty() {
        return Ok(());
    }
    if !without_onnx.is_empty() {
        eprintln!("skipped, as {} says: the tests of imported ONNX graphs", onnx::FLAG);
        return Ok(());
    }
    onnx::test(runner)
}
