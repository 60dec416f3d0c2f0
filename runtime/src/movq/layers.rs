//! What the two halves of the net are made of: norms, residual blocks, attention.
//!
//! Activations are one frame, `[height, width, channels] f32`. The decoder's norms also see the code book vectors of that frame,
//! `[rows, columns, code_dim] f32`.
//!
//! Source: Zheng et al. 2022 (arXiv:2209.09002), section 3.2; the order of operations is that of transformers' `Emu3VQVAE`.

use crate::Result;
use crate::conv::{Conv, ConvScratch, Map};
use crate::engine::{ActivationKinds, Activations, Engine, Linear};
use crate::vq::GroupNorm;
use crate::weights::Weights;

/// Places that attention computes the scores of at a time: all of them would be 1 GiB for a picture of 1024².
const QUERIES: usize = 256;

/// What a frame is worked on in; grows to what the first one needs.
pub(crate) struct Buffers {
    /// The activation map.
    pub(super) x: Vec<f32>,
    pub(super) a: Vec<f32>,
    pub(super) b: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    scores: Vec<f32>,
    pub(super) conv: ConvScratch,
    activations: Activations,
}

impl Buffers {
    /// For grids of `places`, convolutions of at most `max_k` inputs and attention over at most `channels`.
    pub(super) fn new(e: &Engine, places: usize, max_k: usize, channels: usize) -> Self {
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
    pub(super) fn bytes(places: usize, largest: u128, max_k: usize, channels: usize) -> u128 {
        let (places, channels) = (places as u128, channels as u128);
        let scores = 2 * QUERIES as u128 * places.max(channels);
        4 * (3 * largest + 3 * places * channels + scores) + ConvScratch::bytes(max_k)
    }
}

/// The engine, the weights, and the code book vectors of the frame, where the norms see them.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) e: &'a Engine,
    pub(super) w: &'a Weights,
    pub(super) code: Option<Map<'a>>,
}

/// A norm by groups, and in the decoder what follows it.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    norm: GroupNorm,
    /// 1 × 1 convolutions of the code map, enlarged to the size of the frame: what the norm is multiplied by, and what is added.
    spatial: Option<[Conv; 2]>,
}

impl Norm {
    /// Finds the norm `stem`.
    pub(super) fn resolve(w: &Weights, stem: &str, spatial: bool) -> Result<Self> {
        if !spatial {
            return Ok(Self { norm: GroupNorm::resolve(w, stem)?, spatial: None });
        }
        let conv = |part: &str| Conv::resolve(w, &format!("{stem}.{part}"), 1, 1, [0, 0]);
        let norm = GroupNorm::resolve(w, &format!("{stem}.norm_layer"))?;
        Ok(Self { norm, spatial: Some([conv("conv_y")?, conv("conv_b")?]) })
    }

    /// `x [height, width, channels]` in place. `scale` and `shift` are spare.
    pub(super) fn forward(
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
pub(super) struct ResBlock {
    norm1: Norm,
    conv1: Conv,
    norm2: Norm,
    conv2: Conv,
    /// 1 × 1, where the number of channels changes.
    shortcut: Option<Conv>,
}

impl ResBlock {
    /// Finds the block `stem`.
    pub(super) fn resolve(w: &Weights, stem: &str, [input, out]: [usize; 2], spatial: bool) -> Result<Self> {
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

    pub(super) fn forward(&self, run: Run<'_>, (height, width): (usize, usize), buffers: &mut Buffers) {
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
pub(super) struct Attention {
    norm: Norm,
    q: Conv,
    k: Conv,
    v: Conv,
    out: Conv,
}

impl Attention {
    /// Finds the projections of `stem` and the norm `norm`.
    pub(super) fn resolve(w: &Weights, stem: &str, norm: &str, spatial: bool) -> Result<Self> {
        let projection = |part: &str| Conv::resolve(w, &format!("{stem}.{part}_proj"), 1, 1, [0, 0]);
        Ok(Self {
            norm: Norm::resolve(w, norm, spatial)?,
            q: projection("q")?,
            k: projection("k")?,
            v: projection("v")?,
            out: projection("out")?,
        })
    }

    #[allow(clippy::cast_precision_loss, reason = "a number of channels")]
    pub(super) fn forward(&self, run: Run<'_>, (height, width): (usize, usize), buffers: &mut Buffers) {
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
