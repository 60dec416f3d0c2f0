//! Emu3: text and the codes of pictures and clips in one vocabulary.
//!
//! Source: Wang et al. 2024 (arXiv:2409.18869).

use serde::{Deserialize, Serialize};

use super::LlamaConfig;
use crate::tokenize::PixelConfig;

/// A model of text, pictures and clips.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Emu3Config {
    /// The language model, whose vocabulary has the codes too.
    pub language: LlamaConfig,
    /// How a picture or a clip becomes tokens.
    pub image: ClipCodes,
}

/// How a picture or a clip becomes tokens.
///
/// A picture of 5 × 6 codes stands in a text as `begin`, the text `5*6`, `wrapper`, five rows of six tokens and `row_end`,
/// `frame_end`, `end`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipCodes {
    /// The picture as the encoder takes it.
    pub pixels: PixelConfig,
    /// Encoder and decoder.
    pub movq: MovqConfig,
    /// Stands in a text for each token of a picture, ends of rows included.
    pub placeholder: u32,
    /// Stands before a picture.
    pub begin: u32,
    /// Stands behind a picture.
    pub end: u32,
    /// Stands between the size of a picture and its tokens.
    pub wrapper: u32,
    /// Stands behind each row of codes.
    pub row_end: u32,
    /// Stands behind the last row.
    pub frame_end: u32,
    /// The token of each code.
    pub ids: Vec<u32>,
}

/// Encoder and decoder of a MoVQGAN with causal convolutions over time: their sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MovqConfig {
    /// Channels of the first convolution.
    pub base_channels: usize,
    /// Channels of each level, as multiples of those; each level is half as wide and high as the one before.
    pub channel_multiplier: Vec<usize>,
    /// Levels with attention behind every residual block. Their channels are those of the last level.
    pub attention_levels: Vec<usize>,
    /// Residual blocks of a level of the encoder, and of both stacks over time; a level of the decoder has one more.
    pub n_res: usize,
    /// Length of a code book vector, and channels of everything that runs over time.
    pub code_dim: usize,
    /// Number of code book vectors.
    pub codebook_size: usize,
    /// How many frames become one grid of codes; a power of two.
    pub time_factor: usize,
}

impl MovqConfig {
    /// How many pixels a place of the grid is wide and high.
    #[must_use]
    pub fn patch(&self) -> usize {
        1 << (self.channel_multiplier.len().clamp(1, 16) - 1)
    }
}
