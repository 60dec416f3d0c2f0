//! The weights of a GGUF file as floats: what the bytes of each type of block mean.
//!
//! A block holds 32 or 256 elements (one, of the plain types). Its *scales* `d` and *offsets* `m` are f16. Its integers have
//! 1, 2, 4 or 8 bits; where they have 3, 5 or 6, the high bits lie apart. A block of 256 has groups of 16 or 32 elements
//! with small integer scales of their own. A layout is written as `name [count] type`, in the order of the bytes; what `[run]`
//! means says [`field`].
//!
//! Every product and every sum is rounded to f32, in the order of the formula: the values are those of the reference, bit
//! for bit.
//!
//! Source: ggml `ggml-quants.c`, functions `dequantize_row_*`; gguf-py `quants.py` (0.19.0), which the tests compare with.

use std::array::from_fn;

use half::{bf16, f16};

use super::GgmlType;

/// The types that [`dequantise`] knows, for messages.
#[must_use]
pub fn supported() -> &'static [GgmlType] {
    use GgmlType as T;
    &[
        T::F32,
        T::F16,
        T::BF16,
        T::Q8_0,
        T::Q4_0,
        T::Q4_1,
        T::Q5_0,
        T::Q5_1,
        T::Q2_K,
        T::Q3_K,
        T::Q4_K,
        T::Q5_K,
        T::Q6_K,
        T::IQ4_NL,
        T::IQ4_XS,
    ]
}

/// The elements in `bytes`, in their order; `None` if `dtype` is not among those [`supported`].
///
/// A damaged file may hold scales that are not finite, so values need not be finite either.
///
/// # Panics
/// If `bytes` are no whole blocks; the reader has refused such tensors.
#[must_use]
pub fn dequantise(dtype: GgmlType, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        GgmlType::F32 => blocks(bytes, |&b| [f32::from_le_bytes(b)]),
        GgmlType::F16 => blocks(bytes, |&b| [f16::from_le_bytes(b).to_f32()]),
        GgmlType::BF16 => blocks(bytes, |&b| [bf16::from_le_bytes(b).to_f32()]),
        GgmlType::Q8_0 => blocks(bytes, q8_0),
        GgmlType::Q4_0 => blocks(bytes, q4_0),
        GgmlType::Q4_1 => blocks(bytes, q4_1),
        GgmlType::Q5_0 => blocks(bytes, q5_0),
        GgmlType::Q5_1 => blocks(bytes, q5_1),
        GgmlType::Q2_K => blocks(bytes, q2_k),
        GgmlType::Q3_K => blocks(bytes, q3_k),
        GgmlType::Q4_K => blocks(bytes, q4_k),
        GgmlType::Q5_K => blocks(bytes, q5_k),
        GgmlType::Q6_K => blocks(bytes, q6_k),
        GgmlType::IQ4_NL => blocks(bytes, iq4_nl),
        GgmlType::IQ4_XS => blocks(bytes, iq4_xs),
        _ => return None,
    })
}

/// Blocks of `BYTES` bytes and `ELEMENTS` elements, end to end.
fn blocks<const BYTES: usize, const ELEMENTS: usize>(
    bytes: &[u8],
    block: impl Fn(&[u8; BYTES]) -> [f32; ELEMENTS],
) -> Vec<f32> {
    let (whole, rest) = bytes.as_chunks();
    assert!(rest.is_empty(), "{} bytes are no whole blocks of {BYTES}", bytes.len());
    let mut values = Vec::with_capacity(whole.len() * ELEMENTS);
    for bytes in whole {
        values.extend_from_slice(&block(bytes));
    }
    values
}

/// `d f16, q [32] i8`: `d · q`.
fn q8_0(b: &[u8; 34]) -> [f32; 32] {
    let d = half(b, 0);
    from_fn(|i| d * signed(b[2 + i]))
}

/// `d f16, q [run 16] u4`: `d · (q − 8)`.
fn q4_0(b: &[u8; 18]) -> [f32; 32] {
    let d = half(b, 0);
    from_fn(|i| d * (f32::from(field::<4, 16>(&b[2..], i)) - 8.0))
}

/// `d f16, m f16, q [run 16] u4`: `d · q + m`.
fn q4_1(b: &[u8; 20]) -> [f32; 32] {
    let (d, m) = (half(b, 0), half(b, 2));
    from_fn(|i| d * f32::from(field::<4, 16>(&b[4..], i)) + m)
}

/// `d f16, high [run 1] u1, low [run 16] u4`: `d · (16 high + low − 16)`.
fn q5_0(b: &[u8; 22]) -> [f32; 32] {
    let d = half(b, 0);
    let q = |i| field::<1, 1>(&b[2..6], i) << 4 | field::<4, 16>(&b[6..], i);
    from_fn(|i| d * (f32::from(q(i)) - 16.0))
}

/// `d f16, m f16, high [run 1] u1, low [run 16] u4`: `d · (16 high + low) + m`.
fn q5_1(b: &[u8; 24]) -> [f32; 32] {
    let (d, m) = (half(b, 0), half(b, 2));
    let q = |i| field::<1, 1>(&b[4..8], i) << 4 | field::<4, 16>(&b[8..], i);
    from_fn(|i| d * f32::from(q(i)) + m)
}

/// `groups [16] (scale u4, offset u4), q [run 32] u2, d f16, m f16`: `d · scale · q − m · offset`, groups of 16; the scale is
/// the low half of its byte.
fn q2_k(b: &[u8; 84]) -> [f32; 256] {
    let (d, m) = (half(b, 80), half(b, 82));
    from_fn(|i| {
        let group = b[i / 16];
        let q = field::<2, 32>(&b[16..80], i);
        d * f32::from(group & 15) * f32::from(q) - m * f32::from(group >> 4)
    })
}

/// `high [run 32] u1, low [run 32] u2, scales_low [run 8] u4, scales_high [run 4] u2, d f16`:
/// `d · (16 scale_high + scale_low − 32) · (4 high + low − 4)`, groups of 16.
fn q3_k(b: &[u8; 110]) -> [f32; 256] {
    let d = half(b, 108);
    from_fn(|i| {
        let scale = field::<2, 4>(&b[104..108], i / 16) << 4 | field::<4, 8>(&b[96..104], i / 16);
        let q = field::<1, 32>(&b[..32], i) << 2 | field::<2, 32>(&b[32..96], i);
        d * (f32::from(scale) - 32.0) * (f32::from(q) - 4.0)
    })
}

/// `d f16, m f16, groups [12] u8, q [run 32] u4`: `d · scale · q − m · offset`, groups of 32, see [`scale_and_offset`].
fn q4_k(b: &[u8; 144]) -> [f32; 256] {
    let (d, m) = (half(b, 0), half(b, 2));
    from_fn(|i| {
        let (scale, offset) = scale_and_offset(&b[4..16], i / 32);
        let q = field::<4, 32>(&b[16..], i);
        d * scale * f32::from(q) - m * offset
    })
}

/// `d f16, m f16, groups [12] u8, high [run 32] u1, low [run 32] u4`: `d · scale · (16 high + low) − m · offset`, groups of
/// 32, see [`scale_and_offset`].
fn q5_k(b: &[u8; 176]) -> [f32; 256] {
    let (d, m) = (half(b, 0), half(b, 2));
    from_fn(|i| {
        let (scale, offset) = scale_and_offset(&b[4..16], i / 32);
        let q = field::<1, 32>(&b[16..48], i) << 4 | field::<4, 32>(&b[48..], i);
        d * scale * f32::from(q) - m * offset
    })
}

/// `low [run 64] u4, high [run 32] u2, scales [16] i8, d f16`: `d · scale · (16 high + low − 32)`, groups of 16.
fn q6_k(b: &[u8; 210]) -> [f32; 256] {
    let d = half(b, 208);
    from_fn(|i| {
        let q = field::<2, 32>(&b[128..192], i) << 4 | field::<4, 64>(&b[..128], i);
        d * signed(b[192 + i / 16]) * (f32::from(q) - 32.0)
    })
}

/// `d f16, q [run 16] u4`: `d · CURVE[q]`.
fn iq4_nl(b: &[u8; 18]) -> [f32; 32] {
    let d = half(b, 0);
    from_fn(|i| d * CURVE[usize::from(field::<4, 16>(&b[2..], i))])
}

/// `d f16, scales_high [run 1] u2, scales_low [run 1] u4, q [run 16] u4`:
/// `d · (16 scale_high + scale_low − 32) · CURVE[q]`, groups of 32.
fn iq4_xs(b: &[u8; 136]) -> [f32; 256] {
    let d = half(b, 0);
    from_fn(|i| {
        let scale = field::<2, 1>(&b[2..4], i / 32) << 4 | field::<4, 1>(&b[4..8], i / 32);
        d * (f32::from(scale) - 32.0) * CURVE[usize::from(field::<4, 16>(&b[8..], i))]
    })
}

/// What the four bits of the IQ4 types stand for: denser near zero, where weights are. Source: `kvalues_iq4nl`.
const CURVE: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

/// Integer `i` of those with `BITS` bits in `bytes`. They lie in runs of `RUN` bytes: first come the lowest bits of every
/// byte of the run, then the next higher ones of every byte, up to the highest; then comes the next run.
fn field<const BITS: usize, const RUN: usize>(bytes: &[u8], i: usize) -> u8 {
    let per_byte = 8 / BITS;
    let byte = bytes[i / (RUN * per_byte) * RUN + i % RUN];
    byte >> (i / RUN % per_byte * BITS) & ((1 << BITS) - 1)
}

/// Scale and offset of group `j` of eight, six bits each, out of twelve bytes: those of the first four groups are the low bits
/// of bytes 0 to 3 and 4 to 7, the others lie in bytes 8 to 11 (scale low, offset high) and the two bits left over in the
/// bytes of the first four. Source: `get_scale_min_k4`.
fn scale_and_offset(bytes: &[u8], j: usize) -> (f32, f32) {
    let (scale, offset) = match j {
        0..4 => (bytes[j] & 63, bytes[j + 4] & 63),
        _ => (bytes[j + 4] & 15 | bytes[j - 4] >> 6 << 4, bytes[j + 4] >> 4 | bytes[j] >> 6 << 4),
    };
    (f32::from(scale), f32::from(offset))
}

/// The f16 at offset `at`.
fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// A byte that is an i8.
fn signed(byte: u8) -> f32 {
    f32::from(byte.cast_signed())
}
