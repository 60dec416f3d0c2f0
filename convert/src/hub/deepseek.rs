//! `model_type: multi_modality`: Janus and Janus-Pro as DeepSeek published them.
//!
//! The same networks as [`janus`](super::janus) under other names: the configuration is brought into the form of transformers here, and the
//! tensors have names of their own. Queries, keys and values of the eye lie in one tensor.
//!
//! Source: `janus/models/{modeling_vlm,clip_encoder,siglip_vit,projector,vq_model}.py` and `janus/utils/conversation.py` of deepseek-ai/Janus.

use saccade::config::{ChatTemplate, ModelConfig};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Folder, Vocabulary, Word, janus, names};
use crate::error::Result;

/// A part of `config.json`: which class, and what it is made with.
#[derive(Deserialize)]
struct Part<T> {
    params: T,
}

/// Sizes that `params` says itself go before those of the name.
#[derive(Deserialize)]
struct Vision {
    model_name: String,
    image_size: usize,
    select_layer: Option<i64>,
    width: Option<usize>,
    layers: Option<usize>,
    heads: Option<usize>,
    patch_size: Option<usize>,
    mlp_ratio: Option<f64>,
}

#[derive(Deserialize)]
struct Projector {
    projector_type: String,
    depth: usize,
}

/// Its networks are `VQ-16` unless `params` says other sizes.
#[derive(Deserialize)]
struct GenVision {
    image_token_size: usize,
    n_embed: usize,
    ch: Option<usize>,
    encoder_ch_mult: Option<Vec<usize>>,
    num_res_blocks: Option<usize>,
    z_channels: Option<usize>,
}

#[derive(Deserialize)]
struct GenHead {
    image_token_embed: usize,
}

/// Vision transformers by name: width, layers, heads, patch, ratio of the inner width. Source: `SigLIP_MODEL_CONFIG`.
const SIGLIP: [(&str, [usize; 4], f64); 3] = [
    ("siglip_large_patch16_384", [1024, 24, 16, 16], 4.0),
    ("siglip_so400m_patch14_384", [1152, 27, 16, 14], 3.7362),
    ("siglip_so400m_patch14_224", [1152, 27, 16, 14], 3.7362),
];

/// Spellings that the processor has built in, or that the tokenizer's configuration leaves out.
const PLACEHOLDER: &str = "<image_placeholder>";
const BOS: &str = "<｜begin▁of▁sentence｜>";
const EOS: &str = "<｜end▁of▁sentence｜>";
const PAD: &str = "<｜▁pad▁｜>";

/// The conversation named `deepseek`, with the system prompt of `VLChatProcessor`.
const TEMPLATE: &str = "{% if messages[0].role != 'system' %}You are a helpful language and vision assistant. You are able to understand \
                        the visual content that the user provides, and assist the user with a variety of tasks using natural language.\
                        {{ '\\n\\n' }}{% endif %}{% for m in messages %}{{ '<|User|>: ' if m.role == 'user' else '<|Assistant|>: ' if \
                        m.role == 'assistant' else '' }}{% for c in m.content %}{% if c.type == 'image' %}<image_placeholder>\
                        {{ '' if loop.last else '\\n' }}{% else %}{{ c.text.strip() }}{% endif %}{% endfor %}{{ eos_token if m.role == \
                        'assistant' else '\\n\\n' }}{% endfor %}<|Assistant|>:";

/// What does not belong to the model: a head of the eye and a counter of training, neither of which is ever used.
pub(super) const LEFT_OUT: [&str; 2] =
    ["vision_model.vision_tower.attn_pool.", "gen_vision_model.quantize.codebook_used"];

/// The model that a `config.json` describes.
pub(super) fn model(folder: Folder<'_>) -> Result<ModelConfig> {
    let folder = Folder { config: translated(&folder)?, ..folder };
    let mut model = janus::model(&folder)?;
    if let ModelConfig::Janus(c) = &mut model
        && c.language.chat.is_none()
    {
        let word = |word: &Option<Word>, usual: &str| word.as_ref().map_or(usual, Word::text).to_owned();
        c.language.chat = Some(ChatTemplate {
            template: TEMPLATE.into(),
            bos_token: word(&folder.words.bos_token, BOS),
            eos_token: word(&folder.words.eos_token, EOS),
        });
    }
    Ok(model)
}

/// `config.json` as transformers would have it.
fn translated(folder: &Folder<'_>) -> Result<Map<String, Value>> {
    let c = &folder.config;
    let vocabulary = super::vocabulary(folder)?;
    let Part { params: vision } = folder.required::<Part<Vision>>(c, "vision_config")?;
    let Part { params: aligner } = folder.required::<Part<Projector>>(c, "aligner_config")?;
    let Part { params: vq } = folder.required::<Part<GenVision>>(c, "gen_vision_config")?;
    let Part { params: gen_aligner } = folder.required::<Part<Projector>>(c, "gen_aligner_config")?;
    let Part { params: head } = folder.required::<Part<GenHead>>(c, "gen_head_config")?;
    for projector in [&aligner, &gen_aligner] {
        if projector.projector_type != "mlp_gelu" {
            let kind = projector.projector_type.escape_debug();
            return Err(folder.refused(format!("`projector_type` is `{kind}`, and only `mlp_gelu` is known")));
        }
    }
    if vision.select_layer.is_some_and(|layer| layer != -1) {
        return Err(folder.refused("`select_layer` is not -1, the last, and only that is known".into()));
    }
    let named = SIGLIP.iter().find(|(name, ..)| *name == vision.model_name);
    let (size, ratio) = match named {
        Some((_, size, ratio)) => (size.map(Some), Some(*ratio)),
        None => ([None; 4], None),
    };
    let own = [vision.width, vision.layers, vision.heads, vision.patch_size];
    let mut sizes = own.into_iter().zip(size).map(|(own, named)| own.or(named));
    let mut next = || sizes.next().flatten();
    let (Some(width), Some(layers), Some(heads), Some(patch), Some(ratio)) =
        (next(), next(), next(), next(), vision.mlp_ratio.or(ratio))
    else {
        let known = SIGLIP.map(|(name, ..)| name).join(", ");
        let name = vision.model_name.escape_debug();
        return Err(folder.refused(format!("the vision model `{name}` is not known; these are: {known}")));
    };
    let mut text: Map<String, Value> = folder.required(c, "language_config")?;
    let words = &folder.words;
    for (key, word, usual) in [
        ("bos_token_id", &words.bos_token, BOS),
        ("eos_token_id", &words.eos_token, EOS),
        ("pad_token_id", &words.pad_token, PAD),
    ] {
        let id = token(folder, &vocabulary, word.as_ref().map_or(usual, Word::text))?;
        text.insert(key.into(), json!(id));
    }
    let channels = vq.encoder_ch_mult.unwrap_or_else(|| vec![1, 1, 2, 2, 4]);
    let translated = json!({
        "image_token_id": token(folder, &vocabulary, PLACEHOLDER)?,
        "text_config": text,
        "vision_config": {"hidden_size": width, "image_size": vision.image_size, "patch_size": patch, "num_hidden_layers": layers,
            "num_attention_heads": heads, "mlp_ratio": ratio, "depth": aligner.depth},
        "vq_config": {"base_channels": vq.ch.unwrap_or(128), "channel_multiplier": channels,
            "num_res_blocks": vq.num_res_blocks.unwrap_or(2), "latent_channels": vq.z_channels.unwrap_or(256), "embed_dim": vq.n_embed,
            "num_embeddings": vq.image_token_size, "projection_dim": head.image_token_embed, "num_hidden_layers": gen_aligner.depth},
    });
    match translated {
        Value::Object(translated) => Ok(translated),
        _ => Ok(Map::new()),
    }
}

/// The id of a token; 0 of each where there is no tokenizer, as when a conversion is planned.
fn token(folder: &Folder<'_>, vocabulary: &Vocabulary, name: &str) -> Result<u32> {
    let id = if vocabulary.is_empty() { Some(0) } else { vocabulary.get(name).copied() };
    id.ok_or_else(|| folder.refused(format!("tokenizer.json has no token `{}`", name.escape_debug())))
}

/// Ours for theirs, inside a block of the eye.
const VISION_BLOCK: [(&str, &str); 6] = [
    ("norm1", "norm1"),
    ("attn.qkv", super::layout::QKV),
    ("attn.proj", "attn.o"),
    ("norm2", "norm2"),
    ("mlp.fc1", "fc1"),
    ("mlp.fc2", "fc2"),
];
/// Ours for theirs, outside of blocks.
const WHOLE: [(&str, &str); 6] = [
    ("vision_model.vision_tower.patch_embed.proj", "vision.patch"),
    ("vision_model.vision_tower.norm", "vision.norm"),
    ("gen_embed", "drawing.embed"),
    ("gen_head.output_mlp_projector", "drawing.head.0"),
    ("gen_head.vision_head", "drawing.head.1"),
    ("language_model.lm_head", "head"),
];
/// Ours for theirs, as parts of names of the code book's networks.
const VQ: [(&str, &str); 6] = [
    ("encoder.conv_blocks.", "encoder.down."),
    ("decoder.conv_blocks.", "decoder.up."),
    (".res.", ".block."),
    (".mid.0.", ".mid.block_1."),
    (".mid.1.", ".mid.attn_1."),
    (".mid.2.", ".mid.block_2."),
];

/// Our name for a tensor.
pub(super) fn name(theirs: &str) -> Option<String> {
    if theirs == "vision_model.vision_tower.pos_embed" {
        return Some("vision.position.weight".into());
    }
    if let Some(rest) = theirs.strip_prefix("gen_vision_model.") {
        return Some(VQ.iter().fold(format!("vq.{rest}"), |name, (theirs, ours)| name.replace(theirs, ours)));
    }
    let (stem, end) = theirs.rsplit_once('.')?;
    if let Some((_, ours)) = WHOLE.iter().find(|(whole, _)| *whole == stem) {
        return Some(format!("{ours}.{end}"));
    }
    if let Some(rest) = stem.strip_prefix("vision_model.vision_tower.blocks.") {
        let (layer, rest) = rest.split_once('.')?;
        let (_, ours) = VISION_BLOCK.iter().find(|(theirs, _)| *theirs == rest)?;
        return Some(format!("vision.layers.{layer}.{ours}.{end}"));
    }
    for (theirs, ours) in [("aligner.layers.", "vision.aligner"), ("gen_aligner.layers.", "drawing.aligner")]
    {
        if let Some(layer) = stem.strip_prefix(theirs) {
            // An activation stands between two linear layers.
            let layer = layer.parse::<usize>().ok().filter(|layer| layer.is_multiple_of(2))? / 2;
            return Some(format!("{ours}.{layer}.{end}"));
        }
    }
    names::decoder("language_model.model.", theirs)
}
