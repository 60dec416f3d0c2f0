//! Actions: a chunk of slots behind what is live, each of which says one bin.

use super::choose::{Wanted, likeliest};
use super::forward::{OnLogits, Row, Score};
use super::grammar::Grammar;
use super::{Segment, Session};
use crate::Result;
use crate::config::Modality;
use crate::engine::Own;
use crate::kv::Chain;
use crate::tokenize::Tokenizer as _;

/// A predicted chunk of actions: `[steps, dims]`.
#[derive(Clone, Debug, Default)]
pub struct ActionChunk {
    /// The most likely bin of each slot.
    pub bins: Vec<u16>,
    /// The values at the bins' centres.
    pub values: Vec<f32>,
}

impl Session {
    /// Predicts the next chunk of actions; the session stays as it was.
    ///
    /// # Errors
    /// If the session was not begun, or the output is not a number.
    pub fn act(&mut self, chunk: &mut ActionChunk) -> Result<()> {
        chunk.bins.clear();
        self.slots(Wanted::Likeliest(&mut chunk.bins))?;
        self.values_of(chunk)
    }

    /// As [`Self::act`]; `on_logits` gets each slot's index and its logits over bins.
    ///
    /// # Errors
    /// As [`Self::act`].
    pub fn score_act(&mut self, chunk: &mut ActionChunk, on_logits: OnLogits<'_>) -> Result<()> {
        chunk.bins.clear();
        let mut each = |slot: usize, logits: &[f32]| {
            chunk.bins.push(likeliest(logits));
            on_logits(slot, logits);
        };
        self.slots(Wanted::Logits(&mut each))?;
        self.values_of(chunk)
    }

    /// Computes the slots of a chunk behind what is live.
    fn slots(&mut self, wanted: Wanted<'_, '_>) -> Result<()> {
        self.check_begun()?;
        let slots = self.model.unimodal()?.chunk_len();
        let next = Grammar::Actions.next(self.model.config(), 0);
        let mut segment = Segment { modality: Modality::Action, chain: Chain::EMPTY };
        let score = Score { next, first: 0, wanted };
        self.extend(&mut segment, (0..slots).map(Row::Slot), Own::Itself, Some(score))?;
        self.kv.release(&mut segment.chain);
        Ok(())
    }

    fn values_of(&mut self, chunk: &mut ActionChunk) -> Result<()> {
        let [_, action] = self.bins.as_mut().expect("the family has them");
        action.decode(&chunk.bins, &mut chunk.values)
    }
}
