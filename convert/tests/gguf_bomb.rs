//! GGUF files made to exhaust memory or time are refused, or read, within eight times their header plus 1 MiB.

#![allow(clippy::unwrap_used)]

#[path = "support/gguf.rs"]
mod build;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use build::{Builder, string};
use saccade_convert::gguf::{Gguf, GgufError, read};

thread_local! {
    /// Bytes allocated by this thread now, and the most so far. Tests run on a thread each.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(delta: isize) {
    LIVE.set(LIVE.get() + delta);
    PEAK.set(PEAK.get().max(LIVE.get()));
}

struct Counting;

#[allow(unsafe_code, clippy::cast_possible_wrap)]
// SAFETY: every call is passed on to the system's allocator unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract of `dealloc`, and the block came from `System`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: the caller keeps the contract of `realloc`, and the block came from `System`.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Reads `bytes` as the start of a file of `file_bytes`, within bounds of memory and time. The limit on time is generous,
/// since test machines are shared: what it must catch is quadratic work, which takes minutes at these sizes.
fn read_within_bounds(bytes: &[u8], file_bytes: u64) -> Result<Gguf, GgufError> {
    let (before, start) = (LIVE.get(), Instant::now());
    PEAK.set(before);
    let result = read(bytes, file_bytes);
    let (peak, took) = (PEAK.get() - before, start.elapsed());
    let limit = 8 * bytes.len() + (1 << 20);
    assert!(usize::try_from(peak).is_ok_and(|peak| peak <= limit), "{peak} bytes of memory, limit {limit}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    result
}

const MANY: usize = 100_000;

#[test]
fn many_empty_strings_and_arrays_stay_in_bounds() {
    let strings = Builder::default().strings("tokens", &[""; 10 * MANY]).header();
    read_within_bounds(&strings, strings.len() as u64).unwrap();
    let short = Builder::default().strings("tokens", &["x"; 10 * MANY]).header();
    read_within_bounds(&short, short.len() as u64).unwrap();
    let empty = [0u8; 12].repeat(MANY);
    let arrays = Builder::default().array("k", 9, MANY as u64, &empty).header();
    read_within_bounds(&arrays, arrays.len() as u64).unwrap();
    let numbers = Builder::default().array("k", 0, 1 << 22, &vec![0; 1 << 22]).header();
    read_within_bounds(&numbers, numbers.len() as u64).unwrap();
}

#[test]
fn many_tensors_and_keys_stay_in_bounds() {
    let mut file = Builder::default();
    for i in 0..MANY as u64 {
        file = file.tensor(format!("t{i}"), &[1], 0, 32 * i);
    }
    let file = file.file(32, 32 * MANY);
    assert_eq!(read_within_bounds(&file, file.len() as u64).unwrap().tensors.len(), MANY);
    let mut file = Builder::default();
    for i in 0..4096 {
        file = file.entry(format!("k{i}"), 7, &[0]);
    }
    let file = file.header();
    assert_eq!(read_within_bounds(&file, file.len() as u64).unwrap().metadata.len(), 4096);
}

/// The file may really be huge and hold nothing of what it announces.
#[test]
fn announcements_in_a_huge_file_cost_nothing() {
    for (value_type, value) in [
        (8, (1u64 << 40).to_le_bytes().to_vec()),
        (9, [&0u32.to_le_bytes()[..], &(1u64 << 40).to_le_bytes()].concat()),
        (9, [&8u32.to_le_bytes()[..], &(1u64 << 40).to_le_bytes()].concat()),
        (9, [&9u32.to_le_bytes()[..], &(1u64 << 40).to_le_bytes()].concat()),
        (9, [&10u32.to_le_bytes()[..], &(1u64 << 40).to_le_bytes()].concat()),
    ] {
        let file = Builder::default().entry("k", value_type, &value).header();
        read_within_bounds(&file, 1 << 50).unwrap_err();
    }
    let mut counts = b"GGUF\x03\0\0\0".to_vec();
    counts.extend([100_000u64, 4096].map(u64::to_le_bytes).concat());
    read_within_bounds(&counts, 1 << 50).unwrap_err();
    let mut name = counts;
    name.extend(string("k").split_at(8).1);
    read_within_bounds(&name, 1 << 50).unwrap_err();
}
