//! The linear layer: `out = x · wᵀ + bias`, INT8 or float.
//!
//! The INT8 way, which nearly all of a model's time goes to: each token's activations are quantised with their own scale, multiplied
//! with the row-scaled INT8 tiles in integers, and scaled back: [`crate::quant`] says the arithmetic, `kernels/` does it.

use std::ops::Range;

use half::f16;

use super::{Engine, PARALLEL_VALUES, ROW_BLOCK};
use crate::kernels::{Epilogue, FloatRows, Kernels, RowsI8};
use crate::quant::{TilesI8, f16_to_f32, pad_k};

/// Outputs that a thread's share is a multiple of: three groups of a tile, the most that a kernel takes at a time.
const OUTPUT_BLOCK: usize = 48;
/// Products of fewer multiplications stay on one thread: the AVX-512 set is through with these in about 5 µs.
const PARALLEL_MACS: usize = 1 << 20;
/// Most INT8 rows a token.
const MAX_PARTS: usize = 2;

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

    /// INT8 rows a token of its activations, or `None` where they stay float.
    pub fn parts(&self) -> Option<usize> {
        match *self {
            Self::I8 { parts, .. } => Some(parts),
            Self::F16 { .. } | Self::F32 { .. } => None,
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

/// The activations of some tokens, as the linear layers that read them want them. Allocated once, for the largest layer and the
/// most tokens.
#[derive(Debug)]
pub struct Activations {
    /// `[m, k] f32`; of float layers only.
    x: Vec<f32>,
    /// `[m, parts, pad_k(k)] i8`
    q: Vec<i8>,
    /// `[m, parts] f32`
    scale: Vec<f32>,
    /// One for each thread: a row in floats.
    rows: Vec<Vec<f32>>,
    m: usize,
    k: usize,
    parts: Option<usize>,
}

/// What the activations of a model's layers are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationKinds {
    /// INT8 rows alone.
    Int8,
    /// Floats alone.
    Float,
    /// Some layers want the one, some the other.
    Both,
}

impl Activations {
    /// Room for `max_m` tokens of `max_k` inputs on an engine of `threads` threads.
    pub fn new(max_m: usize, max_k: usize, threads: usize, kinds: ActivationKinds) -> Self {
        let float = if kinds == ActivationKinds::Int8 { 0 } else { max_m * max_k };
        let int8 = if kinds == ActivationKinds::Float { 0 } else { MAX_PARTS * max_m };
        Self {
            x: vec![0.0; float],
            q: vec![0; int8 * pad_k(max_k)],
            scale: vec![0.0; int8],
            rows: vec![vec![0.0; max_k]; threads],
            m: 0,
            k: 0,
            parts: None,
        }
    }
}

impl Engine {
    /// `out = x · wᵀ + bias`.
    ///
    /// Shapes: `x [m, k] f32`, `w [n, k]`, `bias [n] f32`, `out [m, n] f32`.
    ///
    /// # Panics
    /// If a length does not fit, or `a` was made for less.
    pub fn linear(&self, x: &[f32], w: Linear, bias: Option<&[f32]>, out: &mut [f32], a: &mut Activations) {
        self.load(x, w, a);
        self.product(a, w, 0..w.n(), Epilogue { bias, residual: false }, out);
    }

    /// Readies `x [m, k]` for the layer `w` and all that want the same of it.
    ///
    /// # Panics
    /// If `x` is not whole rows of the layer's inputs, or `a` was made for less.
    pub fn load(&self, x: &[f32], w: Linear, a: &mut Activations) {
        let k = w.k();
        self.fill(x.len(), w, a, &|i, row| row.copy_from_slice(&x[i * k..][..k]));
    }

    /// [`Self::load`] of each row's RMS norm times `norm [k]`.
    ///
    /// # Panics
    /// As [`Self::load`].
    pub fn load_normed(&self, x: &[f32], norm: &[f32], eps: f32, w: Linear, a: &mut Activations) {
        let k = w.k();
        self.fill(x.len(), w, a, &|i, row| {
            row.copy_from_slice(&x[i * k..][..k]);
            (self.kernels.rms_norm_f32)(row, norm, eps);
        });
    }

    /// [`Self::load`] of `silu(gate) · up`, both `[m, k]`.
    ///
    /// # Panics
    /// As [`Self::load`].
    pub fn load_gated(&self, gate: &[f32], up: &[f32], w: Linear, a: &mut Activations) {
        assert_eq!(gate.len(), up.len());
        let k = w.k();
        self.fill(gate.len(), w, a, &|i, row| {
            row.copy_from_slice(&gate[i * k..][..k]);
            (self.kernels.silu_mul_f32)(row, &up[i * k..][..k]);
        });
    }

    /// Fills `a` with the rows that `write(i, row)` makes, quantised if `w` wants that.
    fn fill(&self, len: usize, w: Linear, a: &mut Activations, write: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        let k = w.k();
        assert!(k > 0 && len.is_multiple_of(k), "activations of {len} for {k} inputs");
        let m = len / k;
        (a.m, a.k, a.parts) = (m, k, w.parts());
        let block = if len < PARALLEL_VALUES { m } else { ROW_BLOCK };
        let Some(parts) = a.parts else {
            let x = (&mut a.x[..len], block.max(1) * k);
            self.pool.for_each_piece(x, (&mut [(); 0], 0), &mut a.rows, &|i, x, _, _| {
                x.chunks_exact_mut(k).enumerate().for_each(|(r, row)| write(i * block + r, row));
            });
            return;
        };
        let row_len = parts * pad_k(k);
        let q = (&mut a.q[..m * row_len], block.max(1) * row_len);
        let scale = (&mut a.scale[..m * parts], block * parts);
        self.pool.for_each_piece(q, scale, &mut a.rows, &|i, q, scale, row| {
            let row = &mut row[..k];
            let rows = q.chunks_exact_mut(row_len).zip(scale.chunks_exact_mut(parts));
            for (r, (q, scale)) in rows.enumerate() {
                write(i * block + r, row);
                quantise(self.kernels, row, q, scale);
            }
        });
    }

    /// The outputs `rows` of `a · wᵀ`, through the epilogue.
    ///
    /// Shapes: `a [m, k]`, `w [n, k]`, `out [m, rows.len()] f32`.
    ///
    /// # Panics
    /// If a length does not fit, or `a` was loaded for another kind of layer.
    pub fn product(
        &self,
        a: &Activations,
        w: Linear,
        rows: Range<usize>,
        epilogue: Epilogue,
        out: &mut [f32],
    ) {
        let (m, k) = (a.m, a.k);
        assert_eq!((k, a.parts), (w.k(), w.parts()), "activations of another kind of layer");
        assert!(rows.start <= rows.end && rows.end <= w.n(), "output rows {rows:?} of {}", w.n());
        let kernels = self.kernels;
        let macs = m * a.parts.unwrap_or(1) * k * rows.len();
        // Weights are read once: the threads share outputs, not tokens. Several shares each, so that a core that is held up
        // delays little; their ends are the ends of tiles unless the range itself starts inside one.
        let shares = match macs {
            0..PARALLEL_MACS => 1,
            _ if m < 64 => self.threads(),
            _ => 4 * self.threads(),
        };
        let share = rows.len().div_ceil(shares).max(1).next_multiple_of(OUTPUT_BLOCK);
        self.pool.for_each_columns(out, (m, rows.len()), share, &|columns, out| {
            let rows = rows.start + columns.start..rows.start + columns.end;
            match w {
                Linear::I8 { tiles, parts } => {
                    let (q, scale) = (&a.q[..m * parts * pad_k(k)], &a.scale[..m * parts]);
                    (kernels.matmul_i8)(RowsI8 { q, scale, parts }, tiles, rows, epilogue, out);
                }
                Linear::F16 { rows: weights, n, k } => {
                    (kernels.matmul_f16)(
                        &a.x[..m * k],
                        FloatRows { rows: weights, n, k },
                        rows,
                        epilogue,
                        out,
                    );
                }
                Linear::F32 { rows: weights, n, k } => {
                    (kernels.matmul_f32)(
                        &a.x[..m * k],
                        FloatRows { rows: weights, n, k },
                        rows,
                        epilogue,
                        out,
                    );
                }
            }
        });
    }
}

/// Quantises one token into as many INT8 rows as it has scales, each taking what the ones before it left; `x` is used up.
///
/// Shapes: `x [k]`, `q [parts, pad_k(k)]`, `scale [parts]`.
fn quantise(kernels: &Kernels, x: &mut [f32], q: &mut [i8], scale: &mut [f32]) {
    let (k_pad, parts) = (q.len() / scale.len(), scale.len());
    for (part, (q, scale)) in q.chunks_exact_mut(k_pad).zip(scale).enumerate() {
        *scale = (kernels.quantise_row)(x, q);
        if part + 1 < parts {
            x.iter_mut().zip(&*q).for_each(|(x, &q)| *x -= f32::from(q) * *scale);
        }
    }
}
