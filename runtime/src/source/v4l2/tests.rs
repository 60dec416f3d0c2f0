//! Against the kernel's virtual camera (`modprobe vivid n_devs=1 node_types=0x1 num_inputs=1 input_types=0x0`):
//! `cargo test --release -p saccade --features v4l2 -- --ignored vivid`.

use std::fs;

use super::super::*;

const LONG: Duration = Duration::from_secs(10);

fn vivid() -> String {
    let cameras = list_cameras();
    let camera = cameras.iter().find(|camera| camera.name.contains("vivid"));
    camera.unwrap_or_else(|| panic!("load vivid first; there is {cameras:?}")).node.display().to_string()
}

/// Opens, reads some frames and checks that they are alive.
fn watch(options: &str, frames: usize) -> (Description, Vec<Frame>) {
    let mut source = open(&format!("v4l2://{}{options}", vivid()), &SourceOptions::default()).unwrap();
    let (mut frame, mut seen) = (Frame::default(), Vec::new());
    while seen.len() < frames {
        match source.read(&mut frame, LONG).unwrap() {
            Read::Frame => {
                assert!(frame.age() < LONG, "{:?}", frame.age());
                seen.push(frame.clone());
            }
            other => panic!("{other:?}"),
        }
    }
    let is = source.description().clone();
    for pair in seen.windows(2) {
        assert!(pair[0].seq < pair[1].seq && pair[0].capture_ns < pair[1].capture_ns);
    }
    for frame in &seen {
        assert_eq!((frame.width, frame.height), (is.width, is.height));
        // Colour bars: some pixel is bright, some dark.
        assert!(frame.rgb.iter().any(|&x| x > 150) && frame.rgb.iter().any(|&x| x < 60));
    }
    (is, seen)
}

#[test]
#[ignore = "needs the vivid driver"]
fn vivid_hands_out_its_frames_raw_where_that_is_asked_for() {
    let options = SourceOptions { raw: true, ..SourceOptions::default() };
    let mut source = open(&format!("v4l2://{}?width=640&height=360", vivid()), &options).unwrap();
    let mut frame = Frame::default();
    assert_eq!(source.read(&mut frame, LONG).unwrap(), Read::Frame);
    assert_ne!(frame.picture().format, PixelFormat::Rgb, "vivid has formats that come before it");
    assert!(frame.rgb.is_empty());
    frame.fill_rgb();
    assert!(frame.rgb.iter().any(|&x| x > 150) && frame.rgb.iter().any(|&x| x < 60));
}

fn open_nodes() -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
    links.filter(|fd| fs::read_link(fd.path()).is_ok_and(|t| t.starts_with("/dev/video"))).count()
}

fn mapped_nodes() -> usize {
    fs::read_to_string("/proc/self/maps").unwrap().matches("/dev/video").count()
}

#[test]
#[ignore = "needs the vivid driver"]
fn vivid_gives_frames_at_a_whole_rate_through_nokhwa() {
    let (is, _) = watch("?width=640&height=360&rate=30", 10);
    assert_eq!((is.width, is.height), (640, 360), "{is:?}");
    assert!(is.kind.ends_with("through nokhwa"), "{is:?}");
    assert_eq!((open_nodes(), mapped_nodes()), (0, 0));
}

#[test]
#[ignore = "needs the vivid driver"]
fn vivid_gives_frames_at_a_fractional_rate() {
    let (is, _) = watch("?width=320&height=180&rate=12.5", 5);
    assert_eq!(is.rate_hz, Some(12.5), "{is:?}");
    assert!(is.kind.ends_with("read directly"), "{is:?}");
    assert_eq!((open_nodes(), mapped_nodes()), (0, 0));
}

#[test]
#[ignore = "needs the vivid driver, and something that switches its control `disconnect` once a second"]
fn vivid_comes_back_after_every_disconnect() {
    let source = open(&vivid(), &SourceOptions::default()).unwrap();
    let capture = Capture::start(source, &CaptureOptions::default()).unwrap();
    let mut frame = Frame::default();
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while std::time::Instant::now() < end && capture.stats().reopens < 5 {
        let _ = capture.take(&mut frame, Duration::from_millis(100)).unwrap();
    }
    let stats = capture.stats();
    assert!(stats.reopens >= 5, "{stats:?}");
    assert_eq!(capture.stop(), Stopped::Clean);
    assert_eq!((open_nodes(), mapped_nodes()), (0, 0));
}

#[test]
fn a_missing_camera_and_a_wrong_pace_get_a_sentence() {
    let said = |uri: &str| open(uri, &SourceOptions::default()).err().unwrap().to_string();
    assert!(said("/dev/video9999").contains("no such camera"), "{}", said("/dev/video9999"));
    assert!(said("/dev/video9999?pace=all").contains("which a camera always is"));
    assert!(said("/dev/video9999?loop=1").contains("known here: width, height, rate, pace"));
}
