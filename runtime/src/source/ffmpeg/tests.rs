use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::super::error::Recovery;
use super::super::{Pace, Read as Taken, Source as _, SourceOptions, open};
use super::*;
use crate::source::uri::Repeat;

const PLAYBACK: Playback = Playback { pace: Pace::All, repeat: Repeat::Times(0), rate_hz: None };

/// A clip of 12 frames of 64 by 48 at 12 frames a second, or nothing where there is no ffmpeg.
fn clip(folder: &Path) -> Option<PathBuf> {
    let path = folder.join("clip.mkv");
    let made = Command::new("ffmpeg")
        .args([
            "-nostdin",
            "-loglevel",
            "error",
            "-f",
            "lavfi",
            "-i",
            "testsrc=size=64x48:rate=12:duration=1",
        ])
        .args(["-c:v", "ffv1"])
        .arg(&path)
        .status();
    let there = made.is_ok_and(|status| status.success());
    if !there {
        eprintln!("skipped: there is no ffmpeg");
    }
    there.then_some(path)
}

fn count(uri: &str) -> Result<usize, SourceError> {
    let mut source = open(uri, &SourceOptions::default())?;
    // A camera was read into it before.
    let (mut frame, mut frames) = (Frame { raw: vec![7; 9], ..Frame::default() }, 0);
    loop {
        match source.read(&mut frame, Duration::from_secs(10)) {
            Ok(Taken::Frame) => {
                assert_eq!((frame.width, frame.height, frame.rgb.len()), (64, 48, 64 * 48 * 3));
                assert!(frame.raw.is_empty());
                assert!(frame.rgb.iter().any(|&x| x > 200), "the test picture is colourful");
                frames += 1;
            }
            Ok(Taken::End) => return Ok(frames),
            Ok(Taken::Timeout) => panic!("nothing came"),
            Err(error) if error.recovery() == Recovery::Skip => {}
            Err(error) => return Err(error),
        }
    }
}

#[test]
fn a_video_is_read_completely_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let Some(clip) = clip(folder.path()) else { return };
    assert_eq!(count(&clip.display().to_string()).unwrap(), 12);
    assert_eq!(count(&format!("{}?loop=2", clip.display())).unwrap(), 36);
    let source = open(&clip.display().to_string(), &SourceOptions::default()).unwrap();
    let is = source.description();
    assert_eq!((is.width, is.height, is.rate_hz), (64, 48, Some(12.0)));
}

#[test]
fn a_name_that_looks_like_an_option_or_protocol_is_a_name() {
    let folder = tempfile::tempdir().unwrap();
    let Some(clip) = clip(folder.path()) else { return };
    for name in ["-i.mkv", "concat:x.mkv"] {
        let path = folder.path().join(name);
        fs::copy(&clip, &path).unwrap();
        assert_eq!(count(&path.display().to_string()).unwrap(), 12, "{name}");
    }
}

#[test]
fn what_is_no_video_is_refused_with_what_ffmpeg_says() {
    let folder = tempfile::tempdir().unwrap();
    if clip(folder.path()).is_none() {
        return;
    }
    let path = folder.path().join("noise.mp4");
    fs::write(&path, [7, 0, 200, 255].repeat(1000)).unwrap();
    let said = count(&path.display().to_string()).unwrap_err().to_string();
    assert!(said.contains("noise.mp4: ffmpeg cannot read this video: "), "{said}");
    assert!(!said.contains('\n'), "{said}");
}

#[test]
fn a_video_that_is_cut_off_gives_its_frames_and_then_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let Some(clip) = clip(folder.path()) else { return };
    let whole = fs::read(&clip).unwrap();
    let path = folder.path().join("cut.mkv");
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let mut source = open(&path.display().to_string(), &SourceOptions::default()).unwrap();
    let (mut frame, mut frames) = (Frame::default(), 0);
    let said = loop {
        match source.read(&mut frame, Duration::from_secs(10)) {
            Ok(Taken::Frame) => frames += 1,
            Ok(other) => panic!("{other:?} after {frames} frames"),
            Err(error) if error.recovery() == Recovery::Skip => {}
            Err(error) => break error.to_string(),
        }
    };
    assert!((1..12).contains(&frames), "{frames}");
    assert!(said.contains(&format!("cut.mkv: this video is damaged: ffmpeg gave {frames} frames")), "{said}");
    assert!(!said.contains('\n') && !said.contains("[error]"), "{said}");
    assert_eq!(source.read(&mut frame, Duration::ZERO).unwrap(), Taken::End, "said once");
}

/// A program in ffmpeg's place: two pictures, then these shell commands.
fn pretender(folder: &Path, commands: &str) -> &'static str {
    let path = folder.join("pretender");
    let picture = r"printf 'P6\n1 1\n255\nabc'";
    fs::write(&path, format!("#!/bin/sh\n{picture}\n{picture}\n{commands}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    Box::leak(path.display().to_string().into_boxed_str())
}

#[test]
fn how_the_child_ends_and_what_it_said_reach_the_user() {
    for (commands, expected) in [
        ("exit 0", None),
        ("echo '[info] all is well' >&2", None),
        ("exit 3", Some("it ended with exit status: 3")),
        ("kill -9 $$", Some("it ended with signal: 9 (SIGKILL)")),
        ("echo '[mkv @ 0x1] [error] the tape is torn' >&2; echo '[info] bye' >&2", Some("the tape is torn")),
        ("echo '[fatal] first' >&2; echo '[error] second' >&2; exit 1", Some("second")),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let program = pretender(folder.path(), commands);
        let mut video = Ffmpeg::open_with(program, Path::new("a.mkv"), "a.mkv", PLAYBACK).unwrap();
        let mut frame = Frame::default();
        for _ in 0..2 {
            assert_eq!(video.read(&mut frame, OPEN_TIMEOUT).unwrap(), Taken::Frame);
        }
        let ended = video.read(&mut frame, OPEN_TIMEOUT);
        match expected {
            None => assert_eq!(ended.unwrap(), Taken::End, "{commands}"),
            Some(said) => {
                let error = ended.unwrap_err();
                assert_eq!(error.recovery(), Recovery::Stop);
                let error = error.to_string();
                assert!(error.contains("gave 2 frames") && error.contains(said), "{commands}: {error}");
            }
        }
    }
}

#[test]
fn a_damaged_video_that_repeats_ends_with_its_last_pass() {
    let folder = tempfile::tempdir().unwrap();
    let program = pretender(folder.path(), "exit 3");
    let playback = Playback { repeat: Repeat::Times(1), ..PLAYBACK };
    let mut video = Ffmpeg::open_with(program, Path::new("a.mkv"), "a.mkv", playback).unwrap();
    let mut frame = Frame::default();
    for seq in 0..4 {
        assert_eq!(video.read(&mut frame, OPEN_TIMEOUT).unwrap(), Taken::Frame);
        assert_eq!(frame.seq, seq);
    }
    assert!(video.read(&mut frame, OPEN_TIMEOUT).unwrap_err().to_string().contains("exit status: 3"));
}

#[test]
fn a_missing_ffmpeg_is_said_with_the_remedy() {
    let error = Ffmpeg::open_with("no-such-ffmpeg", Path::new("a.mkv"), "a.mkv", PLAYBACK).err().unwrap();
    let said = error.to_string();
    assert!(said.starts_with("a.mkv: this video needs the ffmpeg program"), "{said}");
    assert!(said.contains("apt-get install ffmpeg"), "{said}");
}

#[test]
fn a_program_that_is_not_ffmpeg_is_refused() {
    let error = Ffmpeg::open_with("yes", Path::new("a.mkv"), "a.mkv", PLAYBACK).err().unwrap().to_string();
    assert!(error.contains("ffmpeg cannot read this video: "), "{error}");
}

#[test]
fn dropping_a_source_ends_its_child() {
    let folder = tempfile::tempdir().unwrap();
    let Some(clip) = clip(folder.path()) else { return };
    let mut video = Process::start("ffmpeg", &clip).unwrap();
    let mut byte = [0];
    assert!(matches!(video.read(&mut byte, Instant::now() + OPEN_TIMEOUT), Ok(Step::Done)));
    let proc = PathBuf::from(format!("/proc/{}", video.child.id()));
    assert!(proc.exists());
    drop(video);
    assert!(!proc.exists());
}

#[test]
fn heads_and_rates_are_parsed() {
    assert_eq!(parse_head(b"P6\n640 480\n255\n"), Some((640, 480)));
    assert_eq!(parse_head(b"P6\n640 480\n255"), None, "not complete without the blank behind it");
    assert_eq!(parse_head(b"P6\n640 480\n65535\n"), None);
    assert_eq!(parse_head(b"P5\n640 480\n255\n"), None);
    assert_eq!(parse_head(b"P6\n-1 480\n255\n"), None);
    let line =
        "Stream #0:0(eng): Video: h264 (High), yuv420p, 640x480 [SAR 1:1], 1 kb/s, 29.97 fps, 30 tbr, 1k tbn";
    assert_eq!(parse_rate(line), Some(29.97));
    assert_eq!(parse_rate("Stream #0:1: Audio: aac, 44100 Hz"), None);
    assert_eq!(parse_rate("Video: h264, 90k fps"), None);
    assert_eq!(parse_complaint("[h264 @ 0x55] [error] missing picture"), Some("missing picture"));
    assert_eq!(parse_complaint("[fatal] no room"), Some("no room"));
    assert_eq!(parse_complaint("[info] title: [error] in the title"), None);
}
