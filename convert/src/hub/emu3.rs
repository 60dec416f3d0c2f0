//! `model_type: emu3`: Emu3 Chat and Gen.

use std::collections::BTreeMap;

use saccade::config::{ClipCodes, Emu3Config, ModelConfig, MovqConfig};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Folder, Word, llama, names, pixels};
use crate::error::Result;

/// Stands behind each row of a picture. Source: `Emu3ImageVocabularyMapping` of transformers, which has no setting for it.
const ROW_END: &str = "<|extra_200|>";

/// `vq_config`, as far as it is used.
#[derive(Deserialize)]
struct Vq {
    base_channels: usize,
    channel_multiplier: Vec<usize>,
    num_res_blocks: usize,
    attn_resolutions: Vec<usize>,
    latent_channels: usize,
    embed_dim: usize,
    codebook_size: usize,
    temporal_downsample_factor: usize,
    #[serde(default)]
    double_latent: bool,
    hidden_size: Option<usize>,
    #[serde(default = "one")]
    num_attention_heads: usize,
    #[serde(default = "three")]
    in_channels: usize,
    #[serde(default = "three")]
    out_channels: usize,
}

const fn one() -> usize {
    1
}

const fn three() -> usize {
    3
}

/// The model that a `config.json` describes.
pub(super) fn model(folder: &Folder<'_>) -> Result<ModelConfig> {
    let c = &folder.config;
    let text: Map<String, Value> = folder.required(c, "text_config")?;
    let mut language = llama::model(folder, &text)?;
    // Source: `Emu3Processor` of transformers, which puts it before every text, whatever the tokenizer's own settings.
    language.bos = folder.field(&text, "bos_token_id")?;
    let movq = movq(folder, folder.required(c, "vq_config")?)?;
    let vocabulary: BTreeMap<String, u32> = folder.required(c, "vocabulary_map")?;
    let token = |what: &str, word: Option<&Word>, usual: &str| {
        folder.token(&vocabulary, what, word.map_or(usual, Word::text))
    };
    let words = &folder.words;
    let image = ClipCodes {
        pixels: pixels::config(folder)?,
        placeholder: match folder.field(c, "image_token_id")? {
            Some(id) => id,
            None => token("place of a picture", None, "<image>")?,
        },
        begin: token("begin of a picture", words.boi_token.as_ref(), "<|image start|>")?,
        end: token("end of a picture", words.eoi_token.as_ref(), "<|image end|>")?,
        wrapper: token("end of a picture's size", words.image_wrapper_token.as_ref(), "<|image token|>")?,
        row_end: token("end of a row", None, ROW_END)?,
        frame_end: token("end of the rows", words.eof_token.as_ref(), "<|extra_201|>")?,
        ids: folder.code_ids(&vocabulary, movq.codebook_size, code)?,
        movq,
    };
    Ok(ModelConfig::Emu3(Emu3Config { language, image }))
}

/// The sizes of encoder and decoder.
fn movq(folder: &Folder<'_>, vq: Vq) -> Result<MovqConfig> {
    let top = vq.channel_multiplier.last().and_then(|m| vq.base_channels.checked_mul(*m));
    if vq.double_latent || vq.latent_channels != vq.embed_dim || vq.in_channels != 3 || vq.out_channels != 3 {
        let reason = "its `vq_config` has double latents, other latent channels than its code book, or pictures of other than three \
                      channels, which no published checkpoint has and which cannot be converted";
        return Err(folder.refused(reason.into()));
    }
    if vq.num_attention_heads != 1 || vq.hidden_size.is_some_and(|size| Some(size) != top) {
        let reason = "its `vq_config` has attention of several heads, or of another width than the last level, which no published \
                      checkpoint has and which cannot be converted";
        return Err(folder.refused(reason.into()));
    }
    Ok(MovqConfig {
        base_channels: vq.base_channels,
        channel_multiplier: vq.channel_multiplier,
        attention_levels: vq.attn_resolutions,
        n_res: vq.num_res_blocks,
        code_dim: vq.embed_dim,
        codebook_size: vq.codebook_size,
        time_factor: vq.temporal_downsample_factor,
    })
}

/// Code 27 is called `<|visual token 000027|>`.
fn code(name: &str) -> Option<Option<usize>> {
    let digits = name.strip_prefix("<|visual token ")?.strip_suffix("|>")?;
    // A number may have a sign before it, a code may not.
    Some(
        Some(digits).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit())).and_then(|d| d.parse().ok()),
    )
}

/// Our name for a tensor, of files (`text_model.model.…`, `vqmodel.…`) and of modules (`model.text_model.…`, `model.vqmodel.…`).
pub(super) fn name(theirs: &str) -> Option<String> {
    if matches!(theirs, "text_model.lm_head.weight" | "lm_head.weight") {
        return Some("head.weight".into());
    }
    let inner = theirs.strip_prefix("model.").unwrap_or(theirs);
    if let Some(rest) = inner.strip_prefix("vqmodel.") {
        return Some(format!("movq.{rest}"));
    }
    let text = inner.strip_prefix("text_model.")?;
    names::decoder("", text.strip_prefix("model.").unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_have_the_same_names() {
        for (file, module, ours) in [
            ("text_model.lm_head.weight", "lm_head.weight", "head.weight"),
            ("text_model.model.embed_tokens.weight", "model.text_model.embed_tokens.weight", "embed.weight"),
            (
                "text_model.model.layers.7.mlp.up_proj.weight",
                "model.text_model.layers.7.mlp.up_proj.weight",
                "layers.7.ffn.up.weight",
            ),
            (
                "vqmodel.encoder.time_conv.0.conv.conv.bias",
                "model.vqmodel.encoder.time_conv.0.conv.conv.bias",
                "movq.encoder.time_conv.0.conv.conv.bias",
            ),
        ] {
            assert_eq!(name(file).as_deref(), Some(ours), "{file}");
            assert_eq!(name(module).as_deref(), Some(ours), "{module}");
        }
        assert_eq!(name("vision_model.x.weight"), None);
    }

    #[test]
    fn a_code_is_six_digits_in_words() {
        assert_eq!(code("<|visual token 000027|>"), Some(Some(27)));
        assert_eq!(code("<|visual token +00027|>"), Some(None));
        assert_eq!(code("<|visual token |>"), Some(None));
        assert_eq!(code("<|image token|>"), None);
    }
}
