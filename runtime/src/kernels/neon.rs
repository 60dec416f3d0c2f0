//! NEON kernels for every 64-bit Arm. Same names and signatures as `scalar`.
//!
//! Without a dot product bytes are multiplied to 16 bits (`smull`) and added in pairs to 32 (`sadalp`), which no value can
//! overflow.

use core::arch::aarch64::*;
use core::arch::asm;
use std::hint::black_box;
use std::ops::Range;

use half::f16;

use super::attention::{DotTiles, KvPanels, Queries, instantiate_attention};
use super::float::{Dots, Widen};
use super::{Epilogue, FloatRows, PEAK_CHAINS, ProductI8, RowsI8, check_matmul_i8, float, scalar};
use crate::quant::{LANES, TILE, TILE_K, TILE_N, TilesI8, pad_k, sum_lanes};
use crate::threads::Columns;

/// See [`super::Kernels::make_operand`].
pub(super) const UNSIGNED_OPERANDS: bool = false;

float::instantiate! { #[target_feature(enable = "neon")] }

/// See [`super::scalar::matmul_i8`].
#[target_feature(enable = "neon")]
pub(super) fn matmul_i8(x: RowsI8, w: TilesI8, rows: Range<usize>, epilogue: Epilogue, out: Columns<f32>) {
    let m = check_matmul_i8(x, &w, &rows, epilogue, &out);
    let groups = rows.start / TILE_N..rows.end.div_ceil(TILE_N);
    let mut product = ProductI8 { x, w, rows, epilogue, out };
    for group in groups {
        let mut i = 0;
        // 2 tokens × 16 outputs: 16 accumulators, 2 registers of activations, 1 of weights, 2 of products, of 32.
        while i + 2 <= m {
            block::<2>(&mut product, i, group);
            i += 2;
        }
        while i < m {
            block::<1>(&mut product, i, group);
            i += 1;
        }
    }
}

/// `M` rows from `i` on against one group of 16 outputs.
#[target_feature(enable = "neon")]
fn block<const M: usize>(product: &mut ProductI8, i: usize, group: usize) {
    let k_pad = pad_k(product.w.k);
    let tiles = &product.w.tiles[group * TILE_N * k_pad..][..TILE_N * k_pad];
    // SAFETY: `Neon` needs no more than what is enabled here.
    let sums: [_; M] = unsafe { Neon::dot_tiles(&product.x.q[i * k_pad..], k_pad, tiles) };
    for (r, sums) in sums.into_iter().enumerate() {
        product.store(i + r, group, sums);
    }
}

/// See [`super::scalar::checksum`].
#[target_feature(enable = "neon")]
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    let (lines, tail) = bytes.as_chunks::<256>();
    let mut acc = [vdupq_n_u8(0); 256 / 16];
    for line in lines {
        for (acc, bytes) in acc.iter_mut().zip(line.as_chunks::<16>().0) {
            // SAFETY: `bytes` is 16 bytes.
            *acc = veorq_u8(*acc, unsafe { vld1q_u8(bytes.as_ptr()) });
        }
    }
    let mut words = [0; 256];
    for (acc, bytes) in acc.into_iter().zip(words.as_chunks_mut::<16>().0) {
        // SAFETY: as above.
        unsafe { vst1q_u8(bytes.as_mut_ptr(), acc) };
    }
    scalar::checksum(&words) ^ scalar::checksum(tail)
}

/// See [`super::scalar::peak_i8`]. Eight products for each pair of instructions.
#[target_feature(enable = "neon")]
pub(super) fn peak_i8(rounds: u64) -> u64 {
    let [x, y] = [vdup_n_s8(3), vdup_n_s8(1)];
    let mut acc = [vdupq_n_s32(0); PEAK_CHAINS];
    for _ in 0..rounds {
        for acc in &mut acc {
            *acc = smull_sadalp(*acc, x, y);
        }
    }
    black_box(acc);
    rounds * (PEAK_CHAINS * 8) as u64
}

/// `acc[i] + x[2i] · y[2i] + x[2i + 1] · y[2i + 1]`, `smull` and `sadalp`.
///
/// Inline asm because the compiler would multiply the same numbers only once.
#[inline]
#[target_feature(enable = "neon")]
fn smull_sadalp(mut acc: int32x4_t, x: int8x8_t, y: int8x8_t) -> int32x4_t {
    // SAFETY: register-only instructions, which every 64-bit Arm has.
    unsafe {
        asm!(
            "smull {product:v}.8h, {x:v}.8b, {y:v}.8b",
            "sadalp {acc:v}.4s, {product:v}.8h",
            acc = inout(vreg) acc,
            product = out(vreg) _,
            x = in(vreg) x,
            y = in(vreg) y,
            options(nomem, nostack, preserves_flags),
        );
    }
    acc
}

impl DotTiles for Neon {
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn dot_tiles<const M: usize>(x: &[i8], stride: usize, tiles: &[i8]) -> [[i32; TILE_N]; M] {
        assert!(x.len() >= (M - 1) * stride + tiles.len() / TILE_N);
        // Register `part` holds, for each of two outputs, two partial sums side by side.
        let mut acc = [[vdupq_n_s32(0); 8]; M];
        for (quad, tile) in tiles.chunks_exact(TILE).enumerate() {
            let mut rows = [vdup_n_s8(0); M];
            for (r, row) in rows.iter_mut().enumerate() {
                // SAFETY: `x` holds M rows, `stride` apart, of as many inputs as the tiles, and four from `4 · quad` on are inside.
                let four =
                    unsafe { x.as_ptr().add(r * stride + quad * TILE_K).cast::<i32>().read_unaligned() };
                *row = vreinterpret_s8_s32(vdup_n_s32(four));
            }
            for (part, weights) in tile.chunks_exact(8).enumerate() {
                // SAFETY: `weights` is 8 bytes.
                let weights = unsafe { vld1_s8(weights.as_ptr()) };
                for (acc, row) in acc.iter_mut().zip(rows) {
                    acc[part] = vpadalq_s16(acc[part], vmull_s8(weights, row));
                }
            }
        }
        let mut sums = [[0; TILE_N]; M];
        for (sums, acc) in sums.iter_mut().zip(acc) {
            for (sums, pair) in sums.chunks_exact_mut(4).zip(acc.chunks_exact(2)) {
                // SAFETY: `sums` is four elements.
                unsafe { vst1q_s32(sums.as_mut_ptr(), vpaddq_s32(pair[0], pair[1])) };
            }
        }
        sums
    }
}

instantiate_attention! { Neon, #[target_feature(enable = "neon")] }

/// See [`super::scalar::matmul_f16`].
#[target_feature(enable = "neon")]
pub(super) fn matmul_f16(
    x: &[f32],
    w: FloatRows<f16>,
    rows: Range<usize>,
    epilogue: Epilogue,
    out: Columns<f32>,
) {
    // SAFETY: `Neon` needs no more than what is enabled here.
    unsafe { float::matmul::<Neon, _, 2, 2>(x, w, rows, epilogue, out) };
}

/// See [`super::scalar::matmul_f32`].
#[target_feature(enable = "neon")]
pub(super) fn matmul_f32(
    x: &[f32],
    w: FloatRows<f32>,
    rows: Range<usize>,
    epilogue: Epilogue,
    out: Columns<f32>,
) {
    // SAFETY: as above.
    unsafe { float::matmul::<Neon, _, 2, 2>(x, w, rows, epilogue, out) };
}

/// Four registers of four lanes for each sum; two tokens by two outputs fill half the registers.
struct Neon;

/// A weight that NEON can widen four at a time.
trait WidenFour: Widen {
    /// # Safety
    /// Four weights must be readable at `p`.
    unsafe fn widen_four(p: *const Self) -> float32x4_t;
}

impl WidenFour for f32 {
    #[inline(always)]
    unsafe fn widen_four(p: *const Self) -> float32x4_t {
        // SAFETY: the caller's word.
        unsafe { vld1q_f32(p) }
    }
}

impl WidenFour for f16 {
    /// Inline asm because the intrinsics of half floats are unstable (rust-lang/rust#136306).
    #[inline(always)]
    unsafe fn widen_four(p: *const Self) -> float32x4_t {
        let out: float32x4_t;
        // SAFETY: the caller's word for the load; `fcvtl` is in every Armv8 and touches registers alone.
        unsafe {
            let halves = vld1_u16(p.cast());
            asm!(
                "fcvtl {out:v}.4s, {halves:v}.4h",
                out = lateout(vreg) out,
                halves = in(vreg) halves,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        out
    }
}

impl<T: WidenFour> Dots<T> for Neon {
    #[target_feature(enable = "neon")]
    unsafe fn dots<const M: usize, const N: usize>(x: [&[f32]; M], w: [&[T]; N]) -> [[f32; N]; M] {
        let k = x[0].len();
        assert!(x.iter().all(|x| x.len() == k) && w.iter().all(|w| w.len() == k));
        let mut acc = [[[vdupq_n_f32(0.0); 4]; N]; M];
        let whole = k / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            for part in 0..4 {
                let at = at + 4 * part;
                let mut weights = [vdupq_n_f32(0.0); N];
                for (wide, w) in weights.iter_mut().zip(w) {
                    // SAFETY: `at + 4 ≤ whole ≤ k`, the length of every row.
                    *wide = unsafe { T::widen_four(w.as_ptr().add(at)) };
                }
                for (acc, x) in acc.iter_mut().zip(x) {
                    // SAFETY: as above, for `x`.
                    let x = unsafe { vld1q_f32(x.as_ptr().add(at)) };
                    for (acc, w) in acc.iter_mut().zip(weights) {
                        acc[part] = vaddq_f32(acc[part], vmulq_f32(x, w));
                    }
                }
            }
        }
        let mut sums = [[0.0; N]; M];
        for ((sums, acc), x) in sums.iter_mut().zip(&acc).zip(x) {
            for ((sum, acc), w) in sums.iter_mut().zip(acc).zip(w) {
                let mut lanes = [0.0; LANES];
                for (lanes, acc) in lanes.chunks_exact_mut(4).zip(acc) {
                    // SAFETY: `lanes` is four elements.
                    unsafe { vst1q_f32(lanes.as_mut_ptr(), *acc) };
                }
                for (lane, (&x, &w)) in lanes.iter_mut().zip(x[whole..].iter().zip(&w[whole..])) {
                    *lane += x * w.widen();
                }
                *sum = sum_lanes(lanes);
            }
        }
        sums
    }
}
