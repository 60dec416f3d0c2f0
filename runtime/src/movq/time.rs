//! The part of the net that runs over time: residual blocks of causal convolutions with batch norm.
//!
//! Works on the clip in slot `Clip`, `[time, height, width, code_dim] f32`.

use super::plan::{self, PREFIX};
use crate::Result;
use crate::config::MovqConfig;
use crate::engine::maps::Slot::{Clip, ClipA, ClipB};
use crate::engine::maps::{Affine, ChannelNorm, Conv, Maps};
use crate::weights::Weights;

impl ChannelNorm {
    fn resolve(w: &Weights, stem: &str) -> Result<Self> {
        let vector = |part: &str| w.vector(&format!("{stem}.{part}"));
        Ok(Self {
            affine: Affine::resolve(w, stem)?,
            mean: vector("running_mean")?,
            variance: vector("running_var")?,
        })
    }
}

/// `x + conv2(swish(norm2(conv1(swish(norm1(x))))))`.
#[derive(Clone, Debug)]
struct TimeBlock {
    norm1: ChannelNorm,
    conv1: Conv,
    norm2: ChannelNorm,
    conv2: Conv,
}

/// The convolutions that change the number of frames, and the residual blocks behind (encoder) or before (decoder) them.
#[derive(Clone, Debug)]
pub(super) struct TimeStack {
    convs: Vec<Conv>,
    blocks: Vec<TimeBlock>,
}

impl TimeStack {
    /// Finds the stack of `half`: `encoder`, whose convolutions take every second frame, or `decoder`.
    pub(super) fn resolve(w: &Weights, c: &MovqConfig, half: &str) -> Result<Self> {
        let half = format!("{PREFIX}.{half}");
        let (kt, stride) = if half.ends_with("encoder") { (4, 2) } else { (3, 1) };
        let conv = |stem: String, kt, stride| Conv::over_time(w, &stem, [kt, 3], stride);
        let convs = (0..plan::time_levels(c))
            .map(|level| conv(format!("{half}.time_conv.{level}.conv.conv"), kt, stride))
            .collect::<Result<_>>()?;
        let block = |block: usize| {
            let stem = format!("{half}.time_res_stack.{block}");
            Ok(TimeBlock {
                norm1: ChannelNorm::resolve(w, &format!("{stem}.norm1"))?,
                conv1: conv(format!("{stem}.conv1.conv"), 3, 1)?,
                norm2: ChannelNorm::resolve(w, &format!("{stem}.norm2"))?,
                conv2: conv(format!("{stem}.conv2.conv"), 3, 1)?,
            })
        };
        Ok(Self { convs, blocks: (0..c.n_res).map(block).collect::<Result<_>>()? })
    }

    /// The clip to a `1/time_factor` of its frames.
    pub(super) fn shrink(&self, m: &mut dyn Maps) -> Result<()> {
        for conv in &self.convs {
            m.convolve(conv, Clip, ClipA)?;
            m.silu(ClipA, Clip)?;
        }
        self.blocks.iter().try_for_each(|block| block.forward(m))
    }

    /// The clip to `time_factor` as many frames.
    pub(super) fn grow(&self, m: &mut dyn Maps) -> Result<()> {
        self.blocks.iter().try_for_each(|block| block.forward(m))?;
        for conv in &self.convs {
            m.repeat_frames(Clip, ClipA)?;
            m.convolve(conv, ClipA, Clip)?;
            m.silu(Clip, Clip)?;
        }
        Ok(())
    }
}

impl TimeBlock {
    fn forward(&self, m: &mut dyn Maps) -> Result<()> {
        m.channel_norm_swish(&self.norm1, Clip, ClipA)?;
        m.convolve(&self.conv1, ClipA, ClipB)?;
        m.channel_norm_swish(&self.norm2, ClipB, ClipA)?;
        m.convolve(&self.conv2, ClipA, ClipB)?;
        m.add(Clip, ClipB)
    }
}
