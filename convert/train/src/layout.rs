//! The token layout and the sizes of the `unimodal` family: the numbers that the trainer and the runtime share.

use std::ops::Range;

use saccade::config::UnimodalConfig;
use serde::Serialize;

/// Token ids of the specials; they come first in the text range.
pub mod ids {
    /// Padding: never predicted, never seen.
    pub const PAD: u32 = 0;
    /// Ends an answer.
    pub const EOS: u32 = 1;
    /// Opens an image segment.
    pub const IMG: u32 = 2;
    /// Closes an image segment.
    pub const IMG_END: u32 = 3;
    /// Opens a state segment.
    pub const STATE: u32 = 6;
    /// Opens an action segment.
    pub const ACT: u32 = 7;
    /// Opens a question.
    pub const ASK: u32 = 8;
    /// Ends the question and opens the answer.
    pub const ANS: u32 = 9;
    /// How many ids are special.
    pub const N_SPECIAL: u32 = 64;
    /// The names of the named specials, by id; the rest are `<r10>` … `<r63>`.
    pub const NAMES: [&str; 10] =
        ["<pad>", "<eos>", "<img>", "</img>", "<pts>", "</pts>", "<state>", "<act>", "<ask>", "<ans>"];
}

/// The modality of a token: the row of the modality embedding and of the bias tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[repr(u8)]
pub enum Modality {
    /// Prefix, instruction, questions, answers.
    Text = 0,
    /// `<img>`, codes, `</img>`.
    Image = 1,
    /// `<state>` and its bins.
    State = 2,
    /// `<act>` and its bins, and the slots.
    Action = 3,
}

/// How many modalities there are.
pub const N_MODALITIES: usize = 4;

/// The window of each modality in segments; text has none.
pub const WINDOWS: [Option<usize>; N_MODALITIES] = [None, Some(4), Some(4), Some(4)];

/// A task: which learned prefix opens the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[repr(u8)]
pub enum Task {
    /// Frames, states and actions of an arm, with captions and questions.
    Robot = 0,
    /// One picture and questions about it.
    Vqa = 1,
    /// Plain text.
    Text = 2,
}

/// Learned prefix vectors a task.
pub const PREFIX_LEN: usize = 4;
/// How many tasks have a prefix.
pub const N_TASKS: usize = 3;
/// Image codes of a frame (8 × 8).
pub const N_CODES: usize = 64;
/// Steps of an action chunk.
pub const CHUNK_STEPS: usize = 8;
/// Steps of a chunk that are executed before the next frame.
pub const EXECUTED_STEPS: usize = 4;
/// Dimensions of an action.
pub const ACTION_DIM: usize = 4;
/// Dimensions of a state.
pub const STATE_DIM: usize = 4;
/// Learned action slots.
pub const N_SLOTS: usize = CHUNK_STEPS * ACTION_DIM;

/// Sizes of the transformer and of the image tokenizer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Dims {
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
    /// Width of the gated feed-forward layer.
    pub d_ff: usize,
    /// Text tokens, the specials among them: ids from 0.
    pub n_text: usize,
    /// Bins of states and actions: the ids after the text.
    pub n_bins: usize,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// Epsilon of every RMS norm.
    pub norm_eps: f64,
    /// Image tokenizer.
    pub image: ImageDims,
}

/// Sizes of the VQ-VAE.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImageDims {
    /// Side of the square frame, pixels.
    pub side_px: usize,
    /// Width of a code vector.
    pub code_dim: usize,
    /// Vectors in the code book.
    pub codebook_size: usize,
    /// Channels of the three encoder stages; the decoder has them in reverse.
    pub channels: [usize; 3],
    /// Channels inside a residual block.
    pub res_hidden: usize,
    /// Residual blocks on each side.
    pub n_res: usize,
}

impl Dims {
    /// The sizes of a model that the runtime describes.
    pub fn of(model: &UnimodalConfig) -> Dims {
        // The decimal that was written: a cast would make 1e-5 to 9.99999974…e-6.
        let written = |v: f32| v.to_string().parse().unwrap_or_else(|_| f64::from(v));
        let tokens = &model.tokens;
        Dims {
            d_model: model.d_model,
            n_layers: model.n_layers,
            n_heads: model.n_heads,
            n_kv_heads: model.n_kv_heads,
            head_dim: model.head_dim,
            d_ff: model.d_ff,
            n_text: (tokens.text[1] - tokens.text[0]) as usize,
            n_bins: (tokens.bins[1] - tokens.bins[0]) as usize,
            rope_theta: written(model.rope_theta),
            norm_eps: written(model.norm_eps),
            image: ImageDims {
                side_px: model.image.width,
                code_dim: model.image.code_dim,
                codebook_size: model.image.codebook_size,
                channels: model.image.encoder_channels,
                res_hidden: model.image.res_hidden,
                n_res: model.image.n_res,
            },
        }
    }

    /// The shipped size, as the runtime has it.
    pub fn nano() -> Dims {
        Dims::of(&saccade::config::nano())
    }

    /// The size of the golden tensors and of quick tests: the same grid and slots, little else.
    pub fn tiny() -> Dims {
        Dims {
            d_model: 32,
            n_layers: 2,
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 16,
            d_ff: 40,
            n_text: 320,
            n_bins: 16,
            image: ImageDims {
                channels: [4, 8, 16],
                res_hidden: 8,
                code_dim: 8,
                codebook_size: 32,
                ..Dims::nano().image
            },
            ..Dims::nano()
        }
    }

    /// Ids of specials and byte-pair entries.
    pub fn text(&self) -> Range<usize> {
        0..self.n_text
    }

    /// Ids of the bins of states and actions.
    pub fn bins(&self) -> Range<usize> {
        self.n_text..self.n_text + self.n_bins
    }

    /// Ids of the image codes.
    pub fn image_codes(&self) -> Range<usize> {
        self.bins().end..self.bins().end + self.image.codebook_size
    }

    /// Rows of the tied embedding.
    pub fn vocab_size(&self) -> usize {
        self.image_codes().end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use saccade::config::nano;

    #[test]
    fn the_layout_is_the_runtimes() {
        let (dims, model) = (Dims::nano(), nano());
        assert_eq!(dims.vocab_size(), model.vocab_size);
        let range = |[from, to]: [u32; 2]| from as usize..to as usize;
        let tokens = &model.tokens;
        assert_eq!(
            [dims.text(), dims.bins(), dims.image_codes()],
            [tokens.text, tokens.bins, tokens.image].map(range)
        );
        assert_eq!((dims.norm_eps, dims.rope_theta), (1e-5, 1e4));
        assert_eq!(model.modalities.iter().map(|m| m.window).collect::<Vec<_>>(), WINDOWS);
        assert_eq!((PREFIX_LEN, N_TASKS), (model.task_prefix_len, model.tasks.len()));
        assert_eq!(N_CODES, model.image.grid.iter().product::<usize>());
        assert_eq!((STATE_DIM, ACTION_DIM), (model.state.low.len(), model.action.low.len()));
        assert_eq!((CHUNK_STEPS, EXECUTED_STEPS), (model.action.steps, model.action.executed));
        let special = model.special;
        assert_eq!(
            [ids::PAD, ids::EOS, ids::IMG, ids::IMG_END],
            [special.pad, special.eos, special.img, special.img_end]
        );
        assert_eq!(
            [ids::STATE, ids::ACT, ids::ASK, ids::ANS],
            [special.state, special.act, special.ask, special.ans]
        );
        let mirrored: Vec<_> = dims.image.channels.into_iter().rev().collect();
        assert_eq!(mirrored, model.image.decoder_channels);
    }
}
