//! Saccade's own family: discrete codes of every modality in, discrete codes out.
//!
//! Names every tensor once, for the converter (what a checkpoint must have) and for the runtime (where it lies).

use super::{Role, TensorSpec};
use crate::Result;
use crate::block::Block;
use crate::config::{Modality, ModelConfig};
use crate::conv::{Conv, Residual};
use crate::weights::{LinearRef, TableRef, VectorRef, Weights};

/// Every tensor of the family.
pub(super) fn tensors(c: &ModelConfig) -> Vec<TensorSpec> {
    let mut list = Vec::new();
    let mut add = |name: String, shape: &[usize], role| list.push(TensorSpec::new(name, shape, role));
    let (d, heads, kv) = (c.d_model, c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
    let m = Modality::ALL.len();

    add("embed.weight".into(), &[c.vocab_size, d], Role::Linear);
    add("modality_embed.weight".into(), &[m, d], Role::Float);
    add("task_prefix.weight".into(), &[c.tasks.len() * c.task_prefix_len, d], Role::Float);
    add("image_grid.weight".into(), &[c.image_codes(), d], Role::Float);
    add("action_slots.weight".into(), &[c.chunk_len(), d], Role::Float);
    for layer in 0..c.n_layers {
        let mut add = |name: &str, shape: &[usize], role| add(format!("layers.{layer}.{name}"), shape, role);
        add("attn_norm.weight", &[d], Role::Exact);
        add("attn.q.weight", &[heads, d], Role::Linear);
        add("attn.k.weight", &[kv, d], Role::Linear);
        add("attn.v.weight", &[kv, d], Role::Linear);
        add("attn.q_norm.weight", &[c.head_dim], Role::Exact);
        add("attn.k_norm.weight", &[c.head_dim], Role::Exact);
        add("attn.modality_bias", &[c.n_heads, m, m], Role::Exact);
        add("attn.o.weight", &[d, heads], Role::Linear);
        add("ffn_norm.weight", &[d], Role::Exact);
        add("ffn.gate.weight", &[c.d_ff, d], Role::Linear);
        add("ffn.up.weight", &[c.d_ff, d], Role::Linear);
        add("ffn.down.weight", &[d, c.d_ff], Role::Linear);
    }
    add("norm.weight".into(), &[d], Role::Exact);
    image_tensors(c, &mut add);
    list
}

/// The image tokenizer. Its encoder stays float: it is small, and codes must not flip.
fn image_tensors(c: &ModelConfig, add: &mut impl FnMut(String, &[usize], Role)) {
    let image = &c.image;
    let mut conv = |name: String, shape: [usize; 4], role| {
        add(format!("{name}.weight"), &shape, role);
        add(format!("{name}.bias"), &[shape[0]], Role::Exact);
    };
    let [e0, e1, e2] = image.encoder_channels;
    for (i, (input, out)) in [(3, e0), (e0, e1), (e1, e2)].into_iter().enumerate() {
        conv(format!("image.encoder.{i}"), [out, input, 4, 4], Role::Float);
    }
    for i in 0..image.n_res {
        conv(format!("image.encoder.res.{i}.conv1"), [image.res_hidden, e2, 3, 3], Role::Float);
        conv(format!("image.encoder.res.{i}.conv2"), [e2, image.res_hidden, 1, 1], Role::Float);
    }
    conv("image.encoder.out".into(), [image.code_dim, e2, 1, 1], Role::Float);

    let [d0, d1, d2] = image.decoder_channels;
    conv("image.decoder.in".into(), [d0, image.code_dim, 3, 3], Role::Linear);
    for i in 0..image.n_res {
        conv(format!("image.decoder.res.{i}.conv1"), [image.res_hidden, d0, 3, 3], Role::Linear);
        conv(format!("image.decoder.res.{i}.conv2"), [d0, image.res_hidden, 1, 1], Role::Linear);
    }
    for (i, (input, out)) in [(d0, d1), (d1, d2), (d2, 3)].into_iter().enumerate() {
        conv(format!("image.decoder.up.{i}"), [out, input, 3, 3], Role::Linear);
    }
    add("image.codebook.weight".into(), &[image.codebook_size, image.code_dim], Role::Float);
}

/// Where the family's tensors lie in the mapped file.
#[derive(Debug)]
pub(crate) struct Unimodal {
    /// `[vocab_size, d_model]`; also the head.
    pub(crate) embed: LinearRef,
    /// `[modalities, d_model]`
    pub(crate) modality_embed: TableRef,
    /// `[tasks · task_prefix_len, d_model]`
    pub(crate) task_prefix: LinearRef,
    /// `[grid, d_model]`
    pub(crate) image_grid: TableRef,
    /// `[steps · dims, d_model]`
    pub(crate) action_slots: LinearRef,
    /// The decoder.
    pub(crate) blocks: Vec<Block>,
    /// `[d_model]`
    pub(crate) norm: VectorRef,
    /// The image tokenizer.
    pub(crate) image: ImageNet,
}

/// The image tokenizer's tensors.
#[derive(Debug)]
pub(crate) struct ImageNet {
    /// Three 4×4 convolutions of stride 2.
    pub(crate) down: Vec<Conv>,
    /// Residual units of the encoder.
    pub(crate) encoder_res: Vec<Residual>,
    /// 1×1 to the code space.
    pub(crate) out: Conv,
    /// `[codebook_size, code_dim]`
    pub(crate) codebook: LinearRef,
    /// 3×3 from the code space.
    pub(crate) input: Conv,
    /// Residual units of the decoder.
    pub(crate) decoder_res: Vec<Residual>,
    /// Three 3×3 convolutions, each after a nearest ×2.
    pub(crate) up: Vec<Conv>,
}

impl Unimodal {
    /// Finds every tensor. The weights were checked against [`tensors`], so what can fail is layers that do not fit each other.
    pub(crate) fn resolve(w: &Weights) -> Result<Self> {
        let c = &w.config().model;
        Ok(Self {
            embed: w.linear("embed")?,
            modality_embed: w.table("modality_embed.weight")?,
            task_prefix: w.linear("task_prefix")?,
            image_grid: w.table("image_grid.weight")?,
            action_slots: w.linear("action_slots")?,
            blocks: (0..c.n_layers).map(|layer| Block::resolve(w, layer)).collect::<Result<_>>()?,
            norm: w.vector("norm.weight")?,
            image: ImageNet::resolve(w)?,
        })
    }
}

impl ImageNet {
    fn resolve(w: &Weights) -> Result<Self> {
        let image = &w.config().model.image;
        let res = |part: &str| -> Result<Vec<Residual>> {
            (0..image.n_res)
                .map(|i| {
                    Ok(Residual {
                        conv1: Conv::resolve(w, &format!("image.{part}.res.{i}.conv1"), 3, 1, 1)?,
                        conv2: Conv::resolve(w, &format!("image.{part}.res.{i}.conv2"), 1, 1, 0)?,
                    })
                })
                .collect()
        };
        Ok(Self {
            down: (0..3)
                .map(|i| Conv::resolve(w, &format!("image.encoder.{i}"), 4, 2, 1))
                .collect::<Result<_>>()?,
            encoder_res: res("encoder")?,
            out: Conv::resolve(w, "image.encoder.out", 1, 1, 0)?,
            codebook: w.linear("image.codebook")?,
            input: Conv::resolve(w, "image.decoder.in", 3, 1, 1)?,
            decoder_res: res("decoder")?,
            up: (0..3)
                .map(|i| Conv::resolve(w, &format!("image.decoder.up.{i}"), 3, 1, 1))
                .collect::<Result<_>>()?,
        })
    }
}
