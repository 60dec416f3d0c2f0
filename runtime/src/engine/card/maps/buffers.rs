//! What image networks work in on a card.

use super::super::graphs::Graphs;
use crate::Result;
use crate::cuda::launch::At;
use crate::cuda::{CudaError, Memory, Pinned};
use crate::engine::card::Card;
use crate::engine::maps::{GROUPS, SLOTS, Sizes};
use crate::quant::pad_k;

/// Positions of an INT8 convolution that are gathered at a time.
pub(super) const POSITIONS: usize = 4096;
/// INT8 rows a position at most.
const PARTS: usize = 2;
/// Every array begins at a multiple of this.
const ALIGN: usize = 256;
/// Bytes of the host that frames of a clip are put into together at most; a picture of 2048² is 48 MiB.
const STAGED: usize = 64 << 20;

/// What networks work in on a card, allocated once for the largest.
pub(crate) struct MapBuffers {
    pub(in crate::engine::card) memory: Memory,
    pub(super) slots: [usize; SLOTS],
    /// Bytes as the host sends them.
    pub(super) loaded: usize,
    /// `[pixels, 3] u8` between the passes of a resize.
    pub(super) between: usize,
    /// `[heads, QUERIES, places] f32`
    pub(super) scores: usize,
    /// `[strips, channels] f64`
    pub(super) partial: usize,
    /// `[groups] f64` and `[groups] f32`
    pub(super) mean: usize,
    pub(super) inverse: usize,
    pub(super) quantised: usize,
    pub(super) scale: usize,
    pub(in crate::engine::card) staging: Pinned,
    pub(in crate::engine::card) results: Pinned,
    /// Values in the results.
    pub(super) given: usize,
    /// Where the map lies that the last network kept, and its values.
    pub(in crate::engine::card) kept: [usize; 2],
    pub(in crate::engine::card) graphs: Graphs,
}

impl MapBuffers {
    /// Allocates what `what` needs.
    pub(crate) fn new(card: &Card, what: &'static str, s: &Sizes) -> Result<Self> {
        let [queries, _] = s.attention();
        let [places, _, heads] = s.attended;
        let [positions, k] = s.int8;
        let positions = positions.min(POSITIONS);
        let mut bytes = 0usize;
        let mut array = |count: usize, of: usize| {
            let at = bytes;
            bytes = at
                .saturating_add(count.saturating_mul(of))
                .checked_next_multiple_of(ALIGN)
                .unwrap_or(usize::MAX);
            at
        };
        let slots = s.slots.map(|values| array(values, 4));
        let (loaded, between) = (array(s.loaded, 1), array(s.between, 3));
        let scores = array(heads.saturating_mul(queries).saturating_mul(places), 4);
        let partial = array(s.strips[0].saturating_mul(s.strips[1]), 8);
        let (mean, inverse) = (array(GROUPS, 8), array(GROUPS, 4));
        let (quantised, scale) = (array(positions * PARTS * pad_k(k), 1), array(positions * PARTS, 4));
        // Kernels count the values of a map in 31 bits.
        let most = i32::MAX as usize;
        if let Some(&values) = s.slots.iter().find(|&&values| values > most) {
            return Err(CudaError::MapTooLarge { what, values, most }.into());
        }
        // A block holds a patch that it quantises, and four arrays of a row that it norms.
        let (row, most) = (4 * k.max(4 * s.normed), card.device.block_room());
        if row > most {
            return Err(CudaError::RowTooLong { what, bytes: row, most }.into());
        }
        Ok(Self {
            memory: card.device.allocate(what, bytes)?,
            slots,
            loaded,
            between,
            scores,
            partial,
            mean,
            inverse,
            quantised,
            scale,
            staging: Pinned::new(&card.device, s.staged.min(STAGED).max(s.loaded))?,
            results: Pinned::new(&card.device, 4 * s.given)?,
            given: 0,
            kept: [0; 2],
            graphs: Graphs::default(),
        })
    }

    pub(super) fn at(&self, offset: usize) -> At {
        self.memory.at() + offset as u64
    }

    /// Waits for what the last network gave; not if that is nothing.
    pub(crate) fn given(&mut self) -> Result<&mut [f32]> {
        let bytes = 4 * self.given;
        if bytes == 0 {
            return Ok(&mut []);
        }
        Ok(bytemuck::cast_slice_mut(&mut self.results.get()?[..bytes]))
    }
}
