//! NEON kernels with the matrix product of Armv8.6 (Thor). Same names and signatures as `scalar`.
//!
//! `smmla` multiplies two rows of eight bytes by two rows of eight bytes: two tokens by two outputs. Two neighbouring
//! tiles hold the eight inputs of each output as two halves, which a `zip` brings together once for all tokens.

use core::arch::aarch64::*;
use core::arch::asm;
use std::hint::black_box;
use std::ops::Range;

use super::neon_dotprod;
pub(super) use super::neon_dotprod::{
    UNSIGNED_OPERANDS, checksum, matmul_f16, matmul_f32, quantise_row, rms_norm_f32, rope_f32, scores_f32,
    scores_i8, silu_f32, silu_mul_f32, softmax_f32, softmax_u14, weighted_sum_f32, weighted_sum_i8,
};
use super::{Epilogue, PEAK_CHAINS, ProductI8, RowsI8, check_matmul_i8};
use crate::quant::{TILE, TILE_K, TILE_N, TilesI8, pad_k};
use crate::threads::Columns;

/// See [`super::scalar::matmul_i8`].
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(super) fn matmul_i8(x: RowsI8, w: TilesI8, rows: Range<usize>, epilogue: Epilogue, out: Columns<f32>) {
    let m = check_matmul_i8(x, &w, &rows, epilogue, &out);
    let groups = rows.start / TILE_N..rows.end.div_ceil(TILE_N);
    let mut product = ProductI8 { x, w, rows, epilogue, out };
    for group in groups {
        let mut i = 0;
        // 4 tokens × 16 outputs: 16 accumulators, 2 registers of activations, 2 of weights, of 32.
        while i + 4 <= m {
            pairs::<2>(&mut product, i, group);
            i += 4;
        }
        if i + 2 <= m {
            pairs::<1>(&mut product, i, group);
            i += 2;
        }
        if i < m {
            neon_dotprod::block::<1>(&mut product, i, group);
        }
    }
}

/// See [`super::scalar::peak_i8`].
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(super) fn peak_i8(rounds: u64) -> u64 {
    let [a, b] = black_box([vdupq_n_s8(3), vdupq_n_s8(1)]);
    // Behind a black box they may differ, so the compiler cannot make one sum of them all.
    let mut acc = black_box([vdupq_n_s32(0); PEAK_CHAINS]);
    for _ in 0..rounds {
        for acc in &mut acc {
            *acc = smmla(*acc, a, b);
        }
    }
    black_box(acc);
    rounds * (PEAK_CHAINS * 32) as u64
}

/// `P` pairs of tokens from `i` on against one group of 16 output rows.
#[target_feature(enable = "neon,dotprod,i8mm")]
fn pairs<const P: usize>(product: &mut ProductI8, i: usize, group: usize) {
    let k_pad = pad_k(product.w.k);
    let tokens = &product.x.q[i * k_pad..][..2 * P * k_pad];
    let tiles = &product.w.tiles[group * TILE_N * k_pad..][..TILE_N * k_pad];
    // Register `part` holds the sums of two tokens (halves) by two outputs.
    let mut acc = [[vdupq_n_s32(0); TILE_N / 2]; P];
    for (step, tiles) in tiles.chunks_exact(2 * TILE).enumerate() {
        let mut x = [vdupq_n_s8(0); P];
        for (p, x) in x.iter_mut().enumerate() {
            // SAFETY: `tokens` holds 2 · P rows of k_pad bytes, and k_pad is a multiple of the 8 of a step.
            let row =
                |r: usize| unsafe { vld1_s8(tokens.as_ptr().add((2 * p + r) * k_pad + step * 2 * TILE_K)) };
            *x = vcombine_s8(row(0), row(1));
        }
        let (near, far) = tiles.split_at(TILE);
        for (part, (near, far)) in near.chunks_exact(16).zip(far.chunks_exact(16)).enumerate() {
            // SAFETY: both are 16 bytes.
            let [near, far] =
                [near, far].map(|rows| vreinterpretq_s32_s8(unsafe { vld1q_s8(rows.as_ptr()) }));
            let low = vreinterpretq_s8_s32(vzip1q_s32(near, far));
            let high = vreinterpretq_s8_s32(vzip2q_s32(near, far));
            for (acc, x) in acc.iter_mut().zip(x) {
                acc[2 * part] = smmla(acc[2 * part], x, low);
                acc[2 * part + 1] = smmla(acc[2 * part + 1], x, high);
            }
        }
    }
    for (p, acc) in acc.into_iter().enumerate() {
        let mut sums = [[0; TILE_N]; 2];
        for (part, acc) in acc.into_iter().enumerate() {
            // SAFETY: `part < 8`, so two elements from `2 · part` on are inside either array.
            unsafe {
                vst1_s32(sums[0].as_mut_ptr().add(2 * part), vget_low_s32(acc));
                vst1_s32(sums[1].as_mut_ptr().add(2 * part), vget_high_s32(acc));
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            product.store(i + 2 * p + r, group, sums);
        }
    }
}

/// `acc[2i + j] + Σ_{l<8} a[8i + l] · b[8j + l]`, one `smmla`.
///
/// Inline asm because `vmmlaq_s32` is unstable (rust-lang/rust#117223).
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn smmla(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: register-only instruction; i8mm is enabled on this function.
    unsafe {
        asm!(
            "smmla {acc:v}.4s, {a:v}.16b, {b:v}.16b",
            acc = inout(vreg) acc,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}
