//! Pictures in requests: data URIs in, checked bytes out; pixels only on the inference thread.
//!
//! The order matters: the length of the base64 text first, then the format, then the dimensions that the header
//! states, and the decoder last, under an allocation limit. Nothing is ever downloaded.

use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, ImageReader, Limits, RgbImage};

use crate::error::ApiError;

/// The largest side of a picture.
pub(crate) const MAX_SIDE_PX: u32 = 4096;
/// The most pixels of a picture.
pub(crate) const MAX_PIXELS: u64 = 16 << 20;
/// The largest encoded picture.
pub(crate) const MAX_ENCODED_BYTES: usize = 6 << 20;
/// Bytes that may follow a JPEG's end marker: cameras pad their frames.
const MAX_JPEG_TRAILER_BYTES: usize = 4096;
/// What a decoder may allocate: 16 Mi pixels of three bytes, and as much again for its own tables.
const MAX_DECODE_BYTES: u64 = 96 << 20;

/// An encoded picture whose format and dimensions have been checked.
#[derive(Debug)]
pub(crate) struct Picture {
    encoded: Vec<u8>,
    format: ImageFormat,
    param: String,
}

impl Picture {
    /// Takes a `data:image/…;base64,…` URI apart and checks what its header claims.
    ///
    /// # Errors
    /// 400 with the rule that was broken, naming `param`.
    pub(crate) fn from_data_uri(uri: &str, param: &str) -> Result<Self, ApiError> {
        let refuse = |message: String| Err(ApiError::invalid(param, message));
        let Some(rest) = strip_prefix_ignoring_case(uri, "data:") else {
            return refuse(
                "pictures are never downloaded: send the bytes inline as `data:image/jpeg;base64,…`".into(),
            );
        };
        let Some((media, text)) = rest.split_once(',') else {
            return refuse("the data URI has no comma: write `data:image/jpeg;base64,…`".into());
        };
        let mut attributes = media.split(';');
        let media_type = attributes.next().unwrap_or("").trim().to_ascii_lowercase();
        if !["image/jpeg", "image/jpg", "image/png"].contains(&media_type.as_str()) {
            return refuse("the data URI holds no PNG or JPEG: write `data:image/jpeg;base64,…`".into());
        }
        if !attributes.any(|a| a.trim().eq_ignore_ascii_case("base64")) {
            return refuse("the data URI is not base64: write `data:image/jpeg;base64,…`".into());
        }
        if text.len() / 4 * 3 > MAX_ENCODED_BYTES {
            return refuse(format!(
                "the picture is larger than {MAX_ENCODED_BYTES} bytes: send a smaller one"
            ));
        }
        let Ok(encoded) = STANDARD.decode(text.trim()) else {
            return refuse("the picture is not valid base64 (standard alphabet, with padding)".into());
        };
        // What the bytes are decides, not what the URI calls them: clients mix the two up.
        let format = match image::guess_format(&encoded) {
            Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg)) => format,
            _ => return refuse("the bytes are neither a PNG nor a JPEG: encode the picture as one".into()),
        };
        let Ok((width, height)) = ImageReader::with_format(Cursor::new(&encoded), format).into_dimensions()
        else {
            return refuse("the picture's header cannot be read: it may be cut short".into());
        };
        if width == 0 || height == 0 {
            return refuse(format!("the picture has {width}x{height} pixels: send one that is not empty"));
        }
        if width > MAX_SIDE_PX || height > MAX_SIDE_PX || u64::from(width) * u64::from(height) > MAX_PIXELS {
            return refuse(format!(
                "the picture has {width}x{height} pixels, more than {MAX_SIDE_PX} a side: send a smaller one"
            ));
        }
        Ok(Self { encoded, format, param: param.into() })
    }

    /// Decodes the picture to RGB.
    ///
    /// # Errors
    /// 400 if the bytes behind the header are broken.
    pub(crate) fn decode(&self) -> Result<RgbImage, ApiError> {
        let broken =
            || ApiError::invalid(&*self.param, "the picture is broken behind its header: encode it again");
        // The decoder fills what a cut JPEG lacks with grey; a picture that is half grey must not be answered about.
        let ends =
            self.encoded.windows(2).rev().take(MAX_JPEG_TRAILER_BYTES).any(|pair| pair == [0xFF, 0xD9]);
        if self.format == ImageFormat::Jpeg && !ends {
            return Err(broken());
        }
        let mut reader = ImageReader::with_format(Cursor::new(&self.encoded), self.format);
        let mut limits = Limits::default();
        limits.max_image_width = Some(MAX_SIDE_PX);
        limits.max_image_height = Some(MAX_SIDE_PX);
        limits.max_alloc = Some(MAX_DECODE_BYTES);
        reader.limits(limits);
        match reader.decode() {
            Ok(picture) => Ok(picture.into_rgb8()),
            Err(_) => Err(broken()),
        }
    }
}

fn strip_prefix_ignoring_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        RgbImage::from_pixel(width, height, image::Rgb([200, 10, 30]))
            .write_to(&mut out, ImageFormat::Png)
            .unwrap();
        out.into_inner()
    }

    fn uri(bytes: &[u8]) -> String {
        format!("data:image/png;base64,{}", STANDARD.encode(bytes))
    }

    fn refusal(uri: &str) -> String {
        Picture::from_data_uri(uri, "messages[0]").expect_err("must be refused").message
    }

    #[test]
    fn decodes_a_png_and_a_jpeg_under_the_wrong_name() {
        let picture = Picture::from_data_uri(&uri(&png(5, 3)), "p").unwrap().decode().unwrap();
        assert_eq!((picture.dimensions(), picture.get_pixel(4, 2).0), ((5, 3), [200, 10, 30]));
        let mut jpeg = Cursor::new(Vec::new());
        picture.write_to(&mut jpeg, ImageFormat::Jpeg).unwrap();
        let again = Picture::from_data_uri(&uri(&jpeg.into_inner()), "p").unwrap().decode().unwrap();
        assert_eq!(again.dimensions(), (5, 3));
    }

    #[test]
    fn refuses_urls_and_other_media() {
        assert!(refusal("http://169.254.169.254/latest").contains("never downloaded"));
        assert!(refusal("file:///etc/passwd").contains("never downloaded"));
        assert!(refusal("data:text/plain;base64,QUJD").contains("no PNG or JPEG"));
        assert!(refusal("data:image/png,abc").contains("not base64"));
        assert!(refusal("data:image/png;base64").contains("no comma"));
        assert!(refusal("data:image/png;base64,@@@@").contains("not valid base64"));
        assert!(refusal(&uri(b"GIF89a______________")).contains("neither a PNG nor a JPEG"));
    }

    #[test]
    fn refuses_a_header_that_claims_too_much_before_decoding() {
        let mut bomb = png(5, 3);
        bomb[16..20].copy_from_slice(&30_000_u32.to_be_bytes());
        // The header's checksum has to be right, or the test would pass for the wrong reason.
        let crc = crc32(&bomb[12..29]);
        bomb[29..33].copy_from_slice(&crc.to_be_bytes());
        assert!(refusal(&uri(&bomb)).contains("30000x3 pixels"), "{}", refusal(&uri(&bomb)));
    }

    #[test]
    fn refuses_a_picture_cut_short_when_it_is_decoded() {
        let whole = png(64, 64);
        let cut = Picture::from_data_uri(&uri(&whole[..whole.len() - 30]), "p").unwrap();
        assert!(cut.decode().expect_err("must be refused").message.contains("broken behind its header"));
    }

    #[test]
    fn refuses_base64_that_is_too_long_without_decoding_it() {
        let long = format!("data:image/png;base64,{}", "A".repeat(MAX_ENCODED_BYTES / 3 * 4 + 8));
        assert!(refusal(&long).contains("larger than"));
    }

    #[test]
    fn never_panics_on_odd_uris() {
        for odd in [
            "",
            "d",
            "data",
            "data:",
            "data:,",
            "data:;base64,",
            "dätä:image/png;base64,",
            "data:image/png;base64,",
        ] {
            assert!(Picture::from_data_uri(odd, "p").is_err(), "{odd}");
        }
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0_u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xEDB8_8320 } else { c >> 1 })
        })
    }
}
