//! The decoder block, like the paper: norm, attention, residual; norm, gated feed-forward, residual. Some families norm what
//! comes out instead (Swin Transformer V2, arXiv:2111.09883).
//!
//! Rows are tokens of one segment, or of one segment of each of several sessions, computed together. A query sees the segments that are live for it and its own
//! segment up to itself; keys lie in the arena rotated by their offset inside their segment, so the query is rotated
//! once per visible segment by its distance to that segment's first token.

use crate::Result;
use crate::attention::{Attention, AttentionScratch};
use crate::config::{DecoderConfig, Modality, NormPlace, QkNorm};
use crate::engine::{ActivationKinds, Activations, Biased, Engine, layer_norm};
use crate::kernels::Epilogue;
use crate::kv::{Chain, KvArena};
use crate::rope::Rope;
use crate::weights::{LinearRef, VectorRef, Weights};

/// One block's tensors.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// `[d_model]`
    attn_norm: VectorRef,
    /// `[n_heads · head_dim, d_model]`
    q: Layer,
    /// `[n_kv_heads · head_dim, d_model]`
    k: Layer,
    /// `[n_kv_heads · head_dim, d_model]`
    v: Layer,
    qk_norm: QkNorms,
    norm_place: NormPlace,
    /// `[n_heads, modalities of the query, modalities of the key]`
    modality_bias: Option<VectorRef>,
    /// `[d_model, n_heads · head_dim]`
    o: Layer,
    /// `[d_model]`
    ffn_norm: VectorRef,
    /// `[d_ff, d_model]`
    gate: Layer,
    /// `[d_ff, d_model]`
    up: Layer,
    /// `[d_model, d_ff]`
    down: Layer,
}

/// A linear layer, with a bias where the family has one.
#[derive(Clone, Debug)]
struct Layer {
    /// `[n, k]`
    weight: LinearRef,
    /// `[n]`
    bias: Option<VectorRef>,
}

impl Layer {
    fn get<'a>(&self, w: &'a Weights) -> Biased<'a> {
        (self.weight.get(w), self.bias.as_ref().map(|bias| bias.get(w)))
    }
}

/// The norms of query and key heads.
#[derive(Clone, Debug)]
enum QkNorms {
    None,
    /// `[head_dim]` of the queries and of the keys.
    Rms([VectorRef; 2]),
    /// Weights and biases, `[heads, head_dim]`, of the queries and of the keys.
    Layer([[VectorRef; 2]; 2]),
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

/// Rows of one segment of one session.
pub(crate) struct Sequence<'a> {
    /// Its keys and values.
    pub(crate) kv: &'a mut KvArena,
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

/// Buffers of the decoder, allocated once.
#[derive(Default)]
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
    hidden: Vec<f32>,
    /// `[rows, d_model]` where norms come last.
    normed: Vec<f32>,
    /// Attention's own.
    attention: AttentionScratch,
    /// What the linear layers read.
    pub(crate) activations: Activations,
}

impl BlockScratch {
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

/// The most of everything that a step may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Most {
    /// Rows.
    pub(crate) rows: usize,
    /// Sequences.
    pub(crate) sequences: usize,
    /// Blocks of keys that a sequence sees.
    pub(crate) blocks: usize,
    /// INT8 rows of a token's activations.
    pub(crate) parts: usize,
}

/// What a forward pass reads.
#[derive(Clone, Copy)]
pub(crate) struct Net<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) weights: &'a Weights,
    pub(crate) config: &'a DecoderConfig,
    pub(crate) rope: &'a Rope,
}

impl Block {
    /// Finds the tensors of block `layer`.
    pub(crate) fn resolve(w: &Weights, c: &DecoderConfig, layer: usize) -> Result<Self> {
        let vector = |name: &str| w.vector(&format!("layers.{layer}.{name}"));
        let linear = |name: &str, biased: bool| -> Result<Layer> {
            Ok(Layer {
                weight: w.linear(&format!("layers.{layer}.{name}"))?,
                bias: biased.then(|| vector(&format!("{name}.bias"))).transpose()?,
            })
        };
        let block = Self {
            attn_norm: vector("attn_norm.weight")?,
            q: linear("attn.q", c.biases.qkv)?,
            k: linear("attn.k", c.biases.qkv)?,
            v: linear("attn.v", c.biases.qkv)?,
            qk_norm: match c.qk_norm {
                QkNorm::None => QkNorms::None,
                QkNorm::Rms => QkNorms::Rms([vector("attn.q_norm.weight")?, vector("attn.k_norm.weight")?]),
                QkNorm::Layer => QkNorms::Layer([
                    [vector("attn.q_norm.weight")?, vector("attn.q_norm.bias")?],
                    [vector("attn.k_norm.weight")?, vector("attn.k_norm.bias")?],
                ]),
            },
            norm_place: c.norm_place,
            modality_bias: c.modality_bias.map(|_| vector("attn.modality_bias")).transpose()?,
            o: linear("attn.o", c.biases.o)?,
            ffn_norm: vector("ffn_norm.weight")?,
            gate: linear("ffn.gate", c.biases.ffn)?,
            up: linear("ffn.up", c.biases.ffn)?,
            down: linear("ffn.down", c.biases.ffn)?,
        };
        // What shares its activations must want the same of them.
        let Self { q, k, v, gate, up, .. } = &block;
        let pairs =
            [("attn.k", k, "attn.q", q), ("attn.v", v, "attn.q", q), ("ffn.gate", gate, "ffn.up", up)];
        for (name, one, other_name, other) in pairs {
            if one.weight.get(w).parts() != other.weight.get(w).parts() {
                return Err(w.refused(format!(
                    "saccade.json gives activations in two parts to one of `layers.{layer}.{name}` and \
                     `layers.{layer}.{other_name}`, which read the same ones"
                )));
            }
        }
        Ok(block)
    }

    /// `x [rows, d_model]` in place: `x += attention(norm(x))`, then `x += ffn(norm(x))`. The rows are those of the sequences, one
    /// after the other.
    pub(crate) fn forward(
        &self,
        net: Net<'_>,
        layer: usize,
        sequences: &mut [Sequence<'_>],
        x: &mut [f32],
        s: &mut BlockScratch,
    ) {
        let (e, w, c) = (net.engine, net.weights, net.config);
        let rows = sequences.iter().map(|sequence| sequence.rows).sum::<usize>();
        let (d, heads, kvs) = (c.d_model, c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        assert_eq!(x.len(), rows * d);
        let (q, attended) = (&mut s.q[..rows * heads], &mut s.attended[..rows * heads]);
        let (k, v) = (&mut s.k[..rows * kvs], &mut s.v[..rows * kvs]);
        let (hidden, a) = (&mut s.hidden[..rows * c.d_ff], &mut s.activations);

        // h = x + O · attention(norm(x))
        let [wq, wk, wv, wo] = [&self.q, &self.k, &self.v, &self.o].map(|layer| layer.get(w));
        let before = self.norm_place == NormPlace::Before;
        match before {
            true => e.load_normed(x, self.attn_norm.get(w), c.norm_eps, wq.0, a),
            false => e.load(x, wq.0, a),
        }
        e.products(a, [(wq, &mut *q), (wk, &mut *k), (wv, &mut *v)]);
        self.store(net, layer, sequences, (q, k, v), &mut s.attention);
        let attention = Attention { net, layer, bias: self.modality_bias.as_ref().map(|bias| bias.get(w)) };
        attention.forward(sequences, q, attended, &mut s.attention);
        e.load(attended, wo.0, a);
        match before {
            true => e.product(a, wo.0, 0..d, added(wo.1), x),
            false => self.add_normed(net, &self.attn_norm, wo, a, x, &mut s.normed),
        }

        // y = h + down(silu(gate(norm(h))) · up(norm(h)))
        let [gate, up, down] = [&self.gate, &self.up, &self.down].map(|layer| layer.get(w));
        match before {
            true => e.load_normed(x, self.ffn_norm.get(w), c.norm_eps, gate.0, a),
            false => e.load(x, gate.0, a),
        }
        e.gated(a, gate, up, hidden);
        e.load(hidden, down.0, a);
        match before {
            true => e.product(a, down.0, 0..d, added(down.1), x),
            false => self.add_normed(net, &self.ffn_norm, down, a, x, &mut s.normed),
        }
    }

    /// `x += norm(a · wᵀ + bias)`.
    fn add_normed(
        &self,
        net: Net<'_>,
        norm: &VectorRef,
        (linear, bias): Biased<'_>,
        a: &Activations,
        x: &mut [f32],
        out: &mut [f32],
    ) {
        let out = &mut out[..x.len()];
        net.engine.product(a, linear, 0..linear.n(), Epilogue { bias, residual: false }, out);
        net.engine.rms_norm_inplace(out, norm.get(net.weights), net.config.norm_eps);
        net.engine.add(x, out);
    }

    /// Norms every head of queries and keys where the family does, rotates the keys by their offset in the segment, and stores keys and values.
    fn store(
        &self,
        net: Net<'_>,
        layer: usize,
        sequences: &mut [Sequence<'_>],
        (q, k, v): (&mut [f32], &mut [f32], &[f32]),
        s: &mut AttentionScratch,
    ) {
        let (e, w, c) = (net.engine, net.weights, net.config);
        let (heads, kvs) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let of_rows = &*sequences;
        e.for_each_row((q, heads), (&mut *k, kvs), &|row, q, k| {
            match &self.qk_norm {
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
            net.rope.rotate(e, k, sequence.offset + row + sequence.rows - first);
        });
        let mut first = 0;
        for Sequence { kv, rows, offset, own, .. } in sequences {
            let rows = first * kvs..(first + *rows) * kvs;
            first = rows.end / kvs;
            kv.write(e, layer, (s.blocks_of(kv, &own.chain), *offset), &k[rows.clone()], &v[rows]);
        }
    }
}

/// Added to every variance of head norms. Source: `nn.LayerNorm` of PyTorch, whose default Chameleon has.
const HEAD_EPS: f32 = 1e-5;

/// [`layer_norm`] of each head of `x [heads, head_dim]`; `weight, bias [heads, head_dim]`.
fn norm_heads(x: &mut [f32], head_dim: usize, weight: &[f32], bias: &[f32]) {
    let heads = weight.chunks_exact(head_dim).zip(bias.chunks_exact(head_dim));
    for (x, (weight, bias)) in x.chunks_exact_mut(head_dim).zip(heads) {
        layer_norm(x, weight, bias, HEAD_EPS);
    }
}

/// A product that is added to its output, the residual stream.
const fn added(bias: Option<&[f32]>) -> Epilogue<'_> {
    Epilogue { bias, residual: true }
}
