use std::io::Cursor;

use proptest::prelude::*;

use super::*;

/// A chunk of an AVI file: id, size, contents, pad byte.
pub(in super::super) fn chunk(id: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut out = id.to_vec();
    out.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
    out.extend_from_slice(body);
    out.resize(out.len().next_multiple_of(2), 0);
    out
}

fn list(id: &[u8; 4], kind: &[u8; 4], chunks: &[Vec<u8>]) -> Vec<u8> {
    chunk(id, &[kind.to_vec(), chunks.concat()].concat())
}

fn stream(kind: &[u8; 4], codec: &[u8; 4], (width, height): (u32, u32), rate: (u32, u32)) -> Vec<u8> {
    let mut strh = [kind.to_vec(), codec.to_vec(), vec![0; 12]].concat();
    strh.extend(rate.1.to_le_bytes());
    strh.extend(rate.0.to_le_bytes());
    strh.extend([0; 24]);
    let mut strf = 40u32.to_le_bytes().to_vec();
    strf.extend([width.to_le_bytes(), height.to_le_bytes(), [1, 0, 24, 0], *codec].concat());
    strf.resize(40, 0);
    list(b"LIST", b"strl", &[chunk(b"strh", &strh), chunk(b"strf", &strf)])
}

fn header(streams: &[Vec<u8>]) -> Vec<u8> {
    let mut avih = 40_000u32.to_le_bytes().to_vec();
    avih.resize(56, 0);
    list(b"LIST", b"hdrl", &[vec![chunk(b"avih", &avih)], streams.to_vec()].concat())
}

/// A whole MJPEG AVI of these frames.
pub(in super::super) fn avi(frames: &[Vec<u8>], size: (u32, u32), rate: (u32, u32)) -> Vec<u8> {
    let frames: Vec<_> = frames.iter().map(|frame| chunk(b"00dc", frame)).collect();
    let parts = [header(&[stream(b"vids", b"MJPG", size, rate)]), list(b"LIST", b"movi", &frames)];
    list(b"RIFF", b"AVI ", &parts)
}

/// All whole frames, and how the walk ended.
fn read_all(bytes: &[u8]) -> Result<(Vec<Vec<u8>>, AviFrame), AviError> {
    let mut avi = AviReader::open(Cursor::new(bytes))?;
    let (mut frames, mut buffer) = (Vec::new(), Vec::new());
    loop {
        match avi.next_frame(&mut buffer)? {
            AviFrame::Whole => frames.push(buffer.clone()),
            end => return Ok((frames, end)),
        }
    }
}

fn some_frames() -> Vec<Vec<u8>> {
    (1..6u8).map(|i| vec![i; 5 * usize::from(i)]).collect()
}

#[test]
fn frames_and_header_come_back() {
    let bytes = avi(&some_frames(), (64, 48), (30000, 1001));
    assert_eq!(read_all(&bytes).unwrap(), (some_frames(), AviFrame::End));
    let avi = AviReader::open(Cursor::new(bytes)).unwrap();
    let header = avi.header();
    assert_eq!((header.codec.as_str(), header.width, header.height), ("MJPG", 64, 48));
    assert!((header.rate_hz.unwrap() - 30000.0 / 1001.0).abs() < 1e-9);
}

#[test]
fn rewinding_starts_again() {
    let bytes = avi(&some_frames(), (64, 48), (25, 1));
    let mut avi = AviReader::open(Cursor::new(bytes)).unwrap();
    let mut buffer = Vec::new();
    for _ in 0..3 {
        for frame in some_frames() {
            assert_eq!(avi.next_frame(&mut buffer).unwrap(), AviFrame::Whole);
            assert_eq!(buffer, frame);
        }
        assert_eq!(avi.next_frame(&mut buffer).unwrap(), AviFrame::End);
        assert_eq!(avi.next_frame(&mut buffer).unwrap(), AviFrame::End);
        avi.rewind();
    }
}

#[test]
fn sound_indexes_groups_and_dropped_frames_are_passed_over() {
    let streams = [stream(b"auds", b"\0\0\0\0", (0, 0), (1, 1)), stream(b"vids", b"mjpg", (8, 8), (0, 0))];
    let movi = list(
        b"LIST",
        b"movi",
        &[
            chunk(b"00wb", &[9; 7]),
            chunk(b"JUNK", &[0; 3]),
            chunk(b"ix01", &[0; 24]),
            list(b"LIST", b"rec ", &[chunk(b"01dc", b"one"), chunk(b"00wb", b"x"), chunk(b"01db", b"two")]),
            chunk(b"01dc", b""),
            chunk(b"01dc", b"three"),
        ],
    );
    let info = list(b"LIST", b"INFO", &[chunk(b"ISFT", b"me")]);
    let parts = [info, header(&streams), chunk(b"JUNK", &[0; 9]), movi, chunk(b"idx1", &[0; 32])];
    let mut bytes = list(b"RIFF", b"AVI ", &parts);
    // The second part of an OpenDML file, with a list of frames and no headers of its own.
    bytes.extend(list(b"RIFF", b"AVIX", &[list(b"LIST", b"movi", &[chunk(b"01dc", b"four")])]));
    let (frames, end) = read_all(&bytes).unwrap();
    assert_eq!(frames, [&b"one"[..], b"two", b"three", b"four"]);
    assert_eq!(end, AviFrame::End);
    let avi = AviReader::open(Cursor::new(bytes)).unwrap();
    assert_eq!(avi.header().rate_hz, Some(25.0), "a rate of 0/0 falls back to the microseconds per frame");
}

#[test]
fn a_recording_that_was_switched_off_is_read_to_its_end() {
    let mut bytes = avi(&some_frames(), (64, 48), (25, 1));
    let movi = bytes.windows(4).position(|w| w == b"movi").unwrap();
    bytes[4..8].fill(0);
    bytes[movi - 4..movi].fill(0);
    assert_eq!(read_all(&bytes).unwrap(), (some_frames(), AviFrame::End));
}

#[test]
fn a_cut_file_gives_its_whole_frames_and_says_that_it_was_cut() {
    let whole = avi(&some_frames(), (64, 48), (25, 1));
    let movi = whole.windows(4).position(|w| w == b"movi").unwrap();
    let mut cut_frames = 0;
    for cut in 0..whole.len() {
        match read_all(&whole[..cut]) {
            Ok((frames, end)) => {
                assert!(cut >= movi, "{cut}");
                assert_eq!(frames, some_frames()[..frames.len()]);
                cut_frames += usize::from(end == AviFrame::Cut);
            }
            Err(error) => assert!(cut < movi + 4, "{cut}: {error}"),
        }
    }
    assert!(cut_frames > 50, "{cut_frames}");
}

#[test]
fn broken_rules_are_named() {
    let sentence = |bytes: &[u8]| read_all(bytes).unwrap_err().to_string();
    assert!(sentence(b"RIFF\0\0\0\0WAVE").contains("not an AVI file"));
    assert!(sentence(b"").contains("not an AVI file"));
    assert!(sentence(&list(b"RIFF", b"AVI ", &[])).contains("no video stream"));
    let only_sound = header(&[stream(b"auds", b"\0\0\0\0", (0, 0), (1, 1))]);
    assert!(sentence(&list(b"RIFF", b"AVI ", &[only_sound])).contains("no video stream"));
    let no_frames = list(b"RIFF", b"AVI ", &[header(&[stream(b"vids", b"MJPG", (8, 8), (25, 1))])]);
    assert!(sentence(&no_frames).contains("no list of frames"));
    let mut lie = avi(&some_frames(), (64, 48), (25, 1));
    lie.extend([0; 64]);
    let at = lie.windows(4).position(|w| w == b"00dc").unwrap();
    lie[at + 4..at + 8].copy_from_slice(&1_000_000u32.to_le_bytes());
    assert!(sentence(&lie).contains("`00dc` at byte"), "{}", sentence(&lie));
}

#[test]
fn an_empty_list_of_frames_has_no_frames() {
    assert_eq!(read_all(&avi(&[], (8, 8), (25, 1))).unwrap(), (vec![], AviFrame::End));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn damaged_files_never_panic_or_hang(
        cut in any::<prop::sample::Index>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
    ) {
        let mut bytes = avi(&some_frames(), (64, 48), (25, 1));
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        if let Ok((frames, _)) = read_all(&bytes) {
            // Every frame is made of bytes of the file, each used at most once.
            prop_assert!(frames.iter().map(|f| f.len() + 8).sum::<usize>() <= bytes.len());
        }
    }

    #[test]
    fn random_chunks_never_panic(tail in prop::collection::vec(any::<u8>(), 0..200)) {
        let bytes = [&b"RIFF\xff\xff\xff\xffAVI LIST\x10\0\0\0hdrl"[..], &tail].concat();
        let _ = read_all(&bytes);
    }
}
