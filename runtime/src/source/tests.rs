use super::*;
use crate::picture::tests::{formats, noise};

const LONG: Duration = Duration::from_secs(20);

fn sentence(uri: &str) -> String {
    open(uri, &SourceOptions::default()).err().unwrap().to_string()
}

#[test]
fn the_pattern_has_the_frames_that_were_asked_for() {
    let mut source =
        open("test://pattern?width=320&height=16&frames=3&loop=1", &SourceOptions::default()).unwrap();
    assert_eq!((source.description().width, source.description().height), (320, 16));
    let mut frame = Frame::default();
    let mut first = Vec::new();
    for seq in 0..6 {
        assert_eq!(source.read(&mut frame, LONG).unwrap(), Read::Frame);
        assert_eq!((frame.seq, frame.width, frame.height, frame.rgb.len()), (seq, 320, 16, 320 * 16 * 3));
        if seq == 0 {
            first.clone_from(&frame.rgb);
        }
        assert_eq!(frame.rgb == first, seq % 3 == 0);
    }
    assert_eq!(source.read(&mut frame, LONG).unwrap(), Read::End);
    assert_eq!(source.read(&mut frame, LONG).unwrap(), Read::End);
}

#[test]
fn options_set_what_the_uri_leaves_open() {
    let options =
        SourceOptions { width: Some(48), height: Some(32), rate_hz: Some(9.0), ..Default::default() };
    let source = open("test://pattern?width=64", &options).unwrap();
    let is = source.description();
    assert_eq!((is.width, is.height, is.rate_hz), (64, 32, Some(9.0)));
}

#[test]
fn unknown_options_are_listed_with_the_known_ones() {
    let said = sentence("test://pattern?size=3");
    assert!(
        said.ends_with("unknown option `size`; known here: width, height, rate, frames, pace, loop"),
        "{said}"
    );
    assert!(sentence("test://pattern?width=10000").contains("from 16 to 4096"));
}

#[test]
fn a_file_cannot_be_reopened() {
    let mut source = open("test://pattern", &SourceOptions::default()).unwrap();
    assert!(source.reopen().unwrap_err().to_string().contains("open it anew"));
}

#[cfg(not(feature = "v4l2"))]
#[test]
fn a_build_without_cameras_says_how_to_get_them() {
    let said = sentence("/dev/video0");
    assert!(said.contains("build with `--features v4l2`"), "{said}");
    assert!(sentence("v4l2:///dev/video0?frames=3").contains("known here: width, height, rate"));
}

#[test]
fn the_monotonic_clock_runs_forward_and_an_age_counts_from_the_capture() {
    let start = monotonic_ns();
    let frame = Frame { capture_ns: start, ..Frame::default() };
    std::thread::sleep(Duration::from_millis(5));
    assert!(monotonic_ns() >= start + 5_000_000);
    assert!(frame.age() >= Duration::from_millis(5));
}

#[test]
fn every_recovery_fits_its_error() {
    let origin = || "x".to_owned();
    let bad = SourceError::BadFrame { origin: origin(), seq: 0, reason: FrameError::NoEnd };
    assert_eq!(bad.recovery(), Recovery::Skip);
    assert_eq!(SourceError::Vanished { origin: origin() }.recovery(), Recovery::Reopen);
    assert_eq!(SourceError::NotAVideo { path: "x".into() }.recovery(), Recovery::Stop);
}

#[test]
fn frames_take_whole_buffers_and_refuse_too_few_bytes() {
    for (format, stride, bytes) in formats(5, 3) {
        let (mut raw, mut rgb) = (Frame::default(), Frame::default());
        let mut both = |bytes, height| {
            let picture = Picture { bytes, format, width: 5, height, stride };
            let taken = raw.take_raw(picture);
            assert_eq!(rgb.take_rgb(picture), taken);
            taken
        };
        let (expected, found) = (bytes.len(), bytes.len() - 1);
        assert_eq!(both(&bytes[1..], 3), Err(FrameError::Short { expected, found }), "{format}");
        assert_eq!(both(&bytes, 0), Err(FrameError::Empty), "{format}");
        assert_eq!(both(&[&bytes[..], &[9; 100]].concat(), 3), Ok(()), "{format}");
        assert_eq!((rgb.width, rgb.height, rgb.rgb.len(), rgb.raw.len()), (5, 3, 45, 0));
        assert_eq!((raw.width, raw.height, raw.rgb.len(), &raw.raw), (5, 3, 0, &bytes));
        assert_eq!((raw.picture().format, raw.picture().stride), (format, stride));
        raw.fill_rgb();
        assert_eq!(raw.rgb, rgb.rgb, "{format}");
        assert_eq!(rgb.picture().bytes, rgb.rgb);
    }
}

#[test]
fn a_raw_frame_without_pixels_stays_without() {
    let mut frame = Frame { raw: vec![1; 9], raw_format: PixelFormat::Grey, ..Frame::default() };
    frame.fill_rgb();
    assert!(frame.rgb.is_empty());
}

#[test]
fn raw_frames_keep_their_buffers_and_nothing_of_one_is_left_in_the_next() {
    let bytes = noise(8, 6);
    let mut frame = Frame::default();
    let mut places = || {
        frame
            .take_raw(Picture { bytes: &bytes, format: PixelFormat::Yuyv, width: 8, height: 6, stride: 0 })
            .unwrap();
        frame.fill_rgb();
        let places = (frame.raw.as_ptr(), frame.rgb.as_ptr());
        frame.take_rgb(Picture::rgb(&bytes, 8, 6)).unwrap();
        frame.fill_rgb();
        assert_eq!((frame.picture().format, frame.picture().bytes), (PixelFormat::Rgb, &bytes[..]));
        places
    };
    assert_eq!(places(), places());
}
