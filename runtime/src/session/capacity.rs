//! What a session allocates.

use super::answer::MAX_SEQUENCES;
use crate::config::{DecoderConfig, Modality, ModelConfig};
use crate::engine::{ActivationKinds, Most};
use crate::kernels::KV_BLOCK;
use crate::kv::ArenaShape;

/// How much a session can hold.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Text tokens of the instruction, and again of one question with its answer.
    pub max_text_tokens: usize,
    /// Sessions that may decode together in a [`super::step`] that this one leads: 1 to 16, what lies outside counts as the nearest.
    pub max_sequences: usize,
}

/// Rows that go through the network together: whole stretches of a kernel set's blocks, as many as fit into [`BUFFER_BYTES`].
const PASS_ROWS: [usize; 2] = [96, 384];
/// What the buffers of a pass may take: with the rest, a session stays below 8 MB beside its arena.
const BUFFER_BYTES: usize = 6 << 20;

impl Default for SessionOptions {
    fn default() -> Self {
        Self { max_text_tokens: 256, max_sequences: 1 }
    }
}

/// What a session allocates, from the model and the options.
pub(super) struct Capacity {
    /// Live segments.
    pub(super) segments: usize,
    /// Of each step; its blocks are those of the trunk and one branch.
    pub(super) most: Most,
    /// The widest range of token ids, or text tokens of a step's sequences.
    pub(super) logits: usize,
    /// Logits of a row, where text and codes of pictures are told apart.
    pub(super) row: usize,
    /// Whether some layers want floats beside others that want INT8.
    mixed: bool,
}

impl Capacity {
    /// `parts` and `kinds` are those of the layers' activations.
    pub(super) fn new(
        model: &ModelConfig,
        options: &SessionOptions,
        (parts, kinds): (usize, ActivationKinds),
    ) -> Self {
        let mixed = kinds == ActivationKinds::Both;
        let blocks = |tokens: usize| tokens.div_ceil(KV_BLOCK);
        let text = options.max_text_tokens;
        let sequences = options.max_sequences.clamp(1, MAX_SEQUENCES);
        let len = |[from, to]: [u32; 2]| (to - from) as usize;
        // One branch at a time: a question with its frame and its answer, or the slots of a chunk.
        let (segments, trunk, branch, ranges) = match model {
            ModelConfig::Unimodal(c) => {
                let image = c.image_codes() + 2;
                let state = 1 + c.state.names.len();
                let action = 1 + c.action.executed * c.action.names.len();
                let window = |m| c.window(m).unwrap_or(0);
                let trunk = blocks(c.task_prefix_len.saturating_add(text))
                    + window(Modality::Image) * blocks(image)
                    + window(Modality::State) * blocks(state)
                    + window(Modality::Action) * blocks(action);
                let segments =
                    1 + window(Modality::Image) + window(Modality::State) + window(Modality::Action);
                let branch = blocks(text.saturating_add(2)).max(blocks(c.chunk_len()));
                (segments, trunk, branch, len(c.tokens.bins).max(len(c.tokens.image)))
            }
            ModelConfig::Janus(c) => (0, 0, blocks(text), sequences * c.drawing.vq.codebook_size),
            _ => (0, 0, blocks(text), 0),
        };
        let rows = pass_rows(&model.decoder(), parts + if mixed { size_of::<f32>() } else { 0 });
        Self {
            segments,
            most: Most { rows, sequences, segments: segments + 1, blocks: trunk + branch, parts },
            logits: (sequences * model.text_range().len()).max(ranges),
            row: if model.code_ids().is_empty() { 0 } else { model.text_range().len() },
            mixed,
        }
    }

    /// Bytes of the arena and of the buffers that grow with the model or the options: in 128 bits, where nothing that a
    /// checked model or an option can ask for overflows.
    pub(super) fn bytes(&self, c: &DecoderConfig, arena: &ArenaShape, threads: usize) -> u128 {
        let (heads, kv_heads) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let widest = c.d_model.max(c.d_ff).max(heads);
        let Most { rows, blocks, parts, .. } = self.most;
        let row = c.d_model + 2 * (heads + kv_heads) + c.d_ff + widest * (parts + usize::from(self.mixed));
        // Rotary angles, and of each thread the scores of some queries: 16, or those of one key head.
        let key = c.head_dim + 2 * threads * (c.n_heads / c.n_kv_heads).max(16);
        let floats =
            blocks as u128 * (KV_BLOCK * key) as u128 + (rows * row + self.logits + self.row) as u128;
        arena.bytes() + 4 * floats
    }
}

/// How many rows a pass takes whose layers keep so many bytes of an activation.
fn pass_rows(c: &DecoderConfig, activation_bytes: usize) -> usize {
    let (heads, kv_heads) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
    let floats = c.d_model + 2 * (heads + kv_heads) + c.d_ff;
    let row = 4 * floats + activation_bytes * c.d_model.max(c.d_ff).max(heads);
    let [least, most] = PASS_ROWS;
    (BUFFER_BYTES / row / least * least).clamp(least, most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::nano;
    use crate::kv::KvDtype;

    #[test]
    fn a_pass_has_as_many_rows_as_its_buffers_may_take() {
        let mut c = nano().decoder();
        assert_eq!(pass_rows(&c, 2), 384);
        (c.d_model, c.n_heads, c.n_kv_heads, c.head_dim, c.d_ff) = (1024, 16, 4, 64, 2816);
        assert_eq!(pass_rows(&c, 1), 192, "6 MiB of 28,416 bytes are 221 rows");
        (c.d_model, c.n_kv_heads, c.head_dim, c.d_ff) = (2048, 16, 128, 5632);
        assert_eq!(pass_rows(&c, 1), 96);
        (c.d_model, c.n_kv_heads, c.head_dim, c.d_ff) = (1024, 4, 64, 2816);
        assert_eq!((pass_rows(&c, 2), pass_rows(&c, 6)), (192, 96), "floats beside INT8 take room");
    }

    #[test]
    fn the_largest_sizes_do_not_overflow() {
        let mut c = nano();
        (c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim) = (512, 130, 130, 1024);
        (c.image.width, c.image.height, c.image.grid) = (4096, 4096, [512, 512]);
        c.modalities[1].window = Some(4096);
        let model = ModelConfig::from(c);
        model.check().unwrap();
        let c = model.decoder();
        let capacity = Capacity::new(
            &model,
            &SessionOptions { max_text_tokens: usize::MAX, max_sequences: 1 },
            (2, ActivationKinds::Int8),
        );
        let arena = ArenaShape {
            n_layers: c.n_layers,
            n_kv_heads: c.n_kv_heads,
            head_dim: c.head_dim,
            n_blocks: capacity.most.blocks,
            dtype: KvDtype::F32,
        };
        // Two texts of 2⁶⁴ tokens, keys and values of 4 bytes.
        let texts = 2 * 4 * (c.n_layers * c.n_kv_heads * c.head_dim) as u128 * (2 << 64);
        let bytes = capacity.bytes(&c, &arena, 2);
        assert!(texts < bytes && bytes < texts + texts / 1000, "{bytes}, of which the texts are {texts}");
    }
}
