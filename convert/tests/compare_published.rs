//! The quality report of published families on text and pictures.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;

use saccade::format::{Rules, read_file_header};
use serde_json::Value;
use support::Workshop;

/// A workshop with copies of the fixtures' folders, two texts and two pictures.
fn workshop() -> Workshop {
    let shop = Workshop::new();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for (from, to) in
        [("llama/tiny", "llama"), ("hf/chameleon", "chameleon"), ("hf/janus", "janus"), ("hf/emu3", "emu3")]
    {
        fs::create_dir(shop.path(to)).unwrap();
        for entry in fs::read_dir(fixtures.join(from)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), shop.path(to).join(entry.file_name())).unwrap();
        }
    }
    fs::copy(fixtures.join("llama/tiny.gguf"), shop.path("tiny.gguf")).unwrap();
    fs::copy(fixtures.join("hf/janus/photo.png"), shop.path("photo.png")).unwrap();
    let picture =
        image::RgbImage::from_fn(48, 40, |x, y| image::Rgb([x, y, x * y].map(|v| (v * 5 % 251) as u8)));
    picture.save(shop.path("made.png")).unwrap();
    fs::write(shop.path("a.txt"), "The ring of the old bell rang over the hills. ".repeat(12)).unwrap();
    fs::write(shop.path("b.txt"), "Numbers such as 12 and 345 stand in a text. ".repeat(8)).unwrap();
    shop
}

fn compare(shop: &Workshop, bundle: &str, reference: &str, more: &[&str]) -> Value {
    let args =
        [&["compare", bundle, "--reference", reference, "--json", "--window", "32"][..], more].concat();
    serde_json::from_str(&shop.succeeds(&args)).unwrap()
}

const TEXTS: [&str; 3] = ["--text", "a.txt", "b.txt"];
const PICTURES: [&str; 3] = ["--image", "photo.png", "made.png"];

#[test]
fn a_float_bundle_is_its_reference() {
    let shop = workshop();
    for family in ["llama", "chameleon", "janus", "emu3"] {
        let f32 = format!("{family}-f32");
        shop.succeeds(&["convert", family, &f32, "--dtype", "f32"]);
        let pictures = if family == "llama" { &[][..] } else { &PICTURES };
        for reference in [family, &f32] {
            let report = compare(&shop, &f32, reference, &[&TEXTS[..], pictures].concat());
            assert_eq!((&report["kl_max"], &report["same_top"]), (&0.0.into(), &1.0.into()), "{report}");
            for (part, families) in [
                ("text", &["llama", "chameleon", "janus", "emu3"][..]),
                ("behind_picture", &["chameleon", "janus", "emu3"]),
                ("image", &["emu3"]),
                ("drawing", &["janus"]),
            ] {
                let rows = &report[part];
                assert_eq!(rows.is_null(), !families.contains(&family), "{family} {part}: {report}");
                if !rows.is_null() {
                    assert_eq!((&rows["kl_max"], &rows["same_top"]), (&0.0.into(), &1.0.into()), "{rows}");
                    assert_eq!(rows["ppl"], rows["ppl_base"]);
                }
            }
            // The second half of each window: 15 of 32 tokens say what follows.
            let windows = report["windows"].as_u64().unwrap();
            assert!(windows > 4 && report["text"]["positions"] == windows * 15, "{report}");
            let off = match family {
                "llama" => (Value::Null, Value::Null),
                "janus" => (Value::Null, 0.0.into()),
                _ => (0.0.into(), Value::Null),
            };
            assert_eq!((&report["code_flip"], &report["feature_error"]), (&off.0, &off.1), "{family}");
        }
    }
}

#[test]
fn every_token_behind_a_picture_is_scored_and_every_code_that_is_said() {
    let shop = workshop();
    for family in ["chameleon", "janus", "emu3"] {
        shop.succeeds(&["convert", family, "bundle", "--force"]);
        let one = compare(&shop, "bundle", family, &["--text", "a.txt", "--image", "photo.png"]);
        let bos = if family == "chameleon" { 0 } else { 1 };
        assert_eq!(one["behind_picture"]["positions"], 32 - bos, "{family}: {one}");
        if family == "emu3" {
            let two =
                compare(&shop, "bundle", family, &["--text", "a.txt", "--image", "photo.png", "photo.png"]);
            let codes = one["image"]["positions"].as_u64().unwrap();
            assert!(codes >= 16 && two["image"]["positions"] == 2 * codes, "{one} {two}");
        }
    }
}

#[test]
fn an_int8_bundle_is_close_and_the_report_says_how_close() {
    let shop = workshop();
    for (family, reference) in [
        ("llama", "llama"),
        ("llama", "tiny.gguf"),
        ("chameleon", "chameleon"),
        ("janus", "janus"),
        ("emu3", "emu3"),
    ] {
        shop.succeeds(&["convert", reference, "int8", "--force"]);
        let pictures = if family == "llama" { &[][..] } else { &PICTURES };
        let report = compare(&shop, "int8", reference, &[&TEXTS[..], pictures].concat());
        let value = |key: &str| report[key].as_f64().unwrap();
        assert!(value("kl_mean") > 0.0 && value("kl_mean") < 0.02, "{family}: {report}");
        assert!(value("kl_mean") <= value("kl_p99") && value("kl_p99") <= value("kl_max"), "{report}");
        assert!(value("same_top") > 0.8, "{family}: {report}");
        match family {
            "janus" => {
                assert!(value("feature_error") > 0.0 && value("feature_error") < 0.1, "{report}");
                assert!(report["drawing"]["kl_mean"].as_f64().unwrap() < 0.05, "{report}");
            }
            "llama" => {}
            _ => assert!(value("code_flip") < 0.2, "{report}"),
        }
    }
    let text = shop.succeeds(
        &[&["compare", "int8", "--reference", "emu3", "--window", "32"][..], &TEXTS, &PICTURES].concat(),
    );
    for row in [
        "== Text (",
        "== Text behind a picture (",
        "== Codes of pictures (",
        "Mean PPL(Q)",
        "Picture codes flipped",
    ] {
        assert!(text.contains(row), "{text} lacks `{row}`");
    }
}

#[test]
fn an_encoder_with_other_weights_flips_codes() {
    let shop = workshop();
    shop.succeeds(&["convert", "chameleon", "bundle", "--dtype", "f32"]);
    let weights = "bundle/weights.safetensors";
    let header = read_file_header(&shop.path(weights), Rules::Bundle).unwrap();
    let conv = header.find("vq.quant_conv.weight").unwrap();
    let (from, bytes) = (usize::try_from(conv.offset).unwrap(), usize::try_from(conv.bytes).unwrap());
    shop.edit(weights, |file| {
        for value in file[from..][..bytes].as_chunks_mut::<4>().0 {
            *value = (-f32::from_le_bytes(*value)).to_le_bytes();
        }
    });
    let report = compare(&shop, "bundle", "chameleon", &[&TEXTS[..], &PICTURES].concat());
    // The codes that are shown stay the float model's, so nothing else differs.
    assert!(report["code_flip"].as_f64().unwrap() > 0.2 && report["kl_max"] == 0.0, "{report}");
}

#[test]
fn refuses_what_cannot_be_compared() {
    let shop = workshop();
    shop.succeeds(&["convert", "llama", "text"]);
    shop.succeeds(&["convert", "chameleon", "seeing"]);
    shop.succeeds(&["convert", "tiny.safetensors", "own"]);
    fs::write(shop.path("short.txt"), "ring").unwrap();
    fs::write(shop.path("latin.txt"), b"caf\xe9 ".repeat(90)).unwrap();
    fs::write(shop.path("no.png"), "ring".repeat(9)).unwrap();
    for (bundle, reference, more, words) in [
        ("text", "llama", &[][..], &["text: ", "family llama", "--text"][..]),
        ("seeing", "chameleon", &["--image", "made.png"], &["family chameleon", "--text"]),
        ("text", "llama", &["--text", "a.txt", "--image", "made.png"], &["reads no pictures", "--image"]),
        ("own", "tiny.safetensors", &["--text", "a.txt"], &["family unimodal", "--data"]),
        ("text", "llama", &["--text", "none.txt"], &["none.txt", "No such file"]),
        ("text", "llama", &["--text", "latin.txt"], &["latin.txt", "UTF-8"]),
        ("text", "llama", &["--text", "short.txt"], &["short.txt", "tokens", "--window"]),
        ("text", "llama", &["--text", "a.txt", "--window", "3"], &["8 to ", "not 3"]),
        ("text", "llama", &["--text", "a.txt", "--window", "9999999"], &["not 9999999", "--window"]),
        (
            "seeing",
            "chameleon",
            &["--text", "a.txt", "--image", "no.png", "--window", "32"],
            &["no.png", "PNG"],
        ),
        ("seeing", "llama", &["--text", "a.txt", "--window", "32"], &["not made from", "descriptions"]),
        ("text", "seeing", &["--text", "a.txt", "--window", "32"], &["seeing", "Int8", "float checkpoint"]),
    ] {
        shop.refuses(&[&["compare", bundle, "--reference", reference][..], more].concat(), words);
    }
}
