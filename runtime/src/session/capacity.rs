//! What a session allocates.

use crate::config::{Modality, ModelConfig};
use crate::kernels::KV_BLOCK;

/// How much a session can hold.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Text tokens of the instruction, and again of one question with its answer.
    pub max_text_tokens: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { max_text_tokens: 256 }
    }
}

/// What a session allocates, from the model and the options.
pub(super) struct Capacity {
    /// Live segments.
    pub(super) segments: usize,
    /// KV blocks of the trunk and one branch.
    pub(super) blocks: usize,
    /// Rows that go through the network together.
    pub(super) rows: usize,
    /// The widest range of token ids.
    pub(super) logits: usize,
}

impl Capacity {
    pub(super) fn new(c: &ModelConfig, options: &SessionOptions) -> Self {
        let image = c.image_codes() + 2;
        let state = 1 + c.state.names.len();
        let action = 1 + c.action.executed * c.action.names.len();
        let blocks = |tokens: usize| tokens.div_ceil(KV_BLOCK);
        let window = |m| c.window(m).unwrap_or(0);
        let trunk = blocks(c.task_prefix_len + options.max_text_tokens)
            + window(Modality::Image) * blocks(image)
            + window(Modality::State) * blocks(state)
            + window(Modality::Action) * blocks(action);
        // One branch at a time: `<ask>` question `<ans>` answer, or the slots of a chunk.
        let branch = blocks(2 + options.max_text_tokens).max(blocks(c.chunk_len()));
        let len = |[from, to]: [u32; 2]| (to - from) as usize;
        Self {
            segments: 1 + window(Modality::Image) + window(Modality::State) + window(Modality::Action),
            blocks: trunk + branch,
            rows: image.max(c.chunk_len()).max(64),
            logits: len(c.tokens.text).max(len(c.tokens.bins)).max(len(c.tokens.image)),
        }
    }
}
