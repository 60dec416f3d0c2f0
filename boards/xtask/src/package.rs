//! `cargo xtask package [--target TRIPLE]`: one archive with the programs, the CUDA kernels, the shipped model and the clip.
//!
//! The same files give the same archive: they are sorted, and their times, owners and modes fixed. (Programs differ with the path that they are
//! built at.)

use std::path::{Path, PathBuf};

use crate::step::{Step, root};
use crate::{Outcome, aarch64, cubin, machine};

/// The C library of the oldest JetPack that is served, 5.x: Ubuntu 20.04.
const OLDEST_GLIBC: (u32, u32) = (2, 31);
/// A linker that knows every version of the C library, and cargo's way to it.
const ZIG: [&str; 2] = ["ziglang==0.17.1", "cargo-zigbuild==0.24.1"];

/// What is built, with the card's engine: it opens the driver at run time, so every machine gets the same programs.
const BUILD: &str = "build --release --bins -p saccaded -p saccade-convert -p saccade-examples --features saccaded/cuda,saccade-convert/cuda,saccade-examples/cuda";
const PROGRAMS: [&str; 3] = ["saccaded", "saccade-convert", "camera"];
/// Where files of the repository go.
const FILES: [(&str, &str); 4] = [
    ("examples/models/nano", "models/nano"),
    ("examples/clips", "clips"),
    ("LICENSE-MIT", "LICENSE-MIT"),
    ("LICENSE-APACHE", "LICENSE-APACHE"),
];
const README: &str = include_str!("package/README.md");

pub(crate) fn run(args: &[String]) -> Outcome {
    let target = match args {
        [] => None,
        [flag, target] if flag == "--target" => (target != "host").then_some(target.as_str()),
        _ => return Err("usage: cargo xtask package [--target host|aarch64-unknown-linux-gnu]".to_owned()),
    };
    match target {
        None => Step::cargo(&build()).run()?,
        Some(aarch64::TARGET) => build_for_boards()?,
        Some(other) => {
            return Err(format!("no package is made for `{other}`; choose host or {}", aarch64::TARGET));
        }
    }
    cubin::run(&[])?;

    let triple = match target {
        Some(target) => target.to_owned(),
        None => host().ok_or("`rustc -vV` does not name this machine")?,
    };
    let name = format!("saccade-{}-{triple}", env!("CARGO_PKG_VERSION"));
    let out = root().join("target/package");
    let stage = out.join(&name);
    let io = |path: &Path, error: std::io::Error| format!("{} cannot be written: {error}", path.display());
    if stage.exists() {
        std::fs::remove_dir_all(&stage).map_err(|error| io(&stage, error))?;
    }
    let built = root().join("target").join(target.unwrap_or_default()).join("release");
    for program in PROGRAMS {
        let to = stage.join("bin").join(program);
        copy(&built.join(program), &to)?;
        strip(&to, target);
        check_glibc(&to, target)?;
    }
    copy(&root().join("target/cubin"), &stage.join("bin/cuda"))?;
    for (from, to) in FILES {
        copy(&root().join(from), &stage.join(to))?;
    }
    let readme = stage.join("README.md");
    std::fs::write(&readme, README).map_err(|error| io(&readme, error))?;

    let archive = out.join(format!("{name}.tar.gz"));
    Step::new("tar")
        .args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--format=ustar"])
        .args(["--mode=u=rwX,go=rX", "--use-compress-program=gzip -n -9", "-C"])
        .args([&out])
        .args(["-cf"])
        .args([&archive])
        .args([&name])
        .run()?;
    table(&stage, &archive)
}

/// The words that build the programs, with cameras if that can be.
fn build() -> String {
    let cameras = if machine::cameras_can_be_built() { ",saccade-examples/v4l2" } else { "" };
    format!("{BUILD}{cameras}")
}

/// Builds the programs for Arm boards, against the C library that the oldest of them has: what this machine's own would link starts on
/// none that is older.
fn build_for_boards() -> Outcome {
    aarch64::can_build()?;
    let zig = machine::python("zig", &ZIG, "a linker for boards of every age (440 MB, once)")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let (major, minor) = OLDEST_GLIBC;
    let words = format!("zig{} --target {}.{major}.{minor}", build(), aarch64::TARGET);
    Step::cargo(&words).env("PATH", format!("{}:{path}", zig.display())).run()
}

/// Says which C library a program needs at least; refuses one for Arm boards that the oldest board does not have.
fn check_glibc(program: &Path, target: Option<&str>) -> Outcome {
    let bytes =
        std::fs::read(program).map_err(|error| format!("{} cannot be read: {error}", program.display()))?;
    let (major, minor) = newest_glibc(&bytes);
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    println!("{name} needs glibc {major}.{minor}");
    if target == Some(aarch64::TARGET) && (major, minor) > OLDEST_GLIBC {
        let (old_major, old_minor) = OLDEST_GLIBC;
        return Err(format!("{name} would not start on JetPack 5, which has glibc {old_major}.{old_minor}"));
    }
    Ok(())
}

/// The newest version of glibc that is named among these bytes, `(0, 0)` where none is.
fn newest_glibc(bytes: &[u8]) -> (u32, u32) {
    let name = b"GLIBC_";
    let after = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(name)).map(|at| at + name.len());
    let version = |at: usize| {
        let text: String =
            bytes[at..].iter().take(8).map_while(|&b| (b != 0).then_some(char::from(b))).collect();
        let (major, minor) = text.split_once('.')?;
        // A third part, as in 2.2.5, is of old versions alone.
        Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
    };
    after.filter_map(version).max().unwrap_or((0, 0))
}

/// Copies a file or a folder, with what lies in it; hidden files stay behind.
fn copy(from: &Path, to: &Path) -> Outcome {
    let io = |error: std::io::Error| format!("{} cannot be copied: {error}", from.display());
    if from.is_dir() {
        for name in names(from)? {
            copy(&from.join(&name), &to.join(&name))?;
        }
        return Ok(());
    }
    std::fs::create_dir_all(to.parent().unwrap_or(to)).map_err(io)?;
    std::fs::copy(from, to).map(|_| ()).map_err(io)
}

/// What lies in a folder, sorted.
fn names(folder: &Path) -> Result<Vec<String>, String> {
    let entries =
        std::fs::read_dir(folder).map_err(|error| format!("{} cannot be read: {error}", folder.display()))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    Ok(names)
}

/// Takes the debug information out of a program.
fn strip(program: &Path, target: Option<&str>) {
    let tool = if target == Some(aarch64::TARGET) { "aarch64-linux-gnu-strip" } else { "strip" };
    if !Step::new(tool).args([program]).succeeds() {
        eprintln!(
            "{} keeps its debug information: `{tool}` is not installed or refuses it",
            program.display()
        );
    }
}

/// What rustc calls this machine.
fn host() -> Option<String> {
    let version = Step::new("rustc").args(["-vV"]).output()?;
    version.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned)
}

/// Prints what is in the package, two folders deep.
fn table(stage: &Path, archive: &Path) -> Outcome {
    for (path, bytes, files) in parts(stage, 2)? {
        let shown = path.strip_prefix(stage).unwrap_or(&path).display().to_string();
        println!("{shown:<28}{files:>6} files{bytes:>12} bytes");
    }
    let packed =
        archive.metadata().map_err(|error| format!("{} cannot be read: {error}", archive.display()))?;
    println!("{}: {} bytes", archive.display(), packed.len());
    Ok(())
}

/// Files, and folders `depth` levels down, with their bytes and how many files they have.
fn parts(path: &Path, depth: usize) -> Result<Vec<(PathBuf, u64, usize)>, String> {
    if !path.is_dir() {
        let bytes = path.metadata().map_or(0, |metadata| metadata.len());
        return Ok(vec![(path.to_owned(), bytes, 1)]);
    }
    let mut inside = Vec::new();
    for name in names(path)? {
        inside.extend(parts(&path.join(name), depth.saturating_sub(1))?);
    }
    if depth > 0 {
        return Ok(inside);
    }
    let (bytes, files) = inside.iter().fold((0, 0), |(b, f), (_, bytes, files)| (b + bytes, f + files));
    Ok(vec![(path.to_owned(), bytes, files)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_glibc_is_found() {
        assert_eq!(newest_glibc(b"\0GLIBC_2.2.5\0GLIBC_2.30\0GLIBC_2.9\0GLIBC_PRIVATE\0GLIBC_"), (2, 30));
        assert_eq!(newest_glibc(b"nothing"), (0, 0));
    }

    #[test]
    fn parts_are_files_and_folders_of_a_depth() {
        let dir = std::env::temp_dir().join(format!("saccade-package-{}", std::process::id()));
        for (name, bytes) in [("a", 1), ("b/c", 2), ("b/d/e", 4), ("b/d/f", 8), ("b/.hidden", 16)] {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![0; bytes]).unwrap();
        }
        let found = parts(&dir, 2).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let names: Vec<_> = found
            .iter()
            .map(|(path, bytes, files)| (path.strip_prefix(&dir).unwrap(), *bytes, *files))
            .collect();
        assert_eq!(names, [(Path::new("a"), 1, 1), (Path::new("b/c"), 2, 1), (Path::new("b/d"), 12, 2)]);
    }
}
