//! Features of pictures, which stand in the places that a question has for them.

use super::forward::Buffers;
use super::{Session, SessionError};
use crate::Result;
#[cfg(feature = "cuda")]
use crate::engine::card::CardFeatures;

impl Buffers {
    /// How many values the features of the question's pictures have.
    fn features(&self) -> usize {
        #[cfg(feature = "cuda")]
        if let Some(card) = &self.card {
            return card.features();
        }
        self.features.len()
    }
}

impl Session {
    /// Gives the features of pictures, `[places, d_model] f32`, that stand in the next questions where these have placeholders.
    /// [`Features::show`](crate::tokenize::Features::show) finds them and gives them in one go.
    ///
    /// # Errors
    /// If this is a model without such, an answer is open, the features are not whole rows or more than a question can have, or a card
    /// has no memory for them; the session stays as it was.
    pub fn show(&mut self, features: &[f32]) -> Result<()> {
        let d = self.model.janus()?.0.language.decoder.d_model;
        if !features.len().is_multiple_of(d) {
            let expected = features.len().next_multiple_of(d);
            return Err(SessionError::Dimensions { what: "features", found: features.len(), expected }.into());
        }
        self.check_features(features.len() / d)?;
        #[cfg(feature = "cuda")]
        if let (Some(card), Some(buffers)) = (self.model.card(), &mut self.buffers.card) {
            return buffers.show(card, features);
        }
        self.buffers.features.clear();
        self.buffers.features.extend_from_slice(features);
        Ok(())
    }

    /// The same of features that were found on the card of this model.
    ///
    /// # Errors
    /// If one is not a number, or there is no memory for them; the session stays as it was.
    #[cfg(feature = "cuda")]
    pub(crate) fn show_found(&mut self, found: &CardFeatures) -> Result<()> {
        let card = self.model.card().expect("the card that they were found on");
        let buffers = self.buffers.card.as_ref().expect("a session of a model on a card");
        buffers.check_features(card, found)?;
        self.buffers.settle()?;
        let buffers = self.buffers.card.as_mut().expect("as above");
        buffers.show_found(card, found)
    }

    /// Refuses more features than a question can have, and any while one is answered.
    pub(crate) fn check_features(&self, features: usize) -> Result<()> {
        if self.open.is_some() {
            return Err(SessionError::AnswerOpen.into());
        }
        if features > self.max_text_tokens {
            return Err(SessionError::TooLong { tokens: features, room: self.max_text_tokens }.into());
        }
        Ok(())
    }

    /// Whether a text has as many places for features as there are features.
    pub(super) fn check_places(&self, text: &[u32]) -> Result<()> {
        let Ok((c, _)) = self.model.janus() else { return Ok(()) };
        let features = self.buffers.features() / c.language.decoder.d_model;
        match text.iter().filter(|&&id| id == c.vision.placeholder).count() {
            0 => Ok(()),
            places if places == features => Ok(()),
            places => Err(SessionError::Places { places, features }.into()),
        }
    }
}
