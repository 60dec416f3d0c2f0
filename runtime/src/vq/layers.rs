//! The layers that both ways of a VQGAN are built of. Activations are `[height, width, channels] f32`.

use super::{PREFIX, ResShape};
use crate::Result;
use crate::conv::{Conv, ConvScratch, Map};
use crate::engine::{ActivationKinds, Activations, Engine, Linear};
use crate::weights::{VectorRef, Weights};

/// Groups of every group norm.
const GROUPS: usize = 32;
/// Added to every variance.
const EPS: f64 = 1e-6;

/// Group norm, over groups of neighbouring channels and all places.
#[derive(Clone, Debug)]
pub(crate) struct GroupNorm {
    /// `[channels]` each.
    weight: VectorRef,
    bias: VectorRef,
}

impl GroupNorm {
    /// Finds `stem.weight` and `stem.bias`.
    pub(crate) fn resolve(w: &Weights, stem: &str) -> Result<Self> {
        Ok(Self { weight: w.vector(&format!("{stem}.weight"))?, bias: w.vector(&format!("{stem}.bias"))? })
    }

    /// `(x − mean) / √(variance + eps) · weight + bias`, in place.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "sums in F64, results in F32"
    )]
    pub(crate) fn forward(&self, w: &Weights, x: &mut [f32]) {
        let (weight, bias) = (self.weight.get(w), self.bias.get(w));
        let size = weight.len() / GROUPS;
        for group in 0..GROUPS {
            let of_group = group * size..(group + 1) * size;
            let n = (x.len() / GROUPS) as f64;
            let rows = || x.chunks_exact(weight.len()).flat_map(|row| &row[of_group.clone()]);
            let mean = rows().map(|&x| f64::from(x)).sum::<f64>() / n;
            let variance = rows().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
            let (mean, inverse) = (mean as f32, (1.0 / (variance + EPS).sqrt()) as f32);
            for row in x.chunks_exact_mut(weight.len()) {
                for ((x, weight), bias) in
                    row.iter_mut().zip(weight).zip(bias).skip(of_group.start).take(size)
                {
                    *x = (*x - mean) * inverse * weight + bias;
                }
            }
        }
    }
}

/// `shortcut(x) + conv2(swish(norm2(conv1(swish(norm1(x))))))`.
#[derive(Clone, Debug)]
pub(super) struct ResBlock {
    norm1: GroupNorm,
    pub(super) conv1: Conv,
    norm2: GroupNorm,
    pub(super) conv2: Conv,
    /// 1 × 1, where the number of channels changes.
    shortcut: Option<Conv>,
}

impl ResBlock {
    pub(super) fn resolve(w: &Weights, ResShape { name, input, out }: &ResShape) -> Result<Self> {
        let stem = format!("{PREFIX}.{name}");
        Ok(Self {
            norm1: GroupNorm::resolve(w, &format!("{stem}.norm1"))?,
            conv1: Conv::resolve(w, &format!("{stem}.conv1"), 3, 1, [1, 1])?,
            norm2: GroupNorm::resolve(w, &format!("{stem}.norm2"))?,
            conv2: Conv::resolve(w, &format!("{stem}.conv2"), 3, 1, [1, 1])?,
            shortcut: (input != out)
                .then(|| Conv::resolve(w, &format!("{stem}.nin_shortcut"), 1, 1, [0, 0]))
                .transpose()?,
        })
    }

    pub(super) fn forward(&self, e: &Engine, w: &Weights, size: (usize, usize), b: &mut Buffers) {
        let Buffers { x, a, b: hidden, conv, .. } = b;
        let (height, width) = size;
        a.clone_from(x);
        self.norm1.forward(w, a);
        e.silu_inplace(a);
        hidden.resize(height * width * self.conv1.out_channels(), 0.0);
        self.conv1.forward(e, w, Map { x: a, height, width }, hidden, conv);
        self.norm2.forward(w, hidden);
        e.silu_inplace(hidden);
        a.resize(hidden.len(), 0.0);
        self.conv2.forward(e, w, Map { x: hidden, height, width }, a, conv);
        if let Some(shortcut) = &self.shortcut {
            shortcut.forward(e, w, Map { x, height, width }, hidden, conv);
            std::mem::swap(x, hidden);
        }
        e.add(x, a);
    }
}

/// `x + out(softmax(q · kᵀ / √channels) · v)`, where q, k and v are of `norm(x)`.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    norm: GroupNorm,
    pub(super) q: Conv,
    k: Conv,
    v: Conv,
    out: Conv,
}

impl Attention {
    pub(super) fn resolve(w: &Weights, stem: &str) -> Result<Self> {
        let conv = |part: &str| Conv::resolve(w, &format!("{stem}.{part}"), 1, 1, [0, 0]);
        Ok(Self {
            norm: GroupNorm::resolve(w, &format!("{stem}.norm"))?,
            q: conv("q")?,
            k: conv("k")?,
            v: conv("v")?,
            out: conv("proj_out")?,
        })
    }

    #[allow(clippy::cast_precision_loss, reason = "a number of channels")]
    pub(super) fn forward(&self, e: &Engine, w: &Weights, (height, width): (usize, usize), b: &mut Buffers) {
        let (places, channels) = (height * width, self.q.out_channels());
        let Buffers { x, a, b: q, k, v, scores, conv, activations } = b;
        a.clone_from(x);
        self.norm.forward(w, a);
        for (layer, out) in [(&self.q, &mut *q), (&self.k, &mut *k), (&self.v, &mut *v)] {
            out.resize(places * channels, 0.0);
            layer.forward(e, w, Map { x: a, height, width }, out, conv);
        }
        scores.resize(places * places, 0.0);
        e.linear(q, Linear::F32 { rows: k, n: places, k: channels }, None, scores, activations);
        let scale = 1.0 / (channels as f32).sqrt();
        for row in scores.chunks_exact_mut(places) {
            row.iter_mut().for_each(|x| *x *= scale);
            e.softmax_inplace(row);
        }
        // The values turned: a linear layer's weights are rows of inputs.
        for (channel, row) in k.chunks_exact_mut(places).enumerate() {
            for (at, k) in row.iter_mut().enumerate() {
                *k = v[at * channels + channel];
            }
        }
        e.linear(scores, Linear::F32 { rows: k, n: channels, k: places }, None, a, activations);
        self.out.forward(e, w, Map { x: a, height, width }, q, conv);
        e.add(x, q);
    }
}

/// Blocks of one size.
#[derive(Debug)]
pub(super) struct Level {
    pub(super) blocks: Vec<ResBlock>,
    /// One behind each block, where the level has any.
    pub(super) attention: Vec<Attention>,
    /// What changes the size behind them.
    pub(super) size: Option<Conv>,
}

impl Level {
    /// All but the change of size.
    pub(super) fn forward(&self, e: &Engine, w: &Weights, size: (usize, usize), b: &mut Buffers) {
        for (i, block) in self.blocks.iter().enumerate() {
            block.forward(e, w, size, b);
            if let Some(attention) = self.attention.get(i) {
                attention.forward(e, w, size, b);
            }
        }
    }
}

/// What a network of this kind works in; grows to what the first picture needs.
pub(crate) struct Buffers {
    /// The activation map.
    pub(crate) x: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    scores: Vec<f32>,
    conv: ConvScratch,
    activations: Activations,
}

impl Buffers {
    /// For convolutions of at most `widest` inputs a row, and attention of `channels` channels over `places`.
    pub(super) fn new(e: &Engine, widest: usize, places: usize, channels: usize) -> Self {
        let vec = Vec::new;
        Self {
            x: vec(),
            a: vec(),
            b: vec(),
            k: vec(),
            v: vec(),
            scores: vec(),
            conv: ConvScratch::new(widest, e),
            activations: Activations::new(
                places,
                places.max(channels),
                1,
                e.threads(),
                ActivationKinds::Float,
            ),
        }
    }
}

/// `b.x` through a convolution.
pub(super) fn through(
    conv: &Conv,
    e: &Engine,
    w: &Weights,
    height: &mut usize,
    width: &mut usize,
    b: &mut Buffers,
) {
    let (out_height, out_width) = conv.out_size(*height, *width);
    b.a.resize(out_height * out_width * conv.out_channels(), 0.0);
    conv.forward(e, w, Map { x: &b.x, height: *height, width: *width }, &mut b.a, &mut b.conv);
    std::mem::swap(&mut b.x, &mut b.a);
    (*height, *width) = (out_height, out_width);
}
