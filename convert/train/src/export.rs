//! The checkpoint that `saccade-convert` reads: one safetensors file in half precision, with its model description.

use std::path::Path;

use half::f16;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::layout::{ACTION_DIM, CHUNK_STEPS, Dims, EXECUTED_STEPS, PREFIX_LEN, WINDOWS, ids};
use crate::pack::Binning;
use crate::params::write_whole;

/// A named tensor on the host.
pub type Named = (String, Vec<usize>, Vec<f32>);

/// Ranges of states and actions, fitted to the training data and kept beside the checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ranges {
    /// Of the states.
    pub state: Binning,
    /// Of the actions.
    pub action: Binning,
    /// Actions a second.
    pub rate_hz: f32,
}

/// The `model` object of the checkpoint and of `saccade.json`.
///
/// # Errors
/// If the runtime would refuse it.
pub fn model_json(name: &str, dims: &Dims, ranges: &Ranges) -> Result<Value> {
    let [c0, c1, c2] = dims.image.channels;
    let side = dims.image.side_px;
    let window = |i: usize| json!(WINDOWS[i]);
    let range = |r: std::ops::Range<usize>| json!([r.start, r.end]);
    let model = json!({
        "family": "unimodal", "name": name,
        "d_model": dims.d_model, "n_layers": dims.n_layers, "n_heads": dims.n_heads, "n_kv_heads": dims.n_kv_heads,
        "head_dim": dims.head_dim, "d_ff": dims.d_ff, "vocab_size": dims.vocab_size(),
        "rope_theta": dims.rope_theta, "norm_eps": dims.norm_eps,
        "modalities": [
            {"name": "text", "window": window(0)}, {"name": "image", "window": window(1)},
            {"name": "state", "window": window(2)}, {"name": "action", "window": window(3)},
        ],
        "tokens": {"text": range(dims.text()), "bins": range(dims.bins()), "image": range(dims.image_codes())},
        "special": {"pad": ids::PAD, "eos": ids::EOS, "img": ids::IMG, "img_end": ids::IMG_END, "pts": 4, "pts_end": 5,
            "state": ids::STATE, "act": ids::ACT, "ask": ids::ASK, "ans": ids::ANS},
        "tasks": ["robot", "vqa", "text"], "task_prefix_len": PREFIX_LEN,
        "image": {"width": side, "height": side, "grid": [side / 8, side / 8], "code_dim": dims.image.code_dim,
            "codebook_size": dims.image.codebook_size, "l2_norm": false, "encoder_channels": [c0, c1, c2],
            "decoder_channels": [c2, c1, c0], "res_hidden": dims.image.res_hidden, "n_res": dims.image.n_res,
            "mean": 127.5, "std": 127.5},
        "state": {"names": ["hand_x", "hand_y", "hand_z", "gripper"], "low": ranges.state.low, "high": ranges.state.high},
        "action": {"names": ["dx", "dy", "dz", "gripper"], "low": ranges.action.low, "high": ranges.action.high,
            "steps": CHUNK_STEPS, "executed": EXECUTED_STEPS, "semantics": "delta", "rate_hz": ranges.rate_hz},
        "chat": {"caption": "what is happening?", "question_suffix": ""},
        "generation": {"max_new_tokens": 48},
    });
    debug_assert_eq!(ranges.action.low.len(), ACTION_DIM, "four action dimensions");
    saccade::config::ModelConfig::from_json(&model.to_string())
        .map_err(|e| Error::Setting(format!("the model description is not what the runtime takes: {e}")))?;
    Ok(model)
}

/// Bytes of `values` in half precision.
fn half_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()
}

/// Writes the checkpoint, whole or not at all.
///
/// # Errors
/// If a value does not fit half precision, or the file cannot be written.
pub fn write(
    path: &Path,
    tensors: &[Named],
    model: &Value,
    tokenizer: &str,
    provenance: &Value,
) -> Result<()> {
    let mut raw: Vec<(&str, &[usize], Vec<u8>)> = Vec::new();
    for (name, shape, values) in tensors {
        if let Some(v) = values.iter().find(|v| !f16::from_f32(**v).is_finite()) {
            return Err(Error::content(
                path,
                format!(
                    "tensor `{name}` holds {v}, which half precision cannot; train with a lower learning rate"
                ),
            ));
        }
        raw.push((name, shape, half_bytes(values)));
    }
    let views = raw
        .iter()
        .map(|(n, s, b)| Ok(((*n).to_owned(), TensorView::new(Dtype::F16, s.to_vec(), b)?)))
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|e| Error::content(path, e.to_string()))?;
    let metadata = [
        ("format", "saccade-checkpoint-1".to_owned()),
        ("model", model.to_string()),
        ("tokenizer", tokenizer.to_owned()),
        ("provenance", provenance.to_string()),
    ];
    let metadata = metadata.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    let raw =
        safetensors::serialize(views, Some(metadata)).map_err(|e| Error::content(path, e.to_string()))?;
    write_whole(path, &raw)
}
