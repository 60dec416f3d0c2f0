//! GGUF files made to exhaust memory or time are refused, or read, within eight times their header plus 1 MiB.

#![allow(clippy::unwrap_used)]

#[path = "support/gguf.rs"]
mod build;
mod counting;

use std::time::{Duration, Instant};

use build::{Builder, string};
use counting::peak;
use saccade_convert::gguf::{Gguf, GgufError, read};

/// Reads `bytes` as the start of a file of `file_bytes`, within bounds of memory and time. The limit on time is generous,
/// since test machines are shared: what it must catch is quadratic work, which takes minutes at these sizes.
fn read_within_bounds(bytes: &[u8], file_bytes: u64) -> Result<Gguf, GgufError> {
    let start = Instant::now();
    let (result, peak) = peak(|| read(bytes, file_bytes));
    let took = start.elapsed();
    let limit = 8 * bytes.len() + (1 << 20);
    assert!(peak <= limit, "{peak} bytes of memory, limit {limit}");
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
