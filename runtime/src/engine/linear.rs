//! The linear layer: `out = x · wᵀ + bias`, INT8 or float.
//!
//! The INT8 way, which nearly all of a model's time goes to: each token's activations are quantised with their own scale, multiplied
//! with the row-scaled INT8 tiles in integers, and scaled back: [`crate::quant`] says the arithmetic, `kernels/` does it.

use std::ops::Range;

use half::f16;

use super::Engine;
use crate::kernels::{FloatRows, RowsI8};
use crate::quant::{TilesI8, f16_to_f32, pad_k};

/// Output rows that a thread's share is a multiple of when there is one token.
const OUTPUT_BLOCK: usize = 64;
/// Products of fewer multiplications stay on one thread: the AVX-512 set is through with these in about 10 µs.
const PARALLEL_MACS: usize = 2 << 20;

/// The weights of a linear layer, in one of the three kinds a bundle holds.
#[derive(Clone, Copy, Debug)]
pub enum Linear<'a> {
    /// INT8 tiles, activations quantised per token.
    I8(TilesI8<'a>),
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
            Self::I8(TilesI8 { n, .. }) | Self::F16 { n, .. } | Self::F32 { n, .. } => n,
        }
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        match *self {
            Self::I8(TilesI8 { k, .. }) | Self::F16 { k, .. } | Self::F32 { k, .. } => k,
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
            Self::I8(tiles) => tiles.dequantise_row(n, out),
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
}

impl LinearScratch {
    /// Room for `max_m` tokens of `max_k` inputs.
    pub fn new(max_m: usize, max_k: usize) -> Self {
        Self { q: vec![0; max_m * pad_k(max_k)], scale: vec![0.0; max_m] }
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
            Linear::I8(w) => {
                let k_pad = pad_k(w.k);
                let q = &mut scratch.q[..m * k_pad];
                let scale = &mut scratch.scale[..m];
                for (i, scale) in scale.iter_mut().enumerate() {
                    *scale = (kernels.quantise_row)(
                        &x[i * w.k..(i + 1) * w.k],
                        &mut q[i * k_pad..(i + 1) * k_pad],
                    );
                }
                let (q, scale) = (&*q, &*scale);
                self.split(m, w.k, rows, out, |tokens, rows, out| {
                    let x = RowsI8 { q: &q[tokens.start * k_pad..tokens.end * k_pad], scale: &scale[tokens] };
                    (kernels.matmul_i8)(x, w, rows, bias, out);
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
