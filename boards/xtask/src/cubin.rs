//! `cargo xtask cubin`: every CUDA kernel compiled for every board, without a card.

use crate::Outcome;
use crate::step::{Step, cache};

/// The last compiler whose code the drivers of JetPack 5 load, and the one that knows Thor.
const COMPILERS: [&str; 2] = ["nvidia-cuda-nvrtc-cu11==11.8.89", "nvidia-cuda-nvrtc==13.5.37"];

pub(crate) fn run(args: &[String]) -> Outcome {
    let venv = cache()?.join("nvrtc");
    let python = venv.join("bin/python");
    if !Step::new(&python)
        .args(["-c", "import importlib.metadata as m; m.version('nvidia-cuda-nvrtc')"])
        .succeeds()
    {
        eprintln!(
            "CUDA's compilers are needed (about 200 MB, once): installing them into {}",
            venv.display()
        );
        Step::new("python3").args(["-m", "venv"]).args([&venv]).run().map_err(|e| {
            format!("{e} (Python's venv module is needed: sudo apt-get install -y python3 python3-venv)")
        })?;
        Step::new(&python).args(["-m", "pip", "install", "--quiet"]).args(COMPILERS).run()?;
    }
    Step::new(&python).args(["boards/cubin.py"]).args(args).run()
}
