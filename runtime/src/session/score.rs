//! Answers and pictures that are given: what the model says of their tokens.

use super::answer::{framed, row_of};
use super::choose::Wanted;
use super::forward::{OnLogits, Row, Score};
use super::grammar::{Grammar, Next};
use super::{Segment, Session, SessionError};
use crate::Result;
use crate::config::{Modality, ModelConfig};
use crate::engine::Own;
use crate::kv::Chain;

impl Session {
    /// Scores a given answer: `on_logits` gets, for each of its tokens and the closing `<eos>`, the index and the text
    /// logits before it. The session stays as it was.
    ///
    /// # Errors
    /// If the session was not begun or has an answer open, question and answer are too long or not text, or the output is not a
    /// number.
    pub fn score_answer(&mut self, question: &[u32], answer: &[u32], on_logits: OnLogits<'_>) -> Result<()> {
        let next = Grammar::Text.next(self.model.config(), 0);
        self.score_as(question, answer, next, on_logits)
    }

    /// The same with the logits of codes of pictures where the vocabulary has them, which an answer never consists of.
    ///
    /// # Errors
    /// As [`Self::score_answer`].
    pub fn score_vocabulary(
        &mut self,
        question: &[u32],
        answer: &[u32],
        on_logits: OnLogits<'_>,
    ) -> Result<()> {
        let next = Next::Any(self.model.config().text_range());
        self.score_as(question, answer, next, on_logits)
    }

    fn score_as(
        &mut self,
        question: &[u32],
        answer: &[u32],
        next: Next,
        on_logits: OnLogits<'_>,
    ) -> Result<()> {
        self.check_begun()?;
        self.check_text(question)?;
        self.check_text(answer)?;
        if question.len() + answer.len() > self.max_text_tokens {
            let tokens = question.len() + answer.len();
            return Err(SessionError::TooLong { tokens, room: self.max_text_tokens }.into());
        }
        self.kv.release(&mut self.kept);
        let mut segment = Segment { modality: Modality::Text, chain: Chain::EMPTY };
        let frame = self.frame();
        let rows = framed(&frame, question).chain(answer);
        // Rows before the question's last say nothing about the answer.
        let first = (frame.len() + question.len()).checked_sub(1).ok_or(SessionError::NoText)?;
        let score = Score { next, first, wanted: Wanted::Logits(on_logits) };
        self.check_places(question)?;
        let mut row = row_of(self.model.config());
        self.extend(&mut segment, rows.map(|&id| row(id)), Own::Causal, Some(score))?;
        self.kv.release(&mut segment.chain);
        Ok(())
    }

    /// Scores the codes of a picture as of a drawing of `columns` codes a row: `on_logits` gets, for each, its index and the logits over
    /// codes before it, without guidance. The session stays as it was.
    ///
    /// # Errors
    /// If the model has no codes behind a text, an answer is open, prompt and codes are too long or not of the model's, or the output is
    /// not a number.
    pub fn score_drawing(
        &mut self,
        prompt: &[u32],
        codes: &[u16],
        columns: usize,
        on_logits: OnLogits<'_>,
    ) -> Result<()> {
        self.check_begun()?;
        let model = std::sync::Arc::clone(&self.model);
        let config = model.config();
        let limit = match config {
            ModelConfig::Unimodal(_) => 0,
            _ => Next::Code.limit(config),
        };
        if limit == 0 || columns == 0 {
            return Err(SessionError::Family { family: config.family() }.into());
        }
        self.check_text(prompt)?;
        self.check_places(prompt)?;
        if let Some(&code) = codes.iter().find(|&&code| usize::from(code) >= limit) {
            return Err(SessionError::Token { what: "image code", id: code.into(), limit }.into());
        }
        let first = prompt.len().checked_sub(1).ok_or(SessionError::NoText)?;
        let grammar = Grammar::Picture { columns };
        let (mut row, mut drawn) = (row_of(config), Vec::new());
        // Which code stands behind each row from the prompt's last on; none where the grammar leaves no choice.
        let mut next = Vec::new();
        let mut left = codes.iter().enumerate();
        loop {
            if let Next::Only(id) = grammar.next(config, drawn.len()) {
                next.push(None);
                drawn.push(Row::Token(id));
                continue;
            }
            let Some((at, &code)) = left.next() else { break };
            next.push(Some(at));
            drawn.push(match (config, Next::Code.id(config, code.into())) {
                (ModelConfig::Janus(_), Some(code)) => Row::Drawn(code),
                (_, id) => Row::Token(id.unwrap_or_default()),
            });
        }
        let tokens = prompt.len() + drawn.len();
        if tokens > self.max_text_tokens {
            return Err(SessionError::TooLong { tokens, room: self.max_text_tokens }.into());
        }
        let mut scored = |row: usize, logits: &[f32]| {
            if let Some(Some(at)) = next.get(row) {
                on_logits(*at, logits);
            }
        };
        // Nothing is asked behind the last.
        drawn.pop();
        let rows = prompt.iter().map(|&id| row(id)).chain(drawn.iter().copied());
        let mut segment = Segment { modality: Modality::Text, chain: Chain::EMPTY };
        let score = Score { next: Next::Code, first, wanted: Wanted::Logits(&mut scored) };
        self.extend(&mut segment, rows, Own::Causal, Some(score))?;
        self.kv.release(&mut segment.chain);
        Ok(())
    }
}
