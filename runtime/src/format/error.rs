//! One variant per rule of the container that a file, or a caller of the writer, can break.

use std::path::PathBuf;

use super::{
    DATA_ALIGN, Dtype, HUGE_PAGE, MAX_HEADER_BYTES, MAX_METADATA, MAX_RANK, MAX_TENSORS, TENSOR_ALIGN,
};

/// A rule of the container that was broken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum FormatError {
    /// Which file broke the rule: added by whoever opened it.
    #[error("{}: {rule}", path.display())]
    File { path: PathBuf, rule: Box<FormatError> },

    /// Rule 1: eight bytes of length come first.
    #[error(
        "file of {found} bytes is too short to be a safetensors file; it was cut off or is something else"
    )]
    TooShort { found: u64 },
    /// Rule 1: the header is capped.
    #[error(
        "header claims {found} bytes but the limit is {MAX_HEADER_BYTES}; this is not a safetensors file, or it is damaged"
    )]
    HeaderTooLarge { found: u64 },
    /// Rule 1: the header lies inside the file.
    #[error("header ends at byte {expected} but the file has {found}; it was cut off, fetch it again")]
    HeaderPastEnd { expected: u64, found: u64 },
    /// The caller handed over less than the header.
    #[error("header ends at byte {expected} but only the first {found} bytes were given to the reader")]
    HeaderNotGiven { expected: u64, found: u64 },
    /// Rule 1: the header starts with `{`.
    #[error("header starts with byte {found:#04x} instead of `{{`; this is not a safetensors file")]
    HeaderStart { found: u8 },
    /// Rule 1: the header ends with `}` and blanks.
    #[error(
        "header ends with byte {found:#04x} at offset {offset} instead of `}}` and blanks; write the file again"
    )]
    HeaderEnd { offset: u64, found: u8 },
    /// Rule 1: the header is UTF-8.
    #[error("header is not UTF-8 at offset {offset}; the file is damaged")]
    HeaderUtf8 { offset: u64 },
    /// Rules 1 and 2: the header is JSON of the prescribed shape.
    #[error("header{} breaks the format: {message}", at_entry(entry))]
    HeaderJson { entry: Option<String>, message: String },

    /// Rule 2: no name twice, since two readers could pick different tensors.
    #[error("tensor `{}` is listed twice; write the file again with unique names", shown(name))]
    DuplicateName { name: String },
    /// Rule 2: no metadata key twice.
    #[error("metadata key `{}` is listed twice; write the file again with unique keys", shown(name))]
    DuplicateMetadata { name: String },
    /// Rule 2: the number of tensors is capped.
    #[error("header lists more than {MAX_TENSORS} tensors; split the file")]
    TooManyTensors,
    /// Rule 2: the number of metadata entries is capped.
    #[error("header has more than {MAX_METADATA} metadata entries; remove some")]
    TooMuchMetadata,
    /// Rule 2: the number of dimensions is capped.
    #[error("tensor `{}`: more than {MAX_RANK} dimensions; reshape it", shown(name))]
    Rank { name: String },

    /// Rule 3: the element type is one of [`Dtype`].
    #[error(
        "tensor `{}`: unknown dtype `{}`; convert it to one the format names, such as F16",
        shown(name),
        shown(found)
    )]
    UnknownDtype { name: String, found: String },
    /// Rule 3: a size must be computable.
    #[error(
        "tensor `{}`: the bits of {dtype} {shape:?} do not fit 64 bits; the shape is damaged",
        shown(name)
    )]
    SizeOverflow { name: String, dtype: Dtype, shape: Vec<usize> },
    /// Rule 3: tensors are whole bytes.
    #[error(
        "tensor `{}`: {dtype} {shape:?} is {bits} bits, not whole bytes; pad its last dimension",
        shown(name)
    )]
    PartialByte { name: String, dtype: Dtype, shape: Vec<usize>, bits: u64 },
    /// Rule 3: offsets run forwards.
    #[error(
        "tensor `{}`: data ends at {end}, before its beginning at {begin}; the file is damaged",
        shown(name)
    )]
    OffsetsReversed { name: String, begin: u64, end: u64 },
    /// Rule 3: shape and dtype agree with the offsets.
    #[error(
        "tensor `{}`: {dtype} {shape:?} takes {expected} bytes but its offsets span {found}; the file is damaged",
        shown(name)
    )]
    SizeMismatch { name: String, dtype: Dtype, shape: Vec<usize>, expected: u64, found: u64 },

    /// Rule 4: no holes.
    #[error(
        "tensor `{}` begins at {found} but the one before it ends at {expected}; holes are not allowed",
        shown(name)
    )]
    Hole { name: String, expected: u64, found: u64 },
    /// Rule 4: no overlaps.
    #[error(
        "tensor `{}` begins at {found}, inside the one before it that ends at {expected}; the file is damaged",
        shown(name)
    )]
    Overlap { name: String, expected: u64, found: u64 },
    /// Rule 4: nothing ends after the file.
    #[error(
        "tensor `{}` ends at file offset {expected} but the file has {found} bytes; it was cut off, fetch it again",
        shown(name)
    )]
    PastEnd { name: String, expected: u64, found: u64 },
    /// Rule 4: the file ends with the last tensor.
    #[error(
        "the last tensor ends at file offset {expected} but the file has {found} bytes; remove what was appended"
    )]
    TrailingBytes { expected: u64, found: u64 },

    /// Rule 5: where the data section of a bundle starts.
    #[error(
        "data section starts at {found}, not at a multiple of {expected} (page {DATA_ALIGN}, huge page {HUGE_PAGE}); \
         this is not a bundle's file, convert it with saccade-convert"
    )]
    DataStart { expected: u64, found: u64 },
    /// Rule 6: where a tensor of a bundle starts.
    #[error(
        "tensor `{}` starts at file offset {found}, not at a multiple of {TENSOR_ALIGN}; convert it with saccade-convert",
        shown(name)
    )]
    Misaligned { name: String, found: u64 },
    /// Rule 6: a bundle has no empty tensors.
    #[error("tensor `{}`: {shape:?} has no elements; a bundle holds no empty tensors", shown(name))]
    Empty { name: String, shape: Vec<usize> },
    /// Rule 7: what a pad looks like.
    #[error(
        "`{}` is {dtype} {shape:?} ending at file offset {end}; a pad is U8 of 1 to 63 bytes up to a multiple of {TENSOR_ALIGN}",
        shown(name)
    )]
    Pad { name: String, dtype: Dtype, shape: Vec<usize>, end: u64 },

    /// Writer: names with a meaning of their own.
    #[error("tensor name `{}` is reserved by the format; choose another", shown(name))]
    ReservedName { name: String },
    /// Writer: data comes in the order of the plan.
    #[error(
        "tensor `{}` was written where the plan has `{}`; write in plan order",
        shown(found),
        shown(expected)
    )]
    PlanOrder { expected: String, found: String },
    /// Writer: data has the planned length.
    #[error("tensor `{}`: {found} bytes were written where the plan has {expected}", shown(name))]
    DataLength { name: String, expected: u64, found: u64 },
    /// Writer: all that was planned is written.
    #[error("the file was finished before tensor `{}` was written", shown(name))]
    Unfinished { name: String },
}

impl FormatError {
    /// Adds the path of the file that broke the rule.
    #[must_use]
    pub fn in_file(self, path: impl Into<PathBuf>) -> Self {
        Self::File { path: path.into(), rule: Box::new(self) }
    }

    /// The broken rule itself, without the path around it.
    pub fn rule(&self) -> &Self {
        match self {
            Self::File { rule, .. } => rule.rule(),
            rule => rule,
        }
    }
}

/// A name from a file, fit for a terminal: escaped, and cut when it is longer than any honest name.
fn shown(name: &str) -> String {
    const LONGEST: usize = 120;
    let mut escaped: String = name.escape_debug().take(LONGEST + 1).collect();
    if escaped.chars().count() > LONGEST {
        escaped.pop();
        escaped.push('…');
    }
    escaped
}

fn at_entry(entry: &Option<String>) -> String {
    entry.as_ref().map_or_else(String::new, |name| format!(" entry `{}`", shown(name)))
}
