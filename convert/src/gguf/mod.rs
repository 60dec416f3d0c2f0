//! GGUF, the container of llama.cpp's models: what a file must look like, and who reads it.
//!
//! Versions 2 and 3, little-endian. The reader does not know what keys and tensors mean, and reads no weight. What it has read,
//! [`dequantise`] and [`tokenizer_json`] turn into floats and a text tokenizer, and `llama.rs` into a checkpoint.
//!
//! # Layout
//!
//! All integers are little-endian; offsets count bytes. A *string* is its length (u64), then so many bytes of UTF-8.
//!
//! | what | how |
//! |---|---|
//! | magic | the bytes `GGUF` |
//! | version | u32: 2 or 3 |
//! | counts | u64 tensors, u64 metadata entries |
//! | each metadata entry | string key, u32 [`ValueType`], value |
//! | each tensor | string name, u32 rank, u64 × rank dimensions (innermost first), u32 [`GgmlType`], u64 offset |
//! | padding | up to a multiple of the alignment |
//! | data section | the tensors, at their offsets from its start |
//!
//! A *value* is a number of its type's width, a bool of one byte, a string, or an array: u32 [`ValueType`] of the elements,
//! u64 count, elements. The *alignment* is the u32 under the key `general.alignment`, [`DEFAULT_ALIGNMENT`] without it.
//!
//! # Rules
//!
//! 1. Magic and version MUST be as above. Big-endian files are refused.
//! 2. There MUST be at most [`MAX_TENSORS`] tensors and [`MAX_METADATA`] entries, and no more of anything that is counted
//!    (strings, elements, entries) than the bytes that are left can hold. All before the padding MUST fit
//!    [`MAX_HEADER_BYTES`].
//! 3. Keys MUST be unique, not empty and at most [`MAX_KEY_BYTES`] long; every string MUST be UTF-8.
//! 4. Types MUST be known, bools 0 or 1, and arrays nested at most [`MAX_NESTING`] deep.
//! 5. The alignment MUST be a power of two from 8 to [`MAX_ALIGNMENT`].
//! 6. Names of tensors MUST be unique, not empty and at most [`MAX_NAME_BYTES`] long.
//! 7. A tensor MUST have 1 to [`MAX_RANK`] dimensions, none of them zero, rows of whole blocks of its type, and a number of
//!    elements and bytes that fit 64 bits.
//! 8. Every tensor MUST start at a multiple of the alignment and end inside the file; no two may overlap.
//! 9. The file MUST end with its last tensor, or with the padding behind it.
//!
//! Each rule has a variant of [`GgufError`] and a test in `convert/tests/gguf.rs`. Reading takes time linear in what comes
//! before the padding (times the logarithm of the counts) and at most eight times its bytes of memory.
//!
//! Source: ggml `docs/gguf.md`; sizes of the types from gguf-py `constants.py` (0.19.0).

mod dequantise;
mod error;
mod llama;
mod read;
mod tokenizer;
mod types;

pub use dequantise::{dequantise, supported};
pub use error::GgufError;
pub(crate) use llama::open;
pub use read::{Array, Gguf, TensorInfo, Value, read, read_file};
pub use saccade::format::{MAX_METADATA, MAX_TENSORS};
pub use tokenizer::tokenizer_json;
pub use types::{GgmlType, ValueType};

/// What every file starts with.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// Most bytes before the data section; a vocabulary of 260,000 tokens with its merges takes about 20 MB.
pub const MAX_HEADER_BYTES: u64 = 64 << 20;
/// Longest key, as the format has it.
pub const MAX_KEY_BYTES: u64 = 65_535;
/// Longest name of a tensor, as the format has it.
pub const MAX_NAME_BYTES: u64 = 64;
/// Most dimensions of a tensor, as the format has it.
pub const MAX_RANK: u32 = 4;
/// Deepest array in arrays; files of language models have none at all.
pub const MAX_NESTING: usize = 4;
/// Key of the alignment.
pub const ALIGNMENT_KEY: &str = "general.alignment";
/// Alignment without that key.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// Largest alignment that makes sense: beyond a huge page nothing is gained.
pub const MAX_ALIGNMENT: u64 = 2 << 20;
