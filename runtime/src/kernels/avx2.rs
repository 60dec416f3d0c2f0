//! AVX2 kernels, for x86-64 machines without AVX-512 VNNI. Same names and signatures as `scalar`.
//!
//! Bytes are widened to 16 bits and multiplied by `vpmaddwd`, which adds pairs in 32 bits and cannot saturate, as
//! `vpmaddubsw` does for `255 · 127 · 2`.

use core::arch::x86_64::*;
use std::ops::Range;

use half::f16;

use super::float::Dots;
use super::{FloatRows, KV_BLOCK, ProductI8, RowsI8, check_matmul_i8, check_scores_i8, float, scalar};
use crate::quant::{LANES, TILE, TILE_K, TILE_N, TilesI8, pad_k, sum_lanes};

float::instantiate! { #[target_feature(enable = "avx2,f16c")] }

/// See [`super::scalar::matmul_i8`].
#[target_feature(enable = "avx2,f16c")]
pub(super) fn matmul_i8(x: RowsI8, w: TilesI8, rows: Range<usize>, bias: Option<&[f32]>, out: &mut [f32]) {
    let m = check_matmul_i8(x, &w, &rows, bias, out);
    let groups = rows.start / TILE_N..rows.end.div_ceil(TILE_N);
    let mut product = ProductI8 { x, w, rows, bias, out };
    for group in groups {
        let mut i = 0;
        // 3 tokens × 16 outputs: 12 accumulators, 1 register of weights, 3 of activations, of 16.
        while i + 3 <= m {
            block::<3>(&mut product, i, group);
            i += 3;
        }
        while i < m {
            block::<1>(&mut product, i, group);
            i += 1;
        }
    }
}

/// `M` tokens from `i` on against one group of 16 output rows.
#[target_feature(enable = "avx2,f16c")]
fn block<const M: usize>(product: &mut ProductI8, i: usize, group: usize) {
    let k_pad = pad_k(product.w.k);
    let tokens = &product.x.q[i * k_pad..][..M * k_pad];
    let tiles = &product.w.tiles[group * TILE_N * k_pad..][..TILE_N * k_pad];
    // Register `part` holds, for each of four outputs, two partial sums side by side.
    let mut acc = [[_mm256_setzero_si256(); 4]; M];
    for (step, tiles) in tiles.chunks_exact(2 * TILE).enumerate() {
        let mut x = [_mm_setzero_si128(); M];
        for (r, x) in x.iter_mut().enumerate() {
            // SAFETY: `tokens` holds M rows of k_pad bytes, and k_pad is a multiple of the 8 of a step.
            *x = unsafe { _mm_loadl_epi64(tokens.as_ptr().add(r * k_pad + step * 2 * TILE_K).cast()) };
        }
        let x = x.map(|x| _mm256_castsi128_si256(_mm_cvtepi8_epi16(x)));
        quad(&mut acc, x.map(|x| _mm256_permute4x64_epi64::<0b00_00_00_00>(x)), &tiles[..TILE]);
        quad(&mut acc, x.map(|x| _mm256_permute4x64_epi64::<0b01_01_01_01>(x)), &tiles[TILE..]);
    }
    for (r, acc) in acc.into_iter().enumerate() {
        let mut sums = [0; TILE_N];
        for (sums, pair) in sums.chunks_exact_mut(8).zip(acc.chunks_exact(2)) {
            // `hadd` works within halves: (0, 1, 4, 5), (2, 3, 6, 7) until the middle quarters change places.
            let both = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(pair[0], pair[1]));
            // SAFETY: `sums` is eight elements.
            unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), both) };
        }
        product.store(i + r, group, sums);
    }
}

/// One tile: `x` holds four activations of each token, widened, four times over.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn quad<const M: usize>(acc: &mut [[__m256i; 4]; M], x: [__m256i; M], tile: &[i8]) {
    for (part, rows) in tile.chunks_exact(16).enumerate() {
        // SAFETY: `rows` is 16 bytes.
        let rows = _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(rows.as_ptr().cast()) });
        for (acc, x) in acc.iter_mut().zip(x) {
            acc[part] = _mm256_add_epi32(acc[part], _mm256_madd_epi16(rows, x));
        }
    }
}

/// See [`super::scalar::scores_i8`]. A whole block of keys in steps of 16 bytes; anything else goes the scalar way.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn scores_i8(q: &[i8], q_scale: f32, k: &[i8], k_scale: &[f32], out: &mut [f32]) {
    let (steps, tail) = q.as_chunks::<16>();
    if !tail.is_empty() || out.len() != KV_BLOCK {
        return scalar::scores_i8(q, q_scale, k, k_scale, out);
    }
    check_scores_i8(q, k, k_scale, out);
    let head_dim = q.len();
    for j in (0..KV_BLOCK).step_by(8) {
        let mut acc = [_mm256_setzero_si256(); 8];
        for (step, q) in steps.iter().enumerate() {
            // SAFETY: `q` is 16 bytes.
            let query = _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(q.as_ptr().cast()) });
            for (key, acc) in acc.iter_mut().enumerate() {
                // SAFETY: `k` holds 16 keys of `head_dim = 16 · steps.len()` bytes (`check_scores_i8`).
                let key = unsafe { _mm_loadu_si128(k.as_ptr().add((j + key) * head_dim + step * 16).cast()) };
                *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(_mm256_cvtepi8_epi16(key), query));
            }
        }
        let sums = _mm256_cvtepi32_ps(sum_eight(acc));
        // SAFETY: `k_scale` has 16 elements (`check_scores_i8`), of which eight from `j` on are read.
        let scale =
            _mm256_mul_ps(_mm256_set1_ps(q_scale), unsafe { _mm256_loadu_ps(k_scale.as_ptr().add(j)) });
        // SAFETY: `out` has 16 elements, see the top.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(j), _mm256_mul_ps(sums, scale)) };
    }
}

/// The sums of the lanes of each of `acc`, in order.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sum_eight(acc: [__m256i; 8]) -> __m256i {
    let four = |j: usize| {
        let (a, b) = (_mm256_hadd_epi32(acc[j], acc[j + 1]), _mm256_hadd_epi32(acc[j + 2], acc[j + 3]));
        // Low half: the four vectors' low lanes summed; high half: their high lanes.
        let both = _mm256_hadd_epi32(a, b);
        _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256::<1>(both))
    };
    _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(four(0)), four(4))
}

/// See [`super::scalar::matmul_f16`].
#[target_feature(enable = "avx2,f16c")]
pub(super) fn matmul_f16(
    x: &[f32],
    w: FloatRows<f16>,
    rows: Range<usize>,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    // SAFETY: `Avx2` needs the features that are enabled here.
    unsafe { float::matmul::<Avx2, _, 2, 2>(x, w, rows, bias, out) };
}

/// See [`super::scalar::matmul_f32`].
#[target_feature(enable = "avx2,f16c")]
pub(super) fn matmul_f32(
    x: &[f32],
    w: FloatRows<f32>,
    rows: Range<usize>,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    // SAFETY: as above.
    unsafe { float::matmul::<Avx2, _, 2, 2>(x, w, rows, bias, out) };
}

/// Two registers of eight lanes for each sum; two tokens by two outputs fill half the registers.
struct Avx2;

/// Stamps [`Dots`] for one weight type, given its load of eight.
macro_rules! dots {
    ($weight:ty, $load:expr) => {
        impl Dots<$weight> for Avx2 {
            #[target_feature(enable = "avx2,f16c")]
            unsafe fn dots<const M: usize, const N: usize>(
                x: [&[f32]; M],
                w: [&[$weight]; N],
            ) -> [[f32; N]; M] {
                let k = x[0].len();
                assert!(x.iter().all(|x| x.len() == k) && w.iter().all(|w| w.len() == k));
                let mut acc = [[[_mm256_setzero_ps(); 2]; N]; M];
                let whole = k / LANES * LANES;
                for at in (0..whole).step_by(8) {
                    let part = at / 8 % 2;
                    let mut weights = [_mm256_setzero_ps(); N];
                    for (wide, w) in weights.iter_mut().zip(w) {
                        // SAFETY: `at + 8 ≤ whole ≤ k`, the length of every row.
                        *wide = unsafe { $load(w.as_ptr().add(at)) };
                    }
                    for (acc, x) in acc.iter_mut().zip(x) {
                        // SAFETY: as above, for `x`.
                        let x = unsafe { _mm256_loadu_ps(x.as_ptr().add(at)) };
                        for (acc, w) in acc.iter_mut().zip(weights) {
                            acc[part] = _mm256_add_ps(acc[part], _mm256_mul_ps(x, w));
                        }
                    }
                }
                let mut sums = [[0.0; N]; M];
                for ((sums, acc), x) in sums.iter_mut().zip(&acc).zip(x) {
                    for ((sum, acc), w) in sums.iter_mut().zip(acc).zip(w) {
                        let mut lanes = [0.0; LANES];
                        for (lanes, acc) in lanes.chunks_exact_mut(8).zip(acc) {
                            // SAFETY: `lanes` is eight elements.
                            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), *acc) };
                        }
                        for (lane, (&x, &w)) in lanes.iter_mut().zip(x[whole..].iter().zip(&w[whole..])) {
                            *lane += x * float::Widen::widen(w);
                        }
                        *sum = sum_lanes(lanes);
                    }
                }
                sums
            }
        }
    };
}

dots!(f32, |p: *const f32| _mm256_loadu_ps(p));
dots!(f16, |p: *const f16| _mm256_cvtph_ps(_mm_loadu_si128(p.cast())));
