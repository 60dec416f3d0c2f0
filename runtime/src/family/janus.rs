//! Janus: a language model, a vision transformer whose features stand in the text, and a way to draw.

use super::{Role, TensorSpec, llama};
use crate::Result;
use crate::config::{DrawingConfig, JanusConfig};
use crate::engine::maps::Biased;
use crate::vit::{self, Vision};
use crate::vq::{self, VqDecoder};
use crate::weights::{LinearRef, Weights};

/// Every tensor of the family.
pub(super) fn tensors(c: &JanusConfig) -> Vec<TensorSpec> {
    let (d, drawing) = (c.language.decoder.d_model, &c.drawing);
    let mut list = llama::tensors(&c.language.decoder);
    list.extend(vit::tensors(&c.vision, d));
    let mut pair = |name: &str, shape: &[usize]| {
        list.push(TensorSpec::new(format!("drawing.{name}.weight"), shape, Role::Linear));
        list.push(TensorSpec::new(format!("drawing.{name}.bias"), &shape[..1], Role::Exact));
    };
    for layer in 0..drawing.aligner_layers {
        pair(&format!("aligner.{layer}"), &[d, if layer == 0 { drawing.vq.code_dim } else { d }]);
    }
    pair("head.0", &[drawing.d_head, d]);
    pair("head.1", &[drawing.vq.codebook_size, drawing.d_head]);
    let codes = [drawing.vq.codebook_size, drawing.vq.code_dim];
    list.push(TensorSpec::new("drawing.embed.weight", &codes, Role::Float));
    list.extend(vq::tensors(&drawing.vq));
    list
}

/// Where the tensors that the family has beside its decoder lie in the mapped file.
#[derive(Debug)]
pub(crate) struct Janus {
    /// Reads pictures.
    pub(crate) vision: Vision,
    /// Draws them.
    pub(crate) drawing: Drawing,
}

/// What draws.
#[derive(Debug)]
pub(crate) struct Drawing {
    /// `[codebook_size, code_dim]`
    pub(crate) embed: LinearRef,
    /// A code's vector into the width of the decoder.
    pub(crate) aligner: Vec<Biased>,
    /// What the decoder gives into the logits of codes.
    pub(crate) head: [Biased; 2],
    /// Codes into pixels.
    pub(crate) vq: VqDecoder,
}

impl Janus {
    /// Finds every tensor.
    pub(crate) fn resolve(w: &Weights, c: &JanusConfig) -> Result<Self> {
        let biased = |name: &str| Biased::resolve(w, &format!("drawing.{name}"));
        let DrawingConfig { aligner_layers, vq, .. } = &c.drawing;
        Ok(Self {
            vision: Vision::resolve(w, &c.vision)?,
            drawing: Drawing {
                embed: w.linear("drawing.embed")?,
                aligner: (0..*aligner_layers)
                    .map(|layer| biased(&format!("aligner.{layer}")))
                    .collect::<Result<_>>()?,
                head: [biased("head.0")?, biased("head.1")?],
                vq: VqDecoder::resolve(w, vq)?,
            },
        })
    }
}
