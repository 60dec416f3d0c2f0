//! Scalar kernels: the definition of correct, in obvious loops.

use std::ops::Range;

use half::f16;

use super::attention::{DotTiles, KvPanels, Queries, instantiate_attention};
use super::{Epilogue, FloatRows, ProductI8, RowsI8, check_matmul_i8, float};
use crate::quant::{TILE, TILE_K, TILE_N, TilesI8, pad_k};
use crate::threads::Columns;

/// See [`super::Kernels::make_operand`].
pub(super) const UNSIGNED_OPERANDS: bool = false;

float::instantiate! {}

/// INT8 matrix product over `n16k4` tiles.
///
/// `out[i, n] = (Σ x.q[i, 0, ·] · w[n, ·]) as f32 · (x.scale[i, 0] · w.scale[n]) + bias[n]` for the output rows in `rows`, and the
/// same without bias for every other part added in order. With `residual` the result is added to what stands in `out`.
///
/// Shapes: out `[m, rows.len()] f32`, `bias [n] f32`.
///
/// # Panics
/// If a length does not fit.
pub(super) fn matmul_i8(x: RowsI8, w: TilesI8, rows: Range<usize>, epilogue: Epilogue, out: Columns<f32>) {
    let m = check_matmul_i8(x, &w, &rows, epilogue, &out);
    let k_pad = pad_k(w.k);
    let groups = rows.start / TILE_N..rows.end.div_ceil(TILE_N);
    let mut product = ProductI8 { x, w, rows, epilogue, out };
    for group in groups {
        let tiles = &w.tiles[group * TILE_N * k_pad..][..TILE_N * k_pad];
        for i in 0..m {
            // SAFETY: the plain way needs no features.
            let [acc] = unsafe { Scalar::dot_tiles(&x.q[i * k_pad..], k_pad, tiles) };
            product.store(i, group, acc);
        }
    }
}

/// The exclusive or of the little-endian words of eight bytes: depends on every byte and costs less than reading it. The last word may
/// lack bytes.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    let (words, tail) = bytes.as_chunks::<8>();
    let words = words.iter().fold(0, |all, word| all ^ u64::from_le_bytes(*word));
    tail.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)) ^ words
}

/// Multiplies and adds bytes in registers, [`super::PEAK_CHAINS`] instructions a round, and nothing else; returns how many
/// multiply-accumulates that were. Plain code has no instruction for it: none.
pub(super) fn peak_i8(_rounds: u64) -> u64 {
    0
}

/// `Σ a · b` in i32.
fn dot_i8(a: &[i8], b: &[i8]) -> i32 {
    a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum()
}

/// `out[i, n] = Σ x[i, ·] · w[n, ·] + bias[n]` in f32 (added to `out` with `residual`), for half weights.
pub(super) fn matmul_f16(
    x: &[f32],
    w: FloatRows<f16>,
    rows: Range<usize>,
    epilogue: Epilogue,
    out: Columns<f32>,
) {
    // SAFETY: the plain way needs no features.
    unsafe { float::matmul::<float::Plain, _, 1, 1>(x, w, rows, epilogue, out) };
}

/// `out[i, n] = Σ x[i, ·] · w[n, ·] + bias[n]` in f32.
pub(super) fn matmul_f32(
    x: &[f32],
    w: FloatRows<f32>,
    rows: Range<usize>,
    epilogue: Epilogue,
    out: Columns<f32>,
) {
    // SAFETY: as above.
    unsafe { float::matmul::<float::Plain, _, 1, 1>(x, w, rows, epilogue, out) };
}

/// Rows of activations times the tiles of 16 outputs.
pub(super) struct Scalar;

impl DotTiles for Scalar {
    #[inline(always)]
    unsafe fn dot_tiles<const M: usize>(x: &[i8], stride: usize, tiles: &[i8]) -> [[i32; TILE_N]; M] {
        let mut sums = [[0; TILE_N]; M];
        for (r, sums) in sums.iter_mut().enumerate() {
            let x = &x[r * stride..][..tiles.len() / TILE_N];
            for (x, tile) in x.chunks_exact(TILE_K).zip(tiles.chunks_exact(TILE)) {
                for (sum, w) in sums.iter_mut().zip(tile.chunks_exact(TILE_K)) {
                    *sum += dot_i8(x, w);
                }
            }
        }
        sums
    }
}

instantiate_attention! { Scalar, }
