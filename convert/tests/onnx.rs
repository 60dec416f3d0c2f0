//! Imported vision graphs: what ONNX Runtime makes of a picture beside what our kernels make of it, and what is refused.
//!
//! `cargo xtask test` gets the library and names it in `ORT_DYLIB_PATH`; the graphs are made by `vision_graph.py` of the checkpoints.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use saccade::Error;
use saccade::config::BundleConfig;
use saccade::engine::EngineOptions;
use saccade::family::Model;
use saccade::onnx::{OnnxError, OnnxOptions, Provider};
use saccade::tokenize::{CodedImages, Features, Picture, Tokenizer as _};
use serde_json::Value;
use support::Workshop;

const TESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");

fn folder(family: &str) -> String {
    format!("{TESTS}/fixtures/hf/{family}")
}

/// A workshop with `graph.onnx` of a family.
fn workshop(family: &str) -> Workshop {
    assert!(
        std::env::var_os("ORT_DYLIB_PATH").is_some(),
        "ORT_DYLIB_PATH must name ONNX Runtime's library; `cargo xtask test` gets one and sets it"
    );
    let shop = Workshop::new();
    let made = Command::new("python3")
        .args([&format!("{TESTS}/vision_graph.py"), &folder(family)])
        .arg(shop.path("graph.onnx"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    shop
}

/// Changes every place where `from` stands in a file into `to`, which is as long.
fn replace(shop: &Workshop, name: &str, from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    shop.edit(name, |bytes| {
        let places: Vec<_> =
            bytes.windows(from.len()).enumerate().filter(|(_, w)| *w == from).map(|(at, _)| at).collect();
        assert!(!places.is_empty());
        places.into_iter().for_each(|at| bytes[at..at + to.len()].copy_from_slice(to));
    });
}

fn options(onnx: OnnxOptions) -> EngineOptions {
    EngineOptions { threads: 2, onnx, ..EngineOptions::default() }
}

fn open_error(dir: &Path, onnx: OnnxOptions) -> Error {
    Model::open(dir, &options(onnx)).unwrap_err()
}

#[test]
fn a_graph_and_our_kernels_see_the_same_in_a_picture() {
    for family in ["janus", "chameleon"] {
        let shop = workshop(family);
        let golden = format!("{}/golden.safetensors", folder(family));
        let said = shop.succeeds(&[
            "golden",
            &folder(family),
            "--golden",
            &golden,
            "--vision-graph",
            "graph.onnx",
            "--json",
        ]);
        // Everything that follows from the picture is that of transformers, so the graph really was what looked.
        let report: Value = serde_json::from_str(&said).unwrap();
        assert_eq!((&report["pass"], &report["graph"]["pass"]), (&true.into(), &true.into()), "{report}");
        let max_rel = report["graph"]["max_rel"].as_f64().unwrap();
        assert!(max_rel > 0.0 && max_rel < 1e-5, "{family}: {max_rel}");
        if family == "chameleon" {
            assert_eq!(report["graph"]["same_codes"], 1.0, "{report}");
        }
        let said =
            shop.succeeds(&["golden", &folder(family), "--golden", &golden, "--vision-graph", "graph.onnx"]);
        assert!(said.contains("from our kernels"), "{said}");
    }
}

#[test]
fn a_bundle_keeps_its_graph_and_reads_pictures_by_it() {
    let rgb: Vec<u8> = (0..48_u32 * 40 * 3).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
    let picture = Picture::rgb(&rgb, 48, 40);
    for dtype in ["int8", "f32"] {
        let shop = workshop("janus");
        shop.succeeds(&[
            "convert",
            &folder("janus"),
            "out",
            "--dtype",
            dtype,
            "--vision-graph",
            "graph.onnx",
        ]);
        assert_eq!(
            fs::read(shop.path("out/vision.onnx")).unwrap(),
            fs::read(shop.path("graph.onnx")).unwrap()
        );
        assert!(shop.succeeds(&["verify", "out"]).contains("3 files"));
        assert!(shop.succeeds(&["inspect", "out"]).contains("vision.onnx"));

        let model = Model::open(shop.path("out"), &options(OnnxOptions::default())).unwrap();
        let by_graph = Features::new(&model).unwrap().of(picture).unwrap().to_vec();
        let ours = Features::on_kernels(&model).unwrap().of(picture).unwrap().to_vec();
        let largest = ours.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        let worst = by_graph.iter().zip(&ours).map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max);
        // The kernels' weights of an INT8 bundle are in half precision here.
        let limit = if dtype == "f32" { 1e-5 } else { 1e-2 };
        assert_eq!(by_graph.len(), ours.len());
        assert!(worst > 0.0 && worst / largest < limit, "{dtype}: {worst} of {largest}");
    }
    let shop = workshop("chameleon");
    shop.succeeds(&["convert", &folder("chameleon"), "out", "--vision-graph", "graph.onnx"]);
    let model = Model::open(shop.path("out"), &options(OnnxOptions::default())).unwrap();
    let mut images = CodedImages::new(&model).unwrap();
    let (mut by_graph, mut ours) = (Vec::new(), Vec::new());
    // Runs one after the other of pictures of several sizes.
    for width in [48, 40, 48] {
        let picture = Picture::rgb(&rgb[..width * 40 * 3], width, 40);
        images.encode(picture, &mut by_graph).unwrap();
        CodedImages::on_kernels(&model).unwrap().encode(picture, &mut ours).unwrap();
        let same = by_graph.iter().zip(&ours).filter(|(a, b)| a == b).count();
        assert!(by_graph.len() == 64 && same >= 62, "{same} of {}", by_graph.len());
    }
}

#[test]
fn graphs_that_do_not_fit_are_refused() {
    let shop = workshop("janus");
    let janus = folder("janus");
    let refuses = |graph: &str, words: &[&str]| {
        shop.refuses(&["convert", &janus, "out", "--vision-graph", graph], words);
    };
    refuses("none.onnx", &["none.onnx"]);
    fs::write(shop.path("empty.onnx"), b"").unwrap();
    refuses("empty.onnx", &["0 bytes"]);
    fs::write(shop.path("page.onnx"), b"<!doctype html>").unwrap();
    refuses("page.onnx", &["no ONNX file", "export"]);
    let graph = fs::read(shop.path("graph.onnx")).unwrap();
    fs::write(shop.path("cut.onnx"), &graph[..graph.len() / 2]).unwrap();
    refuses("cut.onnx", &["no ONNX file"]);

    fs::write(shop.path("named.onnx"), &graph).unwrap();
    replace(&shop, "named.onnx", b"image_features", b"image_filtered");
    refuses("named.onnx", &["`image_filtered`", "expected one `image_features`", "[1, 16, 64]", "export"]);
    // The picture of another size than the model's: [1, 3, 32, 32] where dimensions are messages of a message.
    let dims = |side| [10, 2, 8, 1, 10, 2, 8, 3, 10, 2, 8, side, 10, 2, 8, side];
    fs::write(shop.path("large.onnx"), &graph).unwrap();
    replace(&shop, "large.onnx", &dims(32), &dims(64));
    refuses("large.onnx", &["large.onnx: its input", "(1, 3, 64, 64)", "[1, 3, 32, 32]", "export"]);
    fs::write(shop.path("op.onnx"), &graph).unwrap();
    replace(&shop, "op.onnx", b"Erf", b"Arf");
    refuses("op.onnx", &["ONNX Runtime cannot run it", "Arf"]);
    // `data_location: EXTERNAL` in a tensor of the graph: field 5 of field 7.
    fs::write(shop.path("outside.onnx"), [&graph[..], &[0x3a, 4, 0x2a, 2, 0x70, 1]].concat()).unwrap();
    refuses("outside.onnx", &["other files", "one file"]);

    let emu3 = folder("emu3");
    shop.refuses(&["convert", &emu3, "out", "--vision-graph", "graph.onnx"], &["emu3", "leave it out"]);
    let golden = format!("{janus}/golden.safetensors");
    shop.succeeds(&["convert", &janus, "plain", "--dtype", "f32"]);
    let args = ["golden", "plain", "--golden", &golden];
    shop.refuses(&[&args[..], &["--vision-graph", "graph.onnx"]].concat(), &["bundle keeps its own"]);
    shop.refuses(&[&args[..], &["--provider", "cpu"]].concat(), &["no ONNX graph", "leave"]);
}

#[test]
fn a_graph_that_was_changed_after_the_conversion_is_refused() {
    let shop = workshop("janus");
    shop.succeeds(&["convert", &folder("janus"), "out", "--vision-graph", "graph.onnx"]);
    replace(&shop, "out/vision.onnx", b"Erf", b"Sin");
    let sentence = open_error(&shop.path("out"), OnnxOptions::default()).sentence();
    assert!(sentence.contains("vision.onnx") && sentence.contains("BLAKE3"), "{sentence}");
    shop.refuses(&["verify", "out"], &["vision.onnx", "BLAKE3"]);
    fs::remove_file(shop.path("out/vision.onnx")).unwrap();
    let sentence = open_error(&shop.path("out"), OnnxOptions::default()).sentence();
    assert!(sentence.contains("vision.onnx is missing"), "{sentence}");
}

#[test]
fn a_bundle_without_its_graphs_entry_is_no_bundle() {
    let shop = workshop("janus");
    shop.succeeds(&["convert", &folder("janus"), "out", "--vision-graph", "graph.onnx"]);
    let config = BundleConfig::from_json(&fs::read(shop.path("out/saccade.json")).unwrap()).unwrap();
    let says = |config: &BundleConfig| config.to_json().unwrap_err().to_string();
    let mut unlisted = config.clone();
    unlisted.files.remove("vision.onnx");
    assert!(says(&unlisted).contains("must be listed"));
    let unused = BundleConfig { front_end: None, ..config.clone() };
    assert!(says(&unused).contains("no front_end"));
    let mut second = config.clone();
    second.files.insert("other.onnx".into(), config.files["vision.onnx"].clone());
    assert!(says(&second).contains("only .onnx file"));
}

#[test]
fn a_provider_that_was_asked_for_runs_the_graph_or_nothing_does() {
    let shop = workshop("janus");
    shop.succeeds(&["convert", &folder("janus"), "out", "--dtype", "f32", "--vision-graph", "graph.onnx"]);
    let golden = format!("{}/golden.safetensors", folder("janus"));
    let args = ["golden", "out", "--golden", &golden, "--provider"];
    shop.succeeds(&[&args[..], &["cpu"]].concat());
    // The library of the tests is the one without cards.
    for provider in ["cuda", "tensorrt"] {
        shop.refuses(&[&args[..], &[provider]].concat(), &[provider, "lacks that provider", "`cpu`"]);
        let onnx = OnnxOptions { provider: Some(provider.parse().unwrap()), ..OnnxOptions::default() };
        let error = open_error(&shop.path("out"), onnx);
        assert!(matches!(error, Error::Onnx(OnnxError::Provider { .. })), "{error}");
    }
    let unknown = "npu".parse::<Provider>().unwrap_err().to_string();
    assert!(unknown.contains("`npu`") && unknown.contains("cpu, cuda, tensorrt"), "{unknown}");
}

/// Runs `verify out` with another library.
fn with_library(shop: &Workshop, library: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_saccade-convert"))
        .args(["verify", "out"])
        .current_dir(shop.dir.path())
        .env("ORT_DYLIB_PATH", library)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let sentences: Vec<_> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(sentences.len() == 1 && !said.contains("panicked"), "{said}");
    sentences[0].to_owned()
}

/// A library that says it is ONNX Runtime of that version.
fn library(shop: &Workshop, name: &str, source: &str) -> PathBuf {
    fs::write(shop.path("library.c"), source).unwrap();
    let made = Command::new("cc")
        .args(["-shared", "-fPIC", "-o", name, "library.c"])
        .current_dir(shop.dir.path())
        .status()
        .unwrap();
    assert!(made.success());
    shop.path(name)
}

#[test]
fn a_library_that_is_missing_or_too_old_or_another_is_a_sentence_that_says_what_to_install() {
    let shop = workshop("janus");
    shop.succeeds(&["convert", &folder("janus"), "out", "--vision-graph", "graph.onnx"]);
    let install = "install 1.17 or newer";
    let said = with_library(&shop, &shop.path("libnone.so"));
    assert!(said.contains("libnone.so: cannot open shared object file") && said.contains(install), "{said}");
    let text = shop.path("text.so");
    fs::write(&text, "no library").unwrap();
    assert!(with_library(&shop, &text).contains(install));
    let other = library(&shop, "other.so", "int nothing(void) { return 0; }");
    let said = with_library(&shop, &other);
    assert!(said.contains("another library") && said.contains(install), "{said}");
    let old = "static const void *api(unsigned n) { return 0; } static const char *version(void) { return \"1.16.3\"; }
        static struct { const void *(*api)(unsigned); const char *(*version)(void); } base = { api, version };
        const void *OrtGetApiBase(void) { return &base; }";
    let said = with_library(&shop, &library(&shop, "old.so", old));
    assert!(said.contains("version 1.16.3") && said.contains(install), "{said}");
}

#[test]
fn a_process_keeps_the_library_that_it_opened_first() {
    let shop = workshop("janus");
    shop.succeeds(&["convert", &folder("janus"), "out", "--vision-graph", "graph.onnx"]);
    let named = PathBuf::from(std::env::var_os("ORT_DYLIB_PATH").unwrap());
    let onnx = OnnxOptions { library: Some(named), ..OnnxOptions::default() };
    let first = Model::open(shop.path("out"), &options(onnx.clone())).unwrap();
    let second = Model::open(shop.path("out"), &options(onnx)).unwrap();
    drop(first);
    Features::new(&second).unwrap().of(Picture::rgb(&[9; 300], 10, 10)).unwrap();
    let onnx = OnnxOptions { library: Some("/another/libonnxruntime.so".into()), ..OnnxOptions::default() };
    let error = open_error(&shop.path("out"), onnx);
    assert!(matches!(error, Error::Onnx(OnnxError::OtherLibrary { .. })), "{error}");
}
