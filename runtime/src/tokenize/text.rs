//! Text into token ids and back, from a Hugging Face `tokenizer.json`.

use tokenizers::Tokenizer as HfTokenizer;

use crate::config::ModelConfig;

/// The text tokenizer of a bundle. Special tokens are never made from text: what a user types stays text.
pub struct TextTokenizer {
    inner: HfTokenizer,
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
        let mut inner: HfTokenizer = text.parse().map_err(|error| format!("no tokenizer: {error}"))?;
        inner.set_encode_special_tokens(true);
        // A text is as long as it is: padding to a length that a file asks for could take all memory.
        inner.with_padding(None).with_truncation(None).map_err(|error| format!("no tokenizer: {error}"))?;
        let [_, limit] = config.tokens.text;
        match inner.get_vocab(true).iter().find(|(_, id)| **id >= limit) {
            Some((token, id)) => Err(format!("token {token:?} has id {id}, but text tokens end at {limit}")),
            None => Ok(Self { inner }),
        }
    }

    /// The token ids of `text`.
    ///
    /// # Errors
    /// If the tokenizer's rules fail on the text, in its own words.
    pub fn encode(&self, text: &str) -> crate::Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|error| crate::session::SessionError::Text(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`, special tokens left out.
    ///
    /// # Errors
    /// If the tokenizer's rules fail on the ids, in its own words.
    pub fn decode(&self, ids: &[u32]) -> crate::Result<String> {
        Ok(self
            .inner
            .decode(ids, true)
            .map_err(|error| crate::session::SessionError::Text(error.to_string()))?)
    }
}
