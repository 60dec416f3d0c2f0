//! GGUF files: what is read, one test per broken rule, and arbitrary bytes.

#![allow(clippy::unwrap_used)]

#[path = "support/gguf.rs"]
mod build;

use build::{Builder, string};
use proptest::prelude::*;
use saccade_convert::gguf::{
    ALIGNMENT_KEY, Array, GgmlType, Gguf, GgufError, MAX_ALIGNMENT, MAX_HEADER_BYTES, TensorInfo, Value,
    ValueType, read,
};

const U32: u32 = 4;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const F32: u32 = 0;
const Q8_0: u32 = 8;

fn read_bytes(file: &[u8]) -> Result<Gguf, GgufError> {
    read(file, file.len() as u64)
}

/// Asserts that `file` is refused by a rule, in a sentence with these words.
#[track_caller]
fn refuses(file: impl AsRef<[u8]>, rule: impl Fn(&GgufError) -> bool, words: &[&str]) {
    let error = read_bytes(file.as_ref()).unwrap_err();
    assert!(rule(&error), "{error:?}");
    let sentence = error.to_string();
    for word in words {
        assert!(sentence.contains(word), "`{sentence}` does not say `{word}`");
    }
}

macro_rules! refuses {
    ($file:expr, $variant:ident, $words:expr) => {
        refuses(&$file, |e| matches!(e, GgufError::$variant { .. }), &$words)
    };
}

/// Two tensors of 64 and 68 bytes, and one entry.
fn small() -> Builder {
    Builder::default()
        .entry("general.name", STRING, &string("small"))
        .tensor("a.weight", &[8, 2], F32, 0)
        .tensor("b.weight", &[32, 2], Q8_0, 64)
}

fn small_file() -> Vec<u8> {
    small().file(32, 64 + 68)
}

#[test]
fn reads_values_of_every_type_and_where_the_tensors_lie() {
    let nested = [&U32.to_le_bytes()[..], &1u64.to_le_bytes(), &7u32.to_le_bytes()].concat();
    let file = small()
        .entry("a", 0, &[255])
        .entry("b", 1, &[255])
        .entry("c", 2, &[1, 2])
        .entry("d", 3, &[0, 128])
        .entry("e", U32, &[0, 0, 0, 128])
        .entry("f", 5, &[0, 0, 0, 128])
        .entry("g", 6, &1.5f32.to_le_bytes())
        .entry("h", BOOL, &[1])
        .entry("i", 10, &u64::MAX.to_le_bytes())
        .entry("j", 11, &i64::MIN.to_le_bytes())
        .entry("k", 12, &0.1f64.to_le_bytes())
        .strings("l", &["", "ä"])
        .array("m", 5, 2, &[1, 0, 0, 0, 2, 0, 0, 0])
        .array("n", ARRAY, 1, &nested)
        .entry(ALIGNMENT_KEY, U32, &64u32.to_le_bytes())
        .file(64, 64 + 68);
    let gguf = read_bytes(&file).unwrap();
    let numbers = |kind, bytes: &[u8]| Array::Numbers { kind, bytes: bytes.to_vec() };
    for (key, expected) in [
        ("general.name", Value::String("small".into())),
        ("a", Value::Unsigned(255)),
        ("b", Value::Signed(-1)),
        ("c", Value::Unsigned(513)),
        ("d", Value::Signed(-32_768)),
        ("e", Value::Unsigned(1 << 31)),
        ("f", Value::Signed(i32::MIN.into())),
        ("g", Value::Float(1.5)),
        ("h", Value::Bool(true)),
        ("i", Value::Unsigned(u64::MAX)),
        ("j", Value::Signed(i64::MIN)),
        ("k", Value::Float(0.1)),
        ("l", Value::Array(Array::Strings(vec![String::new(), "ä".into()]))),
        ("m", Value::Array(numbers(ValueType::I32, &[1, 0, 0, 0, 2, 0, 0, 0]))),
        ("n", Value::Array(Array::Arrays(vec![numbers(ValueType::U32, &[7, 0, 0, 0])]))),
    ] {
        assert_eq!(gguf.metadata[key], expected, "{key}");
    }
    let data = file.len() as u64 - 64 - 68;
    let tensor = |dtype, dims: &[u64], offset, bytes| TensorInfo {
        dtype,
        dims: dims.to_vec(),
        offset: data + offset,
        bytes,
    };
    assert_eq!(gguf.tensors["a.weight"], tensor(GgmlType::F32, &[8, 2], 0, 64));
    assert_eq!(gguf.tensors["b.weight"], tensor(GgmlType::Q8_0, &[32, 2], 64, 68));
    assert_eq!((gguf.version, gguf.tensors.len()), (3, 2));
}

#[test]
fn sizes_of_blocks_are_the_formats() {
    // From the type numbers to bytes of 256 elements, computed by hand from the layouts of ggml.
    for (id, bytes) in [
        (0, 1024),
        (1, 512),
        (2, 144),
        (3, 160),
        (6, 176),
        (7, 192),
        (8, 272),
        (10, 84),
        (11, 110),
        (12, 144),
    ] {
        assert_eq!(GgmlType::from_id(id).unwrap().bytes([256]), Some(bytes), "{id}");
    }
    for (id, bytes) in [(13, 176), (14, 210), (20, 144), (23, 136), (30, 512), (39, 136), (40, 144), (41, 36)]
    {
        assert_eq!(GgmlType::from_id(id).unwrap().bytes([256]), Some(bytes), "{id}");
    }
    // Withdrawn, or only ever in memory.
    for id in [4, 5, 9, 15, 31, 32, 33, 36, 37, 38, 42, u32::MAX] {
        assert_eq!(GgmlType::from_id(id), None, "{id}");
    }
}

#[test]
fn accepts_version_2_and_padding_after_the_last_tensor() {
    let mut file = small_file();
    file[4] = 2;
    assert_eq!(read_bytes(&file).unwrap().version, 2);
    file.resize(file.len().next_multiple_of(32), 0);
    read_bytes(&file).unwrap();
    assert!(read_bytes(&Builder::default().header()).unwrap().tensors.is_empty());
}

#[test]
fn rejects_another_magic_version_or_byte_order() {
    refuses!(b"", Magic, ["no GGUF file"]);
    refuses!(b"GGU", Magic, ["`GGU`"]);
    refuses!(b"ggml\x03\0\0\0", Magic, ["`ggml`"]);
    refuses!(b"GGUF\x01\0\0\0", Version, ["version 1", "offset 4"]);
    refuses!(b"GGUF\x04\0\0\0", Version, ["version 4"]);
    refuses!(b"GGUF\0\0\0\x03", BigEndian, ["big-endian"]);
}

#[test]
fn rejects_a_file_cut_anywhere() {
    let file = small_file();
    for n in 0..file.len() {
        assert!(read_bytes(&file[..n]).is_err(), "{n} of {} bytes", file.len());
    }
    let header = small().header().len();
    let entry = Builder::default().entry("general.name", STRING, &string("small")).header();
    refuses!(entry[..40], CutOff, ["metadata entry 0", "offset 32", "12 bytes", "8 are left"]);
    refuses!(file[..header - 1], CutOff, ["tensor `b.weight`", "7 are left"]);
    refuses!(file[..file.len() - 1], PastEnd, ["tensor `b.weight`", "cut off"]);
    // The length said more than there is.
    assert!(matches!(read(&file[..30], file.len() as u64), Err(GgufError::CutOff { .. })));
}

#[test]
fn rejects_counts_that_the_file_cannot_hold() {
    for (at, what) in [(8, "tensors"), (16, "metadata entries")] {
        for count in [40, 1 << 20, 1 << 40, u64::MAX] {
            let mut file = small_file();
            file[at..at + 8].copy_from_slice(&u64::to_le_bytes(count));
            refuses!(file, Count, [what, &format!("offset {at}"), &count.to_string()]);
        }
    }
    // 192 bytes are left.
    for (element, count) in [(0, 200), (10, 25), (STRING, 25), (ARRAY, 17), (0, u64::MAX), (10, 1 << 61)] {
        let file = Builder::default().array("x.y", element, count, &[0; 192]).header();
        refuses!(file, Count, ["key `x.y`", "elements", &count.to_string()]);
    }
}

#[test]
fn rejects_string_lengths_beyond_the_file() {
    for length in [6, 1 << 32, u64::MAX - 1, u64::MAX] {
        let file =
            Builder::default().entry("k", STRING, &[&length.to_le_bytes()[..], b"12345"].concat()).header();
        refuses!(file, CutOff, ["key `k`", &length.to_string(), "5 are left"]);
    }
}

#[test]
fn rejects_a_header_beyond_its_limit() {
    let text = "x".repeat(usize::try_from(MAX_HEADER_BYTES).unwrap());
    refuses!(
        Builder::default().entry("k", STRING, &string(text)).header(),
        HeaderTooLarge,
        ["key `k`", "67108864"]
    );
}

#[test]
fn rejects_empty_and_overlong_names() {
    let key = |key: &str| Builder::default().entry(key, U32, &[0; 4]).header();
    refuses!(key(""), NameLength, ["metadata entry 0", "offset 24"]);
    refuses!(key(&"k".repeat(65_536)), NameLength, ["65536 bytes", "65535"]);
    read_bytes(&key(&"k".repeat(65_535))).unwrap();
    let tensor = |name: &str| Builder::default().tensor(name, &[1], F32, 0).file(32, 4);
    refuses!(tensor(""), NameLength, ["tensor 0"]);
    refuses!(tensor(&"t".repeat(65)), NameLength, ["65 bytes", "64"]);
    read_bytes(&tensor(&"t".repeat(64))).unwrap();
}

#[test]
fn rejects_strings_that_are_not_utf8() {
    refuses!(Builder::default().entry(b"\xff", BOOL, &[0]).header(), Utf8, ["metadata entry 0", "offset 32"]);
    refuses!(Builder::default().entry("k", STRING, &string(b"\xc3")).header(), Utf8, ["key `k`"]);
    refuses!(Builder::default().tensor(b"\x80", &[1], F32, 0).file(32, 4), Utf8, ["tensor 0"]);
}

#[test]
fn rejects_a_key_or_a_tensor_listed_twice() {
    let twice = Builder::default().entry("k", BOOL, &[0]).entry("k", BOOL, &[1]).header();
    refuses!(twice, Duplicate, ["key `k`", "again"]);
    let twice = Builder::default().tensor("t", &[8], F32, 0).tensor("t", &[8], F32, 32).file(32, 64);
    refuses!(twice, Duplicate, ["tensor `t`"]);
}

#[test]
fn rejects_unknown_value_types_and_bools() {
    refuses!(
        Builder::default().entry("k", 13, &[0; 8]).header(),
        ValueType,
        ["key `k`", "type 13", "offset 33"]
    );
    refuses!(Builder::default().array("k", 13, 0, &[]).header(), ValueType, ["key `k`", "offset 37"]);
    refuses!(Builder::default().entry("k", BOOL, &[2]).header(), Bool, ["key `k`", "is 2", "offset 37"]);
    refuses!(Builder::default().array("k", BOOL, 3, &[0, 1, 9]).header(), Bool, ["is 9", "offset 51"]);
}

#[test]
fn rejects_arrays_nested_too_deep() {
    let array =
        |element: u32, inner: &[u8]| [&element.to_le_bytes()[..], &1u64.to_le_bytes(), inner].concat();
    let mut value = array(0, &[1]);
    for _ in 0..3 {
        value = array(ARRAY, &value);
    }
    read_bytes(&Builder::default().entry("k", ARRAY, &value).header()).unwrap();
    let deep = ARRAY
        .to_le_bytes()
        .into_iter()
        .chain(1u64.to_le_bytes())
        .cycle()
        .take(12 * 100_000)
        .collect::<Vec<u8>>();
    refuses!(Builder::default().entry("k", ARRAY, &deep).header(), Nesting, ["key `k`", "nested"]);
}

#[test]
fn rejects_an_alignment_that_is_none() {
    for n in [0, 1, 4, 24, 33, u32::try_from(2 * MAX_ALIGNMENT).unwrap(), u32::MAX] {
        let file = Builder::default().entry(ALIGNMENT_KEY, U32, &n.to_le_bytes()).file(32, 0);
        refuses!(file, Alignment, [ALIGNMENT_KEY, &n.to_string()]);
    }
    refuses!(
        Builder::default().entry(ALIGNMENT_KEY, STRING, &string("32")).header(),
        Alignment,
        ["another type"]
    );
}

#[test]
fn rejects_ranks_and_dimensions_that_make_no_tensor() {
    let tensor = |dims: &[u64], ty| Builder::default().tensor("t", dims, ty, 0).file(32, 1 << 10);
    refuses!(tensor(&[], F32), Rank, ["tensor `t`", "0 dimensions", "offset 33"]);
    refuses!(tensor(&[1; 5], F32), Rank, ["5 dimensions"]);
    let mut file = tensor(&[1], F32);
    file[33..37].fill(0xff);
    refuses!(file, Rank, ["4294967295"]);
    refuses!(tensor(&[0], F32), Empty, ["tensor `t`", "[0]", "offset 37"]);
    refuses!(tensor(&[u64::MAX, 0, u64::MAX], F32), Empty, ["zero"]);
}

#[test]
fn rejects_unknown_tensor_types() {
    for ty in [4, 9, 31, 42, u32::MAX] {
        refuses!(
            Builder::default().tensor("t", &[256], ty, 0).file(32, 1024),
            TensorType,
            ["tensor `t`", &ty.to_string()]
        );
    }
}

#[test]
fn rejects_rows_of_partial_blocks() {
    let tensor = |dims: &[u64], ty| Builder::default().tensor("t", dims, ty, 0).file(32, 1 << 12);
    // 16 × 4 elements are two blocks, but no row is one.
    refuses!(tensor(&[16, 4], Q8_0), PartialBlock, ["tensor `t`", "16 elements", "blocks of 32", "Q8_0"]);
    refuses!(tensor(&[288], 14), PartialBlock, ["blocks of 256", "Q6_K"]);
}

#[test]
fn rejects_sizes_that_wrap() {
    let tensor = |dims: &[u64], ty| Builder::default().tensor("t", dims, ty, 0).file(32, 1 << 12);
    // Products of 2^64 and a little more, which wrap to nothing, or to a few bytes.
    for (dims, ty) in [
        (&[1 << 32, 1 << 32][..], F32),
        (&[1 << 62], F32),
        (&[(1 << 62) + 1], F32),
        (&[1 << 63, 2, 2], Q8_0),
        (&[1 << 16, 1 << 16, 1 << 16, 1 << 16], 24),
        (&[u64::MAX - 31], Q8_0),
        (&[u64::MAX, u64::MAX, u64::MAX, u64::MAX], 24),
    ] {
        refuses!(tensor(dims, ty), SizeOverflow, ["tensor `t`", "64 bits"]);
    }
    // Fits 64 bits, but no file.
    refuses!(tensor(&[1 << 61], F32), PastEnd, ["tensor `t`"]);
}

#[test]
fn rejects_tensors_that_are_misaligned_or_outside() {
    let tensor = |offset| Builder::default().tensor("t", &[8], F32, offset).file(32, 64);
    read_bytes(&tensor(32)).unwrap();
    refuses!(tensor(16), Misaligned, ["tensor `t`", "16", "alignment 32"]);
    for offset in [64, 1 << 40, u64::MAX - 31, i64::MAX as u64 - 31] {
        refuses!(tensor(offset), PastEnd, ["tensor `t`", "32 bytes", "file of 128"]);
    }
}

#[test]
fn rejects_tensors_that_overlap() {
    let two =
        |a: u64, b: u64| Builder::default().tensor("a", &[16], F32, a).tensor("b", &[8], F32, b).file(32, 96);
    read_bytes(&two(0, 64)).unwrap();
    read_bytes(&two(32, 0)).unwrap();
    refuses!(two(0, 0), Overlap, ["`a`", "`b`"]);
    refuses!(two(0, 32), Overlap, ["tensor `b` starts at offset 128, inside tensor `a` that ends at 160"]);
    refuses!(two(32, 64), Overlap, ["`b`"]);
}

#[test]
fn rejects_bytes_after_the_last_tensor() {
    // 132 bytes of data end 28 before the next multiple.
    let mut file = small_file();
    let end = file.len();
    file.resize(end + 29, 0);
    refuses!(file, TrailingBytes, [&format!("end at offset {}", end + 28), "appended"]);
    refuses!(Builder::default().file(32, 1), TrailingBytes, ["offset 32", "has 33"]);
}

/// What acceptance promises: tensors in the file, aligned, side by side.
fn check_promises(file: &[u8]) -> Result<(), TestCaseError> {
    let Ok(gguf) = read_bytes(file) else { return Ok(()) };
    let mut tensors: Vec<_> = gguf.tensors.values().collect();
    tensors.sort_by_key(|tensor| tensor.offset);
    let mut end = 0;
    for tensor in tensors {
        prop_assert!(tensor.offset >= end && tensor.bytes > 0);
        end = tensor.offset + tensor.bytes;
    }
    prop_assert!(end <= file.len() as u64);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn arbitrary_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..300)) {
        check_promises(&tail)?;
        check_promises(&[&b"GGUF\x03\0\0\0"[..], &tail].concat())?;
    }

    #[test]
    fn bent_files_never_panic_and_what_is_accepted_holds(
        bends in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![any::<u8>(), 0..16u8, Just(255)]), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = small().strings("tokens", &["a", "b"]).array("n", 5, 1, &[1, 0, 0, 0]).file(32, 132);
        for (at, byte) in bends {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        check_promises(&file)?;
    }
}
