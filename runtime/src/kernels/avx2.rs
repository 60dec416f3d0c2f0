//! AVX2 kernels, for x86-64 machines without AVX-512 VNNI. Same names and signatures as `scalar`.
//!
//! Bytes are widened to 16 bits and multiplied by `vpmaddwd`, which adds pairs in 32 bits and cannot saturate, as
//! `vpmaddubsw` does for `255 · 127 · 2`.

use core::arch::asm;
use core::arch::x86_64::*;
use std::hint::black_box;
use std::ops::Range;

use half::f16;

use super::attention::{DotTiles, KvPanels, Queries, instantiate_attention};
use super::float::Dots;
use super::{Epilogue, FloatRows, PEAK_CHAINS, ProductI8, RowsI8, check_matmul_i8, float, scalar};
use crate::quant::{LANES, TILE, TILE_K, TILE_N, TilesI8, pad_k, sum_lanes};
use crate::threads::Columns;

/// See [`super::Kernels::make_operand`].
pub(super) const UNSIGNED_OPERANDS: bool = false;

float::instantiate! { #[target_feature(enable = "avx2,f16c")] }

/// See [`super::scalar::matmul_i8`].
#[target_feature(enable = "avx2,f16c")]
pub(super) fn matmul_i8(x: RowsI8, w: TilesI8, rows: Range<usize>, epilogue: Epilogue, out: Columns<f32>) {
    let m = check_matmul_i8(x, &w, &rows, epilogue, &out);
    let groups = rows.start / TILE_N..rows.end.div_ceil(TILE_N);
    let mut product = ProductI8 { x, w, rows, epilogue, out };
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

/// `M` rows from `i` on against one group of 16 outputs.
#[target_feature(enable = "avx2,f16c")]
fn block<const M: usize>(product: &mut ProductI8, i: usize, group: usize) {
    let k_pad = pad_k(product.w.k);
    let tiles = &product.w.tiles[group * TILE_N * k_pad..][..TILE_N * k_pad];
    // SAFETY: `Avx2` needs the features that are enabled here.
    let sums: [_; M] = unsafe { Avx2::dot_tiles(&product.x.q[i * k_pad..], k_pad, tiles) };
    for (r, sums) in sums.into_iter().enumerate() {
        product.store(i + r, group, sums);
    }
}

/// See [`super::scalar::checksum`].
#[target_feature(enable = "avx2")]
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    let (lines, tail) = bytes.as_chunks::<256>();
    let mut acc = [_mm256_setzero_si256(); 256 / 32];
    for line in lines {
        for (acc, bytes) in acc.iter_mut().zip(line.as_chunks::<32>().0) {
            // SAFETY: `bytes` is 32 bytes.
            *acc = _mm256_xor_si256(*acc, unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) });
        }
    }
    let mut words = [0; 256];
    for (acc, bytes) in acc.into_iter().zip(words.as_chunks_mut::<32>().0) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), acc) };
    }
    scalar::checksum(&words) ^ scalar::checksum(tail)
}

/// See [`super::scalar::peak_i8`]. The bytes are widened already; 16 products for each pair of instructions.
#[target_feature(enable = "avx2")]
pub(super) fn peak_i8(rounds: u64) -> u64 {
    let [x, y] = [_mm256_set1_epi16(3), _mm256_set1_epi16(1)];
    let mut acc = [_mm256_setzero_si256(); PEAK_CHAINS];
    for _ in 0..rounds {
        for acc in &mut acc {
            *acc = madd(*acc, x, y);
        }
    }
    black_box(acc);
    rounds * (PEAK_CHAINS * 16) as u64
}

/// `acc[i] + x[2i] · y[2i] + x[2i + 1] · y[2i + 1]`, `vpmaddwd` and `vpaddd`.
///
/// Inline asm because the compiler would multiply the same numbers only once.
#[inline]
#[target_feature(enable = "avx2")]
fn madd(mut acc: __m256i, x: __m256i, y: __m256i) -> __m256i {
    // SAFETY: register-only instructions; AVX2 is enabled on this function.
    unsafe {
        asm!(
            "vpmaddwd {product}, {x}, {y}",
            "vpaddd {acc}, {acc}, {product}",
            acc = inout(ymm_reg) acc,
            product = out(ymm_reg) _,
            x = in(ymm_reg) x,
            y = in(ymm_reg) y,
            options(nomem, nostack, preserves_flags),
        );
    }
    acc
}

impl DotTiles for Avx2 {
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn dot_tiles<const M: usize>(x: &[i8], stride: usize, tiles: &[i8]) -> [[i32; TILE_N]; M] {
        assert!(x.len() >= (M - 1) * stride + tiles.len() / TILE_N);
        // Register `part` holds, for each of four outputs, two partial sums side by side.
        let mut acc = [[_mm256_setzero_si256(); 4]; M];
        for (step, tiles) in tiles.chunks_exact(2 * TILE).enumerate() {
            let mut rows = [_mm_setzero_si128(); M];
            for (r, row) in rows.iter_mut().enumerate() {
                // SAFETY: `x` holds M rows, `stride` apart, of a quarter of the tiles' inputs each, which are a multiple of 8.
                *row = unsafe { _mm_loadl_epi64(x.as_ptr().add(r * stride + step * 2 * TILE_K).cast()) };
            }
            let rows = rows.map(|row| _mm256_castsi128_si256(_mm_cvtepi8_epi16(row)));
            quad(&mut acc, rows.map(|x| _mm256_permute4x64_epi64::<0b00_00_00_00>(x)), &tiles[..TILE]);
            quad(&mut acc, rows.map(|x| _mm256_permute4x64_epi64::<0b01_01_01_01>(x)), &tiles[TILE..]);
        }
        let mut sums = [[0; TILE_N]; M];
        for (sums, acc) in sums.iter_mut().zip(acc) {
            for (sums, pair) in sums.chunks_exact_mut(8).zip(acc.chunks_exact(2)) {
                // `hadd` works within halves: (0, 1, 4, 5), (2, 3, 6, 7) until the middle quarters change places.
                let both = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(pair[0], pair[1]));
                // SAFETY: `sums` is eight elements.
                unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), both) };
            }
        }
        sums
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

instantiate_attention! { Avx2, #[target_feature(enable = "avx2,f16c")] }

/// See [`super::scalar::matmul_f16`].
#[target_feature(enable = "avx2,f16c")]
pub(super) fn matmul_f16(
    x: &[f32],
    w: FloatRows<f16>,
    rows: Range<usize>,
    epilogue: Epilogue,
    out: Columns<f32>,
) {
    // SAFETY: `Avx2` needs the features that are enabled here.
    unsafe { float::matmul::<Avx2, _, 2, 2>(x, w, rows, epilogue, out) };
}

/// See [`super::scalar::matmul_f32`].
#[target_feature(enable = "avx2,f16c")]
pub(super) fn matmul_f32(
    x: &[f32],
    w: FloatRows<f32>,
    rows: Range<usize>,
    epilogue: Epilogue,
    out: Columns<f32>,
) {
    // SAFETY: as above.
    unsafe { float::matmul::<Avx2, _, 2, 2>(x, w, rows, epilogue, out) };
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
