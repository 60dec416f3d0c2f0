//! `cargo xtask golden`: the stored outputs that tests compare with, made by the trainer's own forward pass.

use crate::Outcome;
use crate::step::Step;

pub(crate) fn run(args: &[String]) -> Outcome {
    Step::cargo("run --release -p saccade-train --features flex -- golden").args(args).run()
}
