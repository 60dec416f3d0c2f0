//! Tokenizers of GGUF files: what the runtime makes of them, and what is refused.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use saccade::config::nano;
use saccade::tokenize::TextTokenizer;
use saccade_convert::gguf::{Array, Value, ValueType, tokenizer_json};

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// A tokenizer that is built token by token; the 256 bytes come first, so that they are their own ids.
struct Build {
    tokens: Vec<(String, i32)>,
    merges: Vec<String>,
    pre: Option<&'static str>,
}

/// The letter of each byte. Source: `bytes_to_unicode` of GPT-2.
fn letters() -> Vec<char> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut free = '\u{100}'..;
    (0..=255u8).map(|b| if printable(&b) { char::from(b) } else { free.next().unwrap() }).collect()
}

fn build(pre: Option<&'static str>) -> Build {
    let tokens = letters().into_iter().map(|letter| (letter.to_string(), NORMAL)).collect();
    Build { tokens, merges: Vec::new(), pre }
}

impl Build {
    fn token(mut self, token: &str, token_type: i32) -> Self {
        self.tokens.push((token.into(), token_type));
        self
    }

    /// The line, and the token that comes of it unless it is there.
    fn merge(mut self, line: &str) -> Self {
        let token = line.replace(' ', "");
        self.merges.push(line.into());
        let known = self.tokens.iter().any(|(t, _)| *t == token);
        if known { self } else { self.token(&token, NORMAL) }
    }

    fn metadata(&self) -> BTreeMap<String, Value> {
        let types = self.tokens.iter().flat_map(|(_, ty)| ty.to_le_bytes()).collect();
        let tokens = self.tokens.iter().map(|(token, _)| token.clone()).collect();
        let mut metadata = BTreeMap::from([
            ("tokenizer.ggml.model".to_owned(), Value::String("gpt2".into())),
            ("tokenizer.ggml.tokens".to_owned(), Value::Array(Array::Strings(tokens))),
            ("tokenizer.ggml.merges".to_owned(), Value::Array(Array::Strings(self.merges.clone()))),
            (
                "tokenizer.ggml.token_type".to_owned(),
                Value::Array(Array::Numbers { kind: ValueType::I32, bytes: types }),
            ),
        ]);
        if let Some(pre) = self.pre {
            metadata.insert("tokenizer.ggml.pre".into(), Value::String(pre.into()));
        }
        metadata
    }

    /// As the runtime reads it.
    fn tokenizer(&self) -> TextTokenizer {
        let mut model = nano();
        model.tokens.text = [0, 4096];
        TextTokenizer::from_bytes(tokenizer_json(&self.metadata()).unwrap().as_bytes(), &model.clone().into())
            .unwrap()
    }

    /// The pieces that `text` becomes.
    fn pieces(&self, text: &str) -> Vec<&str> {
        let ids = self.tokenizer().encode(text).unwrap();
        ids.into_iter().map(|id| self.tokens[id as usize].0.as_str()).collect()
    }
}

/// Merges that show where text was cut: words, numbers, punctuation and spaces.
fn small(pre: Option<&'static str>) -> Build {
    ["h i", "Ġ hi", "1 2", "3 4", "12 3", "12 34", "Ġ 12", "! !", "Ċ Ċ", "!! Ċ", "Ġ Ġ", "- hi", "Ã ©"]
        .iter()
        .fold(build(pre), |build, line| build.merge(line))
}

/// Asserts that `metadata` is refused in a sentence with these words.
#[track_caller]
fn refuses(metadata: &BTreeMap<String, Value>, words: &[&str]) {
    let sentence = tokenizer_json(metadata).unwrap_err();
    for word in words {
        assert!(sentence.contains(word), "`{sentence}` does not say `{word}`");
    }
}

/// The small one with another entry, or without.
fn with(key: &str, value: Option<Value>) -> BTreeMap<String, Value> {
    let mut metadata = small(None).metadata();
    metadata.remove(key);
    metadata.extend(value.map(|value| (key.to_owned(), value)));
    metadata
}

#[test]
fn text_of_every_kind_survives_the_way_there_and_back() {
    let texts = [
        "",
        " ",
        "hi  hi",
        "  1234 12",
        "Größe übermäßig ß",
        "日本語 한국어",
        "🦀 👩‍🚀!",
        "a\tb\r\nc\n\n",
        "it's\u{a0}",
    ];
    for pre in [None, Some("default"), Some("gpt-2"), Some("smollm"), Some("llama-bpe"), Some("qwen2")] {
        let tokenizer = small(pre).tokenizer();
        for text in texts {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), text, "{pre:?}");
        }
    }
}

#[test]
fn text_without_merges_becomes_its_bytes() {
    let text = "Grüße, 🦀!";
    let ids: Vec<u32> = text.bytes().map(u32::from).collect();
    assert_eq!(build(None).tokenizer().encode(text).unwrap(), ids);
}

#[test]
fn gpt2_joins_numbers_and_takes_spaces_along() {
    for pre in [None, Some("default"), Some("gpt-2")] {
        let build = small(pre);
        assert_eq!(build.pieces("hi hi 12"), ["hi", "Ġhi", "Ġ12"]);
        assert_eq!(build.pieces("1234-hi!!\n"), ["1234", "-", "hi", "!!", "Ċ"]);
    }
}

#[test]
fn smollm_takes_every_digit_by_itself() {
    let build = small(Some("smollm"));
    assert_eq!(build.pieces("hi hi 1234"), ["hi", "Ġhi", "Ġ", "1", "2", "3", "4"]);
    assert_eq!(build.pieces("   hi"), ["ĠĠ", "Ġhi"]);
}

#[test]
fn llama3_takes_three_digits_and_a_sign_before_a_word() {
    for pre in ["llama-bpe", "llama-v3", "llama3"] {
        let build = small(Some(pre));
        assert_eq!(build.pieces("1234-hi!!\n"), ["123", "4", "-hi", "!!Ċ"]);
        assert_eq!(build.pieces("hi 12"), ["hi", "Ġ", "12"]);
    }
}

#[test]
fn llama3_takes_a_piece_that_is_a_token_even_if_no_merges_lead_there() {
    let other = |pre| small(pre).token("hello", NORMAL);
    assert_eq!(other(Some("llama-bpe")).pieces("hello"), ["hello"]);
    assert_eq!(other(Some("qwen2")).pieces("hello"), ["h", "e", "l", "l", "o"]);
}

#[test]
fn qwen2_takes_every_digit_by_itself_and_composes_letters() {
    let build = small(Some("qwen2"));
    assert_eq!(build.pieces("12-hi!!\n"), ["1", "2", "-hi", "!!Ċ"]);
    assert_eq!(build.pieces("e\u{301}"), ["Ã©"]);
    assert_eq!(small(Some("llama3")).pieces("e\u{301}"), ["e", "Ì", "ģ"]);
}

#[test]
fn control_tokens_are_special_and_user_defined_ones_are_not() {
    let build = small(Some("qwen2")).token("<|end|>", CONTROL).token("<tool>", USER_DEFINED);
    let tokenizer = build.tokenizer();
    let n = u32::try_from(build.tokens.len()).unwrap();
    let [end, tool] = [n - 2, n - 1];
    assert_eq!(build.pieces("hi<tool>hi"), ["hi", "<tool>", "hi"]);
    // The runtime makes no special tokens from text.
    assert!(!tokenizer.encode("<|end|>").unwrap().contains(&end));
    assert_eq!(tokenizer.decode(&[tool, end]).unwrap(), "<tool>");

    let json: serde_json::Value = serde_json::from_str(&tokenizer_json(&build.metadata()).unwrap()).unwrap();
    let added = json["added_tokens"].as_array().unwrap();
    let added: Vec<_> = added.iter().map(|t| (t["id"].as_u64(), t["special"].as_bool())).collect();
    assert_eq!(added, [(Some(end.into()), Some(true)), (Some(tool.into()), Some(false))]);
    assert!(json["post_processor"].is_null());
}

#[test]
fn refuses_other_kinds_of_tokenizers_by_name() {
    for model in ["bert", "t5", "rwkv"] {
        let other = with("tokenizer.ggml.model", Some(Value::String(model.into())));
        refuses(&other, &[&format!("is `{model}`"), "`gpt2`", "`llama`", "take a model"]);
    }
    refuses(&with("tokenizer.ggml.model", None), &["no key `tokenizer.ggml.model`", "again"]);
    refuses(&with("tokenizer.ggml.model", Some(Value::Unsigned(1))), &["is no string"]);
}

#[test]
fn refuses_an_unknown_pre_tokenizer_and_names_the_known_ones() {
    let names = ["`default`", "`gpt-2`", "`smollm`", "`llama-bpe`", "`llama-v3`", "`llama3`", "`qwen2`"];
    for pre in ["deepseek-llm", "Qwen2", ""] {
        let other = with("tokenizer.ggml.pre", Some(Value::String(pre.into())));
        refuses(&other, &[&[&*format!("is `{pre}`")], &names[..]].concat());
    }
    let odd = "\u{1b}[2J".repeat(100);
    let sentence = tokenizer_json(&with("tokenizer.ggml.pre", Some(Value::String(odd)))).unwrap_err();
    assert!(!sentence.contains('\u{1b}') && sentence.len() < 500, "{sentence}");
}

#[test]
fn refuses_lists_that_are_missing_or_of_other_things() {
    for key in ["tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type"] {
        refuses(&with(key, None), &[&format!("no key `{key}`"), "again"]);
        let bools = Array::Numbers { kind: ValueType::Bool, bytes: vec![0, 1] };
        refuses(&with(key, Some(Value::Array(bools))), &[key, "is no array of"]);
    }
}

#[test]
fn refuses_a_token_that_is_there_twice() {
    let twice = small(None).token("new", NORMAL).token("hi", NORMAL).metadata();
    refuses(&twice, &["tokens 256 and 270", "`hi`"]);
}

#[test]
fn refuses_types_that_do_not_fit_the_tokens() {
    let types = |n: usize, last: i32| {
        let types = [vec![NORMAL; n - 1], vec![last]].concat();
        let bytes = types.iter().flat_map(|ty| ty.to_le_bytes()).collect();
        let types = Value::Array(Array::Numbers { kind: ValueType::I32, bytes });
        with("tokenizer.ggml.token_type", Some(types))
    };
    let n = small(None).tokens.len();
    assert!(tokenizer_json(&types(n, NORMAL)).is_ok());
    refuses(&types(n - 1, NORMAL), &[&format!("{} elements for {n} tokens", n - 1)]);
    refuses(&types(n + 1, NORMAL), &[&format!("{} elements for {n} tokens", n + 1)]);
    for odd in [0, 7, -1] {
        refuses(&types(n, odd), &[&format!("token {} has type {odd}", n - 1)]);
    }
}

#[test]
fn refuses_merges_that_cannot_be() {
    let with_line = |line: &str| {
        let mut build = small(None);
        build.merges.push(line.into());
        build.metadata()
    };
    for line in ["hi", "", "h i !", "h  i"] {
        refuses(&with_line(line), &["line 13", "two tokens with a space between"]);
    }
    refuses(&with_line("nowhere hi"), &["line 13", "`nowhere hi`", "token `nowhere`"]);
    refuses(&with_line("hi nowhere"), &["line 13", "token `nowhere`"]);
    refuses(&with_line("hi hi"), &["line 13", "token `hihi`"]);
    refuses(&with_line(" hi"), &["line 13", "token ``"]);
    refuses(&with_line("h i"), &["line 13", "twice"]);
}
