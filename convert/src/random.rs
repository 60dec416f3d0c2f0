//! A checkpoint of random numbers: what tests convert, and a way to try out a size before training it.

use std::collections::BTreeMap;
use std::path::Path;

use half::f16;
use saccade::config::{ModelConfig, UnimodalConfig, nano};
use saccade::family::{Role, TensorSpec, tensors};
use saccade::format::{Dtype, Rules, TensorPlan, Writer, Written};
use serde_json::{Map, Value, json};

use crate::bundle::{self, Recipe};
use crate::checkpoint::{Checkpoint, FORMAT};
use crate::error::{Result, io};
use crate::place::Place;
use crate::progress::Progress;

/// Writes a checkpoint for `model` in F16, the same for the same `seed`.
///
/// Weights are uniform with the variance that keeps activations of the same size, norms are one. Its tokenizer knows
/// the special tokens and single bytes.
///
/// # Errors
/// [`crate::ConvertError::Runtime`] when the file cannot be written.
pub fn write_checkpoint(path: &Path, model: &UnimodalConfig, seed: u64) -> Result<Written> {
    let tokenizer = byte_tokenizer(model).to_string();
    let model = &ModelConfig::from(model.clone());
    let specs = tensors(model);
    let plan: Vec<TensorPlan> = specs
        .iter()
        .map(|spec| TensorPlan { name: spec.name.clone(), dtype: Dtype::F16, shape: spec.shape.clone() })
        .collect();
    let metadata = BTreeMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("model".to_owned(), json!(model).to_string()),
        ("tokenizer".to_owned(), tokenizer),
        ("provenance".to_owned(), json!({"note": "random weights", "seed": seed}).to_string()),
    ]);
    let mut writer = Writer::create(path, &plan, &metadata, Rules::Foreign)?;
    let mut random = Random(seed);
    for spec in &specs {
        let values = (0..spec.parameters()).map(|_| value(spec, &mut random));
        let bytes: Vec<u8> = values.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect();
        writer.write(&spec.name, &bytes)?;
    }
    Ok(writer.finish()?)
}

/// A size that benches compare engines at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// 12 layers of width 512.
    S,
    /// 24 layers of width 1024.
    M,
    /// 24 layers of width 2048, the text model of Janus-Pro-1B.
    L,
}

/// A model of one of these sizes. Nearly the whole vocabulary is text, as in a language model, and nothing but text has a size worth
/// mentioning.
#[must_use]
pub fn shape(shape: Shape) -> UnimodalConfig {
    let (n_layers, d_model, n_heads, n_kv_heads, d_ff, vocab) = match shape {
        Shape::S => (12, 512, 8, 8, 1536, 16_384),
        Shape::M => (24, 1024, 16, 4, 2816, 32_768),
        Shape::L => (24, 2048, 16, 16, 5632, 102_400),
    };
    let mut c = nano();
    (c.n_layers, c.d_model, c.d_ff, c.name) = (n_layers, d_model, d_ff, format!("random-{shape:?}"));
    (c.n_heads, c.n_kv_heads, c.head_dim) = (n_heads, n_kv_heads, d_model / n_heads);
    c.vocab_size = vocab as usize;
    (c.tokens.text, c.tokens.bins, c.tokens.image) =
        ([0, vocab - 32], [vocab - 32, vocab - 16], [vocab - 16, vocab]);
    c.image.codebook_size = 16;
    c.task_prefix_len = 1;
    c.modalities.iter_mut().filter_map(|m| m.window.as_mut()).for_each(|window| *window = 1);
    c
}

/// Writes a bundle of random weights into the new folder `out`, as `saccade-convert` would from [`write_checkpoint`]'s file.
///
/// # Errors
/// [`crate::ConvertError`] when the folder exists or cannot be written.
pub fn write_bundle(out: &Path, model: &UnimodalConfig, recipe: impl Into<Recipe>, seed: u64) -> Result<()> {
    let place = Place::look(out, false)?;
    let path = place.beside(".checkpoint.part");
    // A run that was killed may have left one.
    let _ = std::fs::remove_file(&path);
    write_checkpoint(&path, model, seed)?;
    let written = Checkpoint::open(&path).and_then(|mut checkpoint| {
        bundle::convert(&mut checkpoint, out, recipe, false, &mut Progress::silent())
    });
    std::fs::remove_file(&path).map_err(io(&path))?;
    written.map(drop)
}

fn value(spec: &TensorSpec, random: &mut Random) -> f32 {
    if spec.name.ends_with("norm.weight") {
        return 1.0;
    }
    let [_, k] = spec.matrix();
    match spec.role {
        Role::Exact => 0.02 * random.uniform(),
        // Code books and embeddings are looked up, not multiplied by: of size one.
        Role::Float if spec.shape.len() == 2 => random.uniform(),
        #[allow(clippy::cast_precision_loss, reason = "a fan-in is far below 2²⁴")]
        Role::Linear | Role::Float => (3.0 / k as f32).sqrt() * random.uniform(),
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    /// Uniform in −1 to 1.
    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bits = u16::try_from((z ^ (z >> 31)) >> 48).unwrap_or(0);
        f32::from(bits) / 32_767.5 - 1.0
    }
}

/// A byte-level `tokenizer.json` without merges: the special tokens, then 256 bytes.
fn byte_tokenizer(model: &UnimodalConfig) -> Value {
    let s = model.special;
    let named = [
        (s.pad, "<pad>"),
        (s.eos, "<eos>"),
        (s.img, "<img>"),
        (s.img_end, "</img>"),
        (s.pts, "<pts>"),
        (s.pts_end, "</pts>"),
        (s.state, "<state>"),
        (s.act, "<act>"),
        (s.ask, "<ask>"),
        (s.ans, "<ans>"),
    ];
    let first_byte = named.iter().map(|(id, _)| id + 1).max().unwrap_or(0);
    let mut vocab: Map<String, Value> =
        named.iter().map(|(id, name)| ((*name).to_owned(), json!(id))).collect();
    vocab.extend((first_byte..).zip(byte_letters()).map(|(id, letter)| (letter.to_string(), json!(id))));
    let special = |(id, content)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": named.map(special).to_vec(),
        "normalizer": null, "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": []},
    })
}

/// The letter that stands for each byte in byte-level BPE: itself where it is printable, the next free one from 256 on
/// otherwise. Source: `bytes_to_unicode` of GPT-2.
fn byte_letters() -> impl Iterator<Item = char> {
    let mut free = '\u{100}'..;
    (0..=255u8).map(move |byte| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => free.next().unwrap_or('\u{fffd}'),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_models_of_their_sizes() {
        for (size, millions) in [(Shape::S, 49), (Shape::M, 304), (Shape::L, 1443)] {
            let model = ModelConfig::from(shape(size));
            model.check().unwrap();
            let parameters: usize = tensors(&model).iter().map(TensorSpec::parameters).sum();
            assert_eq!(parameters / 1_000_000, millions, "{size:?}");
        }
    }

    #[test]
    fn a_file_of_a_like_name_survives() {
        let dir = tempfile::tempdir().unwrap();
        let (mine, out) = (dir.path().join("b.safetensors"), dir.path().join("b"));
        std::fs::write(&mine, b"mine").unwrap();
        write_bundle(&out, &nano(), saccade::config::WeightDtype::Int8, 1).unwrap();
        assert_eq!(std::fs::read(&mine).unwrap(), b"mine");
        assert!(write_bundle(&out, &nano(), saccade::config::WeightDtype::Int8, 1).is_err(), "it exists");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left behind");
    }
}
