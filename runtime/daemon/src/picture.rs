//! Pictures in requests: data URIs in, checked bytes out; pixels only on the inference thread.
//!
//! The order matters: the length of the base64 text first, then the size that the header states, and the decoder
//! last. Nothing is ever downloaded.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use saccade::source::{Frame, FrameError, decode_picture, picture_size};

use crate::error::ApiError;

/// The largest encoded picture.
pub(crate) const MAX_ENCODED_BYTES: usize = 6 << 20;

/// An encoded picture whose format and size have been checked.
#[derive(Debug)]
pub(crate) struct Picture {
    encoded: Vec<u8>,
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
        match picture_size(&encoded) {
            Ok(_) => Ok(Self { encoded, param: param.into() }),
            Err(FrameError::UnknownKind) => {
                refuse("the bytes are neither a PNG nor a JPEG: encode the picture as one".into())
            }
            Err(reason) => refuse(format!("the picture cannot be used ({reason}): send another one")),
        }
    }

    /// Decodes the picture into `frame`.
    ///
    /// # Errors
    /// 400 if the bytes behind the header are broken.
    pub(crate) fn decode(&self, frame: &mut Frame) -> Result<(), ApiError> {
        decode_picture(&self.encoded, frame).map_err(|_| {
            ApiError::invalid(&*self.param, "the picture is broken behind its header: encode it again")
        })
    }
}

fn strip_prefix_ignoring_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{ImageFormat, RgbImage};

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
        let mut frame = Frame::default();
        Picture::from_data_uri(&uri(&png(5, 3)), "p").unwrap().decode(&mut frame).unwrap();
        assert_eq!((frame.width, frame.height, &frame.rgb[42..]), (5, 3, &[200, 10, 30][..]));
        let mut jpeg = Cursor::new(Vec::new());
        RgbImage::new(7, 2).write_to(&mut jpeg, ImageFormat::Jpeg).unwrap();
        Picture::from_data_uri(&uri(&jpeg.into_inner()), "p").unwrap().decode(&mut frame).unwrap();
        assert_eq!((frame.width, frame.height), (7, 2));
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
        assert!(refusal(&uri(&bomb)).contains("it is 30000 by 3 pixels"), "{}", refusal(&uri(&bomb)));
    }

    #[test]
    fn refuses_a_picture_cut_short_when_it_is_decoded() {
        let whole = png(64, 64);
        let cut = Picture::from_data_uri(&uri(&whole[..whole.len() - 30]), "p").unwrap();
        assert!(
            cut.decode(&mut Frame::default())
                .expect_err("must be refused")
                .message
                .contains("broken behind its header")
        );
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
}
