//! `model_type: llama`: SmolLM2 and its kin, and the architectures that differ from it by an option: `mistral`, `qwen2`, `qwen3`.

use saccade::config::{Biases, DecoderConfig, GenerationConfig, LlamaConfig, NormPlace, QkNorm, RopeScaling};
use serde_json::{Map, Value};

use super::{Folder, MAX_NEW_TOKENS, OneOrMany, names};
use crate::error::Result;

/// The language model that a `config.json` of the architecture `kind` describes.
pub(super) fn kin(folder: &Folder<'_>, kind: &str) -> Result<LlamaConfig> {
    let c = &folder.config;
    let mut model = model(folder, c)?;
    if kind != "llama" {
        // Their defaults depend on the architecture, and every published file has it.
        folder.required::<usize>(c, "num_key_value_heads")?;
    }
    match kind {
        "qwen2" => model.decoder.biases.qkv = true,
        "qwen3" => {
            folder.required::<usize>(c, "head_dim")?;
            model.decoder.qk_norm = QkNorm::Rms;
        }
        _ => {}
    }
    check_window(folder, kind, model.max_positions)?;
    Ok(model)
}

/// Whether every token sees all before it, however long the text gets.
fn check_window(folder: &Folder<'_>, kind: &str, max_positions: usize) -> Result<()> {
    let c = &folder.config;
    let used = match kind {
        "mistral" => true,
        "llama" => false,
        _ => folder.field(c, "use_sliding_window")?.unwrap_or(false),
    };
    let window: Option<usize> = match c.get("sliding_window") {
        // What `MistralConfig` and `Qwen2Config` of transformers say then.
        None => Some(4096),
        Some(_) => folder.field(c, "sliding_window")?,
    };
    match window.filter(|&window| used && window < max_positions) {
        None => Ok(()),
        Some(window) => Err(folder.refused(format!(
            "`sliding_window` is {window}, below the {max_positions} of `max_position_embeddings`; attention over a window cannot be \
             converted"
        ))),
    }
}

/// The language model that a `config.json` describes, or its `text_config`.
pub(super) fn model(folder: &Folder<'_>, c: &Map<String, Value>) -> Result<LlamaConfig> {
    let decoder = decoder(folder, c)?;
    let max_positions = folder.field(c, "max_position_embeddings")?.unwrap_or(2048);
    // What `LlamaTokenizer` of transformers does unless it is told otherwise, and nothing else tells it here.
    let alone = !folder.path.join("tokenizer.json").exists() && folder.path.join(super::PIECES).exists();
    let adds_bos = folder.words.add_bos_token.unwrap_or(alone);
    let bos = folder.field::<u32>(c, "bos_token_id")?.filter(|_| adds_bos);
    let ends: Option<OneOrMany> = folder.field(c, "eos_token_id")?;
    let ends = folder.generation.eos_token_id.clone().or(ends);
    let ends = ends.ok_or_else(|| {
        folder.refused("field `eos_token_id` is missing, so nothing would end an answer".into())
    })?;
    Ok(LlamaConfig {
        name: folder.name.clone(),
        decoder,
        max_positions,
        bos,
        end_ids: ends.ids(),
        chat: folder.chat()?,
        generation: GenerationConfig {
            max_new_tokens: folder.generation.max_new_tokens.unwrap_or(MAX_NEW_TOKENS.min(max_positions)),
        },
    })
}

/// Sizes and options of a decoder; `c` is `config.json` or its `text_config`.
pub(super) fn decoder(folder: &Folder<'_>, c: &Map<String, Value>) -> Result<DecoderConfig> {
    let (d_model, n_heads): (usize, usize) =
        (folder.required(c, "hidden_size")?, folder.required(c, "num_attention_heads")?);
    let biased = |key: &str| -> Result<bool> { Ok(folder.field(c, key)?.unwrap_or(false)) };
    let attention_bias = biased("attention_bias")?;
    let act: Option<String> = folder.field(c, "hidden_act")?;
    if let Some(act) = act.filter(|act| act != "silu") {
        return Err(
            folder.refused(format!("`hidden_act` is `{}`, and only `silu` is known", act.escape_debug()))
        );
    }
    let (rope_theta, rope_scaling) = rope(folder, c)?;
    Ok(DecoderConfig {
        d_model,
        n_layers: folder.required(c, "num_hidden_layers")?,
        n_heads,
        n_kv_heads: folder.field(c, "num_key_value_heads")?.unwrap_or(n_heads),
        head_dim: folder.field(c, "head_dim")?.unwrap_or(d_model / n_heads.max(1)),
        d_ff: folder.required(c, "intermediate_size")?,
        vocab_size: folder.required(c, "vocab_size")?,
        rope_theta,
        rope_scaling,
        norm_eps: folder.field(c, "rms_norm_eps")?.unwrap_or(1e-6),
        qk_norm: QkNorm::None,
        norm_place: NormPlace::Before,
        modality_bias: None,
        biases: Biases { qkv: attention_bias, o: attention_bias, ffn: biased("mlp_bias")? },
        tied: folder.field(c, "tie_word_embeddings")?.unwrap_or(false),
    })
}

/// The base of the rotary angles and their scaling, which newer files keep in `rope_parameters` and older ones in `rope_theta` and
/// `rope_scaling`.
fn rope(folder: &Folder<'_>, c: &Map<String, Value>) -> Result<(f32, RopeScaling)> {
    let mut theta = folder.field::<f32>(c, "rope_theta")?;
    let mut scaling = RopeScaling::None;
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(rope) = folder.field::<Map<String, Value>>(c, key)? else { continue };
        theta = folder.field::<f32>(&rope, "rope_theta")?.or(theta);
        let kind = rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str);
        scaling = match kind.unwrap_or("default") {
            "default" => scaling,
            "linear" => RopeScaling::Linear { factor: folder.required(&rope, "factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: folder.required(&rope, "factor")?,
                low_freq_factor: folder.required(&rope, "low_freq_factor")?,
                high_freq_factor: folder.required(&rope, "high_freq_factor")?,
                original_positions: folder.required(&rope, "original_max_position_embeddings")?,
            },
            "yarn" => yarn(folder, c, &rope)?,
            other => {
                return Err(folder.refused(format!(
                    "`{key}` has the type `{}`, and only `default`, `linear`, `llama3` and `yarn` are known",
                    other.escape_debug()
                )));
            }
        };
        check_whole_heads(folder, &rope)?;
    }
    check_whole_heads(folder, c)?;
    Ok((theta.unwrap_or(10_000.0), scaling))
}

fn check_whole_heads(folder: &Folder<'_>, object: &Map<String, Value>) -> Result<()> {
    match folder.field::<f64>(object, "partial_rotary_factor")?.filter(|&part| part < 1.0) {
        None => Ok(()),
        Some(part) => {
            Err(folder
                .refused(format!("`partial_rotary_factor` is {part}, and only whole heads can be turned")))
        }
    }
}

/// Source: `_compute_yarn_parameters` of transformers.
#[allow(clippy::cast_precision_loss, reason = "a number of positions far below 2²⁴")]
fn yarn(folder: &Folder<'_>, c: &Map<String, Value>, rope: &Map<String, Value>) -> Result<RopeScaling> {
    let number = |key: &str| folder.field::<f32>(rope, key);
    if folder.field(rope, "truncate")? == Some(false) {
        return Err(
            folder.refused("`truncate` of its rotary scaling is false, and only true is known".into())
        );
    }
    let max_positions: Option<usize> = folder.field(c, "max_position_embeddings")?;
    let original: Option<usize> = folder.field(rope, "original_max_position_embeddings")?.or(max_positions);
    let original_positions = original.unwrap_or(2048);
    let factor = match number("factor")? {
        Some(factor) => factor,
        None => max_positions.unwrap_or(original_positions) as f32 / original_positions.max(1) as f32,
    };
    // As `RopeScaling::yarn_amplitude`, with a weight for the logarithm.
    let weighted = |weight: f32| weight * (RopeScaling::yarn_amplitude(factor) - 1.0) + 1.0;
    let given = |weight: Option<f32>| weight.filter(|&weight| weight != 0.0);
    let amplitude =
        match (number("attention_factor")?, given(number("mscale")?), given(number("mscale_all_dim")?)) {
            (Some(amplitude), ..) => amplitude,
            (None, Some(above), Some(below)) => weighted(above) / weighted(below),
            _ => weighted(1.0),
        };
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: number("beta_fast")?.unwrap_or(32.0),
        beta_slow: number("beta_slow")?.unwrap_or(1.0),
        original_positions,
        amplitude,
    })
}

/// Our name for a tensor.
pub(super) fn name(theirs: &str) -> Option<String> {
    if theirs == "lm_head.weight" { Some("head.weight".into()) } else { names::decoder("model.", theirs) }
}
