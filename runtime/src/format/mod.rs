//! The container of weights: what a file must look like, who reads it and who writes it.
//!
//! A container is a [safetensors](https://github.com/huggingface/safetensors) file, so every tool that reads those
//! reads ours. Nothing here knows what the tensors mean; that is [`crate::config`]'s affair.
//!
//! # Layout
//!
//! All integers are little-endian; offsets count bytes.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `n`, length of the header, u64 |
//! | 8 | n | header: one JSON object in UTF-8, then blanks (0x20) |
//! | 8 + n | rest | data section: the tensors, end to end |
//!
//! ```text
//! { "__metadata__": { "key": "text", … },                                    optional, at most once
//!   "name": { "dtype": "F32", "shape": [192, 4], "data_offsets": [0, 3072] },  once per tensor
//!   … }
//! ```
//!
//! `data_offsets` are `[begin, end)` relative to the data section; `dtype` is a name of [`Dtype`]; `shape` is row-major,
//! outermost dimension first, and `[]` is one element.
//!
//! # Rules of every file ([`Rules::Foreign`])
//!
//! 1. The header MUST start with `{`, MUST end with `}` and blanks, and MUST NOT be longer than [`MAX_HEADER_BYTES`].
//! 2. It MUST hold no key twice, at most [`MAX_TENSORS`] tensors of at most [`MAX_RANK`] dimensions and at most
//!    [`MAX_METADATA`] metadata entries. Other fields and deeper nesting are refused.
//! 3. Elements × bits MUST fit 64 bits (a zero dimension does not hide an overflow of the others), be whole bytes,
//!    and equal `end - begin`.
//! 4. Sorted by offset the tensors MUST tile the data section: no hole, no overlap, nothing after the last.
//!
//! # Rules of a bundle, on top ([`Rules::Bundle`])
//!
//! 5. The data section MUST start at a multiple of [`DATA_ALIGN`]; of [`HUGE_PAGE`] when it holds [`HUGE_DATA`] or more.
//! 6. Every tensor MUST start at a multiple of [`TENSOR_ALIGN`] and have no zero dimension.
//! 7. Because of rule 4 a gap is a tensor too: `__pad.N`, U8, one dimension, 1 to 63 zero bytes, ending at a
//!    multiple of [`TENSOR_ALIGN`]. [`Header`] does not list pads.
//!
//! Each rule has a variant of [`FormatError`] and a test in `runtime/tests/malformed.rs`.
//! Reading costs time linear in the header (times the logarithm of the tensor count, for the name index) and at most
//! twice the header plus 16 MiB of memory.

mod bytes;
mod dtype;
mod error;
mod json;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use dtype::Dtype;
pub use error::FormatError;
pub(crate) use read::open_file;
pub use read::{Header, Rules, TensorInfo, read_file_header, read_header};
pub use write::{Mark, TensorPlan, Writer, Written, plan_header};

/// Length of the length: the u64 that opens the file.
pub const PREFIX_BYTES: u64 = PREFIX_LEN as u64;
/// The same, for slices.
const PREFIX_LEN: usize = 8;
/// Longest header that is read or written: 16 MiB (a tokenizer of 150,000 words fits a checkpoint's metadata).
pub const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Most tensors in one file; the largest shards on the hub hold a few thousand.
pub const MAX_TENSORS: usize = 1 << 17;
/// Most entries of `__metadata__`.
pub const MAX_METADATA: usize = 4096;
/// Most dimensions of a tensor.
pub const MAX_RANK: usize = 8;
/// Every tensor of a bundle starts at a multiple of this: a cache line, and one AVX-512 register.
pub const TENSOR_ALIGN: u64 = 64;
/// The data section of a bundle starts at a multiple of this: a page.
pub const DATA_ALIGN: u64 = 4 << 10;
/// The same once the data section is at least [`HUGE_DATA`]: a huge page, so that the mapping can consist of them.
pub const HUGE_PAGE: u64 = 2 << 20;
/// From this size on blanks up to [`HUGE_PAGE`] are worth their bytes; in a model of 5 MB they would be a third.
pub const HUGE_DATA: u64 = 16 << 20;
/// Names of the tensors that fill gaps start with this, in bundles only.
pub const PAD_PREFIX: &str = "__pad.";
/// The key that holds text instead of a tensor.
pub const METADATA_KEY: &str = "__metadata__";

/// Multiple at which the data section of a bundle starts, given its length.
pub const fn data_align(data_bytes: u64) -> u64 {
    if data_bytes >= HUGE_DATA { HUGE_PAGE } else { DATA_ALIGN }
}
