//! From untrusted bytes to a [`Header`] that cannot be wrong.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::bytes::ByteCount;
use super::json::{self, RawHeader};
use super::{
    Dtype, FormatError, MAX_HEADER_BYTES, PAD_PREFIX, PREFIX_BYTES, PREFIX_LEN, TENSOR_ALIGN, data_align,
};
use crate::Error;

/// Which rules a file must keep: see the [module page](super).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// All of them: a file that this project's converter wrote, fit to be mapped and used in place.
    Bundle,
    /// Rules 1 to 4: any safetensors file.
    Foreign,
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name, unique in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first; empty for a single element.
    pub shape: Vec<usize>,
    /// Where its data starts in the file.
    ///
    /// Units: bytes.
    pub offset: u64,
    /// Length of its data, always the product of shape and element size.
    ///
    /// Units: bytes.
    pub bytes: u64,
}

impl TensorInfo {
    /// This tensor's data, given the whole file; nothing when `file` is shorter than the header promised.
    pub fn data<'a>(&self, file: &'a [u8]) -> Option<&'a [u8]> {
        let start = usize::try_from(self.offset).ok()?;
        let bytes = usize::try_from(self.bytes).ok()?;
        file.get(start..start.checked_add(bytes)?)
    }
}

/// A header that keeps its [`Rules`]: only [`read_header`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Header {
    /// The tensors in file order, without pads.
    pub tensors: Vec<TensorInfo>,
    /// The texts beside the tensors.
    pub metadata: BTreeMap<String, String>,
    /// Where the data section starts.
    ///
    /// Units: bytes.
    pub data_start: u64,
    /// Length of the whole file.
    ///
    /// Units: bytes.
    pub file_bytes: u64,
    /// Indices into `tensors`, by name.
    by_name: Vec<u32>,
}

impl Header {
    /// The tensor with this name.
    pub fn find(&self, name: &str) -> Option<&TensorInfo> {
        let at = self.by_name.binary_search_by(|&i| self.name(i).cmp(name)).ok()?;
        self.tensors.get(self.by_name[at] as usize)
    }

    fn name(&self, index: u32) -> &str {
        self.tensors.get(index as usize).map_or("", |tensor| &tensor.name)
    }
}

/// Reads and checks the header of a container.
///
/// `bytes` is the start of the file, at least up to the end of the header (the whole mapping will do), and
/// `file_bytes` the length of the whole file.
///
/// # Errors
/// The first rule that the file breaks.
pub fn read_header(bytes: &[u8], file_bytes: u64, rules: Rules) -> Result<Header, FormatError> {
    let (text, data_start) = header_text(bytes, file_bytes)?;
    let RawHeader { mut tensors, metadata } = json::parse(text)?;
    let by_name = index_by_name(&tensors)?;
    let sorted = tensors.is_sorted_by_key(|tensor| (tensor.offset, tensor.bytes));
    let mut header = if sorted {
        Header { tensors, metadata, data_start, file_bytes, by_name }
    } else {
        tensors.sort_by_key(|tensor| (tensor.offset, tensor.bytes));
        let by_name = index_by_name(&tensors)?;
        Header { tensors, metadata, data_start, file_bytes, by_name }
    };
    place(&mut header.tensors, ByteCount::new(data_start), file_bytes)?;
    if rules == Rules::Bundle {
        check_bundle(&mut header)?;
    }
    Ok(header)
}

/// Reads and checks the header of the file at `path`; reads nothing behind the header.
///
/// # Errors
/// [`Error::Io`] when it cannot be read, [`Error::NotAFile`] when it is a folder, a pipe or a device, [`Error::Format`] with
/// the path and the broken rule.
pub fn read_file_header(path: &Path, rules: Rules) -> crate::Result<Header> {
    let io = |source| Error::Io { path: path.into(), source };
    let (mut file, file_bytes) = open_file(path)?;
    let mut bytes = Vec::new();
    file.by_ref().take(PREFIX_BYTES).read_to_end(&mut bytes).map_err(io)?;
    let header_bytes = header_len(&bytes, file_bytes).map_err(|rule| rule.in_file(path))?;
    file.take(header_bytes).read_to_end(&mut bytes).map_err(io)?;
    Ok(read_header(&bytes, file_bytes, rules).map_err(|rule| rule.in_file(path))?)
}

/// Opens a file and tells its size.
pub(crate) fn open_file(path: &Path) -> crate::Result<(File, u64)> {
    let io = |source| Error::Io { path: path.into(), source };
    // Asked before opening: opening a named pipe would wait for its other end.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(Error::NotAFile { path: path.into() });
    }
    let file = File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    Ok((file, bytes))
}

/// Length of the header, which is known to lie inside the file.
fn header_len(bytes: &[u8], file_bytes: u64) -> Result<u64, FormatError> {
    let Some(prefix) = bytes.first_chunk::<8>().filter(|_| file_bytes >= PREFIX_BYTES) else {
        return Err(FormatError::TooShort { found: file_bytes.min(bytes.len() as u64) });
    };
    let found = u64::from_le_bytes(*prefix);
    if found > MAX_HEADER_BYTES {
        return Err(FormatError::HeaderTooLarge { found });
    }
    // Both summands are small now: the sum cannot wrap.
    let expected = PREFIX_BYTES + found;
    if expected > file_bytes {
        return Err(FormatError::HeaderPastEnd { expected, found: file_bytes });
    }
    Ok(found)
}

/// What comes before the blanks at the end: up to 2 MiB of them, so that they are looked at many at a time.
fn without_blanks(mut header: &[u8]) -> &[u8] {
    const MANY: usize = 256;
    while let Some((rest, tail)) = header.split_last_chunk::<MANY>()
        && tail.iter().fold(0, |other, byte| other | (byte ^ b' ')) == 0
    {
        header = rest;
    }
    let blanks = header.iter().rev().take_while(|&&byte| byte == b' ').count();
    &header[..header.len() - blanks]
}

/// The header without its blanks, and where the data section starts.
fn header_text(bytes: &[u8], file_bytes: u64) -> Result<(&str, u64), FormatError> {
    let data_start = PREFIX_BYTES + header_len(bytes, file_bytes)?;
    let given = usize::try_from(data_start).ok().and_then(|end| bytes.get(PREFIX_LEN..end));
    let Some(header) = given else {
        return Err(FormatError::HeaderNotGiven { expected: data_start, found: bytes.len() as u64 });
    };
    let text = std::str::from_utf8(without_blanks(header))
        .map_err(|e| FormatError::HeaderUtf8 { offset: PREFIX_BYTES + e.valid_up_to() as u64 })?;
    let first = header.first().copied().unwrap_or(b' ');
    if first != b'{' {
        return Err(FormatError::HeaderStart { found: first });
    }
    if !text.ends_with('}') {
        let offset = PREFIX_BYTES + text.len() as u64 - 1;
        return Err(FormatError::HeaderEnd { offset, found: header[text.len() - 1] });
    }
    Ok((text, data_start))
}

/// Indices of the tensors sorted by name, which must differ.
fn index_by_name(tensors: &[TensorInfo]) -> Result<Vec<u32>, FormatError> {
    let count = u32::try_from(tensors.len()).map_err(|_| FormatError::TooManyTensors)?;
    let name = |i: u32| tensors[i as usize].name.as_str();
    let mut by_name: Vec<u32> = (0..count).collect();
    by_name.sort_unstable_by(|&a, &b| name(a).cmp(name(b)));
    match by_name.windows(2).find(|pair| name(pair[0]) == name(pair[1])) {
        Some(pair) => Err(FormatError::DuplicateName { name: name(pair[0]).into() }),
        None => Ok(by_name),
    }
}

/// Checks that the tensors, sorted by offset, tile the file from `data_start` on, and makes their offsets absolute.
fn place(tensors: &mut [TensorInfo], data_start: ByteCount, file_bytes: u64) -> Result<(), FormatError> {
    let mut end = ByteCount::new(0);
    for tensor in tensors.iter_mut() {
        let (expected, found) = (end.to_u64(), tensor.offset);
        if found > expected {
            return Err(FormatError::Hole { name: tensor.name.clone(), expected, found });
        }
        if found < expected {
            return Err(FormatError::Overlap { name: tensor.name.clone(), expected, found });
        }
        let bytes = ByteCount::new(tensor.bytes);
        let next = end.plus(bytes);
        let file_end = next.and_then(|next| data_start.plus(next)).map(ByteCount::to_u64);
        let (Some(next), Some(file_end)) = (next, file_end.filter(|&end| end <= file_bytes)) else {
            let expected = file_end.unwrap_or(u64::MAX);
            return Err(FormatError::PastEnd { name: tensor.name.clone(), expected, found: file_bytes });
        };
        tensor.offset = file_end - tensor.bytes;
        end = next;
    }
    let expected = data_start.plus(end).map_or(u64::MAX, ByteCount::to_u64);
    if expected != file_bytes {
        return Err(FormatError::TrailingBytes { expected, found: file_bytes });
    }
    Ok(())
}

/// Rules 5 to 7; takes the pads out.
fn check_bundle(header: &mut Header) -> Result<(), FormatError> {
    let expected = data_align(header.file_bytes - header.data_start);
    if !header.data_start.is_multiple_of(expected) {
        return Err(FormatError::DataStart { expected, found: header.data_start });
    }
    for tensor in &header.tensors {
        let TensorInfo { name, dtype, shape, offset, bytes } = tensor;
        if name.starts_with(PAD_PREFIX) {
            let end = offset + bytes;
            let fits = (1..TENSOR_ALIGN).contains(bytes) && end.is_multiple_of(TENSOR_ALIGN);
            if *dtype != Dtype::U8 || shape.len() != 1 || !fits {
                return Err(FormatError::Pad {
                    name: name.clone(),
                    dtype: *dtype,
                    shape: shape.clone(),
                    end,
                });
            }
            continue;
        }
        if *bytes == 0 {
            return Err(FormatError::Empty { name: name.clone(), shape: shape.clone() });
        }
        if !offset.is_multiple_of(TENSOR_ALIGN) {
            return Err(FormatError::Misaligned { name: name.clone(), found: *offset });
        }
    }
    header.tensors.retain(|tensor| !tensor.name.starts_with(PAD_PREFIX));
    header.by_name = index_by_name(&header.tensors)?;
    Ok(())
}
