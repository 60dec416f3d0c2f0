//! Bytes to a checked [`Gguf`]: the only code that sees what a GGUF file says before it is known to be true.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;

use super::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, GgmlType, GgufError, MAGIC, MAX_ALIGNMENT, MAX_HEADER_BYTES,
    MAX_KEY_BYTES, MAX_METADATA, MAX_NAME_BYTES, MAX_NESTING, MAX_RANK, MAX_TENSORS, ValueType,
};
use crate::error::{ConvertError, io};

/// A metadata value; numbers of every width are widened.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

/// An array of values of one type.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Numbers or bools as they lie in the file.
    Numbers {
        /// Of each.
        kind: ValueType,
        /// Little-endian, end to end.
        bytes: Vec<u8>,
    },
    /// Strings.
    Strings(Vec<String>),
    /// Arrays.
    Arrays(Vec<Array>),
}

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Type of its elements.
    pub dtype: GgmlType,
    /// Its dimensions, innermost first as in the file: `[in, out]` of a linear layer.
    pub dims: Vec<u64>,
    /// Where it starts in the file.
    ///
    /// Units: bytes.
    pub offset: u64,
    /// Its length.
    ///
    /// Units: bytes.
    pub bytes: u64,
}

/// What stands before the data section of a file that keeps every rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Gguf {
    /// Of the format.
    pub version: u32,
    /// By key.
    pub metadata: BTreeMap<String, Value>,
    /// By name.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// Length of the file.
    ///
    /// Units: bytes.
    pub file_bytes: u64,
}

/// Reads and checks the file at `path`; the weights are not read.
///
/// # Errors
/// [`ConvertError`] when it cannot be read or breaks a rule.
pub fn read_file(path: &Path) -> crate::Result<Gguf> {
    let file = File::open(path).map_err(io(path))?;
    let metadata = file.metadata().map_err(io(path))?;
    if !metadata.is_file() {
        let reason = "it is no regular file; name a .gguf file";
        return Err(ConvertError::Refused { path: path.into(), reason: reason.into() });
    }
    read(BufReader::new(file), metadata.len())
        .map_err(|source| ConvertError::Gguf { path: path.into(), source })
}

/// Reads and checks what stands before the data section of a file of `file_bytes` bytes.
///
/// # Errors
/// [`GgufError`] with the first rule that is broken.
pub fn read(source: impl Read, file_bytes: u64) -> Result<Gguf, GgufError> {
    let mut bytes = Bytes { source, at: 0, file_bytes };
    let version = opening(&mut bytes)?;
    let n_tensors = bytes.count("the header", "tensors", LEAST_TENSOR_BYTES, MAX_TENSORS as u64)?;
    let n_metadata = bytes.count("the header", "metadata entries", LEAST_ENTRY_BYTES, MAX_METADATA as u64)?;

    let mut metadata = BTreeMap::new();
    for i in 0..n_metadata {
        let key = bytes.name(&format!("metadata entry {i}"), MAX_KEY_BYTES)?;
        let place = format!("key `{}`", shown(&key));
        let value = value(&mut bytes, &place)?;
        if metadata.insert(key, value).is_some() {
            return Err(GgufError::Duplicate { place, offset: bytes.at });
        }
    }
    let alignment = alignment(&metadata, bytes.at)?;

    let mut tensors = BTreeMap::new();
    for i in 0..n_tensors {
        let name = bytes.name(&format!("tensor {i}"), MAX_NAME_BYTES)?;
        let place = format!("tensor `{}`", shown(&name));
        let tensor = tensor(&mut bytes, &place, alignment)?;
        if tensors.insert(name, tensor).is_some() {
            return Err(GgufError::Duplicate { place, offset: bytes.at });
        }
    }
    place_tensors(&mut tensors, bytes.at, alignment, file_bytes)?;
    Ok(Gguf { version, metadata, tensors, file_bytes })
}

/// Key of one byte, type, value of one byte.
const LEAST_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;
/// Name of one byte, rank, one dimension, type, offset.
const LEAST_TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

fn opening(bytes: &mut Bytes<impl Read>) -> Result<u32, GgufError> {
    let mut found = Vec::new();
    bytes
        .source
        .by_ref()
        .take(4)
        .read_to_end(&mut found)
        .map_err(|source| GgufError::Io { offset: 0, source })?;
    if found != MAGIC {
        return Err(GgufError::Magic { found });
    }
    bytes.at = 4;
    match u32::from_le_bytes(bytes.array("the header")?) {
        version @ 2..=3 => Ok(version),
        found if matches!(found.swap_bytes(), 1..=3) => Err(GgufError::BigEndian),
        found => Err(GgufError::Version { found }),
    }
}

fn value_type(bytes: &mut Bytes<impl Read>, place: &str) -> Result<ValueType, GgufError> {
    let offset = bytes.at;
    let found = u32::from_le_bytes(bytes.array(place)?);
    ValueType::from_id(found).ok_or_else(|| GgufError::ValueType { place: place.into(), offset, found })
}

fn value(bytes: &mut Bytes<impl Read>, place: &str) -> Result<Value, GgufError> {
    Ok(match value_type(bytes, place)? {
        ValueType::U8 => Value::Unsigned(u8::from_le_bytes(bytes.array(place)?).into()),
        ValueType::U16 => Value::Unsigned(u16::from_le_bytes(bytes.array(place)?).into()),
        ValueType::U32 => Value::Unsigned(u32::from_le_bytes(bytes.array(place)?).into()),
        ValueType::U64 => Value::Unsigned(u64::from_le_bytes(bytes.array(place)?)),
        ValueType::I8 => Value::Signed(i8::from_le_bytes(bytes.array(place)?).into()),
        ValueType::I16 => Value::Signed(i16::from_le_bytes(bytes.array(place)?).into()),
        ValueType::I32 => Value::Signed(i32::from_le_bytes(bytes.array(place)?).into()),
        ValueType::I64 => Value::Signed(i64::from_le_bytes(bytes.array(place)?)),
        ValueType::F32 => Value::Float(f32::from_le_bytes(bytes.array(place)?).into()),
        ValueType::F64 => Value::Float(f64::from_le_bytes(bytes.array(place)?)),
        ValueType::Bool => {
            let offset = bytes.at;
            let [found] = bytes.array(place)?;
            check_bools(&[found], place, offset)?;
            Value::Bool(found == 1)
        }
        ValueType::String => Value::String(bytes.string(place)?),
        ValueType::Array => Value::Array(array(bytes, place, MAX_NESTING)?),
    })
}

fn array(bytes: &mut Bytes<impl Read>, place: &str, nesting: usize) -> Result<Array, GgufError> {
    let offset = bytes.at;
    let Some(deeper) = nesting.checked_sub(1) else {
        return Err(GgufError::Nesting { place: place.into(), offset });
    };
    let kind = value_type(bytes, place)?;
    let count = bytes.count(place, "elements", kind.least_bytes(), u64::MAX)?;
    Ok(match kind {
        ValueType::String => {
            Array::Strings((0..count).map(|_| bytes.string(place)).collect::<Result<_, _>>()?)
        }
        ValueType::Array => {
            Array::Arrays((0..count).map(|_| array(bytes, place, deeper)).collect::<Result<_, _>>()?)
        }
        number => {
            let offset = bytes.at;
            // `count` was held against the bytes that are left.
            let numbers = bytes.take(place, count * number.least_bytes())?;
            if number == ValueType::Bool {
                check_bools(&numbers, place, offset)?;
            }
            Array::Numbers { kind: number, bytes: numbers }
        }
    })
}

fn check_bools(bools: &[u8], place: &str, offset: u64) -> Result<(), GgufError> {
    match (offset..).zip(bools).find(|&(_, &found)| found > 1) {
        Some((offset, &found)) => Err(GgufError::Bool { place: place.into(), offset, found }),
        None => Ok(()),
    }
}

fn alignment(metadata: &BTreeMap<String, Value>, offset: u64) -> Result<u64, GgufError> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::Unsigned(n)) if n.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(&n) => Ok(n),
        Some(Value::Unsigned(n)) => Err(GgufError::Alignment { offset, found: n.to_string() }),
        Some(_) => Err(GgufError::Alignment { offset, found: "of another type".into() }),
    }
}

/// A tensor's entry after its name. Its offset is still that in the data section.
fn tensor(bytes: &mut Bytes<impl Read>, place: &str, alignment: u64) -> Result<TensorInfo, GgufError> {
    let place = || place.to_owned();
    let offset = bytes.at;
    let rank = u32::from_le_bytes(bytes.array(&place())?);
    if !(1..=MAX_RANK).contains(&rank) {
        return Err(GgufError::Rank { place: place(), offset, found: rank });
    }
    let offset = bytes.at;
    let mut dims = Vec::new();
    for _ in 0..rank {
        dims.push(u64::from_le_bytes(bytes.array(&place())?));
    }
    if dims.contains(&0) {
        return Err(GgufError::Empty { place: place(), offset, dims });
    }
    let offset = bytes.at;
    let id = u32::from_le_bytes(bytes.array(&place())?);
    let Some(dtype) = GgmlType::from_id(id) else {
        return Err(GgufError::TensorType { place: place(), offset, found: id });
    };
    let (block, _) = dtype.block();
    if !dims[0].is_multiple_of(block) {
        return Err(GgufError::PartialBlock { place: place(), offset, dtype, found: dims[0], block });
    }
    let Some(size) = dtype.bytes(dims.iter().copied()) else {
        return Err(GgufError::SizeOverflow { place: place(), offset, dtype, dims });
    };
    let found = u64::from_le_bytes(bytes.array(&place())?);
    if !found.is_multiple_of(alignment) {
        return Err(GgufError::Misaligned { place: place(), offset: bytes.at, found, alignment });
    }
    Ok(TensorInfo { dtype, dims, offset: found, bytes: size })
}

/// Makes offsets count from the start of the file, whose tensor list ends at `at`, and checks that tensors lie in it side by
/// side.
fn place_tensors(
    tensors: &mut BTreeMap<String, TensorInfo>,
    at: u64,
    alignment: u64,
    file_bytes: u64,
) -> Result<(), GgufError> {
    // `at` is at most the header's limit, so this cannot overflow.
    let data = at.next_multiple_of(alignment);
    for (name, tensor) in &mut *tensors {
        let (offset, bytes) = (data.saturating_add(tensor.offset), tensor.bytes);
        if offset.checked_add(bytes).is_none_or(|end| end > file_bytes) {
            return Err(GgufError::PastEnd { name: shown(name), offset, bytes, file_bytes });
        }
        tensor.offset = offset;
    }
    let mut by_offset: Vec<_> = tensors.iter().collect();
    by_offset.sort_by_key(|(_, tensor)| tensor.offset);
    for pair in by_offset.windows(2) {
        let [(other, before), (name, tensor)] = pair else { continue };
        let end = before.offset + before.bytes;
        if tensor.offset < end {
            return Err(GgufError::Overlap {
                name: shown(name),
                other: shown(other),
                offset: tensor.offset,
                end,
            });
        }
    }
    let end = by_offset.last().map_or(at, |(_, tensor)| tensor.offset + tensor.bytes);
    match end.checked_next_multiple_of(alignment) {
        Some(expected) if file_bytes > expected => {
            Err(GgufError::TrailingBytes { expected, found: file_bytes })
        }
        _ => Ok(()),
    }
}

/// The bytes of a file in order, and how many are left: nothing is allocated before it is known to be there.
struct Bytes<R> {
    source: R,
    at: u64,
    file_bytes: u64,
}

impl<R: Read> Bytes<R> {
    /// Whether `needed` more bytes are there, in the file and in the header's limit.
    fn check(&self, place: &str, needed: u64) -> Result<(), GgufError> {
        let (place, offset, left) = (|| place.to_owned(), self.at, self.file_bytes.saturating_sub(self.at));
        if needed > left {
            return Err(GgufError::CutOff { place: place(), offset, needed, left });
        }
        if needed > MAX_HEADER_BYTES.saturating_sub(offset) {
            return Err(GgufError::HeaderTooLarge { place: place(), offset });
        }
        Ok(())
    }

    fn fill(&mut self, place: &str, buffer: &mut [u8]) -> Result<(), GgufError> {
        let (needed, offset) = (buffer.len() as u64, self.at);
        self.source.read_exact(buffer).map_err(|source| match source.kind() {
            // Shorter than its length said a moment ago.
            ErrorKind::UnexpectedEof => GgufError::CutOff { place: place.into(), offset, needed, left: 0 },
            _ => GgufError::Io { offset, source },
        })?;
        self.at += needed;
        Ok(())
    }

    fn array<const N: usize>(&mut self, place: &str) -> Result<[u8; N], GgufError> {
        self.check(place, N as u64)?;
        let mut array = [0; N];
        self.fill(place, &mut array)?;
        Ok(array)
    }

    fn take(&mut self, place: &str, n: u64) -> Result<Vec<u8>, GgufError> {
        self.check(place, n)?;
        // At most the header's limit.
        let mut bytes = vec![0; usize::try_from(n).unwrap_or(0)];
        self.fill(place, &mut bytes)?;
        Ok(bytes)
    }

    /// A count of things of which each takes `least` bytes or more.
    fn count(&mut self, place: &str, what: &'static str, least: u64, cap: u64) -> Result<u64, GgufError> {
        let offset = self.at;
        let found = u64::from_le_bytes(self.array(place)?);
        let most = cap.min(self.file_bytes.saturating_sub(self.at) / least);
        if found > most {
            return Err(GgufError::Count { place: place.into(), offset, what, found, most });
        }
        Ok(found)
    }

    fn string(&mut self, place: &str) -> Result<String, GgufError> {
        let n = u64::from_le_bytes(self.array(place)?);
        let offset = self.at;
        String::from_utf8(self.take(place, n)?).map_err(|_| GgufError::Utf8 { place: place.into(), offset })
    }

    /// A string that names something: not empty, at most `most` bytes long.
    fn name(&mut self, place: &str, most: u64) -> Result<String, GgufError> {
        let offset = self.at;
        let found = u64::from_le_bytes(self.array(place)?);
        if !(1..=most).contains(&found) {
            return Err(GgufError::NameLength { place: place.into(), offset, found, most });
        }
        let offset = self.at;
        String::from_utf8(self.take(place, found)?)
            .map_err(|_| GgufError::Utf8 { place: place.into(), offset })
    }
}

/// A name from a file, fit for a terminal: escaped, and cut when it is longer than any honest one.
fn shown(name: &str) -> String {
    const LONGEST: usize = 120;
    let mut escaped: String = name.escape_debug().take(LONGEST).collect();
    if name.escape_debug().nth(LONGEST).is_some() {
        escaped.push('…');
    }
    escaped
}
