//! `saccade.json`: what a bundle says of itself, and the checks that make it believable.
//!
//! A [`ModelConfig`] describes a network and its vocabulary; trainers put one into their checkpoints. A
//! [`BundleConfig`] is a whole `saccade.json`: a model, how its weights are stored, and the hash of every other
//! file. Neither exists unless every rule below holds, so the rest of the crate does arithmetic on them freely.

mod bundle;
mod chameleon;
mod check;
mod emu3;
mod janus;
mod llama;
mod nano;
mod rope;
mod unimodal;

use std::ops::Range;

use serde::{Deserialize, Serialize};

pub use bundle::{
    BundleConfig, CONFIG_FILE, FORMAT_VERSION, FileEntry, FrontEnd, GRAPH_FILE, MAX_CONFIG_BYTES, Part,
    Quantisation, TOKENIZER_FILE, WEIGHTS_FILE, WeightDtype,
};
pub use chameleon::{ChameleonConfig, CodeNorm, CodedImage, VqConfig};
pub use emu3::{ClipCodes, Emu3Config, MovqConfig};
pub use janus::{DrawingConfig, JanusConfig, VisionConfig};
pub use llama::{ChatTemplate, LlamaConfig};
pub use nano::nano;
pub use rope::RopeScaling;
pub use unimodal::{
    ActionConfig, ActionSemantics, ChatConfig, ImageConfig, ModalityConfig, SpecialTokens, StateConfig,
    TokenRanges, UnimodalConfig,
};

/// A rule of `saccade.json` (or of a checkpoint's model description) that a file broke.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not JSON, a field of another type, or a field this version does not know.
    #[error("saccade.json does not say what this version reads; it is damaged, or of a newer converter")]
    Json(#[from] serde_json::Error),
    /// More bytes than any honest configuration has.
    #[error("saccade.json has {found} bytes, more than the {limit} that are accepted")]
    TooLarge {
        /// Bytes found.
        found: u64,
        /// Bytes accepted.
        limit: u64,
    },
    /// Another format version.
    #[error(
        "saccade.json has format version {found}, this build reads version {FORMAT_VERSION}; convert the checkpoint again"
    )]
    Version {
        /// The version found.
        found: u32,
    },
    /// The file's own hash does not fit its bytes.
    #[error(
        "saccade.json was changed after it was written (its self_blake3 does not match); convert the checkpoint again"
    )]
    SelfHash,
    /// A value that contradicts another one or that no model has.
    #[error("saccade.json: {field}: {reason}")]
    Invalid {
        /// The field, dotted.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

fn invalid(field: &'static str, reason: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { field, reason: reason.into() }
}

/// The widest head.
pub(crate) const MAX_HEAD_DIM: usize = 1024;

/// What kind of thing a token stands for. The discriminant is the row of the modality tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Modality {
    /// Words, task prefixes, `<ask>`, `<ans>`, `<eos>`.
    Text = 0,
    /// Image codes between `<img>` and `</img>`.
    Image = 1,
    /// Robot state after `<state>`.
    State = 2,
    /// Robot actions after `<act>`, and the slots of an action chunk.
    Action = 3,
}

impl Modality {
    /// All of them, in table order.
    pub const ALL: [Self; 4] = [Self::Text, Self::Image, Self::State, Self::Action];

    /// The row of the modality tables.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Defaults of text generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerationConfig {
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
}

/// How queries and keys are normed before they are turned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QkNorm {
    /// Not at all.
    None,
    /// Every head by its root mean square, all heads with the same weights.
    Rms,
    /// Every head by its mean and variance, each head with weights and biases of its own.
    Layer,
}

/// Where a block norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NormPlace {
    /// What goes into attention and feed-forward network.
    Before,
    /// What comes out of them.
    After,
}

/// Which linear layers of a block have biases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Biases {
    /// Those of queries, keys and values.
    pub qkv: bool,
    /// The one that attention ends with.
    pub o: bool,
    /// The three of the feed-forward network.
    pub ffn: bool,
}

/// A decoder: its sizes, and where families differ.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderConfig {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Decoder blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Inner width of the feed-forward network.
    pub d_ff: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Base of the rotary angles.
    pub rope_theta: f32,
    /// How they are stretched over more positions.
    #[serde(default)]
    pub rope_scaling: RopeScaling,
    /// Added to the mean square in every RMSNorm.
    pub norm_eps: f32,
    /// How queries and keys are normed.
    pub qk_norm: QkNorm,
    /// Where a block norms.
    pub norm_place: NormPlace,
    /// How many modalities a learned bias of each head tells apart, if there is one.
    pub modality_bias: Option<usize>,
    /// Which linear layers have biases.
    #[serde(default)]
    pub biases: Biases,
    /// Whether the head is the embedding.
    pub tied: bool,
}

/// A network: family, sizes and vocabulary. Trainers store it in their checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "lowercase")]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "there is one for each model")]
pub enum ModelConfig {
    /// Saccade's own: discrete codes of every modality in, discrete codes out.
    Unimodal(UnimodalConfig),
    /// Text alone: SmolLM2 and its kin.
    Llama(LlamaConfig),
    /// Text and the codes of pictures in one vocabulary: Chameleon and its kin.
    Chameleon(ChameleonConfig),
    /// Pictures in as features, pictures out as codes: Janus and Janus-Pro.
    Janus(JanusConfig),
    /// Text and the codes of pictures and clips in one vocabulary: Emu3.
    Emu3(Emu3Config),
}

impl ModelConfig {
    /// Parses and checks a model description.
    ///
    /// # Errors
    /// [`ConfigError`] with the field and the reason.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let config: Self = serde_json::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    /// The family's name.
    #[must_use]
    pub const fn family(&self) -> &'static str {
        match self {
            Self::Unimodal(_) => "unimodal",
            Self::Llama(_) => "llama",
            Self::Chameleon(_) => "chameleon",
            Self::Janus(_) => "janus",
            Self::Emu3(_) => "emu3",
        }
    }

    /// The model's name, as `/v1/models` shows it.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Unimodal(c) => &c.name,
            Self::Llama(c)
            | Self::Chameleon(ChameleonConfig { language: c, .. })
            | Self::Janus(JanusConfig { language: c, .. })
            | Self::Emu3(Emu3Config { language: c, .. }) => &c.name,
        }
    }

    /// The decoder's sizes and options.
    #[must_use]
    pub const fn decoder(&self) -> DecoderConfig {
        match self {
            Self::Unimodal(c) => c.decoder(),
            Self::Llama(c)
            | Self::Chameleon(ChameleonConfig { language: c, .. })
            | Self::Janus(JanusConfig { language: c, .. })
            | Self::Emu3(Emu3Config { language: c, .. }) => c.decoder,
        }
    }

    /// Ids of special tokens and text: what an answer may consist of.
    #[must_use]
    pub fn text_range(&self) -> Range<u32> {
        match self {
            Self::Unimodal(c) => c.tokens.text[0]..c.tokens.text[1],
            // Checked to be far below 2³².
            Self::Llama(_) | Self::Chameleon(_) | Self::Janus(_) | Self::Emu3(_) => {
                0..u32::try_from(self.decoder().vocab_size).unwrap_or(u32::MAX)
            }
        }
    }

    /// Ids that end an answer.
    #[must_use]
    pub fn end_ids(&self) -> &[u32] {
        match self {
            Self::Unimodal(c) => std::slice::from_ref(&c.special.eos),
            Self::Llama(c)
            | Self::Chameleon(ChameleonConfig { language: c, .. })
            | Self::Janus(JanusConfig { language: c, .. })
            | Self::Emu3(Emu3Config { language: c, .. }) => &c.end_ids,
        }
    }

    /// Generation defaults.
    #[must_use]
    pub const fn generation(&self) -> &GenerationConfig {
        match self {
            Self::Unimodal(c) => &c.generation,
            Self::Llama(c)
            | Self::Chameleon(ChameleonConfig { language: c, .. })
            | Self::Janus(JanusConfig { language: c, .. })
            | Self::Emu3(Emu3Config { language: c, .. }) => &c.generation,
        }
    }

    /// The language model that this is, or that it has.
    #[must_use]
    pub const fn language(&self) -> Option<&LlamaConfig> {
        match self {
            Self::Unimodal(_) => None,
            Self::Llama(c)
            | Self::Chameleon(ChameleonConfig { language: c, .. })
            | Self::Janus(JanusConfig { language: c, .. })
            | Self::Emu3(Emu3Config { language: c, .. }) => Some(c),
        }
    }

    /// The token of each code of a picture, in families whose text range has them too. An answer never has one.
    #[must_use]
    pub fn code_ids(&self) -> &[u32] {
        match self {
            Self::Unimodal(_) | Self::Llama(_) | Self::Janus(_) => &[],
            Self::Chameleon(c) => &c.image.ids,
            Self::Emu3(c) => &c.image.ids,
        }
    }
}

impl From<UnimodalConfig> for ModelConfig {
    fn from(config: UnimodalConfig) -> Self {
        Self::Unimodal(config)
    }
}

#[cfg(test)]
mod tests;
