//! `tokenizer.model`, the file of SentencePiece: a Protocol Buffers message, of which a few fields are read.
//!
//! | message | fields |
//! |---|---|
//! | the file | 1: pieces, 2: trainer settings, 3: normaliser settings |
//! | piece | 1: text, 2: score (F32), 3: type |
//! | trainer settings | 3: kind of model (2 is BPE), 24: spaces stand behind words |
//! | normaliser settings | 2: rules, 3: a space goes first, 4: white space is removed, 5: spaces are escaped |
//!
//! Source: `sentencepiece_model.proto` of SentencePiece; the wire format of Protocol Buffers.

use super::{NORMAL, Pieces};

/// Kind of model: BPE.
const BPE: u64 = 2;
/// Most pieces: eight times the largest vocabularies in use.
const MAX_PIECES: usize = 1 << 21;

/// What is read of the file.
#[derive(Debug)]
pub(crate) struct PieceModel {
    tokens: Vec<String>,
    scores: Vec<f32>,
    types: Vec<i32>,
    space_first: bool,
}

impl PieceModel {
    /// Reads the file.
    ///
    /// # Errors
    /// One sentence: damage, or a kind that is not supported.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut this = Self { tokens: vec![], scores: vec![], types: vec![], space_first: true };
        let (mut kind, mut suffix, mut rules, mut removes, mut escapes) = (1, false, false, true, true);
        each_field(bytes, |field, value| match (field, value) {
            (1, Value::Bytes(piece)) => this.add(piece),
            (2, Value::Bytes(trainer)) => each_field(trainer, |field, value| {
                match (field, value) {
                    (3, Value::Number(n)) => kind = n,
                    (24, Value::Number(n)) => suffix = n != 0,
                    _ => {}
                }
                Some(())
            }),
            (3, Value::Bytes(normaliser)) => each_field(normaliser, |field, value| {
                match (field, value) {
                    (2, Value::Bytes(found)) => rules = !found.is_empty(),
                    (3, Value::Number(n)) => this.space_first = n != 0,
                    (4, Value::Number(n)) => removes = n != 0,
                    (5, Value::Number(n)) => escapes = n != 0,
                    _ => {}
                }
                Some(())
            }),
            _ => Some(()),
        })
        .ok_or("it is no model of SentencePiece, or damaged; download it again")?;
        if kind != BPE {
            return Err(
                "it is not of the BPE kind; save the tokenizer as tokenizer.json with transformers".into()
            );
        }
        if suffix || rules || removes || !escapes {
            return Err("it changes texts before it cuts them, which is not supported; save the tokenizer as tokenizer.json with \
                        transformers"
                .into());
        }
        Ok(this)
    }

    /// The vocabulary.
    pub(crate) fn pieces(&self) -> Pieces<'_> {
        Pieces {
            tokens: &self.tokens,
            scores: self.scores.clone(),
            types: self.types.clone(),
            space_first: self.space_first,
        }
    }

    fn add(&mut self, piece: &[u8]) -> Option<()> {
        let (mut token, mut score, mut ty) = (String::new(), 0.0, NORMAL);
        each_field(piece, |field, value| {
            match (field, value) {
                (1, Value::Bytes(text)) => token = str::from_utf8(text).ok()?.to_owned(),
                (2, Value::Four(bits)) => score = f32::from_le_bytes(bits),
                (3, Value::Number(n)) => ty = i32::try_from(n).ok()?,
                _ => {}
            }
            Some(())
        })?;
        self.tokens.push(token);
        self.scores.push(score);
        self.types.push(ty);
        (self.tokens.len() <= MAX_PIECES).then_some(())
    }
}

/// A field's value; doubles and the like are skipped.
#[derive(Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Four([u8; 4]),
    Eight,
    Bytes(&'a [u8]),
}

/// Runs `f` on every field of a message; nothing when the message is cut off or not one, or when `f` says so.
fn each_field(mut bytes: &[u8], mut f: impl FnMut(u64, Value<'_>) -> Option<()>) -> Option<()> {
    while !bytes.is_empty() {
        let tag = number(&mut bytes)?;
        let value = match tag & 7 {
            0 => Value::Number(number(&mut bytes)?),
            1 => {
                bytes = bytes.get(8..)?;
                Value::Eight
            }
            2 => {
                let len = usize::try_from(number(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(len)?;
                bytes = rest;
                Value::Bytes(value)
            }
            5 => {
                let (value, rest) = bytes.split_first_chunk()?;
                bytes = rest;
                Value::Four(*value)
            }
            _ => return None,
        };
        f(tag >> 3, value)?;
    }
    Some(())
}

/// A number in groups of seven bits, the lowest first.
fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}
