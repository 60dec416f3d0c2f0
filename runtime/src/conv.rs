//! Convolutions as linear layers over patches, and the residual unit of the image tokenizer.
//!
//! Activations are `[height, width, channels] f32`. A convolution gathers patches `(kh, kw, channels)` of 64 output
//! positions at a time and hands them to the linear layer, so the patch buffer stays in the cache.

mod time;

use crate::Result;
use crate::engine::{ActivationKinds, Activations, Engine};
use crate::weights::{LinearRef, VectorRef, Weights};

pub(crate) use time::{Clip, TimeConv, repeat_frames};

/// Output positions that are gathered at a time.
const ROWS: usize = 64;

/// One convolution with a bias and a square kernel.
#[derive(Clone, Debug)]
pub(crate) struct Conv {
    /// `[out, kh · kw · in]`
    weight: LinearRef,
    /// `[out]`
    bias: VectorRef,
    kernel: usize,
    stride: usize,
    /// Zeros before the first and after the last row and column.
    pad: [usize; 2],
}

/// Buffers that convolutions share: patches and the linear layer's own.
pub(crate) struct ConvScratch {
    patches: Vec<f32>,
    activations: Activations,
}

impl ConvScratch {
    /// Bytes of a scratch for `max_k` inputs a row: patches, and as much again for what the linear layer makes of them.
    pub(crate) fn bytes(max_k: usize) -> u128 {
        2 * 4 * (ROWS * max_k) as u128
    }

    /// For convolutions of at most `max_k` inputs a row (`kh · kw · in`).
    pub(crate) fn new(max_k: usize, e: &Engine) -> Self {
        let activations = Activations::new(ROWS, max_k, 2, e.threads(), ActivationKinds::Both);
        Self { patches: vec![0.0; ROWS * max_k], activations }
    }
}

/// An activation map: `[height, width, channels]`.
#[derive(Clone, Copy)]
pub(crate) struct Map<'a> {
    /// The values.
    pub(crate) x: &'a [f32],
    /// Rows.
    pub(crate) height: usize,
    /// Columns.
    pub(crate) width: usize,
}

impl Conv {
    /// Finds `stem.weight` and `stem.bias`.
    pub(crate) fn resolve(
        w: &Weights,
        stem: &str,
        kernel: usize,
        stride: usize,
        pad: [usize; 2],
    ) -> Result<Self> {
        Ok(Self { weight: w.linear(stem)?, bias: w.vector(&format!("{stem}.bias"))?, kernel, stride, pad })
    }

    /// Inputs of one output value.
    pub(crate) fn k(&self) -> usize {
        self.weight.k
    }

    /// Channels out.
    pub(crate) fn out_channels(&self) -> usize {
        self.weight.n
    }

    /// Rows and columns of the output for an input of that many.
    pub(crate) fn out_size(&self, height: usize, width: usize) -> (usize, usize) {
        let size = |n: usize| (n + self.pad[0] + self.pad[1] - self.kernel) / self.stride + 1;
        (size(height), size(width))
    }

    /// Convolves `input` into `out [out_height, out_width, out]`.
    pub(crate) fn forward(
        &self,
        e: &Engine,
        w: &Weights,
        input: Map<'_>,
        out: &mut [f32],
        s: &mut ConvScratch,
    ) {
        let (height, width) = self.out_size(input.height, input.width);
        assert_eq!(out.len(), height * width * self.weight.n);
        over_patches((e, w), (&self.weight, &self.bias), out, s, |at, patch| {
            self.gather(input, at / width, at % width, patch);
        });
    }

    /// The patch under output position (`row`, `col`): `(kh, kw, in)`, zeros outside the input.
    fn gather(&self, input: Map<'_>, row: usize, col: usize, patch: &mut [f32]) {
        let channels = self.weight.k / (self.kernel * self.kernel);
        for (tap, out) in patch.chunks_exact_mut(channels).enumerate() {
            let y = (row * self.stride + tap / self.kernel).wrapping_sub(self.pad[0]);
            let x = (col * self.stride + tap % self.kernel).wrapping_sub(self.pad[0]);
            if y < input.height && x < input.width {
                out.copy_from_slice(&input.x[(y * input.width + x) * channels..][..channels]);
            } else {
                out.fill(0.0);
            }
        }
    }
}

/// A linear layer over the patches that `gather(position, patch)` fills, into `out [positions, n]`.
fn over_patches(
    (e, w): (&Engine, &Weights),
    (weight, bias): (&LinearRef, &VectorRef),
    out: &mut [f32],
    s: &mut ConvScratch,
    gather: impl Fn(usize, &mut [f32]),
) {
    let (n, k) = (weight.n, weight.k);
    let mut first = 0;
    for out in out.chunks_mut(ROWS * n) {
        let rows = out.len() / n;
        for (row, patch) in s.patches.chunks_exact_mut(k).take(rows).enumerate() {
            gather(first + row, patch);
        }
        e.linear(&s.patches[..rows * k], weight.get(w), Some(bias.get(w)), out, &mut s.activations);
        first += rows;
    }
}

/// `x + conv2(silu(conv1(silu(x))))`: 3×3 down to the hidden channels, 1×1 back.
#[derive(Clone, Debug)]
pub(crate) struct Residual {
    /// 3×3.
    pub(crate) conv1: Conv,
    /// 1×1.
    pub(crate) conv2: Conv,
}

impl Residual {
    /// Applies the unit in place. `a` and `b` are spare buffers of at least `x.len()`.
    pub(crate) fn forward(
        &self,
        (e, w): (&Engine, &Weights),
        x: &mut [f32],
        (height, width): (usize, usize),
        (a, b): (&mut [f32], &mut [f32]),
        s: &mut ConvScratch,
    ) {
        let (a, hidden) = (&mut a[..x.len()], &mut b[..height * width * self.conv1.out_channels()]);
        a.copy_from_slice(x);
        e.silu_inplace(a);
        self.conv1.forward(e, w, Map { x: a, height, width }, hidden, s);
        e.silu_inplace(hidden);
        self.conv2.forward(e, w, Map { x: hidden, height, width }, a, s);
        e.add(x, a);
    }
}

/// Nearest-neighbour enlargement by two. `x [height, width, channels]`, `out [2·height, 2·width, channels]`.
pub(crate) fn upsample_nearest(x: &[f32], (height, width): (usize, usize), channels: usize, out: &mut [f32]) {
    assert_eq!(x.len(), height * width * channels);
    assert_eq!(out.len(), 4 * x.len());
    for (at, pixel) in out.chunks_exact_mut(channels).enumerate() {
        let (row, col) = (at / (2 * width), at % (2 * width));
        pixel.copy_from_slice(&x[((row / 2) * width + col / 2) * channels..][..channels]);
    }
}
