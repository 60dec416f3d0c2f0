//! `cargo xtask test`: every test that needs no CUDA, no camera and no root.

use crate::Outcome;
use crate::step::Step;

pub(crate) fn run(args: &[String]) -> Outcome {
    // Documentation first, so that the runner's own closing line is the last one on the screen.
    if args.is_empty() {
        Step::cargo("test --release --doc --quiet").run()?;
    }
    if Step::cargo("nextest --version").succeeds() {
        return Step::cargo("nextest run --release").args(args).run();
    }
    eprintln!("cargo-nextest is not installed, so `cargo test` runs the tests one program after the other;");
    eprintln!("to have the quicker runner: cargo install --locked cargo-nextest");
    Step::cargo("test --release --lib --bins --tests").args(args).run()
}
