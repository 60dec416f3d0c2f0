//! The decoder block, like the paper: norm, attention, residual; norm, gated feed-forward, residual.
//!
//! Rows are the tokens of one segment, computed together. A query sees the segments that are live for it and its own
//! segment up to itself; keys lie in the arena rotated by their offset inside their segment, so the query is rotated
//! once per visible segment by its distance to that segment's first token.

use crate::Result;
use crate::config::{Modality, ModelConfig};
use crate::engine::{Engine, LinearScratch};
use crate::kernels::KV_BLOCK;
use crate::kv::{BlockId, Chain, KvArena, KvBlock, KvDtype};
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
    fn rotate(&self, e: &Engine, x: &mut [f32], pos: usize) {
        let at = pos * self.half..(pos + 1) * self.half;
        e.rope_inplace(x, &self.cos[at.clone()], &self.sin[at]);
    }
}

/// Buffers of the decoder, allocated once for at most `max_rows` rows.
pub(crate) struct BlockScratch {
    /// `[rows, d_model]`
    normed: Vec<f32>,
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
    /// `[rows, d_model]`
    update: Vec<f32>,
    /// Visible blocks of the step, in the order of the scores: segment (its index in `Visible`s) and block.
    blocks: Vec<(usize, BlockId)>,
    /// `[n_heads · head_dim]`, one row's query turned towards one segment.
    turned: Vec<f32>,
    /// The same, quantised.
    turned_i8: Vec<i8>,
    /// `[n_heads]`, its scales.
    turned_scale: Vec<f32>,
    /// `[n_heads, max_blocks · 16]`
    scores: Vec<f32>,
    /// The linear layers' own.
    pub(crate) linear: LinearScratch,
}

impl BlockScratch {
    pub(crate) fn new(c: &ModelConfig, max_rows: usize, max_blocks: usize) -> Self {
        let (heads, kv) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let rows = |n: usize| vec![0.0; max_rows * n];
        Self {
            normed: rows(c.d_model),
            q: rows(heads),
            k: rows(kv),
            v: rows(kv),
            attended: rows(heads),
            gate: rows(c.d_ff),
            up: rows(c.d_ff),
            update: rows(c.d_model),
            blocks: Vec::with_capacity(max_blocks),
            turned: vec![0.0; heads],
            turned_i8: vec![0; heads],
            turned_scale: vec![0.0; c.n_heads],
            scores: vec![0.0; c.n_heads * max_blocks * KV_BLOCK],
            linear: LinearScratch::new(max_rows, c.d_model.max(c.d_ff).max(heads)),
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
        let n = &mut s.normed[..rows * d];
        e.rms_norm(x, self.attn_norm.get(w), c.norm_eps, n);
        e.linear(n, rows, self.q.get(w), None, &mut s.q[..rows * heads], &mut s.linear);
        e.linear(n, rows, self.k.get(w), None, &mut s.k[..rows * kvs], &mut s.linear);
        e.linear(n, rows, self.v.get(w), None, &mut s.v[..rows * kvs], &mut s.linear);
        e.rms_norm_inplace(&mut s.q[..rows * heads], self.q_norm.get(w), c.norm_eps);
        e.rms_norm_inplace(&mut s.k[..rows * kvs], self.k_norm.get(w), c.norm_eps);
        store_kv(net, layer, step, kv, s);
        Attention { net, layer, step, bias: self.modality_bias.get(w), kv }.forward(s);
        let update = &mut s.update[..rows * d];
        e.linear(&s.attended[..rows * heads], rows, self.o.get(w), None, update, &mut s.linear);
        e.add(x, update);

        // y = h + down(silu(gate(norm(h))) · up(norm(h)))
        let n = &mut s.normed[..rows * d];
        e.rms_norm(x, self.ffn_norm.get(w), c.norm_eps, n);
        let (gate, up) = (&mut s.gate[..rows * c.d_ff], &mut s.up[..rows * c.d_ff]);
        e.linear(n, rows, self.gate.get(w), None, gate, &mut s.linear);
        e.linear(n, rows, self.up.get(w), None, up, &mut s.linear);
        e.silu_mul(gate, up);
        e.linear(gate, rows, self.down.get(w), None, update, &mut s.linear);
        e.add(x, update);
    }
}

/// Rotates the rows' keys by their offset in the segment and stores keys and values.
fn store_kv(net: Net<'_>, layer: usize, step: &Step<'_>, kv: &mut KvArena, s: &mut BlockScratch) {
    let kvs = net.config.n_kv_heads * net.config.head_dim;
    let (first, last) = (step.offset, step.offset + step.rows);
    let mut block_start = 0;
    // Chains are linked lists of blocks; walk this one once.
    s.blocks.clear();
    s.blocks.extend(kv.blocks(&step.own.chain).map(|block| (0, block)));
    for &(_, block) in &s.blocks {
        for offset in block_start.max(first)..last.min(block_start + KV_BLOCK) {
            let row = offset - first;
            let k = &mut s.k[row * kvs..][..kvs];
            net.rope.rotate(net.engine, k, offset);
            kv.write(net.engine, layer, (block, offset - block_start), k, &s.v[row * kvs..][..kvs]);
        }
        block_start += KV_BLOCK;
    }
}

/// Grouped-query attention of one step's rows over one layer of the arena.
///
/// Source: Ainslie et al. 2023 (arXiv:2305.13245), with a learned bias per head and pair of modalities.
struct Attention<'a> {
    net: Net<'a>,
    layer: usize,
    step: &'a Step<'a>,
    /// `[n_heads, modalities of the query, modalities of the key]`
    bias: &'a [f32],
    kv: &'a KvArena,
}

impl Attention<'_> {
    /// Row by row, into `s.attended`.
    fn forward(&self, s: &mut BlockScratch) {
        let (c, step) = (self.net.config, self.step);
        let heads = c.n_heads * c.head_dim;
        s.blocks.clear();
        for (at, segment) in step.context.iter().chain([&step.own]).enumerate() {
            s.blocks.extend(self.kv.blocks(&segment.chain).map(|block| (at, block)));
        }
        let context_blocks = s.blocks.len() - step.own.chain.len.div_ceil(KV_BLOCK);
        for row in 0..step.rows {
            // Later rows' blocks of the own segment are invisible to this one.
            let visible = context_blocks + (step.offset + row) / KV_BLOCK + 1;
            self.scores(row, visible, s);
            let out = &mut s.attended[row * heads..][..heads];
            out.fill(0.0);
            for (head, out) in out.chunks_exact_mut(c.head_dim).enumerate() {
                let scores = &mut s.scores[head * visible * KV_BLOCK..][..visible * KV_BLOCK];
                self.net.engine.softmax_inplace(scores);
                let kv_head = head * c.n_kv_heads / c.n_heads;
                for (&(_, block), p) in s.blocks.iter().zip(scores.chunks_exact(KV_BLOCK)) {
                    weighted_sum(self.net.engine, p, self.kv.values(self.layer, block, kv_head), out);
                }
            }
        }
    }

    /// Logits of one row's query against `visible` blocks, for every head: `s.scores [n_heads, visible · 16]`, −∞ where
    /// there is no token or none that this row may see.
    fn scores(&self, row: usize, visible: usize, s: &mut BlockScratch) {
        let (e, kernels, c) = (self.net.engine, self.net.engine.kernels(), self.net.config);
        let (step, kv) = (self.step, self.kv);
        let (heads, hd) = (c.n_heads * c.head_dim, c.head_dim);
        let offset = step.offset + row;
        let pos = step.own.base + offset;
        let own_at = step.context.len();
        let modalities = Modality::ALL.len();
        #[allow(clippy::cast_precision_loss)] // head_dim ≤ 1024
        let scale = 1.0 / (hd as f32).sqrt();
        let mut turned_to = usize::MAX;
        let mut block_in_segment = 0;
        for (column, &(at, block)) in s.blocks[..visible].iter().enumerate() {
            let segment = step.context.get(at).unwrap_or(&step.own);
            if turned_to != at {
                turned_to = at;
                block_in_segment = 0;
                s.turned.copy_from_slice(&s.q[row * heads..][..heads]);
                self.net.rope.rotate(e, &mut s.turned, pos - segment.base);
                if kv.dtype() == KvDtype::I8 {
                    for (head, q) in s.turned.chunks_exact(hd).enumerate() {
                        s.turned_scale[head] = (kernels.quantise_row)(q, &mut s.turned_i8[head * hd..][..hd]);
                    }
                }
            }
            let first = block_in_segment * KV_BLOCK;
            block_in_segment += 1;
            let lanes = (segment.chain.len - first).min(KV_BLOCK);
            for head in 0..c.n_heads {
                let kv_head = head * c.n_kv_heads / c.n_heads;
                let out = &mut s.scores[(head * visible + column) * KV_BLOCK..][..KV_BLOCK];
                match kv.keys(self.layer, block, kv_head) {
                    KvBlock::I8 { values, scales } => {
                        (kernels.scores_i8)(
                            &s.turned_i8[head * hd..][..hd],
                            s.turned_scale[head],
                            values,
                            scales,
                            out,
                        );
                    }
                    KvBlock::F32 { values } => {
                        (kernels.scores_f32)(&s.turned[head * hd..][..hd], values, out)
                    }
                }
                let b = self.bias
                    [(head * modalities + step.own.modality.index()) * modalities + segment.modality.index()];
                for (lane, out) in out.iter_mut().enumerate() {
                    let seen = lane < lanes
                        && (at != own_at
                            || match step.own_rule {
                                Own::Causal => first + lane <= offset,
                                Own::Itself => first + lane == offset,
                            });
                    *out = if seen { *out * scale + b } else { f32::NEG_INFINITY };
                }
            }
        }
    }
}

/// Adds `Σ p[j] · v[j]` of a block to `out [head_dim]`.
fn weighted_sum(e: &Engine, p: &[f32], block: KvBlock<'_>, out: &mut [f32]) {
    match block {
        KvBlock::I8 { values, scales } => (e.kernels().weighted_sum_i8)(p, values, scales, out),
        KvBlock::F32 { values } => (e.kernels().weighted_sum_f32)(p, values, out),
    }
}
