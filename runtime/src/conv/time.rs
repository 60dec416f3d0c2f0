//! Causal convolutions over time: a frame sees itself and the two steps before it, never what comes after.
//!
//! Activations are `[time, height, width, channels] f32`, patches `(kt, kh, kw, channels)`.

use super::{ConvScratch, over_patches};
use crate::Result;
use crate::engine::Engine;
use crate::weights::{LinearRef, VectorRef, Weights};

/// Zeros before the first frame. They are two for every kernel, also for those of four frames.
const BEFORE: usize = 2;

/// An activation map over time: `[time, height, width, channels]`.
#[derive(Clone, Copy)]
pub(crate) struct Clip<'a> {
    /// The values.
    pub(crate) x: &'a [f32],
    /// Frames.
    pub(crate) time: usize,
    /// Rows.
    pub(crate) height: usize,
    /// Columns.
    pub(crate) width: usize,
}

/// One convolution over time with a bias, as wide and high in as out.
#[derive(Clone, Debug)]
pub(crate) struct TimeConv {
    /// `[out, kt · kh · kw · in]`
    weight: LinearRef,
    /// `[out]`
    bias: VectorRef,
    /// Frames, and rows as well as columns, which are odd.
    kernel: [usize; 2],
    /// In time.
    stride: usize,
}

impl TimeConv {
    /// Finds `stem.weight` and `stem.bias`.
    pub(crate) fn resolve(w: &Weights, stem: &str, kernel: [usize; 2], stride: usize) -> Result<Self> {
        Ok(Self { weight: w.linear(stem)?, bias: w.vector(&format!("{stem}.bias"))?, kernel, stride })
    }

    /// Inputs of one output value.
    pub(crate) fn k(&self) -> usize {
        self.weight.k
    }

    /// Frames of the output for an input of that many.
    pub(crate) fn out_time(&self, time: usize) -> usize {
        (time + BEFORE).saturating_sub(self.kernel[0]) / self.stride + 1
    }

    /// Convolves `input`, at least two frames where the kernel has four, into `out [out_time, height, width, out]`.
    pub(crate) fn forward(
        &self,
        (e, w): (&Engine, &Weights),
        input: Clip<'_>,
        out: &mut Vec<f32>,
        s: &mut ConvScratch,
    ) {
        assert!(input.time + BEFORE >= self.kernel[0], "{} frames", input.time);
        out.resize(self.out_time(input.time) * input.height * input.width * self.weight.n, 0.0);
        over_patches((e, w), (&self.weight, &self.bias), out, s, |at, patch| self.gather(input, at, patch));
    }

    /// The patch under output position `at`: `(kt, kh, kw, in)`, zeros outside the input.
    fn gather(&self, input: Clip<'_>, at: usize, patch: &mut [f32]) {
        let Clip { x, time, height, width } = input;
        let [_, side] = self.kernel;
        let channels = self.weight.k / (self.kernel[0] * side * side);
        let (frame, row, col) = (at / (height * width), at / width % height, at % width);
        for (tap, out) in patch.chunks_exact_mut(channels).enumerate() {
            let t = (frame * self.stride + tap / (side * side)).wrapping_sub(BEFORE);
            let y = (row + tap / side % side).wrapping_sub(side / 2);
            let x_at = (col + tap % side).wrapping_sub(side / 2);
            if t < time && y < height && x_at < width {
                out.copy_from_slice(&x[((t * height + y) * width + x_at) * channels..][..channels]);
            } else {
                out.fill(0.0);
            }
        }
    }
}

/// Every frame twice: `x [time, frame]` into `out [2·time, frame]`.
///
/// # Panics
/// If `x` is not whole frames of so many values.
pub(crate) fn repeat_frames(x: &[f32], frame: usize, out: &mut Vec<f32>) {
    assert!(x.len().is_multiple_of(frame));
    out.clear();
    for frame in x.chunks_exact(frame) {
        out.extend_from_slice(frame);
        out.extend_from_slice(frame);
    }
}
