//! What this machine has, and how it gets what it lacks: apt when we may, a line to type when we may not.

use std::path::{Path, PathBuf};

use crate::Outcome;
use crate::step::{Step, cache};

/// Installs Debian packages, or says which line to type.
///
/// `why` completes the sentence "… is needed", e.g. "libclang, for the camera bindings,".
pub(crate) fn install(packages: &[&str], why: &str) -> Outcome {
    let line = format!("sudo apt-get update && sudo apt-get install -y {}", packages.join(" "));
    if !Step::new("apt-get").args(["--version"]).succeeds() {
        return Err(format!(
            "{why} is needed and this machine has no apt; install it by hand (Debian: `{line}`)"
        ));
    }
    let Some(root) = superuser() else {
        return Err(format!("{why} is needed; install it with: {line}"));
    };
    eprintln!("{why} is needed: installing {}", packages.join(" "));
    let apt = |words: &[&str]| {
        let (program, before) = root.split_first().unwrap_or((&"apt-get", &[]));
        Step::new(program).args(before).args(words).env("DEBIAN_FRONTEND", "noninteractive")
    };
    let mut words = vec!["install", "-y", "-q", "--no-install-recommends"];
    words.extend(packages);
    // A fresh image has no package lists: the first try fails at once and the second finds them.
    if apt(&words).output().is_some() {
        return Ok(());
    }
    apt(&["update", "-q"]).run()?;
    apt(&words).run().map_err(|e| format!("{e} (to install it by hand: {line})"))
}

/// The words before an apt-get command that make it run as root without asking, or none where that cannot be.
fn superuser() -> Option<&'static [&'static str]> {
    if is_root() {
        return Some(&["apt-get"]);
    }
    Step::new("sudo").args(["-n", "true"]).succeeds().then_some(&["sudo", "-n", "apt-get"])
}

/// Whether we run as root.
pub(crate) fn is_root() -> bool {
    Step::new("id").args(["-u"]).output().is_some_and(|uid| uid == "0")
}

/// The folder of the programs of a Python environment in the cache, with these packages of PyPI, which are installed the first time.
///
/// `why` completes the sentence "… is needed".
pub(crate) fn python(name: &str, packages: &[&str], why: &str) -> Result<PathBuf, String> {
    let venv = cache()?.join(name);
    let programs = venv.join("bin");
    let there = packages.iter().all(|package| {
        let (name, version) = package.split_once("==").unwrap_or((package, ""));
        let ask = format!("import importlib.metadata as m; assert m.version('{name}') == '{version}'");
        Step::new(programs.join("python")).args(["-c", &ask]).succeeds()
    });
    if !there {
        eprintln!("{why} is needed: installing {} into {}", packages.join(" "), venv.display());
        Step::new("python3").args(["-m", "venv"]).args([&venv]).run().map_err(|e| {
            format!("{e} (Python's venv module is needed: sudo apt-get install -y python3 python3-venv)")
        })?;
        let pip = Step::new(programs.join("python")).args(["-m", "pip", "install", "--quiet"]);
        pip.args(packages).run()?;
    }
    Ok(programs)
}

/// Camera support needs libclang while it is built. Without it files still play.
pub(crate) fn cameras_can_be_built() -> bool {
    if !cfg!(target_os = "linux") {
        eprintln!(
            "cameras are read through Video4Linux, which this system does not have; going on without one"
        );
        return false;
    }
    if has_libclang() {
        return true;
    }
    match install(&["libclang-dev"], "libclang, which camera support is built with,") {
        Ok(()) => true,
        Err(sentence) => {
            eprintln!("{sentence}\ngoing on without camera support: files and the bundled clip still play");
            false
        }
    }
}

/// Whether the library that bindgen loads can be found, in the places where bindgen looks.
pub(crate) fn has_libclang() -> bool {
    if std::env::var_os("LIBCLANG_PATH").is_some() {
        return true;
    }
    let multiarch = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let mut folders = vec![multiarch, "/usr/lib".into(), "/usr/lib64".into(), "/usr/local/lib".into()];
    folders
        .extend(names_in("/usr/lib").filter(|n| n.starts_with("llvm")).map(|n| format!("/usr/lib/{n}/lib")));
    folders.iter().any(|folder| names_in(folder).any(|name| is_libclang(&name)))
}

/// `libclang.so`, `libclang.so.1`, `libclang-14.so.14.0.6`; not `libclang-cpp.so`, which bindgen cannot use.
fn is_libclang(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("libclang") else { return false };
    let version = rest.strip_prefix('-').unwrap_or(rest);
    rest.contains(".so") && version.starts_with(|c: char| c == '.' || c.is_ascii_digit())
}

fn names_in(folder: &str) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(Path::new(folder)).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_c_library_from_the_cpp_one() {
        for name in ["libclang.so", "libclang.so.1", "libclang-14.so", "libclang-14.so.14.0.6"] {
            assert!(is_libclang(name), "{name}");
        }
        for name in ["libclang-cpp.so", "libclang-cpp.so.14", "libclang.a", "libclangAST.a", "clang.so"] {
            assert!(!is_libclang(name), "{name}");
        }
    }
}
