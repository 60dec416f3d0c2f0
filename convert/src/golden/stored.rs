//! Reading a golden file.

use std::path::Path;

use saccade::family::Model;
use saccade::format::{Dtype, Header, Rules, read_file_header};
use saccade::tokenize::Frames;

use crate::error::{ConvertError, Result, io};

/// Largest golden file.
const MAX_BYTES: u64 = 4 << 30;

/// A golden file.
pub(super) struct Stored<'a> {
    pub(super) path: &'a Path,
    header: Header,
    bytes: Vec<u8>,
}

impl<'a> Stored<'a> {
    pub(super) fn open(path: &'a Path) -> Result<Self> {
        let header = read_file_header(path, Rules::Foreign)?;
        if header.file_bytes > MAX_BYTES {
            let reason = format!("it has {} bytes, at most {MAX_BYTES} are read", header.file_bytes);
            return Err(ConvertError::Refused { path: path.into(), reason });
        }
        let bytes = std::fs::read(path).map_err(io(path))?;
        Ok(Self { path, header, bytes })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.header.find(name).is_some()
    }

    pub(super) fn refuse(&self, reason: &str) -> ConvertError {
        ConvertError::Refused { path: self.path.into(), reason: reason.into() }
    }

    pub(super) fn data(&self, name: &str, dtype: Dtype) -> Result<&[u8]> {
        let tensor = self.header.find(name).ok_or_else(|| self.refuse(&format!("it has no `{name}`")))?;
        if tensor.dtype != dtype {
            return Err(self.refuse(&format!("`{name}` is {}, expected {dtype}", tensor.dtype)));
        }
        tensor.data(&self.bytes).ok_or_else(|| self.refuse(&format!("`{name}` is cut off")))
    }

    /// A tensor's shape, without a batch of one in front.
    pub(super) fn shape(&self, name: &str) -> Result<Vec<usize>> {
        let tensor = self.header.find(name).ok_or_else(|| self.refuse(&format!("it has no `{name}`")))?;
        Ok(match &tensor.shape[..] {
            [1, rest @ ..] => rest.to_vec(),
            shape => shape.to_vec(),
        })
    }

    pub(super) fn floats(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.data(name, Dtype::F32)?.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect())
    }

    /// Token ids, each of the model's vocabulary.
    pub(super) fn ids(&self, name: &str, model: &Model) -> Result<Vec<u32>> {
        self.below(name, model.config().decoder().vocab_size)
    }

    /// Codes of a picture.
    pub(super) fn codes(&self, name: &str, codebook_size: usize) -> Result<Vec<u16>> {
        let codes = self.below(name, codebook_size.min(1 << 16))?;
        Ok(codes.into_iter().filter_map(|code| u16::try_from(code).ok()).collect())
    }

    fn below(&self, name: &str, vocabulary: usize) -> Result<Vec<u32>> {
        let ids = self.data(name, Dtype::I64)?.as_chunks().0.iter().map(|&id| i64::from_le_bytes(id));
        let ids = ids.map(|id| {
            u32::try_from(id).ok().filter(|&id| (id as usize) < vocabulary).ok_or_else(|| {
                self.refuse(&format!("`{name}` has the id {id}, the vocabulary ends at {vocabulary}"))
            })
        });
        let ids = ids.collect::<Result<Vec<_>>>()?;
        if ids.is_empty() { Err(self.refuse(&format!("`{name}` is empty"))) } else { Ok(ids) }
    }

    /// `[time, 3, height, width]`, or without the time, as the runtime has it: channels last.
    pub(super) fn channels_last(&self, name: &str) -> Result<(Vec<f32>, Frames)> {
        let frames = match self.shape(name)?[..] {
            [3, height, width] => Frames { time: 1, height, width },
            [time, 3, height, width] => Frames { time, height, width },
            _ => return Err(self.refuse(&format!("`{name}` is no picture or clip of three channels"))),
        };
        let planes = self.floats(name)?;
        let places = frames.height * frames.width;
        let mut values = Vec::with_capacity(planes.len());
        for frame in planes.chunks_exact((3 * places).max(1)) {
            for place in 0..places {
                values.extend((0..3).map(|channel| frame[channel * places + place]));
            }
        }
        Ok((values, frames))
    }
}
