//! Pictures that tests share, and plans for those of every format.

use super::*;

/// Bytes without a pattern, `[height, width, 3]`, as `pixel_values.py` makes them.
pub(crate) fn noise(width: usize, height: usize) -> Vec<u8> {
    let byte = |i: u32| (i.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0];
    (0..).take(width * height * 3).map(byte).collect()
}

/// Every format, without and with padding, with the fewest bytes that a picture without a pattern has.
pub(crate) fn formats(width: usize, height: usize) -> Vec<(PixelFormat, usize, Vec<u8>)> {
    use PixelFormat::{Bgr, Grey, Nv12, Rgb, Yuyv};
    let strides = [0, 4 * width + 7];
    let both = [Rgb, Bgr, Yuyv, Nv12, Grey].into_iter().flat_map(|format| strides.map(|s| (format, s)));
    both.map(|(format, stride)| {
        let least = Picture { bytes: &[], format, width, height, stride }.sizes().0;
        let mut bytes = noise(least, 1);
        bytes.truncate(least);
        (format, stride, bytes)
    })
    .collect()
}

#[test]
fn a_picture_of_any_format_becomes_what_it_becomes_as_rgb() {
    let levels: Levels = std::array::from_fn(|c| std::array::from_fn(|byte| (c * 256 + byte) as f32));
    let ways = [Way::Area(Area::default()), Way::Filter(Resample::new(Filter::Lanczos))];
    for way in ways {
        let mut plan = Plan::new(way, [1, 2, 3], levels);
        let mut scratch = Scratch::default();
        for (width, height) in [(1, 1), (1, 9), (9, 1), (7, 5), (30, 41)] {
            plan.make((width, height), (Place::on(6, 8), Place::on(5, 5)), 1000).unwrap();
            let mut run = |picture: Picture<'_>| {
                let mut x = vec![f32::NAN; 8 * 5 * 3];
                plan.run(picture, &mut scratch, &mut x);
                x
            };
            for (format, stride, bytes) in formats(width, height) {
                let picture = Picture { bytes: &bytes, format, width, height, stride };
                let mut rgb = vec![0; width * height * 3];
                picture.write_rgb(&mut rgb);
                let want = run(Picture::rgb(&rgb, width, height));
                assert_eq!(run(picture), want, "{format} {width} × {height} in rows of {stride}");
            }
        }
    }
}
