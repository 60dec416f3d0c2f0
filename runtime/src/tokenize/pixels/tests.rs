//! What the processors of three families make of pictures, and what is refused.

use std::path::PathBuf;

use safetensors::SafeTensors;

use super::*;
use crate::picture::tests::{formats, noise};

/// The processors of the fixtures, as a bundle would say them. The background is `int(mean * 255)`.
pub(crate) const FAMILIES: [(&str, &str); 3] = [
    (
        "janus",
        r#"{"resize": {"longest_edge": {"px": 32, "min_px": 14}}, "filter": "bicubic",
            "fit": {"square": {"background": [122, 116, 104]}}, "rescale": 0.00392156862745098,
            "mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}"#,
    ),
    (
        "chameleon",
        r#"{"resize": {"shortest_edge": {"px": 32}}, "filter": "lanczos",
            "fit": {"centre_crop": {"width": 32, "height": 32}}, "rescale": 0.0078,
            "mean": [1.0, 1.0, 1.0], "std": [1.0, 1.0, 1.0]}"#,
    ),
    (
        "emu3",
        r#"{"resize": {"multiples": {"factor": 8, "min_pixels": 1024, "max_pixels": 2304}}, "filter": "bicubic",
            "fit": "whole", "rescale": 0.00392156862745098,
            "mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}"#,
    ),
];

pub(crate) fn config(family: &str) -> PixelConfig {
    let (_, text) = FAMILIES.iter().find(|(name, _)| *name == family).unwrap();
    let config: PixelConfig = serde_json::from_str(text).unwrap();
    config.check().unwrap();
    config
}

fn fixture(family: &str, name: &str) -> Vec<u8> {
    std::fs::read(PathBuf::from("tests/fixtures/hf").join(family).join(name)).unwrap()
}

fn run(pixels: &mut Pixels, rgb: &[u8], width: usize, height: usize) -> (Vec<f32>, usize, usize) {
    let found = pixels.run(Picture::rgb(rgb, width, height)).unwrap();
    (found.values.to_vec(), found.width, found.height)
}

/// `[3, height, width]` as `[height, width, 3]`.
fn channels_last<T: Copy>(planes: &[T]) -> Vec<T> {
    let pixels = planes.len() / 3;
    (0..planes.len()).map(|i| planes[i % 3 * pixels + i / 3]).collect()
}

/// How many values are not equal; an error if any is not within `tolerance`, as NaN never is.
fn compare(found: &[f32], expected: &[f32], tolerance: f32) -> Result<usize, String> {
    if found.len() != expected.len() {
        return Err(format!("{} values, expected {}", found.len(), expected.len()));
    }
    let near = |f: f32, e: f32| (f - e).abs() <= tolerance;
    match found.iter().zip(expected).find(|&(&f, &e)| !near(f, e)) {
        Some((f, e)) => Err(format!("{f}, expected {e}")),
        None => Ok(found.iter().zip(expected).filter(|(f, e)| f != e).count()),
    }
}

#[test]
fn photos_become_the_numbers_of_the_processors() {
    for (family, _) in FAMILIES {
        let photo = image::load_from_memory(&fixture(family, "photo.png")).unwrap().into_rgb8();
        let bytes = fixture(family, "pixel_values.safetensors");
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        let golden = golden.tensor("pixel_values").unwrap();
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(golden.data());

        let mut pixels = Pixels::new(&config(family)).unwrap();
        let (width, height) = (photo.width() as usize, photo.height() as usize);
        let (found, width, height) = run(&mut pixels, &photo, width, height);
        assert_eq!(golden.shape(), [1, 3, height, width], "{family}");
        let unequal = compare(&found, &channels_last(&values), 1e-6).unwrap();
        println!("{family}: {unequal} of {} values are not equal", found.len());
        assert_eq!(unequal, 0, "{family}");
    }
}

#[test]
fn noise_of_awkward_sizes_becomes_the_bytes_of_the_processors() {
    for (family, _) in FAMILIES {
        let bytes = fixture(family, "awkward.safetensors");
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        assert!(golden.len() >= 5);
        let config = config(family);
        let mut pixels = Pixels::new(&config).unwrap();
        for (name, tensor) in golden.iter() {
            let (width, height) = name.split_once('x').unwrap();
            let (width, height) = (width.parse().unwrap(), height.parse().unwrap());
            assert_eq!(
                config.size(width, height).unwrap(),
                (tensor.shape()[2], tensor.shape()[1]),
                "{family} {name}"
            );
            let (found, ..) = run(&mut pixels, &noise(width, height), width, height);
            let expected: Vec<f32> = (channels_last(tensor.data()).iter().enumerate())
                .map(|(i, &byte)| config.values()[i % 3][usize::from(byte)])
                .collect();
            assert_eq!(compare(&found, &expected, 0.0), Ok(0), "{family} {name}");
        }
    }
}

#[test]
fn the_comparator_fails_on_nan_and_on_one_byte_beside() {
    let config = config("janus");
    let bytes: Vec<f32> = (0..256).map(|byte| config.values()[2][byte]).collect();
    assert_eq!(compare(&bytes, &bytes, 1e-6), Ok(0));
    assert!(compare(&bytes[1..], &bytes[..255], 1e-6).is_err(), "every byte one too large");
    let mut wrong = bytes.clone();
    wrong[255] = bytes[254];
    assert!(compare(&wrong, &bytes, 1e-6).is_err(), "one byte one too small");
    wrong[255] = f32::NAN;
    assert!(compare(&wrong, &bytes, f32::INFINITY).is_err(), "NaN found");
    assert!(compare(&bytes, &wrong, f32::INFINITY).is_err(), "NaN expected");
    assert!(compare(&[0.1], &[0.0], 1e-6).is_err(), "zero expected");
    assert!(compare(&bytes[1..], &bytes, 1e-6).is_err(), "one value is missing");
    wrong[255] = bytes[255] + 2e-7;
    assert_eq!(compare(&wrong, &bytes, 1e-6), Ok(1), "a unit in the last place is counted");
}

#[test]
fn a_flat_picture_stays_flat() {
    for (family, _) in FAMILIES {
        let config = PixelConfig { fit: Fit::Whole, ..config(family) };
        let mut pixels = Pixels::new(&config).unwrap();
        for (width, height) in [(1, 1), (3, 7), (1, 150), (150, 1), (641, 479)] {
            let (found, ..) = run(&mut pixels, &[17, 201, 255].repeat(width * height), width, height);
            let levels = config.values();
            let expected = [levels[0][17], levels[1][201], levels[2][255]];
            assert!(found.chunks_exact(3).all(|v| v == expected), "{family} {width} × {height}");
        }
    }
}

#[test]
fn buffers_are_kept_and_nothing_of_another_picture_is_left() {
    for (family, _) in FAMILIES {
        let config = config(family);
        let fresh = |w, h| run(&mut Pixels::new(&config).unwrap(), &noise(w, h), w, h);
        let mut pixels = Pixels::new(&config).unwrap();
        for (width, height) in [(90, 40), (40, 90), (5, 5), (90, 40), (90, 40)] {
            assert_eq!(
                run(&mut pixels, &noise(width, height), width, height),
                fresh(width, height),
                "{family}"
            );
        }
        let place = pixels.values.as_ptr();
        run(&mut pixels, &[0; 90 * 40 * 3], 90, 40);
        assert_eq!(place, pixels.values.as_ptr());
        pixels.run(Picture::rgb(&[0; 3], 100_000, 1)).unwrap_err();
        assert_eq!(run(&mut pixels, &noise(90, 40), 90, 40), fresh(90, 40), "{family} after a refusal");
    }
}

#[test]
fn sizes_are_those_of_the_processors() {
    // Published sizes; expected values are what the Python functions return.
    let longest = ResizeRule::LongestEdge { px: 384, min_px: 14 };
    assert_eq!(longest.apply(640, 480), (384, 288));
    assert_eq!(longest.apply(480, 640), (288, 384));
    assert_eq!(longest.apply(768, 5), (384, 14));
    assert_eq!(longest.apply(768, 401), (384, 200), "200.5 goes to the even side");
    assert_eq!(longest.apply(768, 403), (384, 202), "201.5 too");
    let shortest = ResizeRule::ShortestEdge { px: 512 };
    assert_eq!(shortest.apply(640, 480), (682, 512));
    assert_eq!(shortest.apply(480, 640), (512, 682));
    assert_eq!(shortest.apply(512, 512), (512, 512));
    let multiples = ResizeRule::Multiples { factor: 8, min_pixels: 512 * 512, max_pixels: 1024 * 1024 };
    assert_eq!(multiples.apply(640, 480), (640, 480));
    assert_eq!(multiples.apply(1920, 1080), (1360, 768));
    assert_eq!(multiples.apply(100, 77), (584, 456));
    assert_eq!(multiples.apply(644, 636), (640, 640), "80.5 and 79.5 go to the even multiple");
    assert_eq!(multiples.apply(1, 1), (512, 512));
}

#[test]
fn what_a_crop_is_too_large_for_is_black_around_the_picture() {
    let config = PixelConfig {
        fit: Fit::CentreCrop { width: 5, height: 2 },
        resize: ResizeRule::ShortestEdge { px: 2 },
        rescale: 1.0,
        mean: [0.0; 3],
        ..config("chameleon")
    };
    let (found, width, height) = run(&mut Pixels::new(&config).unwrap(), &[9; 12], 2, 2);
    assert_eq!((width, height), (5, 2));
    let row = [0.0, 0.0, 9.0, 9.0, 0.0].map(|v| [v; 3]);
    assert_eq!(found, [row, row].as_flattened().as_flattened());
}

#[test]
fn refuses_pictures_in_a_sentence() {
    let sentence = |config: &PixelConfig, rgb: &[u8], width, height| {
        Pixels::new(config).unwrap().run(Picture::rgb(rgb, width, height)).unwrap_err().to_string()
    };
    for (family, _) in FAMILIES {
        let config = config(family);
        for (width, height) in [(0, 0), (0, 5), (5, 0), (0, usize::MAX)] {
            let found = sentence(&config, &[], width, height);
            assert_eq!(found, format!("a picture of {width} × {height} pixels has nothing to show"));
        }
        for (width, height) in [(100_000, 1), (1, 100_000), (usize::MAX, usize::MAX)] {
            let found = sentence(&config, &[0; 300_000], width, height);
            assert!(found.ends_with("is too large; a side may have at most 65535"), "{found}");
        }
        for bytes in [0, 11, 13, 16, 24] {
            let found = sentence(&config, &vec![0; bytes], 2, 2);
            assert_eq!(found, format!("a picture of 2 × 2 pixels cannot have {bytes} bytes of rgb8"));
        }
    }
    let mut pixels = Pixels::new(&config("emu3")).unwrap();
    for (format, stride, mut bytes) in formats(5, 3) {
        let layout = if stride > 0 { format!("{format} in rows of {stride}") } else { format.to_string() };
        let mut run = |bytes: &[u8]| {
            pixels
                .run(Picture { bytes, format, width: 5, height: 3, stride })
                .map(drop)
                .map_err(|e| e.to_string())
        };
        let (least, most) = Picture { bytes: &[], format, width: 5, height: 3, stride }.sizes();
        let refusal = |n| Err(format!("a picture of 5 × 3 pixels cannot have {n} bytes of {layout}"));
        assert_eq!(run(&bytes[1..]), refusal(least - 1));
        bytes.resize(most + 1, 0);
        assert_eq!(run(&bytes), refusal(most + 1));
        assert_eq!(run(&bytes[1..]), Ok(()), "with the padding of its last row");
    }
    let narrow = sentence(&config("emu3"), &[0; 603], 201, 1);
    assert!(narrow.contains("too narrow"), "{narrow}");
    let whole = PixelConfig { fit: Fit::Whole, ..config("chameleon") };
    let large = sentence(&whole, &[0; 196_605], 65_535, 1);
    assert!(large.contains("would become 2097120 × 32 for the model"), "{large}");
    // 65,535 rows remain between the passes, each of 2,048 columns.
    let wide = PixelConfig {
        resize: ResizeRule::ShortestEdge { px: 2048 },
        fit: Fit::CentreCrop { width: 2048, height: 2048 },
        ..whole
    };
    let between = sentence(&wide, &[], 65_535, 65_535);
    assert!(between.contains("make it smaller by 8"), "{between}");
}

#[test]
fn the_longest_pictures_need_little_memory() {
    let mut pixels = Pixels::new(&config("chameleon")).unwrap();
    let (found, width, height) = run(&mut pixels, &[255; 65_535 * 3], 1, 65_535);
    assert_eq!((width, height, found.len()), (32, 32, 32 * 32 * 3));
    let levels = pixels.config().values();
    let white = [levels[0][255], levels[1][255], levels[2][255]];
    assert!(found.chunks_exact(3).all(|v| v == white));
    let picture = Picture::rgb(&[], 1, 65_535);
    assert_eq!(pixels.plan.rooms(picture)[2], 32 * 32 * 3, "only what is shown is made");
}

#[test]
fn configurations_come_back_from_json_and_wrong_ones_are_refused() {
    for (family, text) in FAMILIES {
        let config = config(family);
        let again: PixelConfig = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(config, again);
        for (from, to) in
            [("\"px\"", "\"pixels\""), ("\"filter\"", "\"colour\": 1, \"filter\""), ("bicubic", "box")]
        {
            let wrong = text.replace(from, to);
            assert!(wrong == text || serde_json::from_str::<PixelConfig>(&wrong).is_err(), "{wrong}");
        }
    }
    let unknown = FAMILIES[0].1.replace("\"min_px\": 14", "\"min_px\": 14, \"max_px\": 15");
    assert!(serde_json::from_str::<PixelConfig>(&unknown).is_err(), "unknown field of a rule");

    let good = config("janus");
    let with = |resize| PixelConfig { resize, ..good };
    let fitted = |width, height| PixelConfig { fit: Fit::CentreCrop { width, height }, ..good };
    let wrong = [
        with(ResizeRule::ShortestEdge { px: 0 }),
        with(ResizeRule::ShortestEdge { px: usize::MAX }),
        with(ResizeRule::LongestEdge { px: 32, min_px: 33 }),
        with(ResizeRule::LongestEdge { px: 32, min_px: 0 }),
        with(ResizeRule::Multiples { factor: 0, min_pixels: 1, max_pixels: 2 }),
        with(ResizeRule::Multiples { factor: 8, min_pixels: 0, max_pixels: 2 }),
        with(ResizeRule::Multiples { factor: 8, min_pixels: 3, max_pixels: 2 }),
        with(ResizeRule::Multiples { factor: 8, min_pixels: 3, max_pixels: usize::MAX }),
        fitted(0, 32),
        fitted(32, usize::MAX),
        fitted(65_535, 65_535),
        PixelConfig { rescale: f64::NAN, ..good },
        PixelConfig { rescale: f64::MAX, ..good },
        PixelConfig { mean: [0.0, f32::INFINITY, 0.0], ..good },
        PixelConfig { std: [1.0, 0.0, 1.0], ..good },
        PixelConfig { std: [f32::NAN; 3], ..good },
        PixelConfig { std: [f32::from_bits(1); 3], ..good },
    ];
    for config in wrong {
        let sentence = Pixels::new(&config).unwrap_err().to_string();
        assert!(sentence.starts_with("saccade.json: pixels."), "{sentence}");
    }
}
