//! A vision transformer: a picture into a feature for each patch, in the width of the language model.
//!
//! Patches by a convolution, learned positions, blocks of attention over all patches and a feed-forward network, each behind a layer
//! norm, a last norm, a projection.
//!
//! Source: Zhai et al. 2023 (SigLIP, arXiv:2303.15343); the projection is that of Janus.

use crate::Result;
use crate::config::VisionConfig;
use crate::engine::{ActivationKinds, Activations, Engine, Linear, layer_norm};
use crate::family::{Role, TensorSpec};
use crate::weights::{LinearRef, TableRef, VectorRef, Weights};

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

/// A linear layer with a bias.
#[derive(Clone, Debug)]
pub(crate) struct Biased {
    weight: LinearRef,
    bias: VectorRef,
}

impl Biased {
    /// Finds `stem.weight` and `stem.bias`.
    pub(crate) fn resolve(w: &Weights, stem: &str) -> Result<Self> {
        Ok(Self { weight: w.linear(stem)?, bias: w.vector(&format!("{stem}.bias"))? })
    }

    /// `out = x · wᵀ + bias`.
    pub(crate) fn forward(
        &self,
        e: &Engine,
        w: &Weights,
        x: &[f32],
        out: &mut Vec<f32>,
        a: &mut Activations,
    ) {
        let rows = x.len() / self.weight.k;
        out.resize(rows * self.weight.n, 0.0);
        e.linear(x, self.weight.get(w), Some(self.bias.get(w)), out, a);
    }

    /// Inputs and outputs, the more of the two.
    pub(crate) fn widest(&self) -> usize {
        self.weight.k.max(self.weight.n)
    }
}

/// `x` through linear layers with GELU between them.
pub(crate) fn through(
    layers: &[Biased],
    (e, w): (&Engine, &Weights),
    x: &mut Vec<f32>,
    spare: &mut Vec<f32>,
    a: &mut Activations,
) {
    for (i, layer) in layers.iter().enumerate() {
        if i > 0 {
            gelu_inplace(x);
        }
        layer.forward(e, w, x, spare, a);
        std::mem::swap(x, spare);
    }
}

/// Layer norm.
#[derive(Clone, Debug)]
struct Norm {
    weight: VectorRef,
    bias: VectorRef,
}

impl Norm {
    fn resolve(w: &Weights, stem: &str) -> Result<Self> {
        Ok(Self { weight: w.vector(&format!("{stem}.weight"))?, bias: w.vector(&format!("{stem}.bias"))? })
    }

    /// [`layer_norm`] of each row.
    fn forward(&self, w: &Weights, x: &mut [f32], eps: f32) {
        let (weight, bias) = (self.weight.get(w), self.bias.get(w));
        x.chunks_exact_mut(weight.len()).for_each(|x| layer_norm(x, weight, bias, eps));
    }
}

#[derive(Clone, Debug)]
struct VisionBlock {
    norm1: Norm,
    /// q, k, v.
    heads: [Biased; 3],
    o: Biased,
    norm2: Norm,
    fc1: Biased,
    fc2: Biased,
}

/// What the network works in.
pub(crate) struct VisionBuffers {
    /// Pictures in, features out.
    pub(crate) x: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
    heads: [Vec<f32>; 3],
    /// Queries, keys and turned values of one head, its scores, and what it gives.
    head: [Vec<f32>; 5],
    activations: Activations,
}

/// Where the network's tensors lie in the mapped file.
#[derive(Debug)]
pub(crate) struct Vision {
    patch: Biased,
    position: TableRef,
    blocks: Vec<VisionBlock>,
    norm: Norm,
    aligner: Vec<Biased>,
}

impl Vision {
    /// Finds every tensor.
    pub(crate) fn resolve(w: &Weights, c: &VisionConfig) -> Result<Self> {
        let block = |layer: usize| -> Result<VisionBlock> {
            let biased = |name: &str| Biased::resolve(w, &format!("vision.layers.{layer}.{name}"));
            let norm = |name: &str| Norm::resolve(w, &format!("vision.layers.{layer}.{name}"));
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
            patch: Biased::resolve(w, "vision.patch")?,
            position: w.table("vision.position.weight")?,
            blocks: (0..c.n_layers).map(block).collect::<Result<_>>()?,
            norm: Norm::resolve(w, "vision.norm")?,
            aligner: (0..c.aligner_layers)
                .map(|layer| Biased::resolve(w, &format!("vision.aligner.{layer}")))
                .collect::<Result<_>>()?,
        })
    }

    /// Buffers for one picture.
    pub(crate) fn buffers(&self, e: &Engine, c: &VisionConfig) -> VisionBuffers {
        let layers = self.blocks.iter().flat_map(|block| [&block.o, &block.fc1, &block.fc2]);
        let layers = layers.chain(&self.aligner).chain([&self.patch]);
        let widest = layers.map(Biased::widest).max().unwrap_or(1).max(c.patches());
        let vec = Vec::new;
        VisionBuffers {
            x: vec(),
            a: vec(),
            b: vec(),
            heads: [vec(), vec(), vec()],
            head: [vec(), vec(), vec(), vec(), vec()],
            activations: Activations::new(c.patches(), widest, 2, e.threads(), ActivationKinds::Both),
        }
    }

    /// `b.x [image_size, image_size, 3]` into `b.x [patches, d_out]`.
    pub(crate) fn forward(&self, e: &Engine, w: &Weights, c: &VisionConfig, b: &mut VisionBuffers) {
        let VisionBuffers { x, a, b, heads, head, activations } = b;
        patches(x, c, a);
        self.patch.forward(e, w, a, x, activations);
        for (place, row) in x.chunks_exact_mut(c.d_model).enumerate() {
            self.position.add_row(w, place, row);
        }
        for block in &self.blocks {
            a.clone_from(x);
            block.norm1.forward(w, a, c.norm_eps);
            for (layer, out) in block.heads.iter().zip(&mut *heads) {
                layer.forward(e, w, a, out, activations);
            }
            attention(e, c, heads, a, head, activations);
            block.o.forward(e, w, a, b, activations);
            e.add(x, b);

            a.clone_from(x);
            block.norm2.forward(w, a, c.norm_eps);
            block.fc1.forward(e, w, a, b, activations);
            gelu_inplace(b);
            block.fc2.forward(e, w, b, a, activations);
            e.add(x, a);
        }
        self.norm.forward(w, x, c.norm_eps);
        through(&self.aligner, (e, w), x, a, activations);
    }
}

/// `x [image_size, image_size, 3]` as rows `(row, column, channel)` of a patch each.
fn patches(x: &[f32], c: &VisionConfig, out: &mut Vec<f32>) {
    out.clear();
    let (p, side) = (c.patch_size, c.image_size / c.patch_size);
    for patch in 0..side * side {
        let (top, left) = (patch / side * p, patch % side * p);
        for row in top..top + p {
            out.extend_from_slice(&x[(row * c.image_size + left) * 3..][..p * 3]);
        }
    }
}

/// Attention of every patch to every patch; `out [patches, d_model]`.
#[allow(clippy::cast_precision_loss, reason = "the width of a head")]
fn attention(
    e: &Engine,
    c: &VisionConfig,
    [q, k, v]: &[Vec<f32>; 3],
    out: &mut [f32],
    [head_q, head_k, head_v, scores, given]: &mut [Vec<f32>; 5],
    a: &mut Activations,
) {
    let (n, d, width) = (c.patches(), c.d_model, c.d_model / c.n_heads);
    let scale = 1.0 / (width as f32).sqrt();
    scores.resize(n * n, 0.0);
    given.resize(n * width, 0.0);
    for first in (0..d).step_by(width) {
        for (from, to) in [(q, &mut *head_q), (k, &mut *head_k)] {
            to.clear();
            from.chunks_exact(d).for_each(|row| to.extend_from_slice(&row[first..first + width]));
        }
        // Values turned: a linear layer's weights are rows of inputs.
        head_v.clear();
        for at in first..first + width {
            head_v.extend(v.iter().skip(at).step_by(d));
        }
        e.linear(head_q, Linear::F32 { rows: head_k, n, k: width }, None, scores, a);
        for row in scores.chunks_exact_mut(n) {
            row.iter_mut().for_each(|x| *x *= scale);
            e.softmax_inplace(row);
        }
        e.linear(scores, Linear::F32 { rows: head_v, n: width, k: n }, None, given, a);
        for (out, given) in out.chunks_exact_mut(d).zip(given.chunks_exact(width)) {
            out[first..first + width].copy_from_slice(given);
        }
    }
}

/// `x · Φ(x)`, exact to 1.5e-7.
///
/// Source: Hendrycks and Gimpel 2016 (arXiv:1606.08415); the error function by Abramowitz and Stegun, 7.1.26.
pub(crate) fn gelu_inplace(x: &mut [f32]) {
    const A: [f64; 5] = [0.254_829_592, -0.284_496_736, 1.421_413_741, -1.453_152_027, 1.061_405_429];
    for x in x {
        let z = f64::from(*x) * std::f64::consts::FRAC_1_SQRT_2;
        let t = 1.0 / (1.0 + 0.327_591_1 * z.abs());
        let series = A.iter().rev().fold(0.0, |sum, a| (sum + a) * t);
        let erf = (1.0 - series * (-z * z).exp()).copysign(z);
        // From double precision, in which the polynomial is.
        #[allow(clippy::cast_possible_truncation)]
        let y = (0.5 * f64::from(*x) * (1.0 + erf)) as f32;
        *x = y;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gelu_at_known_places() {
        // From tables of the normal distribution.
        let mut x = [0.0, 1.0, -1.0, 3.0, -10.0, 10.0];
        gelu_inplace(&mut x);
        for (found, want) in x.iter().zip([0.0, 0.841_344_7, -0.158_655_3, 2.995_950_3, 0.0, 10.0]) {
            assert!((found - want).abs() < 5e-7, "{found} for {want}");
        }
    }
}
