//! Pictures as bytes of a pixel format, turned into RGB.

use std::fmt;

/// How the bytes of a picture lie. The numbers are those of `pixels.cu`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum PixelFormat {
    /// `R G B`.
    #[default]
    Rgb = 0,
    /// `B G R`.
    Bgr = 1,
    /// 4:2:2, `Y0 U Y1 V`.
    Yuyv = 2,
    /// 4:2:0, a plane of Y, then a plane of `U V` pairs at half size.
    Nv12 = 3,
    /// One byte of luminance.
    Grey = 4,
}

impl fmt::Display for PixelFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rgb => "rgb8",
            Self::Bgr => "bgr8",
            Self::Yuyv => "yuyv",
            Self::Nv12 => "nv12",
            Self::Grey => "grey8",
        })
    }
}

/// A borrowed picture.
#[derive(Clone, Copy, Debug)]
pub struct Picture<'a> {
    /// Pixels, row by row; of [`PixelFormat::Nv12`], rows of chroma follow. The last row may lack its padding.
    pub bytes: &'a [u8],
    /// How they lie.
    pub format: PixelFormat,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Bytes from one row to the next. Fewer than a row has, such as 0, stand for rows without padding.
    pub stride: usize,
}

impl<'a> Picture<'a> {
    /// `rgb [height, width, 3] u8`.
    #[must_use]
    pub const fn rgb(bytes: &'a [u8], width: usize, height: usize) -> Self {
        Self { bytes, format: PixelFormat::Rgb, width, height, stride: 0 }
    }

    /// Bytes of a row without padding.
    fn row_bytes(&self) -> usize {
        match self.format {
            PixelFormat::Rgb | PixelFormat::Bgr => self.width.saturating_mul(3),
            PixelFormat::Yuyv => self.width.div_ceil(2).saturating_mul(4),
            PixelFormat::Nv12 => self.width.next_multiple_of(2),
            PixelFormat::Grey => self.width,
        }
    }

    /// Bytes from one row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride.max(self.row_bytes())
    }

    /// How many bytes it has: without and with the padding of the last row.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        let chroma = if self.format == PixelFormat::Nv12 { self.height.div_ceil(2) } else { 0 };
        let rows = self.height.saturating_add(chroma);
        let (stride, before) = (self.stride(), rows.saturating_sub(1));
        (stride.saturating_mul(before).saturating_add(self.row_bytes()), stride.saturating_mul(rows))
    }

    /// Fills `rgb [height, width, 3]`.
    ///
    /// # Panics
    /// If there are fewer bytes than [`Self::sizes`] says.
    pub(crate) fn write_rgb(&self, rgb: &mut [u8]) {
        let (stride, row_bytes) = (self.stride(), self.row_bytes());
        let row = |y: usize| &self.bytes[y * stride..][..row_bytes];
        for (y, out) in rgb.chunks_exact_mut(self.width * 3).enumerate() {
            match self.format {
                PixelFormat::Rgb => out.copy_from_slice(row(y)),
                PixelFormat::Bgr => {
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
                    let chroma = row(self.height + y / 2);
                    for (x, rgb) in out.chunks_exact_mut(3).enumerate() {
                        yuv(row(y)[x], chroma[x / 2 * 2], chroma[x / 2 * 2 + 1], rgb);
                    }
                }
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(
        format: PixelFormat,
        bytes: &[u8],
        (width, height): (usize, usize),
        stride: usize,
    ) -> Vec<u8> {
        let mut rgb = vec![7; width * height * 3];
        Picture { bytes, format, width, height, stride }.write_rgb(&mut rgb);
        rgb
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
        assert_eq!(unpacked(PixelFormat::Rgb, &[1, 2, 3, 9, 4, 5, 6], (1, 2), 4), [1, 2, 3, 4, 5, 6]);
        assert_eq!(unpacked(PixelFormat::Bgr, &[1, 2, 3, 9, 4, 5, 6, 9], (1, 2), 4), [3, 2, 1, 6, 5, 4]);
        assert_eq!(unpacked(PixelFormat::Grey, &[7, 8], (2, 1), 0), [7, 7, 7, 8, 8, 8]);
    }

    #[test]
    fn an_odd_width_uses_half_of_the_last_pair() {
        let rgb = unpacked(PixelFormat::Yuyv, &[16, 128, 16, 128, 235, 128, 0, 128], (3, 1), 0);
        assert_eq!(rgb, [0, 0, 0, 0, 0, 0, 255, 255, 255]);
    }

    #[test]
    fn sizes_count_odd_columns_and_rows_and_the_padding() {
        for (format, without, tight, padded) in [
            (PixelFormat::Yuyv, 24 + 12, 36, 16 * 3),
            (PixelFormat::Nv12, 6 * 5, 30, 16 * 5),
            (PixelFormat::Grey, 5 * 3, 15, 16 * 3),
            (PixelFormat::Rgb, 15 * 3, 45, 16 * 3),
            (PixelFormat::Bgr, 15 * 3, 45, 16 * 3),
        ] {
            let picture = Picture { bytes: &[], format, width: 5, height: 3, stride: 1 };
            assert_eq!(picture.sizes(), (without, tight), "{format}");
            let row = picture.row_bytes();
            assert_eq!(Picture { stride: 16, ..picture }.sizes(), (padded - 16 + row, padded), "{format}");
            let huge = Picture { stride: usize::MAX, height: usize::MAX, ..picture };
            assert_eq!(huge.sizes(), (usize::MAX, usize::MAX), "{format}");
        }
    }
}
