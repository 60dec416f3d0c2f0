//! Text into token ids and back, from a Hugging Face `tokenizer.json`.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::de::IgnoredAny;
use tokenizers::Tokenizer as HfTokenizer;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};

use super::chat::{self, Message, Part, Style};
use crate::config::{ChatTemplate, ModelConfig};
use crate::session::SessionError;

/// The text tokenizer of a bundle. Special tokens are never made from text: what a user types stays text.
pub struct TextTokenizer {
    inner: HfTokenizer,
    /// The same for what stands behind a special token, where the rules put a space before a whole text alone.
    later: Option<HfTokenizer>,
    /// Spelling and id of each special token.
    special: Vec<(String, u32)>,
    /// Put before every text.
    bos: Option<u32>,
    chat: Option<ChatTemplate>,
    style: Style,
    /// Whether a processor of several modalities is what makes text of a conversation.
    processed: bool,
}

impl std::fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextTokenizer").field("vocab_size", &self.inner.get_vocab_size(true)).finish()
    }
}

impl TextTokenizer {
    /// Parses a `tokenizer.json` and checks its ids against the model's text tokens.
    ///
    /// # Errors
    /// One sentence.
    pub fn from_bytes(bytes: &[u8], config: &ModelConfig) -> Result<Self, String> {
        // Through `FromStr`, which tokenizers has compiled already: `from_bytes` would compile its whole parser again here.
        let text = std::str::from_utf8(bytes).map_err(|error| format!("no tokenizer: {error}"))?;
        // tokenizers panics on some of what is no JSON.
        serde_json::from_str::<IgnoredAny>(text).map_err(|error| format!("no tokenizer: {error}"))?;
        let inner = guarded(|| {
            let mut inner: HfTokenizer =
                text.parse().map_err(|error: tokenizers::Error| error.to_string())?;
            inner.set_encode_special_tokens(true);
            // A text is as long as it is: padding to a length that a file asks for could take all memory.
            inner.with_padding(None).with_truncation(None).map_err(|error| error.to_string())?;
            Ok(inner)
        });
        let inner = inner.map_err(|error| format!("no tokenizer: {error}"))?;
        let limit = config.text_range().end;
        if let Some((token, id)) = inner.get_vocab(true).iter().find(|(_, id)| **id >= limit) {
            return Err(format!("token {token:?} has id {id}, but text tokens end at {limit}"));
        }
        let added = inner.get_added_tokens_decoder();
        let special = added.into_iter().filter(|(_, token)| token.special && !token.content.is_empty());
        let special = special.map(|(id, token)| (token.content, id)).collect();
        let (bos, chat) = config.language().map_or((None, None), |c| (c.bos, c.chat.clone()));
        let style = match config {
            ModelConfig::Janus(_) => Style::Listed,
            ModelConfig::Chameleon(c) => {
                Style::Inline(inner.id_to_token(c.image.placeholder).unwrap_or_default())
            }
            ModelConfig::Emu3(c) => Style::Inline(inner.id_to_token(c.image.placeholder).unwrap_or_default()),
            _ => Style::Inline(String::new()),
        };
        let processed = matches!(config, ModelConfig::Janus(_) | ModelConfig::Emu3(_));
        Ok(Self { later: later(&inner), inner, special, bos, chat, style, processed })
    }

    /// The token ids of `text`.
    ///
    /// # Errors
    /// If the tokenizer's rules fail on the text, in its own words.
    pub fn encode(&self, text: &str) -> crate::Result<Vec<u32>> {
        let mut ids = Vec::new();
        append(&self.inner, text, &mut ids)?;
        Ok(ids)
    }

    /// The token ids of a conversation up to where the model answers. A model that brings no chat template continues the last
    /// message.
    ///
    /// # Errors
    /// If the template or the tokenizer's rules fail on it, in their own words.
    pub fn encode_chat(&self, messages: &[Message]) -> crate::Result<Vec<u32>> {
        let Some(chat) = &self.chat else {
            let mut ids: Vec<u32> = self.bos.into_iter().collect();
            for part in messages.last().into_iter().flat_map(|message| &message.content) {
                if let Part::Text { text } = part {
                    append(&self.inner, text, &mut ids)?;
                }
            }
            return Ok(ids);
        };
        let text = chat::render(chat, &self.style, messages).map_err(SessionError::Text)?;
        let mut ids = self.encode_marked(&text, &chat::words(&text, messages))?;
        // Source: the processors of transformers, which put it before the text of a template that does not begin with it, where tokenizers
        // alone leave the template to it.
        if let Some(bos) = self.bos.filter(|bos| self.processed && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The token ids of a text in which special tokens are meant, but for some places.
    fn encode_marked(&self, text: &str, words: &[Range<usize>]) -> crate::Result<Vec<u32>> {
        let inside =
            |at: &Range<usize>| words.iter().any(|words| words.start < at.end && at.start < words.end);
        let mut marks: Vec<(Range<usize>, u32)> = Vec::new();
        for (token, id) in &self.special {
            let found = text.match_indices(token.as_str()).map(|(at, token)| at..at + token.len());
            marks.extend(found.filter(|at| !inside(at)).map(|at| (at, *id)));
        }
        // The longest of those that begin in one place.
        marks.sort_by_key(|(at, _)| (at.start, usize::MAX - at.end));
        let (mut ids, mut from) = (Vec::new(), 0);
        let rules = |from: usize| self.later.as_ref().filter(|_| from > 0).unwrap_or(&self.inner);
        for (at, id) in marks {
            if at.start < from {
                continue;
            }
            append(rules(from), &text[from..at.start], &mut ids)?;
            ids.push(id);
            from = at.end;
        }
        append(rules(from), &text[from..], &mut ids)?;
        Ok(ids)
    }

    /// The text of `ids`, special tokens left out.
    ///
    /// # Errors
    /// If the tokenizer's rules fail on the ids, in its own words.
    pub fn decode(&self, ids: &[u32]) -> crate::Result<String> {
        let decoded = || self.inner.decode(ids, true).map_err(|error| error.to_string());
        Ok(guarded(decoded).map_err(SessionError::Text)?)
    }
}

fn append(rules: &HfTokenizer, text: &str, ids: &mut Vec<u32>) -> crate::Result<()> {
    let encoded = || rules.encode_fast(text, false).map_err(|error| error.to_string());
    ids.extend_from_slice(guarded(encoded).map_err(SessionError::Text)?.get_ids());
    Ok(())
}

/// The rules for what stands behind a special token, where they differ: a text is cut there, so that each part would begin one.
fn later(rules: &HfTokenizer) -> Option<HfTokenizer> {
    let Some(PreTokenizerWrapper::Metaspace(space)) = rules.get_pre_tokenizer() else { return None };
    if space.prepend_scheme != PrependScheme::First {
        return None;
    }
    let never = Metaspace::new(space.get_replacement(), PrependScheme::Never, space.get_split());
    let mut later = rules.clone();
    later.with_pre_tokenizer(Some(never));
    Some(later)
}

/// A bug in the tokenizer's library may cost one call, not the program.
fn guarded<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err("the tokenizer's own rules made it panic".into()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::nano;

    #[test]
    fn a_space_goes_before_the_first_part_of_a_text_alone() {
        let vocabulary = ["<s>", "\u{2581}", "a", "b", "\u{2581}a", "\u{2581}b"];
        let vocab: serde_json::Map<_, _> =
            vocabulary.iter().zip(0..).map(|(t, id)| ((*t).into(), json!(id))).collect();
        let file = |scheme: &str| {
            json!({
                "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true}],
                "pre_tokenizer": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": true},
                "model": {"type": "BPE", "vocab": vocab, "merges": [["\u{2581}", "a"], ["\u{2581}", "b"]]},
            })
        };
        // As tokenizers encodes `a<s>b a` and `<s>b a` in one go.
        for (scheme, first, second) in [
            ("first", &[4, 0, 3, 4][..], &[0, 3, 4][..]),
            ("always", &[4, 0, 5, 4], &[0, 5, 4]),
            ("never", &[2, 0, 3, 4], &[0, 3, 4]),
        ] {
            let text =
                TextTokenizer::from_bytes(file(scheme).to_string().as_bytes(), &nano().into()).unwrap();
            assert_eq!(text.encode_marked("a<s>b a", &[]).unwrap(), first, "{scheme}");
            assert_eq!(text.encode_marked("<s>b a", &[]).unwrap(), second, "{scheme}");
        }
    }
}
