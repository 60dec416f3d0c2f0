//! The way of a step's values from the host to the card.

use std::sync::Arc;

use crate::Result;
use crate::cuda::{Device, Memory, Pinned};

/// Two rooms of pinned memory in turn, so that one is written while the other is copied.
pub(super) struct Staging {
    rooms: [Pinned; 2],
    turn: usize,
}

impl Staging {
    /// For so many bytes at a time.
    pub(super) fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        Ok(Self { rooms: [Pinned::new(device, bytes)?, Pinned::new(device, bytes)?], turn: 0 })
    }

    /// Bytes at a time.
    pub(super) fn len(&self) -> usize {
        self.rooms[0].len()
    }

    /// Puts bytes that `write` makes to `offset` of memory of the card, in the stream.
    pub(super) fn put(
        &mut self,
        to: &Memory,
        offset: usize,
        bytes: usize,
        write: impl FnOnce(&mut [u8]),
    ) -> Result<()> {
        self.turn = 1 - self.turn;
        let room = &mut self.rooms[self.turn];
        write(&mut room.get()?[..bytes]);
        Ok(to.write_from(offset, room, 0, bytes)?)
    }

    /// Puts two arrays, which together are no more, each to its offset: from one room. A pass that put
    /// three times would wait at the third for the first, and so for the pass before it.
    pub(super) fn put_both(&mut self, to: &Memory, arrays: [(usize, &[f32]); 2]) -> Result<()> {
        self.turn = 1 - self.turn;
        let room = &mut self.rooms[self.turn];
        let [first, second] = arrays.map(|(_, values)| bytemuck::cast_slice::<f32, u8>(values));
        let (to_first, to_second) = room.get()?[..first.len() + second.len()].split_at_mut(first.len());
        to_first.copy_from_slice(first);
        to_second.copy_from_slice(second);
        to.write_from(arrays[0].0, room, 0, first.len())?;
        Ok(to.write_from(arrays[1].0, room, first.len(), second.len())?)
    }
}
