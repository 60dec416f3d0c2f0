use std::fs;
use std::time::{Duration, Instant};

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder};

use super::super::avi::tests::avi;
use super::super::{Frame, Pace, Read, SourceOptions, open};
use super::*;

const LONG: Duration = Duration::from_secs(20);

/// A JPEG whose every pixel is about `level`.
fn jpeg(level: u8, (width, height): (u32, u32)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let pixels = vec![level; (width * height * 3) as usize];
    JpegEncoder::new(&mut bytes).write_image(&pixels, width, height, ExtendedColorType::Rgb8).unwrap();
    bytes
}

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

/// The level of every frame up to the end, and the number of damaged ones.
fn play(uri: &str) -> Result<(Vec<u8>, usize), SourceError> {
    let mut source = open(uri, &SourceOptions::default())?;
    let (mut frame, mut levels, mut bad) = (Frame::default(), Vec::new(), 0);
    loop {
        match source.read(&mut frame, LONG) {
            Ok(Read::Frame) => {
                assert_eq!(frame.rgb.len(), (frame.width * frame.height * 3) as usize);
                assert_eq!(frame.seq, (levels.len() + bad) as u64);
                levels.push(frame.rgb[0]);
            }
            Ok(Read::End) => return Ok((levels, bad)),
            Ok(Read::Timeout) => panic!("nothing came"),
            Err(SourceError::BadFrame { .. }) => bad += 1,
            Err(error) => return Err(error),
        }
    }
}

fn sentence(uri: &str) -> String {
    play(uri).map(|_| ()).unwrap_err().to_string()
}

fn near(levels: &[u8], expected: &[u8]) -> bool {
    levels.len() == expected.len() && levels.iter().zip(expected).all(|(a, b)| a.abs_diff(*b) <= 2)
}

#[test]
fn a_folder_and_a_glob_are_read_in_numeric_order() {
    let files: Vec<_> = [10, 50, 90].map(|level| jpeg(level, (16, 16))).into();
    let folder = folder(&[
        ("f10.jpg", &files[2]),
        ("f9.JPG", &files[1]),
        ("f1.jpeg", &files[0]),
        ("note.txt", b"hello"),
        (".hidden.jpg", &files[0]),
        ("sub/f2.jpg", &files[0]),
    ]);
    let at = folder.path().display();
    let (levels, _) = play(&format!("{at}/f*")).unwrap();
    assert!(near(&levels, &[10, 50, 90]), "{levels:?}");
    let (levels, _) = play(&format!("file://{at}/f?.*?loop=1")).unwrap();
    assert!(near(&levels, &[10, 50, 10, 50]), "{levels:?}");
    let (levels, _) = play(&format!("{at}/s*/*.jpg")).unwrap();
    assert!(near(&levels, &[10]), "{levels:?}");
    assert_eq!(play(&format!("{at}")).unwrap().0.len(), 4, "a folder gives its hidden pictures, too");
}

#[test]
fn an_avi_is_played_with_its_rate_and_its_damaged_frames_are_left_out() {
    let mut frames: Vec<_> = (1..=5).map(|i| jpeg(i * 20, (32, 16))).collect();
    let half = frames[2].len() / 2;
    frames[2].truncate(half);
    let folder = folder(&[("a b.avi", &avi(&frames, (32, 16), (25, 1)))]);
    let uri = format!("file://{}/a%20b.avi", folder.path().display());
    let (levels, bad) = play(&uri).unwrap();
    assert!(near(&levels, &[20, 40, 80, 100]), "{levels:?}");
    assert_eq!(bad, 1);
    let source = open(&uri, &SourceOptions::default()).unwrap();
    let is = source.description();
    assert_eq!((is.width, is.height, is.rate_hz, is.live), (32, 16, Some(25.0), false));
    assert_eq!((is.kind.as_str(), is.pace), ("MJPEG AVI", Pace::All));
    let (levels, bad) = play(&format!("{uri}?loop=2")).unwrap();
    assert_eq!((levels.len(), bad), (12, 3));
}

#[test]
fn real_time_takes_as_long_as_the_clip() {
    let frames: Vec<_> = (0..6).map(|_| jpeg(9, (16, 16))).collect();
    let folder = folder(&[("a.avi", &avi(&frames, (16, 16), (1, 1)))]);
    let start = Instant::now();
    play(&format!("{}/a.avi?pace=real&rate=50", folder.path().display())).unwrap();
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(99) && took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn the_uri_wins_over_the_options() {
    let folder = folder(&[("a.jpg", &jpeg(9, (16, 16)))]);
    let at = folder.path().join("a.jpg");
    let options = SourceOptions { pace: Pace::Real, rate_hz: Some(5.0), ..SourceOptions::default() };
    let by_options = open(&at.display().to_string(), &options).unwrap();
    assert_eq!((by_options.description().pace, by_options.description().rate_hz), (Pace::Real, Some(5.0)));
    let by_uri = open(&format!("{}?pace=all&rate=7", at.display()), &options).unwrap();
    assert_eq!((by_uri.description().pace, by_uri.description().rate_hz), (Pace::All, Some(7.0)));
}

#[test]
fn damaged_pictures_of_a_folder_are_counted_and_a_folder_of_them_is_refused() {
    let good = jpeg(60, (16, 16));
    let mixed =
        folder(&[("1.jpg", b"\xff\xd8\xff broken"), ("2.jpg", &good), ("3.png", b"\x89PNG\r\n\x1a\n")]);
    let (levels, bad) = play(&mixed.path().display().to_string()).unwrap();
    assert_eq!((levels.len(), bad), (1, 2));
    let all_bad = folder(&[("1.jpg", &good[..good.len() / 2]), ("2.jpg", b"")]);
    let sentence = sentence(&all_bad.path().display().to_string());
    assert!(sentence.contains("none of its 2 frames can be decoded"), "{sentence}");
}

#[test]
fn bad_input_gets_one_sentence_each() {
    let cut = avi(&[jpeg(1, (16, 16))], (16, 16), (25, 1));
    let folder = folder(&[
        ("text.avi", b"this is not a video\n"),
        ("text.mp4", "ein Text, kein Film: ä\n".as_bytes()),
        ("empty.png", b""),
        ("corrupt.jpg", &jpeg(1, (64, 64))[..200]),
        ("wave.avi", b"RIFF\x04\0\0\0WAVEfmt \x10\0\0\0"),
        ("nothing.avi", &avi(&[], (16, 16), (25, 1))),
        ("huge.avi", &avi(&[], (20000, 20000), (25, 1))),
        ("cut.avi", &cut[..100]),
        ("none/readme", b"x"),
    ]);
    let at = folder.path().display();
    for (path, part) in [
        ("text.avi", "neither a picture nor a video"),
        ("text.mp4", "neither a picture nor a video"),
        ("empty.png", "neither a picture nor a video"),
        ("corrupt.jpg", "the JPEG data ends before its end marker; give another file"),
        ("nothing.avi", "this video holds no frame"),
        ("huge.avi", "at most 4096 by 4096"),
        ("cut.avi", "ends inside its header"),
        ("none", "no picture matches"),
        ("*.bmp", "no picture matches"),
        ("missing.avi", "no such file or folder"),
        ("text.avi?width=3", "unknown option `width`; known here: pace, loop, rate"),
        ("text.avi?pace=slow", "`pace=slow` is not possible; give `all`"),
    ] {
        let said = sentence(&format!("{at}/{path}"));
        assert!(said.contains(part), "{path}: {said}");
        assert!(!said.contains('\n'), "{said}");
    }
}

#[test]
fn a_pipe_is_refused_instead_of_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe.jpg");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("skipped: there is no mkfifo");
        return;
    }
    assert!(sentence(&path.display().to_string()).contains("neither a picture nor a video"));
    assert!(sentence("/dev/zero").contains("neither a picture nor a video"));
}

#[test]
fn kinds_are_told_by_their_bytes() {
    assert_eq!(sniff(b"\xff\xd8\xff\xe0"), Kind::Picture);
    assert_eq!(sniff(b"RIFF\0\0\0\0AVI LIST"), Kind::Avi);
    assert_eq!(sniff(b"\0\0\0\x20ftypisom"), Kind::Video);
    assert_eq!(sniff("text, cut inside an ä".as_bytes().split_last().unwrap().1), Kind::Other);
    assert_eq!(sniff(b""), Kind::Other);
}

#[test]
fn the_shipped_clip_plays_to_its_end() {
    let clip = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/clips/metaworld.avi");
    let (levels, bad) = play(clip).unwrap();
    assert!(levels.len() >= 120, "{}", levels.len());
    assert_eq!(bad, 0);
}
