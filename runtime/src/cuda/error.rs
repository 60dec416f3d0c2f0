//! What can be wrong with a card.

use std::path::PathBuf;

use cudarc::driver::{DriverError, sys};

use sys::CUresult as Code;

/// After these every call fails until the process has ended: the context is damaged, or the card is gone.
///
/// Source: the CUDA Driver API's list of error codes, "the process must be terminated and relaunched".
const LOSSES: [Code; 15] = [
    Code::CUDA_ERROR_DEINITIALIZED,
    Code::CUDA_ERROR_ECC_UNCORRECTABLE,
    Code::CUDA_ERROR_NVLINK_UNCORRECTABLE,
    Code::CUDA_ERROR_CONTAINED,
    Code::CUDA_ERROR_ILLEGAL_ADDRESS,
    Code::CUDA_ERROR_LAUNCH_TIMEOUT,
    Code::CUDA_ERROR_CONTEXT_IS_DESTROYED,
    Code::CUDA_ERROR_ASSERT,
    Code::CUDA_ERROR_HARDWARE_STACK_ERROR,
    Code::CUDA_ERROR_ILLEGAL_INSTRUCTION,
    Code::CUDA_ERROR_MISALIGNED_ADDRESS,
    Code::CUDA_ERROR_INVALID_ADDRESS_SPACE,
    Code::CUDA_ERROR_INVALID_PC,
    Code::CUDA_ERROR_LAUNCH_FAILED,
    Code::CUDA_ERROR_UNKNOWN,
];

/// A card that cannot be used, or stopped working.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// libcuda is not there.
    #[error(
        "this machine has no CUDA driver (libcuda.so.1); on a Jetson install nvidia-l4t-cuda, or run on the CPU"
    )]
    NoDriver,
    /// A driver that is older than every kernel.
    #[error(
        "the CUDA driver is of version {}.{}, and {}.{} is needed (JetPack 5); update the board's software",
        found / 1000, found % 1000 / 10, needed / 1000, needed % 1000 / 10
    )]
    OldDriver {
        /// Its version, as the driver counts: 11040 is 11.4.
        found: i32,
        /// The oldest that works.
        needed: i32,
    },
    /// A driver without a card.
    #[error("there is no CUDA device number {ordinal}: the driver knows {count}")]
    NoDevice {
        /// The one that was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// A card that no kernel was compiled for.
    #[error(
        "no kernels are compiled for `{device}` (compute capability {}.{}); Saccade has them for {known}, and `--kernels nvrtc` compiles them for this card with NVIDIA's NVRTC",
        sm / 10, sm % 10
    )]
    UnknownArchitecture {
        /// Its name.
        device: String,
        /// Its compute capability.
        sm: u32,
        /// Those that there are.
        known: String,
    },
    /// The compiled kernels are not where they should be.
    #[error("no compiled kernel `{}`; `cargo xtask cubin` makes them, and `--kernels` says where they are", path.display())]
    NoKernels {
        /// Where they should be.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A compiler was named that is none.
    #[error(
        "`{}` is no NVRTC that can be used ({reason}); name the library with `--kernels nvrtc:PATH`, or the folder of compiled kernels", path.display()
    )]
    NoCompiler {
        /// What was named.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A kernel does not compile.
    #[error("{file}.cu does not compile for sm_{sm}: {log}")]
    DoesNotCompile {
        /// The file without its ending.
        file: &'static str,
        /// The compute capability.
        sm: u32,
        /// What the compiler said.
        log: String,
    },
    /// The card's memory does not suffice.
    #[error(
        "{what} needs {needed} bytes of the card's memory, and {free} are free; use a smaller model or context, or end other programs"
    )]
    OutOfMemory {
        /// For what.
        what: &'static str,
        /// Bytes that were asked for.
        needed: usize,
        /// Bytes that are free.
        free: usize,
    },
    /// A picture that the kernels cannot count.
    #[error(
        "{what} would have a map of {values} values on the card, which counts to {most}; use a smaller picture"
    )]
    MapTooLarge {
        /// What has it.
        what: &'static str,
        /// Its values.
        values: usize,
        /// The most there may be.
        most: usize,
    },
    /// Rows that no block of the card can hold.
    #[error(
        "{what} have rows of {bytes} bytes, and a block of this card holds {most}; run this model on the cpu"
    )]
    RowTooLong {
        /// What has them.
        what: &'static str,
        /// Bytes of a row.
        bytes: usize,
        /// The most there may be.
        most: usize,
    },
    /// Weights were to be read where they are mapped.
    #[error(
        "`{device}` cannot read the weights where they are mapped: {reason}; place them with `--weights device`, or `auto`"
    )]
    CannotMap {
        /// Its name.
        device: String,
        /// Why not.
        reason: String,
    },
    /// The driver has no memory for something of its own.
    #[error(
        "the CUDA driver has no memory left for {call}; use a smaller model or context, or end other programs"
    )]
    Exhausted {
        /// What was asked of it.
        call: &'static str,
    },
    /// The card does nothing more for this process.
    #[error("the card was lost in {call}: {message}; only a new process can open it again")]
    Lost {
        /// What was asked of the driver.
        call: &'static str,
        /// What it said.
        message: String,
    },
    /// The driver refused something.
    #[error("the CUDA driver failed in {call}: {message}; the card must be opened again")]
    Call {
        /// What was asked of it.
        call: &'static str,
        /// What it said.
        message: String,
    },
}

impl CudaError {
    /// What the driver said of `call`.
    pub(super) fn of(call: &'static str) -> impl Fn(DriverError) -> Self {
        move |error| match error.0 {
            Code::CUDA_ERROR_OUT_OF_MEMORY => Self::Exhausted { call },
            code if LOSSES.contains(&code) => Self::Lost { call, message: words(error) },
            _ => Self::Call { call, message: words(error) },
        }
    }
}

/// A driver's error in its words.
pub(super) fn words(error: DriverError) -> String {
    let text = |found: Result<&std::ffi::CStr, DriverError>| {
        found.map_or_else(|_| "unknown".to_owned(), |text| text.to_string_lossy().into_owned())
    };
    format!("{} ({})", text(error.error_name()), text(error.error_string()))
}
