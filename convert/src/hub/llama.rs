//! `model_type: llama`: SmolLM2 and its kin.

use saccade::config::{DecoderConfig, GenerationConfig, LlamaConfig, NormPlace, QkNorm};
use serde_json::{Map, Value};

use super::{Folder, MAX_NEW_TOKENS, OneOrMany, names};
use crate::error::Result;

/// The language model that a `config.json` describes, or its `text_config`.
pub(super) fn model(folder: &Folder<'_>, c: &Map<String, Value>) -> Result<LlamaConfig> {
    let decoder = decoder(folder, c)?;
    let max_positions = folder.field(c, "max_position_embeddings")?.unwrap_or(2048);
    let bos = folder.field::<u32>(c, "bos_token_id")?.filter(|_| folder.words.add_bos_token == Some(true));
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
    for bias in ["attention_bias", "mlp_bias"] {
        if folder.field::<bool>(c, bias)? == Some(true) {
            return Err(
                folder.refused(format!("`{bias}` is true; linear layers with biases cannot be converted"))
            );
        }
    }
    let act: Option<String> = folder.field(c, "hidden_act")?;
    if let Some(act) = act.filter(|act| act != "silu") {
        return Err(
            folder.refused(format!("`hidden_act` is `{}`, and only `silu` is known", act.escape_debug()))
        );
    }
    Ok(DecoderConfig {
        d_model,
        n_layers: folder.required(c, "num_hidden_layers")?,
        n_heads,
        n_kv_heads: folder.field(c, "num_key_value_heads")?.unwrap_or(n_heads),
        head_dim: folder.field(c, "head_dim")?.unwrap_or(d_model / n_heads.max(1)),
        d_ff: folder.required(c, "intermediate_size")?,
        vocab_size: folder.required(c, "vocab_size")?,
        rope_theta: rope_theta(folder, c)?,
        norm_eps: folder.field(c, "rms_norm_eps")?.unwrap_or(1e-6),
        qk_norm: QkNorm::None,
        norm_place: NormPlace::Before,
        modality_bias: None,
        tied: folder.field(c, "tie_word_embeddings")?.unwrap_or(false),
    })
}

/// The base of the rotary angles, which newer files keep in `rope_parameters` and older ones beside `rope_scaling`.
fn rope_theta(folder: &Folder<'_>, c: &Map<String, Value>) -> Result<f32> {
    let mut theta = folder.field::<f32>(c, "rope_theta")?;
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(rope) = folder.field::<Map<String, Value>>(c, key)? else { continue };
        let kind = rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str);
        if let Some(kind) = kind.filter(|kind| *kind != "default") {
            let kind = kind.escape_debug();
            return Err(folder.refused(format!("`{key}` has the type `{kind}`, and only `default` is known")));
        }
        theta = folder.field::<f32>(&rope, "rope_theta")?.or(theta);
    }
    Ok(theta.unwrap_or(10_000.0))
}

/// Our name for a tensor.
pub(super) fn name(theirs: &str) -> Option<String> {
    if theirs == "lm_head.weight" { Some("head.weight".into()) } else { names::decoder("model.", theirs) }
}
