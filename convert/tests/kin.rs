//! The kin of Llama: what transformers and llama.cpp compute with them, and the vocabularies of SentencePiece.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use saccade::config::{LlamaConfig, ModelConfig, RopeScaling};
use saccade::tokenize::TextTokenizer;
use saccade_convert::checkpoint::Checkpoint;
use saccade_convert::gguf::{Array, Value as Entry, ValueType, read_file, tokenizer_json};
use serde_json::{Value, json};
use support::Workshop;

const KIN: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kin")
}

/// A workshop with copies of everything.
fn workshop() -> Workshop {
    let shop = Workshop::new();
    for entry in fs::read_dir(fixtures()).unwrap() {
        let (from, name) = (entry.as_ref().unwrap().path(), entry.unwrap().file_name());
        if !from.is_dir() {
            fs::copy(&from, shop.path(name.to_str().unwrap())).unwrap();
            continue;
        }
        fs::create_dir(shop.dir.path().join(&name)).unwrap();
        for file in fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), shop.dir.path().join(&name).join(file.file_name())).unwrap();
        }
    }
    shop
}

fn change(shop: &Workshop, folder: &str, change: impl FnOnce(&mut Value)) {
    shop.edit(&format!("{folder}/config.json"), |bytes| {
        let mut config = serde_json::from_slice(bytes).unwrap();
        change(&mut config);
        *bytes = config.to_string().into_bytes();
    });
}

/// The report of `golden` on a folder or file.
fn report(shop: &Workshop, model: &str, golden: &str, precision: &str) -> Value {
    let args = ["golden", model, "--golden", golden, "--precision", precision, "--json"];
    serde_json::from_slice(&shop.run(&args).stdout).unwrap()
}

fn described(path: &Path) -> LlamaConfig {
    match Checkpoint::open(path).unwrap().model {
        ModelConfig::Llama(c) => c,
        other => panic!("{other:?}"),
    }
}

#[test]
fn transformers_and_llama_cpp_compute_the_same() {
    let shop = workshop();
    for name in KIN {
        let golden = format!("{name}.golden.safetensors");
        for model in [name.to_owned(), format!("{name}.gguf")] {
            let exact = report(&shop, &model, &golden, "f32");
            assert_eq!(exact["pass"], true, "{model}: {exact}");
            assert!(exact["tensors"][0]["max_rel"].as_f64().unwrap() < 1e-5, "{model}: {exact}");
            assert_eq!(exact["tensors"][1]["ids_equal"], true, "{model}: {exact}");
            // Random weights have small margins: nothing more than this can be promised of INT8.
            let int8 = report(&shop, &model, &golden, "int8");
            assert!(int8["logits"]["same_top"].as_f64().unwrap() > 0.85, "{model}: {int8}");
        }
    }
}

#[test]
fn what_is_compared_is_noticed_when_it_is_left_out() {
    // Each option of the four fixtures matters: without it the logits are others.
    type Without = fn(&mut Value);
    let cases: [(&str, Without); 3] = [
        ("llama", |c| c["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 10000.0})),
        ("mistral", |c| c["rope_parameters"]["factor"] = json!(2.0)),
        ("qwen2", |c| c["rope_parameters"]["attention_factor"] = json!(1.0)),
    ];
    for (name, without) in cases {
        let shop = workshop();
        change(&shop, name, without);
        let report = report(&shop, name, &format!("{name}.golden.safetensors"), "f32");
        assert!(report["tensors"][0]["max_rel"].as_f64().unwrap() > 1e-3, "{name}: {report}");
    }
}

#[test]
fn both_spellings_of_rotary_scaling_mean_the_same() {
    for name in KIN {
        let shop = workshop();
        let newer = described(&shop.path(name));
        change(&shop, name, |c| {
            let mut rope = c.as_object_mut().unwrap().remove("rope_parameters").unwrap();
            c["rope_theta"] = rope.as_object_mut().unwrap().remove("rope_theta").unwrap();
            let kind = rope.as_object_mut().unwrap().remove("rope_type").unwrap();
            if kind != "default" {
                rope["type"] = kind;
                c["rope_scaling"] = rope;
            }
        });
        assert_eq!(described(&shop.path(name)), newer, "{name}");
    }
}

#[test]
fn weights_of_yarn_are_those_of_transformers() {
    // `attention_factor`, or the weights of the logarithm: 0.1 ln 4 + 1 over 0.05 ln 4 + 1.
    let cases = [
        (json!({"attention_factor": 1.25}), 1.25),
        (json!({"mscale": 1.0, "mscale_all_dim": 0.5}), 1.064_821_6),
        (json!({"mscale": 1.0}), 1.138_629_4),
        (json!({"factor": null}), 1.138_629_4),
    ];
    for (more, expected) in cases {
        let shop = workshop();
        change(&shop, "qwen2", |c| {
            for (key, value) in more.as_object().unwrap() {
                c["rope_parameters"][key] = value.clone();
            }
        });
        let RopeScaling::Yarn { amplitude, factor, .. } = described(&shop.path("qwen2")).decoder.rope_scaling
        else {
            panic!("{more}")
        };
        assert!((amplitude - expected).abs() <= 1e-6 && factor == 4.0, "{more}: {amplitude} {factor}");
    }
}

#[test]
fn what_cannot_be_converted_is_a_sentence() {
    type Change = fn(&mut Value);
    let cases: [(&str, &str, Change); 9] = [
        ("llama", "has the type `longrope`", |c| c["rope_parameters"]["rope_type"] = json!("longrope")),
        ("llama", "field `low_freq_factor` is missing", |c| {
            drop(c["rope_parameters"].as_object_mut().unwrap().remove("low_freq_factor"));
        }),
        ("llama", "`partial_rotary_factor` is 0.5", |c| {
            c["rope_parameters"]["partial_rotary_factor"] = json!(0.5)
        }),
        ("qwen2", "`truncate` of its rotary scaling", |c| c["rope_parameters"]["truncate"] = json!(false)),
        ("mistral", "`sliding_window` is 128, below the 256", |c| c["sliding_window"] = json!(128)),
        ("mistral", "`sliding_window` is 4096, below the 8192", |c| {
            c["max_position_embeddings"] = json!(8192);
            drop(c.as_object_mut().unwrap().remove("sliding_window"));
        }),
        ("qwen3", "`sliding_window` is 64, below the 256", |c| {
            c["use_sliding_window"] = json!(true);
            c["sliding_window"] = json!(64);
        }),
        ("qwen2", "`num_key_value_heads` is missing", |c| {
            drop(c.as_object_mut().unwrap().remove("num_key_value_heads"));
        }),
        ("qwen3", "field `head_dim` is missing", |c| drop(c.as_object_mut().unwrap().remove("head_dim"))),
    ];
    for (name, words, with) in cases {
        let shop = workshop();
        change(&shop, name, with);
        shop.refuses(&["convert", name, "out"], &[words]);
    }
    let shop = workshop();
    fs::write(shop.path("mistral/added_tokens.json"), "{}").unwrap();
    shop.refuses(
        &["convert", "mistral", "out"],
        &["added_tokens.json", "save the tokenizer as tokenizer.json"],
    );
    for end in [0, 1, 100, 3000] {
        let shop = workshop();
        shop.edit("mistral/tokenizer.model", |bytes| bytes.truncate(end));
        shop.refuses(&["convert", "mistral", "out"], &["tokenizer.model"]);
    }
}

/// The tokenizers of the GGUF file and of the folder.
fn tokenizers() -> [TextTokenizer; 2] {
    let gguf = Checkpoint::open(&fixtures().join("mistral.gguf")).unwrap();
    let folder = Checkpoint::open(&fixtures().join("mistral")).unwrap();
    [gguf, folder].map(|c| TextTokenizer::from_bytes(c.tokenizer.as_bytes(), &c.model).unwrap())
}

#[test]
fn pieces_are_those_of_sentencepiece_and_llama_cpp() {
    let stored: Vec<Value> =
        serde_json::from_slice(&fs::read(fixtures().join("pieces.json")).unwrap()).unwrap();
    assert!(stored.len() > 30);
    for tokenizer in tokenizers() {
        for one in &stored {
            let text = one["text"].as_str().unwrap();
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(json!(ids), one["sentencepiece"], "{text:?}");
            assert_eq!(json!(ids), one["llama.cpp"], "{text:?}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), text.replace('\u{2581}', " "), "{text:?}");
        }
    }
}

#[test]
fn a_text_of_pieces_begins_with_the_first_token_unless_a_file_says_otherwise() {
    let shop = workshop();
    for model in ["mistral", "mistral.gguf"] {
        assert_eq!(described(&shop.path(model)).bos, Some(1), "{model}");
    }
    fs::write(shop.path("mistral/tokenizer_config.json"), r#"{"add_bos_token": false}"#).unwrap();
    assert_eq!(described(&shop.path("mistral")).bos, None);
    assert_eq!(described(&shop.path("llama")).bos, None);
}

/// The metadata of the GGUF file, which has pieces.
fn metadata() -> BTreeMap<String, Entry> {
    read_file(&fixtures().join("mistral.gguf")).unwrap().metadata
}

#[test]
fn a_vocabulary_of_pieces_that_cannot_be_is_refused() {
    let tokens = |change: fn(&mut Vec<String>)| {
        let mut metadata = metadata();
        let Some(Entry::Array(Array::Strings(tokens))) = metadata.get_mut("tokenizer.ggml.tokens") else {
            panic!("no tokens")
        };
        change(tokens);
        metadata
    };
    let numbers = |key: &str, kind: ValueType, at: usize, number: [u8; 4]| {
        let mut metadata = metadata();
        let Some(Entry::Array(Array::Numbers { kind: found, bytes })) = metadata.get_mut(key) else {
            panic!("no numbers")
        };
        assert_eq!(*found, kind);
        bytes[4 * at..4 * at + 4].copy_from_slice(&number);
        metadata
    };
    let types = |at, ty: i32| numbers("tokenizer.ggml.token_type", ValueType::I32, at, ty.to_le_bytes());
    let scores = |at, score: f32| numbers("tokenizer.ggml.scores", ValueType::F32, at, score.to_le_bytes());
    let mut no_scores = metadata();
    no_scores.remove("tokenizer.ggml.scores");
    let mut bad_flag = metadata();
    bad_flag.insert("tokenizer.ggml.add_space_prefix".into(), Entry::Unsigned(1));
    for (metadata, words) in [
        (no_scores, "no key `tokenizer.ggml.scores`"),
        (bad_flag, "`tokenizer.ggml.add_space_prefix` is no bool"),
        (tokens(|t| drop(t.pop())), "scores are 416, its pieces 415"),
        (tokens(|t| t[300] = t[299].clone()), "pieces 299 and 300 are both"),
        (tokens(|t| t[300].clear()), "piece 300, ``, is empty"),
        (tokens(|t| t[300] = "x".repeat(257)), "longer than any"),
        (tokens(|t| t[3] = "<0xZZ>".into()), "piece for the byte 0x00 is missing"),
        (types(300, 0), "piece 300"),
        (types(300, 7), "has type 7"),
        (types(382, 4), "is defined by its user and has a space"),
        (scores(300, f32::NAN), "no number"),
    ] {
        let sentence = tokenizer_json(&metadata).unwrap_err();
        assert!(sentence.contains(words) && sentence.contains(';'), "`{sentence}` does not say `{words}`");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn texts_of_pieces_survive_the_way_there_and_back(text in "[ a-zäß🦀日\\n1-9]{0,40}") {
        for tokenizer in tokenizers() {
            prop_assert_eq!(&tokenizer.decode(&tokenizer.encode(&text).unwrap()).unwrap(), &text);
        }
    }

    #[test]
    fn a_model_of_pieces_with_other_bytes_is_refused_or_read(
        at in any::<prop::sample::Index>(), bytes in prop::collection::vec(any::<u8>(), 0..4),
    ) {
        let shop = workshop();
        shop.edit("mistral/tokenizer.model", |file| {
            let at = at.index(file.len());
            let end = (at + bytes.len()).min(file.len());
            file.splice(at..end, bytes);
        });
        if let Err(error) = Checkpoint::open(&shop.path("mistral")) {
            let sentence = format!("{:#}", anyhow::Error::from(error));
            prop_assert!(!sentence.contains('\n') && sentence.len() < 2000, "{}", sentence);
        }
    }
}
