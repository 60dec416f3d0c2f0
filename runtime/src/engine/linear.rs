//! The linear layer: `out = x · wᵀ + bias`, INT8 or float.
//!
//! The INT8 way, which nearly all of a model's time goes to: each token's activations are quantised with their own scale, multiplied
//! with the row-scaled INT8 tiles in integers, and scaled back: [`crate::quant`] says the arithmetic, `kernels/` does it.

use std::ops::Range;

use half::f16;

use super::Engine;
use crate::kernels::{FloatRows, Kernels, RowsI8};
use crate::quant::{TilesI8, f16_to_f32, pad_k};

/// Output rows that a thread's share is a multiple of when there is one token.
const OUTPUT_BLOCK: usize = 64;
/// Products of fewer multiplications stay on one thread: the AVX-512 set is through with these in about 10 µs.
const PARALLEL_MACS: usize = 2 << 20;

/// The weights of a linear layer, in one of the three kinds a bundle holds.
#[derive(Clone, Copy, Debug)]
pub enum Linear<'a> {
    /// INT8 tiles, activations quantised per token.
    I8 {
        /// The weights.
        tiles: TilesI8<'a>,
        /// INT8 rows a token: 1, or 2 to keep what rounding the first one leaves (about 15 bits in all).
        parts: usize,
    },
    /// Half weights, `rows [n, k]`.
    F16 {
        /// `[n, k] f16`.
        rows: &'a [f16],
        /// Outputs.
        n: usize,
        /// Inputs.
        k: usize,
    },
    /// Single weights, `rows [n, k]`.
    F32 {
        /// `[n, k] f32`.
        rows: &'a [f32],
        /// Outputs.
        n: usize,
        /// Inputs.
        k: usize,
    },
}

impl Linear<'_> {
    /// Outputs.
    pub fn n(&self) -> usize {
        match *self {
            Self::I8 { tiles: TilesI8 { n, .. }, .. } | Self::F16 { n, .. } | Self::F32 { n, .. } => n,
        }
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        match *self {
            Self::I8 { tiles: TilesI8 { k, .. }, .. } | Self::F16 { k, .. } | Self::F32 { k, .. } => k,
        }
    }

    /// Weight row `n` as floats: how an embedding is read from the matrix that a tied head multiplies by.
    ///
    /// Shapes: `out [k] f32`.
    ///
    /// # Panics
    /// If there is no such row or `out` is not `k` long.
    pub fn row(&self, n: usize, out: &mut [f32]) {
        assert!(n < self.n(), "row {n} of {}", self.n());
        match *self {
            Self::I8 { tiles, .. } => tiles.dequantise_row(n, out),
            Self::F16 { rows, k, .. } => {
                assert_eq!(out.len(), k);
                for (out, &w) in out.iter_mut().zip(&rows[n * k..(n + 1) * k]) {
                    *out = f16_to_f32(w);
                }
            }
            Self::F32 { rows, k, .. } => out.copy_from_slice(&rows[n * k..(n + 1) * k]),
        }
    }
}

/// Where a linear layer keeps its quantised activations. Made once, for the largest layer and the most tokens.
#[derive(Debug)]
pub struct LinearScratch {
    q: Vec<i8>,
    scale: Vec<f32>,
    rest: Vec<f32>,
}

/// Most INT8 rows a token.
const MAX_PARTS: usize = 2;

impl LinearScratch {
    /// Room for `max_m` tokens of `max_k` inputs.
    pub fn new(max_m: usize, max_k: usize) -> Self {
        let rows = MAX_PARTS * max_m;
        Self { q: vec![0; rows * pad_k(max_k)], scale: vec![0.0; rows], rest: vec![0.0; max_k] }
    }
}

impl Engine {
    /// `out = x · wᵀ + bias`.
    ///
    /// Shapes: `x [m, k] f32`, `w [n, k]`, `bias [n] f32`, `out [m, n] f32`.
    ///
    /// # Panics
    /// If a length does not fit, or `scratch` was made for less.
    pub fn linear(
        &self,
        x: &[f32],
        m: usize,
        w: Linear,
        bias: Option<&[f32]>,
        out: &mut [f32],
        scratch: &mut LinearScratch,
    ) {
        assert_eq!(x.len(), m * w.k(), "activations of {m} × {}", w.k());
        self.product(x, w, 0..w.n(), bias, out, scratch);
    }

    /// [`Self::linear`] for some of the output rows, without bias: the logits of a token range.
    ///
    /// Shapes: `x [m, k] f32`, `w [n, k]`, `out [m, rows.len()] f32`.
    ///
    /// # Panics
    /// If a length does not fit, or `scratch` was made for less.
    pub fn linear_rows(
        &self,
        x: &[f32],
        m: usize,
        w: Linear,
        rows: Range<usize>,
        out: &mut [f32],
        scratch: &mut LinearScratch,
    ) {
        assert_eq!(x.len(), m * w.k(), "activations of {m} × {}", w.k());
        self.product(x, w, rows, None, out, scratch);
    }

    fn product(
        &self,
        x: &[f32],
        w: Linear,
        rows: Range<usize>,
        bias: Option<&[f32]>,
        out: &mut [f32],
        scratch: &mut LinearScratch,
    ) {
        let m = x.len() / w.k();
        assert!(rows.start <= rows.end && rows.end <= w.n(), "output rows {rows:?} of {}", w.n());
        let kernels = self.kernels;
        match w {
            Linear::I8 { tiles: w, parts } => {
                let row = parts * pad_k(w.k);
                for (i, x) in x.chunks_exact(w.k).enumerate() {
                    let (q, scale) =
                        (&mut scratch.q[i * row..][..row], &mut scratch.scale[i * parts..][..parts]);
                    quantise(kernels, x, q, scale, &mut scratch.rest[..w.k]);
                }
                let (q, scale) = (&scratch.q[..m * row], &scratch.scale[..m * parts]);
                self.split(m, parts * w.k, rows, out, |tokens, rows, out| {
                    let q = &q[tokens.start * row..tokens.end * row];
                    let scale = &scale[tokens.start * parts..tokens.end * parts];
                    (kernels.matmul_i8)(RowsI8 { q, scale, parts }, w, rows, bias, out);
                });
            }
            Linear::F16 { rows: weights, n, k } => self.split(m, k, rows, out, |tokens, rows, out| {
                let w = FloatRows { rows: weights, n, k };
                (kernels.matmul_f16)(&x[tokens.start * k..tokens.end * k], w, rows, bias, out);
            }),
            Linear::F32 { rows: weights, n, k } => self.split(m, k, rows, out, |tokens, rows, out| {
                let w = FloatRows { rows: weights, n, k };
                (kernels.matmul_f32)(&x[tokens.start * k..tokens.end * k], w, rows, bias, out);
            }),
        }
    }

    /// Shares a product between the threads: by tokens when there are several, by output rows when there is one.
    /// Either way each share is one piece of `out`.
    fn split(
        &self,
        m: usize,
        k: usize,
        rows: Range<usize>,
        out: &mut [f32],
        product: impl Fn(Range<usize>, Range<usize>, &mut [f32]) + Sync,
    ) {
        let width = rows.len();
        assert_eq!(out.len(), m * width, "output of {m} × {width}");
        if m == 0 || width == 0 {
            return;
        }
        let threads = if m * k * width < PARALLEL_MACS { 1 } else { self.threads() };
        if threads == 1 {
            product(0..m, rows, out);
        } else if m == 1 {
            // Shares end where tiles end (unless the range itself starts inside one), so that none is worked on twice.
            let share = width.div_ceil(threads).next_multiple_of(OUTPUT_BLOCK);
            self.pool.for_each_chunk(out, share, &|i, out| {
                let start = rows.start + i * share;
                product(0..1, start..start + out.len(), out);
            });
        } else {
            let share = m.div_ceil(threads);
            self.pool.for_each_chunk(out, share * width, &|i, out| {
                let start = i * share;
                product(start..start + out.len() / width, rows.clone(), out);
            });
        }
    }
}

/// Quantises one token into as many INT8 rows as it has scales, each taking what the ones before it left.
///
/// Shapes: `x [k]`, `q [parts, pad_k(k)]`, `scale [parts]`, `rest [k]`.
fn quantise(kernels: &Kernels, x: &[f32], q: &mut [i8], scale: &mut [f32], rest: &mut [f32]) {
    let k_pad = q.len() / scale.len();
    rest.copy_from_slice(x);
    for (q, scale) in q.chunks_exact_mut(k_pad).zip(scale) {
        *scale = (kernels.quantise_row)(rest, q);
        for (rest, &q) in rest.iter_mut().zip(&*q) {
            *rest -= f32::from(q) * *scale;
        }
    }
}
