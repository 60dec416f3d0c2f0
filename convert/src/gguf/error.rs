//! One variant per rule of the container that a file can break; the numbers are those of the module's page.

use super::{ALIGNMENT_KEY, GgmlType, MAX_ALIGNMENT, MAX_HEADER_BYTES, MAX_NESTING, MAX_RANK};

/// A rule that was broken, where, and what to do. `place` is what was being read: `` key `general.name` ``, `tensor 7`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum GgufError {
    /// The system refused.
    #[error("it could not be read at offset {offset}")]
    Io { offset: u64, source: std::io::Error },

    /// Rule 1.
    #[error("it starts with `{}` instead of `GGUF`; this is no GGUF file", found.escape_ascii())]
    Magic { found: Vec<u8> },
    /// Rule 1.
    #[error(
        "version {found} at offset 4 is neither 2 nor 3; convert the model again with a current llama.cpp"
    )]
    Version { found: u32 },
    /// Rule 1.
    #[error("it is a big-endian file; convert it with gguf_convert_endian.py of llama.cpp")]
    BigEndian,

    /// Rule 2: what is announced must be there.
    #[error(
        "{place}: {needed} bytes are announced at offset {offset} but only {left} are left; the file was cut off or is damaged, fetch it again"
    )]
    CutOff { place: String, offset: u64, needed: u64, left: u64 },
    /// Rule 2: counts.
    #[error(
        "{place}: {found} {what} are announced at offset {offset}, more than the {most} that are possible; the file is damaged, fetch it again"
    )]
    Count { place: String, offset: u64, what: &'static str, found: u64, most: u64 },
    /// Rule 2: the sum.
    #[error(
        "{place}: at offset {offset} metadata and tensor list exceed {MAX_HEADER_BYTES} bytes; this is no language model's file, or it is damaged"
    )]
    HeaderTooLarge { place: String, offset: u64 },

    /// Rules 3 and 6.
    #[error(
        "{place}: a name of {found} bytes at offset {offset}, it must have 1 to {most}; the file is damaged"
    )]
    NameLength { place: String, offset: u64, found: u64, most: u64 },
    /// Rule 3.
    #[error("{place}: the string at offset {offset} is not UTF-8; the file is damaged")]
    Utf8 { place: String, offset: u64 },
    /// Rules 3 and 6: two readers could pick different ones.
    #[error("{place} is listed again before offset {offset}; write the file again with unique names")]
    Duplicate { place: String, offset: u64 },

    /// Rule 4.
    #[error(
        "{place}: value type {found} at offset {offset} is unknown; the file is damaged or newer than this program"
    )]
    ValueType { place: String, offset: u64, found: u32 },
    /// Rule 4.
    #[error("{place}: the bool at offset {offset} is {found}, neither 0 nor 1; the file is damaged")]
    Bool { place: String, offset: u64, found: u8 },
    /// Rule 4.
    #[error(
        "{place}: at offset {offset} arrays are nested more than {MAX_NESTING} deep; the file is damaged"
    )]
    Nesting { place: String, offset: u64 },

    /// Rule 5.
    #[error(
        "key `{ALIGNMENT_KEY}` before offset {offset} is {found}, not a u32 that is a power of two from 8 to {MAX_ALIGNMENT}; write the file again"
    )]
    Alignment { offset: u64, found: String },

    /// Rule 7.
    #[error(
        "{place}: {found} dimensions at offset {offset}, there must be 1 to {MAX_RANK}; the file is damaged"
    )]
    Rank { place: String, offset: u64, found: u32 },
    /// Rule 7.
    #[error("{place}: dimensions {dims:?} at offset {offset} hold a zero; the file is damaged")]
    Empty { place: String, offset: u64, dims: Vec<u64> },
    /// Rule 7.
    #[error(
        "{place}: tensor type {found} at offset {offset} is unknown; the file is damaged or newer than this program"
    )]
    TensorType { place: String, offset: u64, found: u32 },
    /// Rule 7.
    #[error(
        "{place}: rows of {found} elements before offset {offset} are no whole blocks of {block}, which {dtype:?} has; the file is damaged"
    )]
    PartialBlock { place: String, offset: u64, dtype: GgmlType, found: u64, block: u64 },
    /// Rule 7.
    #[error(
        "{place}: elements or bytes of {dtype:?} {dims:?} before offset {offset} do not fit 64 bits; the file is damaged"
    )]
    SizeOverflow { place: String, offset: u64, dtype: GgmlType, dims: Vec<u64> },

    /// Rule 8.
    #[error(
        "{place}: its data offset {found}, before offset {offset}, is no multiple of the alignment {alignment}; write the file again"
    )]
    Misaligned { place: String, offset: u64, found: u64, alignment: u64 },
    /// Rule 8.
    #[error(
        "tensor `{name}`: its {bytes} bytes from offset {offset} do not end inside the file of {file_bytes}; it was cut off, fetch it again"
    )]
    PastEnd { name: String, offset: u64, bytes: u64, file_bytes: u64 },
    /// Rule 8.
    #[error(
        "tensor `{name}` starts at offset {offset}, inside tensor `{other}` that ends at {end}; the file is damaged"
    )]
    Overlap { name: String, other: String, offset: u64, end: u64 },

    /// Rule 9.
    #[error(
        "the last tensor and its padding end at offset {expected} but the file has {found} bytes; remove what was appended"
    )]
    TrailingBytes { expected: u64, found: u64 },
}
