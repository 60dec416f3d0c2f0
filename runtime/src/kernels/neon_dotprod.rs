//! NEON kernels with the dot product of Armv8.2 (Orin). Same names and signatures as `scalar`.
//!
//! `sdot` takes signed bytes on both sides, so the stored sums are not needed; the form that picks one group of four
//! activations out of a register multiplies it with four output rows of a tile at once.

use core::arch::aarch64::*;
use core::arch::asm;
use std::hint::black_box;
use std::ops::Range;

use super::attention::{DotTiles, KvPanels, Queries, instantiate_attention};
pub(super) use super::neon::{
    UNSIGNED_OPERANDS, checksum, matmul_f16, matmul_f32, quantise_row, rms_norm_f32, rope_f32, scores_f32,
    silu_f32, silu_mul_f32, softmax_f32, weighted_sum_f32,
};
use super::{Epilogue, PEAK_CHAINS, ProductI8, RowsI8, check_matmul_i8};
use crate::quant::{TILE, TILE_K, TILE_N, TilesI8, pad_k};
use crate::threads::Columns;

/// See [`super::scalar::matmul_i8`].
#[target_feature(enable = "neon,dotprod")]
pub(super) fn matmul_i8(x: RowsI8, w: TilesI8, rows: Range<usize>, epilogue: Epilogue, out: Columns<f32>) {
    let m = check_matmul_i8(x, &w, &rows, epilogue, &out);
    let groups = rows.start / TILE_N..rows.end.div_ceil(TILE_N);
    let mut product = ProductI8 { x, w, rows, epilogue, out };
    for group in groups {
        let mut i = 0;
        // 4 tokens × 16 outputs: 16 accumulators, 4 registers of activations, 4 of weights, of 32.
        while i + 4 <= m {
            block::<4>(&mut product, i, group);
            i += 4;
        }
        while i < m {
            block::<1>(&mut product, i, group);
            i += 1;
        }
    }
}

/// `M` rows from `i` on against one group of 16 outputs.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn block<const M: usize>(product: &mut ProductI8, i: usize, group: usize) {
    let k_pad = pad_k(product.w.k);
    let tiles = &product.w.tiles[group * TILE_N * k_pad..][..TILE_N * k_pad];
    // SAFETY: `NeonDotprod` needs the features that are enabled here.
    let sums: [_; M] = unsafe { NeonDotprod::dot_tiles(&product.x.q[i * k_pad..], k_pad, tiles) };
    for (r, sums) in sums.into_iter().enumerate() {
        product.store(i + r, group, sums);
    }
}

/// See [`super::scalar::peak_i8`].
#[target_feature(enable = "neon,dotprod")]
pub(super) fn peak_i8(rounds: u64) -> u64 {
    let [w, x] = black_box([vdupq_n_s8(3), vdupq_n_s8(1)]);
    // Behind a black box they may differ, so the compiler cannot make one sum of them all.
    let mut acc = black_box([vdupq_n_s32(0); PEAK_CHAINS]);
    for _ in 0..rounds {
        for acc in &mut acc {
            *acc = sdot_quad::<0>(*acc, w, x);
        }
    }
    black_box(acc);
    rounds * (PEAK_CHAINS * 16) as u64
}

/// Four output rows of a tile and four activations in one instruction.
pub(super) struct NeonDotprod;

impl DotTiles for NeonDotprod {
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn dot_tiles<const M: usize>(x: &[i8], stride: usize, tiles: &[i8]) -> [[i32; TILE_N]; M] {
        assert!(x.len() >= (M - 1) * stride + tiles.len() / TILE_N);
        let mut acc = [[vdupq_n_s32(0); 4]; M];
        for (step, tiles) in tiles.chunks_exact(4 * TILE).enumerate() {
            let mut rows = [vdupq_n_s8(0); M];
            for (r, row) in rows.iter_mut().enumerate() {
                // SAFETY: `x` holds M rows, `stride` apart, of as many inputs as the tiles, which are a multiple of 16.
                *row = unsafe { vld1q_s8(x.as_ptr().add(r * stride + step * 4 * TILE_K)) };
            }
            quad::<0, M>(&mut acc, rows, tiles);
            quad::<1, M>(&mut acc, rows, tiles);
            quad::<2, M>(&mut acc, rows, tiles);
            quad::<3, M>(&mut acc, rows, tiles);
        }
        let mut sums = [[0; TILE_N]; M];
        for (sums, acc) in sums.iter_mut().zip(acc) {
            for (sums, acc) in sums.chunks_exact_mut(4).zip(acc) {
                // SAFETY: `sums` is four elements.
                unsafe { vst1q_s32(sums.as_mut_ptr(), acc) };
            }
        }
        sums
    }
}

instantiate_attention! { NeonDotprod, #[target_feature(enable = "neon,dotprod")] }

/// Tile `QUAD` of four: inputs `4 · QUAD..` of every token's register.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn quad<const QUAD: usize, const M: usize>(acc: &mut [[int32x4_t; 4]; M], x: [int8x16_t; M], tiles: &[i8]) {
    let tile = &tiles[QUAD * TILE..][..TILE];
    for (part, rows) in tile.chunks_exact(16).enumerate() {
        // SAFETY: `rows` is 16 bytes.
        let rows = unsafe { vld1q_s8(rows.as_ptr()) };
        for (acc, x) in acc.iter_mut().zip(x) {
            acc[part] = sdot_quad::<QUAD>(acc[part], rows, x);
        }
    }
}

/// `acc[i] + Σ_{j<4} w[4i + j] · x[4 · QUAD + j]`, one `sdot`.
///
/// Inline asm because `vdotq_laneq_s32` is unstable (rust-lang/rust#117224).
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot_quad<const QUAD: usize>(mut acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: register-only instruction; dotprod is enabled on this function.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {w:v}.16b, {x:v}.4b[{quad}]",
            acc = inout(vreg) acc,
            w = in(vreg) w,
            x = in(vreg) x,
            quad = const QUAD,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}
