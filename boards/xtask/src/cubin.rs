//! `cargo xtask cubin`: every CUDA kernel compiled for every board, without a card.

use crate::step::Step;
use crate::{Outcome, machine};

/// The last compiler whose code the drivers of JetPack 5 load, and the one that knows Thor.
const COMPILERS: [&str; 2] = ["nvidia-cuda-nvrtc-cu11==11.8.89", "nvidia-cuda-nvrtc==13.5.37"];

pub(crate) fn run(args: &[String]) -> Outcome {
    let programs = machine::python("nvrtc", &COMPILERS, "a pair of CUDA compilers (200 MB, once)")?;
    Step::new(programs.join("python")).args(["boards/cubin.py"]).args(args).run()
}
