//! `cargo xtask check`: what a change must pass besides `cargo xtask test`.

use crate::machine;
use crate::step::Step;
use crate::{Outcome, aarch64, test};

pub(crate) fn run(_args: &[String]) -> Outcome {
    components()?;
    Step::cargo("fmt --all --check").run()?;
    clippy("")?;
    clippy("--features saccade/onnx,saccade-convert/onnx,saccaded/onnx")?;
    // The trainer is no default member, and most of it is compiled with its framework alone.
    clippy("-p saccade-train")?;
    clippy("-p saccade-train --features flex")?;
    aarch64::lint()?;
    if machine::has_libclang() {
        features("v4l2,cuda")?;
    } else {
        eprintln!(
            "skipped: lints and tests of the `v4l2` feature, which needs libclang (sudo apt-get install -y libclang-dev)"
        );
        features("cuda")?;
    }
    Step::cargo("doc --release --no-deps --quiet").env("RUSTDOCFLAGS", "-D warnings").run()?;
    Step::cargo("build --release -p saccade-examples --bins --examples").run()
}

/// Lints and tests of what the runtime has on request.
fn features(list: &str) -> Outcome {
    clippy(&format!("-p saccade --features {list}"))?;
    test::run(&["-p", "saccade", "--features", list, "--lib"].map(str::to_owned))?;
    if list.contains("cuda") {
        clippy(
            "-p saccade-convert -p saccaded -p saccade-examples --features saccade-convert/cuda,saccaded/cuda,saccade-examples/cuda",
        )?;
        for package in ["saccade-convert", "saccaded"] {
            test::run(&["-p", package, "--features", "cuda", "--test", "cuda"].map(str::to_owned))?;
        }
    }
    Ok(())
}

fn clippy(packages: &str) -> Outcome {
    Step::cargo(&format!("clippy --release {packages} --all-targets -- -D warnings")).run()
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
