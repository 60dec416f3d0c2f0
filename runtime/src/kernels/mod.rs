//! CPU kernels: one scalar definition, one file per instruction set, one dispatch table.
//!
//! | kernel | formula | called by |
//! |---|---|---|
//! | `quantise_row` | `q = round(x · 127/amax)` | linear layers, KV writes |
//! | `matmul_i8` | `out = Σ over parts (q · wᵀ) · scale_x · scale_w + bias` over `n16k4` tiles | every INT8 linear layer |
//! | `matmul_f16`, `matmul_f32` | `out = x · wᵀ + bias` over plain rows | float layers and bundles |
//! | `rms_norm_f32` | `x / √(mean x² + eps) · w` | norms |
//! | `softmax_f32` | `e^(x − max) / Σ` | attention, sampling |
//! | `silu_f32`, `silu_mul_f32` | `x · sigmoid(x)`, and times a second operand | convolution nets, SwiGLU |
//! | `rope_f32` | rotates the pairs `(i, i + head_dim/2)` | queries and keys |
//! | `scores_i8`, `softmax_u14`, `weighted_sum_i8` | `q · kᵀ`, `2^(s − max)` in 14 bits, `Σ p · v` over 16-token panels | attention |
//! | `scores_f32`, `weighted_sum_f32` | one query · up to 16 keys, `out += Σ p · v` | attention of float bundles |
//! | `checksum` | exclusive or of all bytes | [`crate::limits`] |
//! | `peak_i8` | nothing but the set's INT8 instruction | [`crate::limits`] |
//!
//! Integer kernels of all sets agree bit for bit because integers do; the float ones because every set is
//! compiled from the bodies in `float.rs`, whose order of operations is that of [`crate::quant`].
//! A new kernel is a new field of [`Kernels`]: the compiler then lists every set that lacks it, and the tests run over
//! every set that the machine can run.
#![allow(unsafe_code)]
// The whole module is lanes, tiles and bit patterns: casts between them are its business, and one SAFETY line per loop does.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::multiple_unsafe_ops_per_block
)]

use std::ops::Range;

use crate::quant::{TILE_N, TilesI8, pad_k};
use crate::threads::Columns;

pub mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod dispatch;
mod float;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_dotprod;
#[cfg(target_arch = "aarch64")]
mod neon_i8mm;
mod scalar;

pub use dispatch::{Kernels, kernels};

/// Keys or values that one attention kernel call takes at most: the block of the KV arena.
pub const KV_BLOCK: usize = 16;

/// Sums that `peak_i8` has in progress: enough to hide the latency of one (4 or 5 cycles, two or three begun in each).
const PEAK_CHAINS: usize = 12;

/// Activations of `m` tokens, quantised.
#[derive(Clone, Copy, Debug)]
pub struct RowsI8<'a> {
    /// `[m, parts, pad_k(k)] i8`, tails zero, then made an operand by [`Kernels::make_operand`].
    pub q: &'a [i8],
    /// `[m, parts] f32`.
    pub scale: &'a [f32],
    /// INT8 rows whose products add up to a token's: 1, or 2 where a second row holds what rounding the first one left.
    pub parts: usize,
}

/// A linear layer's float weights in plain rows.
#[derive(Clone, Copy, Debug)]
pub struct FloatRows<'a, T> {
    /// `[n, k]`.
    pub rows: &'a [T],
    /// Output rows.
    pub n: usize,
    /// Inputs.
    pub k: usize,
}

/// What happens to a product on its way to memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// `[n] f32`, added to the product.
    pub bias: Option<&'a [f32]>,
    /// Whether the result is added to what stands in the output instead of replacing it.
    pub residual: bool,
}

/// An INT8 matrix product in progress; its lengths are those that [`check_matmul_i8`] asks for.
struct ProductI8<'a> {
    x: RowsI8<'a>,
    w: TilesI8<'a>,
    rows: Range<usize>,
    epilogue: Epilogue<'a>,
    out: Columns<'a, f32>,
}

impl ProductI8<'_> {
    /// Scales the accumulators of row `i` and one group of outputs back, and stores those that were asked for: the first part of
    /// a token with the epilogue, the others added to it, so the parts must come in order.
    #[inline(always)]
    fn store(&mut self, i: usize, group: usize, acc: [i32; TILE_N]) {
        let first = group * TILE_N;
        let wanted = self.rows.start.max(first)..self.rows.end.min(first + TILE_N);
        let (part, x_scale) = (i % self.x.parts, self.x.scale[i]);
        let out = &mut self.out.row(i / self.x.parts)[wanted.start - self.rows.start..];
        let bias = self.epilogue.bias.filter(|_| part == 0);
        let adds = part > 0 || self.epilogue.residual;
        for (out, n) in out.iter_mut().zip(wanted) {
            let mut y = acc[n - first] as f32 * (x_scale * self.w.scale[n]);
            if let Some(bias) = bias {
                y += bias[n];
            }
            *out = if adds { *out + y } else { y };
        }
    }
}

/// What every `matmul_i8` asks of its arguments; returns the number of INT8 rows, `m · parts`.
///
/// # Panics
/// If a length does not fit.
fn check_matmul_i8(
    x: RowsI8,
    w: &TilesI8,
    rows: &Range<usize>,
    epilogue: Epilogue,
    out: &Columns<f32>,
) -> usize {
    w.assert_shapes();
    assert!(w.k > 0, "a product of no inputs");
    let m = x.scale.len();
    assert!(x.parts > 0 && m.is_multiple_of(x.parts), "{m} rows in tokens of {} parts", x.parts);
    assert_eq!(x.q.len(), m * pad_k(w.k), "activations of {m} rows for {} inputs", w.k);
    check_output(m / x.parts, w.n, rows, epilogue, out);
    m
}

/// What every float `matmul` asks of its arguments; returns `m`.
///
/// # Panics
/// If a length does not fit.
fn check_matmul_float<T>(
    x: &[f32],
    w: &FloatRows<T>,
    rows: &Range<usize>,
    epilogue: Epilogue,
    out: &Columns<f32>,
) -> usize {
    assert_eq!(w.rows.len(), w.n * w.k, "weights of {} × {}", w.n, w.k);
    assert!(w.k > 0 && x.len().is_multiple_of(w.k), "activations of {} for {} inputs", x.len(), w.k);
    let m = x.len() / w.k;
    check_output(m, w.n, rows, epilogue, out);
    m
}

fn check_output(m: usize, n: usize, rows: &Range<usize>, epilogue: Epilogue, out: &Columns<f32>) {
    assert!(rows.start <= rows.end && rows.end <= n, "output rows {rows:?} of {n}");
    assert!(epilogue.bias.is_none_or(|bias| bias.len() == n), "one bias per output row");
    assert_eq!((out.rows(), out.width()), (m, rows.len()), "output of {m} × {}", rows.len());
}

#[cfg(test)]
pub(crate) mod tests;
