//! Kernels compiled for the very card that is opened: a developer's option, for cards that no kernels are compiled for ahead of time and
//! for kernels that are being written. Never the default: boards have no compiler, and compiling takes seconds.

use std::error::Error as _;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr::null;

use libloading::Library;

use super::error::CudaError;
use super::sources::{HEADERS, KernelFile};

type Program = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;

/// NVRTC, opened by path: what is called of it.
pub(super) struct Compiler {
    create: Create,
    compile: Compile,
    log_size: Size,
    log: Get,
    image_size: Size,
    image: Get,
    destroy: Destroy,
    /// As in 11.8.
    pub(super) version: [c_int; 2],
    /// The functions are its own.
    _library: Library,
}

/// The library that `--kernels nvrtc` or `--kernels nvrtc:PATH` names; nothing for a folder of compiled kernels.
pub(super) fn library(kernels: &Path) -> Option<PathBuf> {
    let text = kernels.to_str()?;
    if text == "nvrtc" {
        return Some("libnvrtc.so".into());
    }
    text.strip_prefix("nvrtc:").map(PathBuf::from)
}

impl Compiler {
    /// Opens the library.
    pub(super) fn open(path: &Path) -> Result<Self, CudaError> {
        let no = |error: libloading::Error| {
            // What the system says stands beneath what the crate says.
            let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            CudaError::NoCompiler { path: path.into(), reason }
        };
        // SAFETY: runs what the library does when it is opened. The user named it to have its code run.
        let library = unsafe { Library::new(path) }.map_err(no)?;
        macro_rules! function {
            ($name:literal, $kind:ty) => {
                // SAFETY: the type is that of the function in nvrtc.h, which has been the same since CUDA 11.1.
                *unsafe { library.get::<$kind>($name) }.map_err(no)?
            };
        }
        let get_version = function!(b"nvrtcVersion", Version);
        let mut this = Self {
            create: function!(b"nvrtcCreateProgram", Create),
            compile: function!(b"nvrtcCompileProgram", Compile),
            log_size: function!(b"nvrtcGetProgramLogSize", Size),
            log: function!(b"nvrtcGetProgramLog", Get),
            image_size: function!(b"nvrtcGetCUBINSize", Size),
            image: function!(b"nvrtcGetCUBIN", Get),
            destroy: function!(b"nvrtcDestroyProgram", Destroy),
            version: [0; 2],
            _library: library,
        };
        let [major, minor] = &mut this.version;
        // SAFETY: writes two integers.
        let code = unsafe { get_version(major, minor) };
        if code == 0 {
            Ok(this)
        } else {
            Err(CudaError::NoCompiler { path: path.into(), reason: format!("nvrtcVersion gives {code}") })
        }
    }

    /// The image of a file for cards of capability `sm`, as `cargo xtask cubin` makes it.
    pub(super) fn compile(&self, file: &KernelFile, sm: u32) -> Result<Vec<u8>, CudaError> {
        let refused = |log: String| CudaError::DoesNotCompile { file: file.name, sm, log };
        let text = |text: &str| CString::new(text).map_err(|_| refused("a zero byte is in it".to_owned()));
        let (source, name) = (text(file.text)?, text(&format!("{}.cu", file.name))?);
        let headers = HEADERS.iter().map(|(name, body)| Ok((text(name)?, text(body)?)));
        let headers = headers.collect::<Result<Vec<_>, CudaError>>()?;
        let (names, bodies): (Vec<_>, Vec<_>) =
            headers.iter().map(|(name, body)| (name.as_ptr(), body.as_ptr())).unzip();
        // No fused multiply-add: products and sums are rounded as on the CPU.
        let options =
            [format!("--gpu-architecture=sm_{sm}"), "--fmad=false".to_owned(), "--std=c++17".to_owned()];
        let options = options.iter().map(|option| text(option)).collect::<Result<Vec<_>, CudaError>>()?;
        let options: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();

        let mut program: Program = std::ptr::null_mut();
        // SAFETY: every text ends with a zero byte, and there are as many headers as names.
        let code = unsafe {
            (self.create)(
                &raw mut program,
                source.as_ptr(),
                name.as_ptr(),
                count(names.len()),
                or_null(&bodies),
                or_null(&names),
            )
        };
        if code != 0 {
            return Err(refused(format!("nvrtcCreateProgram gives {code}")));
        }
        // SAFETY: created above; the options are texts that live until the call returns.
        let code = unsafe { (self.compile)(program, count(options.len()), options.as_ptr()) };
        let made = if code == 0 { self.get(program, self.image_size, self.image) } else { None };
        let log = if made.is_none() { self.get(program, self.log_size, self.log) } else { None };
        // SAFETY: created above, and destroyed once.
        unsafe { (self.destroy)(&raw mut program) };
        made.ok_or_else(|| {
            let log = log.unwrap_or_default();
            let log = CStr::from_bytes_until_nul(&log)
                .map_or_else(|_| String::new(), |log| log.to_string_lossy().into_owned());
            refused(format!("nvrtcCompileProgram gives {code}\n{log}"))
        })
    }

    /// What the compiler has of a program: its image, or its log.
    #[allow(clippy::unused_self, reason = "the functions live as long as the library")]
    fn get(&self, program: Program, size: Size, get: Get) -> Option<Vec<u8>> {
        let mut bytes = 0;
        // SAFETY: the program lives; writes one number.
        if unsafe { size(program, &raw mut bytes) } != 0 {
            return None;
        }
        let mut found = vec![0u8; bytes];
        // SAFETY: as long as the compiler asked for.
        (unsafe { get(program, found.as_mut_ptr().cast()) } == 0).then_some(found)
    }
}

/// How many there are, in C's words: a handful.
fn count(n: usize) -> c_int {
    c_int::try_from(n).unwrap_or(c_int::MAX)
}

fn or_null(texts: &[*const c_char]) -> *const *const c_char {
    if texts.is_empty() { null() } else { texts.as_ptr() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::SOURCES;

    /// The compiler that `cargo xtask cubin` installed, if it did.
    fn installed() -> Option<PathBuf> {
        let venv = PathBuf::from(std::env::var_os("HOME")?).join(".cache/saccade/nvrtc/lib");
        let pythons = std::fs::read_dir(venv).ok()?.flatten();
        let folders = pythons.map(|python| python.path().join("site-packages/nvidia/cuda_nvrtc/lib"));
        folders
            .filter_map(|folder| std::fs::read_dir(folder).ok())
            .flat_map(|files| files.flatten().map(|file| file.path()))
            .find(|path| path.to_string_lossy().contains("libnvrtc.so.11"))
    }

    #[test]
    fn kernels_are_compiled_for_the_architecture_that_is_given() {
        let Some(path) = installed() else {
            log::warn!("skipped: NVRTC is not installed (`cargo xtask cubin` does that)");
            return;
        };
        let compiler = Compiler::open(&path).unwrap();
        assert_eq!(compiler.version[0], 11);
        let file = SOURCES.iter().find(|file| file.name == "elementwise").unwrap();
        for sm in [72, 86, 87] {
            let image = compiler.compile(file, sm).unwrap();
            assert!(image.starts_with(b"\x7fELF"), "sm_{sm}");
        }
        let broken = KernelFile { text: "__global__ void broken() { nothing }", ..*file };
        let error = compiler.compile(&broken, 87).unwrap_err().to_string();
        assert!(
            error.starts_with("elementwise.cu does not compile for sm_87: ") && error.contains("nothing"),
            "{error}"
        );
        let error = compiler.compile(file, 999).unwrap_err().to_string();
        assert!(error.contains("gpu-architecture"), "{error}");
    }

    #[test]
    fn a_compiler_that_is_not_there_is_a_sentence() {
        for (path, other) in [("/nowhere/libnvrtc.so", false), ("libc.so.6", true)] {
            let Err(error) = Compiler::open(Path::new(path)) else { panic!("{path} compiles") };
            let error = error.to_string();
            assert!(
                error.starts_with(&format!("`{path}` is no NVRTC")) && error.contains("--kernels nvrtc:"),
                "{error}"
            );
            assert!(!other || error.contains("nvrtcVersion"), "{error}");
        }
    }

    #[test]
    fn a_folder_is_told_from_a_compiler() {
        assert_eq!(library(Path::new("nvrtc")), Some("libnvrtc.so".into()));
        assert_eq!(library(Path::new("nvrtc:/a/b.so")), Some("/a/b.so".into()));
        assert_eq!(library(Path::new("./nvrtc")), None);
        assert_eq!(library(Path::new("target/cubin")), None);
    }
}
