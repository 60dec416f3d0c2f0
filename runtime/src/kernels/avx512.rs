//! AVX-512 VNNI kernels. Same names and signatures as `scalar`.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes. Flipping the top bit of an `i8` adds 128 to it as a `u8`, so
//! `Σ (x + 128) · w = Σ x · w + 128 · Σ w`; the sums of the weight rows are stored beside them and taken off at the start.

use core::arch::x86_64::*;
use std::ops::Range;

use half::f16;

use super::avx2::sum_eight;
use super::float::Dots;
use super::{FloatRows, KV_BLOCK, ProductI8, RowsI8, check_matmul_i8, check_scores_i8, float, scalar};
use crate::quant::{LANES, TILE, TILE_K, TILE_N, TilesI8, pad_k};

float::instantiate! { #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")] }

/// See [`super::scalar::matmul_i8`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn matmul_i8(x: RowsI8, w: TilesI8, rows: Range<usize>, bias: Option<&[f32]>, out: &mut [f32]) {
    let m = check_matmul_i8(x, &w, &rows, bias, out);
    let mut group = rows.start / TILE_N;
    let end = rows.end.div_ceil(TILE_N);
    let mut product = ProductI8 { x, w, rows, bias, out };
    if m == 1 {
        // One token: eight streams of weights, eight accumulators.
        while group + 8 <= end {
            product.block::<1, 8>(0, group);
            group += 8;
        }
    }
    // 8 tokens × 3 groups: 24 accumulators, 3 tiles and 1 broadcast in 32 registers.
    while group + 3 <= end {
        product.column::<3>(m, group);
        group += 3;
    }
    while group < end {
        product.column::<1>(m, group);
        group += 1;
    }
}

impl ProductI8<'_> {
    /// All tokens against `T` groups of 16 output rows, which stay in the cache meanwhile.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn column<const T: usize>(&mut self, m: usize, group: usize) {
        let mut i = 0;
        while i + 8 <= m {
            self.block::<8, T>(i, group);
            i += 8;
        }
        while i + 4 <= m {
            self.block::<4, T>(i, group);
            i += 4;
        }
        while i < m {
            self.block::<1, T>(i, group);
            i += 1;
        }
    }

    /// `M` tokens from `i` on against `T` groups of 16 output rows from `group` on.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn block<const M: usize, const T: usize>(&mut self, i: usize, group: usize) {
        let k_pad = pad_k(self.w.k);
        let tokens = &self.x.q[i * k_pad..][..M * k_pad];
        let tiles = &self.w.tiles[group * TILE_N * k_pad..][..T * TILE_N * k_pad];
        let flip = _mm512_set1_epi8(i8::MIN);
        let start: [__m512i; T] = std::array::from_fn(|t| {
            let lanes = Lanes::of(group + t, 0..self.w.n);
            _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32::<7>(lanes.load_i32(self.w.sum)))
        });
        let mut acc = [start; M];
        for quad in 0..k_pad / TILE_K {
            let mut weights = [flip; T];
            for (t, w) in weights.iter_mut().enumerate() {
                // SAFETY: `quad < k_pad/4` and `tiles` holds T · k_pad/4 tiles of 64 bytes; loads are unaligned ones.
                *w = unsafe {
                    _mm512_loadu_si512(tiles.as_ptr().add(t * TILE_N * k_pad + quad * TILE).cast())
                };
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                // SAFETY: `tokens` holds M rows of k_pad bytes, and four from `4 · quad` on are inside one.
                let x =
                    unsafe { tokens.as_ptr().add(r * k_pad + quad * TILE_K).cast::<i32>().read_unaligned() };
                let x = _mm512_xor_si512(_mm512_set1_epi32(x), flip);
                for (acc, w) in acc.iter_mut().zip(weights) {
                    *acc = _mm512_dpbusd_epi32(*acc, x, w);
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            for (t, acc) in acc.into_iter().enumerate() {
                self.store_register(i + r, group + t, acc);
            }
        }
    }

    /// [`ProductI8::store`] from a register.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn store_register(&mut self, i: usize, group: usize, acc: __m512i) {
        let lanes = Lanes::of(group, self.rows.clone());
        let scale = _mm512_mul_ps(_mm512_set1_ps(self.x.scale[i]), lanes.load(self.w.scale));
        let mut y = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), scale);
        let width = self.rows.len();
        let row = &mut self.out[i / self.x.parts * width..][..width];
        let at = row.as_mut_ptr().wrapping_add(lanes.first).wrapping_sub(self.rows.start);
        if !i.is_multiple_of(self.x.parts) {
            // SAFETY: as below; masked lanes are not read.
            y = _mm512_add_ps(unsafe { _mm512_maskz_loadu_ps(lanes.mask, at) }, y);
        } else if let Some(bias) = self.bias {
            y = _mm512_add_ps(y, lanes.load(bias));
        }
        // SAFETY: only lanes of outputs within `rows` are written, and output `n` lies at `row[n − rows.start]`.
        unsafe { _mm512_mask_storeu_ps(at, lanes.mask, y) };
    }
}

/// The 16 outputs of a group, and which of them count.
#[derive(Clone, Copy)]
struct Lanes {
    first: usize,
    /// Never has a lane at or beyond the `rows.end` that it was made with.
    mask: __mmask16,
    end: usize,
}

impl Lanes {
    #[inline]
    fn of(group: usize, rows: Range<usize>) -> Self {
        let first = group * TILE_N;
        let below = |end: usize| (1u32 << end.saturating_sub(first).min(TILE_N)) - 1;
        Self { first, mask: (below(rows.end) & !below(rows.start)) as __mmask16, end: rows.end }
    }

    /// The group's lanes of a slice over all outputs; 0 where they do not count.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(self, x: &[f32]) -> __m512 {
        assert!(self.end <= x.len());
        // SAFETY: lanes at `end` and beyond are masked, and a masked lane is not read.
        unsafe { _mm512_maskz_loadu_ps(self.mask, x.as_ptr().wrapping_add(self.first)) }
    }

    /// As [`Self::load`].
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load_i32(self, x: &[i32]) -> __m512i {
        assert!(self.end <= x.len());
        // SAFETY: as in `load`.
        unsafe { _mm512_maskz_loadu_epi32(self.mask, x.as_ptr().wrapping_add(self.first)) }
    }
}

/// See [`super::scalar::matmul_f16`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn matmul_f16(
    x: &[f32],
    w: FloatRows<f16>,
    rows: Range<usize>,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    // SAFETY: `Avx512` needs the features that are enabled here.
    unsafe { float::matmul::<Avx512, _, 4, 4>(x, w, rows, bias, out) };
}

/// See [`super::scalar::matmul_f32`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn matmul_f32(
    x: &[f32],
    w: FloatRows<f32>,
    rows: Range<usize>,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    // SAFETY: as above.
    unsafe { float::matmul::<Avx512, _, 4, 4>(x, w, rows, bias, out) };
}

/// One register of 16 lanes for each sum.
struct Avx512;

/// Stamps [`Dots`] for one weight type, given its masked load of 16.
macro_rules! dots {
    ($weight:ty, $load:expr) => {
        impl Dots<$weight> for Avx512 {
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
            unsafe fn dots<const M: usize, const N: usize>(
                x: [&[f32]; M],
                w: [&[$weight]; N],
            ) -> [[f32; N]; M] {
                let k = x[0].len();
                assert!(x.iter().all(|x| x.len() == k) && w.iter().all(|w| w.len() == k));
                let mut acc = [[_mm512_setzero_ps(); N]; M];
                for at in (0..k).step_by(LANES) {
                    // Lanes beyond the end load as zeros, and adding 0 · 0 changes no sum: none of them is ever −0.
                    let mask = ((1u32 << (k - at).min(LANES)) - 1) as __mmask16;
                    let mut weights = [_mm512_setzero_ps(); N];
                    for (wide, w) in weights.iter_mut().zip(w) {
                        // SAFETY: `w` is `k` long and the mask ends there; masked lanes are not read.
                        *wide = unsafe { $load(mask, w.as_ptr().add(at)) };
                    }
                    for (acc, x) in acc.iter_mut().zip(x) {
                        // SAFETY: as above, for `x`.
                        let x = unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr().add(at)) };
                        for (acc, w) in acc.iter_mut().zip(weights) {
                            *acc = _mm512_add_ps(*acc, _mm512_mul_ps(x, w));
                        }
                    }
                }
                let mut sums = [[0.0; N]; M];
                for (sums, acc) in sums.iter_mut().zip(&acc) {
                    for (sum, acc) in sums.iter_mut().zip(acc) {
                        *sum = sum_register(*acc);
                    }
                }
                sums
            }
        }
    };
}

/// [`crate::quant::sum_lanes`] of a register.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn sum_register(lanes: __m512) -> f32 {
    let eight = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps::<1>(lanes));
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

dots!(f32, |mask, p: *const f32| _mm512_maskz_loadu_ps(mask, p));
dots!(f16, |mask, p: *const f16| _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p.cast())));

/// See [`super::scalar::scores_i8`]. A whole block of keys in steps of 32 bytes; anything else goes the scalar way.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn scores_i8(q: &[i8], q_scale: f32, k: &[i8], k_scale: &[f32], out: &mut [f32]) {
    let (steps, tail) = q.as_chunks::<32>();
    if !tail.is_empty() || out.len() != KV_BLOCK {
        return scalar::scores_i8(q, q_scale, k, k_scale, out);
    }
    check_scores_i8(q, k, k_scale, out);
    // Here the keys are made unsigned, so that one correction, 128 · Σ q, serves all of them.
    let flip = _mm256_set1_epi8(i8::MIN);
    let mut start = _mm256_setzero_si256();
    for q in steps {
        // SAFETY: `q` is 32 bytes; the load is an unaligned one.
        start = _mm256_dpbusd_epi32(start, flip, unsafe { _mm256_loadu_si256(q.as_ptr().cast()) });
    }
    let mut acc = [_mm256_sub_epi32(_mm256_setzero_si256(), start); KV_BLOCK];
    for (step, q) in steps.iter().enumerate() {
        // SAFETY: as above.
        let query = unsafe { _mm256_loadu_si256(q.as_ptr().cast()) };
        for (j, acc) in acc.iter_mut().enumerate() {
            // SAFETY: `k` holds 16 keys of `32 · steps.len()` bytes (`check_scores_i8`).
            let key = unsafe { _mm256_loadu_si256(k.as_ptr().add((j * steps.len() + step) * 32).cast()) };
            *acc = _mm256_dpbusd_epi32(*acc, _mm256_xor_si256(key, flip), query);
        }
    }
    let [low, high] = [0, 8].map(|first| sum_eight(std::array::from_fn(|j| acc[first + j])));
    let sums = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
    // SAFETY: `k_scale` has 16 elements (`check_scores_i8`).
    let scale = _mm512_mul_ps(_mm512_set1_ps(q_scale), unsafe { _mm512_loadu_ps(k_scale.as_ptr()) });
    let y = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), scale);
    // SAFETY: `out` has 16 elements, see the top.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), y) };
}
