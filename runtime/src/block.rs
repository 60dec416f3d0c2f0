//! The decoder block, like the paper: norm, attention, residual; norm, gated feed-forward, residual.
//!
//! Rows are the tokens of one segment, computed together. A query sees the segments that are live for it and its own
//! segment up to itself; keys lie in the arena rotated by their offset inside their segment, so the query is rotated
//! once per visible segment by its distance to that segment's first token.

use crate::Result;
use crate::attention::{Attention, AttentionScratch};
use crate::config::{Modality, ModelConfig};
use crate::engine::{ActivationKinds, Activations, Engine};
use crate::kernels::{Epilogue, KV_BLOCK};
use crate::kv::{Chain, KvArena};
use crate::weights::{LinearRef, VectorRef, Weights};

/// One block's tensors.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// `[d_model]`
    attn_norm: VectorRef,
    /// `[n_heads · head_dim, d_model]`
    q: LinearRef,
    /// `[n_kv_heads · head_dim, d_model]`
    k: LinearRef,
    /// `[n_kv_heads · head_dim, d_model]`
    v: LinearRef,
    /// `[head_dim]`
    q_norm: VectorRef,
    /// `[head_dim]`
    k_norm: VectorRef,
    /// `[n_heads, modalities of the query, modalities of the key]`
    modality_bias: VectorRef,
    /// `[d_model, n_heads · head_dim]`
    o: LinearRef,
    /// `[d_model]`
    ffn_norm: VectorRef,
    /// `[d_ff, d_model]`
    gate: LinearRef,
    /// `[d_ff, d_model]`
    up: LinearRef,
    /// `[d_model, d_ff]`
    down: LinearRef,
}

/// A segment that the rows of a step see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visible {
    /// Its tokens in the arena.
    pub(crate) chain: Chain,
    /// Position of its first token.
    pub(crate) base: usize,
    /// What it is.
    pub(crate) modality: Modality,
}

/// What a row sees of its own segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Own {
    /// Everything up to itself.
    Causal,
    /// Itself alone: the slots of an action chunk.
    Itself,
}

/// Rows of one segment that go through the network together.
pub(crate) struct Step<'a> {
    /// Number of rows.
    pub(crate) rows: usize,
    /// Offset of the first row inside its segment.
    pub(crate) offset: usize,
    /// Their own segment, already extended by the rows.
    pub(crate) own: Visible,
    /// What a row sees of it.
    pub(crate) own_rule: Own,
    /// Earlier live segments, oldest first.
    pub(crate) context: &'a [Visible],
}

/// Rotary angles: `cos, sin [max_pos, head_dim / 2]`.
pub(crate) struct Rope {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Rope {
    /// Angles of positions `0..max_pos`: `pos · theta^(−2i / head_dim)`.
    pub(crate) fn new(theta: f32, head_dim: usize, max_pos: usize) -> Self {
        let half = head_dim / 2;
        let angle = |at: usize| {
            let (pos, pair) = (at / half, at % half);
            // In double precision: at position 4,096 a single-precision product is off by 2e-4 rad. Exact below 2⁵².
            #[allow(clippy::cast_precision_loss)]
            let (pos, exponent) = (pos as f64, -2.0 * pair as f64 / head_dim as f64);
            pos * f64::from(theta).powf(exponent)
        };
        // The table is single precision, as everything that it multiplies.
        #[allow(clippy::cast_possible_truncation)]
        let table = |f: fn(f64) -> f64| (0..max_pos * half).map(|at| f(angle(at)) as f32).collect();
        Self { cos: table(f64::cos), sin: table(f64::sin), half }
    }

    /// Rotates every head of `x [heads, head_dim]` to position `pos`.
    pub(crate) fn rotate(&self, e: &Engine, x: &mut [f32], pos: usize) {
        let at = pos * self.half..(pos + 1) * self.half;
        e.rope_inplace(x, &self.cos[at.clone()], &self.sin[at]);
    }
}

/// Buffers of the decoder, allocated once for at most `max_rows` rows.
pub(crate) struct BlockScratch {
    /// `[rows, n_heads · head_dim]`
    q: Vec<f32>,
    /// `[rows, n_kv_heads · head_dim]`
    k: Vec<f32>,
    /// `[rows, n_kv_heads · head_dim]`
    v: Vec<f32>,
    /// `[rows, n_heads · head_dim]`
    attended: Vec<f32>,
    /// `[rows, d_ff]`
    gate: Vec<f32>,
    /// `[rows, d_ff]`
    up: Vec<f32>,
    /// Attention's own.
    attention: AttentionScratch,
    /// What the linear layers read.
    pub(crate) activations: Activations,
}

impl BlockScratch {
    pub(crate) fn new(
        c: &ModelConfig,
        kinds: ActivationKinds,
        max_rows: usize,
        max_blocks: usize,
        e: &Engine,
    ) -> Self {
        let (heads, kv) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let rows = |n: usize| vec![0.0; max_rows * n];
        let max_k = c.d_model.max(c.d_ff).max(heads);
        Self {
            q: rows(heads),
            k: rows(kv),
            v: rows(kv),
            attended: rows(heads),
            gate: rows(c.d_ff),
            up: rows(c.d_ff),
            attention: AttentionScratch::new(c, max_blocks, e.threads()),
            activations: Activations::new(max_rows, max_k, e.threads(), kinds),
        }
    }
}

/// What a forward pass reads.
#[derive(Clone, Copy)]
pub(crate) struct Net<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) weights: &'a Weights,
    pub(crate) config: &'a ModelConfig,
    pub(crate) rope: &'a Rope,
}

impl Block {
    /// Finds the tensors of block `layer`.
    pub(crate) fn resolve(w: &Weights, layer: usize) -> Result<Self> {
        let linear = |name: &str| w.linear(&format!("layers.{layer}.{name}"));
        let vector = |name: &str| w.vector(&format!("layers.{layer}.{name}"));
        Ok(Self {
            attn_norm: vector("attn_norm.weight")?,
            q: linear("attn.q")?,
            k: linear("attn.k")?,
            v: linear("attn.v")?,
            q_norm: vector("attn.q_norm.weight")?,
            k_norm: vector("attn.k_norm.weight")?,
            modality_bias: vector("attn.modality_bias")?,
            o: linear("attn.o")?,
            ffn_norm: vector("ffn_norm.weight")?,
            gate: linear("ffn.gate")?,
            up: linear("ffn.up")?,
            down: linear("ffn.down")?,
        })
    }

    /// `x [rows, d_model]` in place: `x += attention(norm(x))`, then `x += ffn(norm(x))`.
    pub(crate) fn forward(
        &self,
        net: Net<'_>,
        layer: usize,
        step: &Step<'_>,
        x: &mut [f32],
        kv: &mut KvArena,
        s: &mut BlockScratch,
    ) {
        let (e, w, c, rows) = (net.engine, net.weights, net.config, step.rows);
        let (d, heads, kvs) = (c.d_model, c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        assert_eq!(x.len(), rows * d);

        // h = x + O · attention(norm(x))
        let (q, k, v, o) = (self.q.get(w), self.k.get(w), self.v.get(w), self.o.get(w));
        let a = &mut s.activations;
        e.load_normed(x, self.attn_norm.get(w), c.norm_eps, q, a);
        e.product(a, q, 0..heads, REPLACE, &mut s.q[..rows * heads]);
        e.product(a, k, 0..kvs, REPLACE, &mut s.k[..rows * kvs]);
        e.product(a, v, 0..kvs, REPLACE, &mut s.v[..rows * kvs]);
        self.ready_heads(net, step, s);
        store_kv(net, layer, step, kv, s);
        let bias = self.modality_bias.get(w);
        let attended = &mut s.attended[..rows * heads];
        Attention { net, layer, step, bias, kv }.forward(&s.q[..rows * heads], attended, &mut s.attention);
        let a = &mut s.activations;
        e.load(attended, o, a);
        e.product(a, o, 0..d, ADD, x);

        // y = h + down(silu(gate(norm(h))) · up(norm(h)))
        let (gate, up, down) = (self.gate.get(w), self.up.get(w), self.down.get(w));
        e.load_normed(x, self.ffn_norm.get(w), c.norm_eps, gate, a);
        e.product(a, gate, 0..c.d_ff, REPLACE, &mut s.gate[..rows * c.d_ff]);
        e.product(a, up, 0..c.d_ff, REPLACE, &mut s.up[..rows * c.d_ff]);
        e.load_gated(&s.gate[..rows * c.d_ff], &s.up[..rows * c.d_ff], down, a);
        e.product(a, down, 0..d, ADD, x);
    }

    /// Norms every head of queries and keys, and rotates the keys by their offset in the segment.
    fn ready_heads(&self, net: Net<'_>, step: &Step<'_>, s: &mut BlockScratch) {
        let (e, w, c) = (net.engine, net.weights, net.config);
        let (heads, kvs) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let (q_norm, k_norm) = (self.q_norm.get(w), self.k_norm.get(w));
        let q = &mut s.q[..step.rows * heads];
        let k = &mut s.k[..step.rows * kvs];
        e.for_each_row((q, heads), (k, kvs), &|row, q, k| {
            e.rms_norm_inplace(q, q_norm, c.norm_eps);
            e.rms_norm_inplace(k, k_norm, c.norm_eps);
            net.rope.rotate(e, k, step.offset + row);
        });
    }
}

/// A product that replaces its output.
const REPLACE: Epilogue = Epilogue { bias: None, residual: false };
/// A product that is added to its output, the residual stream.
const ADD: Epilogue = Epilogue { bias: None, residual: true };

/// Stores the rows' keys and values.
fn store_kv(net: Net<'_>, layer: usize, step: &Step<'_>, kv: &mut KvArena, s: &mut BlockScratch) {
    let kvs = net.config.n_kv_heads * net.config.head_dim;
    let (first, last) = (step.offset, step.offset + step.rows);
    let mut block_start = 0;
    // Chains are linked lists of blocks; walk this one once.
    let blocks = s.attention.blocks_of(kv, &step.own.chain);
    for &block in blocks {
        for offset in block_start.max(first)..last.min(block_start + KV_BLOCK) {
            let at = (offset - first) * kvs;
            let (k, v) = (&s.k[at..][..kvs], &s.v[at..][..kvs]);
            kv.write(net.engine, layer, (block, offset - block_start), k, v);
        }
        block_start += KV_BLOCK;
    }
}
