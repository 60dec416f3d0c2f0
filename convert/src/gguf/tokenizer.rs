//! The tokenizer of a GGUF file as a Hugging Face `tokenizer.json`, which the runtime reads.
//!
//! Byte-level BPE, which the format calls `gpt2`, and SentencePiece's BPE, which it calls `llama`; not WordPiece. Of byte-level BPE the file names its
//! pre-tokenizer, the rule that cuts text before pairs are merged, but does not hold it: what the names stand for is written
//! down here. A name that is not known is refused, since another rule would give other tokens without anybody noticing.
//!
//! Source: ggml `docs/gguf.md`; `llama-vocab.cpp` for the names; the `tokenizer.json` of GPT-2, SmolLM2, Llama 3 and Qwen2
//! for the rules, which is what these models were trained with.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Value as Json, json};

use super::{Array, Value, ValueType};
use crate::pieces::Pieces;
use crate::tokenizer_file::{AddedToken, Bpe, File, Vocab, shown};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";

/// The kinds of tokenizers that are read.
const BYTE_LEVEL_BPE: &str = "gpt2";
const SENTENCEPIECE: &str = "llama";
/// Numbers of the types of tokens: normal, unknown, control, user defined, unused, byte.
const TOKEN_TYPES: std::ops::RangeInclusive<i32> = 1..=6;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// What to do about a file that contradicts itself.
const AGAIN: &str = "convert the model to GGUF again with a current llama.cpp";

/// What a `tokenizer.json` says about text before pairs are merged.
struct Rules {
    normalizer: Json,
    pre_tokenizer: Json,
    /// A piece that is a token is taken as it is, even if no merges lead there.
    ignore_merges: bool,
}

/// The `tokenizer.json` of the tokenizer that `metadata` describes.
///
/// Control tokens become special tokens, user-defined ones become added tokens that are not special. Nothing is put before or
/// after a text.
///
/// # Errors
/// One sentence: what is wrong, or not supported, and what to do.
pub fn tokenizer_json(metadata: &BTreeMap<String, Value>) -> Result<String, String> {
    let model = string(metadata, MODEL)?
        .ok_or_else(|| format!("there is no key `{MODEL}`, so the file has no tokenizer; {AGAIN}"))?;
    if model == SENTENCEPIECE {
        return pieces(metadata)?
            .tokenizer_json()
            .map_err(|reason| format!("the tokenizer's {reason}; {AGAIN}"));
    }
    if model != BYTE_LEVEL_BPE {
        return Err(format!(
            "key `{MODEL}` is `{}` but only `{BYTE_LEVEL_BPE}` (byte-level BPE) and `{SENTENCEPIECE}` (SentencePiece) are supported; \
             take a model with such a tokenizer",
            shown(model)
        ));
    }
    let rules = rules(string(metadata, PRE)?)?;
    let tokens = strings(metadata, TOKENS)?;
    let ids = ids(tokens)?;
    let added_tokens = added_tokens(metadata, tokens)?;
    let merges = merges(strings(metadata, MERGES)?, &ids)?;

    let file = File {
        version: "1.0",
        truncation: None,
        padding: None,
        added_tokens,
        normalizer: rules.normalizer,
        pre_tokenizer: rules.pre_tokenizer,
        post_processor: None,
        decoder: byte_level(false),
        model: Bpe {
            r#type: "BPE",
            dropout: None,
            unk_token: None,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: rules.ignore_merges,
            vocab: Vocab(tokens),
            merges,
        },
    };
    serde_json::to_string(&file).map_err(|error| format!("the tokenizer cannot be written: {error}; {AGAIN}"))
}

/// The vocabulary of the SentencePiece kind.
fn pieces(metadata: &BTreeMap<String, Value>) -> Result<Pieces<'_>, String> {
    let flag = |key: &str| match metadata.get(key) {
        None => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(format!("key `{key}` is no bool; {AGAIN}")),
    };
    if flag("tokenizer.ggml.remove_extra_whitespaces")? == Some(true) {
        return Err("the tokenizer removes white space, which is not supported; take another model".into());
    }
    let bytes = numbers(metadata, SCORES, ValueType::F32)?;
    let scores = bytes.as_chunks().0.iter().map(|&score| f32::from_le_bytes(score)).collect();
    Ok(Pieces {
        tokens: strings(metadata, TOKENS)?,
        scores,
        types: types(metadata)?,
        space_first: flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true),
    })
}

type Names = &'static [&'static str];

/// The rules with each of their names; no name at all means the default.
///
/// llama.cpp's tokens are the same but for two things. Under `default` it cuts punctuation and numbers further than GPT-2, after
/// which the kind of tokenizer is named; either is a guess. And it leaves text as it is where Qwen2 composes letters.
const NAMES: [(Names, fn() -> Rules); 4] = [
    (&["default", "gpt-2"], gpt2_rules),
    (&["smollm"], smollm_rules),
    (&["llama-bpe", "llama-v3", "llama3"], llama3_rules),
    (&["qwen2"], qwen2_rules),
];

fn rules(pre: Option<&str>) -> Result<Rules, String> {
    let name = pre.unwrap_or("default");
    if let Some((_, rules)) = NAMES.iter().find(|(names, _)| names.contains(&name)) {
        return Ok(rules());
    }
    let known: Vec<String> =
        NAMES.iter().flat_map(|(names, _)| *names).map(|name| format!("`{name}`")).collect();
    Err(format!(
        "key `{PRE}` is `{}`, a pre-tokenizer that is not supported; take a model with one of {}",
        shown(name),
        known.join(", ")
    ))
}

/// GPT-2: words with the space before them, numbers, the rest. The expression is built into `ByteLevel`.
fn gpt2_rules() -> Rules {
    Rules { normalizer: Json::Null, pre_tokenizer: byte_level(true), ignore_merges: false }
}

/// SmolLM: every digit by itself, the rest as in GPT-2.
fn smollm_rules() -> Rules {
    let digits = json!({"type": "Digits", "individual_digits": true});
    Rules {
        normalizer: Json::Null,
        pre_tokenizer: sequence([digits, byte_level(true)]),
        ignore_merges: false,
    }
}

/// Llama 3: words with the one character before them, up to three digits, the rest with its line breaks.
fn llama3_rules() -> Rules {
    let pattern = concat!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    Rules {
        normalizer: Json::Null,
        pre_tokenizer: sequence([split(pattern), byte_level(false)]),
        ignore_merges: true,
    }
}

/// Qwen2: as Llama 3, but every digit by itself, and text in its composed form.
fn qwen2_rules() -> Rules {
    let pattern = concat!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    Rules {
        normalizer: json!({"type": "NFC"}),
        pre_tokenizer: sequence([split(pattern), byte_level(false)]),
        ignore_merges: false,
    }
}

fn sequence(steps: [Json; 2]) -> Json {
    json!({"type": "Sequence", "pretokenizers": steps.to_vec()})
}

fn split(pattern: &str) -> Json {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

/// Bytes as the letters that stand for them; with `use_regex`, cut by GPT-2's expression before.
fn byte_level(use_regex: bool) -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// The id of each token.
fn ids(tokens: &[String]) -> Result<HashMap<&str, usize>, String> {
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if let Some(other) = ids.insert(token.as_str(), id) {
            return Err(format!(
                "key `{TOKENS}`: tokens {other} and {id} are both `{}`; {AGAIN}",
                shown(token)
            ));
        }
    }
    Ok(ids)
}

/// The tokens that are found in a text before anything else is done to it.
fn added_tokens<'a>(
    metadata: &BTreeMap<String, Value>,
    tokens: &'a [String],
) -> Result<Vec<AddedToken<'a>>, String> {
    let types = types(metadata)?;
    if types.len() != tokens.len() {
        return Err(format!(
            "key `{TOKEN_TYPE}` has {} elements for {} tokens; {AGAIN}",
            types.len(),
            tokens.len()
        ));
    }
    if let Some(at) = types.iter().position(|ty| !TOKEN_TYPES.contains(ty)) {
        return Err(format!(
            "key `{TOKEN_TYPE}`: token {at} has type {}, known are 1 to 6; the file is damaged or newer than this program",
            types[at]
        ));
    }
    let added =
        tokens.iter().zip(types).enumerate().filter(|(_, (_, ty))| [CONTROL, USER_DEFINED].contains(ty));
    let added = added.map(|(id, (content, ty))| AddedToken::new(id, content, ty == CONTROL));
    Ok(added.collect())
}

/// Both halves of every merge, best first. They must be tokens that make a token, and be listed once: readers disagree on
/// which of two lines counts.
fn merges<'a>(lines: &'a [String], ids: &HashMap<&str, usize>) -> Result<Vec<(&'a str, &'a str)>, String> {
    let mut pairs = Vec::with_capacity(lines.len());
    let mut seen = HashSet::with_capacity(lines.len());
    for (i, line) in lines.iter().enumerate() {
        let wrong =
            |what: String| Err(format!("key `{MERGES}`: line {i}, `{}`, {what}; {AGAIN}", shown(line)));
        let Some(pair @ (left, right)) = line.split_once(' ').filter(|(_, right)| !right.contains(' '))
        else {
            return wrong("is not two tokens with a space between".into());
        };
        let whole = [left, right].concat();
        for token in [left, right, &whole] {
            if token.is_empty() || !ids.contains_key(token) {
                return wrong(format!("needs a token `{}` that is not in the vocabulary", shown(token)));
            }
        }
        if !seen.insert(pair) {
            return wrong("is there twice".into());
        }
        pairs.push(pair);
    }
    Ok(pairs)
}

fn string<'a>(metadata: &'a BTreeMap<String, Value>, key: &str) -> Result<Option<&'a str>, String> {
    match metadata.get(key) {
        None => Ok(None),
        Some(Value::String(string)) => Ok(Some(string)),
        Some(_) => Err(format!("key `{key}` is no string; {AGAIN}")),
    }
}

fn strings<'a>(metadata: &'a BTreeMap<String, Value>, key: &str) -> Result<&'a [String], String> {
    match metadata.get(key) {
        Some(Value::Array(Array::Strings(strings))) => Ok(strings),
        Some(_) => Err(format!("key `{key}` is no array of strings; {AGAIN}")),
        None => Err(format!("there is no key `{key}`, which the tokenizer needs; {AGAIN}")),
    }
}

fn types(metadata: &BTreeMap<String, Value>) -> Result<Vec<i32>, String> {
    let bytes = numbers(metadata, TOKEN_TYPE, ValueType::I32)?;
    Ok(bytes.as_chunks().0.iter().map(|&number| i32::from_le_bytes(number)).collect())
}

/// The bytes of numbers of a type.
fn numbers<'a>(
    metadata: &'a BTreeMap<String, Value>,
    key: &str,
    expected: ValueType,
) -> Result<&'a [u8], String> {
    match metadata.get(key) {
        Some(Value::Array(Array::Numbers { kind, bytes })) if *kind == expected => Ok(bytes),
        Some(_) => {
            Err(format!("key `{key}` is no array of {}; {AGAIN}", format!("{expected:?}").to_lowercase()))
        }
        None => Err(format!("there is no key `{key}`, which the tokenizer needs; {AGAIN}")),
    }
}
