//! The part of the net that runs over time: residual blocks of causal convolutions with batch norm.
//!
//! Activations are `[time, height, width, code_dim] f32`.

use super::plan::{self, PREFIX};
use crate::Result;
use crate::config::MovqConfig;
use crate::conv::{Clip, ConvScratch, TimeConv, repeat_frames};
use crate::engine::Engine;
use crate::weights::{VectorRef, Weights};

/// Added to every variance. Source: `nn.BatchNorm3d` of PyTorch.
const EPS: f32 = 1e-5;

/// Batch norm as it is after training: a scale and an offset for each channel.
#[derive(Clone, Debug)]
struct BatchNorm {
    /// `[code_dim]` each.
    weight: VectorRef,
    bias: VectorRef,
    mean: VectorRef,
    variance: VectorRef,
}

impl BatchNorm {
    fn resolve(w: &Weights, stem: &str) -> Result<Self> {
        let vector = |part: &str| w.vector(&format!("{stem}.{part}"));
        Ok(Self {
            weight: vector("weight")?,
            bias: vector("bias")?,
            mean: vector("running_mean")?,
            variance: vector("running_var")?,
        })
    }

    /// `(x − mean) / √(variance + eps) · weight + bias`, in place.
    fn forward(&self, w: &Weights, x: &mut [f32]) {
        let [weight, bias, mean, variance] =
            [&self.weight, &self.bias, &self.mean, &self.variance].map(|vector| vector.get(w));
        for (c, weight) in weight.iter().enumerate() {
            let scale = weight / (variance[c] + EPS).sqrt();
            for x in x.iter_mut().skip(c).step_by(mean.len()) {
                *x = (*x - mean[c]) * scale + bias[c];
            }
        }
    }
}

/// What work over time needs: three clips of vectors.
#[derive(Default)]
pub(super) struct TimeBuffers {
    /// `[time, height, width, code_dim]`
    pub(super) x: Vec<f32>,
    pub(super) a: Vec<f32>,
    b: Vec<f32>,
}

/// `x + conv2(swish(norm2(conv1(swish(norm1(x))))))`.
#[derive(Clone, Debug)]
struct TimeBlock {
    norms: [BatchNorm; 2],
    convs: [TimeConv; 2],
}

/// The convolutions that change the number of frames, and the residual blocks behind (encoder) or before (decoder) them.
#[derive(Clone, Debug)]
pub(super) struct TimeStack {
    convs: Vec<TimeConv>,
    blocks: Vec<TimeBlock>,
}

impl TimeStack {
    /// Finds the stack of `half`: `encoder`, whose convolutions take every second frame, or `decoder`.
    pub(super) fn resolve(w: &Weights, c: &MovqConfig, half: &str) -> Result<Self> {
        let half = format!("{PREFIX}.{half}");
        let (kt, stride) = if half.ends_with("encoder") { (4, 2) } else { (3, 1) };
        let conv = |stem: String, kt, stride| TimeConv::resolve(w, &stem, [kt, 3], stride);
        let convs = (0..plan::time_levels(c))
            .map(|level| conv(format!("{half}.time_conv.{level}.conv.conv"), kt, stride))
            .collect::<Result<_>>()?;
        let block = |block: usize| {
            let stem = format!("{half}.time_res_stack.{block}");
            Ok(TimeBlock {
                norms: [
                    BatchNorm::resolve(w, &format!("{stem}.norm1"))?,
                    BatchNorm::resolve(w, &format!("{stem}.norm2"))?,
                ],
                convs: [conv(format!("{stem}.conv1.conv"), 3, 1)?, conv(format!("{stem}.conv2.conv"), 3, 1)?],
            })
        };
        Ok(Self { convs, blocks: (0..c.n_res).map(block).collect::<Result<_>>()? })
    }

    /// The convolutions.
    pub(super) fn convs(&self) -> impl Iterator<Item = &TimeConv> {
        self.blocks.iter().flat_map(|block| &block.convs).chain(&self.convs)
    }

    /// `b.x` of `time` frames to a `1/time_factor` of them, which is returned.
    pub(super) fn shrink(
        &self,
        run: (&Engine, &Weights),
        (mut time, height, width): (usize, usize, usize),
        b: &mut TimeBuffers,
        s: &mut ConvScratch,
    ) -> usize {
        for conv in &self.convs {
            conv.forward(run, Clip { x: &b.x, time, height, width }, &mut b.a, s);
            run.0.silu_inplace(&mut b.a);
            std::mem::swap(&mut b.x, &mut b.a);
            time = conv.out_time(time);
        }
        for block in &self.blocks {
            block.forward(run, (time, height, width), b, s);
        }
        time
    }

    /// `b.x` of `time` frames to `time_factor` as many, whose number is returned.
    pub(super) fn grow(
        &self,
        run: (&Engine, &Weights),
        (mut time, height, width): (usize, usize, usize),
        b: &mut TimeBuffers,
        s: &mut ConvScratch,
    ) -> usize {
        for block in &self.blocks {
            block.forward(run, (time, height, width), b, s);
        }
        for conv in &self.convs {
            repeat_frames(&b.x, b.x.len() / time, &mut b.a);
            time *= 2;
            conv.forward(run, Clip { x: &b.a, time, height, width }, &mut b.x, s);
            run.0.silu_inplace(&mut b.x);
        }
        time
    }
}

impl TimeBlock {
    fn forward(
        &self,
        run: (&Engine, &Weights),
        (time, height, width): (usize, usize, usize),
        buffers: &mut TimeBuffers,
        s: &mut ConvScratch,
    ) {
        let TimeBuffers { x, a, b } = buffers;
        a.clone_from(x);
        for (norm, conv) in self.norms.iter().zip(&self.convs) {
            norm.forward(run.1, a);
            run.0.silu_inplace(a);
            conv.forward(run, Clip { x: a, time, height, width }, b, s);
            std::mem::swap(a, b);
        }
        run.0.add(x, a);
    }
}
