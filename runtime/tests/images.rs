//! The image tokenizer against the plain definition in double precision.

// Test code: a failed `unwrap` is a failed test.
#![allow(clippy::unwrap_used)]

mod oracle;

use oracle::bundle::model;
use oracle::{Oracle, Tensors, random_tensors, tiny};
use saccade::Error;
use saccade::config::{UnimodalConfig, WeightDtype};
use saccade::session::SessionError;
use saccade::tokenize::{ImageTokenizer, Picture, Tokenizer};

/// Encodes and decodes a picture and compares both with the definition; returns the codes.
fn check_against_definition(c: &UnimodalConfig) -> Vec<u16> {
    let t = random_tensors(c, 6);
    let oracle = Oracle { c, t: &t };
    let rgb: Vec<u8> = (0..16 * 16 * 3).map(|i| u8::try_from((i * 89 + i / 7) % 256).unwrap()).collect();
    let at = |y: usize, x: usize, ch: usize| f64::from(rgb[(y * 16 + x) * 3 + ch]) / 127.5 - 1.0;
    let silu =
        |m: &mut Vec<Vec<Vec<f64>>>| m.iter_mut().flatten().flatten().for_each(|v| *v /= 1.0 + (-*v).exp());
    let res = |x: Vec<Vec<Vec<f64>>>, stem: &str| {
        let mut h = x.clone();
        silu(&mut h);
        let mut h = oracle.conv(&format!("{stem}.conv1"), &h, 1, 1);
        silu(&mut h);
        let mut y = oracle.conv(&format!("{stem}.conv2"), &h, 1, 0);
        y.iter_mut().flatten().flatten().zip(x.iter().flatten().flatten()).for_each(|(y, x)| *y += x);
        y
    };
    let mut x: Vec<Vec<Vec<f64>>> =
        (0..16).map(|y| (0..16).map(|x| (0..3).map(|ch| at(y, x, ch)).collect()).collect()).collect();
    for i in 0..3 {
        x = oracle.conv(&format!("image.encoder.{i}"), &x, 2, 1);
        if i < 2 {
            silu(&mut x);
        }
    }
    for i in 0..2 {
        x = res(x, &format!("image.encoder.res.{i}"));
    }
    silu(&mut x);
    let z = oracle.conv("image.encoder.out", &x, 1, 0);
    // Janus and LlamaGen normalise both sides before the distance, and what a code stands for.
    let shown = |z: &[f64]| -> Vec<f64> {
        let norm = if c.image.l2_norm { z.iter().map(|v| v * v).sum::<f64>().sqrt() } else { 1.0 };
        z.iter().map(|v| v / norm).collect()
    };
    let rows = t["image.codebook.weight"].1.chunks_exact(c.image.code_dim);
    let book: Vec<Vec<f64>> =
        rows.map(|row| shown(&row.iter().map(|&v| f64::from(v)).collect::<Vec<_>>())).collect();
    let distance = |z: &[f64], e: &[f64]| z.iter().zip(e).map(|(z, e)| (z - e).powi(2)).sum::<f64>();
    let nearest = |z: &Vec<f64>| {
        let z = shown(z);
        (0..64).min_by(|&a, &b| distance(&z, &book[a]).total_cmp(&distance(&z, &book[b]))).unwrap()
    };
    let expected: Vec<u16> = z.iter().flatten().map(|z| u16::try_from(nearest(z)).unwrap()).collect();

    let model = model(c, &t, WeightDtype::F32);
    let mut images = ImageTokenizer::new(&model).unwrap();
    let mut codes = vec![];
    images.encode(Picture::rgb(&rgb, 16, 16), &mut codes).unwrap();
    assert_eq!(codes, expected);

    let mut x: Vec<Vec<Vec<f64>>> =
        codes.chunks(2).map(|r| r.iter().map(|&c| book[usize::from(c)].clone()).collect()).collect();
    x = oracle.conv("image.decoder.in", &x, 1, 1);
    for i in 0..2 {
        x = res(x, &format!("image.decoder.res.{i}"));
    }
    for i in 0..3 {
        let (h, w) = (x.len(), x[0].len());
        x = (0..2 * h).map(|y| (0..2 * w).map(|z| x[y / 2][z / 2].clone()).collect()).collect();
        x = oracle.conv(&format!("image.decoder.up.{i}"), &x, 1, 1);
        if i < 2 {
            silu(&mut x);
        }
    }
    let mut pixels = vec![];
    images.decode(&codes, &mut pixels).unwrap();
    for (found, expected) in pixels.iter().zip(x.iter().flatten().flatten()) {
        let expected = (expected * 127.5 + 127.5).clamp(0.0, 255.0);
        assert!((f64::from(*found) - expected).abs() <= 0.51, "found {found}, expected {expected}");
    }
    assert_eq!(pixels.len(), rgb.len());
    codes
}

#[test]
fn the_image_tokenizer_equals_plain_convolutions() {
    check_against_definition(&tiny());
}

#[test]
fn normalised_code_books_equal_the_definition() {
    let plain = check_against_definition(&tiny());
    let mut c = tiny();
    c.image.l2_norm = true;
    assert_ne!(check_against_definition(&c), plain, "normalisation makes a difference here");
}

/// Wider maps on the code grid than anywhere else: the buffers must have room for them.
#[test]
fn wide_codes_and_residual_units_fit() {
    let widths: [fn(&mut UnimodalConfig); 4] = [
        |c| c.image.code_dim = 600,
        |c| c.image.res_hidden = 600,
        |c| c.image.encoder_channels[2] = 600,
        |c| c.image.decoder_channels[0] = 600,
    ];
    for widen in widths {
        let mut c = tiny();
        widen(&mut c);
        check_against_definition(&c);
    }
}

/// A tensor with one value that is no number.
fn poison(t: &mut Tensors, name: &str, at: usize, value: f32) {
    t.get_mut(name).unwrap().1[at] = value;
}

#[test]
fn a_code_book_that_is_not_finite_is_refused() {
    for (dtype, value) in [(WeightDtype::F32, f32::NAN), (WeightDtype::F16, f32::NEG_INFINITY)] {
        let c = tiny();
        let mut t = random_tensors(&c, 6);
        poison(&mut t, "image.codebook.weight", 7 * c.image.code_dim + 5, value);
        let sentence = ImageTokenizer::new(&model(&c, &t, dtype)).unwrap_err().sentence();
        assert!(sentence.contains("`image.codebook.weight`: row 7 is not finite"), "{sentence}");
    }
}

#[test]
fn what_is_not_finite_gets_no_code_and_no_pixel() {
    let c = tiny();
    for value in [f32::NAN, f32::INFINITY] {
        let mut t = random_tensors(&c, 6);
        poison(&mut t, "image.encoder.out.bias", 0, value);
        poison(&mut t, "image.decoder.up.2.bias", 1, value);
        let mut images = ImageTokenizer::new(&model(&c, &t, WeightDtype::F32)).unwrap();
        let picture = Picture::rgb(&[100; 16 * 16 * 3], 16, 16);
        for result in [images.encode(picture, &mut vec![]), images.decode(&[0; 4], &mut vec![])] {
            assert!(matches!(result, Err(Error::Session(SessionError::NumericFault))), "{result:?}");
        }
    }
}

#[test]
fn an_image_tokenizer_larger_than_memory_is_refused_before_it_is_made() {
    let mut c = tiny();
    (c.d_model, c.n_heads, c.n_kv_heads, c.head_dim) = (2, 1, 1, 2);
    (c.image.width, c.image.height, c.image.grid) = (4096, 4096, [512, 512]);
    c.image.decoder_channels[2] = 4096;
    let t = random_tensors(&c, 6);
    let sentence = ImageTokenizer::new(&model(&c, &t, WeightDtype::F16)).unwrap_err().sentence();
    // The last map of 4096 channels, once as large as the picture and once before it is enlarged: 256 and 64 GiB. 48 MiB for the
    // resized picture are little beside that, but counted.
    assert!(sentence.starts_with("the image tokenizer of this model needs 3279"), "{sentence}");
}
