//! Folders of the hub's layout and GGUF files: what they become, that llama.cpp computes the same, and what is refused.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use saccade::engine::EngineOptions;
use saccade::family::Model;
use saccade::tokenize::Message;
use serde_json::{Value, json};
use support::Workshop;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama")
}

/// A workshop with copies of the folder `tiny`, `tiny.gguf` and `golden.safetensors`.
fn workshop() -> Workshop {
    let shop = Workshop::new();
    fs::create_dir(shop.path("tiny")).unwrap();
    for entry in fs::read_dir(fixtures().join("tiny")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), shop.path("tiny").join(entry.file_name())).unwrap();
    }
    for name in ["tiny.gguf", "golden.safetensors"] {
        fs::copy(fixtures().join(name), shop.path(name)).unwrap();
    }
    shop
}

fn change_json(shop: &Workshop, name: &str, change: impl FnOnce(&mut Value)) {
    shop.edit(name, |bytes| {
        let mut value = serde_json::from_slice(bytes).unwrap();
        change(&mut value);
        *bytes = value.to_string().into_bytes();
    });
}

#[test]
fn a_folder_and_a_gguf_file_of_one_model_become_the_same_weights() {
    let shop = workshop();
    for dtype in ["int8", "f32"] {
        let [hub, gguf] = ["hub", "gguf"].map(|kind| format!("{kind}-{dtype}"));
        shop.succeeds(&["convert", "tiny", &hub, "--dtype", dtype]);
        shop.succeeds(&["convert", "tiny.gguf", &gguf, "--dtype", dtype]);
        let weights = |bundle: &str| fs::read(shop.path(bundle).join("weights.safetensors")).unwrap();
        assert!(weights(&hub) == weights(&gguf), "{dtype}: the weights differ");
        let open = |bundle: &str| Model::open(shop.path(bundle), &EngineOptions::default()).unwrap();
        let (hub, gguf) = (open(&hub), open(&gguf));
        let talk =
            [Message::text("system", "be <|im_end|> brief"), Message::text("user", "the ring, über 12 😀")];
        let ids = hub.text().unwrap().encode_chat(&talk).unwrap();
        assert_eq!(ids, gguf.text().unwrap().encode_chat(&talk).unwrap(), "{dtype}");
        assert_eq!(
            (ids[0], ids.iter().filter(|&&id| id == 2).count()),
            (1, 2),
            "what is typed stays text: {ids:?}"
        );
    }
}

#[test]
fn llama_cpp_computes_the_same() {
    let shop = workshop();
    for model in ["tiny", "tiny.gguf"] {
        for precision in ["f32", "int8"] {
            let said = shop.succeeds(&[
                "golden",
                model,
                "--golden",
                "golden.safetensors",
                "--precision",
                precision,
                "--json",
            ]);
            let report: Value = serde_json::from_str(&said).unwrap();
            assert_eq!(report["pass"], true, "{model} {precision}: {report}");
            let names: Vec<_> =
                report["tensors"].as_array().unwrap().iter().map(|t| t["name"].clone()).collect();
            assert_eq!(names, ["logits", "generated"]);
            if precision == "f32" {
                assert!(report["tensors"][0]["max_rel"].as_f64().unwrap() < 1e-5, "{report}");
                assert_eq!(report["tensors"][1]["ids_equal"], true, "{report}");
            }
        }
    }
}

#[test]
fn transformers_computes_the_same_with_published_families() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf");
    let shop = Workshop::new();
    let compared = [
        ("chameleon", &["pixel_values", "image_tokens", "logits", "generated"][..]),
        (
            "janus",
            &["pixel_values", "image_features", "logits", "generated", "drawn_image_tokens", "drawn_pixels"],
        ),
        (
            "emu3",
            &[
                "pixel_values",
                "image_codes",
                "image_tokens",
                "image_decoded",
                "video_codes",
                "video_decoded",
                "logits",
                "generated",
                "drawn_image_tokens",
                "drawn_pixels",
            ],
        ),
    ];
    for (family, tensors) in compared {
        let folder = fixtures.join(family).to_string_lossy().into_owned();
        let golden = format!("{folder}/golden.safetensors");
        let run = |precision| {
            let output =
                shop.run(&["golden", &folder, "--golden", &golden, "--precision", precision, "--json"]);
            serde_json::from_slice::<Value>(&output.stdout).unwrap()
        };
        let report = run("f32");
        let names: Vec<_> =
            report["tensors"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
        assert_eq!((names.as_slice(), &report["pass"]), (tensors, &json!(true)), "{family}: {report}");
        // Random weights have small margins: two of janus' 33 positions change places.
        let report = run("int8");
        let least = if family == "janus" { 0.93 } else { 0.95 };
        assert!(report["logits"]["same_top"].as_f64().unwrap() >= least, "{family}: {report}");
        assert_eq!(report["tensors"][0]["max_rel"], 0.0, "{family}: {report}");
    }
}

#[test]
fn golden_fails_on_another_value_on_nan_and_on_another_id() {
    let shop = workshop();
    let whole = fs::read(shop.path("golden.safetensors")).unwrap();
    let header = usize::try_from(u64::from_le_bytes(whole[..8].try_into().unwrap())).unwrap();
    let offsets: Value = serde_json::from_slice(&whole[8..8 + header]).unwrap();
    let at = |name: &str| {
        8 + header + usize::try_from(offsets[name]["data_offsets"][0].as_u64().unwrap()).unwrap()
    };
    // The first token of the continuation is another; a logit is off; a logit is NaN.
    let first = at("generated") + 8 * 29;
    let changes: [(usize, Vec<u8>); 3] = [
        (first, (i64::from_le_bytes(whole[first..first + 8].try_into().unwrap()) ^ 1).to_le_bytes().to_vec()),
        (at("logits"), 1.0f32.to_le_bytes().to_vec()),
        (at("logits") + 40, f32::NAN.to_le_bytes().to_vec()),
    ];
    for (at, bytes) in changes {
        let mut changed = whole.clone();
        changed[at..at + bytes.len()].copy_from_slice(&bytes);
        fs::write(shop.path("changed.safetensors"), changed).unwrap();
        let output = shop.run(&["golden", "tiny", "--golden", "changed.safetensors", "--json"]);
        assert_eq!(output.status.code(), Some(1), "byte {at}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["pass"], false, "byte {at}: {report}");
    }
}

#[test]
fn what_a_folder_lacks_or_has_wrong_is_a_sentence() {
    type Change = fn(&Workshop);
    let cases: [(&str, Change); 14] = [
        ("no config.json", |shop| fs::remove_file(shop.path("tiny/config.json")).unwrap()),
        ("model_type is `gpt_oss`, which cannot be converted; these can: anole, chameleon", |shop| {
            change_json(shop, "tiny/config.json", |c| c["model_type"] = json!("gpt_oss"));
        }),
        ("field `hidden_size` is missing", |shop| {
            change_json(shop, "tiny/config.json", |c| drop(c.as_object_mut().unwrap().remove("hidden_size")));
        }),
        ("field `num_hidden_layers`: invalid type", |shop| {
            change_json(shop, "tiny/config.json", |c| c["num_hidden_layers"] = json!("two"));
        }),
        ("n_kv_heads: 3 does not divide", |shop| {
            change_json(shop, "tiny/config.json", |c| c["num_key_value_heads"] = json!(3));
        }),
        ("`rope_scaling` has the type `dynamic`", |shop| {
            change_json(shop, "tiny/config.json", |c| c["rope_scaling"] = json!({"rope_type": "dynamic"}));
        }),
        ("tensor `layers.0.attn.q.bias`: it is missing", |shop| {
            change_json(shop, "tiny/config.json", |c| c["attention_bias"] = json!(true));
        }),
        ("model-00002-of-00002.safetensors: it is missing, and the index lists it", |shop| {
            fs::remove_file(shop.path("tiny/model-00002-of-00002.safetensors")).unwrap();
        }),
        ("no plain file name", |shop| {
            change_json(shop, "tiny/model.safetensors.index.json", |index| {
                index["weight_map"]["lm_head.weight"] = json!("../../etc/passwd");
            });
        }),
        ("neither model.safetensors nor model.safetensors.index.json", |shop| {
            fs::remove_file(shop.path("tiny/model.safetensors.index.json")).unwrap();
        }),
        ("tensor `layers.2.attn_norm.weight`: it is missing", |shop| {
            change_json(shop, "tiny/config.json", |c| c["num_hidden_layers"] = json!(3));
        }),
        ("tensor `model.layers.1.", |shop| {
            change_json(shop, "tiny/config.json", |c| c["num_hidden_layers"] = json!(1));
        }),
        ("does not match the model's [96, 64]", |shop| {
            change_json(shop, "tiny/config.json", |c| c["intermediate_size"] = json!(96));
        }),
        ("tokenizer.json: token", |shop| {
            change_json(shop, "tiny/tokenizer.json", |t| t["model"]["vocab"]["z"] = json!(100_000));
        }),
    ];
    for (words, change) in cases {
        let shop = workshop();
        change(&shop);
        shop.refuses(&["convert", "tiny", "out"], &[words]);
    }
}

#[test]
fn a_tensor_of_another_type_is_named() {
    let shop = workshop();
    shop.edit("tiny/model-00001-of-00002.safetensors", |bytes| {
        let at = bytes.windows(5).position(|w| w == b"\"F32\"").unwrap();
        bytes[at..at + 5].copy_from_slice(b"\"I32\"");
    });
    shop.refuses(&["convert", "tiny", "out"], &["tensor `embed.weight`", "dtype I32 cannot be converted"]);
}

#[test]
fn a_gguf_file_of_another_architecture_is_named() {
    let shop = workshop();
    shop.edit("tiny.gguf", |bytes| {
        let key = b"general.architecture";
        let at = bytes.windows(key.len()).position(|w| w == key).unwrap() + key.len() + 4 + 8;
        assert_eq!(&bytes[at..at + 5], b"llama");
        bytes[at..at + 5].copy_from_slice(b"mamba");
    });
    shop.refuses(&["convert", "tiny.gguf", "out"], &["its architecture is `mamba`"]);
}

#[test]
fn golden_refuses_what_it_cannot_compare() {
    let shop = workshop();
    shop.succeeds(&["convert", "tiny", "bundle"]);
    shop.refuses(&["golden", "bundle", "--golden", "golden.safetensors"], &["the bundle is Int8, not F32"]);
    shop.refuses(&["golden", "tiny", "--golden", "tiny.safetensors"], &["it has no `input_ids`"]);
    shop.refuses(&["golden", "tiny", "--golden", "nothing"], &["nothing"]);
}

#[test]
fn a_configuration_and_an_index_are_enough_for_a_plan() {
    let shop = workshop();
    for name in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "tokenizer.json"] {
        fs::remove_file(shop.path("tiny").join(name)).unwrap();
    }
    let before = shop.listing();
    let plan = shop.succeeds(&["convert", "tiny", "out", "--dry-run"]);
    for words in ["120768 parameters in 53 tensors", "MiB while it runs", "Jetson Orin Nano 8GB", "fits"] {
        assert!(plan.contains(words), "{plan}");
    }
    assert_eq!(shop.listing(), before);
    shop.refuses(&["convert", "tiny", "out"], &["tokenizer.json"]);
    change_json(&shop, "tiny/model.safetensors.index.json", |index| {
        index["weight_map"].as_object_mut().unwrap().remove("model.layers.1.mlp.up_proj.weight");
    });
    shop.refuses(
        &["convert", "tiny", "out", "--dry-run"],
        &["tensor `layers.1.ffn.up.weight`: it is missing"],
    );
}
