//! PNG pictures made to exhaust memory or time cost neither.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use saccade::source::{Frame, decode_picture};

/// Compressed size of a bomb: what the daemon lets in.
const BOMB_BYTES: usize = 6 << 20;
/// More than any of them may take: pixels, their decoder, and 8 MiB besides.
const MEMORY_LIMIT_KIB: u64 = 64 << 10;

/// A zlib stream of about `bytes` bytes that inflates to 158 times as many zeros.
///
/// One deflate block with the fixed code (RFC 1951, 3.2.6): a zero, then copies of 258 bytes from one byte back. Eight
/// copies of 13 bits are 13 bytes, so the stream repeats itself.
fn zeros(bytes: usize) -> Vec<u8> {
    let mut bits: Vec<u8> = vec![1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0];
    let copies = [1, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0].repeat(8);
    while !bits.len().is_multiple_of(8) {
        bits.extend(&copies[..13]);
    }
    let pack = |bits: &[u8]| -> Vec<u8> {
        bits.chunks(8).map(|byte| byte.iter().rev().fold(0, |sum, bit| sum << 1 | bit)).collect()
    };
    let mut stream = vec![0x78, 0x9c];
    stream.extend(pack(&bits));
    stream.extend(pack(&copies).repeat(bytes / 13));
    // The end code is seven zeros; the checksum is left out, since nothing may come so far.
    stream.extend([0; 5]);
    stream
}

fn crc32(bytes: &[u8]) -> u32 {
    let table: Vec<u32> = (0..256u32)
        .map(|byte| (0..8).fold(byte, |c, _| (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg())))
        .collect();
    !bytes.iter().fold(u32::MAX, |crc, byte| (crc >> 8) ^ table[usize::from(crc.to_le_bytes()[0] ^ byte)])
}

/// A grey PNG picture of one size with these chunks behind its header.
fn png(side: u32, chunks: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
    let mut header = side.to_be_bytes().repeat(2);
    header.extend([8, 0, 0, 0, 0]);
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (name, body) in [(b"IHDR", header)].iter().chain(chunks).chain(&[(b"IEND", vec![])]) {
        file.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
        let named = [&name[..], body].concat();
        file.extend(&named);
        file.extend(crc32(&named).to_be_bytes());
    }
    file
}

/// The most memory that this process has had in use.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn png_bombs_stay_within_64_mib_and_two_seconds() {
    let bomb = zeros(BOMB_BYTES);
    let pixels = || (b"IDAT", zeros(100));
    let text = |head: &[u8]| [head, &bomb].concat();
    let many: Vec<_> = (0..100).map(|_| (b"iCCP", text(b"p\0\0")[..BOMB_BYTES / 100].to_vec())).collect();
    let bombs = [
        ("one profile", png(64, &[(b"iCCP", text(b"p\0\0")), pixels()])),
        ("many profiles", png(64, &[many, vec![pixels()]].concat())),
        ("a text", png(64, &[(b"zTXt", text(b"k\0\0")), pixels()])),
        ("an XMP text", png(64, &[(b"iTXt", text(b"XML:com.adobe.xmp\0\x01\0\0\0")), pixels()])),
        ("a text behind the pixels", png(64, &[pixels(), (b"zTXt", text(b"k\0\0"))])),
        ("pixels", png(64, &[(b"IDAT", bomb.clone())])),
        ("more pixels than a picture has", png(1 << 15, &[(b"IDAT", bomb.clone())])),
        ("a long EXIF block", png(64, &[(b"eXIf", vec![0; 30 << 20]), pixels()])),
    ];
    let (mut frame, before) = (Frame::default(), peak_kib());
    for (name, file) in &bombs {
        let start = Instant::now();
        let outcome = decode_picture(file, &mut frame);
        let (took, peak) = (start.elapsed(), peak_kib() - before);
        // A picture is either refused, or read without what hangs on it.
        match outcome {
            Ok(()) => assert_eq!(frame.rgb.len(), 64 * 64 * 3, "{name}"),
            Err(reason) => assert!(!reason.to_string().is_empty()),
        }
        assert!(peak <= MEMORY_LIMIT_KIB, "{name}: {peak} KiB");
        assert!(took < Duration::from_secs(2), "{name}: {took:?}");
    }
}
