//! `cargo xtask check`: what a change must pass besides its tests.

use crate::Outcome;
use crate::machine;
use crate::step::Step;

pub(crate) fn run(_args: &[String]) -> Outcome {
    components()?;
    Step::cargo("fmt --all --check").run()?;
    Step::cargo("clippy --release --all-targets -- -D warnings").run()?;
    // The trainer is no default member: linted here without its framework, which only training compiles.
    Step::cargo("clippy --release -p saccade-train --all-targets -- -D warnings").run()?;
    if machine::has_libclang() {
        Step::cargo("clippy --release -p saccade --all-targets --features v4l2 -- -D warnings").run()?;
    } else {
        eprintln!(
            "skipped: lints of the `v4l2` feature, which needs libclang (sudo apt-get install -y libclang-dev)"
        );
    }
    Step::cargo("doc --release --no-deps --quiet").env("RUSTDOCFLAGS", "-D warnings").run()?;
    Step::cargo("build --release -p saccade-examples --bins --examples").run()
}

fn components() -> Outcome {
    for (word, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if !Step::cargo(&format!("{word} --version")).succeeds() {
            return Err(format!(
                "`cargo {word}` is missing; install it with: rustup component add {component}"
            ));
        }
    }
    Ok(())
}
