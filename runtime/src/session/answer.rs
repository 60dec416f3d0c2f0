//! Answers: branches of text on what is live, decoded token by token, of one session or of several at a time.

use std::sync::Arc;

use arrayvec::ArrayVec;

use super::choose::{Choices, Chooser, Guide, Wanted};
use super::forward::{Buffers, Row, Score};
use super::grammar::{Grammar, Next};
use super::{Segment, Session, SessionError};
use crate::Result;
use crate::config::{Modality, ModelConfig};
use crate::engine::{Own, Sequence, Visible};
use crate::kv::Chain;
use crate::sample::Sampler;

/// Most sessions of a step.
pub(super) const MAX_SEQUENCES: usize = 16;

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model said that it is done, or the caller stopped it.
    Stop,
    /// The limit was reached.
    Length,
}

/// An answer in the making.
pub(super) struct Open {
    /// Until the first step, what was there of the question; the step takes the rest.
    segment: Segment,
    /// The token that goes in next; of the first step, nothing.
    next: u32,
    /// What it consists of.
    grammar: Grammar,
    /// Tokens of the question in its frame: what lies behind them in the segment was chosen.
    asked: usize,
    /// Whether the question went in.
    went_in: bool,
}

impl Open {
    /// What may be chosen behind `more` tokens that the segment does not have yet.
    fn choice(&self, model: &ModelConfig, more: usize) -> Next {
        self.grammar.next(model, (self.segment.chain.len + more).saturating_sub(self.asked))
    }
}

impl Session {
    /// Opens an answer to a question about what is live; [`step`] decodes it, [`Session::close`] forgets it. Until then
    /// nothing else can be added to the session.
    ///
    /// # Errors
    /// If the session was not begun or has an answer open, or the question is too long or not text.
    pub fn open(&mut self, question: &[u32]) -> Result<()> {
        self.open_as(question, Grammar::Text)
    }

    /// The same of an answer that consists of something else.
    pub(super) fn open_as(&mut self, question: &[u32], grammar: Grammar) -> Result<()> {
        self.check_begun()?;
        self.check_text(question)?;
        self.check_places(question)?;
        if question.is_empty() && self.frame().is_empty() {
            return Err(SessionError::NoText.into());
        }
        let chain = self.resume(if grammar == Grammar::Text { question } else { &[] });
        self.branch.clear();
        self.branch.extend_from_slice(question);
        let segment = Segment { modality: Modality::Text, chain };
        let asked = self.frame().len() + question.len();
        self.open = Some(Open { segment, next: 0, grammar, asked, went_in: false });
        Ok(())
    }

    /// From now on an answer leaves its keys and values, and the next question that begins with the same tokens takes them instead of
    /// computing them again: what a conversation gains that comes back with one more turn. Only one answer's are kept, in memory that
    /// the session has anyway, and only where answers hang on nothing, which is so in every family but Saccade's own.
    ///
    /// The next answer is the same, bit for bit, as if nothing had been kept: a row's arithmetic does not depend on the rows that are
    /// computed with it.
    pub fn reuse_prompts(&mut self) {
        self.reuses = self.model.config().language().is_some();
    }

    /// How many tokens of the last question were not computed again.
    #[must_use]
    pub fn reused_tokens(&self) -> usize {
        self.reused
    }

    /// The part of what the last answer left that `question` begins with; the rest is forgotten. The last token goes in again, since
    /// its logits are wanted, and so does everything from the first picture on whose features stand in place of tokens.
    fn resume(&mut self, question: &[u32]) -> Chain {
        let mut chain = std::mem::replace(&mut self.kept, Chain::EMPTY);
        let placeholder = placeholder(self.model.config());
        let both = self.branch.iter().zip(question).take(chain.len);
        let same = both.take_while(|(kept, asked)| kept == asked && Some(**asked) != placeholder).count();
        self.reused = same.min(question.len().saturating_sub(1));
        self.kv.truncate(&mut chain, self.reused);
        chain
    }

    /// Ends the open answer, if there is one. Nothing is left of it, unless [`Self::reuse_prompts`] was called.
    pub fn close(&mut self) {
        let Some(mut open) = self.open.take() else { return };
        if self.reuses && open.grammar == Grammar::Text {
            self.kept = open.segment.chain;
        } else {
            self.kv.release(&mut open.segment.chain);
        }
    }

    /// Ends the open answer, if there is one, and leaves nothing of it in the arena.
    fn discard(&mut self) {
        if let Some(mut open) = self.open.take() {
            self.kv.clear(&open.segment.chain);
            self.kv.release(&mut open.segment.chain);
        }
    }

    /// Answers a question about what is live; the session stays as it was. `out` is replaced by the answer's tokens,
    /// without the one that ends it; `on_token` sees each as it comes and stops the answer by returning `false`.
    ///
    /// # Errors
    /// As [`Session::open`], or if an output is not a number.
    pub fn answer(
        &mut self,
        question: &[u32],
        max_new_tokens: usize,
        sampler: &mut Sampler,
        out: &mut Vec<u32>,
        on_token: &mut dyn FnMut(u32) -> bool,
    ) -> Result<Finish> {
        out.clear();
        self.open(question)?;
        let model = Arc::clone(&self.model);
        let ends = model.config().end_ids();
        let room = self.max_text_tokens.saturating_sub(question.len()).min(max_new_tokens);
        let finish = loop {
            step_sampled(&mut [&mut *self], std::slice::from_mut(sampler))?;
            let token = self.open.as_ref().expect("opened above").next;
            if ends.contains(&token) {
                break Finish::Stop;
            }
            if out.len() == room {
                break Finish::Length;
            }
            out.push(token);
            if !on_token(token) {
                break Finish::Stop;
            }
        };
        self.close();
        Ok(finish)
    }

    /// What stands before and behind a question: `<ask>` and `<ans>`, or nothing where the conversation's text has it all.
    pub(super) fn frame(&self) -> ArrayVec<u32, 2> {
        match self.model.config() {
            ModelConfig::Unimodal(c) => [c.special.ask, c.special.ans].into(),
            _ => ArrayVec::new(),
        }
    }

    /// The first step of an open answer: what is not there yet of the question in its frame, in one go.
    fn ask(&mut self, session: usize, chooser: &mut Chooser<'_>) -> Result<()> {
        let frame = self.frame();
        let (question, open) = (std::mem::take(&mut self.branch), self.open.take());
        let mut open = open.expect("a step checks that there is one");
        let there = open.segment.chain.len;
        let rows = framed(&frame, &question).skip(there);
        let mut picked = 0;
        let choices = Choices { chooser, sessions: &[session], picked: std::slice::from_mut(&mut picked) };
        let next = open.choice(self.model.config(), open.asked - there);
        let score = Score { next, first: open.asked - 1 - there, wanted: Wanted::Choices(choices) };
        let mut row = row_of(self.model.config());
        let computed = self.extend(&mut open.segment, rows.map(|&id| row(id)), Own::Causal, Some(score));
        open.went_in = true;
        (self.branch, self.open) = (question, Some(open));
        computed?;
        self.choose(picked)
    }

    /// What the logit `index` of the last step is of goes in next.
    pub(super) fn choose(&mut self, index: usize) -> Result<()> {
        let config = self.model.config();
        let open = self.open.as_mut().expect("a step checks that there is one");
        let next = open.choice(config, 0);
        let limit = next.limit(config);
        open.next = next.id(config, index).ok_or(SessionError::Choice { index, limit })?;
        Ok(())
    }

    /// What the next step of the open answer chooses from.
    fn choice(&self) -> Option<Next> {
        let open = self.open.as_ref()?;
        let more = if open.went_in { 1 } else { open.asked - open.segment.chain.len };
        Some(open.choice(self.model.config(), more))
    }

    /// The row of a step that continues the open answer.
    fn open_sequence(&mut self) -> Sequence<'_> {
        let open = self.open.as_ref().expect("a step checks that there is one");
        let chain = open.segment.chain;
        let own = Visible { chain, base: self.base, modality: open.segment.modality };
        let (offset, own_rule) = (chain.len - 1, Own::Causal);
        Sequence { kv: &mut self.kv, rows: 1, offset, own, own_rule, context: &self.visible }
    }
}

/// Decodes one token of the open answer of every session in one pass over the weights, which are read once however many sessions
/// there are; the first token of an answer takes a pass of its own, with the question. `pick(i, logits)` chooses session `i`'s next
/// token: an index into the logits, which are those of what may come next, the text tokens in an answer; where one token alone may
/// come, it is not called. If it panics, the sessions are lost.
///
/// The first session's buffers hold the step, so it must have been made for as many
/// ([`SessionOptions::max_sequences`](super::SessionOptions)).
///
/// # Errors
/// If a session has no open answer or no room for another token, the sessions are not all of one model, or the first one was made
/// for fewer or smaller ones. If an output is not a number or `pick` chooses what is not there; every answer of the step is closed then.
pub fn step(sessions: &mut [&mut Session], pick: &mut dyn FnMut(usize, &[f32]) -> usize) -> Result<()> {
    step_by(sessions, Chooser::Logits(pick))
}

/// [`step`] where the sampler of each session chooses: on a card the logits stay there, and only the tokens come back.
///
/// # Errors
/// As [`step`].
///
/// # Panics
/// If there are not as many samplers as sessions.
pub fn step_sampled(sessions: &mut [&mut Session], samplers: &mut [Sampler]) -> Result<()> {
    assert_eq!(samplers.len(), sessions.len(), "a sampler for each session");
    step_by(sessions, Chooser::Samplers(samplers))
}

/// A step of two sessions that draw one picture; `guide` chooses for both.
///
/// # Errors
/// As [`step`].
pub(super) fn step_guided(sessions: &mut [&mut Session; 2], guide: &mut Guide) -> Result<()> {
    step_by(sessions, Chooser::Guide(guide))
}

fn step_by(sessions: &mut [&mut Session], mut chooser: Chooser<'_>) -> Result<()> {
    let Some(leader) = sessions.first() else { return Ok(()) };
    check(leader, sessions)?;
    let stepped = step_all(sessions, &mut chooser);
    if stepped.is_err() {
        sessions.iter_mut().for_each(|session| session.discard());
    }
    stepped
}

/// First steps one by one, the others together.
fn step_all(sessions: &mut [&mut Session], chooser: &mut Chooser<'_>) -> Result<()> {
    let mut indices: ArrayVec<usize, MAX_SEQUENCES> = ArrayVec::new();
    for (i, session) in sessions.iter_mut().enumerate() {
        if session.open.as_ref().is_some_and(|open| open.went_in) {
            indices.push(i);
        } else {
            session.ask(i, chooser)?;
        }
    }
    // The only choice, where nobody is asked.
    let mut picked = [0; MAX_SEQUENCES];
    let mut buffers = std::mem::take(&mut sessions[0].buffers);
    let mut going: ArrayVec<&mut Session, MAX_SEQUENCES> = ArrayVec::new();
    for (i, session) in sessions.iter_mut().enumerate() {
        if indices.contains(&i) {
            going.push(session);
        }
    }
    let stepped = step_in(
        &mut buffers,
        &mut going,
        &mut Choices { chooser, sessions: &indices, picked: &mut picked[..indices.len()] },
    );
    drop(going);
    sessions[0].buffers = buffers;
    stepped?;
    for (i, picked) in indices.into_iter().zip(picked) {
        sessions[i].choose(picked)?;
    }
    Ok(())
}

/// A question in its frame.
pub(super) fn framed<'a>(frame: &'a [u32], question: &'a [u32]) -> impl Iterator<Item = &'a u32> {
    frame.iter().take(1).chain(question).chain(frame.iter().skip(1))
}

/// Tokens as they are, and features one after the other where a text has placeholders for them.
pub(super) fn row_of(config: &ModelConfig) -> impl FnMut(u32) -> Row + use<> {
    let placeholder = placeholder(config);
    let mut features = 0..;
    move |id| {
        if Some(id) != placeholder {
            return Row::Token(id);
        }
        features.next().map_or(Row::Token(id), Row::Feature)
    }
}

/// What stands in a text for a feature.
fn placeholder(config: &ModelConfig) -> Option<u32> {
    match config {
        ModelConfig::Janus(c) => Some(c.vision.placeholder),
        _ => None,
    }
}

fn check(leader: &Session, sessions: &[&mut Session]) -> Result<()> {
    let most = leader.most;
    if sessions.len() > most.sequences {
        return Err(SessionError::Together { sessions: sessions.len(), room: most.sequences }.into());
    }
    for session in sessions {
        let Some(open) = &session.open else { return Err(SessionError::NoAnswer.into()) };
        if !Arc::ptr_eq(&session.model, &leader.model)
            || session.most.blocks > most.blocks
            || session.choice() != leader.choice()
        {
            return Err(SessionError::Unlike.into());
        }
        let frame = session.frame().len();
        let (tokens, room) = ((open.segment.chain.len + 1).saturating_sub(frame), session.max_text_tokens);
        if tokens > room {
            return Err(SessionError::TooLong { tokens, room }.into());
        }
    }
    Ok(())
}

fn step_in(
    buffers: &mut Buffers,
    sessions: &mut [&mut Session],
    choices: &mut Choices<'_, '_>,
) -> Result<()> {
    let Some(first) = sessions.first() else { return Ok(()) };
    let (model, next) = (Arc::clone(&first.model), first.choice());
    let Some(next) = next else { return Ok(()) };
    for (row, session) in sessions.iter_mut().enumerate() {
        session.look();
        let open = session.open.as_mut().expect("a step checks that there is one");
        session.kv.extend(&mut open.segment.chain, 1);
        if open.grammar == Grammar::Text {
            session.branch.push(open.next);
        }
        let drawn = open.grammar != Grammar::Text && model.janus().is_ok();
        let next = if drawn { Row::Drawn(open.next) } else { Row::Token(open.next) };
        buffers.embed(&model, row, next, open.segment.modality);
    }
    let rows = sessions.len();
    let mut sequences: ArrayVec<_, MAX_SEQUENCES> =
        sessions.iter_mut().map(|session| session.open_sequence()).collect();
    buffers.decode(&model, &mut sequences)?;
    drop(sequences);
    buffers.choose(&model, 0..rows, &next, choices)
}
