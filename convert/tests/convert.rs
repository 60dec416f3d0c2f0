//! A checkpoint becomes a bundle, or nothing.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use saccade::format::{Dtype, TensorPlan};
use serde_json::Value;
use support::{Workshop, tiny};

#[test]
fn a_checkpoint_converts_and_the_bundle_verifies() {
    let shop = Workshop::new();
    for dtype in ["int8", "f16", "f32"] {
        shop.succeeds(&["convert", "tiny.safetensors", dtype, "--dtype", dtype]);
        let mut names: Vec<_> = fs::read_dir(shop.path(dtype))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["saccade.json", "tokenizer.json", "weights.safetensors"]);
        shop.succeeds(&["verify", dtype]);
        shop.succeeds(&["verify", &format!("{dtype}/weights.safetensors")]);
    }
    assert_eq!(fs::read_dir(shop.dir.path()).unwrap().count(), 4, "no .part stays");
}

#[test]
fn the_same_checkpoint_gives_the_same_bytes() {
    let shop = Workshop::new();
    for out in ["a", "b"] {
        shop.succeeds(&["convert", "tiny.safetensors", out]);
    }
    for name in ["saccade.json", "tokenizer.json", "weights.safetensors"] {
        assert_eq!(
            fs::read(shop.path("a").join(name)).unwrap(),
            fs::read(shop.path("b").join(name)).unwrap(),
            "{name}"
        );
    }
}

#[test]
fn inspect_tells_what_scripts_rely_on() {
    let shop = Workshop::new();
    shop.succeeds(&["convert", "tiny.safetensors", "tiny"]);
    let found: Value = serde_json::from_str(&shop.succeeds(&["inspect", "tiny", "--json"])).unwrap();
    let parameters: usize =
        saccade::family::tensors(&tiny().into()).iter().map(|spec| spec.parameters()).sum();
    assert_eq!(found["family"], "unimodal");
    assert_eq!(found["parameters"], parameters);
    assert_eq!(found["bytes"], fs::metadata(shop.path("tiny/weights.safetensors")).unwrap().len());
    let tensors = found["tensors"].as_array().unwrap();
    let named = |name: &str| tensors.iter().find(|tensor| tensor["name"] == name).unwrap();
    let q = named("layers.1.attn.q.weight");
    assert_eq!((&q["dtype"], &q["bytes"]), (&"I8".into(), &1024.into()));
    assert_eq!(q["shape"], serde_json::json!([2, 8, 16, 4]));
    assert!(q["offset"].as_u64().unwrap().is_multiple_of(64));
    assert_eq!(named("layers.1.attn.q.scale")["shape"], serde_json::json!([32]));
    assert_eq!(named("image.encoder.0.weight")["dtype"], "F16");

    let text = shop.succeeds(&["inspect", "tiny"]);
    for word in ["unimodal", "layers.0.attn.q.weight", "[2, 8, 16, 4]", "layers.1 ", "image.encoder"] {
        assert!(text.contains(word), "{text} lacks `{word}`");
    }
}

#[test]
fn a_dry_run_writes_nothing() {
    let shop = Workshop::new();
    let before = shop.listing();
    let text = shop.succeeds(&["convert", "tiny.safetensors", "out", "--dry-run"]);
    assert!(text.contains("would be") && text.contains("parameters"), "{text}");
    assert_eq!(shop.listing(), before);
    shop.changed("bad.safetensors", |c| c.tensors.truncate(3));
    shop.refuses(&["convert", "bad.safetensors", "out", "--dry-run"], &["missing"]);
}

#[test]
fn a_dry_run_refuses_the_places_that_the_real_run_refuses() {
    let shop = Workshop::new();
    shop.succeeds(&["convert", "tiny.safetensors", "out"]);
    fs::create_dir_all(shop.path("photos.part")).unwrap();
    fs::create_dir(shop.path("photos")).unwrap();
    fs::write(shop.path("photos.part/cat.jpg"), "not yours").unwrap();
    for (args, words) in [
        (&["out"][..], &["out exists", "--force"][..]),
        (&["none/out"], &["none", "does not exist"]),
        (&["photos", "--force"], &["photos is no bundle"]),
        (&["tiny.safetensors", "--force"], &["is no bundle"]),
        (&["..", "--force"], &["is no bundle"]),
    ] {
        let args = [&["convert", "tiny.safetensors"], args].concat();
        let real = shop.refuses(&args, words);
        assert_eq!(shop.refuses(&[&args[..], &["--dry-run"]].concat(), words), real);
    }
    fs::remove_dir(shop.path("photos")).unwrap();
    shop.refuses(&["convert", "tiny.safetensors", "photos", "--dry-run"], &["photos.part", "cat.jpg"]);

    let before = shop.listing();
    let text = shop.succeeds(&["convert", "tiny.safetensors", "out", "--force", "--dry-run"]);
    assert!(text.contains("out would be replaced by a bundle in Int8"), "{text}");
    assert_eq!(shop.listing(), before);
}

/// As a run leaves it that was killed after the old bundle had stepped aside, before the new one took its place.
fn killed_while_replacing() -> Workshop {
    let shop = Workshop::new();
    shop.succeeds(&["convert", "tiny.safetensors", "out", "--dtype", "f16"]);
    fs::rename(shop.path("out"), shop.path("out.replaced.part")).unwrap();
    shop.succeeds(&["convert", "tiny.safetensors", "new"]);
    fs::rename(shop.path("new"), shop.path("out.part")).unwrap();
    shop
}

#[test]
fn a_run_killed_between_two_renames_is_healed_by_the_next_one() {
    let shop = killed_while_replacing();
    let text = shop.succeeds(&["convert", "tiny.safetensors", "out", "--force", "--dry-run"]);
    assert!(text.contains("would be replaced"), "{text}");
    assert!(shop.path("out.replaced.part").is_dir(), "a dry run changes nothing");
    shop.succeeds(&["convert", "tiny.safetensors", "out", "--force"]);
    assert!(shop.succeeds(&["verify", "out"]).contains("Int8"));
    assert_eq!(fs::read_dir(shop.dir.path()).unwrap().count(), 2, "nothing stays beside it");

    // Without --force the old bundle comes back, and is refused to be replaced.
    let shop = killed_while_replacing();
    shop.refuses(&["convert", "tiny.safetensors", "out", "--dry-run"], &["out exists"]);
    let output = shop.run(&["convert", "tiny.safetensors", "out"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && stderr.contains("out exists") && stderr.contains("put back"),
        "{stderr}"
    );
    assert!(shop.succeeds(&["verify", "out"]).contains("F16"));

    // A conversion that fails leaves the old bundle where it belongs.
    let shop = killed_while_replacing();
    shop.changed("bad.safetensors", |c| c.tensor("norm.weight").1[..2].fill(0x7e));
    assert!(!shop.run(&["convert", "bad.safetensors", "out", "--force"]).status.success());
    assert!(shop.succeeds(&["verify", "out"]).contains("F16"));
    assert!(!shop.path("out.part").exists() && !shop.path("out.replaced.part").exists());
}

#[test]
fn an_existing_folder_is_replaced_only_when_asked_and_only_a_bundle() {
    let shop = Workshop::new();
    shop.succeeds(&["convert", "tiny.safetensors", "out"]);
    shop.refuses(&["convert", "tiny.safetensors", "out", "--dtype", "f16"], &["out exists", "--force"]);
    shop.succeeds(&["convert", "tiny.safetensors", "out/", "--dtype", "f16", "--force"]);
    assert!(shop.succeeds(&["verify", "out"]).contains("F16"));
    assert_eq!(fs::read_dir(shop.dir.path()).unwrap().count(), 2);

    // A failing conversion keeps the bundle that is there.
    shop.changed("bad.safetensors", |c| c.metadata.insert("tokenizer".into(), "{}".into()).map_or((), drop));
    shop.refuses(&["convert", "bad.safetensors", "out", "--force"], &["bad.safetensors", "`tokenizer`"]);

    fs::create_dir(shop.path("photos")).unwrap();
    fs::write(shop.path("photos/cat.jpg"), "not yours").unwrap();
    shop.refuses(&["convert", "tiny.safetensors", "photos", "--force"], &["photos is no bundle"]);
    shop.refuses(&["convert", "tiny.safetensors", "tiny.safetensors", "--force"], &["is no bundle"]);
    shop.refuses(&["convert", "tiny.safetensors", "..", "--force"], &["is no bundle"]);
    shop.refuses(&["convert", "tiny.safetensors", "none/out"], &["none", "does not exist"]);
}

#[test]
fn what_a_killed_run_left_is_cleared_away_but_nothing_else() {
    let shop = Workshop::new();
    fs::create_dir(shop.path("out.part")).unwrap();
    fs::write(shop.path("out.part/weights.safetensors.part"), "half").unwrap();
    shop.succeeds(&["convert", "tiny.safetensors", "out"]);
    assert!(!shop.path("out.part").exists());

    fs::create_dir(shop.path("two.part")).unwrap();
    fs::write(shop.path("two.part/thesis.tex"), "precious").unwrap();
    shop.refuses(&["convert", "tiny.safetensors", "two"], &["two.part", "thesis.tex", "remove it"]);
}

#[test]
fn refuses_files_that_are_no_checkpoint() {
    let shop = Workshop::new();
    let convert =
        |name: &str, words: &[&str]| shop.refuses(&["convert", name, "out"], &[&[name], words].concat());
    convert("none.safetensors", &["No such file"]);

    fs::write(shop.path("empty.safetensors"), "").unwrap();
    convert("empty.safetensors", &["0 bytes"]);
    fs::write(shop.path("readme.txt"), "This is a text file, not a model.\n").unwrap();
    convert("readme.txt", &["not a safetensors file"]);
    fs::create_dir(shop.path("hub")).unwrap();
    convert("hub", &["folder"]);

    let good = fs::read(shop.path("tiny.safetensors")).unwrap();
    fs::write(shop.path("short.safetensors"), &good[..good.len() - 1]).unwrap();
    convert("short.safetensors", &["cut off"]);
    fs::write(shop.path("header.safetensors"), &good[..100]).unwrap();
    convert("header.safetensors", &["cut off"]);
    fs::write(shop.path("long.safetensors"), [&good[..], b"!"].concat()).unwrap();
    convert("long.safetensors", &["appended"]);

    shop.changed("foreign.safetensors", |c| c.metadata.clear());
    convert("foreign.safetensors", &["no Saccade checkpoint", "`format`"]);
    shop.changed("newer.safetensors", |c| {
        _ = c.metadata.insert("format".into(), "saccade-checkpoint-9".into())
    });
    convert("newer.safetensors", &["saccade-checkpoint-9"]);
    for key in ["model", "tokenizer", "provenance"] {
        shop.changed("part.safetensors", |c| _ = c.metadata.remove(key));
        convert("part.safetensors", &["no Saccade checkpoint", key]);
        shop.changed("part.safetensors", |c| _ = c.metadata.insert(key.into(), "[1, 2".into()));
        convert("part.safetensors", &[key]);
    }
}

#[test]
fn refuses_checkpoints_whose_tensors_do_not_fit() {
    let shop = Workshop::new();
    let convert = |words: &[&str]| {
        shop.refuses(&["convert", "bad.safetensors", "out"], &[&["bad.safetensors"], words].concat())
    };

    shop.changed("bad.safetensors", |c| c.tensors.retain(|(plan, _)| plan.name != "norm.weight"));
    convert(&["`norm.weight`", "missing"]);
    shop.changed("bad.safetensors", |c| {
        let plan = TensorPlan { name: "extra.weight".into(), dtype: Dtype::F16, shape: vec![1] };
        c.tensors.push((plan, vec![0; 2]));
    });
    convert(&["`extra.weight`", "does not belong"]);
    shop.changed("bad.safetensors", |c| c.tensor("embed.weight").0.shape.reverse());
    convert(&["`embed.weight`", "[32, 593]", "[593, 32]"]);
    shop.changed("bad.safetensors", |c| c.tensor("norm.weight").0.dtype = Dtype::I16);
    convert(&["`norm.weight`", "I16", "F16 or F32"]);
    shop.changed("bad.safetensors", |c| c.tensor("layers.0.ffn.up.weight").1[6..8].fill(0x7e));
    convert(&["`layers.0.ffn.up.weight`", "value 3", "NaN"]);

    // A model for other sizes.
    shop.changed("bad.safetensors", |c| {
        let model = c.metadata["model"].replace("\"d_ff\":48", "\"d_ff\":64");
        c.metadata.insert("model".into(), model);
    });
    convert(&["`layers.0.ffn.gate.weight`", "[48, 32]", "[64, 32]"]);
    shop.changed("bad.safetensors", |c| {
        let model = c.metadata["model"].replace("\"n_heads\":2", "\"n_heads\":0");
        c.metadata.insert("model".into(), model);
    });
    convert(&["`model`", "n_heads"]);
}

#[test]
fn bf16_and_f32_checkpoints_convert_too() {
    let shop = Workshop::new();
    for (dtype, out) in [(Dtype::F32, "f32"), (Dtype::BF16, "bf16")] {
        shop.changed("other.safetensors", |c| {
            for (plan, data) in &mut c.tensors {
                plan.dtype = dtype;
                let wide = data.as_chunks().0.iter().map(|&v| half::f16::from_le_bytes(v).to_f32());
                *data = match dtype {
                    Dtype::F32 => wide.flat_map(f32::to_le_bytes).collect(),
                    _ => wide.flat_map(|v| half::bf16::from_f32(v).to_le_bytes()).collect(),
                };
            }
        });
        shop.succeeds(&["convert", "other.safetensors", out]);
    }
    shop.succeeds(&["convert", "tiny.safetensors", "f16"]);
    let weights = |name: &str| fs::read(shop.path(name).join("weights.safetensors")).unwrap();
    assert_eq!(weights("f16"), weights("f32"), "F16 values are exact in F32");
    assert_ne!(weights("f16"), weights("bf16"));
}

#[test]
fn a_wrong_command_line_is_refused_with_a_hint() {
    let shop = Workshop::new();
    for args in [
        &["convert"][..],
        &["convert", "a", "b", "--dtype", "int4"],
        &["inspekt", "x"],
        &["verify", "a", "b"],
    ] {
        let output = shop.run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("--help"), "{args:?}");
    }
}
