//! Saccade: an embedded runtime for unified multimodal transformers.

pub mod config;
pub mod engine;
pub mod error;
pub mod format;
pub mod kernels;
pub mod quant;
pub mod source;
pub mod threads;

pub use error::{Error, Result};
