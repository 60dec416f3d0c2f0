//! The operations that image networks are written in, over activation maps that lie on the CPU ([`cpu`]) or on a card.
//!
//! A map is `[time, height, width, channels] f32` and lies in a [`Slot`], which knows its shape. A network is one function of a
//! [`Maps`]; [`Canvas`] runs it twice: first over shapes alone ([`size`]), which tells what it needs and what it does, then over values.

mod canvas;
mod cpu;
mod nearest;
mod size;
mod sums;

use crate::Result;
use crate::picture::{Picture, Plan};
use crate::weights::{LinearRef, TableRef, VectorRef, Weights};

pub(crate) use canvas::{Canvas, Machine};
pub(crate) use nearest::{CodeBook, Search, l2_normalise};
pub(crate) use size::{Needs, Sizes, Slots, enlarged};
pub(crate) use sums::GroupSums;

/// Groups of every group norm.
pub(crate) const GROUPS: usize = 32;
/// Added to the variance of a group.
pub(crate) const GROUP_EPS: f64 = 1e-6;
/// Places whose sums a group norm adds one after the other; the sums of such strips are then added in lanes.
pub(crate) const STRIP: usize = 64;
/// Added to the variance of a channel over a batch. Source: `nn.BatchNorm3d` of PyTorch.
pub(crate) const CHANNEL_EPS: f32 = 1e-5;
/// Places that attention computes the scores of at a time: all of them would be 1 GiB for a picture of 1024².
pub(crate) const QUERIES: usize = 256;

/// How many slots there are.
pub(crate) const SLOTS: usize = 10;

/// Where a map lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Slot {
    /// The map that a network is about: what it takes at first, what it gives at last.
    X,
    A,
    B,
    /// Beside queries in `B`, or beside a norm.
    K,
    V,
    /// The code book vectors of a frame, which the norms of MoVQ's decoder see.
    Code,
    /// All frames of a clip.
    Clip,
    ClipA,
    ClipB,
    ClipCode,
}

/// `[time, height, width, channels]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub(crate) time: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
}

impl Shape {
    /// Of one picture.
    pub(crate) fn picture((height, width): (usize, usize), channels: usize) -> Self {
        Self { time: 1, height, width, channels }
    }

    /// Places of all frames.
    pub(crate) fn places(self) -> usize {
        self.time.saturating_mul(self.height).saturating_mul(self.width)
    }

    /// Values.
    pub(crate) fn len(self) -> usize {
        self.places().saturating_mul(self.channels)
    }
}

/// A linear layer with a bias.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Biased {
    /// `[n, k]`
    pub(crate) weight: LinearRef,
    /// `[n]`
    pub(crate) bias: VectorRef,
}

impl Biased {
    /// Finds `stem.weight` and `stem.bias`.
    pub(crate) fn resolve(w: &Weights, stem: &str) -> Result<Self> {
        Ok(Self { weight: w.linear(stem)?, bias: w.vector(&format!("{stem}.bias"))? })
    }
}

/// A convolution with a bias and a kernel as wide as high: a linear layer over patches `(kt, kh, kw, in)`, zeros outside the map.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Conv {
    /// `[out, kt · kh · kw · in]`
    pub(crate) layer: Biased,
    pub(crate) grid: Grid,
}

/// Where the patches of a convolution lie: of frames, and of rows as well as columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Grid {
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: [usize; 2],
    /// Zeros before the first.
    pub(crate) before: [usize; 2],
    /// Zeros after the last.
    pub(crate) after: [usize; 2],
}

impl Grid {
    /// A place alone: a linear layer.
    pub(crate) const POINT: Self = Self { kernel: [1; 2], stride: [1; 2], before: [0; 2], after: [0; 2] };

    /// The shape of what becomes of `input`, with `out` channels.
    pub(crate) fn shape(&self, input: Shape, out: usize) -> Shape {
        let size = |n: usize, of: usize| {
            (n + self.before[of] + self.after[of]).saturating_sub(self.kernel[of]) / self.stride[of] + 1
        };
        Shape {
            time: size(input.time, 0),
            height: size(input.height, 1),
            width: size(input.width, 1),
            channels: out,
        }
    }
}

impl Conv {
    /// The shape of what becomes of `input`.
    pub(crate) fn shape(&self, input: Shape) -> Shape {
        self.grid.shape(input, self.layer.weight.n)
    }
}

/// The weight and the bias of a norm, `[channels]` each.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Affine {
    pub(crate) weight: VectorRef,
    pub(crate) bias: VectorRef,
}

impl Affine {
    /// Finds `stem.weight` and `stem.bias`.
    pub(crate) fn resolve(w: &Weights, stem: &str) -> Result<Self> {
        Ok(Self { weight: w.vector(&format!("{stem}.weight"))?, bias: w.vector(&format!("{stem}.bias"))? })
    }
}

/// Batch norm as it is after training: a scale and an offset for each channel.
#[derive(Clone, Debug, Hash)]
pub(crate) struct ChannelNorm {
    /// `[channels]` each.
    pub(crate) affine: Affine,
    pub(crate) mean: VectorRef,
    pub(crate) variance: VectorRef,
}

/// What a norm is followed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Then {
    Nothing,
    /// `x · sigmoid(x)`.
    Swish,
}

/// The operations. Where a slot is both read and written, the two may be the same one unless it says otherwise.
pub(crate) trait Maps {
    /// The shape of what lies in a slot.
    fn shape(&self, slot: Slot) -> Shape;

    /// Exchanges two slots.
    fn swap(&mut self, a: Slot, b: Slot);

    /// Puts a map that `fill` writes into `to`.
    fn load(&mut self, to: Slot, shape: Shape, fill: &dyn Fn(&mut [f32])) -> Result<()>;

    /// Puts what a plan makes of a picture, whose size it is for, into `to`.
    fn load_picture(&mut self, to: Slot, plan: &Plan, picture: Picture<'_>) -> Result<()>;

    /// Appends a map to what the network gives.
    fn give(&mut self, from: Slot) -> Result<()>;

    /// The same of a map that is wanted where the network runs: on a card it stays in its slot for `Canvas::append_kept`. The last
    /// operation, and the only one of its kind.
    fn keep(&mut self, from: Slot) -> Result<()>;

    /// Takes one frame out of a clip, into another slot.
    fn take_frame(&mut self, clip: Slot, frame: usize, to: Slot) -> Result<()>;

    /// Puts a frame into a clip of `frames`, of which the first is put first; into another slot.
    fn put_frame(&mut self, from: Slot, clip: Slot, frame: usize, frames: usize) -> Result<()>;

    /// A convolution, into another slot.
    fn convolve(&mut self, conv: &Conv, from: Slot, to: Slot) -> Result<()>;

    /// A linear layer at each place, into another slot.
    fn linear(&mut self, layer: &Biased, from: Slot, to: Slot) -> Result<()>;

    /// `(x − mean) / √(variance + eps) · weight + bias` over groups of neighbouring channels and all places; then, where there are two
    /// maps `scale` and `shift`, `x · scale + shift` of them enlarged to the size of `x`.
    fn group_norm(
        &mut self,
        norm: &Affine,
        modulation: Option<[Slot; 2]>,
        from: Slot,
        to: Slot,
        then: Then,
    ) -> Result<()>;

    /// The same norm over the channels of each place.
    fn layer_norm(&mut self, norm: &Affine, eps: f32, from: Slot, to: Slot) -> Result<()>;

    /// `(x − mean) · weight / √(variance + eps) + bias`, then swish.
    fn channel_norm_swish(&mut self, norm: &ChannelNorm, from: Slot, to: Slot) -> Result<()>;

    /// `x · sigmoid(x)`.
    fn silu(&mut self, from: Slot, to: Slot) -> Result<()>;

    /// [`crate::quant::gelu`] in place.
    fn gelu(&mut self, x: Slot) -> Result<()>;

    /// `x += y`.
    fn add(&mut self, x: Slot, y: Slot) -> Result<()>;

    /// Adds row `i` of a table to place `i`.
    fn add_rows(&mut self, x: Slot, table: &TableRef) -> Result<()>;

    /// Every place as two by two, into another slot.
    fn enlarge(&mut self, from: Slot, to: Slot) -> Result<()>;

    /// Every frame twice, into another slot.
    fn repeat_frames(&mut self, from: Slot, to: Slot) -> Result<()>;

    /// The number of the code book's vector that is nearest to each place, of equals the lowest, NaN where none has a distance that
    /// is a number below infinity; into another slot. What was looked for is lost.
    fn nearest(&mut self, book: CodeBook<'_>, from: Slot, to: Slot) -> Result<()>;

    /// `softmax(q · kᵀ / √width) · v` over all places, in heads of `width = channels / heads`; into another slot.
    fn attend(&mut self, qkv: [Slot; 3], heads: usize, to: Slot) -> Result<()>;
}
