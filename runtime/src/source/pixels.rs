//! Raw pixel formats of cameras, turned into RGB.

use super::Frame;
use super::error::FrameError;

/// A pixel format that cameras deliver and this runtime reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PixelFormat {
    /// One JPEG picture a frame.
    Mjpg,
    /// 4:2:2, `Y0 U Y1 V`.
    Yuyv,
    /// 4:2:0, a plane of Y, then a plane of `U V` pairs at half size.
    Nv12,
    /// One byte of luminance.
    Grey,
    /// `R G B`.
    Rgb3,
    /// `B G R`.
    Bgr3,
}

/// BT.601 with studio range (Y 16..235), as webcams deliver: 8 fractional bits, rounded.
/// Source: ITU-R BT.601-7, section 2.5.4; coefficients 1.164, 1.596, 0.391, 0.813, 2.018 times 256.
fn yuv(y: u8, u: u8, v: u8, rgb: &mut [u8]) {
    let (y, u, v) = (298 * (i32::from(y) - 16) + 128, i32::from(u) - 128, i32::from(v) - 128);
    let clamp = |x: i32| u8::try_from((x >> 8).clamp(0, 255)).unwrap_or(0);
    rgb[0] = clamp(y + 409 * v);
    rgb[1] = clamp(y - 100 * u - 208 * v);
    rgb[2] = clamp(y + 516 * u);
}

/// Fills `frame` from one raw frame.
///
/// Shapes: `bytes` rows of `stride` bytes (a stride of 0 means tightly packed), out `[height, width, 3] u8`.
///
/// # Errors
/// Fewer bytes than the size needs. More are fine: drivers hand over whole buffers.
///
/// # Panics
/// If `format` is [`PixelFormat::Mjpg`], which has no rows.
pub(super) fn unpack(
    format: PixelFormat,
    bytes: &[u8],
    (width, height): (u32, u32),
    stride: usize,
    frame: &mut Frame,
) -> Result<(), FrameError> {
    let (w, h) = (width as usize, height as usize);
    if w == 0 || h == 0 {
        return Err(FrameError::Empty);
    }
    let row_bytes = match format {
        PixelFormat::Mjpg => panic!("MJPG has no rows"),
        PixelFormat::Yuyv => w.div_ceil(2) * 4,
        PixelFormat::Nv12 => w.div_ceil(2) * 2,
        PixelFormat::Grey => w,
        PixelFormat::Rgb3 | PixelFormat::Bgr3 => w * 3,
    };
    let stride = stride.max(row_bytes);
    let rows = if format == PixelFormat::Nv12 { h + h.div_ceil(2) } else { h };
    // The last row may lack its padding.
    let expected = stride * (rows - 1) + row_bytes;
    if bytes.len() < expected {
        return Err(FrameError::Short { expected, found: bytes.len() });
    }
    frame.resize(width, height);
    let row = |y: usize| &bytes[y * stride..][..row_bytes];
    for (y, out) in frame.rgb.chunks_exact_mut(w * 3).enumerate() {
        match format {
            PixelFormat::Mjpg => unreachable!("refused above"),
            PixelFormat::Rgb3 => out.copy_from_slice(row(y)),
            PixelFormat::Bgr3 => {
                for (rgb, bgr) in out.chunks_exact_mut(3).zip(row(y).chunks_exact(3)) {
                    rgb.copy_from_slice(&[bgr[2], bgr[1], bgr[0]]);
                }
            }
            PixelFormat::Grey => {
                for (rgb, &grey) in out.chunks_exact_mut(3).zip(row(y)) {
                    rgb.fill(grey);
                }
            }
            PixelFormat::Yuyv => {
                for (pair, yuyv) in out.chunks_mut(6).zip(row(y).chunks_exact(4)) {
                    for (i, rgb) in pair.chunks_exact_mut(3).enumerate() {
                        yuv(yuyv[2 * i], yuyv[1], yuyv[3], rgb);
                    }
                }
            }
            PixelFormat::Nv12 => {
                let chroma = row(h + y / 2);
                for (x, rgb) in out.chunks_exact_mut(3).enumerate() {
                    yuv(row(y)[x], chroma[x / 2 * 2], chroma[x / 2 * 2 + 1], rgb);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(format: PixelFormat, bytes: &[u8], size: (u32, u32), stride: usize) -> Vec<u8> {
        let mut frame = Frame::default();
        unpack(format, bytes, size, stride, &mut frame).unwrap();
        assert_eq!((frame.width, frame.height), size);
        frame.rgb
    }

    /// The definition, in floating point.
    fn bt601(y: u8, u: u8, v: u8) -> [f64; 3] {
        let (y, u, v) = (1.164_383 * (f64::from(y) - 16.0), f64::from(u) - 128.0, f64::from(v) - 128.0);
        [y + 1.596_027 * v, y - 0.391_762 * u - 0.812_968 * v, y + 2.017_232 * u].map(|x| x.clamp(0.0, 255.0))
    }

    #[test]
    fn yuv_is_bt601_within_one_step_for_every_corner_and_a_grid() {
        for y in (0..=255u8).step_by(15) {
            for u in (0..=255u8).step_by(17) {
                for v in (0..=255u8).step_by(17) {
                    let rgb = unpacked(PixelFormat::Yuyv, &[y, u, y, v], (2, 1), 0);
                    for (found, exact) in rgb.iter().zip(bt601(y, u, v).iter().cycle()) {
                        let diff = (f64::from(*found) - exact).abs();
                        assert!(diff <= 1.0, "{y} {u} {v}: {found} for {exact}");
                    }
                }
            }
        }
    }

    #[test]
    fn black_and_white_are_exact() {
        assert_eq!(unpacked(PixelFormat::Yuyv, &[16, 128, 235, 128], (2, 1), 0), [0, 0, 0, 255, 255, 255]);
    }

    #[test]
    fn nv12_shares_its_chroma_between_four_pixels_also_at_odd_sizes() {
        // 3 by 3 pixels: rows of 4 bytes, two rows of chroma.
        let mut bytes = vec![100; 4 * 5];
        bytes[12..].copy_from_slice(&[128, 128, 200, 90, 60, 128, 128, 240]);
        let rgb = unpacked(PixelFormat::Nv12, &bytes, (3, 3), 4);
        let pixel = |x: usize, y: usize| &rgb[(y * 3 + x) * 3..][..3];
        let from_yuyv = |u, v| unpacked(PixelFormat::Yuyv, &[100, u, 100, v], (1, 1), 0);
        for (at, chroma) in
            [((0, 1), (128, 128)), ((2, 1), (200, 90)), ((1, 2), (60, 128)), ((2, 2), (128, 240))]
        {
            assert_eq!(pixel(at.0, at.1), from_yuyv(chroma.0, chroma.1), "{at:?}");
        }
    }

    #[test]
    fn rgb_and_bgr_and_grey_copy_their_bytes_and_skip_the_padding() {
        assert_eq!(unpacked(PixelFormat::Rgb3, &[1, 2, 3, 9, 4, 5, 6], (1, 2), 4), [1, 2, 3, 4, 5, 6]);
        assert_eq!(unpacked(PixelFormat::Bgr3, &[1, 2, 3, 9, 4, 5, 6, 9], (1, 2), 4), [3, 2, 1, 6, 5, 4]);
        assert_eq!(unpacked(PixelFormat::Grey, &[7, 8], (2, 1), 0), [7, 7, 7, 8, 8, 8]);
    }

    #[test]
    fn an_odd_width_uses_half_of_the_last_pair() {
        let rgb = unpacked(PixelFormat::Yuyv, &[16, 128, 16, 128, 235, 128, 0, 128], (3, 1), 0);
        assert_eq!(rgb, [0, 0, 0, 0, 0, 0, 255, 255, 255]);
    }

    #[test]
    fn one_byte_too_few_is_refused_and_one_more_is_not() {
        for (format, enough) in [
            (PixelFormat::Yuyv, 4 * 2 * 3),
            (PixelFormat::Nv12, 4 * 3 + 4 * 2),
            (PixelFormat::Grey, 4 * 3),
            (PixelFormat::Rgb3, 12 * 3),
            (PixelFormat::Bgr3, 12 * 3),
        ] {
            let mut frame = Frame::default();
            let mut run = |n: usize| unpack(format, &vec![0; n], (4, 3), 0, &mut frame);
            assert_eq!(run(enough - 1), Err(FrameError::Short { expected: enough, found: enough - 1 }));
            assert_eq!(run(enough), Ok(()), "{format:?}");
            assert_eq!(run(enough + 1), Ok(()), "{format:?}");
        }
    }

    #[test]
    fn a_frame_without_pixels_is_refused() {
        assert_eq!(unpack(PixelFormat::Grey, &[], (0, 4), 0, &mut Frame::default()), Err(FrameError::Empty));
    }

    #[test]
    #[should_panic(expected = "MJPG has no rows")]
    fn a_compressed_format_is_not_unpacked() {
        let _ = unpack(PixelFormat::Mjpg, &[], (1, 1), 0, &mut Frame::default());
    }
}
