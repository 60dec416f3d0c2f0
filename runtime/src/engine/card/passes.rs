//! How many rows of a prompt go through the network together on a card, and whether it has room for a session.

use super::drawing::CardDrawing;
use super::{Beside, Card, narrow};
use crate::Result;
use crate::config::{DecoderConfig, Modality};
use crate::cuda::launch::{AttentionShape, InputAt, RowAt, SegmentAt, SequenceAt, UnitAt};
use crate::engine::{Most, PassRows};
use crate::kernels::KV_BLOCK;
use crate::kv::KvDtype;
use crate::memory;
use crate::quant::pad_k;

/// Rows of the largest block of a product: whole ones leave no part of it idle.
const STRETCH: usize = 128;
/// Most rows on a board, and on a card with memory of its own: reckoned, not measured.
///
/// `n` rows are `2 n` INT8 operations a byte of weights. An AGX Orin is bound by its arithmetic from 209 rows on (85 TOPS, 204 GB/s), an
/// H100 from 296 on (1,979 TOPS, 3.35 TB/s). On the board, 640 take a picture of 576 features in one pass, and no more of the memory
/// that models share there; on the card, 2,048 make 256 blocks of a layer of 2,048 outputs for 132 multiprocessors.
const MOST: [usize; 2] = [640, 2048];
/// The buffers of a pass take one part in so many of the card's memory: of 16 sessions that answer together a quarter. Scores of keys
/// that are split come on top, and grow with the context.
const PARTS: usize = 64;

impl Card {
    /// What a session's passes may have, with the most of everything else.
    pub(crate) fn pass_rows(
        &self,
        c: &DecoderConfig,
        beside: Beside<'_>,
        most: &Most,
        dtype: KvDtype,
    ) -> PassRows {
        let (heads, kvs) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let (drawn, widest) = (CardDrawing::widest(beside), widest(c, beside));
        let floats = c.d_model + 2 * (heads + kvs + c.d_ff) + widest + 2 * drawn + most.parts + 1;
        let lists = size_of::<InputAt>() + size_of::<RowAt>() + size_of::<UnitAt>();
        // What attention has for the scores of a row, or for units whose keys are split.
        let shape = attention_shape(c, most.blocks, dtype);
        let (scores, split) = match dtype {
            KvDtype::F32 => (shape.scratch_f32(1), 0),
            KvDtype::I8 => (0, most_split(&shape, most.sequences, self.device.multiprocessors())),
        };
        let keys = most.blocks as u128 * (4 * KV_BLOCK * c.head_dim + 4 * most.sequences) as u128;
        let sequence = size_of::<SequenceAt>() + most.segments * size_of::<SegmentAt>();
        PassRows {
            stretch: STRETCH,
            most: MOST[usize::from(!self.device.integrated())],
            bytes: self.device.memory() / PARTS,
            row: 4 * floats + most.parts * pad_k(widest) + lists + scores,
            beside: keys + (split + most.sequences * sequence) as u128,
        }
    }

    /// Refuses `needed` bytes that the card does not have; `what` needs them. A board's memory is the host's, which knows what the page
    /// cache would give.
    pub(crate) fn check(&self, what: &'static str, needed: u128) -> Result<()> {
        if self.device.integrated() {
            memory::check(what, needed)
        } else {
            Ok(self.device.check(what, needed)?)
        }
    }
}

/// Values of the longest row that a layer takes or gives.
pub(super) fn widest(c: &DecoderConfig, beside: Beside<'_>) -> usize {
    c.d_model.max(c.d_ff).max(c.n_heads * c.head_dim).max(CardDrawing::widest(beside))
}

/// Attention over so many blocks of keys at most; what has more than 2³⁰ keys is refused for its arena.
pub(super) fn attention_shape(c: &DecoderConfig, blocks: usize, dtype: KvDtype) -> AttentionShape {
    let root = root(c.head_dim);
    AttentionShape {
        n_heads: narrow(c.n_heads),
        n_kv_heads: narrow(c.n_kv_heads),
        head_dim: narrow(c.head_dim),
        layer: 0,
        modalities: narrow(Modality::ALL.len()),
        max_keys: narrow(blocks.saturating_mul(KV_BLOCK).min(1 << 30).next_multiple_of(2 * KV_BLOCK)),
        factor: if dtype == KvDtype::I8 { root * std::f32::consts::LOG2_E } else { root },
    }
}

/// The most that steps want whose keys are split: of one row a sequence, and of units that do not fill the card.
pub(super) fn most_split(shape: &AttentionShape, sequences: usize, multiprocessors: usize) -> usize {
    let is_split = |&units: &usize| units <= sequences || !shape.fill(units, multiprocessors);
    let of = |units| shape.scratch_split(units, shape.splits(units, multiprocessors));
    (1..).take_while(is_split).map(of).max().unwrap_or(0)
}

/// `1/√head_dim`.
#[allow(clippy::cast_precision_loss)] // head_dim ≤ 1024
fn root(head_dim: usize) -> f32 {
    1.0 / (head_dim as f32).sqrt()
}
