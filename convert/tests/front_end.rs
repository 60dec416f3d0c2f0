//! Bundles with an imported graph, in builds that cannot run one.

#![cfg(not(feature = "onnx"))]
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use saccade::Error;
use saccade::config::{BundleConfig, FrontEnd, Part};
use saccade::engine::EngineOptions;
use saccade::family::Model;
use saccade::onnx::{OnnxError, OnnxOptions, Provider};
use support::Workshop;

#[test]
fn a_build_without_the_feature_names_it() {
    let shop = Workshop::new();
    let janus = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hf/janus");
    fs::write(shop.path("graph.onnx"), b"whatever").unwrap();
    let words = ["graph.onnx", "--features onnx"];
    shop.refuses(&["convert", janus, "out", "--vision-graph", "graph.onnx"], &words);

    shop.succeeds(&["convert", janus, "out"]);
    let path = shop.path("out/saccade.json");
    let mut config = BundleConfig::from_json(&fs::read(&path).unwrap()).unwrap();
    config.front_end = Some(FrontEnd { graph: "vision.onnx".into(), replaces: Part::Vision });
    config.files.insert("vision.onnx".into(), config.files["tokenizer.json"].clone());
    fs::write(&path, config.to_json().unwrap()).unwrap();
    fs::copy(shop.path("out/tokenizer.json"), shop.path("out/vision.onnx")).unwrap();
    let error = Model::open(shop.path("out"), &EngineOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Onnx(OnnxError::Feature { .. })), "{error}");
    shop.refuses(&["verify", "out"], &["vision.onnx", "--features onnx"]);

    config.front_end = Some(FrontEnd { graph: "vision.onnx".into(), replaces: Part::VqEncoder });
    assert!(config.to_json().unwrap_err().to_string().contains("`janus` has no such part"));
}

#[test]
fn options_for_a_graph_need_one() {
    let shop = Workshop::new();
    shop.succeeds(&["convert", "tiny.safetensors", "out"]);
    let onnx = OnnxOptions { provider: Some(Provider::Cuda), ..OnnxOptions::default() };
    let error =
        Model::open(shop.path("out"), &EngineOptions { onnx, ..EngineOptions::default() }).unwrap_err();
    assert!(matches!(error, Error::Onnx(OnnxError::NoGraph)), "{error}");
}
