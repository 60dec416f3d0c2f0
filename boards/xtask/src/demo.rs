//! `cargo xtask demo`: the camera example on the first camera, or on the bundled clip.

use crate::Outcome;
use crate::machine;
use crate::step::Step;

pub(crate) fn run(args: &[String]) -> Outcome {
    let features = if cameras_can_be_built() { "--features v4l2" } else { "" };
    // Where stdout is no terminal the example itself writes JSON lines instead of a live view.
    Step::cargo(&format!("run --release -p saccade-examples --bin camera {features} --")).args(args).run()
}

/// Camera support needs libclang while it is built. Without it the demo still runs, on files.
fn cameras_can_be_built() -> bool {
    if !cfg!(target_os = "linux") {
        eprintln!(
            "cameras are read through Video4Linux, which this system does not have; going on without one"
        );
        return false;
    }
    if machine::has_libclang() {
        return true;
    }
    match machine::install(&["libclang-dev"], "libclang, which camera support is built with,") {
        Ok(()) => true,
        Err(sentence) => {
            eprintln!("{sentence}\ngoing on without camera support: files and the bundled clip still play");
            false
        }
    }
}
