//! Saccade's own family: modalities with windows, an image tokenizer, bins of states and actions.

use serde::{Deserialize, Serialize};

use super::{Biases, DecoderConfig, GenerationConfig, Modality, NormPlace, QkNorm, RopeScaling};

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

/// A network of Saccade's own family: sizes, vocabulary and modalities.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnimodalConfig {
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

impl UnimodalConfig {
    /// The decoder's sizes and options.
    #[must_use]
    pub const fn decoder(&self) -> DecoderConfig {
        DecoderConfig {
            d_model: self.d_model,
            n_layers: self.n_layers,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            d_ff: self.d_ff,
            vocab_size: self.vocab_size,
            rope_theta: self.rope_theta,
            rope_scaling: RopeScaling::None,
            norm_eps: self.norm_eps,
            qk_norm: QkNorm::Rms,
            norm_place: NormPlace::Before,
            modality_bias: Some(Modality::ALL.len()),
            biases: Biases { qkv: false, o: false, ffn: false },
            tied: true,
        }
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
