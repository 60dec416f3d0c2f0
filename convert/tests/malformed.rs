//! Files that are built to break readers, class by class: what has once broken another implementation is refused here in a sentence.
//!
//! | class | what happened elsewhere | here |
//! |---|---|---|
//! | counts of entries, strings, elements, tensors that wrap or are not there | CVE-2024-23605, -21825, -21836, -25664 to -25668 | `gguf.rs`: `rejects_counts_that_the_file_cannot_hold`; `gguf_bomb.rs` |
//! | dimensions that overflow, or too many | CVE-2024-21802 | `gguf.rs`: `rejects_ranks_and_dimensions_that_make_no_tensor`, `rejects_sizes_that_wrap` |
//! | a string's length plus one wraps; a length is allocated as it is announced | CVE-2024-23496, CVE-2025-66960 | `gguf.rs`: `rejects_string_lengths_beyond_the_file`; `gguf_bomb.rs` |
//! | the sizes of all tensors, padded, wrap when they are added | CVE-2025-53630, CVE-2026-27940 | `sizes_that_wrap_only_when_they_are_added_are_refused` |
//! | a tensor's bytes wrap to a few | CVE-2026-33298 | `gguf.rs`: `rejects_sizes_that_wrap` |
//! | offset and size are not held against the file | CVE-2026-7482 | `gguf.rs`: `rejects_tensors_that_are_misaligned_or_outside`, `rejects_a_file_cut_anywhere` |
//! | a zero dimension, padding that wraps to nothing, a type's size before its blocks | claimed against llama.cpp | `gguf.rs`: `rejects_ranks_and_dimensions_that_make_no_tensor`, `rejects_sizes_that_wrap`, `rejects_rows_of_partial_blocks` |
//! | counts in the description: zero blocks or heads, more blocks than any model has, widths that do not divide | CVE-2024-8063; claimed | `descriptions_that_no_model_has_are_refused` |
//! | the vocabulary: tokens of any length, byte tokens that are no bytes, types that are none, ids outside | CVE-2025-49847; `<0x-1>` | `vocabularies_that_are_none_are_refused`; `gguf_tokenizer.rs` |
//! | the size of a text is compared as a signed number | CVE-2025-52566 | `texts_of_any_length_are_cut` |
//! | scans that are quadratic in a count of the file | llama.cpp's checks for duplicates | `gguf_bomb.rs` |
//! | a path in a file leaves the folder: `..`, absolute, a folder, a device | CVE-2022-25882, CVE-2024-27318 | `an_index_stays_in_its_folder` |
//! | a file that is a program: pickles | | `a_pickle_is_refused_unread` |
//! | JSON nested without end | | `json_nested_without_end_is_refused` |
//! | expressions that backtrack without end | | `an_expression_that_backtracks_ends` |
//!
//! Links out of the folder are followed: folders of the hub's own cache consist of nothing else. Nothing in a checkpoint is written to, and
//! a converted bundle names plain files alone. (CVE-2026-27489, -34446, -34447 are of readers that take links for containment.)

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/gguf.rs"]
mod gguf;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use gguf::Builder;
use saccade::config::{ModelConfig, nano};
use saccade::tokenize::TextTokenizer;
use saccade_convert::gguf::{read, tokenizer_json};
use serde_json::{Value, json};
use support::Workshop;

/// A workshop with the tiny llama, as a folder and as a GGUF file.
fn workshop() -> Workshop {
    let shop = Workshop::new();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama");
    fs::create_dir(shop.path("tiny")).unwrap();
    for entry in fs::read_dir(fixtures.join("tiny")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), shop.path("tiny").join(entry.file_name())).unwrap();
    }
    fs::copy(fixtures.join("tiny.gguf"), shop.path("tiny.gguf")).unwrap();
    shop
}

/// Asserts that the file is refused with these words when a U32 of its metadata is another.
fn refuses_number(key: &str, value: u32, words: &[&str]) {
    let shop = workshop();
    shop.edit("tiny.gguf", |bytes| {
        let at = bytes.windows(key.len()).position(|window| window == key.as_bytes()).unwrap() + key.len();
        assert_eq!(bytes[at..at + 4], 4u32.to_le_bytes(), "`{key}` is no U32");
        bytes[at + 4..at + 8].copy_from_slice(&value.to_le_bytes());
    });
    shop.refuses(&["convert", "tiny.gguf", "out"], &[&["tiny.gguf"], words].concat());
}

#[test]
fn sizes_that_wrap_only_when_they_are_added_are_refused() {
    // Each fits 64 bits; together with their padding they come to a few bytes.
    for (first, second) in [(1u64 << 63, 1u64 << 63), (u64::MAX - 31, 64), (i64::MAX as u64 - 31, 1 << 63)] {
        let file = Builder::default()
            .tensor("a", &[first], 24, 0)
            .tensor("b", &[second], 24, first.next_multiple_of(32))
            .file(32, 64);
        let sentence = read(&*file, file.len() as u64).unwrap_err().to_string();
        assert!(sentence.contains("tensor `"), "{sentence}");
    }
}

#[test]
fn descriptions_that_no_model_has_are_refused() {
    for (key, value, words) in [
        ("llama.block_count", 0, "n_layers"),
        ("llama.block_count", 513, "n_layers"),
        ("llama.block_count", u32::MAX, "n_layers"),
        ("llama.attention.head_count", 0, "head"),
        ("llama.attention.head_count", u32::MAX, "head"),
        ("llama.attention.head_count_kv", 0, "n_kv_heads"),
        ("llama.attention.head_count_kv", 3, "n_kv_heads"),
        ("llama.embedding_length", 0, "head"),
        ("llama.embedding_length", u32::MAX, "head"),
        ("llama.feed_forward_length", 0, "d_ff"),
        ("llama.feed_forward_length", u32::MAX, "d_ff"),
        ("llama.context_length", 0, "max_new_tokens"),
        ("tokenizer.ggml.eos_token_id", u32::MAX, "leaves the vocabulary"),
    ] {
        refuses_number(key, value, &[words]);
    }
    for (field, value, words) in [
        ("num_hidden_layers", json!(0), "n_layers"),
        ("num_hidden_layers", json!(513), "n_layers"),
        ("num_attention_heads", json!(0), "n_heads"),
        ("head_dim", json!(0), "head_dim"),
        ("head_dim", json!(7), "head_dim"),
        ("hidden_size", json!(u64::MAX), "d_model"),
        ("hidden_size", json!(-64), "hidden_size"),
        ("vocab_size", json!(0), "vocab_size"),
        ("vocab_size", json!(1u64 << 40), "vocab_size"),
        ("rms_norm_eps", json!(0.0), "norm_eps"),
        ("rope_theta", json!(-1.0), "rope_theta"),
        ("max_position_embeddings", json!(0), "max_new_tokens"),
        ("eos_token_id", json!([1, 1_000_000]), "leaves the vocabulary"),
    ] {
        let shop = workshop();
        // It would go before that of the configuration.
        fs::remove_file(shop.path("tiny/generation_config.json")).unwrap();
        change(&shop, "tiny/config.json", |config| config[field] = value.clone());
        shop.refuses(&["convert", "tiny", "out"], &["config.json", words]);
    }
}

fn change(shop: &Workshop, name: &str, change: impl FnOnce(&mut Value)) {
    shop.edit(name, |bytes| {
        let mut value = serde_json::from_slice(bytes).unwrap();
        change(&mut value);
        *bytes = value.to_string().into_bytes();
    });
}

#[test]
fn vocabularies_that_are_none_are_refused() {
    let tokenizer = |model: &str, tokens: &[&str], types: &[i32]| {
        let types: Vec<u8> = types.iter().flat_map(|ty| ty.to_le_bytes()).collect();
        let scores = vec![0; types.len()];
        let file = Builder::default()
            .entry("tokenizer.ggml.model", 8, &gguf::string(model))
            .strings("tokenizer.ggml.tokens", tokens)
            .array("tokenizer.ggml.token_type", 5, types.len() as u64 / 4, &types)
            .array("tokenizer.ggml.scores", 6, scores.len() as u64 / 4, &scores)
            .strings("tokenizer.ggml.merges", &[])
            .header();
        let gguf = read(&*file, file.len() as u64).unwrap();
        tokenizer_json(&gguf.metadata)
    };
    // A byte piece of SentencePiece that is no byte stands for none, beside the 256 it is a piece that no text becomes.
    let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let mut pieces: Vec<&str> = bytes.iter().map(String::as_str).collect();
    pieces.push("<0x-1>");
    let mut few = pieces.clone();
    few.remove(0x41);
    assert!(tokenizer("llama", &few, &[6; 256]).unwrap_err().contains("byte 0x41 is missing"));
    let json = tokenizer("llama", &pieces, &[6; 257]).unwrap();
    let text = TextTokenizer::from_bytes(json.as_bytes(), &nano().into()).unwrap();
    assert!(text.encode("<0x-1> \u{1}").unwrap().iter().all(|&id| id < 256));
    assert!(tokenizer("gpt2", &["a", "b"], &[1]).unwrap_err().contains("token_type"));
    assert!(tokenizer("gpt2", &["a"], &[i32::MIN]).unwrap_err().contains("known are 1 to 6"));
    // A token of the type "byte", or of any length, is a token like others, and text does not become it by its spelling's value.
    let long = "x".repeat(1 << 20);
    let json = tokenizer("gpt2", &["<0x-1>", &long, "a"], &[6, 3, 1]).unwrap();
    let text = TextTokenizer::from_bytes(json.as_bytes(), &nano().into()).unwrap();
    assert_eq!(text.encode("a").unwrap(), [2]);
    // Fewer ids in the model than in the vocabulary.
    let ModelConfig::Unimodal(mut few) = nano().into() else { panic!("another family") };
    few.tokens.text = [0, 2];
    let sentence = TextTokenizer::from_bytes(json.as_bytes(), &few.into()).unwrap_err();
    assert!(sentence.contains("text tokens end at 2"), "{sentence}");
}

#[test]
fn texts_of_any_length_are_cut() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama");
    let json = fs::read(fixtures.join("tiny/tokenizer.json")).unwrap();
    let text = TextTokenizer::from_bytes(&json, &nano().into()).unwrap();
    for long in
        ["a".repeat(1 << 18), "12 ".repeat(1 << 17), "\u{1f600}".repeat(1 << 16), "\0".repeat(1 << 16)]
    {
        let ids = text.encode(&long).unwrap();
        assert_eq!(text.decode(&ids).unwrap(), long);
    }
}

#[test]
fn an_index_stays_in_its_folder() {
    for name in ["../tiny.safetensors", "/etc/passwd", "a/b", "..", ".", "", ".hidden", "a\\b"] {
        let shop = workshop();
        change(&shop, "tiny/model.safetensors.index.json", |index| {
            index["weight_map"]["lm_head.weight"] = json!(name);
        });
        shop.refuses(&["convert", "tiny", "out"], &["tiny/"]);
    }
    // A folder where a shard should be, and a device that never ends.
    let shop = workshop();
    let shard = shop.path("tiny/model-00002-of-00002.safetensors");
    fs::remove_file(&shard).unwrap();
    fs::create_dir(&shard).unwrap();
    shop.refuses(&["convert", "tiny", "out"], &["model-00002-of-00002.safetensors"]);
    #[cfg(unix)]
    for name in ["config.json", "tokenizer.json", "model.safetensors.index.json"] {
        let shop = workshop();
        let path = shop.path("tiny").join(name);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        let sentence = shop.run(&["convert", "tiny", "out"]);
        let sentence = String::from_utf8_lossy(&sentence.stderr).into_owned();
        assert!(sentence.contains(name) && sentence.contains("no regular file"), "{sentence}");
    }
}

#[test]
fn a_pickle_is_refused_unread() {
    let shop = workshop();
    // A pickle of protocol 2 that would call os.system.
    fs::write(shop.path("model.pt"), b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.").unwrap();
    shop.refuses(&["convert", "model.pt", "out"], &["model.pt"]);
    fs::remove_file(shop.path("tiny/model.safetensors.index.json")).unwrap();
    fs::write(shop.path("tiny/pytorch_model.bin"), b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.").unwrap();
    shop.refuses(&["convert", "tiny", "out"], &["(.bin, .pth)", "safetensors first"]);
}

#[test]
fn json_nested_without_end_is_refused() {
    const DEEP: usize = 200_000;
    let nested = format!("{}{}", "[".repeat(DEEP), "]".repeat(DEEP));
    for (name, text, words) in [
        ("config.json", format!("{{\"model_type\":{nested}}}"), "recursion limit"),
        ("model.safetensors.index.json", format!("{{\"weight_map\":{nested}}}"), "expected a map"),
        ("tokenizer.json", format!("{{\"normalizer\":{nested}}}"), "recursion limit"),
        (
            "tokenizer.json",
            format!(
                "{{\"normalizer\":{}null{}}}",
                "{\"type\":\"Sequence\",\"normalizers\":[".repeat(DEEP),
                "]}".repeat(DEEP)
            ),
            "recursion limit",
        ),
    ] {
        let shop = workshop();
        fs::write(shop.path("tiny").join(name), text).unwrap();
        shop.refuses(&["convert", "tiny", "out"], &[name, words]);
    }
    let shop = workshop();
    let header = format!("{{\"__metadata__\":{nested}}}");
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    fs::write(shop.path("tiny/model-00001-of-00002.safetensors"), file).unwrap();
    shop.refuses(&["convert", "tiny", "out"], &["model-00001-of-00002.safetensors"]);
}

#[test]
fn a_tokenizer_that_is_no_json_is_refused() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama");
    let whole = fs::read_to_string(fixtures.join("tiny/tokenizer.json")).unwrap();
    let decoder = whole.find("\"decoder\"").unwrap();
    let brace = decoder + whole[decoder..].find('{').unwrap() + 1;
    // What is inside is read by a library that expects it to be well-formed.
    for bad in [
        whole[..brace].to_owned(),
        format!("{}\"type\" 1{}", &whole[..brace], &whole[brace..]),
        format!("{}\"{}", &whole[..brace], &whole[brace..]),
    ] {
        let shop = workshop();
        fs::write(shop.path("tiny/tokenizer.json"), bad).unwrap();
        shop.refuses(&["convert", "tiny", "out"], &["tokenizer.json", "no tokenizer: ", "line"]);
    }
}

#[test]
fn an_expression_that_backtracks_ends() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama");
    let mut json: Value =
        serde_json::from_slice(&fs::read(fixtures.join("tiny/tokenizer.json")).unwrap()).unwrap();
    // Looking ahead needs the engine that goes back, and each `a` doubles the ways.
    json["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "(a|a)*(?=b)c"}, "behavior": "Isolated", "invert": false});
    let text = TextTokenizer::from_bytes(json.to_string().as_bytes(), &nano().into()).unwrap();
    let start = Instant::now();
    let _ = text.encode(&"a".repeat(4000));
    // A test machine is shared; without a limit it would take longer than there is time.
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}
