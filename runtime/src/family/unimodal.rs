//! Saccade's own family: discrete codes of every modality in, discrete codes out.
//!
//! Names every tensor once, for the converter (what a checkpoint must have) and for the runtime (where it lies).

use super::{Role, TensorSpec};
use crate::Result;
use crate::config::{ImageConfig, Modality, UnimodalConfig};
use crate::conv::Residual;
use crate::decoder::block_tensors;
use crate::engine::maps::Conv;
use crate::weights::{LinearRef, TableRef, Weights};

/// Every tensor of the family.
pub(super) fn tensors(c: &UnimodalConfig) -> Vec<TensorSpec> {
    let mut list = Vec::new();
    let mut add = |name: String, shape: &[usize], role| list.push(TensorSpec::new(name, shape, role));
    let (d, m) = (c.d_model, Modality::ALL.len());

    add("embed.weight".into(), &[c.vocab_size, d], Role::Linear);
    add("modality_embed.weight".into(), &[m, d], Role::Float);
    add("task_prefix.weight".into(), &[c.tasks.len() * c.task_prefix_len, d], Role::Float);
    add("image_grid.weight".into(), &[c.image_codes(), d], Role::Float);
    add("action_slots.weight".into(), &[c.chunk_len(), d], Role::Float);
    list.extend(block_tensors(&c.decoder()));
    let mut add = |name: String, shape: &[usize], role| list.push(TensorSpec::new(name, shape, role));
    add("norm.weight".into(), &[d], Role::Exact);
    image_tensors(c, &mut add);
    list
}

/// The image tokenizer. Its encoder stays float: it is small, and codes must not flip.
fn image_tensors(c: &UnimodalConfig, add: &mut impl FnMut(String, &[usize], Role)) {
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

/// Where the tensors that the family has beside its decoder lie in the mapped file.
#[derive(Debug)]
pub(crate) struct Unimodal {
    /// `[modalities, d_model]`
    pub(crate) modality_embed: TableRef,
    /// `[tasks · task_prefix_len, d_model]`
    pub(crate) task_prefix: LinearRef,
    /// `[grid, d_model]`
    pub(crate) image_grid: TableRef,
    /// `[steps · dims, d_model]`
    pub(crate) action_slots: LinearRef,
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
    pub(crate) fn resolve(w: &Weights, c: &UnimodalConfig) -> Result<Self> {
        Ok(Self {
            modality_embed: w.table("modality_embed.weight")?,
            task_prefix: w.linear("task_prefix")?,
            image_grid: w.table("image_grid.weight")?,
            action_slots: w.linear("action_slots")?,
            image: ImageNet::resolve(w, &c.image)?,
        })
    }
}

impl ImageNet {
    fn resolve(w: &Weights, image: &ImageConfig) -> Result<Self> {
        let res = |part: &str| -> Result<Vec<Residual>> {
            (0..image.n_res)
                .map(|i| {
                    Ok(Residual {
                        conv1: Conv::resolve(w, &format!("image.{part}.res.{i}.conv1"), 3, 1, [1, 1])?,
                        conv2: Conv::resolve(w, &format!("image.{part}.res.{i}.conv2"), 1, 1, [0, 0])?,
                    })
                })
                .collect()
        };
        Ok(Self {
            down: (0..3)
                .map(|i| Conv::resolve(w, &format!("image.encoder.{i}"), 4, 2, [1, 1]))
                .collect::<Result<_>>()?,
            encoder_res: res("encoder")?,
            out: Conv::resolve(w, "image.encoder.out", 1, 1, [0, 0])?,
            codebook: w.linear("image.codebook")?,
            input: Conv::resolve(w, "image.decoder.in", 3, 1, [1, 1])?,
            decoder_res: res("decoder")?,
            up: (0..3)
                .map(|i| Conv::resolve(w, &format!("image.decoder.up.{i}"), 3, 1, [1, 1]))
                .collect::<Result<_>>()?,
        })
    }
}
