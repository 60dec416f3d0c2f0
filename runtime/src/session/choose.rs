//! Who chooses the next tokens of a step: a function that sees the logits, or samplers, which a card does by itself.

use std::ops::Range;

use super::forward::{Buffers, OnLogits};
#[cfg(feature = "cuda")]
use super::forward::{numbers, said};
use super::grammar::Next;
use crate::Result;
use crate::family::Model;
use crate::sample::Sampler;

#[cfg(feature = "cuda")]
const _: () =
    assert!(super::answer::MAX_SEQUENCES <= crate::cuda::launch::MAX_PICKED, "a card picks for a whole step");

/// Who chooses.
pub(super) enum Chooser<'a> {
    /// Gets the index of a session and its logits.
    Logits(&'a mut dyn FnMut(usize, &[f32]) -> usize),
    /// One a session.
    Samplers(&'a mut [Sampler]),
}

/// The choices of a step's rows.
pub(super) struct Choices<'a, 'b> {
    pub(super) chooser: &'a mut Chooser<'b>,
    /// Whose each row is.
    pub(super) sessions: &'a [usize],
    /// What was chosen for each row: an index into what may come next.
    pub(super) picked: &'a mut [usize],
}

/// What is wanted of the last rows of a pass.
pub(super) enum Wanted<'a, 'b> {
    /// Their logits.
    Logits(OnLogits<'a>),
    /// What comes behind them.
    Choices(Choices<'a, 'b>),
}

impl Buffers {
    /// Chooses what comes behind some rows of `x`.
    ///
    /// # Errors
    /// If a logit is not a number.
    pub(super) fn choose(
        &mut self,
        model: &Model,
        rows: Range<usize>,
        next: &Next,
        choices: &mut Choices<'_, '_>,
    ) -> Result<()> {
        let Choices { chooser, sessions, picked } = choices;
        let first = rows.start;
        match chooser {
            Chooser::Logits(pick) => self.score(model, rows, next, &mut |row, logits| {
                picked[row - first] = pick(sessions[row - first], logits);
            }),
            Chooser::Samplers(samplers) => {
                #[cfg(feature = "cuda")]
                if self.picks_on_card(model, rows.clone(), next, (samplers, sessions), picked)? {
                    return Ok(());
                }
                self.score(model, rows, next, &mut |row, logits| {
                    let sampler = &mut samplers[sessions[row - first]];
                    let token = sampler.pick(logits);
                    picked[row - first] = token.expect("logits are finite, and a sampler picks one of those");
                })
            }
        }
    }

    /// The same on a card, if there is one and it can tell what may come next from what may not; says whether.
    #[cfg(feature = "cuda")]
    fn picks_on_card(
        &mut self,
        model: &Model,
        rows: Range<usize>,
        next: &Next,
        (samplers, sessions): (&mut [Sampler], &[usize]),
        picked: &mut [usize],
    ) -> Result<bool> {
        let (Some(card), Some(buffers), Next::Token(range)) = (model.card(), &mut self.card, next) else {
            return Ok(false);
        };
        let (parts, all) = said(model, range);
        if !all {
            return Ok(false);
        }
        // A question of several passes chooses behind the last of them.
        if rows.is_empty() {
            return Ok(true);
        }
        assert_eq!(rows.len(), picked.len(), "a choice for each row");
        let parts = parts.map(|part| part.start as usize..part.end as usize);
        // A row a sequence, and there is room for the whole vocabulary of each.
        assert!(rows.len() * (parts[0].len() + parts[1].len()) <= self.logits.len());
        let draws = sessions.iter().map(|&session| samplers[session].draw());
        numbers(buffers.pick(card, model.decoder(), rows, &parts, draws, picked)?)?;
        Ok(true)
    }
}
