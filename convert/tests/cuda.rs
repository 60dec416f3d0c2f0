//! Models of every family on the emulated card: what other implementations stored, in float32 and in INT8.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use saccade::config::WeightDtype;
use saccade::cuda;
use saccade::engine::{DeviceChoice, DeviceOptions, EngineOptions};
use saccade_convert::golden::{Subject, golden};

#[path = "../../runtime/tests/emulator/mod.rs"]
mod emulator;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Whether a model gives on the card what is stored, to the bit what it gives on the CPU.
#[track_caller]
fn compare(model: &str, stored: &str, dtype: WeightDtype) {
    let kernels = Some(emulator::plug_in().join("kernels"));
    let [cpu, card] = [DeviceChoice::Cpu, DeviceChoice::Cuda].map(|choice| {
        let device = DeviceOptions { choice, kernels: kernels.clone(), ..DeviceOptions::default() };
        let engine = EngineOptions { device, ..EngineOptions::default() };
        golden(&Subject { path: &fixture(model), graph: None, engine }, &fixture(stored), dtype).unwrap()
    });
    assert_eq!(card.to_text(), cpu.to_text(), "{model} in {dtype:?}");
    assert!(!card.tensors.is_empty(), "{model}");
    // What INT8 costs is no matter of the card.
    assert!(card.pass || dtype == WeightDtype::Int8, "{model}:\n{}", card.to_text());
}

#[test]
fn llama_in_float32_and_int8() {
    compare("llama/tiny.gguf", "llama/golden.safetensors", WeightDtype::F32);
    compare("llama/tiny", "llama/golden.safetensors", WeightDtype::Int8);
}

#[test]
fn the_kin_of_llama_in_float32() {
    for kin in ["llama", "mistral", "qwen2", "qwen3"] {
        compare(&format!("kin/{kin}"), &format!("kin/{kin}.golden.safetensors"), WeightDtype::F32);
    }
}

#[test]
fn janus_reads_and_draws() {
    compare("hf/janus", "hf/janus/golden.safetensors", WeightDtype::F32);
}

#[test]
fn chameleon_and_emu3_in_float32_and_int8() {
    for family in ["chameleon", "emu3"] {
        for dtype in [WeightDtype::F32, WeightDtype::Int8] {
            compare(&format!("hf/{family}"), &format!("hf/{family}/golden.safetensors"), dtype);
        }
    }
}
