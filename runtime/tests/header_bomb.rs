//! Headers made to exhaust memory or time are refused, or read, within twice their size plus 16 MiB.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use saccade::format::{FormatError, Header, MAX_HEADER_BYTES, MAX_TENSORS, Rules, read_header};

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

fn file(header: &str) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes
}

/// Reads a header and asserts that it stayed within its bounds.
///
/// The limit on time is generous, since test machines are shared: what it must catch is quadratic work, which takes
/// minutes at these sizes.
fn read_within_bounds(bytes: &[u8], file_bytes: u64) -> Result<Header, FormatError> {
    let (before, start) = (LIVE.get(), Instant::now());
    PEAK.set(before);
    let result = read_header(bytes, file_bytes, Rules::Foreign);
    let (peak, took) = (PEAK.get() - before, start.elapsed());
    let limit = 2 * bytes.len() + (16 << 20);
    #[allow(clippy::print_stdout)] // the measurement, for who runs this with --nocapture
    {
        println!("header_bytes={} peak_bytes={peak} took_ms={}", bytes.len(), took.as_millis());
    }
    assert!(usize::try_from(peak).is_ok_and(|peak| peak <= limit), "{peak} bytes of memory, limit {limit}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    result
}

/// The header of `count` tensors of one byte.
fn many(count: usize) -> String {
    let mut header = String::from("{");
    for i in 0..count {
        let comma = if i == 0 { "" } else { "," };
        header += &format!(r#"{comma}"{i:x}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#, i + 1);
    }
    header + "}"
}

#[test]
fn a_hundred_thousand_tensors_are_read_in_bounds() {
    for count in [100_000, MAX_TENSORS] {
        let bytes = file(&many(count));
        let header = read_within_bounds(&bytes, (bytes.len() + count) as u64).unwrap();
        assert_eq!(header.tensors.len(), count);
        assert_eq!(header.find("ff").map(|tensor| tensor.offset), Some(bytes.len() as u64 + 0xff));
    }
}

#[test]
fn more_tensors_are_refused_in_bounds() {
    let bytes = file(&many(MAX_TENSORS + 1));
    let result = read_within_bounds(&bytes, (bytes.len() + MAX_TENSORS + 1) as u64);
    assert!(matches!(result, Err(FormatError::TooManyTensors)));
    // A million no longer fit the longest header.
    let bytes = file(&many(1_000_000));
    assert!(bytes.len() as u64 > MAX_HEADER_BYTES);
    let result = read_within_bounds(&bytes, bytes.len() as u64 + 1_000_000);
    assert!(matches!(result, Err(FormatError::HeaderTooLarge { .. })));
}

/// Text that fills a header up to the cap with `unit`, between `before` and `after`.
fn filled(before: &str, unit: &str, after: &str) -> Vec<u8> {
    let room = (16 << 20) - before.len() - after.len();
    file(&(before.to_owned() + &unit.repeat(room / unit.len()) + after))
}

#[test]
fn long_texts_stay_in_bounds() {
    let entry = r#","shape":[1],"data_offsets":[0,1]}}"#;
    for unit in ["x", "\\n", "ab\\u0041", "\u{1f600}"] {
        let bytes = filled(r#"{"__metadata__":{"k":""#, unit, r#""}}"#);
        assert_eq!(read_within_bounds(&bytes, bytes.len() as u64).unwrap().metadata.len(), 1);
        for (before, after) in [
            (r#"{"a":{"dtype":""#, format!("\"{entry}")),
            (r#"{"a":{""#, format!("\":1{entry}")),
            (r#"{"a":""#, r#""}"#.into()),
            (r#"{"a":{"dtype":"U8","shape":[""#, r#""]}}"#.into()),
        ] {
            let bytes = filled(before, unit, &after);
            read_within_bounds(&bytes, bytes.len() as u64 + 1).unwrap_err();
        }
        // A long name is kept; that its tensor is cut off is found out later, and said with the start of the name.
        let bytes = filled(r#"{""#, unit, &format!(r#"":{{"dtype":"U8"{entry}"#));
        let error = read_within_bounds(&bytes, bytes.len() as u64).unwrap_err();
        assert!(error.to_string().len() < 1000, "{} bytes", error.to_string().len());
    }
}

#[test]
fn long_lists_stay_in_bounds() {
    for bytes in [
        filled(r#"{"a":{"dtype":"U8","shape":[1"#, ",1", "]}}"),
        filled(r#"{"a":{"dtype":"U8","data_offsets":[0"#, ",1", "]}}"),
        filled(r#"{"a":{"dtype":"U8"#, "  ", "}}"),
        filled("{", "[", "}"),
        filled("{", "{\"a\":", "}"),
        filled("{", "\"__metadata__\":{},", "}"),
        filled("{", " ", "}x}"),
    ] {
        read_within_bounds(&bytes, bytes.len() as u64).unwrap_err();
    }
    let mut header = String::from(r#"{"__metadata__":{"#);
    for i in 0..2_000_000 {
        header += &format!(r#""{i}":"","#);
    }
    header.truncate((16 << 20) - 2);
    let bytes = file(&(header + "}}"));
    let result = read_within_bounds(&bytes, bytes.len() as u64);
    assert!(matches!(result, Err(FormatError::TooMuchMetadata)));
}
