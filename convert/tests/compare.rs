//! The quality report on a tiny model and two tiny episodes.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use image::RgbImage;
use saccade::format::{Rules, read_file_header};
use saccade_convert::random::write_checkpoint;
use serde_json::{Value, json};
use support::{Workshop, tiny};

/// Adds `data/` with two episodes of `steps` steps.
fn with_episodes(steps: usize) -> Workshop {
    let shop = Workshop::new();
    fs::create_dir(shop.path("data")).unwrap();
    for episode in 0..2u8 {
        let side = 16;
        let strip = RgbImage::from_fn(side * u32::try_from(steps).unwrap(), side, |x, y| {
            image::Rgb([x, y, x ^ y].map(|v| u8::try_from(v * 7 % 251).unwrap().wrapping_add(episode * 40)))
        });
        strip.save(shop.path(&format!("data/{episode}.png"))).unwrap();
        let step = json!({"state": [0.1, -0.2, 0.3, 0.9], "executed": vec![[0.1, 0.0, -0.1, 1.0]; 4],
            "chunk": vec![[0.1, 0.0, -0.1, 1.0]; 8], "caption": "the robot waits.",
            "qa": [["is it open?", "yes"], ["where is it?", "left"], ["is it near?", "no"]]});
        let json =
            json!({"task": "reach", "instruction": "reach the goal", "seed": 1, "steps": vec![step; steps]});
        fs::write(shop.path(&format!("data/{episode}.json")), json.to_string()).unwrap();
    }
    shop
}

fn compare(shop: &Workshop, bundle: &str) -> Value {
    let args = ["compare", bundle, "--reference", "tiny.safetensors", "--data", "data", "--json"];
    serde_json::from_str(&shop.succeeds(&args)).unwrap()
}

#[test]
fn a_float_bundle_is_its_reference() {
    let shop = with_episodes(6);
    shop.succeeds(&["convert", "tiny.safetensors", "f32", "--dtype", "f32"]);
    let report = compare(&shop, "f32");
    for (key, expected) in [
        ("kl_mean", 0.0),
        ("kl_p99", 0.0),
        ("kl_max", 0.0),
        ("same_top", 1.0),
        ("same_top_image", 1.0),
        ("code_flip", 0.0),
        ("action_bin_equal", 1.0),
    ] {
        assert_eq!(report[key], expected, "{key}");
    }
    assert_eq!((&report["episodes"], &report["frames"]), (&2.into(), &12.into()));
    assert_eq!(report["action"]["positions"], 12 * 32);
    assert_eq!(report["image"]["positions"], 12 * 4);
    // Caption (16 bytes) and two of the three answers each time, each with its <eos>.
    assert_eq!(report["answer"]["positions"], 12 * 17 + 8 * (4 + 5 + 3));
    assert!((report["size_ratio_f32"].as_f64().unwrap() - 1.0).abs() < 0.1);
}

#[test]
fn an_int8_bundle_is_close_and_the_report_says_how_close() {
    let shop = with_episodes(3);
    shop.succeeds(&["convert", "tiny.safetensors", "int8"]);
    let report = compare(&shop, "int8");
    let value = |key: &str| report[key].as_f64().unwrap();
    // Random weights decide little, so tops may flip; distributions must still be near, and not equal.
    assert!(value("kl_mean") > 0.0 && value("kl_mean") < 0.02, "{report}");
    assert!(value("kl_mean") <= value("kl_p99") && value("kl_p99") <= value("kl_max"), "{report}");
    assert!(value("same_top") > 0.5 && value("code_flip") < 0.2, "{report}");
    assert!(value("size_ratio_linear") > 2.0 && value("size_ratio_f32") > 1.0, "{report}");

    let text = shop.succeeds(&["compare", "int8", "--reference", "tiny.safetensors", "--data", "data"]);
    for row in ["Mean PPL(Q)", "Mean    KLD", "99.9%   KLD", "RMS Δp", "Same top p", "Image codes flipped"] {
        assert!(text.contains(row), "{text} lacks `{row}`");
    }
}

#[test]
fn a_bundle_that_answers_nan_or_infinity_is_refused() {
    let shop = with_episodes(1);
    for (value, out) in [(f32::NAN, "nan"), (f32::MAX, "huge")] {
        shop.succeeds(&["convert", "tiny.safetensors", out, "--dtype", "f32"]);
        let weights = format!("{out}/weights.safetensors");
        let header = read_file_header(&shop.path(&weights), Rules::Bundle).unwrap();
        let norm = header.find("norm.weight").unwrap();
        let (from, bytes) = (usize::try_from(norm.offset).unwrap(), usize::try_from(norm.bytes).unwrap());
        shop.edit(&weights, |file| {
            file[from..][..bytes].as_chunks_mut::<4>().0.fill(value.to_le_bytes());
        });
        let args = ["compare", out, "--reference", "tiny.safetensors", "--data", "data", "--json"];
        shop.refuses(&args, &["0.json", "the bundle gives logits that are no finite numbers"]);
    }
}

#[test]
fn refuses_what_does_not_belong_together() {
    let shop = with_episodes(1);
    shop.succeeds(&["convert", "tiny.safetensors", "int8"]);
    let refuses = |bundle: &str, reference: &str, data: &str, words: &[&str]| {
        shop.refuses(&["compare", bundle, "--reference", reference, "--data", data], words);
    };
    let mut other = tiny();
    other.d_ff = 64;
    write_checkpoint(&shop.path("other.safetensors"), &other, 7).unwrap();
    refuses("int8", "other.safetensors", "data", &["not made from", "descriptions differ"]);
    write_checkpoint(&shop.path("seed.safetensors"), &tiny(), 8).unwrap();
    refuses("int8", "seed.safetensors", "data", &["not made from", "BLAKE3"]);
    refuses("none", "tiny.safetensors", "data", &["none", "no bundle"]);
    refuses("int8", "none.safetensors", "data", &["none.safetensors"]);
    refuses("int8", "tiny.safetensors", "nowhere", &["nowhere", "--data"]);
    refuses("int8", "tiny.safetensors", "int8", &["saccade.json", "held-out"]);
}

#[test]
fn refuses_damaged_episodes() {
    let shop = with_episodes(2);
    shop.succeeds(&["convert", "tiny.safetensors", "int8"]);
    let refuses = |words: &[&str]| {
        shop.refuses(&["compare", "int8", "--reference", "tiny.safetensors", "--data", "data"], words);
    };
    let good = fs::read(shop.path("data/1.png")).unwrap();
    fs::write(shop.path("data/1.png"), &good[..good.len() / 2]).unwrap();
    refuses(&["1.png", "readable PNG"]);
    RgbImage::new(16, 16).save(shop.path("data/1.png")).unwrap();
    refuses(&["1.png", "side by side"]);
    fs::remove_file(shop.path("data/1.png")).unwrap();
    refuses(&["1.png", "No such file"]);
    fs::write(shop.path("data/1.png"), &good).unwrap();

    let text = fs::read_to_string(shop.path("data/1.json")).unwrap();
    for (from, to, words) in [
        ("\"caption\"", "\"legend\"", &["1.json", "caption"][..]),
        ("[0.1,-0.2,0.3,0.9]", "[0.1,-0.2,0.3]", &["1.json", "state", "3"]),
        ("[0.1,-0.2,0.3,0.9]", "[]", &["1.json", "state", "0"]),
        (
            "\"chunk\":[[0.1,0.0,-0.1,1.0],",
            "\"chunk\":[",
            &["1.json", "step 0", "`chunk` has 7 actions", "8"],
        ),
        ("\"chunk\":[[0.1,", "\"chunk\":[[", &["1.json", "action of `chunk` has 3 numbers", "4"]),
        ("\"chunk\":[[0.1,", "\"chunk\":[[1e300,", &["1.json", "no finite number", "heldout.py"]),
        ("\"executed\":[[0.1,", "\"executed\":[[", &["1.json", "action of `executed` has 3 numbers"]),
        (
            "\"executed\":[",
            "\"executed\":[[0.1,0.0,-0.1,1.0],",
            &["1.json", "`executed` has 5 actions", "at most 4"],
        ),
    ] {
        assert!(text.contains(from));
        fs::write(shop.path("data/1.json"), text.replace(from, to)).unwrap();
        refuses(words);
    }
    fs::write(
        shop.path("data/1.json"),
        text.replace(&text[text.find("\"steps\"").unwrap()..], "\"steps\":[]}"),
    )
    .unwrap();
    refuses(&["1.png"]);
}
