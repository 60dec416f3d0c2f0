//! What kernels take: the structures of the `.cuh` files, field by field, and sizes that follow from them. Addresses are the card's.

#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)]

use crate::kernels::KV_BLOCK;
use crate::quant::{TILE_N, pad_n};
use crate::sample::Draw;

/// An address on the card; 0 where there is nothing.
pub(crate) type At = u64;

/// Most layers that share their activations in one launch.
pub(crate) const MAX_LAYERS: usize = 3;
/// Most rows that tokens are picked for in one launch: `MOST_ROWS` of `pick.cu`.
pub(crate) const MAX_PICKED: usize = 16;
/// Most panels whose weights lie in the memory of a block of attention: 33 KB.
const MAX_RANGE: usize = 64;
/// Panels that a query sees where `attention_i8` takes it: their scores and weights, 13 KB, lie in the block's memory.
pub(crate) const FEW_PANELS: usize = 8;
/// Queries that a block of attention takes.
pub(crate) const UNIT_QUERIES: usize = 16;

/// A layer's weights in tiles, and where its outputs go: `Layer` of `linear.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Layer {
    /// `[pad_n(n)/16, pad_k(k)/4, 16, 4] i8`
    pub(crate) tiles: At,
    /// `[n] f32`
    pub(crate) scale: At,
    /// `[n] f32`, or nothing.
    pub(crate) bias: At,
    /// `[m, end − first] f32`
    pub(crate) out: At,
    /// The outputs that are wanted: from `first` to below `end`.
    pub(crate) first: i32,
    pub(crate) end: i32,
}

impl Layer {
    pub(super) fn groups(&self) -> usize {
        let (first, end) = (self.first as usize, self.end as usize);
        end.div_ceil(TILE_N) - first / TILE_N
    }
}

/// Layers over the same activations: `Layers` of `linear.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Layers {
    pub(crate) layer: [Layer; MAX_LAYERS],
    pub(crate) count: i32,
    pub(crate) k: i32,
    /// INT8 rows a token.
    pub(crate) parts: i32,
    pub(crate) residual: i32,
    pub(crate) gated: i32,
}

impl Layers {
    /// A layer alone.
    pub(crate) fn alone(layer: Layer, k: i32, parts: i32) -> Self {
        Self { layer: [layer, Layer::default(), Layer::default()], count: 1, k, parts, ..Self::default() }
    }

    /// Groups of 16 outputs that blocks are made for.
    pub(super) fn groups(&self, per_block: usize) -> usize {
        let of = |layer: &Layer| layer.groups().div_ceil(per_block);
        match self.gated != 0 {
            true => of(&self.layer[0]),
            false => self.layer[..self.count as usize].iter().map(of).sum(),
        }
    }
}

/// `Sequence` of `step.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable, bytemuck::Pod)]
pub(crate) struct SequenceAt {
    pub(crate) tiles: At,
    pub(crate) scales: At,
    pub(crate) keys: At,
    pub(crate) values: At,
    pub(crate) n_blocks: i32,
    pub(crate) first_segment: i32,
    pub(crate) segments: i32,
    pub(crate) causal: i32,
    pub(crate) first_block: i32,
    pub(crate) pad: i32,
}

/// `Segment` of `step.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable, bytemuck::Pod)]
pub(crate) struct SegmentAt {
    pub(crate) base: i32,
    pub(crate) modality: i32,
    pub(crate) len: i32,
    pub(crate) first_block: i32,
}

/// `Row` of `step.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable, bytemuck::Pod)]
pub(crate) struct RowAt {
    pub(crate) sequence: i32,
    pub(crate) offset: i32,
    pub(crate) position: i32,
    pub(crate) block: i32,
}

/// `Unit` of `step.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable, bytemuck::Pod)]
pub(crate) struct UnitAt {
    pub(crate) first: i32,
    pub(crate) rows: i32,
    pub(crate) sequence: i32,
    pub(crate) blocks: i32,
}

/// What the rows of a step are: `Step` of `step.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StepAt {
    pub(crate) rows: At,
    pub(crate) sequences: At,
    pub(crate) segments: At,
    pub(crate) blocks: At,
    /// `[positions, head_dim / 2] f32`
    pub(crate) cosines: At,
    pub(crate) sines: At,
}

/// `HeadShape` of `heads.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HeadShape {
    pub(crate) rows: i32,
    pub(crate) n_heads: i32,
    pub(crate) n_kv_heads: i32,
    pub(crate) head_dim: i32,
    pub(crate) layer: i32,
}

/// `HeadNorms` of `heads.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HeadNorms {
    pub(crate) q: At,
    pub(crate) k: At,
    pub(crate) q_bias: At,
    pub(crate) k_bias: At,
    pub(crate) eps: f32,
}

/// `AttentionShape` of `step.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AttentionShape {
    pub(crate) n_heads: i32,
    pub(crate) n_kv_heads: i32,
    pub(crate) head_dim: i32,
    pub(crate) layer: i32,
    pub(crate) modalities: i32,
    pub(crate) max_keys: i32,
    pub(crate) factor: f32,
}

impl AttentionShape {
    pub(super) fn group(&self) -> usize {
        (self.n_heads / self.n_kv_heads) as usize
    }

    /// Pieces of a group of heads that one unit can take.
    pub(super) fn chunks(&self) -> usize {
        self.group().div_ceil(UNIT_QUERIES)
    }

    /// Most rows of a unit.
    pub(crate) fn unit_rows(&self) -> usize {
        (UNIT_QUERIES / self.group()).max(1)
    }

    /// Most units that so many rows of so many sequences can make: a unit has rows of one sequence.
    pub(crate) fn most_units(&self, rows: usize, sequences: usize) -> usize {
        (rows.div_ceil(self.unit_rows()) + sequences.saturating_sub(1)).min(rows)
    }

    /// Bytes of scores and weights of the queries of a unit.
    pub(super) fn unit_bytes(&self) -> usize {
        UNIT_QUERIES * (4 * self.max_keys as usize + 2 * (self.max_keys as usize + 16))
    }

    /// Whether so many units keep the card busy with a warp each, so that keys need not be split: two on a multiprocessor.
    pub(crate) fn fill(&self, units: usize, multiprocessors: usize) -> bool {
        self.attention_blocks(units) >= 2 * multiprocessors
    }

    /// Blocks that the kernels which split take a query's keys by: enough to fill the card twice, but no less than a panel a warp, and
    /// no more than their weights have room for.
    pub(crate) fn splits(&self, units: usize, multiprocessors: usize) -> usize {
        let (blocks, panels) = (self.attention_blocks(units), self.panels());
        let fill = (2 * multiprocessors).div_ceil(blocks.max(1)).min(panels.div_ceil(4));
        fill.max(panels.div_ceil(MAX_RANGE)).max(1)
    }

    /// Bytes that the kernels which split want for so many units.
    pub(crate) fn scratch_split(&self, units: usize, splits: usize) -> usize {
        let query = 4 * self.max_keys as usize + 8 * splits + 8 * pad_n(self.head_dim as usize);
        self.attention_blocks(units) * (UNIT_QUERIES * query + 16)
    }

    /// Most panels of a range of `splits`.
    pub(super) fn range(&self, splits: usize) -> usize {
        self.panels().div_ceil(splits).next_multiple_of(2)
    }

    fn panels(&self) -> usize {
        self.max_keys as usize / KV_BLOCK
    }

    /// Units of every key head: blocks of a launch that does not split, or warps.
    fn attention_blocks(&self, units: usize) -> usize {
        units * self.n_kv_heads as usize * self.chunks()
    }

    /// Bytes that `attention_f32` wants.
    pub(crate) fn scratch_f32(&self, rows: usize) -> usize {
        4 * rows * self.n_heads as usize * self.max_keys as usize
    }
}

/// `Table` of `embed.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TableAt {
    pub(crate) rows: At,
    pub(crate) scale: At,
    /// 0: tiles, 1: F16, 2: F32.
    pub(crate) kind: i32,
}

/// `Tables` of `embed.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tables {
    pub(crate) table: [TableAt; 5],
    pub(crate) grid: TableAt,
    pub(crate) modality: TableAt,
    pub(crate) d: i32,
}

/// `Input` of `embed.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable, bytemuck::Pod)]
pub(crate) struct InputAt {
    pub(crate) table: i32,
    pub(crate) row: i32,
    pub(crate) place: i32,
    pub(crate) modality: i32,
}

/// `Parts` of `pick.cu`: the logits of rows, in two parts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Parts {
    /// `[rows, width]` each.
    pub(crate) at: [At; 2],
    pub(crate) width: [i32; 2],
    /// Tokens between the parts.
    pub(crate) gap: i32,
}

impl Parts {
    /// Logits that lie in one part, nothing behind it.
    pub(crate) const fn alone(at: At, width: i32) -> Self {
        Self { at: [at, 0], width: [width, 0], gap: 0 }
    }
}

/// `Draws` of `pick.cu`: one a row.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Draws(pub(crate) [Draw; MAX_PICKED]);
