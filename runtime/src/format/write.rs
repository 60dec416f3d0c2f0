//! From tensors to a file that [`read_header`] accepts.
//!
//! The header is planned first and read back by the reader itself before a byte of data is written, so the two
//! cannot drift apart.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::bytes::ByteCount;
use super::{
    Dtype, FormatError, Header, MAX_HEADER_BYTES, METADATA_KEY, PAD_PREFIX, PREFIX_BYTES, Rules,
    TENSOR_ALIGN, data_align, read_header,
};
use crate::Error;

/// A tensor that is going to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlan {
    /// Its name, unique in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

/// What a finished file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// BLAKE3 of the whole file.
    pub blake3: blake3::Hash,
    /// Its length.
    ///
    /// Units: bytes.
    pub bytes: u64,
}

/// A file in the making, up to the end of one of its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Tensors written so far.
    pub tensors: usize,
    /// Its length so far.
    ///
    /// Units: bytes.
    pub bytes: u64,
    /// BLAKE3 of all of it.
    pub blake3: blake3::Hash,
}

/// The bytes before the data section (length, header, blanks), and the header as the reader sees it.
///
/// Under [`Rules::Bundle`] pads are put where a tensor would start off its alignment.
///
/// # Errors
/// A rule that the plan breaks.
pub fn plan_header(
    plan: &[TensorPlan],
    metadata: &BTreeMap<String, String>,
    rules: Rules,
) -> Result<(Vec<u8>, Header), FormatError> {
    let mut entries = Vec::with_capacity(plan.len());
    let mut end = ByteCount::new(0);
    let mut pads = 0;
    for TensorPlan { name, dtype, shape } in plan {
        if name == METADATA_KEY || rules == Rules::Bundle && name.starts_with(PAD_PREFIX) {
            return Err(FormatError::ReservedName { name: name.clone() });
        }
        let overflow =
            || FormatError::SizeOverflow { name: name.clone(), dtype: *dtype, shape: shape.clone() };
        if rules == Rules::Bundle {
            let gap = end.to_multiple(TENSOR_ALIGN).ok_or_else(overflow)?;
            if gap > ByteCount::new(0) {
                let next = end.plus(gap).ok_or_else(overflow)?;
                entries.push(entry(&format!("{PAD_PREFIX}{pads}"), Dtype::U8, &[gap.to_u64()], end, next));
                pads += 1;
                end = next;
            }
        }
        let next = end.plus(ByteCount::of_tensor(name, *dtype, shape)?).ok_or_else(overflow)?;
        entries.push(entry(name, *dtype, shape, end, next));
        end = next;
    }
    if !metadata.is_empty() {
        entries.insert(0, format!("{}:{}", serde_json::json!(METADATA_KEY), serde_json::json!(metadata)));
    }

    let json = format!("{{{}}}", entries.join(","));
    let align = if rules == Rules::Bundle { data_align(end.to_u64()) } else { PREFIX_BYTES };
    let data_start = (PREFIX_BYTES + json.len() as u64).next_multiple_of(align);
    let header_bytes = data_start - PREFIX_BYTES;
    if header_bytes > MAX_HEADER_BYTES {
        return Err(FormatError::HeaderTooLarge { found: header_bytes });
    }
    let mut bytes = header_bytes.to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    // At most MAX_HEADER_BYTES and a huge page.
    #[allow(clippy::cast_possible_truncation)]
    bytes.extend(std::iter::repeat_n(b' ', (header_bytes as usize).saturating_sub(json.len())));

    let file_bytes = data_start.saturating_add(end.to_u64());
    let header = read_header(&bytes, file_bytes, rules)?;
    Ok((bytes, header))
}

fn entry(
    name: &str,
    dtype: Dtype,
    shape: &[impl serde::Serialize],
    begin: ByteCount,
    end: ByteCount,
) -> String {
    let (begin, end) = (begin.to_u64(), end.to_u64());
    let tensor = serde_json::json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [begin, end]});
    format!("{}:{tensor}", serde_json::json!(name))
}

/// Writes one container, tensor by tensor, into `PATH.part`; [`Writer::finish`] gives it its name.
///
/// A writer that is dropped unfinished removes what it wrote, unless it came from [`Writer::resume`].
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    part: PathBuf,
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    header: Header,
    /// Tensors written so far.
    written: usize,
    /// Where the next byte goes.
    at: u64,
    /// Whether an unfinished file is of no use to anyone.
    removes: bool,
}

impl Writer {
    /// Plans the file and writes its header.
    ///
    /// # Errors
    /// A rule that the plan breaks, or what the system says when `PATH.part` cannot be written.
    pub fn create(
        path: &Path,
        plan: &[TensorPlan],
        metadata: &BTreeMap<String, String>,
        rules: Rules,
    ) -> crate::Result<Self> {
        let (bytes, header) = plan_header(plan, metadata, rules).map_err(|rule| rule.in_file(path))?;
        let part = part_of(path);
        let file = File::create(&part).map_err(io(&part))?;
        let mut writer = Self::over(path, file, header);
        writer.put(&bytes)?;
        Ok(writer)
    }

    /// Goes on with the `PATH.part` that a writer of the same plan has left: behind the last of `marks` up to which the file is what they
    /// say, or from the beginning. A writer that is dropped unfinished leaves what it wrote for the next one.
    ///
    /// Costs a pass over what is there: nothing of it is believed without its hash.
    ///
    /// # Errors
    /// As [`Writer::create`].
    pub fn resume(
        path: &Path,
        plan: &[TensorPlan],
        metadata: &BTreeMap<String, String>,
        rules: Rules,
        marks: &[Mark],
    ) -> crate::Result<Self> {
        let (bytes, header) = plan_header(plan, metadata, rules).map_err(|rule| rule.in_file(path))?;
        let part = part_of(path);
        let mut options = File::options();
        let file =
            options.read(true).write(true).create(true).truncate(false).open(&part).map_err(io(&part))?;
        let mut writer = Self::over(path, file, header);
        writer.removes = false;
        writer.find(marks, &bytes).map_err(io(&part))?;
        let file = writer.file.get_mut();
        file.set_len(writer.at).and_then(|()| file.seek(SeekFrom::Start(writer.at))).map_err(io(&part))?;
        if writer.at == 0 {
            writer.put(&bytes)?;
        }
        Ok(writer)
    }

    /// Counts what the file holds of the plan as written, as far as the marks prove it.
    fn find(&mut self, marks: &[Mark], start: &[u8]) -> std::io::Result<()> {
        let mut found = Vec::new();
        let file = self.file.get_ref();
        file.take(start.len() as u64).read_to_end(&mut found)?;
        if found != start {
            return Ok(());
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(start);
        let mut at = start.len() as u64;
        for mark in marks {
            let tensors = mark.tensors.checked_sub(1).and_then(|last| self.header.tensors.get(last));
            if tensors.is_none_or(|last| last.offset + last.bytes != mark.bytes) || mark.bytes < at {
                break;
            }
            hasher.update_reader(file.take(mark.bytes - at))?;
            at = mark.bytes;
            if hasher.count() != at || hasher.finalize() != mark.blake3 {
                break;
            }
            (self.written, self.at, self.hasher) = (mark.tensors, at, hasher.clone());
        }
        Ok(())
    }

    fn over(path: &Path, file: File, header: Header) -> Self {
        Self {
            path: path.into(),
            part: part_of(path),
            file: BufWriter::with_capacity(1 << 20, file),
            hasher: blake3::Hasher::new(),
            header,
            written: 0,
            at: 0,
            removes: true,
        }
    }

    /// Hands everything to the system and says how far the file is.
    ///
    /// # Errors
    /// [`Error::Io`] when the system refuses.
    pub fn mark(&mut self) -> crate::Result<Mark> {
        self.file.flush().map_err(io(&self.part))?;
        Ok(Mark { tensors: self.written, bytes: self.at, blake3: self.hasher.finalize() })
    }

    /// Tensors of the plan that are written.
    pub fn written(&self) -> usize {
        self.written
    }

    /// The header of the file in the making.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Writes the next tensor of the plan.
    ///
    /// # Errors
    /// [`FormatError::PlanOrder`] and [`FormatError::DataLength`] when `name` or `data` is not what the plan has next,
    /// [`Error::Io`] when the system refuses.
    pub fn write(&mut self, name: &str, data: &[u8]) -> crate::Result<()> {
        let next = self.header.tensors.get(self.written);
        let Some(tensor) = next.filter(|tensor| tensor.name == name) else {
            let expected = next.map_or_else(|| "the end".into(), |tensor| tensor.name.clone());
            return Err(FormatError::PlanOrder { expected, found: name.into() }.in_file(&self.path).into());
        };
        let (offset, expected, found) = (tensor.offset, tensor.bytes, data.len() as u64);
        if found != expected {
            return Err(FormatError::DataLength { name: name.into(), expected, found }
                .in_file(&self.path)
                .into());
        }
        // At most one pad of less than TENSOR_ALIGN bytes lies between two tensors.
        #[allow(clippy::cast_possible_truncation)]
        let (pad, gap) = ([0; TENSOR_ALIGN as usize], (offset - self.at) as usize);
        self.put(&pad[..gap])?;
        self.put(data)?;
        self.written += 1;
        Ok(())
    }

    /// Makes the file durable and renames it to its final name, which it replaces if it exists.
    ///
    /// # Errors
    /// [`FormatError::Unfinished`] when tensors are missing, [`Error::Io`] when the system refuses; nothing stays behind.
    pub fn finish(mut self) -> crate::Result<Written> {
        if let Some(tensor) = self.header.tensors.get(self.written) {
            return Err(FormatError::Unfinished { name: tensor.name.clone() }.in_file(&self.path).into());
        }
        self.file.flush().map_err(io(&self.part))?;
        self.file.get_ref().sync_all().map_err(io(&self.part))?;
        fs::rename(&self.part, &self.path).map_err(io(&self.path))?;
        self.removes = false;
        let folder =
            self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(io(folder))?;
        Ok(Written { blake3: self.hasher.finalize(), bytes: self.at })
    }

    fn put(&mut self, bytes: &[u8]) -> crate::Result<()> {
        self.file.write_all(bytes).map_err(io(&self.part))?;
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }
}

fn part_of(path: &Path) -> PathBuf {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    part.into()
}

/// For `map_err`: what was being written when the system refused.
fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.to_path_buf();
    move |source| Error::Io { path, source }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.removes {
            // Best effort: the reason for stopping is already on its way to the caller.
            let _ = fs::remove_file(&self.part);
        }
    }
}
