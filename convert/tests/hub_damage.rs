//! Damaged folders of the hub's layout: whatever stands in their files, opening one gives a checkpoint or a sentence.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use saccade_convert::checkpoint::Checkpoint;
use serde_json::{Value, json};
use tempfile::TempDir;

const FAMILIES: [&str; 6] = ["llama/tiny", "kin/llama", "kin/qwen2", "hf/janus", "hf/chameleon", "hf/emu3"];

fn copy(family: &str) -> (TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(family);
    let mut texts = Vec::new();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = dir.path().join(entry.file_name());
        fs::copy(entry.path(), &to).unwrap();
        if to.extension().is_some_and(|end| end == "json") {
            texts.push(to);
        }
    }
    texts.sort();
    (dir, texts)
}

/// Opens the folder, whole and as a plan; a refusal must be one sentence.
fn open(dir: &Path) {
    for opened in [Checkpoint::open(dir), Checkpoint::open_plan(dir)] {
        if let Err(error) = opened {
            let sentence = format!("{:#}", anyhow::Error::from(error));
            assert!(!sentence.is_empty() && !sentence.contains('\n') && sentence.len() < 2000, "{sentence}");
        }
    }
}

/// Values that a field may be replaced by.
fn odd(choice: usize) -> Value {
    let odd = [
        json!(null),
        json!(0),
        json!(1),
        json!(-1),
        json!(3),
        json!(65_536),
        json!(4_294_967_296_u64),
        json!(u64::MAX),
        json!(1e300),
        json!(-0.5),
        json!(true),
        json!(""),
        json!("../../etc/passwd"),
        json!([]),
        json!([1, 2, 3]),
        json!({}),
    ];
    odd[choice % odd.len()].clone()
}

/// Replaces the `n`th of all values inside `value`.
fn replace(value: &mut Value, n: &mut usize, by: &Value) -> bool {
    let inside: Vec<&mut Value> = match value {
        Value::Object(map) => map.values_mut().collect(),
        Value::Array(list) => list.iter_mut().collect(),
        _ => return false,
    };
    for value in inside {
        if *n == 0 {
            *value = by.clone();
            return true;
        }
        *n -= 1;
        if replace(value, n, by) {
            return true;
        }
    }
    false
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_file_with_another_value_is_refused_or_read(
        family in 0..FAMILIES.len(), file in any::<prop::sample::Index>(), at in 0..200usize, by in 0..16usize,
    ) {
        let (dir, texts) = copy(FAMILIES[family]);
        let path = file.get(&texts);
        let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        replace(&mut value, &mut { at }, &odd(by));
        fs::write(path, value.to_string()).unwrap();
        open(dir.path());
    }

    #[test]
    fn a_file_with_other_bytes_is_refused_or_read(
        family in 0..FAMILIES.len(), file in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(any::<u8>(), 0..4), cut in any::<bool>(),
    ) {
        let (dir, texts) = copy(FAMILIES[family]);
        let path = file.get(&texts);
        let mut text = fs::read(path).unwrap();
        let at = at.index(text.len());
        if cut {
            text.truncate(at);
        }
        let end = (at + bytes.len()).min(text.len());
        text.splice(at..end, bytes);
        fs::write(path, text).unwrap();
        open(dir.path());
    }
}

#[test]
fn every_field_of_a_configuration_may_be_anything() {
    for family in FAMILIES {
        let (dir, _) = copy(family);
        for name in ["config.json", "processor_config.json"] {
            let path = dir.path().join(name);
            let Ok(whole) = fs::read(&path) else { continue };
            let whole: Value = serde_json::from_slice(&whole).unwrap();
            // Beyond these lies the vocabulary map, one number after the other.
            for at in 0..90 {
                for by in 0..16 {
                    let mut value = whole.clone();
                    if replace(&mut value, &mut { at }, &odd(by)) {
                        fs::write(&path, value.to_string()).unwrap();
                        open(dir.path());
                    }
                }
            }
            fs::write(&path, whole.to_string()).unwrap();
        }
    }
}
