//! The decoder that every family shares: an embedding, blocks, a last norm, a head.

use crate::Result;
use crate::block::Block;
use crate::config::{DecoderConfig, QkNorm, RopeScaling};
use crate::family::{Role, TensorSpec};
use crate::weights::{LinearRef, VectorRef, Weights};

/// The tensors of the blocks.
pub(crate) fn block_tensors(c: &DecoderConfig) -> Vec<TensorSpec> {
    let (d, heads, kv) = (c.d_model, c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
    let mut list = Vec::new();
    for layer in 0..c.n_layers {
        let mut add = |name: &str, shape: &[usize], role| {
            list.push(TensorSpec::new(format!("layers.{layer}.{name}"), shape, role));
        };
        add("attn_norm.weight", &[d], Role::Exact);
        for (name, rows) in [("attn.q", heads), ("attn.k", kv), ("attn.v", kv)] {
            add(&format!("{name}.weight"), &[rows, d], Role::Linear);
            if c.biases.qkv {
                add(&format!("{name}.bias"), &[rows], Role::Exact);
            }
        }
        match c.qk_norm {
            QkNorm::None => {}
            QkNorm::Rms => {
                add("attn.q_norm.weight", &[c.head_dim], Role::Exact);
                add("attn.k_norm.weight", &[c.head_dim], Role::Exact);
            }
            QkNorm::Layer => {
                for (name, heads) in [("attn.q_norm", c.n_heads), ("attn.k_norm", c.n_kv_heads)] {
                    add(&format!("{name}.weight"), &[heads, c.head_dim], Role::Exact);
                    add(&format!("{name}.bias"), &[heads, c.head_dim], Role::Exact);
                }
            }
        }
        if let Some(modalities) = c.modality_bias {
            add("attn.modality_bias", &[c.n_heads, modalities, modalities], Role::Exact);
        }
        add("attn.o.weight", &[d, heads], Role::Linear);
        if c.biases.o {
            add("attn.o.bias", &[d], Role::Exact);
        }
        add("ffn_norm.weight", &[d], Role::Exact);
        for (name, rows, inputs) in [("ffn.gate", c.d_ff, d), ("ffn.up", c.d_ff, d), ("ffn.down", d, c.d_ff)]
        {
            add(&format!("{name}.weight"), &[rows, inputs], Role::Linear);
            if c.biases.ffn {
                add(&format!("{name}.bias"), &[rows], Role::Exact);
            }
        }
    }
    list
}

/// Where the decoder's tensors lie in the mapped file.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// Sizes and options.
    pub(crate) config: DecoderConfig,
    /// `[vocab_size, d_model]`
    pub(crate) embed: LinearRef,
    /// One after the other.
    pub(crate) blocks: Vec<Block>,
    /// `[d_model]`
    pub(crate) norm: VectorRef,
    /// `[vocab_size, d_model]`; the embedding itself when they are tied.
    pub(crate) head: LinearRef,
    /// `[head_dim / 2]`, what the rotary frequencies are divided by where each has a factor of its own.
    pub(crate) rope_factors: Option<VectorRef>,
}

impl Decoder {
    /// Finds every tensor.
    pub(crate) fn resolve(w: &Weights) -> Result<Self> {
        let config = w.config().model.decoder();
        Ok(Self {
            embed: w.linear("embed")?,
            blocks: (0..config.n_layers)
                .map(|layer| Block::resolve(w, &config, layer))
                .collect::<Result<_>>()?,
            norm: w.vector("norm.weight")?,
            head: w.linear(if config.tied { "embed" } else { "head" })?,
            rope_factors: (config.rope_scaling == RopeScaling::Factors)
                .then(|| w.vector("rope.factors"))
                .transpose()?,
            config,
        })
    }
}
