//! ONNX Runtime for the tests of imported graphs: the library out of its Python package, kept under `target/`.

use std::path::PathBuf;

use crate::Outcome;
use crate::machine;
use crate::step::{Step, root};

const VERSION: &str = "1.32.0";
/// What leaves these tests out.
pub(crate) const FLAG: &str = "--without-onnx";

/// Runs the tests of imported graphs with the library, which is fetched at the first call.
pub(crate) fn test(runner: &str) -> Outcome {
    let library = library().map_err(|sentence| {
        format!(
            "{sentence} (these tests need ONNX Runtime {VERSION}; `cargo xtask test {FLAG}` leaves them out)"
        )
    })?;
    // The features of all default members, so that what was compiled for the other tests is used again.
    Step::cargo(&format!("{runner} --features saccade-convert/onnx --test onnx"))
        .env("ORT_DYLIB_PATH", library)
        .run()
}

/// Where the library lies.
fn library() -> Result<PathBuf, String> {
    let folder = root().join("target").join(format!("onnxruntime-{VERSION}"));
    let library = folder.join(format!("onnxruntime/capi/libonnxruntime.so.{VERSION}"));
    if !library.is_file() {
        fetch(&folder)?;
    }
    if library.is_file() {
        Ok(library)
    } else {
        Err(format!(
            "{} is not in the package; remove {} and run this again",
            library.display(),
            folder.display()
        ))
    }
}

fn fetch(folder: &std::path::Path) -> Outcome {
    eprintln!("ONNX Runtime is needed (35 MB, once): fetching it into {}", folder.display());
    if !Step::new("python3").args(["-m", "pip", "--version"]).succeeds() {
        machine::install(&["python3-pip"], "pip, which fetches ONNX Runtime,")?;
    }
    // The library in the package is the same whatever the Python, so one is named rather than this machine's taken.
    let platform = format!("manylinux_2_28_{}", std::env::consts::ARCH);
    let part = folder.with_extension("part");
    Step::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"])
        .args(["--python-version", "3.12", "--platform", &platform, "--dest"])
        .args([&part])
        .args([format!("onnxruntime=={VERSION}")])
        .run()?;
    let packages = std::fs::read_dir(&part).map_err(|e| format!("{}: {e}", part.display()))?;
    let package = packages
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|end| end == "whl"))
        .ok_or_else(|| format!("{} holds no package; remove it and run this again", part.display()))?;
    Step::new("python3").args(["-m", "zipfile", "-e"]).args([&package, folder]).run()?;
    std::fs::remove_dir_all(&part).map_err(|e| format!("{} cannot be removed: {e}", part.display()))
}
