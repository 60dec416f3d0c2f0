//! A vision transformer: a picture into a feature for each patch, in the width of the language model.
//!
//! Patches by a convolution, learned positions, blocks of attention over all patches and a feed-forward network, each behind a layer
//! norm, a last norm, a projection.
//!
//! Source: Zhai et al. 2023 (SigLIP, arXiv:2303.15343); the projection is that of Janus.

use crate::Result;
use crate::config::VisionConfig;
use crate::engine::maps::Slot::{A, B, K, V, X};
use crate::engine::maps::{Affine, Biased, Conv, Maps};
use crate::engine::{Activations, Engine};
use crate::family::{Role, TensorSpec};
use crate::quant::gelu;
use crate::weights::{TableRef, Weights};

/// Every tensor of the network, whose features end `d_out` wide.
pub(crate) fn tensors(c: &VisionConfig, d_out: usize) -> Vec<TensorSpec> {
    let mut list = Vec::new();
    let mut pair = |name: &str, shape: &[usize], role| {
        list.push(TensorSpec::new(format!("vision.{name}.weight"), shape, role));
        list.push(TensorSpec::new(format!("vision.{name}.bias"), &shape[..1], Role::Exact));
    };
    let d = c.d_model;
    pair("patch", &[d, 3, c.patch_size, c.patch_size], Role::Float);
    for layer in 0..c.n_layers {
        let mut pair =
            |name: &str, shape: &[usize], role| pair(&format!("layers.{layer}.{name}"), shape, role);
        pair("norm1", &[d], Role::Exact);
        for part in ["q", "k", "v", "o"] {
            pair(&format!("attn.{part}"), &[d, d], Role::Float);
        }
        pair("norm2", &[d], Role::Exact);
        pair("fc1", &[c.d_ff, d], Role::Float);
        pair("fc2", &[d, c.d_ff], Role::Float);
    }
    pair("norm", &[d], Role::Exact);
    for layer in 0..c.aligner_layers {
        pair(&format!("aligner.{layer}"), &[d_out, if layer == 0 { d } else { d_out }], Role::Float);
    }
    list.push(TensorSpec::new("vision.position.weight", &[c.patches(), d], Role::Float));
    list
}

impl Biased {
    /// `out = x · wᵀ + bias`, on the CPU.
    fn forward(&self, e: &Engine, w: &Weights, x: &[f32], out: &mut Vec<f32>, a: &mut Activations) {
        let rows = x.len() / self.weight.k;
        out.resize(rows * self.weight.n, 0.0);
        e.linear(x, self.weight.get(w), Some(self.bias.get(w)), out, a);
    }
}

/// `x` through linear layers with GELU between them, on the CPU: rows of a decoder on their way in and out.
pub(crate) fn through(
    layers: &[Biased],
    (e, w): (&Engine, &Weights),
    x: &mut Vec<f32>,
    spare: &mut Vec<f32>,
    a: &mut Activations,
) {
    for (i, layer) in layers.iter().enumerate() {
        if i > 0 {
            x.iter_mut().for_each(|x| *x = gelu(*x));
        }
        layer.forward(e, w, x, spare, a);
        std::mem::swap(x, spare);
    }
}

#[derive(Clone, Debug)]
struct VisionBlock {
    norm1: Affine,
    /// q, k, v.
    heads: [Biased; 3],
    o: Biased,
    norm2: Affine,
    fc1: Biased,
    fc2: Biased,
}

/// Where the network's tensors lie in the mapped file.
#[derive(Debug)]
pub(crate) struct Vision {
    patch: Conv,
    position: TableRef,
    blocks: Vec<VisionBlock>,
    norm: Affine,
    aligner: Vec<Biased>,
}

impl Vision {
    /// Finds every tensor.
    pub(crate) fn resolve(w: &Weights, c: &VisionConfig) -> Result<Self> {
        let block = |layer: usize| -> Result<VisionBlock> {
            let biased = |name: &str| Biased::resolve(w, &format!("vision.layers.{layer}.{name}"));
            let norm = |name: &str| Affine::resolve(w, &format!("vision.layers.{layer}.{name}"));
            Ok(VisionBlock {
                norm1: norm("norm1")?,
                heads: [biased("attn.q")?, biased("attn.k")?, biased("attn.v")?],
                o: biased("attn.o")?,
                norm2: norm("norm2")?,
                fc1: biased("fc1")?,
                fc2: biased("fc2")?,
            })
        };
        Ok(Self {
            patch: Conv::resolve(w, "vision.patch", c.patch_size, c.patch_size, [0, 0])?,
            position: w.table("vision.position.weight")?,
            blocks: (0..c.n_layers).map(block).collect::<Result<_>>()?,
            norm: Affine::resolve(w, "vision.norm")?,
            aligner: (0..c.aligner_layers)
                .map(|layer| Biased::resolve(w, &format!("vision.aligner.{layer}")))
                .collect::<Result<_>>()?,
        })
    }

    /// The picture in slot `X`, `[image_size, image_size, 3]`, into `[patches, d_out]`.
    pub(crate) fn forward(&self, c: &VisionConfig, m: &mut dyn Maps) -> Result<()> {
        m.convolve(&self.patch, X, A)?;
        m.swap(X, A);
        m.add_rows(X, &self.position)?;
        for VisionBlock { norm1, heads: [q, k, v], o, norm2, fc1, fc2 } in &self.blocks {
            m.layer_norm(norm1, c.norm_eps, X, A)?;
            m.linear(q, A, B)?;
            m.linear(k, A, K)?;
            m.linear(v, A, V)?;
            m.attend([B, K, V], c.n_heads, A)?;
            m.linear(o, A, B)?;
            m.add(X, B)?;

            m.layer_norm(norm2, c.norm_eps, X, A)?;
            m.linear(fc1, A, B)?;
            m.gelu(B)?;
            m.linear(fc2, B, A)?;
            m.add(X, A)?;
        }
        m.layer_norm(&self.norm, c.norm_eps, X, X)?;
        for (i, layer) in self.aligner.iter().enumerate() {
            if i > 0 {
                m.gelu(X)?;
            }
            m.linear(layer, X, A)?;
            m.swap(X, A);
        }
        Ok(())
    }
}
