//! The linear layer: `out = x · wᵀ + bias`, INT8 or float.
//!
//! The INT8 way, which nearly all of a model's time goes to: each token's activations are quantised with their own scale, multiplied
//! with the row-scaled INT8 tiles in integers, and scaled back: [`crate::quant`] says the arithmetic, `kernels/` does it.

use std::ops::Range;
use std::time::Instant;

use half::f16;

use super::Engine;
use crate::kernels::{Epilogue, FloatRows, Kernels, RowsI8};
use crate::quant::{TILE_N, TilesI8, f16_to_f32, pad_k};
use crate::threads::Columns;

/// Outputs of a gated layer that are computed at a time: three groups of a tile, the most that a kernel takes at a time.
const OUTPUT_BLOCK: usize = 48;
/// Shares of a large product for each thread.
const SHARES: usize = 4;
/// Products of fewer multiplications stay on one thread: the AVX-512 set is through with these in about 5 µs.
const PARALLEL_MACS: usize = 1 << 20;
/// Rows that a product has at least when that is decided: a core that streams weights for fewer waits for memory.
const STREAMED_ROWS: usize = 4;

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

/// A linear layer and its bias `[n]`, if it has one.
pub type Biased<'a> = (Linear<'a>, Option<&'a [f32]>);

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

/// The activations of some tokens, as the linear layers that read them want them, and buffers to make and use them with. Allocated
/// once, for the largest layer and the most tokens.
#[derive(Debug, Default)]
pub struct Activations {
    loaded: Loaded,
    /// One for each thread: a row in floats.
    rows: Vec<Vec<f32>>,
    /// One for each thread: `[m, OUTPUT_BLOCK]`, the other half of a gated layer.
    panels: Vec<Vec<f32>>,
}

/// What the kernels read.
#[derive(Debug, Default)]
struct Loaded {
    /// `[m, k] f32`; of float layers only.
    x: Vec<f32>,
    /// `[m, parts, pad_k(k)] i8`
    q: Vec<i8>,
    /// `[m, parts] f32`
    scale: Vec<f32>,
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
    /// Room for `max_m` tokens of `max_k` inputs, in at most `max_parts` INT8 rows each, on an engine of `threads` threads.
    pub fn new(max_m: usize, max_k: usize, max_parts: usize, threads: usize, kinds: ActivationKinds) -> Self {
        let float = if kinds == ActivationKinds::Int8 { 0 } else { max_m * max_k };
        let int8 = if kinds == ActivationKinds::Float { 0 } else { max_parts * max_m };
        Self {
            loaded: Loaded {
                x: vec![0.0; float],
                q: vec![0; int8 * pad_k(max_k)],
                scale: vec![0.0; int8],
                m: 0,
                k: 0,
                parts: None,
            },
            rows: vec![vec![0.0; max_k]; threads],
            panels: vec![vec![0.0; max_m * OUTPUT_BLOCK]; threads],
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

    /// Fills `a` with the rows that `write(i, row)` makes, quantised if `w` wants that.
    fn fill(&self, len: usize, w: Linear, a: &mut Activations, write: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        let k = w.k();
        assert!(k > 0 && len.is_multiple_of(k), "activations of {len} for {k} inputs");
        let m = len / k;
        let Activations { loaded: a, rows, .. } = a;
        (a.m, a.k, a.parts) = (m, k, w.parts());
        let block = self.row_block(m, len);
        let Some(parts) = a.parts else {
            let x = (&mut a.x[..len], block * k);
            self.pool.for_each_piece(x, (&mut [(); 0], 0), rows, &|i, x, _, _| {
                x.chunks_exact_mut(k).enumerate().for_each(|(r, row)| write(i * block + r, row));
            });
            return;
        };
        let row_len = parts * pad_k(k);
        let q = (&mut a.q[..m * row_len], block * row_len);
        let scale = (&mut a.scale[..m * parts], block * parts);
        self.pool.for_each_piece(q, scale, rows, &|i, q, scale, row| {
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
        assert!(rows.start <= rows.end && rows.end <= w.n(), "output rows {rows:?} of {}", w.n());
        let a = &a.loaded;
        self.share(a, [(w, out, rows.len())], &mut self.nothings(), &|_, columns, out, ()| {
            self.matmul(a, w, rows.start + columns.start..rows.start + columns.end, epilogue, out);
        });
    }

    /// `a · wᵀ + bias` of several layers that read the same activations, in one go.
    ///
    /// Shapes: `a [m, k]`, `w [n, k]`, `out [m, n] f32`.
    ///
    /// # Panics
    /// As [`Self::product`].
    pub fn products<const N: usize>(&self, a: &Activations, layers: [(Biased, &mut [f32]); N]) {
        let (a, weights) = (&a.loaded, layers.each_ref().map(|&(layer, _)| layer));
        let layers = layers.map(|((w, _), out)| (w, out, w.n()));
        self.share(a, layers, &mut self.nothings(), &|n, rows, out, ()| {
            let (w, bias) = weights[n];
            self.matmul(a, w, rows, Epilogue { bias, residual: false }, out);
        });
    }

    /// `silu(a · gateᵀ + bias) · (a · upᵀ + bias)`: both products go through the gate while they are in the cache.
    ///
    /// Shapes: `a [m, k]`, `gate, up [n, k]`, `out [m, n] f32`.
    ///
    /// # Panics
    /// As [`Self::product`], or if the two layers differ in size or kind.
    pub fn gated(&self, a: &mut Activations, gate: Biased, up: Biased, out: &mut [f32]) {
        let [(gate, gate_bias), (up, up_bias)] = [gate, up];
        let epilogue = |bias| Epilogue { bias, residual: false };
        assert_eq!((gate.n(), gate.k(), gate.parts()), (up.n(), up.k(), up.parts()), "two layers alike");
        let Activations { loaded: a, panels, .. } = a;
        let a = &*a;
        self.share(a, [(gate, out, gate.n())], panels, &|_, columns, mut out, panel| {
            for first in columns.clone().step_by(OUTPUT_BLOCK) {
                let rows = first..columns.end.min(first + OUTPUT_BLOCK);
                let mut out = out.part(rows.start - columns.start..rows.end - columns.start);
                let panel = &mut panel[..a.m * rows.len()];
                self.matmul(a, gate, rows.clone(), epilogue(gate_bias), out.part(0..rows.len()));
                let panel_columns = Columns::of(panel, a.m, rows.len());
                self.matmul(a, up, rows.clone(), epilogue(up_bias), panel_columns);
                for (i, up) in panel.chunks_exact(rows.len()).enumerate() {
                    (self.kernels.silu_mul_f32)(out.row(i), up);
                }
            }
        });
    }

    /// Runs `f(which layer, outputs, their columns, scratch)` for shares of the layers' outputs, in parallel. `layers`: each layer, where
    /// its outputs go, and how many are wanted.
    #[expect(clippy::type_complexity, reason = "what a share's work is given")]
    fn share<S: Send, const N: usize>(
        &self,
        a: &Loaded,
        layers: [(Linear, &mut [f32], usize); N],
        scratch: &mut [S],
        f: &(dyn Fn(usize, Range<usize>, Columns<f32>, &mut S) + Sync),
    ) {
        let start = Instant::now();
        for (w, ..) in &layers {
            assert_eq!((a.k, a.parts), (w.k(), w.parts()), "activations of another kind of layer");
        }
        let outs = layers.map(|(_, out, n)| (out, n));
        let total: usize = outs.iter().map(|&(_, n)| n).sum();
        // Weights are read once: the threads share outputs, not tokens. A few shares each where that costs little, so that a core
        // that is held up delays less; their ends are the ends of tiles unless a range itself starts inside one.
        let shares = match (a.m * a.parts.unwrap_or(1)).max(STREAMED_ROWS) * a.k * total {
            0..PARALLEL_MACS => 1,
            _ if a.m < 64 => self.threads(),
            _ => SHARES * self.threads(),
        };
        let width = total.div_ceil(shares).max(1).next_multiple_of(TILE_N);
        self.pool.for_each_columns(outs, a.m, width, scratch, f);
        self.count_linear(start.elapsed());
    }

    /// Some outputs of one layer, on this thread.
    fn matmul(&self, a: &Loaded, w: Linear, rows: Range<usize>, epilogue: Epilogue, out: Columns<f32>) {
        let (m, kernels) = (a.m, self.kernels);
        match w {
            Linear::I8 { tiles, parts } => {
                let (q, scale) = (&a.q[..m * parts * pad_k(tiles.k)], &a.scale[..m * parts]);
                (kernels.matmul_i8)(RowsI8 { q, scale, parts }, tiles, rows, epilogue, out);
            }
            Linear::F16 { rows: weights, n, k } => {
                let w = FloatRows { rows: weights, n, k };
                (kernels.matmul_f16)(&a.x[..m * k], w, rows, epilogue, out);
            }
            Linear::F32 { rows: weights, n, k } => {
                let w = FloatRows { rows: weights, n, k };
                (kernels.matmul_f32)(&a.x[..m * k], w, rows, epilogue, out);
            }
        }
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
        kernels.make_operand(q);
    }
}
