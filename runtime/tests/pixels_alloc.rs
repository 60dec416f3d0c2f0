//! Preprocessing a picture allocates nothing if the picture before it had the same size.

mod counting;

use std::hint::black_box;

use counting::allocations;
use saccade::tokenize::{Filter, Fit, Picture, PixelConfig, PixelFormat, Pixels, ResizeRule};

// The only test of its file: another one beside it would be counted too.
#[test]
fn pictures_of_one_size_are_preprocessed_without_allocating() {
    assert_eq!(allocations(|| drop(black_box(vec![0u8; 64]))), 1, "the counter counts");
    let rules = [
        (ResizeRule::ShortestEdge { px: 32 }, Fit::CentreCrop { width: 32, height: 32 }),
        (ResizeRule::LongestEdge { px: 32, min_px: 14 }, Fit::Square { background: [122, 116, 104] }),
        (ResizeRule::Multiples { factor: 8, min_pixels: 1024, max_pixels: 2304 }, Fit::Whole),
    ];
    // Columns first, and rows first.
    let sizes = [(96, 72), (41, 97)];
    for ((resize, fit), (width, height)) in rules.into_iter().flat_map(|rule| sizes.map(|size| (rule, size)))
    {
        let config = PixelConfig {
            resize,
            filter: Filter::Lanczos,
            fit,
            rescale: 0.0078,
            mean: [1.0; 3],
            std: [1.0; 3],
        };
        let mut pixels = Pixels::new(&config).unwrap();
        let bytes = [0, 255].map(|value| vec![value; width * height * 3]);
        let mut sum = 0.0;
        let mut run = |bytes: &[u8]| {
            let yuyv = &bytes[..width.div_ceil(2) * 4 * height];
            let raw = Picture { bytes: yuyv, format: PixelFormat::Yuyv, width, height, stride: 0 };
            for picture in [Picture::rgb(bytes, width, height), raw] {
                sum += pixels.run(picture).unwrap().values.iter().sum::<f32>();
            }
        };
        assert!(allocations(|| run(&bytes[0])) > 0, "{config:?}: the first call allocates");
        assert_eq!(allocations(|| bytes.iter().for_each(|bytes| run(bytes))), 0, "{config:?}");
        assert!(sum.is_finite());
    }
}
