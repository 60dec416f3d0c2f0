//! The layers that VQGANs are built of: norms, residual blocks, attention, levels of them.
//!
//! Activations are one picture, `[height, width, channels] f32`. The norms of MoVQ's decoder also see the code book vectors of that
//! picture, `[rows, columns, code_dim] f32`.
//!
//! Source: Esser et al. 2021 (arXiv:2012.09841) and Zheng et al. 2022 (arXiv:2209.09002), section 3.2; the order of operations is that of
//! transformers' `ChameleonVQVAE`, `JanusVQVAE` and `Emu3VQVAE`.

use crate::Result;
use crate::conv::{Conv, ConvScratch, Map, upsample_nearest};
use crate::engine::{ActivationKinds, Activations, Engine, Linear};
use crate::weights::{VectorRef, Weights};

/// Groups of every group norm.
const GROUPS: usize = 32;
/// Added to every variance.
const EPS: f64 = 1e-6;

/// Places that attention computes the scores of at a time: all of them would be 1 GiB for a picture of 1024².
const QUERIES: usize = 256;

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

/// What a frame is worked on in; grows to what the first one needs.
pub(crate) struct Buffers {
    /// The activation map.
    pub(crate) x: Vec<f32>,
    pub(crate) a: Vec<f32>,
    pub(crate) b: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    scores: Vec<f32>,
    pub(crate) conv: ConvScratch,
    activations: Activations,
}

impl Buffers {
    /// For grids of `places`, convolutions of at most `max_k` inputs and attention over at most `channels`.
    pub(crate) fn new(e: &Engine, places: usize, max_k: usize, channels: usize) -> Self {
        let (rows, width) = (places.min(QUERIES), places.max(channels));
        // Attention's projections go through the convolutions' scratch, 64 places at a time.
        let activations = Activations::new(rows, width, 1, e.threads(), ActivationKinds::Float);
        Self {
            x: Vec::new(),
            a: Vec::new(),
            b: Vec::new(),
            k: Vec::new(),
            v: Vec::new(),
            scores: Vec::new(),
            conv: ConvScratch::new(max_k, e),
            activations,
        }
    }

    /// Bytes of buffers for grids of `places` whose largest map has `largest` values.
    pub(crate) fn bytes(places: usize, largest: u128, max_k: usize, channels: usize) -> u128 {
        let (places, channels) = (places as u128, channels as u128);
        let scores = 2 * QUERIES as u128 * places.max(channels);
        4 * (3 * largest + 3 * places * channels + scores) + ConvScratch::bytes(max_k)
    }
}

/// The engine, the weights, and the code book vectors of the frame, where the norms see them.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    pub(crate) e: &'a Engine,
    pub(crate) w: &'a Weights,
    pub(crate) code: Option<Map<'a>>,
}

/// A norm by groups, and in the decoder what follows it.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    norm: GroupNorm,
    /// 1 × 1 convolutions of the code map, enlarged to the size of the frame: what the norm is multiplied by, and what is added.
    spatial: Option<[Conv; 2]>,
}

impl Norm {
    /// Finds the norm `stem`.
    pub(crate) fn resolve(w: &Weights, stem: &str, spatial: bool) -> Result<Self> {
        if !spatial {
            return Ok(Self { norm: GroupNorm::resolve(w, stem)?, spatial: None });
        }
        let conv = |part: &str| Conv::resolve(w, &format!("{stem}.{part}"), 1, 1, [0, 0]);
        let norm = GroupNorm::resolve(w, &format!("{stem}.norm_layer"))?;
        Ok(Self { norm, spatial: Some([conv("conv_y")?, conv("conv_b")?]) })
    }

    /// `x [height, width, channels]` in place. `scale` and `shift` are spare.
    pub(crate) fn forward(
        &self,
        run: Run<'_>,
        x: &mut [f32],
        width: usize,
        (scale, shift): (&mut Vec<f32>, &mut Vec<f32>),
        s: &mut ConvScratch,
    ) {
        let Run { e, w, code } = run;
        self.norm.forward(w, x);
        let (Some(convs), Some(code)) = (&self.spatial, code) else { return };
        // A 1 × 1 convolution of an enlarged map is the enlarged convolution, and a map of codes is up to 64 times smaller.
        let channels = convs[0].out_channels();
        for (conv, out) in convs.iter().zip([&mut *scale, &mut *shift]) {
            out.resize(code.height * code.width * channels, 0.0);
            conv.forward(e, w, code, out, s);
        }
        let factor = (width / code.width).max(1);
        for (at, x) in x.chunks_exact_mut(channels).enumerate() {
            let place = (at / width / factor) * code.width + at % width / factor;
            let of_place = place * channels..(place + 1) * channels;
            for ((x, scale), shift) in x.iter_mut().zip(&scale[of_place.clone()]).zip(&shift[of_place]) {
                *x = *x * scale + shift;
            }
        }
    }
}

/// `shortcut(x) + conv2(swish(norm2(conv1(swish(norm1(x))))))`.
#[derive(Clone, Debug)]
pub(crate) struct ResBlock {
    norm1: Norm,
    conv1: Conv,
    norm2: Norm,
    conv2: Conv,
    /// 1 × 1, where the number of channels changes.
    shortcut: Option<Conv>,
}

impl ResBlock {
    /// Finds the block `stem`.
    pub(crate) fn resolve(w: &Weights, stem: &str, [input, out]: [usize; 2], spatial: bool) -> Result<Self> {
        Ok(Self {
            norm1: Norm::resolve(w, &format!("{stem}.norm1"), spatial)?,
            conv1: Conv::resolve(w, &format!("{stem}.conv1"), 3, 1, [1, 1])?,
            norm2: Norm::resolve(w, &format!("{stem}.norm2"), spatial)?,
            conv2: Conv::resolve(w, &format!("{stem}.conv2"), 3, 1, [1, 1])?,
            shortcut: (input != out)
                .then(|| Conv::resolve(w, &format!("{stem}.nin_shortcut"), 1, 1, [0, 0]))
                .transpose()?,
        })
    }

    pub(crate) fn forward(&self, run: Run<'_>, (height, width): (usize, usize), buffers: &mut Buffers) {
        let Run { e, w, .. } = run;
        let Buffers { x, a, b, k, v, conv, .. } = buffers;
        a.clone_from(x);
        self.norm1.forward(run, a, width, (k, v), conv);
        e.silu_inplace(a);
        b.resize(height * width * self.conv1.out_channels(), 0.0);
        self.conv1.forward(e, w, Map { x: a, height, width }, b, conv);
        self.norm2.forward(run, b, width, (k, v), conv);
        e.silu_inplace(b);
        a.resize(b.len(), 0.0);
        self.conv2.forward(e, w, Map { x: b, height, width }, a, conv);
        if let Some(shortcut) = &self.shortcut {
            shortcut.forward(e, w, Map { x, height, width }, b, conv);
            std::mem::swap(x, b);
        }
        e.add(x, a);
    }
}

/// `x + out(softmax(q · kᵀ / √channels) · v)` over all places of a frame, where q, k and v are of `norm(x)`.
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    norm: Norm,
    q: Conv,
    k: Conv,
    v: Conv,
    out: Conv,
}

impl Attention {
    /// Finds the projections of `stem`, which are called `[q, k, v, out]`.
    pub(crate) fn resolve(w: &Weights, norm: Norm, stem: &str, [q, k, v, out]: [&str; 4]) -> Result<Self> {
        let projection = |part: &str| Conv::resolve(w, &format!("{stem}.{part}"), 1, 1, [0, 0]);
        Ok(Self { norm, q: projection(q)?, k: projection(k)?, v: projection(v)?, out: projection(out)? })
    }

    #[allow(clippy::cast_precision_loss, reason = "a number of channels")]
    pub(crate) fn forward(&self, run: Run<'_>, (height, width): (usize, usize), buffers: &mut Buffers) {
        let Run { e, w, .. } = run;
        let (places, channels) = (height * width, self.q.out_channels());
        let Buffers { x, a, b: q, k, v, scores, conv, activations } = buffers;
        a.clone_from(x);
        self.norm.forward(run, a, width, (k, v), conv);
        for (layer, out) in [(&self.q, &mut *q), (&self.k, &mut *k), (&self.v, &mut *v)] {
            out.resize(places * channels, 0.0);
            layer.forward(e, w, Map { x: a, height, width }, out, conv);
        }
        // The values turned: a linear layer's weights are rows of inputs.
        for (channel, row) in a.chunks_exact_mut(places).enumerate() {
            for (at, turned) in row.iter_mut().enumerate() {
                *turned = v[at * channels + channel];
            }
        }
        let scale = 1.0 / (channels as f32).sqrt();
        let (keys, values) = (
            Linear::F32 { rows: k, n: places, k: channels },
            Linear::F32 { rows: a, n: channels, k: places },
        );
        for (q, out) in q.chunks(QUERIES * channels).zip(v.chunks_mut(QUERIES * channels)) {
            scores.resize(q.len() / channels * places, 0.0);
            e.linear(q, keys, None, scores, activations);
            for row in scores.chunks_exact_mut(places) {
                row.iter_mut().for_each(|x| *x *= scale);
                e.softmax_inplace(row);
            }
            e.linear(scores, values, None, out, activations);
        }
        self.out.forward(e, w, Map { x: v, height, width }, q, conv);
        e.add(x, q);
    }
}

/// Residual blocks, each with the attention behind it where there is one, and the convolution that changes the size.
#[derive(Clone, Debug)]
pub(crate) struct Level {
    pub(crate) blocks: Vec<(ResBlock, Option<Attention>)>,
    pub(crate) resize: Option<Conv>,
}

impl Level {
    /// All but the change of size.
    pub(crate) fn blocks(&self, run: Run<'_>, size: (usize, usize), b: &mut Buffers) {
        for (block, attention) in &self.blocks {
            block.forward(run, size, b);
            if let Some(attention) = attention {
                attention.forward(run, size, b);
            }
        }
    }
}

/// The middle: attention between two blocks.
#[derive(Clone, Debug)]
pub(crate) struct Middle(pub(crate) ResBlock, pub(crate) Attention, pub(crate) ResBlock);

impl Middle {
    pub(crate) fn forward(&self, run: Run<'_>, size: (usize, usize), b: &mut Buffers) {
        self.0.forward(run, size, b);
        self.1.forward(run, size, b);
        self.2.forward(run, size, b);
    }
}

/// The last norm and the last convolution.
#[derive(Clone, Debug)]
pub(crate) struct Out(pub(crate) Norm, pub(crate) Conv);

impl Out {
    pub(crate) fn forward(&self, run: Run<'_>, size: (usize, usize), b: &mut Buffers) {
        let Buffers { x, a, b: shift, conv, .. } = b;
        self.0.forward(run, x, size.1, (a, shift), conv);
        run.e.silu_inplace(x);
        through(&self.1, run, size, b);
    }
}

/// `b.x` through a convolution; returns its height and width then.
pub(crate) fn through(
    conv: &Conv,
    run: Run<'_>,
    (height, width): (usize, usize),
    b: &mut Buffers,
) -> (usize, usize) {
    let (out_height, out_width) = conv.out_size(height, width);
    b.a.resize(out_height * out_width * conv.out_channels(), 0.0);
    conv.forward(run.e, run.w, Map { x: &b.x, height, width }, &mut b.a, &mut b.conv);
    std::mem::swap(&mut b.x, &mut b.a);
    (out_height, out_width)
}

/// `b.x` twice as high and wide, then through a convolution that keeps its channels; returns its height and width then.
pub(crate) fn enlarged(conv: &Conv, run: Run<'_>, size: (usize, usize), b: &mut Buffers) -> (usize, usize) {
    b.a.resize(4 * b.x.len(), 0.0);
    upsample_nearest(&b.x, size, conv.out_channels(), &mut b.a);
    std::mem::swap(&mut b.x, &mut b.a);
    through(conv, run, (2 * size.0, 2 * size.1), b)
}
