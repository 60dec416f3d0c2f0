//! `cargo xtask train`: saccade-train on libtorch, the quickest engine that a machine without a card has.

use std::path::{Path, PathBuf};

use crate::Outcome;
use crate::step::{Step, cache};

/// The version that the bindings (torch-sys 0.22) are made for: exactly this one.
const TORCH: &str = "torch==2.9.0";

/// Keeps freed tensors in the process, in huge pages: a step frees and takes hundreds of them again, and each page that the
/// system hands out anew is cleared first.
const KEEP_MEMORY: &str =
    "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8589934592:glibc.malloc.hugetlb=1";

pub(crate) fn run(args: &[String]) -> Outcome {
    let venv = cache()?.join("torch");
    if torch_libraries(&venv).is_none() {
        install(&venv)?;
    }
    let libraries = torch_libraries(&venv)
        .ok_or_else(|| format!("{} holds no torch; remove the folder and run this again", venv.display()))?;
    Step::cargo("run --release -p saccade-train --features tch --")
        .args(args)
        .env("PATH", front_of("PATH", &venv.join("bin")))
        .env("VIRTUAL_ENV", &venv)
        .env("LIBTORCH_USE_PYTORCH", "1")
        .env("LD_LIBRARY_PATH", front_of("LD_LIBRARY_PATH", &libraries))
        .env("GLIBC_TUNABLES", KEEP_MEMORY)
        .run()
}

fn install(venv: &Path) -> Outcome {
    eprintln!(
        "libtorch is needed for training (about 7 GB, once): installing {TORCH} into {}",
        venv.display()
    );
    Step::new("python3").args(["-m", "venv"]).args([venv]).run().map_err(|e| {
        format!("{e} (Python's venv module is needed: sudo apt-get install -y python3 python3-venv)")
    })?;
    // setuptools and numpy: the build script of the bindings asks torch itself where it lies.
    Step::new(venv.join("bin/pip")).args(["install", "--quiet", TORCH, "numpy", "setuptools"]).run()
}

/// The folder of libtorch_cpu.so in this virtual environment, whatever its Python version.
fn torch_libraries(venv: &Path) -> Option<PathBuf> {
    let pythons = std::fs::read_dir(venv.join("lib")).ok()?;
    let folders = pythons.filter_map(|entry| Some(entry.ok()?.path().join("site-packages/torch/lib")));
    folders.into_iter().find(|folder| folder.join("libtorch_cpu.so").is_file())
}

fn front_of(variable: &str, folder: &Path) -> std::ffi::OsString {
    let mut value = folder.as_os_str().to_owned();
    if let Some(rest) = std::env::var_os(variable).filter(|rest| !rest.is_empty()) {
        value.push(":");
        value.push(rest);
    }
    value
}
