//! The byte-level BPE of the model's text: trained on the closed language, written as a Hugging Face `tokenizer.json`.

use std::path::Path;

use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

use crate::error::{Error, Result};
use crate::layout::ids;

/// The special tokens in id order.
fn specials() -> Vec<AddedToken> {
    let named = ids::NAMES.iter().map(|n| (*n).to_owned());
    let reserved = (ids::NAMES.len()..ids::N_SPECIAL as usize).map(|i| format!("<r{i}>"));
    named.chain(reserved).map(|n| AddedToken::from(n, true)).collect()
}

/// Trains `n_text` entries (specials, the 256 bytes, merges) on `lines` and returns the text of `tokenizer.json`.
///
/// A small corpus has fewer merges than there is room for; the ids above them stay without a token.
///
/// # Errors
/// If the corpus cannot be trained on.
pub fn train(lines: &[String], n_text: usize) -> Result<String> {
    let whole = |e: tokenizers::Error| Error::Setting(format!("byte-pair training: {e}"));
    let byte_level = ByteLevel::new(false, false, true);
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None::<tokenizers::normalizers::Lowercase>)
        .with_pre_tokenizer(Some(byte_level))
        .with_post_processor(Some(byte_level))
        .with_decoder(Some(byte_level))
        .build()
        .map_err(whole)?;
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(n_text)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(specials())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    tokenizer.train(&mut trainer, lines.iter().map(String::as_str)).map_err(whole)?;
    tokenizer.to_string(false).map_err(whole)
}

/// Opens a `tokenizer.json` and checks that its specials have the ids of the layout.
///
/// # Errors
/// If it is missing, broken, or of another layout.
pub fn open(path: &Path) -> Result<Tokenizer> {
    let raw = std::fs::read(path).map_err(Error::file(path))?;
    let tokenizer = Tokenizer::from_bytes(&raw).map_err(|e| Error::content(path, e.to_string()))?;
    for (id, token) in specials().iter().enumerate() {
        if tokenizer.token_to_id(&token.content) != u32::try_from(id).ok() {
            let what = format!("token `{}` must have id {id}; train the tokenizer again", token.content);
            return Err(Error::content(path, what));
        }
    }
    Ok(tokenizer)
}

/// Ids of `text`.
///
/// # Errors
/// If the tokenizer refuses it.
pub fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = tokenizer
        .encode(text, false)
        .map_err(|e| Error::Setting(format!("the text {text:?} cannot be tokenised: {e}")))?;
    Ok(encoding.get_ids().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_the_layouts_and_text_comes_back() {
        let lines: Vec<String> =
            ["the robot opens the door. the gripper is open.", "is there a red shape?", "yes"]
                .map(str::to_owned)
                .into();
        let json = train(&lines, 2112).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, json).unwrap();
        let tokenizer = open(&path).unwrap();
        assert_eq!(tokenizer.token_to_id("<ans>"), Some(ids::ANS));
        assert_eq!(tokenizer.token_to_id("<r63>"), Some(63));
        for text in ["the robot opens the door.", "Größe 漢字 unseen!"] {
            let ids = encode(&tokenizer, text).unwrap();
            assert!(ids.iter().all(|&i| (64..2112).contains(&i)), "{ids:?}");
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        }
    }
}
