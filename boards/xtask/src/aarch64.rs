//! `cargo xtask aarch64`: the kernel tests of the Arm boards on any Debian machine, under emulation.
//!
//! Where the toolchain has the target (`rustup target add aarch64-unknown-linux-gnu`), it is used. Elsewhere a Debian
//! system with a cross compiler is made once, in the cache, with Debian's own tools; making it needs root.

use std::path::{Path, PathBuf};

use crate::Outcome;
use crate::machine;
use crate::step::{Step, cache, root};

pub(crate) const TARGET: &str = "aarch64-unknown-linux-gnu";
/// Emulated cores: everything the emulator knows (i8mm too), and a core with dotprod alone, as on Orin.
const CPUS: [&str; 2] = ["max", "cortex-a76"];
/// What is tested: integer and float kernels against their scalar definition, and what stands on them.
const TESTS: &str = "test --release --target aarch64-unknown-linux-gnu -p saccade --lib -- kernels:: engine:: quant:: threads::";

pub(crate) fn run(_args: &[String]) -> Outcome {
    if !Path::new("/usr/bin/qemu-aarch64-static").exists() {
        machine::install(&["qemu-user-static"], "the aarch64 emulator")?;
    }
    if has_target() {
        return with_installed_target();
    }
    let system = debian_system()?;
    // Crates are fetched by the toolchain that is known to have a network; the inner one works offline.
    Step::cargo("fetch --locked").run()?;
    CPUS.iter().try_for_each(|cpu| inside(&system, cpu).run())
}

/// The lints of what only Arm compiles, where the toolchain and a cross compiler are at hand; says so where not.
pub(crate) fn lint() -> Outcome {
    if !has_target() || !has_cross_compiler() {
        eprintln!(
            "skipped: lints of the aarch64 kernels, which need `rustup target add {TARGET}`, gcc-aarch64-linux-gnu and libc6-dev-arm64-cross"
        );
        return Ok(());
    }
    Step::cargo(&format!("clippy --release --target {TARGET} -p saccade --all-targets -- -D warnings")).run()
}

/// Whether programs for the boards can be built here; a sentence if not.
pub(crate) fn can_build() -> Outcome {
    if !has_target() {
        return Err(format!("the toolchain lacks the target: rustup target add {TARGET}"));
    }
    if !has_cross_compiler() {
        machine::install(&["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"], "the cross linker")?;
    }
    Ok(())
}

/// The compiler and its C library's headers, which are a package of their own.
fn has_cross_compiler() -> bool {
    Step::new("aarch64-linux-gnu-gcc").args(["-E", "-include", "assert.h", "-x", "c", "/dev/null"]).succeeds()
}

fn has_target() -> bool {
    let sysroot = Step::new("rustc").args(["--print", "sysroot"]).output();
    sysroot.is_some_and(|sysroot| Path::new(&sysroot).join("lib/rustlib").join(TARGET).join("lib").is_dir())
}

fn with_installed_target() -> Outcome {
    if !has_cross_compiler() {
        machine::install(&["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"], "the cross linker")?;
    }
    CPUS.iter().try_for_each(|cpu| Step::cargo(TESTS).env(RUNNER, runner(cpu)).run())
}

/// Takes precedence over the runner in `.cargo/config.toml`, which has one core for all.
const RUNNER: &str = "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER";

fn runner(cpu: &str) -> String {
    format!("qemu-aarch64-static -cpu {cpu} -L /usr/aarch64-linux-gnu")
}

/// A Debian system of its own with a compiler for both architectures, made at the first call.
fn debian_system() -> Result<PathBuf, String> {
    let system = cache()?.join("aarch64-system");
    if !machine::is_root() {
        return Err(format!(
            "the aarch64 tests need the target ({TARGET}) or root: type `rustup target add {TARGET}`, or run this as root"
        ));
    }
    if !system.exists() {
        // Made under another name, so that a half-made system is never taken for a whole one.
        let part = system.with_extension("part");
        if part.exists() {
            std::fs::remove_dir_all(&part)
                .map_err(|e| format!("{} cannot be removed: {e}", part.display()))?;
        }
        make_system(&part)?;
        std::fs::rename(&part, &system).map_err(|e| format!("{} cannot be renamed: {e}", part.display()))?;
    }
    Ok(system)
}

fn make_system(system: &Path) -> Outcome {
    if !Step::new("debootstrap").args(["--version"]).succeeds() {
        machine::install(&["debootstrap"], "debootstrap, for the cross-compiling system,")?;
    }
    let mirror = debian_mirror().ok_or_else(|| {
        format!("no Debian mirror stands in /etc/apt, so use the toolchain's own: rustup target add {TARGET}")
    })?;
    eprintln!("making a cross-compiling Debian system in the cache (2 GB, once, some minutes)");
    if let Some(cache) = system.parent() {
        std::fs::create_dir_all(cache).map_err(|e| format!("{} cannot be made: {e}", cache.display()))?;
    }
    Step::new("debootstrap")
        .args(["--variant=minbase", "--include=ca-certificates,gcc,libc6-dev", "trixie"])
        .args([system])
        .args([&mirror])
        .run()?;
    for file in ["etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt"] {
        // Absent on a machine without: then its packages come over a local mirror or not at all, and apt says so.
        let _ = std::fs::copy(Path::new("/").join(file), system.join(file));
    }
    let list = system.join("etc/apt/sources.list.d/backports.list");
    std::fs::write(&list, format!("deb {mirror} trixie-backports main\n"))
        .map_err(|e| format!("{} cannot be written: {e}", list.display()))?;
    let inner = |words: &str| {
        let step = Step::new("chroot").args([system]).args(words.split_whitespace());
        step.env("DEBIAN_FRONTEND", "noninteractive").run()
    };
    inner("dpkg --add-architecture arm64")?;
    inner("apt-get update -q")?;
    // `-t` for all: a pin by name does not reach the packages of the other architecture.
    inner(
        "apt-get install -y -q --no-install-recommends -t trixie-backports rustc cargo libstd-rust-dev:arm64",
    )?;
    inner("apt-get install -y -q --no-install-recommends gcc-aarch64-linux-gnu libc6-dev-arm64-cross")
}

/// The mirror that this machine itself uses.
fn debian_mirror() -> Option<String> {
    let lists = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    let text: String = lists.iter().filter_map(|list| std::fs::read_to_string(list).ok()).collect();
    let words = text.lines().filter(|line| line.starts_with("URIs:") || line.starts_with("deb "));
    let urls =
        words.flat_map(str::split_whitespace).find(|word| word.contains("://") && word.contains("debian"));
    urls.map(str::to_owned)
}

/// The tests, in the Debian system: repository and crate cache are mounted there, for this command alone.
fn inside(system: &Path, cpu: &str) -> Step {
    let crates = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let script = r#"set -e
mkdir -p "$1/saccade" "$1/crates" "$1/proc"
mount --bind "$2" "$1/saccade"
mount --bind "$3" "$1/crates"
mount -t proc proc "$1/proc"
cp --remove-destination /usr/bin/qemu-aarch64-static "$1/usr/bin/"
shift 3
system=$1; shift
exec chroot "$system" sh -c 'cd /saccade && exec "$@"' sh "$@""#;
    // A mount namespace of its own: nothing stays mounted, however this ends.
    Step::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .args([system, &root(), &crates.unwrap_or_else(|| home.join(".cargo")), system])
        .args(["env", "-u", "RUSTUP_HOME", "-u", "RUSTUP_TOOLCHAIN", "-u", "RUSTC", "-u", "CARGO"])
        .args(["HOME=/root", "PATH=/usr/bin:/bin:/usr/sbin:/sbin"])
        .args(["CARGO_HOME=/crates", "CARGO_TARGET_DIR=/target", "CARGO_NET_OFFLINE=true"])
        .args([format!("{RUNNER}={}", runner(cpu))])
        .args(["cargo"])
        .args(TESTS.split_whitespace())
}
