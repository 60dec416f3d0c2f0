use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use proptest::prelude::*;

use super::*;

fn gradient(width: u32, height: u32) -> Vec<u8> {
    (0..width * height * 3).map(|i| (i * 7 % 251) as u8).collect()
}

fn jpeg(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 90)
        .write_image(&gradient(width, height), width, height, ExtendedColorType::Rgb8)
        .unwrap();
    bytes
}

fn png(width: u32, height: u32, color: ExtendedColorType) -> Vec<u8> {
    let mut bytes = Vec::new();
    let len = (width * height * u32::from(color.bits_per_pixel()) / 8) as usize;
    let data: Vec<u8> = (0..=255).map(|i: u8| i.wrapping_mul(5)).cycle().take(len).collect();
    PngEncoder::new(&mut bytes).write_image(&data, width, height, color).unwrap();
    bytes
}

/// The picture without its Huffman tables.
fn without_tables(jpeg: &[u8]) -> Vec<u8> {
    let (mut out, mut at) = (jpeg[..2].to_vec(), 2);
    loop {
        let length = 2 + usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
        if jpeg[at + 1] == 0xda {
            out.extend_from_slice(&jpeg[at..]);
            return out;
        }
        if jpeg[at + 1] != 0xc4 {
            out.extend_from_slice(&jpeg[at..at + length]);
        }
        at += length;
    }
}

#[test]
fn a_png_comes_back_exactly_and_a_jpeg_closely() {
    let mut frame = Frame::default();
    decode_picture(&png(5, 3, ExtendedColorType::Rgb8), &mut frame).unwrap();
    assert_eq!((frame.width, frame.height), (5, 3));
    let exact: Vec<u8> = (0..45).map(|i: u8| i * 5).collect();
    assert_eq!(frame.rgb, exact);
    let flat = vec![90; 32 * 16 * 3];
    let mut bytes = Vec::new();
    JpegEncoder::new(&mut bytes).write_image(&flat, 32, 16, ExtendedColorType::Rgb8).unwrap();
    decode_picture(&bytes, &mut frame).unwrap();
    assert_eq!((frame.width, frame.height, frame.rgb.len()), (32, 16, flat.len()));
    assert!(frame.rgb.iter().all(|&x| x.abs_diff(90) <= 2));
}

#[test]
fn grey_alpha_and_deep_pictures_become_rgb() {
    let mut frame = Frame::default();
    for color in
        [ExtendedColorType::L8, ExtendedColorType::La8, ExtendedColorType::Rgba8, ExtendedColorType::Rgb16]
    {
        decode_picture(&png(4, 4, color), &mut frame).unwrap();
        assert_eq!(frame.rgb.len(), 48, "{color:?}");
    }
}

#[test]
fn missing_huffman_tables_are_put_back() {
    let whole = jpeg(40, 24);
    let bare = without_tables(&whole);
    assert!(bare.len() + 400 < whole.len(), "the tables were there");
    let (mut a, mut b) = (Frame::default(), Frame::default());
    let mut decoder = MjpegDecoder::default();
    decoder.decode(&whole, &mut a).unwrap();
    decoder.decode(&bare, &mut b).unwrap();
    assert_eq!(a.rgb, b.rgb);
    assert!(decode_picture(&bare, &mut b).is_err(), "a picture file must be whole");
}

#[test]
fn stale_bytes_behind_the_end_are_not_looked_at() {
    let whole = jpeg(16, 16);
    let mut long = whole.clone();
    long.extend_from_slice(&jpeg(64, 64)[10..]);
    let mut frame = Frame::default();
    MjpegDecoder::default().decode(&long, &mut frame).unwrap();
    assert_eq!((frame.width, frame.height), (16, 16));
    assert_eq!(scan_jpeg(&long).unwrap().end, whole.len());
}

#[test]
fn a_cut_frame_is_refused_wherever_it_is_cut() {
    let whole = jpeg(24, 24);
    let mut frame = Frame::default();
    for cut in 0..whole.len() {
        let error = MjpegDecoder::default().decode(&whole[..cut], &mut frame).unwrap_err();
        assert!(
            matches!(error, FrameError::NoStart | FrameError::NoEnd | FrameError::BadSegment),
            "{cut}: {error}"
        );
    }
}

#[test]
fn a_frame_with_two_thousand_fill_bytes_is_read() {
    let whole = jpeg(16, 16);
    let mut filled = whole[..2].to_vec();
    filled.extend(vec![0xff; 2000]);
    filled.extend_from_slice(&whole[2..]);
    assert_eq!(scan_jpeg(&filled).unwrap().end, filled.len());
}

#[test]
fn a_lying_header_is_refused_before_anything_is_decoded() {
    let mut frame = Frame::default();
    let mut bomb = jpeg(16, 16);
    let sof = bomb.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    bomb[sof + 5..sof + 9].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
    let start = Instant::now();
    let error = MjpegDecoder::default().decode(&bomb, &mut frame).unwrap_err();
    assert_eq!(error, FrameError::TooLarge { width: 65535, height: 65535 });
    assert_eq!(decode_picture(&bomb, &mut frame).unwrap_err(), error);
    let mut bomb = png(16, 16, ExtendedColorType::Rgb8);
    bomb[16..24].copy_from_slice(&[0, 0, 0x20, 0, 0, 0, 0x20, 0]);
    let crc = crc32(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&crc.to_be_bytes());
    let error = decode_picture(&bomb, &mut frame).unwrap_err();
    assert_eq!(error, FrameError::TooLarge { width: 8192, height: 8192 });
    assert!(start.elapsed().as_millis() < 1000, "{:?}", start.elapsed());
    assert_eq!(frame.rgb.capacity(), 0);
}

/// The checksum of PNG chunks, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &b| {
        (0..8).fold(crc ^ u32::from(b), |c, _| (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg()))
    })
}

#[test]
fn what_is_no_picture_is_said_to_be_none() {
    let mut frame = Frame::default();
    assert_eq!(decode_picture(b"hello", &mut frame), Err(FrameError::UnknownKind));
    assert_eq!(decode_picture(b"", &mut frame), Err(FrameError::UnknownKind));
    assert_eq!(scan_jpeg(&[0xff, 0xd8, 0xff, 0xd9]), Err(FrameError::NoHeader));
    assert_eq!(scan_jpeg(&[0xff, 0xd8, 0xff, 0xe0, 0, 1]), Err(FrameError::BadSegment));
}

#[test]
fn buffers_are_reused_between_frames_of_one_size() {
    let bytes = jpeg(32, 32);
    let (mut frame, mut decoder) = (Frame::default(), MjpegDecoder::default());
    decoder.decode(&bytes, &mut frame).unwrap();
    let at = frame.rgb.as_ptr();
    decoder.decode(&bytes, &mut frame).unwrap();
    assert_eq!(frame.rgb.as_ptr(), at);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn flipped_bytes_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut frame = Frame::default();
        for mut bytes in [jpeg(24, 16), png(9, 7, ExtendedColorType::Rgb8)] {
            for (at, value) in &flips {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            if decode_picture(&bytes, &mut frame).is_ok() {
                prop_assert_eq!(frame.rgb.len(), frame.width as usize * frame.height as usize * 3);
            }
            let _ = MjpegDecoder::default().decode(&bytes, &mut frame);
        }
    }

    #[test]
    fn random_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = vec![0xff, 0xd8];
        bytes.extend(tail);
        let _ = scan_jpeg(&bytes);
        let _ = MjpegDecoder::default().decode(&bytes, &mut Frame::default());
    }
}
