//! Scalar kernels: the definition of correct, in obvious loops.

use std::ops::Range;

use half::f16;

use super::{FloatRows, ProductI8, RowsI8, check_matmul_i8, check_scores_i8, float};
use crate::quant::{TILE, TILE_K, TILE_N, TilesI8, pad_k};

float::instantiate! {}

/// INT8 matrix product over `n16k4` tiles.
///
/// `out[i, n] = (Σ x.q[i, 0, ·] · w[n, ·]) as f32 · (x.scale[i, 0] · w.scale[n]) + bias[n]` for the output rows in `rows`, and the
/// same without bias for every other part added in order.
///
/// Shapes: out `[m, rows.len()] f32`, `bias [n] f32`.
///
/// # Panics
/// If a length does not fit.
pub(super) fn matmul_i8(x: RowsI8, w: TilesI8, rows: Range<usize>, bias: Option<&[f32]>, out: &mut [f32]) {
    let m = check_matmul_i8(x, &w, &rows, bias, out);
    let k_pad = pad_k(w.k);
    let groups = rows.start / TILE_N..rows.end.div_ceil(TILE_N);
    let mut product = ProductI8 { x, w, rows, bias, out };
    for group in groups {
        let tiles = &w.tiles[group * TILE_N * k_pad..][..TILE_N * k_pad];
        for i in 0..m {
            product.store(i, group, dot_tiles(&x.q[i * k_pad..][..k_pad], tiles));
        }
    }
}

/// One row of activations times 16 output rows.
fn dot_tiles(q: &[i8], tiles: &[i8]) -> [i32; TILE_N] {
    let mut acc = [0; TILE_N];
    for (q, tile) in q.chunks_exact(TILE_K).zip(tiles.chunks_exact(TILE)) {
        for (acc, w) in acc.iter_mut().zip(tile.chunks_exact(TILE_K)) {
            *acc += dot_i8(q, w);
        }
    }
    acc
}

/// `Σ a · b` in i32.
fn dot_i8(a: &[i8], b: &[i8]) -> i32 {
    a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum()
}

/// `out[i, n] = Σ x[i, ·] · w[n, ·] + bias[n]` in f32, for half weights.
pub(super) fn matmul_f16(
    x: &[f32],
    w: FloatRows<f16>,
    rows: Range<usize>,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    // SAFETY: the plain way needs no features.
    unsafe { float::matmul::<float::Plain, _, 1, 1>(x, w, rows, bias, out) };
}

/// `out[i, n] = Σ x[i, ·] · w[n, ·] + bias[n]` in f32.
pub(super) fn matmul_f32(
    x: &[f32],
    w: FloatRows<f32>,
    rows: Range<usize>,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    // SAFETY: as above.
    unsafe { float::matmul::<float::Plain, _, 1, 1>(x, w, rows, bias, out) };
}

/// One query against up to 16 keys: `out[j] = (q · k[j]) as f32 · (q_scale · k_scale[j])`.
///
/// Shapes: `q [head_dim] i8`, `k [keys, head_dim] i8`, `k_scale [keys] f32`, out `[keys] f32`.
///
/// # Panics
/// If a length does not fit.
pub(super) fn scores_i8(q: &[i8], q_scale: f32, k: &[i8], k_scale: &[f32], out: &mut [f32]) {
    check_scores_i8(q, k, k_scale, out);
    for (j, (out, &k_scale)) in out.iter_mut().zip(k_scale).enumerate() {
        *out = dot_i8(q, &k[j * q.len()..][..q.len()]) as f32 * (q_scale * k_scale);
    }
}
