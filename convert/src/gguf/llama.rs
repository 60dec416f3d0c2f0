//! A GGUF file of the architecture `llama` as a checkpoint.

use std::collections::BTreeMap;
use std::path::Path;

use saccade::config::{
    ChatTemplate, DecoderConfig, GenerationConfig, LlamaConfig, ModelConfig, NormPlace, QkNorm,
};
use saccade::tokenize::TextTokenizer;
use serde_json::{Map, json};

use super::{Array, Gguf, TensorInfo, Value, read_file, tokenizer_json};
use crate::checkpoint::{Checkpoint, config_reason};
use crate::error::{ConvertError, Result};
use crate::hub::MAX_NEW_TOKENS;
use crate::values::{Elements, Origin, Rows, Values};

const AGAIN: &str = "download the file again";
/// Control tokens that end an answer whatever the file names as such.
///
/// Source: the end-of-generation tokens of llama.cpp's `llama-vocab.cpp`.
const ENDS: [&str; 6] =
    ["<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>", "</s>"];

/// Ours for theirs, inside a block.
const BLOCK: [(&str, &str); 9] = [
    ("attn_norm.weight", "attn_norm.weight"),
    ("attn_q.weight", "attn.q.weight"),
    ("attn_k.weight", "attn.k.weight"),
    ("attn_v.weight", "attn.v.weight"),
    ("attn_output.weight", "attn.o.weight"),
    ("ffn_norm.weight", "ffn_norm.weight"),
    ("ffn_gate.weight", "ffn.gate.weight"),
    ("ffn_up.weight", "ffn.up.weight"),
    ("ffn_down.weight", "ffn.down.weight"),
];

/// Opens the file at `path`.
///
/// # Errors
/// [`ConvertError`]: it breaks a rule of the format, is of another architecture, or lacks something.
pub(crate) fn open(path: &Path) -> Result<Checkpoint> {
    let gguf = read_file(path)?;
    let refuse = |reason: String| ConvertError::Refused { path: path.into(), reason };
    let model = model(path, &gguf).map_err(refuse)?;
    model.check().map_err(|error| refuse(format!("{}; {AGAIN}", config_reason(&error))))?;
    let tokenizer = tokenizer_json(&gguf.metadata).map_err(refuse)?;
    TextTokenizer::from_bytes(tokenizer.as_bytes(), &model).map_err(refuse)?;
    let values = values(path, &gguf, &model.decoder())?;
    let mut provenance = Map::new();
    provenance.insert("source".into(), json!("GGUF file"));
    for key in ["general.name", "general.license", "general.file_type"] {
        match gguf.metadata.get(key) {
            Some(Value::String(text)) => provenance.insert(key.into(), json!(text)),
            Some(Value::Unsigned(n)) => provenance.insert(key.into(), json!(n)),
            _ => None,
        };
    }
    Checkpoint::of(path, values, model, tokenizer, provenance, AGAIN)
}

fn model(path: &Path, gguf: &Gguf) -> std::result::Result<ModelConfig, String> {
    let meta = Meta(&gguf.metadata);
    match meta.text("general.architecture") {
        Some("llama") => {}
        found => {
            let found = found.unwrap_or("none").escape_debug();
            return Err(format!(
                "its architecture is `{found}`, which cannot be converted; these can: llama"
            ));
        }
    }
    if gguf.tensors.contains_key("rope_freqs.weight")
        || meta.text("llama.rope.scaling.type").is_some_and(|t| t != "none")
    {
        return Err("its rotary angles are scaled, and only plain ones are known".into());
    }
    let size = |key: &str| meta.size(key)?.ok_or_else(|| format!("`{key}` is missing; {AGAIN}"));
    let (d_model, n_heads) = (size("llama.embedding_length")?, size("llama.attention.head_count")?);
    let head_dim = meta.size("llama.attention.key_length")?.unwrap_or(d_model / n_heads.max(1));
    if meta.size("llama.rope.dimension_count")?.is_some_and(|turned| turned != head_dim) {
        return Err("only a part of each head is turned, and only whole ones are known".into());
    }
    let Some(Value::Array(Array::Strings(tokens))) = gguf.metadata.get("tokenizer.ggml.tokens") else {
        return Err(format!("`tokenizer.ggml.tokens` is missing; {AGAIN}"));
    };
    let max_positions = meta.size("llama.context_length")?.unwrap_or(2048);
    let decoder = DecoderConfig {
        d_model,
        n_layers: size("llama.block_count")?,
        n_heads,
        n_kv_heads: meta.size("llama.attention.head_count_kv")?.unwrap_or(n_heads),
        head_dim,
        d_ff: size("llama.feed_forward_length")?,
        vocab_size: tokens.len(),
        rope_theta: meta.float("llama.rope.freq_base").unwrap_or(10_000.0),
        norm_eps: meta.float("llama.attention.layer_norm_rms_epsilon").unwrap_or(1e-5),
        qk_norm: QkNorm::None,
        norm_place: NormPlace::Before,
        modality_bias: None,
        tied: !gguf.tensors.contains_key("output.weight"),
    };
    let id = |key: &str| meta.size(key).ok().flatten().and_then(|id| u32::try_from(id).ok());
    let word = |id: Option<u32>| id.and_then(|id| tokens.get(id as usize)).cloned().unwrap_or_default();
    let (bos, eos) = (id("tokenizer.ggml.bos_token_id"), id("tokenizer.ggml.eos_token_id"));
    let named = (0..).zip(tokens).filter(|(_, token)| ENDS.contains(&token.as_str())).map(|(id, _)| id);
    let mut end_ids: Vec<u32> =
        eos.into_iter().chain(id("tokenizer.ggml.eot_token_id")).chain(named).collect();
    end_ids.sort_unstable();
    end_ids.dedup();
    let chat = meta.text("tokenizer.chat_template").map(|template| ChatTemplate {
        template: template.into(),
        bos_token: word(bos),
        eos_token: word(eos),
    });
    let adds_bos = matches!(gguf.metadata.get("tokenizer.ggml.add_bos_token"), Some(Value::Bool(true)));
    Ok(ModelConfig::Llama(LlamaConfig {
        name: name(path),
        decoder,
        max_positions,
        bos: bos.filter(|_| adds_bos),
        end_ids,
        chat,
        generation: GenerationConfig { max_new_tokens: MAX_NEW_TOKENS.min(max_positions) },
    }))
}

/// The file's name without what it says of its types: `SmolLM2-135M-Instruct` of `SmolLM2-135M-Instruct.Q4_1.gguf`.
fn name(path: &Path) -> String {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let is_type = |end: &str| {
        let end = end.to_ascii_uppercase();
        end.starts_with(['Q', 'F', 'B', 'I']) && end.contains(|c: char| c.is_ascii_digit()) && end.len() <= 7
    };
    match stem.rsplit_once(['.', '-']) {
        Some((name, end)) if is_type(end) => name.to_owned(),
        _ => stem,
    }
}

fn values(path: &Path, gguf: &Gguf, c: &DecoderConfig) -> Result<Values> {
    let mut values = Values::default();
    let file = values.add_file(path);
    for (theirs, tensor) in &gguf.tensors {
        let TensorInfo { dtype, dims, offset, bytes } = tensor.clone();
        let ours = ours(theirs);
        let rows = match ours.as_deref().map(|ours| ours.rsplit('.').nth(1)) {
            Some(Some("q")) => Rows::Interleaved { heads: c.n_heads },
            Some(Some("k")) => Rows::Interleaved { heads: c.n_kv_heads },
            _ => Rows::AsTheyAre,
        };
        let shape = dims.iter().rev().map(|&n| usize::try_from(n).unwrap_or(usize::MAX)).collect();
        let elements = Elements::Ggml(dtype);
        let origin = Origin { name: theirs.clone(), file, offset, bytes, shape, elements, rows };
        values.add(ours.unwrap_or_else(|| theirs.clone()), origin)?;
    }
    Ok(values)
}

/// Our name for a tensor.
fn ours(theirs: &str) -> Option<String> {
    match theirs {
        "token_embd.weight" => return Some("embed.weight".into()),
        "output_norm.weight" => return Some("norm.weight".into()),
        "output.weight" => return Some("head.weight".into()),
        _ => {}
    }
    let (layer, rest) = theirs.strip_prefix("blk.")?.split_once('.')?;
    let (_, ours) = BLOCK.iter().find(|(theirs, _)| *theirs == rest)?;
    Some(format!("layers.{layer}.{ours}"))
}

/// Typed looks at the metadata.
struct Meta<'a>(&'a BTreeMap<String, Value>);

impl Meta<'_> {
    fn text(&self, key: &str) -> Option<&str> {
        match self.0.get(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "the nearest F32 is what the runtime computes with")]
    fn float(&self, key: &str) -> Option<f32> {
        match self.0.get(key) {
            Some(Value::Float(x)) => Some(*x as f32),
            _ => None,
        }
    }

    fn size(&self, key: &str) -> std::result::Result<Option<usize>, String> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(n)) => Ok(usize::try_from(*n).ok()),
            Some(_) => Err(format!("`{key}` is no size; {AGAIN}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_loses_its_type_alone() {
        for (file, expected) in [
            ("a/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
            ("x-Q4_K_M.gguf", "x"),
            ("x-f16.gguf", "x"),
            ("SmolLM2-135M.gguf", "SmolLM2-135M"),
            ("tiny.gguf", "tiny"),
        ] {
            assert_eq!(name(Path::new(file)), expected);
        }
    }

    #[test]
    fn names_are_turned_into_ours() {
        assert_eq!(ours("blk.12.attn_output.weight").as_deref(), Some("layers.12.attn.o.weight"));
        assert_eq!(ours("output.weight").as_deref(), Some("head.weight"));
        assert_eq!(ours("blk.0.attn_q.bias"), None);
    }
}
