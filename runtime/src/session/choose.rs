//! Who chooses the next tokens of a step: a function that sees the logits, or samplers, which a card does by itself.

use std::ops::Range;

use super::forward::{Buffers, OnLogits, numbers};
use super::grammar::Next;
#[cfg(feature = "cuda")]
use super::logits::said;
use crate::Result;
use crate::family::Model;
use crate::sample::{Sampler, SamplerOptions, argmax};

#[cfg(feature = "cuda")]
const _: () =
    assert!(super::answer::MAX_SEQUENCES <= crate::cuda::launch::MAX_PICKED, "a card picks for a whole step");

/// Who chooses.
pub(super) enum Chooser<'a> {
    /// Gets the index of a session and its logits.
    Logits(&'a mut dyn FnMut(usize, &[f32]) -> usize),
    /// One a session.
    Samplers(&'a mut [Sampler]),
    /// Two sessions that draw one picture.
    Guide(&'a mut Guide),
}

/// Chooses codes by what session 1, which knows a description, says beyond session 0, which does not:
/// `free + guidance · (guided − free)`.
///
/// Source: Ho and Salimans 2022 (arXiv:2207.12598).
pub(super) struct Guide {
    sampler: Sampler,
    guidance: f32,
    /// Those of session 0, then those of both.
    logits: Vec<f32>,
    /// The code that was chosen last.
    picked: Option<usize>,
}

impl Guide {
    pub(super) fn new(sampling: SamplerOptions, guidance: f32) -> Self {
        Self { sampler: Sampler::new(sampling), guidance, logits: Vec::new(), picked: None }
    }

    /// Takes the code that was chosen in the last step, if one was.
    pub(super) fn take(&mut self) -> Option<usize> {
        self.picked.take()
    }

    /// Looks at the logits of a session; session 1 comes last.
    fn look(&mut self, session: usize, logits: &[f32]) {
        if session == 0 {
            self.logits.clear();
            self.logits.extend_from_slice(logits);
            return;
        }
        for (free, &guided) in self.logits.iter_mut().zip(logits) {
            *free += self.guidance * (guided - *free);
        }
        self.picked = self.sampler.pick(&self.logits);
    }
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
    /// The likeliest behind each of them, appended: an index into what may come next.
    Likeliest(&'a mut Vec<u16>),
}

/// The likeliest bin.
pub(super) fn likeliest(logits: &[f32]) -> u16 {
    bin(argmax(logits).expect("`score` gives finite logits"))
}

fn bin(index: usize) -> u16 {
    u16::try_from(index).expect("bins are checked to be at most 65535")
}

/// Where the logit of each code of a picture stands among those of the span of codes.
#[cfg(feature = "cuda")]
pub(super) fn code_places(model: &Model) -> Vec<i32> {
    let (config, first) = (model.config(), model.code_span().start);
    let codes = (0..Next::Code.limit(config)).filter_map(|code| Next::Code.id(config, code));
    codes.map(|id| i32::try_from(id - first).expect("ids are below 2³¹")).collect()
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
            Chooser::Guide(guide) => {
                #[cfg(feature = "cuda")]
                if self.guides_on_card(model, rows.clone(), next, guide)? {
                    picked.fill(guide.picked.unwrap_or(0));
                    return Ok(());
                }
                self.score(model, rows, next, &mut |row, logits| guide.look(sessions[row - first], logits))?;
                // Guidance can make infinities of finite logits.
                numbers(guide.logits.iter().all(|logit| logit.is_finite()))?;
                picked.fill(guide.picked.unwrap_or(0));
                Ok(())
            }
        }
    }

    /// Appends the likeliest token behind each of some rows of `x`.
    ///
    /// # Errors
    /// If a logit is not a number.
    pub(super) fn likeliest(
        &mut self,
        model: &Model,
        rows: Range<usize>,
        next: &Next,
        found: &mut Vec<u16>,
    ) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let (Some(card), Some(buffers), Next::Token(range)) = (model.card(), &mut self.card, next) {
            let (outputs, together) =
                (range.start as usize..range.end as usize, self.logits.len() / range.len());
            let (tokens, finite) = buffers.likeliest(card, model.decoder(), rows, &outputs, together)?;
            numbers(finite)?;
            found.extend(tokens.iter().map(|&token| bin(token as usize)));
            return Ok(());
        }
        self.score(model, rows, next, &mut |_, logits| {
            found.push(likeliest(logits));
        })
    }

    /// Guides a step of both sequences on a card, if there is one; says whether. The first step has a pass for each.
    #[cfg(feature = "cuda")]
    fn guides_on_card(
        &mut self,
        model: &Model,
        rows: Range<usize>,
        next: &Next,
        guide: &mut Guide,
    ) -> Result<bool> {
        let (Some(card), Some(buffers), Next::Code, 2) = (model.card(), &mut self.card, next, rows.len())
        else {
            return Ok(false);
        };
        let width = if model.janus().is_ok() {
            buffers.score_codes(card, model.decoder(), rows)?;
            Next::Code.limit(model.config())
        } else {
            let span = model.code_span();
            buffers.score(card, model.decoder(), rows, span.start as usize..span.end as usize, 0)?;
            span.len()
        };
        let (code, finite) = buffers.pick_guided(card, width, guide.guidance, guide.sampler.draw())?;
        numbers(finite)?;
        guide.picked = Some(code);
        Ok(true)
    }

    /// Has a card draw by the samplers, if there is one and it can tell what may come next from what may not; says whether.
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
