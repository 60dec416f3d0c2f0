//! Features of pictures on a card: found there or sent there, and the rows of a step that begin with them.

use super::buffers::CardBuffers;
use super::{Card, MapBuffers, SEEN};
use crate::Result;
use crate::cuda::Memory;

/// Values that a kernel looks at together; it counts them in 31 bits.
const LOOKED_AT: usize = 1 << 24;

/// `[features, d_model] f32`, in memory that grows to the most that there were.
#[derive(Debug, Default)]
pub(crate) struct CardFeatures {
    memory: Option<Memory>,
    /// Values that there are.
    len: usize,
}

impl CardFeatures {
    /// Values that there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Forgets what there is and sees to room for so many values; if there is not enough memory, it stays.
    pub(crate) fn clear(&mut self, card: &Card, room: usize) -> Result<()> {
        let bytes = room.saturating_mul(4);
        if self.memory.as_ref().map_or(0, Memory::len) < bytes {
            self.memory = Some(card.device.allocate("the features of pictures", bytes)?);
        }
        self.len = 0;
        Ok(())
    }

    /// Appends values that lie at an offset, in the stream. There is room.
    fn append(&mut self, from: &Memory, offset: usize, values: usize) -> Result<()> {
        let Some(memory) = &self.memory else { return Ok(()) };
        from.copy_to(offset, memory, 4 * self.len, 4 * values)?;
        self.len += values;
        Ok(())
    }
}

impl MapBuffers {
    /// Appends what the last network kept, in the stream.
    pub(crate) fn append_kept(&self, to: &mut CardFeatures) -> Result<()> {
        let [at, values] = self.kept;
        to.append(&self.memory, at, values)
    }
}

impl CardBuffers {
    /// How many values the features of the question's pictures have.
    pub(crate) fn features(&self) -> usize {
        self.features.len()
    }

    /// Takes the features of the question's pictures from the host.
    pub(crate) fn show(&mut self, card: &Card, features: &[f32]) -> Result<()> {
        let Self { features: shown, staging, .. } = self;
        shown.clear(card, features.len())?;
        let Some(memory) = &shown.memory else { return Ok(()) };
        for some in features.chunks(staging.len() / 4) {
            let bytes = bytemuck::cast_slice::<f32, u8>(some);
            staging.put(memory, 4 * shown.len, bytes.len(), |room| room.copy_from_slice(bytes))?;
            shown.len += some.len();
        }
        Ok(())
    }

    /// Takes them from where they were found, which is said to be numbers.
    pub(crate) fn show_found(&mut self, card: &Card, found: &CardFeatures) -> Result<()> {
        self.features.clear(card, found.len)?;
        found.memory.as_ref().map_or(Ok(()), |memory| self.features.append(memory, 0, found.len))
    }

    /// Looks whether features are numbers, in the stream; [`Self::read_logits`] tells.
    pub(crate) fn check_features(&self, card: &Card, found: &CardFeatures) -> Result<()> {
        let Some(memory) = &found.memory else { return Ok(()) };
        for first in (0..found.len).step_by(LOOKED_AT) {
            let (at, values) = (memory.at() + 4 * first as u64, LOOKED_AT.min(found.len - first));
            card.device.check_finite(at, values, self.at(self.flag))?;
        }
        Ok(())
    }

    /// Puts the features that are among the `rows` of a step into `x [rows, d_model]`.
    pub(super) fn place_features(&self, [rows, d_model]: [usize; 2]) -> Result<()> {
        let Some(memory) = &self.features.memory else { return Ok(()) };
        let row = 4 * d_model;
        let mut first = 0;
        for inputs in self.inputs[..rows].chunk_by(|a, b| a.table == b.table && a.row == b.row - 1) {
            if inputs[0].table == SEEN {
                let from = usize::try_from(inputs[0].row).expect("rows are counted from 0");
                memory.copy_to(from * row, &self.memory, self.x + first * row, inputs.len() * row)?;
            }
            first += inputs.len();
        }
        Ok(())
    }
}
