//! A Hugging Face `tokenizer.json` of the BPE kind, as it is written.

use serde::ser::{Serialize, Serializer};
use serde_json::Value as Json;

/// A string from a file, fit for a terminal: escaped, and cut when it is longer than any honest one.
pub(crate) fn shown(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut escaped: String = text.escape_debug().take(LONGEST).collect();
    if text.escape_debug().nth(LONGEST).is_some() {
        escaped.push('…');
    }
    escaped
}

/// The file. Borrowed from what was read and written straight to text: as a tree it would take ten times the memory.
#[derive(serde::Serialize)]
pub(crate) struct File<'a> {
    pub(crate) version: &'a str,
    pub(crate) truncation: Option<()>,
    pub(crate) padding: Option<()>,
    pub(crate) added_tokens: Vec<AddedToken<'a>>,
    pub(crate) normalizer: Json,
    pub(crate) pre_tokenizer: Json,
    pub(crate) post_processor: Option<()>,
    pub(crate) decoder: Json,
    pub(crate) model: Bpe<'a>,
}

/// A token that is found in a text before anything else is done to it.
#[derive(serde::Serialize)]
pub(crate) struct AddedToken<'a> {
    pub(crate) id: usize,
    pub(crate) content: &'a str,
    pub(crate) single_word: bool,
    pub(crate) lstrip: bool,
    pub(crate) rstrip: bool,
    pub(crate) normalized: bool,
    pub(crate) special: bool,
}

impl<'a> AddedToken<'a> {
    pub(crate) fn new(id: usize, content: &'a str, special: bool) -> Self {
        Self { id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special }
    }
}

/// Pairs that are merged, best first.
#[derive(serde::Serialize)]
pub(crate) struct Bpe<'a> {
    pub(crate) r#type: &'a str,
    pub(crate) dropout: Option<()>,
    pub(crate) unk_token: Option<&'a str>,
    pub(crate) continuing_subword_prefix: Option<()>,
    pub(crate) end_of_word_suffix: Option<()>,
    pub(crate) fuse_unk: bool,
    pub(crate) byte_fallback: bool,
    pub(crate) ignore_merges: bool,
    pub(crate) vocab: Vocab<'a>,
    pub(crate) merges: Vec<(&'a str, &'a str)>,
}

/// Token to id, in the order of the ids.
pub(crate) struct Vocab<'a>(pub(crate) &'a [String]);

impl Serialize for Vocab<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().enumerate().map(|(id, token)| (token, id)))
    }
}
