//! Writes a bundle from float tensors, so that the runtime can be tested without the converter.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use half::f16;
use saccade::config::{
    BundleConfig, CONFIG_FILE, FORMAT_VERSION, FileEntry, Quantisation, TOKENIZER_FILE, UnimodalConfig,
    WEIGHTS_FILE, WeightDtype,
};
use saccade::engine::EngineOptions;
use saccade::family::{Model, tensors};
use saccade::format::{Dtype, Rules, Writer};
use saccade::quant::{pack_n16k4, quantise_weight_rows, row_sums};

use super::Tensors;

/// Writes `weights.safetensors`, a `tokenizer.json` that is none, and `saccade.json`.
pub fn write_bundle(
    dir: &Path,
    model: &UnimodalConfig,
    values: &Tensors,
    dtype: WeightDtype,
) -> BundleConfig {
    let specs = tensors(&model.clone().into());
    let plan: Vec<_> = specs.iter().flat_map(|spec| spec.stored(dtype)).collect();
    let path = dir.join(WEIGHTS_FILE);
    let mut writer = Writer::create(&path, &plan, &BTreeMap::new(), Rules::Bundle).unwrap();
    let mut linears = BTreeMap::new();
    for spec in &specs {
        let [n, k] = spec.matrix();
        let rows = rows_of(&spec.shape, &values[&spec.name].1);
        if spec.is_tiled(dtype) {
            let (q, scale) = quantise_weight_rows(&rows, n, k);
            let sum = row_sums(&q, n, k);
            writer.write(&spec.name, bytemuck::cast_slice(&pack_n16k4(&q, n, k))).unwrap();
            writer.write(&format!("{}.scale", spec.stem()), bytemuck::cast_slice(&scale)).unwrap();
            writer.write(&format!("{}.sum", spec.stem()), bytemuck::cast_slice(&sum)).unwrap();
            linears.insert(spec.stem().to_string(), [n, k]);
        } else if spec.stored(dtype)[0].dtype == Dtype::F16 {
            let half: Vec<f16> = rows.iter().map(|&v| f16::from_f32(v)).collect();
            writer.write(&spec.name, bytemuck::cast_slice(&half)).unwrap();
        } else {
            writer.write(&spec.name, bytemuck::cast_slice(&rows)).unwrap();
        }
    }
    let written = writer.finish().unwrap();
    std::fs::write(dir.join(TOKENIZER_FILE), "{}").unwrap();
    let entry = |bytes, hash: blake3::Hash| FileEntry { bytes, blake3: hash.to_hex().to_string() };
    let config = BundleConfig {
        format_version: FORMAT_VERSION,
        dtype,
        model: model.clone().into(),
        quantisation: Quantisation {
            recipe: "test".into(),
            float_tensors: vec![],
            two_part_activations: Default::default(),
            kept_float: Default::default(),
        },
        linears,
        provenance: serde_json::Map::new(),
        front_end: None,
        files: [
            (WEIGHTS_FILE.to_string(), entry(written.bytes, written.blake3)),
            (TOKENIZER_FILE.to_string(), entry(2, blake3::hash(b"{}"))),
        ]
        .into(),
        self_blake3: String::new(),
    };
    std::fs::write(dir.join(CONFIG_FILE), config.to_json().unwrap()).unwrap();
    config
}

/// The model of a bundle with these tensors.
pub fn model(c: &UnimodalConfig, t: &Tensors, dtype: WeightDtype) -> Arc<Model> {
    let dir = tempfile::tempdir().unwrap();
    write_bundle(dir.path(), c, t, dtype);
    Model::open(dir.path(), &EngineOptions { threads: 2, ..EngineOptions::default() }).unwrap()
}

/// A convolution's rows in the order `(kh, kw, in)`; everything else as it is.
fn rows_of(shape: &[usize], values: &[f32]) -> Vec<f32> {
    let [out, input, kh, kw] = shape[..] else { return values.to_vec() };
    let mut rows = Vec::with_capacity(values.len());
    for o in 0..out {
        for tap in 0..kh * kw {
            rows.extend((0..input).map(|i| values[(o * input + i) * kh * kw + tap]));
        }
    }
    rows
}
