//! Two models at work, one beside the other.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use saccade::config::ModelConfig;
use saccade::family::Model;
use saccade::session::{Session, SessionOptions};
use saccade::tokenize::{Features, Picture, PictureReader};

use crate::compare::Fault;

/// Positions that the float model may be ahead, each with its logits.
const AHEAD: usize = 4;

/// One of the two models at work.
pub(super) struct Side {
    /// Its name in a sentence.
    pub(super) name: &'static str,
    pub(super) model: Arc<Model>,
    eye: Option<Eye>,
    pub(super) session: Session,
    /// Tokens that the session takes.
    room: usize,
}

/// How a model reads pictures.
enum Eye {
    Codes(PictureReader),
    Features(Features),
}

impl Side {
    pub(super) fn new(name: &'static str, model: &Arc<Model>) -> saccade::Result<Self> {
        let eye = match model.config() {
            ModelConfig::Janus(_) => Some(Eye::Features(Features::new(model)?)),
            _ => PictureReader::new(model)?.map(Eye::Codes),
        };
        let options = SessionOptions::default();
        let session = Session::new(model, &options)?;
        Ok(Self { name, model: Arc::clone(model), eye, session, room: options.max_text_tokens })
    }

    /// Sees to a session of so many tokens.
    pub(super) fn reach(&mut self, tokens: usize) -> std::result::Result<(), Fault> {
        if tokens > self.room {
            let options = SessionOptions { max_text_tokens: tokens, ..SessionOptions::default() };
            self.session = Session::new(&self.model, &options)?;
            self.room = tokens;
        }
        Ok(())
    }

    /// The tokens of a picture with what stands around them; nothing of a model that reads features.
    pub(super) fn codes(
        &mut self,
        placeholder: u32,
        picture: Picture<'_>,
    ) -> std::result::Result<Vec<u32>, Fault> {
        match &mut self.eye {
            Some(Eye::Codes(reader)) => reader
                .read(&[placeholder], &[picture], &mut self.session)
                .map_err(|error| Fault::of(self.name, error)),
            _ => Ok(Vec::new()),
        }
    }

    /// The features of a picture, `[patches, d_model]`; nothing of a model that reads codes.
    pub(super) fn features(&mut self, picture: Picture<'_>) -> std::result::Result<Vec<f32>, Fault> {
        match &mut self.eye {
            Some(Eye::Features(eye)) => {
                Ok(eye.of(picture).map_err(|error| Fault::of(self.name, error))?.to_vec())
            }
            _ => Ok(Vec::new()),
        }
    }
}

/// What is scored: a text behind its row `first`, or the codes of a picture, so many a row, behind what announces it.
#[derive(Clone, Copy)]
pub(super) enum Scored<'a> {
    Text { ids: &'a [u32], first: usize },
    Drawing { prompt: &'a [u32], codes: &'a [u16], columns: usize },
}

impl Scored<'_> {
    fn run(
        self,
        side: &mut Side,
        on_logits: &mut dyn FnMut(usize, &[f32]),
    ) -> std::result::Result<(), Fault> {
        let session = &mut side.session;
        let scored = match self {
            Self::Text { ids, first } => {
                let (question, answer) = ids.split_at(first + 1);
                session.score_answer(question, answer, on_logits)
            }
            Self::Drawing { prompt, codes, columns } => {
                session.score_drawing(prompt, codes, columns, on_logits)
            }
        };
        scored.map_err(|error| Fault::of(side.name, error))
    }

    /// How many there are.
    fn tokens(self) -> usize {
        match self {
            Self::Text { ids, .. } => ids.len(),
            // Each row may have an end behind it.
            Self::Drawing { prompt, codes, columns } => {
                prompt.len() + codes.len() + codes.len().div_ceil(columns.max(1))
            }
        }
    }

    /// What truly follows the `at`th row that is scored.
    fn target(self, at: usize) -> Option<usize> {
        match self {
            Self::Text { ids, first } => ids.get(first + 1 + at).map(|&id| id as usize),
            Self::Drawing { codes, .. } => codes.get(at).map(|&code| code.into()),
        }
    }
}

/// Sees a position: its true token, and the logits of the float model and of the bundle.
pub(super) type See<'a> = &'a mut dyn FnMut(usize, &[f32], &[f32]);

/// Runs both models and gives `see` the true token and the logits of both at each position. The float model runs a few positions ahead, so
/// that no window's logits have to be kept.
pub(super) fn score(
    base: &mut Side,
    candidate: &mut Side,
    scored: Scored<'_>,
    see: See<'_>,
) -> std::result::Result<(), Fault> {
    base.reach(scored.tokens())?;
    candidate.reach(scored.tokens())?;
    let (sender, receiver) = sync_channel::<Vec<f32>>(AHEAD);
    std::thread::scope(|scope| {
        let ahead = scope.spawn(move || {
            scored.run(base, &mut |_, row| {
                // Refused only when the other one has failed, which is said.
                let _ = sender.send(row.to_vec());
            })
        });
        let followed = scored.run(candidate, &mut |at, found| {
            // None only when the float model has failed, which is said.
            let Ok(expected) = receiver.recv() else { return };
            if let Some(target) = scored.target(at) {
                see(target, &expected, found);
            }
        });
        drop(receiver);
        ahead.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).and(followed)
    })
}
