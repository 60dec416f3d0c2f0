//! Convolutions by their names, and the residual unit of the image tokenizer.

use crate::Result;
use crate::engine::maps::{Biased, Conv, Grid, Maps, Slot};
use crate::weights::Weights;

impl Conv {
    /// Finds the convolution `stem` of a picture; `pad`: zeros before the first and after the last row and column.
    pub(crate) fn resolve(
        w: &Weights,
        stem: &str,
        kernel: usize,
        stride: usize,
        pad: [usize; 2],
    ) -> Result<Self> {
        let [before, after] = pad;
        let grid = Grid { kernel: [1, kernel], stride: [1, stride], before: [0, before], after: [0, after] };
        Ok(Self { layer: Biased::resolve(w, stem)?, grid })
    }

    /// Finds the causal convolution `stem` over `frames` of a clip, as wide and high in as out: a frame sees itself and the two steps
    /// before it, never what comes after. Two frames of zeros come before the first, also where the kernel has four.
    pub(crate) fn over_time(
        w: &Weights,
        stem: &str,
        [frames, side]: [usize; 2],
        stride: usize,
    ) -> Result<Self> {
        let (around, stride) = (side / 2, [stride, 1]);
        let grid = Grid { kernel: [frames, side], stride, before: [2, around], after: [0, around] };
        Ok(Self { layer: Biased::resolve(w, stem)?, grid })
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
    /// Applies the unit to what lies in `X`.
    pub(crate) fn forward(&self, m: &mut dyn Maps) -> Result<()> {
        m.silu(Slot::X, Slot::A)?;
        m.convolve(&self.conv1, Slot::A, Slot::B)?;
        m.silu(Slot::B, Slot::B)?;
        m.convolve(&self.conv2, Slot::B, Slot::A)?;
        m.add(Slot::X, Slot::A)
    }
}
