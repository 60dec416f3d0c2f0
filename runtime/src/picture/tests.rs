//! Pictures that tests share.

/// Bytes without a pattern, `[height, width, 3]`, as `pixel_values.py` makes them.
pub(crate) fn noise(width: usize, height: usize) -> Vec<u8> {
    let byte = |i: u32| (i.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0];
    (0..).take(width * height * 3).map(byte).collect()
}
