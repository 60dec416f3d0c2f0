//! Janus and Janus-Pro: pictures in as features, pictures out as codes.
//!
//! Source: Chen et al. 2025 (arXiv:2501.17811).

use serde::{Deserialize, Serialize};

use super::{LlamaConfig, VqConfig};
use crate::tokenize::PixelConfig;

/// A model that reads pictures and draws.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JanusConfig {
    /// The language model.
    pub language: LlamaConfig,
    /// How a picture becomes features.
    pub vision: VisionConfig,
    /// How codes become a picture.
    pub drawing: DrawingConfig,
}

/// A vision transformer and the projection of its features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionConfig {
    /// The picture as the network takes it.
    pub pixels: PixelConfig,
    /// Width and height of a picture, in pixels.
    pub image_size: usize,
    /// Width and height of a patch, in pixels.
    pub patch_size: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Blocks.
    pub n_layers: usize,
    /// Heads.
    pub n_heads: usize,
    /// Inner width of the feed-forward network.
    pub d_ff: usize,
    /// Added to every variance.
    pub norm_eps: f32,
    /// Linear layers of the projection.
    pub aligner_layers: usize,
    /// Stands in a text for each patch of a picture.
    pub placeholder: u32,
    /// Stands before a picture.
    pub begin: u32,
    /// Stands behind a picture.
    pub end: u32,
}

impl VisionConfig {
    /// Patches of a picture.
    #[must_use]
    pub const fn patches(&self) -> usize {
        let side = self.image_size / self.patch_size;
        side * side
    }
}

/// How codes become a picture, and which code comes next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrawingConfig {
    /// The code book and its networks.
    pub vq: VqConfig,
    /// Rows and columns of the code grid.
    pub grid: [usize; 2],
    /// Linear layers between a code book vector and the decoder.
    pub aligner_layers: usize,
    /// Inner width of the head over codes.
    pub d_head: usize,
    /// Takes the place of a prompt's tokens in the sequence without guidance.
    pub pad: u32,
}
