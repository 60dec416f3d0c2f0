//! What verify and inspect refuse.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use saccade_convert::verify::verify;
use support::Workshop;

fn converted() -> Workshop {
    let shop = Workshop::new();
    shop.succeeds(&["convert", "tiny.safetensors", "tiny"]);
    shop
}

#[test]
fn refuses_a_bundle_with_any_bit_flipped() {
    let shop = converted();
    for name in ["saccade.json", "tokenizer.json", "weights.safetensors"] {
        let path = shop.path("tiny").join(name);
        let good = fs::read(&path).unwrap();
        // A prime step, so that every bit of a byte and every part of the file has its turn.
        for (i, at) in (0..good.len()).step_by(good.len() / 61 + 1).enumerate() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (i % 8);
            fs::write(&path, &bad).unwrap();
            assert!(verify(&shop.path("tiny")).is_err(), "{name}: bit {} of byte {at}", i % 8);
        }
        fs::write(&path, &good).unwrap();
    }
    verify(&shop.path("tiny")).unwrap();
}

#[test]
fn refuses_a_bundle_whose_files_are_cut_grown_or_gone() {
    let shop = converted();
    for name in ["tokenizer.json", "weights.safetensors"] {
        let path = shop.path("tiny").join(name);
        let good = fs::read(&path).unwrap();
        fs::write(&path, &good[..good.len() / 2]).unwrap();
        shop.refuses(&["verify", "tiny"], &[name, "expected", "copy the bundle again"]);
        fs::write(&path, [&good[..], b"x"].concat()).unwrap();
        shop.refuses(&["verify", "tiny"], &[name, "expected"]);
        fs::remove_file(&path).unwrap();
        shop.refuses(&["verify", "tiny"], &[name, "missing"]);
        fs::write(&path, &good).unwrap();
    }
    shop.edit("tiny/saccade.json", |bytes| bytes.truncate(bytes.len() / 2));
    for verb in ["verify", "inspect"] {
        shop.refuses(&[verb, "tiny"], &["saccade.json"]);
    }
    fs::remove_file(shop.path("tiny/saccade.json")).unwrap();
    for verb in ["verify", "inspect"] {
        shop.refuses(&[verb, "tiny"], &["saccade.json", "no bundle"]);
    }
}

#[test]
fn refuses_a_bundle_with_foreign_weights() {
    let shop = converted();
    fs::copy(shop.path("tiny.safetensors"), shop.path("tiny/weights.safetensors")).unwrap();
    shop.refuses(&["verify", "tiny"], &["weights.safetensors"]);
    shop.refuses(&["inspect", "tiny"], &["weights.safetensors", "4096"]);
}

#[test]
fn names_the_file_whose_hash_differs() {
    let shop = converted();
    shop.edit("tiny/weights.safetensors", |bytes| *bytes.last_mut().unwrap() ^= 1);
    let sentence =
        shop.refuses(&["verify", "tiny"], &["weights.safetensors", "BLAKE3", "damaged or changed"]);
    assert!(!sentence.contains("tokenizer.json"));
}

#[test]
fn verifies_single_files_by_the_rules_of_their_container() {
    let shop = Workshop::new();
    assert!(shop.succeeds(&["verify", "tiny.safetensors"]).contains("tensors"));
    fs::write(shop.path("model.gguf"), [&b"GGUF\x03\0\0\0"[..], &[0; 16]].concat()).unwrap();
    assert!(shop.succeeds(&["verify", "model.gguf"]).contains("GGUF version 3, 0 tensors"));
    shop.edit("model.gguf", |bytes| bytes.truncate(20));
    shop.refuses(&["verify", "model.gguf"], &["model.gguf", "offset 16", "fetch it again"]);
    fs::copy(shop.path("tiny.safetensors"), shop.path("renamed.gguf")).unwrap();
    shop.refuses(&["verify", "renamed.gguf"], &["renamed.gguf", "no GGUF file"]);
    fs::write(shop.path("notes.txt"), "Dear reader, this is prose.").unwrap();
    shop.refuses(&["verify", "notes.txt"], &["notes.txt", "not a safetensors file"]);
    shop.edit("tiny.safetensors", |bytes| bytes.truncate(bytes.len() - 2));
    shop.refuses(&["verify", "tiny.safetensors"], &["tiny.safetensors", "cut off"]);
    shop.refuses(&["verify", "none.safetensors"], &["none.safetensors"]);
    shop.refuses(&["inspect", "tiny.safetensors"], &["tiny.safetensors"]);
}
