//! `cargo xtask demo`: the camera example on the first camera, or on the bundled clip.

use crate::Outcome;
use crate::machine;
use crate::step::Step;

pub(crate) fn run(args: &[String]) -> Outcome {
    let features = if machine::cameras_can_be_built() { "--features v4l2" } else { "" };
    // Where stdout is no terminal the example itself writes JSON lines instead of a live view.
    Step::cargo(&format!("run --release -p saccade-examples --bin camera {features} --")).args(args).run()
}
