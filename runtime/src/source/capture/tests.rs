use std::fs;
use std::iter::repeat_n;
use std::path::Path;

use super::super::fake::{Fake, Step};
use super::*;

const LONG: Duration = Duration::from_secs(20);

/// A capture of a fake camera that reopens at once, and the folder of its device.
fn start(name: &str, script: impl IntoIterator<Item = Step>, pace: Pace) -> (Capture, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::new(folder.path().join("device"), script).with_pace(pace);
    (Capture::start(Box::new(fake), &quick(name)).unwrap(), folder)
}

fn quick(name: &str) -> CaptureOptions {
    let backoff = Backoff { first: Duration::ZERO, longest: Duration::ZERO };
    CaptureOptions { name: name.to_owned(), backoff, stop_timeout: Duration::from_millis(200) }
}

fn take_all(capture: &Capture) -> Vec<u64> {
    let (mut frame, mut seen) = (Frame::default(), Vec::new());
    loop {
        match capture.take(&mut frame, LONG).unwrap() {
            Taken::Frame { .. } => {
                assert!(
                    frame.rgb.iter().all(|&x| u64::from(x) == frame.seq % 256),
                    "a damaged frame came through"
                );
                seen.push(frame.seq);
            }
            Taken::Timeout => panic!("nothing came: {:?}", capture.stats()),
            Taken::End => return seen,
        }
    }
}

/// Open files of this process below `folder`.
fn open_files(folder: &Path) -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
    links.filter(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.starts_with(folder))).count()
}

/// Threads of this process of this name.
fn threads(name: &str) -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks.filter(|t| fs::read_to_string(t.path().join("comm")).is_ok_and(|comm| comm.trim() == name)).count()
}

#[test]
fn every_frame_comes_in_order_when_all_are_wanted() {
    let (capture, _folder) = start("cap-all", repeat_n(Step::Good, 300), Pace::All);
    assert_eq!(take_all(&capture), (0..300).collect::<Vec<_>>());
    let stats = capture.stats();
    assert_eq!((stats.frames, stats.dropped, stats.stalls, stats.state), (300, 0, 0, CaptureState::Ended));
    assert_eq!(capture.stop(), Stopped::Clean);
}

#[test]
fn a_slow_reader_gets_the_newest_frame_and_the_counters_add_up() {
    let (capture, _folder) = start("cap-real", repeat_n(Step::Good, 300), Pace::Real);
    while capture.stats().state != CaptureState::Ended {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(take_all(&capture), [299]);
    let stats = capture.stats();
    assert_eq!((stats.frames, stats.dropped), (300, 299));
    assert!(stats.last_age.is_some());
}

#[test]
fn bad_frames_are_counted_and_never_published() {
    let script = (0..3000).map(|i| if i % 3 == 2 { Step::Bad } else { Step::Good });
    let (capture, _folder) = start("cap-bad", script, Pace::All);
    let seen = take_all(&capture);
    assert_eq!(seen.len(), 2000);
    assert!(seen.iter().all(|seq| seq % 3 != 2));
    let stats = capture.stats();
    assert_eq!((stats.frames, stats.bad_frames), (2000, 1000));
}

#[test]
fn a_stalled_camera_is_flagged_in_time_and_reopened() {
    let script = [Step::Good, Step::Silent(1000), Step::Good];
    let (capture, _folder) = start("cap-stall", script, Pace::All);
    let mut frame = Frame::default();
    assert!(matches!(capture.take(&mut frame, LONG).unwrap(), Taken::Frame { .. }));
    let silent_since = Instant::now();
    assert!(matches!(capture.take(&mut frame, LONG).unwrap(), Taken::Frame { .. }));
    let silent = silent_since.elapsed();
    // Half a second, plus one read and a share of a busy machine.
    assert!(silent >= Duration::from_millis(450) && silent < Duration::from_secs(10), "{silent:?}");
    let stats = capture.stats();
    assert_eq!((stats.stalls, stats.reopens, stats.frames), (1, 1, 2));
}

#[test]
fn a_camera_that_is_silent_from_the_start_is_flagged_and_reopened_until_it_speaks() {
    let (capture, folder) =
        start("cap-mute", [Step::Silent(1000), Step::Silent(1000), Step::Good], Pace::Real);
    let mut frame = Frame::default();
    let start = Instant::now();
    assert_eq!(capture.take(&mut frame, Duration::from_millis(100)).unwrap(), Taken::Timeout);
    assert_eq!(capture.stats().state, CaptureState::Starting);
    assert!(matches!(capture.take(&mut frame, LONG).unwrap(), Taken::Frame { .. }));
    // Twice the three seconds that a first frame has.
    assert!(start.elapsed() >= Duration::from_millis(5900), "{:?}", start.elapsed());
    let stats = capture.stats();
    assert_eq!((stats.stalls, stats.reopens, stats.frames), (2, 2, 1));
    assert_eq!(capture.stop(), Stopped::Clean);
    assert_eq!((open_files(folder.path()), threads("cap-mute")), (0, 0));
}

#[test]
fn a_camera_that_vanishes_and_returns_a_thousand_times_leaks_nothing() {
    let script = (0..1000).flat_map(|i| [Step::Good, Step::Bad, Step::Vanish(i % 4), Step::Good]);
    let (capture, folder) = start("cap-vanish", script, Pace::All);
    let folder_path = folder.path().to_path_buf();
    let (mut frame, mut buffers) = (Frame::default(), std::collections::HashSet::new());
    for taken in 0..2000 {
        assert!(matches!(capture.take(&mut frame, LONG).unwrap(), Taken::Frame { .. }), "{taken}");
        buffers.insert(frame.rgb.as_ptr() as usize);
    }
    assert!(matches!(capture.take(&mut frame, LONG).unwrap(), Taken::End));
    let stats = capture.stats();
    assert_eq!((stats.frames, stats.reopens, stats.bad_frames), (2000, 1000, 1000));
    assert_eq!(buffers.len(), 3, "three buffers go round");
    assert_eq!(capture.stop(), Stopped::Clean);
    assert_eq!((open_files(&folder_path), threads("cap-vanish")), (0, 0));
}

#[test]
fn a_camera_that_stays_away_does_not_keep_the_reader_or_the_stop_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::new(folder.path().join("device"), [Step::Good, Step::Vanish(u32::MAX)]);
    let slow = Backoff { first: LONG, longest: LONG };
    let capture =
        Capture::start(Box::new(fake), &CaptureOptions { backoff: slow, ..quick("cap-away") }).unwrap();
    let mut frame = Frame::default();
    assert!(matches!(capture.take(&mut frame, LONG).unwrap(), Taken::Frame { .. }));
    let start = Instant::now();
    assert_eq!(capture.take(&mut frame, Duration::from_millis(20)).unwrap(), Taken::Timeout);
    assert_eq!(capture.stats().state, CaptureState::Reopening);
    assert_eq!(capture.stop(), Stopped::Clean);
    assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
    assert_eq!((open_files(folder.path()), threads("cap-away")), (0, 0));
}

#[test]
fn a_thread_that_is_stuck_in_its_driver_is_noticed_left_behind_and_ends_later() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::new(folder.path().join("device"), [Step::Good, Step::Stuck, Step::Good]);
    let gate = Arc::clone(&fake.gate);
    let capture = Capture::start(Box::new(fake), &quick("cap-stuck")).unwrap();
    let mut frame = Frame::default();
    assert!(matches!(capture.take(&mut frame, LONG).unwrap(), Taken::Frame { .. }));
    assert_eq!(capture.take(&mut frame, Duration::from_millis(700)).unwrap(), Taken::Timeout);
    let stats = capture.stats();
    assert_eq!((stats.state, stats.stalls), (CaptureState::Stalled, 1));
    assert_eq!(capture.stop(), Stopped::LeftBehind);
    assert_eq!(threads("cap-stuck"), 1);
    gate.open();
    let deadline = Instant::now() + LONG;
    while threads("cap-stuck") > 0 {
        assert!(Instant::now() < deadline, "the thread never ended");
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(open_files(folder.path()), 0);
}

#[test]
fn a_source_that_panics_ends_the_capture_with_a_sentence() {
    let (capture, folder) = start("cap-panic", [Step::Good, Step::Panic], Pace::All);
    let mut frame = Frame::default();
    assert!(matches!(capture.take(&mut frame, LONG).unwrap(), Taken::Frame { .. }));
    let error = capture.take(&mut frame, LONG).unwrap_err().to_string();
    assert!(error.contains("has died of a panic; start the capture again"), "{error}");
    assert_eq!(capture.take(&mut frame, LONG).unwrap(), Taken::End);
    assert_eq!(capture.stats().state, CaptureState::Failed);
    assert_eq!(capture.stop(), Stopped::Clean);
    assert_eq!((open_files(folder.path()), threads("cap-panic")), (0, 0));
}

#[test]
fn a_reader_that_leaves_in_the_middle_frees_a_writer_that_waits() {
    let (capture, folder) = start("cap-leave", repeat_n(Step::Good, 1000), Pace::All);
    let mut frame = Frame::default();
    assert!(matches!(capture.take(&mut frame, LONG).unwrap(), Taken::Frame { .. }));
    drop(capture);
    assert_eq!((open_files(folder.path()), threads("cap-leave")), (0, 0));
}

#[test]
fn a_slow_reader_is_no_stall_of_the_source() {
    let (capture, _folder) = start("cap-slow", repeat_n(Step::Good, 5), Pace::All);
    thread::sleep(Duration::from_millis(700));
    assert_eq!(capture.stats().stalls, 0);
    assert_eq!(take_all(&capture).len(), 5);
}
