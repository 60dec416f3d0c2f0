//! Cards: the CUDA driver, the kernels, and how they are launched.
//!
//! Nothing of CUDA is needed to build or to start: the driver is opened when a [`Device`] is, and its absence is an error with a
//! sentence. The kernels are `.cu` files under `kernels/`, compiled ahead of time for every board (`cargo xtask cubin`) and loaded from
//! a folder; they read a bundle's tiles as they lie, and give the bits of [`crate::kernels::Kernels::SCALAR`].
//!
//! Words here are CUDA's: a *grid* of *blocks* of threads runs a kernel, 32 threads are a *warp*, work waits in a *stream*.
#![allow(unsafe_code)]

mod arguments;
mod driver;
mod error;
mod graph;
mod host;
pub(crate) mod launch;
mod limits;
mod memory;
mod nvrtc;
mod sources;
#[cfg(test)]
mod tests;

pub use driver::{CudaOptions, Device};
pub use error::CudaError;
pub(crate) use graph::Graph;
pub(crate) use host::HostPages;
pub use limits::{CardLimits, Effort};
pub(crate) use limits::{ReadRates, ReadSizes};
pub(crate) use memory::{Memory, Pinned};
pub use sources::{ARCHITECTURES, Architecture, HEADERS, KernelFile, SOURCES};
