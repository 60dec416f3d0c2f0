//! Compressed pictures, decoded under limits: sizes are read and judged before anything is decoded.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use image::codecs::{jpeg::JpegDecoder, png::PngDecoder};
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, Limits};

use super::Frame;
use super::error::FrameError;

/// Widest and highest picture that is decoded: 16 MPix in all.
const MAX_SIDE: u32 = 4096;
/// Most bytes of a compressed picture.
pub(super) const MAX_PICTURE_BYTES: u64 = 32 << 20;
/// Most bytes that a decoder may take for its output: 4096 × 4096 RGBA.
const MAX_DECODED_BYTES: u64 = 64 << 20;
/// Most bytes of what a PNG picture carries besides its pixels, inflated: colour profile, EXIF, texts.
const MAX_PNG_EXTRA_BYTES: u64 = 8 << 20;
/// How a PNG picture begins: its signature, then the length and the name of the header chunk.
const PNG_START: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR";

/// Refuses a size that is too large to be decoded, or empty.
pub(super) fn check_size(width: u32, height: u32) -> Result<(), FrameError> {
    if width == 0 || height == 0 {
        return Err(FrameError::Empty);
    }
    if width > MAX_SIDE || height > MAX_SIDE {
        return Err(FrameError::TooLarge { width, height });
    }
    Ok(())
}

/// Width and height of a JPEG or PNG picture as its header states them; nothing is decoded.
///
/// # Errors
/// Neither JPEG nor PNG, too large, without pixels, or a JPEG that is cut off.
pub fn picture_size(bytes: &[u8]) -> Result<(u32, u32), FrameError> {
    check_bytes(bytes)?;
    let (width, height) = if is_jpeg(bytes) {
        let jpeg = scan_jpeg(bytes)?;
        (jpeg.width, jpeg.height)
    } else {
        png_size(bytes).ok_or(FrameError::UnknownKind)?
    };
    check_size(width, height)?;
    Ok((width, height))
}

/// Decodes a JPEG or PNG picture into `frame`, upright as its EXIF says, in bounded memory whatever the bytes are.
///
/// # Errors
/// Those of [`picture_size`], cut off or damaged.
pub fn decode_picture(bytes: &[u8], frame: &mut Frame) -> Result<(), FrameError> {
    let start = Instant::now();
    picture_size(bytes)?;
    if is_jpeg(bytes) {
        guarded(|| decode(JpegDecoder::new(Cursor::new(bytes)).map_err(refused)?, frame))?;
    } else {
        let mut limits = Limits::default();
        limits.max_alloc = Some(MAX_PNG_EXTRA_BYTES);
        guarded(|| decode(PngDecoder::with_limits(Cursor::new(bytes), limits).map_err(refused)?, frame))?;
    }
    frame.decode_ns = elapsed_ns(start);
    Ok(())
}

fn is_jpeg(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0xff, 0xd8])
}

/// Width and height in a PNG picture's header, which must come first.
fn png_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let size = bytes.strip_prefix(PNG_START)?;
    let side = |at: usize| size.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
    side(0).zip(side(4))
}

/// Decodes the JPEG frames of one stream, keeping its scratch memory.
#[derive(Debug, Default)]
pub(super) struct MjpegDecoder {
    scratch: Vec<u8>,
}

impl MjpegDecoder {
    /// Decodes one JPEG frame, which may carry stale bytes behind its end and lack its Huffman tables.
    ///
    /// # Errors
    /// No start or end marker, too large, damaged.
    pub(super) fn decode(&mut self, bytes: &[u8], frame: &mut Frame) -> Result<(), FrameError> {
        let start = Instant::now();
        check_bytes(bytes)?;
        let jpeg = scan_jpeg(bytes)?;
        check_size(jpeg.width, jpeg.height)?;
        let trimmed = &bytes[..jpeg.end];
        let whole = if jpeg.has_tables {
            trimmed
        } else {
            self.scratch.clear();
            self.scratch.extend_from_slice(&trimmed[..jpeg.scan]);
            push_standard_tables(&mut self.scratch);
            self.scratch.extend_from_slice(&trimmed[jpeg.scan..]);
            &self.scratch
        };
        guarded(|| {
            let decoder = JpegDecoder::new(Cursor::new(whole)).map_err(refused)?;
            // A frame of a video stands as the camera stood: its EXIF block, if any, is not asked.
            decode_upright(decoder, frame)
        })?;
        frame.decode_ns = elapsed_ns(start);
        Ok(())
    }
}

/// Where the parts of a JPEG picture lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct JpegLayout {
    width: u32,
    height: u32,
    /// Whether Huffman (or arithmetic) tables come before the first scan.
    has_tables: bool,
    /// Byte at which the first start-of-scan marker begins.
    scan: usize,
    /// Byte behind the end marker.
    end: usize,
}

/// Walks the markers of a JPEG picture from its start to its end. Stale bytes behind the end are not looked at.
fn scan_jpeg(bytes: &[u8]) -> Result<JpegLayout, FrameError> {
    if !bytes.starts_with(&[0xff, 0xd8]) {
        return Err(FrameError::NoStart);
    }
    let (mut size, mut scan, mut has_tables) = (None, None, false);
    let mut at = 2;
    loop {
        // Between segments, and in coded data, everything up to the next marker is passed over.
        let Some(&[_, marker]) = bytes.get(at..at + 2).and_then(|pair| pair.first_chunk::<2>()) else {
            return Err(FrameError::NoEnd);
        };
        if bytes[at] != 0xff || marker == 0 {
            at += 1;
            continue;
        }
        match marker {
            // Fill byte: the next one may be the marker.
            0xff => at += 1,
            // Restart markers and other markers without a length.
            0x01 | 0xd0..=0xd8 => at += 2,
            0xd9 => {
                let ((width, height), Some(scan)) = (size.ok_or(FrameError::NoHeader)?, scan) else {
                    return Err(FrameError::NoHeader);
                };
                return Ok(JpegLayout { width, height, has_tables, scan, end: at + 2 });
            }
            _ => {
                let field =
                    |i: usize| bytes.get(at + i..at + i + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
                let length = usize::from(field(2).ok_or(FrameError::NoEnd)?);
                if length < 2 {
                    return Err(FrameError::BadSegment);
                }
                match marker {
                    0xc4 | 0xcc => has_tables |= scan.is_none(),
                    0xc0..=0xcf if marker != 0xc8 && size.is_none() => {
                        let (height, width) = (field(5), field(7));
                        size = width.zip(height).map(|(w, h)| (u32::from(w), u32::from(h)));
                        if length < 8 || size.is_none() {
                            return Err(FrameError::BadSegment);
                        }
                    }
                    0xda => scan = scan.or(Some(at)),
                    _ => {}
                }
                at += 2 + length;
            }
        }
    }
}

/// The Huffman tables that every motion JPEG shares, and that some therefore leave out.
/// Source: ITU-T T.81, tables K.3 to K.6. Each entry: class and number, code counts by length, values.
fn push_standard_tables(out: &mut Vec<u8>) {
    const DC_VALUES: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
    #[rustfmt::skip]
    const LUMA_AC: [u8; 162] = [
        0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22, 0x71, 0x14,
        0x32, 0x81, 0x91, 0xa1, 0x08, 0x23, 0x42, 0xb1, 0xc1, 0x15, 0x52, 0xd1, 0xf0, 0x24, 0x33, 0x62, 0x72, 0x82, 0x09,
        0x0a, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a,
        0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5a, 0x63, 0x64, 0x65,
        0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88,
        0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9,
        0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca,
        0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xe1, 0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea,
        0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
    ];
    #[rustfmt::skip]
    const CHROMA_AC: [u8; 162] = [
        0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71, 0x13, 0x22, 0x32,
        0x81, 0x08, 0x14, 0x42, 0x91, 0xa1, 0xb1, 0xc1, 0x09, 0x23, 0x33, 0x52, 0xf0, 0x15, 0x62, 0x72, 0xd1, 0x0a, 0x16,
        0x24, 0x34, 0xe1, 0x25, 0xf1, 0x17, 0x18, 0x19, 0x1a, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x35, 0x36, 0x37, 0x38, 0x39,
        0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5a, 0x63, 0x64,
        0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x82, 0x83, 0x84, 0x85, 0x86,
        0x87, 0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7,
        0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8,
        0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9,
        0xea, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
    ];
    let tables: [(u8, [u8; 16], &[u8]); 4] = [
        (0x00, [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], &DC_VALUES),
        (0x01, [0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0], &DC_VALUES),
        (0x10, [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 0x7d], &LUMA_AC),
        (0x11, [0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 0x77], &CHROMA_AC),
    ];
    // 2 for the length itself, 17 for each table's head.
    out.extend_from_slice(&[0xff, 0xc4]);
    let length = u16::try_from(2 + tables.iter().map(|t| 17 + t.2.len()).sum::<usize>()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    for (id, counts, values) in tables {
        out.push(id);
        out.extend_from_slice(&counts);
        out.extend_from_slice(values);
    }
}

fn check_bytes(bytes: &[u8]) -> Result<(), FrameError> {
    let found = bytes.len() as u64;
    if found > MAX_PICTURE_BYTES {
        return Err(FrameError::TooLong { bytes: found, limit: MAX_PICTURE_BYTES });
    }
    Ok(())
}

fn decode(mut decoder: impl ImageDecoder, frame: &mut Frame) -> Result<(), FrameError> {
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    match decoder.orientation().unwrap_or(Orientation::NoTransforms) {
        Orientation::NoTransforms => decode_upright(decoder, frame),
        turn => {
            limit(&mut decoder)?;
            let mut picture = DynamicImage::from_decoder(decoder).map_err(refused)?;
            picture.apply_orientation(turn);
            copy_rgb(&picture, frame);
            Ok(())
        }
    }
}

fn decode_upright(mut decoder: impl ImageDecoder, frame: &mut Frame) -> Result<(), FrameError> {
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    limit(&mut decoder)?;
    if decoder.color_type() == ColorType::Rgb8 {
        frame.resize(width, height);
        decoder.read_image(&mut frame.rgb).map_err(refused)
    } else {
        copy_rgb(&DynamicImage::from_decoder(decoder).map_err(refused)?, frame);
        Ok(())
    }
}

fn limit(decoder: &mut impl ImageDecoder) -> Result<(), FrameError> {
    if decoder.total_bytes() > MAX_DECODED_BYTES {
        return Err(FrameError::TooLong { bytes: decoder.total_bytes(), limit: MAX_DECODED_BYTES });
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(2 * MAX_DECODED_BYTES);
    decoder.set_limits(limits).map_err(refused)
}

fn copy_rgb(picture: &DynamicImage, frame: &mut Frame) {
    let rgb = picture.to_rgb8();
    frame.resize(rgb.width(), rgb.height());
    frame.rgb.copy_from_slice(rgb.as_raw());
}

fn refused(error: image::ImageError) -> FrameError {
    FrameError::Decode(error.to_string())
}

/// A bug in a decoder may cost one frame, not the thread that reads the camera.
fn guarded(run: impl FnOnce() -> Result<(), FrameError>) -> Result<(), FrameError> {
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err(FrameError::Decode("it made the decoder panic".to_owned())))
}

pub(super) fn elapsed_ns(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
