//! Chameleon and its kin: text and the codes of pictures in one vocabulary.
//!
//! Source: Chameleon Team 2024 (arXiv:2405.09818).

use serde::{Deserialize, Serialize};

use super::LlamaConfig;
use crate::tokenize::PixelConfig;

/// A model of text and pictures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChameleonConfig {
    /// The language model, whose vocabulary has the codes too.
    pub language: LlamaConfig,
    /// How a picture becomes tokens.
    pub image: CodedImage,
}

/// How a picture becomes tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodedImage {
    /// The picture as the encoder takes it.
    pub pixels: PixelConfig,
    /// The encoder.
    pub vq: VqConfig,
    /// Stands in a text for each token of a picture.
    pub placeholder: u32,
    /// Stands before a picture.
    pub begin: u32,
    /// Stands behind a picture.
    pub end: u32,
    /// The token of each code.
    pub ids: Vec<u32>,
}

/// The encoder of a VQGAN: its sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VqConfig {
    /// Channels of the first convolution.
    pub base_channels: usize,
    /// Channels of each level, as multiples of those; each level is half as wide and high as the one before.
    pub channel_multiplier: Vec<usize>,
    /// Residual blocks of a level.
    pub n_res: usize,
    /// Channels of the last convolution.
    pub latent_channels: usize,
    /// Length of a code book vector.
    pub code_dim: usize,
    /// Number of code book vectors.
    pub codebook_size: usize,
    /// Whether the level of the grid has attention behind each of its blocks.
    pub last_level_attention: bool,
    /// Whether there is a way back from codes to a picture.
    pub decoder: bool,
    /// Where code book vectors are of length one.
    pub code_norm: CodeNorm,
}

/// Where code book vectors are of length one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CodeNorm {
    /// Nowhere.
    None,
    /// When codes become a picture, as transformers' Janus has it.
    Lookup,
    /// Also when the nearest one is looked for, as DeepSeek's own Janus has it.
    Both,
}

impl VqConfig {
    /// How many pixels a place of the grid is wide and high.
    #[must_use]
    pub fn patch(&self) -> usize {
        1 << (self.channel_multiplier.len().clamp(1, 16) - 1)
    }

    /// Whether a level, counted from the picture, has attention.
    pub(crate) fn attends(&self, level: usize) -> bool {
        self.last_level_attention && level + 1 == self.channel_multiplier.len()
    }
}
