//! SentencePiece vocabularies of the BPE kind as a Hugging Face `tokenizer.json`, which the runtime reads.
//!
//! SentencePiece joins the two neighbours whose union has the best score; a `tokenizer.json` lists pairs, best first. So every way to
//! cut a piece into two becomes a pair, in the order of the pieces' scores. The two agree but where several unions of one score
//! overlap: SentencePiece takes the leftmost of them, whichever pair it is of.
//!
//! Source: Kudo and Richardson 2018 (arXiv:1808.06226); `llm_tokenizer_spm` of llama.cpp; `LlamaConverter` of transformers.

mod model;

use std::collections::{HashMap, HashSet};

use serde_json::json;

use crate::tokenizer_file::{AddedToken, Bpe, File, Vocab, shown};

pub(crate) use model::PieceModel;

/// Longest piece, in bytes: trainers stop at 16 characters unless they are told otherwise.
const MAX_PIECE_BYTES: usize = 256;
/// Types of pieces, as SentencePiece and GGUF number them.
pub(crate) const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;
/// What stands for a space.
const SPACE: char = '\u{2581}';

/// A vocabulary; a piece's place is its id.
#[derive(Debug)]
pub(crate) struct Pieces<'a> {
    pub(crate) tokens: &'a [String],
    pub(crate) scores: Vec<f32>,
    pub(crate) types: Vec<i32>,
    /// Whether a space is put before every text.
    pub(crate) space_first: bool,
}

impl Pieces<'_> {
    /// The `tokenizer.json` of the vocabulary. Control and unknown pieces become special tokens, user-defined ones added tokens.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence that begins with `the tokenizer's`.
    pub(crate) fn tokenizer_json(&self) -> Result<String, String> {
        self.check()?;
        let mut ids = HashMap::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(other) = ids.insert(token.as_str(), id) {
                return Err(format!("pieces {other} and {id} are both `{}`", shown(token)));
            }
        }
        let typed = || self.tokens.iter().zip(&self.types).enumerate();
        let added_tokens = typed().filter(|(_, (_, ty))| [UNKNOWN, CONTROL, USER_DEFINED].contains(ty));
        let added_tokens =
            added_tokens.map(|(id, (token, ty))| AddedToken::new(id, token, *ty != USER_DEFINED)).collect();
        let unk_token = typed().find(|(_, (_, ty))| **ty == UNKNOWN).map(|(_, (token, _))| token.as_str());
        let space = SPACE.to_string();
        let mut before = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": space})];
        let mut behind = vec![
            json!({"type": "Replace", "pattern": {"String": space}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if self.space_first {
            before.insert(0, json!({"type": "Prepend", "prepend": space}));
            behind.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let file = File {
            version: "1.0",
            truncation: None,
            padding: None,
            added_tokens,
            normalizer: json!({"type": "Sequence", "normalizers": before}),
            pre_tokenizer: json!(null),
            post_processor: None,
            decoder: json!({"type": "Sequence", "decoders": behind}),
            model: Bpe {
                r#type: "BPE",
                dropout: None,
                unk_token,
                continuing_subword_prefix: None,
                end_of_word_suffix: None,
                fuse_unk: true,
                byte_fallback: true,
                ignore_merges: false,
                vocab: Vocab(self.tokens),
                merges: self.merges(),
            },
        };
        serde_json::to_string(&file).map_err(|error| format!("file cannot be written: {error}"))
    }

    fn check(&self) -> Result<(), String> {
        let n = self.tokens.len();
        for (what, found) in [("scores", self.scores.len()), ("types", self.types.len())] {
            if found != n {
                return Err(format!("{what} are {found}, its pieces {n}"));
            }
        }
        for (id, (token, ty)) in self.tokens.iter().zip(&self.types).enumerate() {
            let wrong = |what: &str| Err(format!("piece {id}, `{}`, {what}", shown(token)));
            match *ty {
                NORMAL if token.is_empty() => return wrong("is empty"),
                NORMAL if token.len() > MAX_PIECE_BYTES => {
                    return wrong("is longer than any that is trained");
                }
                NORMAL if self.scores[id].is_nan() => return wrong("has a score that is no number"),
                USER_DEFINED if token.contains(SPACE) => {
                    return wrong("is defined by its user and has a space, which is not supported");
                }
                NORMAL..=BYTE => {}
                _ => return wrong(&format!("has type {ty}, and known are {NORMAL} to {BYTE}")),
            }
        }
        let bytes: HashSet<&str> = self
            .tokens
            .iter()
            .zip(&self.types)
            .filter(|(_, ty)| **ty == BYTE)
            .map(|(t, _)| t.as_str())
            .collect();
        match (0..=255u8).find(|byte| !bytes.contains(format!("<0x{byte:02X}>").as_str())) {
            Some(byte) => Err(format!("piece for the byte 0x{byte:02X} is missing, and so would be letters")),
            None => Ok(()),
        }
    }

    /// Every pair of pieces that makes a piece, those of the best piece first.
    fn merges(&self) -> Vec<(&str, &str)> {
        let normal: HashSet<&str> = self
            .tokens
            .iter()
            .zip(&self.types)
            .filter(|(_, ty)| **ty == NORMAL)
            .map(|(token, _)| token.as_str())
            .collect();
        let mut order: Vec<usize> = (0..self.tokens.len()).filter(|&id| self.types[id] == NORMAL).collect();
        order.sort_by(|&a, &b| self.scores[b].total_cmp(&self.scores[a]));
        let mut merges = Vec::new();
        for token in order.into_iter().map(|id| self.tokens[id].as_str()) {
            // The longer first half first, as transformers has it.
            let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
            let pairs = cuts.filter(|(left, right)| normal.contains(left) && normal.contains(right));
            let first = merges.len();
            merges.extend(pairs);
            merges[first..].reverse();
        }
        merges
    }
}
