//! `saccade.json`: what a bundle says of itself, and the checks that make it believable.
//!
//! A [`ModelConfig`] describes a network and its vocabulary; trainers put one into their checkpoints. A
//! [`BundleConfig`] is a whole `saccade.json`: a model, how its weights are stored, and the hash of every other
//! file. Neither exists unless every rule below holds, so the rest of the crate does arithmetic on them freely.

mod bundle;
mod check;
mod nano;

use serde::{Deserialize, Serialize};

pub use bundle::{
    BundleConfig, CONFIG_FILE, FORMAT_VERSION, FileEntry, MAX_CONFIG_BYTES, Quantisation, TOKENIZER_FILE,
    WEIGHTS_FILE, WeightDtype,
};
pub use nano::nano;

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

/// Which network this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Family {
    /// Saccade's own: discrete codes of every modality in, discrete codes out.
    Unimodal,
}

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

/// One modality and how much of it a query sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModalityConfig {
    /// Which one.
    pub name: Modality,
    /// How many segments stay visible, the newest included; all of them when absent.
    pub window: Option<usize>,
}

/// Half-open ranges of token ids by what they stand for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRanges {
    /// Special tokens and text: what an answer may consist of.
    pub text: [u32; 2],
    /// Bins of states and actions.
    pub bins: [u32; 2],
    /// Image codes.
    pub image: [u32; 2],
}

/// Ids of the special tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecialTokens {
    /// Fills training batches; never seen at run time.
    pub pad: u32,
    /// Ends an answer.
    pub eos: u32,
    /// Opens an image segment.
    pub img: u32,
    /// Closes an image segment.
    pub img_end: u32,
    /// Opens a point cloud.
    pub pts: u32,
    /// Closes a point cloud.
    pub pts_end: u32,
    /// Opens a state segment.
    pub state: u32,
    /// Opens an action segment.
    pub act: u32,
    /// Opens a question.
    pub ask: u32,
    /// Opens an answer.
    pub ans: u32,
}

/// The image tokenizer: its picture, its code grid and the sizes of its network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// Width of the model's picture, in pixels.
    pub width: usize,
    /// Height of the model's picture, in pixels.
    pub height: usize,
    /// Rows and columns of the code grid.
    pub grid: [usize; 2],
    /// Length of a code book vector.
    pub code_dim: usize,
    /// Number of code book vectors.
    pub codebook_size: usize,
    /// Whether vectors are compared after L2 normalisation.
    pub l2_norm: bool,
    /// Channels after each stride-2 stage of the encoder.
    pub encoder_channels: [usize; 3],
    /// Channels of the decoder, from the code grid up.
    pub decoder_channels: [usize; 3],
    /// Hidden channels of a residual unit.
    pub res_hidden: usize,
    /// Residual units in the encoder, and in the decoder.
    pub n_res: usize,
    /// Subtracted from a pixel value of 0 to 255.
    pub mean: f32,
    /// Divides what is left.
    pub std: f32,
}

/// Robot state as bins: one per dimension, affine between `low` and `high`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateConfig {
    /// One name per dimension.
    pub names: Vec<String>,
    /// Value at the lower edge of bin 0 (the 1st percentile of the training data).
    pub low: Vec<f32>,
    /// Value at the upper edge of the last bin (the 99th percentile).
    pub high: Vec<f32>,
}

/// What an action value means to the robot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActionSemantics {
    /// A target in the robot's own frame.
    Absolute,
    /// An offset from the state at prediction time.
    Relative,
    /// An offset from the step before.
    Delta,
}

/// Robot actions as bins, and the chunk that one decoding step yields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionConfig {
    /// One name per dimension.
    pub names: Vec<String>,
    /// Value at the lower edge of bin 0.
    pub low: Vec<f32>,
    /// Value at the upper edge of the last bin.
    pub high: Vec<f32>,
    /// Steps in a predicted chunk.
    pub steps: usize,
    /// At most so many executed steps re-enter the context between two frames.
    pub executed: usize,
    /// What the values mean.
    pub semantics: ActionSemantics,
    /// Steps per second at which the robot executes them.
    pub rate_hz: f32,
}

/// Fixed texts of the conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatConfig {
    /// The question whose answer is a caption.
    pub caption: String,
    /// Appended to every question.
    pub question_suffix: String,
}

/// Defaults of text generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerationConfig {
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
}

/// A network: sizes, vocabulary and modalities. Trainers store it in their checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Which network this is.
    pub family: Family,
    /// Its name, as `/v1/models` shows it.
    pub name: String,
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
    /// Added to the mean square in every RMSNorm.
    pub norm_eps: f32,
    /// Modalities in table order, with their windows.
    pub modalities: Vec<ModalityConfig>,
    /// Token ids by meaning.
    pub tokens: TokenRanges,
    /// Ids of the special tokens.
    pub special: SpecialTokens,
    /// Names of the task prefixes.
    pub tasks: Vec<String>,
    /// Learned vectors in each prefix.
    pub task_prefix_len: usize,
    /// The image tokenizer.
    pub image: ImageConfig,
    /// Robot state.
    pub state: StateConfig,
    /// Robot actions.
    pub action: ActionConfig,
    /// Fixed texts.
    pub chat: ChatConfig,
    /// Generation defaults.
    pub generation: GenerationConfig,
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

    /// Number of codes in a picture.
    #[must_use]
    pub const fn image_codes(&self) -> usize {
        self.image.grid[0] * self.image.grid[1]
    }

    /// Number of bins of a state or action value.
    #[must_use]
    pub fn n_bins(&self) -> u16 {
        u16::try_from(self.tokens.bins[1] - self.tokens.bins[0]).unwrap_or(u16::MAX)
    }

    /// Number of values in an action chunk: steps × dimensions.
    #[must_use]
    pub fn chunk_len(&self) -> usize {
        self.action.steps * self.action.names.len()
    }

    /// How many segments of `modality` stay visible; `None` means all.
    #[must_use]
    pub fn window(&self, modality: Modality) -> Option<usize> {
        self.modalities.get(modality.index()).and_then(|m| m.window)
    }
}

#[cfg(test)]
mod tests;
