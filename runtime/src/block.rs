//! The decoder block, like the paper: norm, attention, residual; norm, gated feed-forward, residual. Some families norm what
//! comes out instead (Swin Transformer V2, arXiv:2111.09883).
//!
//! Rows are tokens of one segment, or of one segment of each of several sessions, computed together. A query sees the segments that are live for it and its own
//! segment up to itself; keys lie in the arena rotated by their offset inside their segment, so the query is rotated
//! once per visible segment by its distance to that segment's first token.

use crate::Result;
use crate::config::{DecoderConfig, NormPlace, QkNorm};
use crate::engine::{Layer, Pass, QkNorms, Rows};
use crate::family::SHARED_INPUTS;
use crate::weights::{VectorRef, Weights};

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
        for (first, others) in SHARED_INPUTS.iter().filter_map(|group| group.split_first()) {
            let parts =
                |name: &str| -> Result<_> { Ok(w.linear(&format!("layers.{layer}.{name}"))?.get(w).parts()) };
            let wanted = parts(first)?;
            for name in others {
                if parts(name)? != wanted {
                    return Err(w.refused(format!(
                        "saccade.json keeps float, or gives activations in two parts to, one of `layers.{layer}.{name}` and \
                         `layers.{layer}.{first}`, which read the same ones"
                    )));
                }
            }
        }
        Ok(block)
    }

    /// `x += attention(norm(x))`, then `x += ffn(norm(x))`, over the rows of a pass.
    pub(crate) fn forward(&self, pass: &mut impl Pass, layer: usize) -> Result<()> {
        let of = |norm| match self.norm_place {
            NormPlace::Before => (Some(norm), None),
            NormPlace::After => (None, Some(norm)),
        };

        // h = x + O · attention(norm(x))
        let (before, after) = of(&self.attn_norm);
        pass.load(Rows::X, before, &self.q)?;
        pass.project(&self.q, &self.k, &self.v)?;
        pass.store(layer, &self.qk_norm)?;
        pass.attend(layer, self.modality_bias.as_ref())?;
        pass.load(Rows::Attended, None, &self.o)?;
        pass.add(&self.o, after)?;

        // y = h + down(silu(gate(norm(h))) · up(norm(h)))
        let (before, after) = of(&self.ffn_norm);
        pass.load(Rows::X, before, &self.gate)?;
        pass.gate(&self.gate, &self.up)?;
        pass.load(Rows::Hidden, None, &self.down)?;
        pass.add(&self.down, after)
    }
}
