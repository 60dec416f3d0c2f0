//! What lies in `examples/` of the repository, or beside `bin/` in a package: the defaults of the commands.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The bundle that was named, or the shipped one.
///
/// # Errors
/// If none was named and none is there.
pub(crate) fn model(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    match named {
        Some(dir) => Ok(dir.to_owned()),
        None => find("models/nano")
            .context("there is no examples/models/nano here: name a bundle with --model DIR"),
    }
}

/// The shipped clip.
///
/// # Errors
/// If there is none.
pub(crate) fn clip() -> anyhow::Result<PathBuf> {
    let files = find("clips").and_then(|dir| std::fs::read_dir(dir).ok()).into_iter().flatten().flatten();
    let clips =
        files.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|kind| kind == "avi"));
    clips.min().context("there is no clip in examples/clips here: name a source, for example test://pattern")
}

/// Below `examples/` here, in the package that this program lies in, or where it was built.
fn find(what: &str) -> Option<PathBuf> {
    let here = Path::new("examples").join(what);
    let program = std::env::current_exe().unwrap_or_default();
    let packaged = program.ancestors().nth(2).unwrap_or(&program).join(what);
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(what);
    [here, packaged, built].into_iter().find(|path| path.exists())
}
