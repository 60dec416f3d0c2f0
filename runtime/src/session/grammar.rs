//! Which tokens may come next. Logits are computed of these alone: a caption never pays for the codes of pictures, nor a picture for text.

use std::ops::Range;

use crate::config::ModelConfig;

/// What a sequence continues with, one token after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grammar {
    /// Text, until a token ends it.
    Text,
    /// The codes of a picture, row by row. Where the family ends rows, its token stands behind each `columns` of them.
    Picture {
        /// Codes of a row.
        columns: usize,
    },
    /// Bins of actions.
    Actions,
}

/// What may come next: what a logit is of, by its index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A token of these.
    Token(Range<u32>),
    /// Whatever the head has a logit for, codes of pictures in the vocabulary included: for comparisons.
    Any(Range<u32>),
    /// A code of a picture.
    Code,
    /// This token, whatever the model thinks: there are no logits.
    Only(u32),
}

impl Grammar {
    /// What may come behind `at` tokens.
    pub(super) fn next(self, model: &ModelConfig, at: usize) -> Next {
        match (self, model) {
            (Self::Picture { columns }, ModelConfig::Emu3(c)) if at % (columns + 1) == columns => {
                Next::Only(c.image.row_end)
            }
            (Self::Picture { .. }, ModelConfig::Unimodal(c)) => {
                Next::Token(c.tokens.image[0]..c.tokens.image[1])
            }
            (Self::Actions, ModelConfig::Unimodal(c)) => Next::Token(c.tokens.bins[0]..c.tokens.bins[1]),
            (Self::Picture { .. }, _) => Next::Code,
            (Self::Text | Self::Actions, _) => Next::Token(model.text_range()),
        }
    }
}

impl Next {
    /// The token, or the code of a model that draws with codes of its own, of the logit `index`; nothing if there is no such logit.
    pub(super) fn id(&self, model: &ModelConfig, index: usize) -> Option<u32> {
        match (self, model) {
            (Self::Token(range) | Self::Any(range), _) => {
                range.start.checked_add(u32::try_from(index).ok()?).filter(|id| range.contains(id))
            }
            (Self::Code, ModelConfig::Janus(c)) => {
                u32::try_from(index).ok().filter(|_| index < c.drawing.vq.codebook_size)
            }
            (Self::Code, _) => model.code_ids().get(index).copied(),
            (Self::Only(id), _) => (index == 0).then_some(*id),
        }
    }

    /// How many logits there are.
    pub(super) fn limit(&self, model: &ModelConfig) -> usize {
        match (self, model) {
            (Self::Token(range) | Self::Any(range), _) => range.len(),
            (Self::Code, ModelConfig::Janus(c)) => c.drawing.vq.codebook_size,
            (Self::Code, _) => model.code_ids().len(),
            (Self::Only(_), _) => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::nano;

    #[test]
    fn each_family_has_its_own() {
        let own = ModelConfig::from(nano());
        assert_eq!(Grammar::Text.next(&own, 7), Next::Token(0..2112));
        assert_eq!(Grammar::Actions.next(&own, 0), Next::Token(2112..2368));
        let codes = Grammar::Picture { columns: 8 }.next(&own, 8);
        assert_eq!(codes, Next::Token(2368..3392));
        assert_eq!([0, 1023, 1024].map(|i| codes.id(&own, i)), [Some(2368), Some(3391), None]);
        assert_eq!(codes.id(&own, usize::MAX), None);
        assert_eq!(Next::Only(5).id(&own, 1), None);
    }
}
