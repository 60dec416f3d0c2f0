//! One named test per rule of the container that a file can break: `runtime/src/format/mod.rs` numbers them.

use std::collections::BTreeMap;

use saccade::format::{
    Dtype, FormatError, Header, MAX_METADATA, Rules, TensorPlan, plan_header, read_header,
};

/// A file with this header text and this much data.
fn file(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data_bytes, 0);
    bytes
}

/// The same with the header padded so that the data section starts at `start`.
fn file_at(header: &str, start: usize, data_bytes: usize) -> Vec<u8> {
    file(&(header.to_owned() + &" ".repeat(start - 8 - header.len())), data_bytes)
}

fn read(bytes: &[u8], rules: Rules) -> Result<Header, FormatError> {
    read_header(bytes, bytes.len() as u64, rules)
}

/// Asserts the variant and that its sentence contains each of the words.
macro_rules! assert_refused {
    ($bytes:expr, $rules:expr, $variant:pat, $($word:expr),*) => {
        let error = read(&$bytes, $rules).expect_err("must be refused");
        assert!(matches!(error, $variant), "{error:?}");
        let sentence = error.to_string();
        $(assert!(sentence.contains($word), "`{sentence}` does not name `{}`", $word);)*
    };
}

const ONE: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;

#[test]
fn accepts_the_file_that_the_tests_below_break() {
    assert_eq!(read(&file(ONE, 8), Rules::Foreign).unwrap().tensors.len(), 1);
    assert_eq!(read(&file_at(ONE, 4096, 8), Rules::Bundle).unwrap().tensors.len(), 1);
}

#[test]
fn rejects_file_shorter_than_the_length() {
    assert_refused!([0_u8; 3], Rules::Foreign, FormatError::TooShort { .. }, "3 bytes");
    assert_refused!(Vec::new(), Rules::Foreign, FormatError::TooShort { .. }, "0 bytes");
}

#[test]
fn rejects_header_length_over_the_cap() {
    for length in [(16u64 << 20) + 1, u64::MAX, u64::MAX - 8, 1 << 63] {
        let mut bytes = file(ONE, 8);
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        assert_refused!(bytes, Rules::Foreign, FormatError::HeaderTooLarge { .. }, &length.to_string());
    }
}

#[test]
fn rejects_header_past_end_of_file() {
    let bytes = file(ONE, 0);
    assert_refused!(bytes[..bytes.len() - 1], Rules::Foreign, FormatError::HeaderPastEnd { .. }, "cut off");
}

#[test]
fn rejects_a_prefix_that_lacks_part_of_the_header() {
    let bytes = file(ONE, 8);
    let error = read_header(&bytes[..20], bytes.len() as u64, Rules::Foreign).unwrap_err();
    assert!(matches!(error, FormatError::HeaderNotGiven { expected: 62, found: 20 }), "{error:?}");
}

#[test]
fn rejects_header_that_does_not_start_with_a_brace() {
    for header in [" {}", "[]", "\u{feff}{}", "   ", ""] {
        assert_refused!(file(header, 0), Rules::Foreign, FormatError::HeaderStart { .. }, "`{`");
    }
}

#[test]
fn rejects_header_padding_other_than_blanks() {
    for header in ["{}\n", "{}\0\0", "{} \t ", "{}x"] {
        assert_refused!(file(header, 0), Rules::Foreign, FormatError::HeaderEnd { .. }, "blanks");
    }
}

#[test]
fn rejects_header_that_is_not_utf8() {
    let mut bytes = file(ONE, 8);
    bytes[10] = 0xff;
    assert_refused!(bytes, Rules::Foreign, FormatError::HeaderUtf8 { .. }, "offset 10");
}

#[test]
fn rejects_json_of_another_shape() {
    let a = |entry: &str| format!(r#"{{"a":{entry}}}"#);
    for header in [
        "{}{}".into(),
        r#"{"a"}"#.into(),
        r#"{"a":{},}"#.into(),
        r#"{,}"#.into(),
        r#"{a:{}}"#.into(),
        a("null"),
        a("[]"),
        a(r#"["F32",[2],[0,8]]"#),
        a("{}"),
        a(r#"{"dtype":"F32","shape":[2]}"#),
        a(r#"{"dtype":"F32","data_offsets":[0,8]}"#),
        a(r#"{"shape":[2],"data_offsets":[0,8]}"#),
        a(r#"{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}"#),
        a(r#"{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}"#),
        a(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1}"#),
        a(r#"{"dtype":7,"shape":[2],"data_offsets":[0,8]}"#),
        a(r#"{"dtype":"F32","shape":2,"data_offsets":[0,8]}"#),
        a(r#"{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}"#),
        a(r#"{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}"#),
        a(r#"{"dtype":"F32","shape":[2e0],"data_offsets":[0,8]}"#),
        a(r#"{"dtype":"F32","shape":[02],"data_offsets":[0,8]}"#),
        a(r#"{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,8]}"#),
        a(r#"{"dtype":"F32","shape":[2,],"data_offsets":[0,8]}"#),
        a(r#"{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}"#),
        a(r#"{"dtype":"F32","shape":[2],"data_offsets":[8]}"#),
        a(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}"#),
        a(r#"{"dtype":"F32","shape":[2],"data_offsets":[]}"#),
        "{\"a\u{1}\":{}}".into(),
        r#"{"a\q":{}}"#.into(),
        r#"{"a\ud800":{}}"#.into(),
        r#"{"a\"}"#.into(),
        r#"{"a\u00"}"#.into(),
        r#"{"__metadata__":null}"#.into(),
        r#"{"__metadata__":{"a":1}}"#.into(),
        r#"{"__metadata__":{"a":{}}}"#.into(),
    ] {
        assert_refused!(file(&header, 8), Rules::Foreign, FormatError::HeaderJson { .. }, "header");
    }
}

#[test]
fn names_entry_and_offset_of_broken_json() {
    let bytes = file(r#"{"layers.0.q":{"dtype":"F32","shape":[x],"data_offsets":[0,8]}}"#, 8);
    for word in ["`layers.0.q`", "file offset 46", "`x`", "integer"] {
        assert_refused!(bytes, Rules::Foreign, FormatError::HeaderJson { .. }, word);
    }
}

#[test]
fn rejects_deep_nesting_without_recursion() {
    let header = format!(r#"{{"a":{}}}"#, "{\"a\":".repeat(100_000) + &"}".repeat(100_000));
    assert_refused!(file(&header, 0), Rules::Foreign, FormatError::HeaderJson { .. }, "`a`");
    let header = format!(r#"{{"a":{{"shape":{}}}}}"#, "[".repeat(1_000_000));
    assert_refused!(file(&header, 0), Rules::Foreign, FormatError::HeaderJson { .. }, "`a`");
}

#[test]
fn rejects_duplicate_tensor_name() {
    let entry = |name: &str, begin: u32| {
        format!(r#""{name}":{{"dtype":"U8","shape":[1],"data_offsets":[{begin},{}]}}"#, begin + 1)
    };
    // The second spelling has an escape: it is the same name all the same.
    for second in ["twice", "tw\\u0069ce"] {
        let header = format!("{{{},{},{}}}", entry("twice", 0), entry("other", 1), entry(second, 2));
        assert_refused!(file(&header, 3), Rules::Foreign, FormatError::DuplicateName { .. }, "`twice`");
    }
}

#[test]
fn rejects_duplicate_metadata() {
    let header = r#"{"__metadata__":{"k":"1","k":"2"}}"#;
    assert_refused!(file(header, 0), Rules::Foreign, FormatError::DuplicateMetadata { .. }, "`k`");
    let header = r#"{"__metadata__":{},"__metadata__":{}}"#;
    assert_refused!(file(header, 0), Rules::Foreign, FormatError::DuplicateName { .. }, "`__metadata__`");
}

#[test]
fn rejects_too_much_metadata() {
    let entries: Vec<_> = (0..=MAX_METADATA).map(|i| format!(r#""{i}":"""#)).collect();
    let header = format!(r#"{{"__metadata__":{{{}}}}}"#, entries.join(","));
    assert_refused!(file(&header, 0), Rules::Foreign, FormatError::TooMuchMetadata, "4096");
}

#[test]
fn rejects_too_many_dimensions() {
    let header = r#"{"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}"#;
    assert_refused!(file(header, 1), Rules::Foreign, FormatError::Rank { .. }, "`a`", "8 dimensions");
}

#[test]
fn rejects_unknown_dtype() {
    let header = r#"{"a":{"dtype":"Q4_K","shape":[1],"data_offsets":[0,1]}}"#;
    assert_refused!(file(header, 1), Rules::Foreign, FormatError::UnknownDtype { .. }, "`a`", "`Q4_K`");
}

#[test]
fn rejects_size_that_overflows() {
    for shape in [
        "[18446744073709551615,2]",
        "[4294967296,4294967296]",
        "[2305843009213693952]",
        "[0,18446744073709551615,2]",
    ] {
        let header = format!(r#"{{"a":{{"dtype":"F64","shape":{shape},"data_offsets":[0,0]}}}}"#);
        assert_refused!(file(&header, 0), Rules::Foreign, FormatError::SizeOverflow { .. }, "`a`", "64 bits");
    }
}

#[test]
fn rejects_tensor_of_partial_bytes() {
    let header = r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#;
    assert_refused!(file(header, 2), Rules::Foreign, FormatError::PartialByte { .. }, "`a`", "12 bits");
}

#[test]
fn rejects_offsets_that_run_backwards() {
    let header = r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[4,0]}}"#;
    assert_refused!(file(header, 4), Rules::Foreign, FormatError::OffsetsReversed { .. }, "`a`");
}

#[test]
fn rejects_offsets_that_disagree_with_the_shape() {
    let header = r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#;
    assert_refused!(
        file(header, 8),
        Rules::Foreign,
        FormatError::SizeMismatch { .. },
        "`a`",
        "[3]",
        "12",
        "8"
    );
}

/// Two tensors of four bytes, the second at `begin`.
fn two(begin: u32) -> String {
    let b = format!(r#""b":{{"dtype":"F32","shape":[],"data_offsets":[{begin},{}]}}"#, begin + 4);
    format!(r#"{{{b},"a":{{"dtype":"F32","shape":[],"data_offsets":[0,4]}}}}"#)
}

#[test]
fn rejects_hole() {
    assert_eq!(read(&file(&two(4), 8), Rules::Foreign).unwrap().tensors[0].name, "a");
    assert_refused!(file(&two(5), 9), Rules::Foreign, FormatError::Hole { .. }, "`b`", "5", "4");
}

#[test]
fn rejects_overlap() {
    assert_refused!(file(&two(3), 7), Rules::Foreign, FormatError::Overlap { .. }, "`b`", "3", "4");
    assert_refused!(file(&two(0), 4), Rules::Foreign, FormatError::Overlap { .. }, "4");
}

#[test]
fn rejects_tensor_past_end_of_file() {
    assert_refused!(file(ONE, 7), Rules::Foreign, FormatError::PastEnd { .. }, "`a`", "70", "69");
    let huge =
        r#"{"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}}"#;
    assert_refused!(file(huge, 7), Rules::Foreign, FormatError::SizeOverflow { .. }, "`a`");
    let huge = r#"{"a":{"dtype":"U8","shape":[2305843009213693951],"data_offsets":[0,2305843009213693951]}}"#;
    assert_refused!(file(huge, 7), Rules::Foreign, FormatError::PastEnd { .. }, "`a`", "cut off");
}

#[test]
fn rejects_sizes_that_add_up_past_64_bits() {
    // Sixteen tensors end to end up to the last byte that a u64 can name: a known panic of other readers.
    let size = 1u64 << 60;
    let entries: Vec<_> = (0..16)
        .map(|i: u64| {
            let (begin, end) = (i * size, (i * size).saturating_add(size));
            format!(r#""t{i}":{{"dtype":"U8","shape":[{}],"data_offsets":[{begin},{end}]}}"#, end - begin)
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let bytes = file(&header, 1);
    for file_bytes in [bytes.len() as u64, u64::MAX, u64::MAX - 1] {
        let error = read_header(&bytes, file_bytes, Rules::Foreign).unwrap_err();
        assert!(matches!(error, FormatError::PastEnd { .. }), "{error:?}");
    }
}

#[test]
fn rejects_trailing_bytes() {
    assert_refused!(file(ONE, 9), Rules::Foreign, FormatError::TrailingBytes { .. }, "70", "71");
    assert_refused!(file("{}", 1), Rules::Foreign, FormatError::TrailingBytes { .. }, "10", "11");
}

#[test]
fn bundle_rejects_data_section_off_the_page() {
    for start in [64, 4032, 4160] {
        let bytes = file_at(ONE, start, 8);
        assert!(read(&bytes, Rules::Foreign).is_ok());
        assert_refused!(bytes, Rules::Bundle, FormatError::DataStart { .. }, "4096");
    }
}

#[test]
fn bundle_rejects_large_data_section_off_the_huge_page() {
    let header = r#"{"a":{"dtype":"U8","shape":[16777216],"data_offsets":[0,16777216]}}"#;
    let read = |start: usize| {
        let bytes = file_at(header, start, 0);
        read_header(&bytes, start as u64 + (16 << 20), Rules::Bundle)
    };
    assert!(read(2 << 20).is_ok());
    assert!(matches!(read(4096), Err(FormatError::DataStart { expected: 0x20_0000, found: 4096 })));
}

/// Two tensors with a pad between them: name, type, shape and length of the pad are for the test to choose.
fn padded(pad: &str, dtype: &str, shape: &str, pad_bytes: usize) -> Vec<u8> {
    let (at, end) = (8 + pad_bytes, 16 + pad_bytes);
    let a = r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
    let b = format!(r#""b":{{"dtype":"F32","shape":[2],"data_offsets":[{at},{end}]}}"#);
    let pad = format!(r#""{pad}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[8,{at}]}}"#);
    file_at(&format!("{{{a},{pad},{b}}}"), 4096, end)
}

#[test]
fn bundle_rejects_misaligned_tensor() {
    let good = read(&padded("__pad.0", "U8", "[56]", 56), Rules::Bundle).unwrap();
    assert_eq!(good.tensors.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(good.tensors[1].offset, 4096 + 64);
    assert!(good.find("__pad.0").is_none());
    assert_eq!(good.find("b"), Some(&good.tensors[1]));
    let unpadded = padded("c", "U8", "[48]", 48);
    assert_refused!(unpadded, Rules::Bundle, FormatError::Misaligned { .. }, "`c`", "4104", "64");
}

#[test]
fn bundle_rejects_empty_tensor() {
    let header = r#"{"a":{"dtype":"F32","shape":[0,4],"data_offsets":[0,0]}}"#;
    assert!(read(&file(header, 0), Rules::Foreign).is_ok());
    assert_refused!(file_at(header, 4096, 0), Rules::Bundle, FormatError::Empty { .. }, "`a`", "[0, 4]");
}

#[test]
fn bundle_rejects_pad_that_hides_something() {
    for (dtype, shape, bytes) in [
        ("I8", "[56]", 56),
        ("U8", "[7,8]", 56),
        ("U8", "[120]", 120),
        ("U8", "[48]", 48),
        ("U8", "[0]", 0),
        ("F32", "[14]", 56),
    ] {
        let bytes = padded("__pad.0", dtype, shape, bytes);
        assert_refused!(bytes, Rules::Bundle, FormatError::Pad { .. }, "`__pad.0`", dtype);
    }
}

#[test]
fn long_or_wild_names_do_not_flood_the_terminal() {
    let name = "\\u001b[2J".to_owned() + &"x".repeat(1 << 20);
    let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}}}"#);
    let sentence = read(&file(&header, 8), Rules::Foreign).unwrap_err().to_string();
    assert!(sentence.len() < 500, "{} bytes", sentence.len());
    assert!(!sentence.contains('\u{1b}'), "{sentence}");
}

#[test]
fn writer_refuses_plans_that_no_reader_takes() {
    let plan = |name: &str, shape: &[usize]| TensorPlan {
        name: name.into(),
        dtype: Dtype::F32,
        shape: shape.into(),
    };
    let refused = |plan: &[TensorPlan]| plan_header(plan, &BTreeMap::new(), Rules::Bundle).unwrap_err();
    assert!(matches!(refused(&[plan("a", &[1]), plan("a", &[2])]), FormatError::DuplicateName { .. }));
    assert!(matches!(refused(&[plan("__metadata__", &[1])]), FormatError::ReservedName { .. }));
    assert!(matches!(refused(&[plan("__pad.7", &[1])]), FormatError::ReservedName { .. }));
    assert!(matches!(refused(&[plan("a", &[0])]), FormatError::Empty { .. }));
    assert!(matches!(refused(&[plan("a", &[1; 9])]), FormatError::Rank { .. }));
    assert!(matches!(refused(&[plan("a", &[usize::MAX, 2])]), FormatError::SizeOverflow { .. }));
}
