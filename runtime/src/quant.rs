//! The arithmetic that every engine shares, said once: the INT8 rounding rule, the weight tile, the order in
//! which floats are added, and the exponential.
//!
//! **Integers.** `q = round_ties_even(x · 127/amax)`, clamped to ±127 (−128 never occurs), `scale = amax/127`.
//! Weights have one scale per output row, activations one per token, keys and values one per head and token.
//! Accumulators are `i32`; [`MAX_K`] is the longest product that cannot overflow one.
//!
//! **Tile `n16k4`.** `[N/16, K/4, 16, 4] i8`, N padded to 16 and K to 32 with zeros: 16 output rows × 4 consecutive
//! inputs are 64 bytes, which is one AVX-512 VNNI register, four NEON `sdot` ones, one `mma` fragment. See [`tile_index`].
//!
//! **Floats.** A sum over a row runs in [`LANES`] accumulators (element `i` goes to lane `i % 16`, in order) and
//! ends in the tree of [`sum_lanes`]. Products and sums are rounded separately (no fused multiply-add) and the
//! exponentials are [`exp_f32`] (softmax of floats) and [`exp2_f32`] (gates, INT8 attention). Every kernel set is compiled from these definitions, so all give the same bits.

use half::f16;

/// Output rows of a tile.
pub const TILE_N: usize = 16;
/// Consecutive inputs of a tile.
pub const TILE_K: usize = 4;
/// Bytes of a tile.
pub const TILE: usize = TILE_N * TILE_K;
/// The largest magnitude of a quantised value: symmetric, −128 is not used.
pub const Q_MAX: f32 = 127.0;
/// The longest dot product of quantised values that cannot overflow an `i32`: `127 · 127 · k < 2³¹`.
pub const MAX_K: usize = 133_143;
/// Accumulators of a float reduction.
pub const LANES: usize = 16;

/// Output rows after padding: the next multiple of 16.
pub const fn pad_n(n: usize) -> usize {
    n.next_multiple_of(TILE_N)
}

/// Inputs after padding: the next multiple of 32.
pub const fn pad_k(k: usize) -> usize {
    k.next_multiple_of(32)
}

/// Where weight `[n, k]` lies in its tiles, whose inputs were padded to `k_pad`.
pub const fn tile_index(n: usize, k: usize, k_pad: usize) -> usize {
    (n / TILE_N * (k_pad / TILE_K) + k / TILE_K) * TILE + n % TILE_N * TILE_K + k % TILE_K
}

/// A linear layer's INT8 weights in kernel layout.
#[derive(Clone, Copy, Debug)]
pub struct TilesI8<'a> {
    /// `[pad_n(n)/16, pad_k(k)/4, 16, 4] i8`, padding zero.
    pub tiles: &'a [i8],
    /// `[n] f32`, one scale per output row.
    pub scale: &'a [f32],
    /// `[n] i32`, the sum of each output row, for dot products that want unsigned activations.
    pub sum: &'a [i32],
    /// Output rows.
    pub n: usize,
    /// Inputs.
    pub k: usize,
}

impl TilesI8<'_> {
    /// Checks that the slices have the lengths that `n` and `k` imply.
    ///
    /// # Panics
    /// If one has not, or if `k` is above [`MAX_K`].
    pub fn assert_shapes(&self) {
        assert!(self.k <= MAX_K, "{} inputs overflow an i32 accumulator", self.k);
        assert_eq!(self.tiles.len(), pad_n(self.n) * pad_k(self.k), "tiles of {} × {}", self.n, self.k);
        assert_eq!(self.scale.len(), self.n, "one scale per output row");
        assert_eq!(self.sum.len(), self.n, "one sum per output row");
    }

    /// Output row `n` as floats: how an embedding is read from the tiles that the tied head multiplies by.
    ///
    /// Shapes: `out [k] f32`.
    ///
    /// # Panics
    /// If there is no such row or `out` is not `k` long.
    pub fn dequantise_row(&self, n: usize, out: &mut [f32]) {
        self.assert_shapes();
        assert!(n < self.n, "row {n} of {}", self.n);
        assert_eq!(out.len(), self.k);
        let start = tile_index(n, 0, pad_k(self.k));
        let quads = self.tiles[start..].chunks(TILE).map(|tile| &tile[..TILE_K]);
        for (out, quad) in out.chunks_mut(TILE_K).zip(quads) {
            for (out, &q) in out.iter_mut().zip(quad) {
                *out = f32::from(q) * self.scale[n];
            }
        }
    }
}

/// Lays INT8 rows out in tiles.
///
/// Shapes: `rows [n, k] i8` → `[pad_n(n)/16, pad_k(k)/4, 16, 4] i8`.
///
/// # Panics
/// If `rows` is not `n · k` long.
pub fn pack_n16k4(rows: &[i8], n: usize, k: usize) -> Vec<i8> {
    assert_eq!(rows.len(), n * k);
    let mut tiles = vec![0; pad_n(n) * pad_k(k)];
    for (i, row) in rows.chunks(k.max(1)).enumerate() {
        for (j, &q) in row.iter().enumerate() {
            tiles[tile_index(i, j, pad_k(k))] = q;
        }
    }
    tiles
}

/// The inverse of [`pack_n16k4`]; padding is dropped.
///
/// # Panics
/// If `tiles` is not `pad_n(n) · pad_k(k)` long.
pub fn unpack_n16k4(tiles: &[i8], n: usize, k: usize) -> Vec<i8> {
    assert_eq!(tiles.len(), pad_n(n) * pad_k(k));
    (0..n).flat_map(|i| (0..k).map(move |j| tiles[tile_index(i, j, pad_k(k))])).collect()
}

/// The sum of each INT8 row, as the bundle stores it.
///
/// Shapes: `rows [n, k] i8` → `[n] i32`.
///
/// # Panics
/// If `rows` is not `n · k` long.
pub fn row_sums(rows: &[i8], n: usize, k: usize) -> Vec<i32> {
    assert_eq!(rows.len(), n * k);
    (0..n).map(|i| rows[i * k..(i + 1) * k].iter().map(|&q| i32::from(q)).sum()).collect()
}

/// Quantises a weight matrix, one scale per output row.
///
/// Shapes: `w [n, k] f32` → `[n, k] i8`, `[n] f32`. A row that is not finite gets the scale NaN, see [`quantise_row`].
///
/// # Panics
/// If `w` is not `n · k` long.
pub fn quantise_weight_rows(w: &[f32], n: usize, k: usize) -> (Vec<i8>, Vec<f32>) {
    assert_eq!(w.len(), n * k);
    let mut rows = vec![0; n * k];
    let scale = (0..n).map(|i| quantise_row(&w[i * k..(i + 1) * k], &mut rows[i * k..(i + 1) * k])).collect();
    (rows, scale)
}

/// Quantises one row and returns its scale, so that `x ≈ q · scale`.
///
/// A row of zeros (or an empty one) gives zeros and the scale 0. A row that holds a NaN or an infinity gives zeros and the scale NaN,
/// so that whatever is computed from it is NaN and the check on the logits sees it.
///
/// Shapes: `x [k] f32`, `q [≥ k] i8`; what follows the first `k` of `q` is set to 0.
///
/// # Panics
/// If `q` is shorter than `x`.
#[inline(always)]
pub fn quantise_row(x: &[f32], q: &mut [i8]) -> f32 {
    assert!(q.len() >= x.len(), "{} values into {}", x.len(), q.len());
    let (q, tail) = q.split_at_mut(x.len());
    tail.fill(0);
    // Magnitudes order as their bits do, with infinities and NaN above every number, and an integer maximum
    // is the same in whatever order a kernel set takes it.
    let amax = x.iter().fold(0, |amax, x| (x.to_bits() & 0x7fff_ffff).max(amax));
    let amax = f32::from_bits(amax);
    if amax == 0.0 || !amax.is_finite() {
        q.fill(0);
        return if amax == 0.0 { 0.0 } else { f32::NAN };
    }
    // Below 3.7e-37 the quotient would be infinite, and 0 · ∞ is not 0.
    let inverse = (Q_MAX / amax).min(f32::MAX);
    for (q, &x) in q.iter_mut().zip(x) {
        *q = round_to_i8((x * inverse).clamp(-Q_MAX, Q_MAX));
    }
    amax / Q_MAX
}

/// `round_ties_even` of a value within ±127.
///
/// Adding 1.5 · 2²³ leaves no bits for a fraction, so the addition itself rounds to even, and the low byte
/// of the sum is the integer in two's complement. One add on every machine, where `round` may be a call.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the low byte is the result")]
fn round_to_i8(x: f32) -> i8 {
    (x + 12_582_912.0).to_bits() as i8
}

/// Adds the lanes of a reduction: 16 → 8 → 4 → 2 → 1, lane `i` taking lane `i + half`.
#[inline(always)]
pub fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    fold_lanes(lanes, |a, b| a + b)
}

/// Folds the lanes of a reduction pairwise, in the order of [`sum_lanes`].
///
/// One constant-length loop for each step: these become vector instructions, a loop over the steps does not.
#[inline(always)]
pub(crate) fn fold_lanes(lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let (mut eight, mut four, mut two) = ([0.0; 8], [0.0; 4], [0.0; 2]);
    for i in 0..8 {
        eight[i] = f(lanes[i], lanes[i + 8]);
    }
    for i in 0..4 {
        four[i] = f(eight[i], eight[i + 4]);
    }
    for i in 0..2 {
        two[i] = f(four[i], four[i + 2]);
    }
    f(two[0], two[1])
}

/// `eˣ`, within 2 units in the last place, subnormal results included; NaN stays NaN.
///
/// `x = n·ln 2 + r` with `n` the nearest integer, `eʳ` by a polynomial of degree 7, times 2ⁿ in two exact halves.
///
/// Source: the reduction and the coefficients are those of `expf` in the Cephes library (S. L. Moshier).
#[inline(always)]
#[expect(clippy::cast_possible_wrap, reason = "the sum's bits as a number")]
#[expect(clippy::excessive_precision, reason = "the digits of the source")]
pub fn exp_f32(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³, see `round_to_i8`
    const LN2_HI: f32 = 0.693_359_375; // nine bits, so that n · LN2_HI is exact
    const LN2_LO: f32 = -2.121_944_40e-4;
    // e⁸⁹ is above every f32 and e⁻¹⁰⁴ rounds to 0; `clamp` lets NaN through.
    let x = x.clamp(-104.0, 89.0);
    let shifted = x * core::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HI - n * LN2_LO;
    let mut p = 1.987_569_150_0e-4;
    for c in
        [1.398_199_950_7e-3, 8.333_451_907_3e-3, 4.166_579_589_4e-2, 1.666_666_545_9e-1, 5.000_000_120_1e-1]
    {
        p = p * r + c;
    }
    let p = p * (r * r) + r + 1.0;
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    p * pow2(half) * pow2(n.wrapping_sub(half))
}

/// `x · Φ(x)`, exact to 1.5e-7 of `x`.
///
/// `Φ(x)` is the tail `½ · erfc(|x|/√2)` below zero and one less the tail above it, so that nothing cancels.
///
/// Source: Hendrycks and Gimpel 2016 (arXiv:1606.08415); the error function by Abramowitz and Stegun, 7.1.26.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    const A: [f32; 4] = [-1.453_152_1, 1.421_413_8, -0.284_496_74, 0.254_829_6];
    let z = x.abs() * core::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let mut series = 1.061_405_4;
    for a in A {
        series = series * t + a;
    }
    let tail = 0.5 * (series * t) * exp_f32(-(z * z));
    x * if x < 0.0 { tail } else { 1.0 - tail }
}

/// The least exponent of [`exp2_f32`]. What it gives is far below half a step of anything, and still so large that a product with a
/// scale is a normal number: x86 cores take 150 cycles to make a subnormal one.
pub(crate) const EXP2_LOWEST: f32 = -100.0;

/// The polynomial of [`exp2_f32`], highest power first.
#[expect(clippy::excessive_precision, reason = "the digits of the fit")]
pub(crate) const EXP2: [f32; 6] =
    [1.327_647_22e-3, 9.675_541_33e-3, 5.550_713_27e-2, 2.402_211_97e-1, 6.931_469_67e-1, 1.000_000_07];

/// `2ˣ` within 2.5e-7 of it (relative) for x from −100, below which it stays as it is there, to 127.5, above which it is infinite. NaN
/// stays NaN.
///
/// For attention weights (`log2 e` is in the scores' scale) and gates: no reduction by ln 2 in two parts, no second factor for
/// subnormal results, one polynomial of degree 5 (minimax of the relative error on ±½: 7.5e-8).
#[inline(always)]
pub fn exp2_f32(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³, see `round_to_i8`
    let x = x.clamp(EXP2_LOWEST, 128.0);
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let mut p = EXP2[0];
    for c in &EXP2[1..] {
        p = p * r + c;
    }
    // The low bits of `shifted` are the integer part; anything beside a NaN.
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()))
}

/// `2ⁿ` for n within the normal exponents; anything for other n (they occur only beside a NaN).
#[inline(always)]
#[expect(clippy::cast_sign_loss, reason = "an exponent field")]
fn pow2(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// `x · sigmoid(x)`, also known as swish, within 1e-6 of it (relative) for x above −16, where it is −2e-6.
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp2_f32(x * -core::f32::consts::LOG2_E))
}

/// An IEEE half as a single, exactly. Plain integer and float operations, so that loops over it vectorise
/// everywhere.
///
/// Subnormal halves become normal through an exact multiplication by 2¹¹².
#[inline(always)]
pub fn f16_to_f32(h: f16) -> f32 {
    let bits = u32::from(h.to_bits());
    let magnitude = (bits & 0x7fff) << 13;
    let special = if magnitude >= 0x7c00 << 13 { 0x7f80_0000 } else { 0 };
    let scaled = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
    f32::from_bits(scaled | special | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests;
