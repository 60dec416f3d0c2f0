//! `model_type: janus`: Janus and Janus-Pro.

use saccade::config::{CodeNorm, DrawingConfig, JanusConfig, ModelConfig, VisionConfig, VqConfig};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Folder, llama, names, pixels};
use crate::error::Result;

/// `vision_config`, as far as it is used.
#[derive(Deserialize)]
struct Vision {
    hidden_size: usize,
    image_size: usize,
    patch_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    mlp_ratio: f64,
    #[serde(default = "layer_norm_eps")]
    layer_norm_eps: f32,
    #[serde(default = "two")]
    depth: usize,
    #[serde(default)]
    use_qk_norm: bool,
    hidden_act: Option<String>,
}

/// `vq_config`, as far as it is used.
#[derive(Deserialize)]
struct Vq {
    base_channels: usize,
    channel_multiplier: Vec<usize>,
    num_res_blocks: usize,
    latent_channels: usize,
    embed_dim: usize,
    num_embeddings: usize,
    projection_dim: usize,
    #[serde(default = "two")]
    num_hidden_layers: usize,
    #[serde(default)]
    double_latent: bool,
    out_channels: Option<usize>,
}

/// The default of transformers' `JanusVisionConfig`.
fn layer_norm_eps() -> f32 {
    1e-6
}

fn two() -> usize {
    2
}

/// Ours for theirs, inside a block of the vision transformer.
const VISION_BLOCK: [(&str, &str); 8] = [
    ("layer_norm1", "norm1"),
    ("self_attn.q_proj", "attn.q"),
    ("self_attn.k_proj", "attn.k"),
    ("self_attn.v_proj", "attn.v"),
    ("self_attn.projection_layer", "attn.o"),
    ("layer_norm2", "norm2"),
    ("mlp.fc1", "fc1"),
    ("mlp.fc2", "fc2"),
];
/// Ours for theirs, outside of blocks.
const WHOLE: [(&str, &str); 9] = [
    ("vision_model.embeddings.patch_embedding", "vision.patch"),
    ("vision_model.embeddings.position_embedding", "vision.position"),
    ("vision_model.post_layernorm", "vision.norm"),
    ("aligner.fc1", "vision.aligner.0"),
    ("generation_embeddings", "drawing.embed"),
    ("generation_aligner.fc1", "drawing.aligner.0"),
    ("generation_head.proj_out", "drawing.head.0"),
    ("generation_head.vision_head", "drawing.head.1"),
    ("lm_head", "head"),
];

/// The model that a `config.json` describes.
pub(super) fn model(folder: &Folder<'_>) -> Result<ModelConfig> {
    let c = &folder.config;
    let text: Map<String, Value> = folder.required(c, "text_config")?;
    let mut language = llama::model(folder, &text)?;
    language.bos = folder.field(&text, "bos_token_id")?;
    let vision: Vision = folder.required(c, "vision_config")?;
    let vq: Vq = folder.required(c, "vq_config")?;
    if vision.use_qk_norm || vision.hidden_act.as_deref().is_some_and(|act| act != "gelu") {
        return Err(folder.refused(
            "its `vision_config` norms queries and keys, or has another activation than `gelu`".into(),
        ));
    }
    if vq.double_latent || vq.out_channels.is_some_and(|n| n != 3) {
        return Err(
            folder.refused("its `vq_config` has double latents, or draws other than three channels".into())
        );
    }
    let vocabulary: super::Vocabulary = super::vocabulary(folder)?;
    let named = |word: &Option<super::Word>, usual: &str| {
        let name = word.as_ref().map_or(usual, super::Word::text);
        let id = if vocabulary.is_empty() { Some(0) } else { vocabulary.get(name).copied() };
        id.ok_or_else(|| folder.refused(format!("tokenizer.json has no token `{}`", name.escape_debug())))
    };
    let side = vision.image_size / vision.patch_size.max(1);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "as transformers does"
    )]
    let d_ff = (vision.hidden_size as f64 * vision.mlp_ratio) as usize;
    Ok(ModelConfig::Janus(JanusConfig {
        vision: VisionConfig {
            pixels: pixels::config(folder)?,
            image_size: vision.image_size,
            patch_size: vision.patch_size,
            d_model: vision.hidden_size,
            n_layers: vision.num_hidden_layers,
            n_heads: vision.num_attention_heads,
            d_ff,
            norm_eps: vision.layer_norm_eps,
            aligner_layers: vision.depth,
            placeholder: folder.required(c, "image_token_id")?,
            begin: named(&folder.words.boi_token, "<begin_of_image>")?,
            end: named(&folder.words.eoi_token, "<end_of_image>")?,
        },
        drawing: DrawingConfig {
            // transformers overwrites `num_patches` so.
            grid: [side, side],
            aligner_layers: vq.num_hidden_layers,
            d_head: vq.projection_dim,
            pad: folder.field(&text, "pad_token_id")?.unwrap_or(0),
            vq: VqConfig {
                base_channels: vq.base_channels,
                channel_multiplier: vq.channel_multiplier,
                n_res: vq.num_res_blocks,
                latent_channels: vq.latent_channels,
                code_dim: vq.embed_dim,
                codebook_size: vq.num_embeddings,
                last_level_attention: true,
                decoder: true,
                code_norm: CodeNorm::Lookup,
            },
        },
        language,
    }))
}

/// Our name for a tensor.
pub(super) fn name(theirs: &str) -> Option<String> {
    let (stem, end) = theirs.rsplit_once('.')?;
    let stem = stem.strip_prefix("model.").unwrap_or(stem);
    if let Some((_, ours)) = WHOLE.iter().find(|(whole, _)| *whole == stem) {
        return Some(format!("{ours}.{end}"));
    }
    if let Some(rest) = stem.strip_prefix("vision_model.encoder.layers.") {
        let (layer, rest) = rest.split_once('.')?;
        let (_, ours) = VISION_BLOCK.iter().find(|(theirs, _)| *theirs == rest)?;
        return Some(format!("vision.layers.{layer}.{ours}.{end}"));
    }
    for (theirs, ours) in [
        ("aligner.hidden_layers.", "vision.aligner"),
        ("generation_aligner.hidden_layers.", "drawing.aligner"),
    ] {
        if let Some(layer) = stem.strip_prefix(theirs) {
            return Some(format!("{ours}.{}.{end}", layer.parse::<usize>().ok()?.checked_add(1)?));
        }
    }
    match stem.strip_prefix("vqmodel.") {
        Some(rest) => Some(format!("vq.{rest}.{end}")),
        None => names::decoder("model.language_model.", theirs),
    }
}
