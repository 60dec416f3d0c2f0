//! NEON kernels with the dot product of Armv8.2 (Orin). Same names and signatures as `scalar`.
//!
//! `sdot` takes signed bytes on both sides, so the stored sums are not needed; the form that picks one group of four
//! activations out of a register multiplies it with four output rows of a tile at once.

use core::arch::aarch64::*;
use core::arch::asm;
use std::ops::Range;

pub(super) use super::neon::{
    matmul_f16, matmul_f32, quantise_row, rms_norm_f32, rope_f32, scores_f32, silu_f32, silu_mul_f32,
    softmax_f32, weighted_sum_f32, weighted_sum_i8,
};
use super::{KV_BLOCK, ProductI8, RowsI8, check_matmul_i8, check_scores_i8, scalar};
use crate::quant::{TILE, TILE_K, TILE_N, TilesI8, pad_k};

/// See [`super::scalar::matmul_i8`].
#[target_feature(enable = "neon,dotprod")]
pub(super) fn matmul_i8(x: RowsI8, w: TilesI8, rows: Range<usize>, bias: Option<&[f32]>, out: &mut [f32]) {
    let m = check_matmul_i8(x, &w, &rows, bias, out);
    let groups = rows.start / TILE_N..rows.end.div_ceil(TILE_N);
    let mut product = ProductI8 { x, w, rows, bias, out };
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

/// `M` tokens from `i` on against one group of 16 output rows.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn block<const M: usize>(product: &mut ProductI8, i: usize, group: usize) {
    let k_pad = pad_k(product.w.k);
    let tokens = &product.x.q[i * k_pad..][..M * k_pad];
    let tiles = &product.w.tiles[group * TILE_N * k_pad..][..TILE_N * k_pad];
    let mut acc = [[vdupq_n_s32(0); 4]; M];
    for (step, tiles) in tiles.chunks_exact(4 * TILE).enumerate() {
        let mut x = [vdupq_n_s8(0); M];
        for (r, x) in x.iter_mut().enumerate() {
            // SAFETY: `tokens` holds M rows of k_pad bytes, and k_pad is a multiple of the 16 of a step.
            *x = unsafe { vld1q_s8(tokens.as_ptr().add(r * k_pad + step * 4 * TILE_K)) };
        }
        quad::<0, M>(&mut acc, x, tiles);
        quad::<1, M>(&mut acc, x, tiles);
        quad::<2, M>(&mut acc, x, tiles);
        quad::<3, M>(&mut acc, x, tiles);
    }
    for (r, acc) in acc.into_iter().enumerate() {
        let mut sums = [0; TILE_N];
        for (sums, acc) in sums.chunks_exact_mut(4).zip(acc) {
            // SAFETY: `sums` is four elements.
            unsafe { vst1q_s32(sums.as_mut_ptr(), acc) };
        }
        product.store(i + r, group, sums);
    }
}

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

/// `acc[i] + Σ_{j<4} a[4i + j] · b[4i + j]`, one `sdot`.
///
/// Inline asm because `vdotq_s32` is unstable (rust-lang/rust#117224).
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: register-only instruction; dotprod is enabled on this function.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {a:v}.16b, {b:v}.16b",
            acc = inout(vreg) acc,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

/// See [`super::scalar::scores_i8`]. A whole block of keys in steps of 16 bytes; anything else goes the scalar way.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn scores_i8(q: &[i8], q_scale: f32, k: &[i8], k_scale: &[f32], out: &mut [f32]) {
    if !q.len().is_multiple_of(16) || out.len() != KV_BLOCK {
        return scalar::scores_i8(q, q_scale, k, k_scale, out);
    }
    check_scores_i8(q, k, k_scale, out);
    let head_dim = q.len();
    for j in (0..KV_BLOCK).step_by(4) {
        let mut acc = [vdupq_n_s32(0); 4];
        for at in (0..head_dim).step_by(16) {
            // SAFETY: `head_dim` is a multiple of 16, so 16 bytes from `at` on are inside `q`.
            let query = unsafe { vld1q_s8(q.as_ptr().add(at)) };
            for (key, acc) in acc.iter_mut().enumerate() {
                // SAFETY: `k` holds 16 keys of `head_dim` bytes (`check_scores_i8`).
                *acc = sdot(*acc, query, unsafe { vld1q_s8(k.as_ptr().add((j + key) * head_dim + at)) });
            }
        }
        let sums = vpaddq_s32(vpaddq_s32(acc[0], acc[1]), vpaddq_s32(acc[2], acc[3]));
        // SAFETY: `k_scale` has 16 elements (`check_scores_i8`), of which four from `j` on are read.
        let scale = vmulq_n_f32(unsafe { vld1q_f32(k_scale.as_ptr().add(j)) }, q_scale);
        // SAFETY: `out` has 16 elements, see the top.
        unsafe { vst1q_f32(out.as_mut_ptr().add(j), vmulq_f32(vcvtq_f32_s32(sums), scale)) };
    }
}
