//! What is trained on: pictures with questions, and episodes of an arm.

#[cfg(feature = "train")]
pub mod episodes;
pub mod fetch;
pub mod pictures;

use std::path::Path;

use image::imageops::FilterType;

use crate::error::{Error, Result};

/// Bytes of one frame, 64 × 64 RGB, row by row.
pub const FRAME_BYTES: usize = SIDE_PX * SIDE_PX * 3;
/// Side of every frame that is trained on.
pub const SIDE_PX: usize = 64;

/// Frames one after the other, `[n, 64, 64, 3] u8`.
#[derive(Debug, Clone, Default)]
pub struct Frames {
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Frames {
    /// How many frames there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / FRAME_BYTES
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Frame `i`, `[64, 64, 3] u8`.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn frame(&self, i: usize) -> &[u8] {
        &self.bytes[i * FRAME_BYTES..][..FRAME_BYTES]
    }
}

/// Decodes a PNG or JPEG and brings it to 64 × 64 RGB (bilinear).
///
/// # Errors
/// If the bytes are no picture.
pub fn decode_frame(raw: &[u8], origin: &Path) -> Result<Vec<u8>> {
    let picture = image::load_from_memory(raw).map_err(|e| Error::content(origin, e.to_string()))?.to_rgb8();
    let side = u32::try_from(SIDE_PX).unwrap_or(64);
    if picture.dimensions() == (side, side) {
        return Ok(picture.into_raw());
    }
    Ok(image::imageops::resize(&picture, side, side, FilterType::Triangle).into_raw())
}

/// Reads and decodes one file.
///
/// # Errors
/// If it cannot be read or is no picture.
pub fn read_frame(path: &Path) -> Result<Vec<u8>> {
    decode_frame(&std::fs::read(path).map_err(Error::file(path))?, path)
}
