//! A pass on the CPU.

use super::attention::{Attention, AttentionScratch};
use super::pass::{HEAD_EPS, Layer, Most, Pass, PassRows, QkNorms, Rows, Sequence};
use super::{ActivationKinds, Activations, Biased, Engine, layer_norm};
use crate::Result;
use crate::config::{DecoderConfig, NormPlace};
use crate::kernels::{Epilogue, KV_BLOCK};
use crate::rope::Rope;
use crate::weights::{VectorRef, Weights};

/// Rows of a pass: whole stretches of a kernel set's blocks, as many as fit into [`BUFFER_BYTES`].
const PASS_ROWS: [usize; 2] = [96, 384];
/// What the buffers of a pass may take: with the rest, a session stays below 8 MB beside its arena.
const BUFFER_BYTES: usize = 6 << 20;

impl PassRows {
    /// On the CPU, for steps of at most so much.
    pub(crate) fn on_cpu(c: &DecoderConfig, most: &Most, kinds: ActivationKinds, threads: usize) -> Self {
        let (heads, kv) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let activation = match kinds {
            ActivationKinds::Int8 => most.parts,
            ActivationKinds::Float => size_of::<f32>(),
            ActivationKinds::Both => most.parts + size_of::<f32>(),
        };
        let row = 4 * (c.d_model + 2 * (heads + kv) + c.d_ff) + activation * c.d_model.max(c.d_ff).max(heads);
        // Of each thread the scores of some queries: 16, or those of one key head.
        let key = 4 * 2 * threads * (c.n_heads / c.n_kv_heads).max(16);
        let beside = most.blocks as u128 * (KV_BLOCK * key) as u128;
        let [stretch, rows] = PASS_ROWS;
        Self { stretch, most: rows, bytes: BUFFER_BYTES, row, beside }
    }
}

/// Buffers of the decoder, allocated once.
#[derive(Default)]
pub(crate) struct CpuScratch {
    /// `[rows, n_heads · head_dim]`
    q: Vec<f32>,
    /// `[rows, n_kv_heads · head_dim]`
    k: Vec<f32>,
    /// `[rows, n_kv_heads · head_dim]`
    v: Vec<f32>,
    /// `[rows, n_heads · head_dim]`
    attended: Vec<f32>,
    /// `[rows, d_ff]`
    hidden: Vec<f32>,
    /// `[rows, d_model]` where norms come last.
    normed: Vec<f32>,
    /// Attention's own.
    attention: AttentionScratch,
    /// What the linear layers read.
    pub(crate) activations: Activations,
}

impl CpuScratch {
    /// For steps of at most so much.
    pub(crate) fn new(c: &DecoderConfig, max: Most, kinds: ActivationKinds, e: &Engine) -> Self {
        let (heads, kv) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let rows = |n: usize| vec![0.0; max.rows * n];
        let max_k = c.d_model.max(c.d_ff).max(heads);
        Self {
            q: rows(heads),
            k: rows(kv),
            v: rows(kv),
            attended: rows(heads),
            hidden: rows(c.d_ff),
            normed: rows(if c.norm_place == NormPlace::After { c.d_model } else { 0 }),
            attention: AttentionScratch::new(c, max.blocks, max.sequences, e.threads()),
            activations: Activations::new(max.rows, max_k, max.parts, e.threads(), kinds),
        }
    }
}

/// What a forward pass reads.
#[derive(Clone, Copy)]
pub(crate) struct Net<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) weights: &'a Weights,
    pub(crate) config: &'a DecoderConfig,
    pub(crate) rope: &'a Rope,
}

/// Rows on their way through the blocks.
pub(crate) struct CpuPass<'a, 'b> {
    net: Net<'a>,
    sequences: &'a mut [Sequence<'b>],
    /// `[rows, d_model]`
    x: &'a mut [f32],
    rows: usize,
    s: &'a mut CpuScratch,
}

impl<'a, 'b> CpuPass<'a, 'b> {
    /// `x [rows, d_model]` of these sequences, one after the other.
    ///
    /// # Panics
    /// If `x` is not as many rows as the sequences have.
    pub(crate) fn new(
        net: Net<'a>,
        sequences: &'a mut [Sequence<'b>],
        x: &'a mut [f32],
        s: &'a mut CpuScratch,
    ) -> Self {
        let rows = sequences.iter().map(|sequence| sequence.rows).sum::<usize>();
        assert_eq!(x.len(), rows * net.config.d_model);
        Self { net, sequences, x, rows, s }
    }

    fn get(&self, layer: &Layer) -> Biased<'a> {
        let w = self.net.weights;
        (layer.weight.get(w), layer.bias.as_ref().map(|bias| bias.get(w)))
    }

    /// Values of all rows in queries, and in keys.
    fn head_lens(&self) -> [usize; 2] {
        let c = self.net.config;
        [self.rows * c.n_heads * c.head_dim, self.rows * c.n_kv_heads * c.head_dim]
    }
}

impl Pass for CpuPass<'_, '_> {
    fn load(&mut self, from: Rows, norm: Option<&VectorRef>, to: &Layer) -> Result<()> {
        let Net { engine: e, weights: w, config: c, .. } = self.net;
        let ([heads, _], (layer, _)) = (self.head_lens(), self.get(to));
        let CpuScratch { attended, hidden, activations: a, .. } = &mut *self.s;
        let x: &[f32] = match from {
            Rows::X => self.x,
            Rows::Attended => &attended[..heads],
            Rows::Hidden => &hidden[..self.rows * c.d_ff],
        };
        match norm {
            Some(norm) => e.load_normed(x, norm.get(w), c.norm_eps, layer, a),
            None => e.load(x, layer, a),
        }
        Ok(())
    }

    fn project(&mut self, q: &Layer, k: &Layer, v: &Layer) -> Result<()> {
        let [heads, kvs] = self.head_lens();
        let [wq, wk, wv] = [q, k, v].map(|layer| self.get(layer));
        let CpuScratch { q, k, v, activations: a, .. } = &mut *self.s;
        self.net.engine.products(a, [(wq, &mut q[..heads]), (wk, &mut k[..kvs]), (wv, &mut v[..kvs])]);
        Ok(())
    }

    fn gate(&mut self, gate: &Layer, up: &Layer) -> Result<()> {
        let [gate, up] = [gate, up].map(|layer| self.get(layer));
        let CpuScratch { hidden, activations: a, .. } = &mut *self.s;
        self.net.engine.gated(a, gate, up, &mut hidden[..self.rows * self.net.config.d_ff]);
        Ok(())
    }

    fn add(&mut self, layer: &Layer, norm: Option<&VectorRef>) -> Result<()> {
        let Net { engine: e, weights: w, config: c, .. } = self.net;
        let (layer, bias) = self.get(layer);
        let a = &self.s.activations;
        let Some(norm) = norm else {
            e.product(a, layer, 0..layer.n(), Epilogue { bias, residual: true }, self.x);
            return Ok(());
        };
        let out = &mut self.s.normed[..self.x.len()];
        e.product(a, layer, 0..layer.n(), Epilogue { bias, residual: false }, out);
        e.rms_norm_inplace(out, norm.get(w), c.norm_eps);
        e.add(self.x, out);
        Ok(())
    }

    fn store(&mut self, layer: usize, norms: &QkNorms) -> Result<()> {
        let Net { engine: e, weights: w, config: c, rope } = self.net;
        let [heads, kvs] = self.head_lens();
        let CpuScratch { q, k, v, attention, .. } = &mut *self.s;
        let (q, k, v) = (&mut q[..heads], &mut k[..kvs], &v[..kvs]);
        let (heads, kvs) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let of_rows = &*self.sequences;
        e.for_each_row((q, heads), (&mut *k, kvs), &|row, q, k| {
            match norms {
                QkNorms::None => {}
                QkNorms::Rms([q_norm, k_norm]) => {
                    e.rms_norm_inplace(q, q_norm.get(w), c.norm_eps);
                    e.rms_norm_inplace(k, k_norm.get(w), c.norm_eps);
                }
                QkNorms::Layer([q_norm, k_norm]) => {
                    for (heads, [weight, bias]) in [(&mut *q, q_norm), (&mut *k, k_norm)] {
                        norm_heads(heads, c.head_dim, weight.get(w), bias.get(w));
                    }
                }
            }
            let mut first = 0;
            let sequence = of_rows.iter().find(|sequence| {
                first += sequence.rows;
                row < first
            });
            let sequence = sequence.expect("every row is of a sequence");
            rope.rotate(e, k, sequence.offset + row + sequence.rows - first);
        });
        let mut first = 0;
        for Sequence { kv, rows, offset, own, .. } in &mut *self.sequences {
            let rows = first * kvs..(first + *rows) * kvs;
            first = rows.end / kvs;
            kv.write(e, layer, (attention.blocks_of(kv, &own.chain), *offset), &k[rows.clone()], &v[rows]);
        }
        Ok(())
    }

    fn attend(&mut self, layer: usize, bias: Option<&VectorRef>) -> Result<()> {
        let [heads, _] = self.head_lens();
        let CpuScratch { q, attended, attention: scratch, .. } = &mut *self.s;
        let bias = bias.map(|bias| bias.get(self.net.weights));
        let attention = Attention { net: self.net, layer, bias };
        attention.forward(self.sequences, &q[..heads], &mut attended[..heads], scratch);
        Ok(())
    }
}

/// [`layer_norm`] of each head of `x [heads, head_dim]`; `weight, bias [heads, head_dim]`.
fn norm_heads(x: &mut [f32], head_dim: usize, weight: &[f32], bias: &[f32]) {
    let heads = weight.chunks_exact(head_dim).zip(bias.chunks_exact(head_dim));
    for (x, (weight, bias)) in x.chunks_exact_mut(head_dim).zip(heads) {
        layer_norm(x, weight, bias, HEAD_EPS);
    }
}
