//! A GGUF file of the architecture `llama`, `qwen2` or `qwen3` as a checkpoint.

use std::collections::BTreeMap;
use std::path::Path;

use saccade::config::{
    Biases, ChatTemplate, DecoderConfig, GenerationConfig, LlamaConfig, ModelConfig, NormPlace, QkNorm,
    RopeScaling,
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

/// Architectures, and whether llama.cpp's converter leaves the rows of their queries and keys in rotary pairs.
const KNOWN: [(&str, bool); 3] = [("llama", true), ("qwen2", false), ("qwen3", false)];

/// Ours for theirs, inside a block.
const BLOCK: [(&str, &str); 18] = [
    ("attn_norm.weight", "attn_norm.weight"),
    ("attn_q.weight", "attn.q.weight"),
    ("attn_k.weight", "attn.k.weight"),
    ("attn_v.weight", "attn.v.weight"),
    ("attn_output.weight", "attn.o.weight"),
    ("ffn_norm.weight", "ffn_norm.weight"),
    ("ffn_gate.weight", "ffn.gate.weight"),
    ("ffn_up.weight", "ffn.up.weight"),
    ("ffn_down.weight", "ffn.down.weight"),
    ("attn_q_norm.weight", "attn.q_norm.weight"),
    ("attn_k_norm.weight", "attn.k_norm.weight"),
    ("attn_q.bias", "attn.q.bias"),
    ("attn_k.bias", "attn.k.bias"),
    ("attn_v.bias", "attn.v.bias"),
    ("attn_output.bias", "attn.o.bias"),
    ("ffn_gate.bias", "ffn.gate.bias"),
    ("ffn_up.bias", "ffn.up.bias"),
    ("ffn_down.bias", "ffn.down.bias"),
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
    let arch = architecture(gguf)?.0;
    let meta = Meta { metadata: &gguf.metadata, arch };
    let size = |key: &str| meta.size(key)?.ok_or_else(|| format!("`{arch}.{key}` is missing; {AGAIN}"));
    let (d_model, n_heads) = (size("embedding_length")?, size("attention.head_count")?);
    let head_dim = meta.size("attention.key_length")?.unwrap_or(d_model / n_heads.max(1));
    if meta.size("rope.dimension_count")?.is_some_and(|turned| turned != head_dim) {
        return Err("only a part of each head is turned, and only whole ones are known".into());
    }
    let Some(Value::Array(Array::Strings(tokens))) = gguf.metadata.get("tokenizer.ggml.tokens") else {
        return Err(format!("`tokenizer.ggml.tokens` is missing; {AGAIN}"));
    };
    let max_positions = meta.size("context_length")?.unwrap_or(2048);
    if let Some(window) = meta.size("attention.sliding_window")?.filter(|&window| window < max_positions) {
        return Err(format!(
            "`{arch}.attention.sliding_window` is {window}, below the {max_positions} of its context; attention over a window cannot \
             be converted"
        ));
    }
    let has = |tensor: &str| gguf.tensors.contains_key(tensor);
    let decoder = DecoderConfig {
        d_model,
        n_layers: size("block_count")?,
        n_heads,
        n_kv_heads: meta.size("attention.head_count_kv")?.unwrap_or(n_heads),
        head_dim,
        d_ff: size("feed_forward_length")?,
        vocab_size: tokens.len(),
        rope_theta: meta.float("rope.freq_base").unwrap_or(10_000.0),
        rope_scaling: rope_scaling(&meta, has("rope_freqs.weight"), max_positions)?,
        norm_eps: meta.float("attention.layer_norm_rms_epsilon").unwrap_or(1e-5),
        qk_norm: if arch == "qwen3" { QkNorm::Rms } else { QkNorm::None },
        norm_place: NormPlace::Before,
        modality_bias: None,
        biases: Biases {
            qkv: has("blk.0.attn_q.bias"),
            o: has("blk.0.attn_output.bias"),
            ffn: has("blk.0.ffn_up.bias"),
        },
        tied: !has("output.weight"),
    };
    let id = |key: &str| meta.id(&format!("tokenizer.ggml.{key}"));
    let word = |id: Option<u32>| id.and_then(|id| tokens.get(id as usize)).cloned().unwrap_or_default();
    let (bos, eos) = (id("bos_token_id"), id("eos_token_id"));
    let named = (0..).zip(tokens).filter(|(_, token)| ENDS.contains(&token.as_str())).map(|(id, _)| id);
    let mut end_ids: Vec<u32> = eos.into_iter().chain(id("eot_token_id")).chain(named).collect();
    end_ids.sort_unstable();
    end_ids.dedup();
    let chat = text(&gguf.metadata, "tokenizer.chat_template").map(|template| ChatTemplate {
        template: template.into(),
        bos_token: word(bos),
        eos_token: word(eos),
    });
    // What llama.cpp does unless it is told otherwise.
    let pieces = text(&gguf.metadata, "tokenizer.ggml.model") == Some("llama");
    let adds_bos = match gguf.metadata.get("tokenizer.ggml.add_bos_token") {
        Some(Value::Bool(adds)) => *adds,
        _ => pieces,
    };
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

/// The file's architecture, and whether rows of queries and keys lie in rotary pairs.
fn architecture(gguf: &Gguf) -> std::result::Result<(&'static str, bool), String> {
    let found = text(&gguf.metadata, "general.architecture").unwrap_or("none");
    KNOWN.into_iter().find(|(known, _)| *known == found).ok_or_else(|| {
        let found = found.escape_debug();
        let known = KNOWN.map(|(known, _)| known).join(", ");
        format!("its architecture is `{found}`, which cannot be converted; these can: {known}")
    })
}

/// How rotary angles are scaled: by a tensor of factors, or by what the metadata says.
///
/// Source: `load_hparams` and the constructor of `llama_context` in llama.cpp.
fn rope_scaling(meta: &Meta<'_>, factors: bool, context: usize) -> std::result::Result<RopeScaling, String> {
    let factor = meta.float("rope.scaling.factor").or(meta.float("rope.scale_linear")).filter(|&f| f != 0.0);
    let factor = factor.unwrap_or(1.0);
    let kind = meta.text("rope.scaling.type").unwrap_or("linear");
    match kind {
        _ if factors && (kind == "none" || factor == 1.0) => Ok(RopeScaling::Factors),
        _ if factors => Err(format!(
            "its rotary angles have factors of their own and the scaling `{}`, and only one of both is known",
            kind.escape_debug()
        )),
        "none" => Ok(RopeScaling::None),
        "linear" if factor == 1.0 => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor }),
        "yarn" if meta.float("rope.scaling.yarn_log_multiplier").is_none_or(|by| by == 0.0) => {
            Ok(RopeScaling::Yarn {
                factor,
                beta_fast: meta.float("rope.scaling.yarn_beta_fast").unwrap_or(32.0),
                beta_slow: meta.float("rope.scaling.yarn_beta_slow").unwrap_or(1.0),
                original_positions: meta.size("rope.scaling.original_context_length")?.unwrap_or(context),
                amplitude: RopeScaling::yarn_amplitude(factor)
                    * meta.float("rope.scaling.attn_factor").unwrap_or(1.0),
            })
        }
        _ => Err(format!(
            "its rotary angles have the scaling `{}`, and only `linear`, plain `yarn` and a tensor of factors are known",
            kind.escape_debug()
        )),
    }
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
    let pairs = architecture(gguf).is_ok_and(|(_, pairs)| pairs);
    for (theirs, tensor) in &gguf.tensors {
        let TensorInfo { dtype, dims, offset, bytes } = tensor.clone();
        let ours = ours(theirs);
        let rows = match ours.as_deref().map(|ours| ours.rsplit('.').nth(1)) {
            Some(Some("q")) if pairs => Rows::Interleaved { heads: c.n_heads },
            Some(Some("k")) if pairs => Rows::Interleaved { heads: c.n_kv_heads },
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
        "rope_freqs.weight" => return Some("rope.factors".into()),
        _ => {}
    }
    let (layer, rest) = theirs.strip_prefix("blk.")?.split_once('.')?;
    let (_, ours) = BLOCK.iter().find(|(theirs, _)| *theirs == rest)?;
    Some(format!("layers.{layer}.{ours}"))
}

fn text<'a>(metadata: &'a BTreeMap<String, Value>, key: &str) -> Option<&'a str> {
    match metadata.get(key) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

/// Typed looks at what the metadata says of an architecture, whose name stands before each key.
struct Meta<'a> {
    metadata: &'a BTreeMap<String, Value>,
    arch: &'a str,
}

impl Meta<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(&format!("{}.{key}", self.arch))
    }

    fn text(&self, key: &str) -> Option<&str> {
        text(self.metadata, &format!("{}.{key}", self.arch))
    }

    #[allow(clippy::cast_possible_truncation, reason = "the nearest F32 is what the runtime computes with")]
    fn float(&self, key: &str) -> Option<f32> {
        match self.get(key) {
            Some(Value::Float(x)) => Some(*x as f32),
            _ => None,
        }
    }

    fn size(&self, key: &str) -> std::result::Result<Option<usize>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(n)) => Ok(usize::try_from(*n).ok()),
            Some(_) => Err(format!("`{}.{key}` is no size; {AGAIN}", self.arch)),
        }
    }

    /// A token's id under a whole key.
    fn id(&self, key: &str) -> Option<u32> {
        match self.metadata.get(key) {
            Some(Value::Unsigned(id)) => u32::try_from(*id).ok(),
            _ => None,
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
        assert_eq!(ours("blk.0.attn_q.bias").as_deref(), Some("layers.0.attn.q.bias"));
        assert_eq!(ours("blk.0.ffn_gate_inp.weight"), None);
    }

    #[test]
    fn rotary_scaling_is_what_the_metadata_says() {
        let found = |entries: &[(&str, Value)], factors| {
            let entry = |(key, value): &(&str, Value)| (format!("llama.rope.{key}"), value.clone());
            let metadata = entries.iter().map(entry).collect();
            rope_scaling(&Meta { metadata: &metadata, arch: "llama" }, factors, 512)
        };
        let (text, float) = (|kind: &str| ("scaling.type", Value::String(kind.into())), Value::Float);
        assert_eq!(found(&[], false), Ok(RopeScaling::None));
        assert_eq!(found(&[], true), Ok(RopeScaling::Factors));
        assert_eq!(found(&[text("none"), ("scaling.factor", float(4.0))], false), Ok(RopeScaling::None));
        let linear = Ok(RopeScaling::Linear { factor: 4.0 });
        assert_eq!(found(&[("scaling.factor", float(4.0))], false), linear);
        assert_eq!(found(&[text("linear"), ("scale_linear", float(4.0))], false), linear);
        let yarn = [
            text("yarn"),
            ("scaling.factor", float(4.0)),
            ("scaling.attn_factor", float(2.0)),
            ("scaling.yarn_beta_fast", float(16.0)),
        ];
        let expected = RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 16.0,
            beta_slow: 1.0,
            original_positions: 512,
            amplitude: 2.0 * RopeScaling::yarn_amplitude(4.0),
        };
        assert_eq!(found(&yarn, false), Ok(expected));
        let weighted = [&yarn[..], &[("scaling.yarn_log_multiplier", float(0.1))]].concat();
        for (entries, factors) in [(&weighted[..], false), (&[text("longrope")], false), (&yarn, true)] {
            let sentence = found(entries, factors).unwrap_err();
            assert!(sentence.contains("its rotary angles have"), "{sentence}");
        }
    }
}
