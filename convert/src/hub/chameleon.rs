//! `model_type: chameleon` or `anole`: Chameleon, Anole and what is laid out like them.

use std::collections::BTreeMap;

use saccade::config::{
    ChameleonConfig, ChatTemplate, CodeNorm, CodedImage, ModelConfig, NormPlace, QkNorm, VqConfig,
};
use serde::Deserialize;

use super::{Folder, llama, names, pixels};
use crate::error::Result;

/// `vq_config`, as far as it is used.
#[derive(Deserialize)]
struct Vq {
    base_channels: usize,
    channel_multiplier: Vec<usize>,
    num_res_blocks: usize,
    latent_channels: usize,
    embed_dim: usize,
    num_embeddings: usize,
    #[serde(default)]
    double_latent: bool,
    attn_resolutions: Option<Vec<usize>>,
    attn_type: Option<String>,
}

/// Where the names of what makes pictures of codes begin; Anole has it, Chameleon does not.
const DECODER: &str = "model.vqmodel.decoder.";

/// What transformers' `ChameleonProcessor` makes of a question: nothing around it, the separator behind it.
const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}{{ m.content }}SEP{% endfor %}";

fn word(word: &Option<super::Word>, usual: &str) -> String {
    word.as_ref().map_or(usual, super::Word::text).to_owned()
}

/// The model that a `config.json` describes.
pub(super) fn model(folder: &Folder<'_>) -> Result<ModelConfig> {
    let c = &folder.config;
    let mut language = llama::model(folder, c)?;
    language.decoder.qk_norm = QkNorm::Layer;
    if language.chat.is_none()
        && let Some(sep) = &folder.words.sep_token
    {
        language.chat = Some(ChatTemplate {
            template: TEMPLATE.replace("SEP", sep.text()),
            bos_token: word(&folder.words.bos_token, "<s>"),
            eos_token: word(&folder.words.eos_token, "</s>"),
        });
    }
    if folder.field::<bool>(c, "swin_norm")? == Some(true) {
        language.decoder.norm_place = NormPlace::After;
    }
    let vq: Vq = folder.required(c, "vq_config")?;
    if vq.double_latent
        || vq.attn_resolutions.is_some_and(|at| !at.is_empty())
        || vq.attn_type.is_some_and(|t| t != "vanilla")
    {
        let reason = "its `vq_config` has double latents, attention inside the levels or none in the middle, which no published \
                      checkpoint has and which cannot be converted";
        return Err(folder.refused(reason.into()));
    }
    let vocabulary: BTreeMap<String, u32> = folder.required(c, "vocabulary_map")?;
    let named = |what: &str, name: &str| folder.token(&vocabulary, what, name);
    let image = CodedImage {
        pixels: pixels::config(folder)?,
        placeholder: match folder.field(c, "image_token_id")? {
            Some(id) => id,
            None => named("place of a picture", "<image>")?,
        },
        begin: named("begin of a picture", &word(&folder.words.boi_token, "<racm3:break>"))?,
        end: named("end of a picture", &word(&folder.words.eoi_token, "<eoss>"))?,
        ids: ids(folder, &vocabulary, vq.num_embeddings)?,
        vq: VqConfig {
            base_channels: vq.base_channels,
            channel_multiplier: vq.channel_multiplier,
            n_res: vq.num_res_blocks,
            latent_channels: vq.latent_channels,
            code_dim: vq.embed_dim,
            codebook_size: vq.num_embeddings,
            last_level_attention: false,
            decoder: folder.has_tensor(DECODER)?,
            code_norm: CodeNorm::None,
        },
    };
    Ok(ModelConfig::Chameleon(ChameleonConfig { language, image }))
}

/// The token of each code: code 27 is called `IMGIMGCHZ`, letters for digits.
///
/// Source: `ChameleonImageVocabularyMapping` of transformers.
fn ids(folder: &Folder<'_>, vocabulary: &BTreeMap<String, u32>, codes: usize) -> Result<Vec<u32>> {
    let digit = |letter: char| ('A'..='J').position(|known| known == letter);
    folder.code_ids(vocabulary, codes, |name| {
        let letters = name.strip_prefix("IMGIMG")?.strip_suffix('Z')?;
        let code = letters
            .chars()
            .try_fold(0usize, |code, letter| code.checked_mul(10)?.checked_add(digit(letter)?));
        Some(code.filter(|_| !letters.is_empty()))
    })
}

/// Our name for a tensor once the number of levels is known: theirs count from the picture, ours from the grid.
///
/// Source: `Decoder` of CompVis/taming-transformers.
pub(super) fn from_the_grid(c: &ChameleonConfig, name: String) -> String {
    let level = || {
        let (level, rest) = name.strip_prefix("vq.decoder.up.")?.split_once('.')?;
        let level =
            c.image.vq.channel_multiplier.len().checked_sub(level.parse::<usize>().ok()?.checked_add(1)?)?;
        Some(format!("vq.decoder.up.{level}.{rest}"))
    };
    level().unwrap_or(name)
}

/// Our name for a tensor.
pub(super) fn name(theirs: &str) -> Option<String> {
    match theirs.strip_prefix("model.vqmodel.") {
        Some(rest) => Some(format!("vq.{rest}")),
        None if theirs == "lm_head.weight" => Some("head.weight".into()),
        None => names::decoder("model.", theirs),
    }
}
