//! Builds the emulated card (`emulator.h`) with the machine's C++ compiler, once, and puts it where the driver would be.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::cuda::{ARCHITECTURES, HEADERS, SOURCES};

const SUPPORT: [(&str, &str); 4] = [
    ("emulator.h", include_str!("emulator.h")),
    ("launch.h", include_str!("launch.h")),
    ("emulator.cpp", include_str!("emulator.cpp")),
    ("libcuda.cpp", include_str!("libcuda.cpp")),
];

/// The text that compiles every kernel file in a namespace of its own and lists the kernels.
fn kernels() -> String {
    // One text, so that the compiler sees into what every kernel calls most.
    let mut text =
        "#define SACCADE_EMULATOR\n#include \"emulator.cpp\"\n#include \"libcuda.cpp\"\n".to_owned();
    for (name, _) in HEADERS {
        writeln!(text, "#include \"{name}\"").unwrap();
    }
    for file in SOURCES {
        writeln!(text, "namespace {0}_cu {{\n#include \"{0}.cu\"\n}}", file.name).unwrap();
    }
    text += "namespace emulator {\nextern const Kernel KERNELS[] = {\n";
    for file in SOURCES {
        for kernel in file.kernels {
            writeln!(text, "describe<{}_cu::{kernel}>(\"{kernel}\"),", file.name).unwrap();
        }
    }
    text + "{nullptr, nullptr, 0, nullptr}};\n}\n"
}

/// Builds the library of the emulated card, unless it is there, and returns its folder, in which also lie files that stand for
/// compiled kernels.
///
/// # Panics
/// If there is no C++ compiler, or the kernels do not compile.
pub(crate) fn build() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut files: Vec<(String, String)> = vec![("kernels.cpp".to_owned(), kernels())];
        files.extend(
            SUPPORT.iter().chain(&HEADERS).map(|(name, text)| ((*name).to_owned(), (*text).to_owned())),
        );
        files.extend(SOURCES.iter().map(|file| (format!("{}.cu", file.name), file.text.to_owned())));
        let mut hash = DefaultHasher::new();
        files.hash(&mut hash);
        // Beside the tests' own programs: `target/release/deps/…`.
        let target = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned();
        let dir = target.join("emulator").join(format!("{:016x}", hash.finish()));
        std::fs::create_dir_all(&dir).unwrap();
        let lock = std::fs::File::create(dir.join("lock")).unwrap();
        lock.lock().unwrap();
        if !dir.join("libcuda.so").exists() {
            for (name, text) in &files {
                std::fs::write(dir.join(name), text).unwrap();
            }
            let out = Command::new("c++")
                .current_dir(&dir)
                .args([
                    "-std=c++17",
                    "-O2",
                    "-g",
                    "-fPIC",
                    "-shared",
                    "-ffp-contract=off",
                    "-U_FORTIFY_SOURCE",
                ])
                .args([
                    "-fvisibility=hidden",
                    "-Wno-unknown-pragmas",
                    "-Wl,-soname,libcuda.so",
                    "-o",
                    "libcuda.part",
                ])
                .arg("kernels.cpp")
                .output()
                .expect("a C++ compiler (`apt install g++`) builds the emulated card");
            assert!(
                out.status.success(),
                "the kernels do not compile:\n{}",
                String::from_utf8_lossy(&out.stderr)
            );
            for architecture in ARCHITECTURES {
                let dir = dir.join("kernels").join(format!("sm_{}", architecture.sm));
                std::fs::create_dir_all(&dir).unwrap();
                for file in SOURCES {
                    std::fs::write(dir.join(format!("{}.cubin", file.name)), b"\x7fELF").unwrap();
                }
            }
            std::fs::rename(dir.join("libcuda.part"), dir.join("libcuda.so")).unwrap();
        }
        dir
    })
}

/// Puts the emulated card where the driver is looked for, for the rest of this process.
#[allow(unsafe_code)]
pub(crate) fn plug_in() -> &'static Path {
    let dir = build();
    // SAFETY: the library has no initialisers. Its name is that of the driver, so that whoever opens the driver later finds it loaded.
    let library = unsafe { libloading::Library::new(dir.join("libcuda.so")) }.unwrap();
    std::mem::forget(library);
    dir
}

/// How often a kernel has run on the emulated card in this process, or one of the driver's calls that launch was made.
#[allow(unsafe_code)]
pub(crate) fn launches(name: &str) -> u32 {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: as in `plug_in`, which loaded the same file.
    let library = unsafe { libloading::Library::new(build().join("libcuda.so")) }.unwrap();
    // SAFETY: defined so in `libcuda.cpp`.
    let count =
        unsafe { library.get::<unsafe extern "C" fn(*const std::ffi::c_char) -> u32>(b"emulator_launches") };
    // SAFETY: the name ends with a zero and lives longer than the call.
    unsafe { count.unwrap()(name.as_ptr()) }
}
