//! `cargo xtask demo`: the camera example on the first camera, or on the bundled clip.

use std::io::IsTerminal;

use crate::Outcome;
use crate::machine;
use crate::step::Step;

pub(crate) fn run(args: &[String]) -> Outcome {
    let features = if cameras_can_be_built() { "--features v4l2" } else { "" };
    let mut demo = Step::cargo(&format!("run --release -p saccade-examples --bin camera {features} --"));
    // A pipe or a log file gets JSON lines; a live view needs a terminal.
    if !std::io::stdout().is_terminal() && !args.iter().any(|arg| arg == "--headless") {
        demo = demo.args(["--headless"]);
    }
    demo.args(args).run()
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
