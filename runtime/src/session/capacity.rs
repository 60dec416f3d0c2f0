//! What a session allocates.

use super::answer::MAX_SEQUENCES;
use crate::config::{DecoderConfig, Modality, ModelConfig};
use crate::engine::{Most, PassRows};
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
    /// What the engine says of its passes.
    passes: PassRows,
}

impl Capacity {
    /// `parts`: INT8 rows of a token's activations; `passes`: what the engine says of its passes with the most of everything else.
    pub(super) fn new(
        model: &ModelConfig,
        options: &SessionOptions,
        parts: usize,
        passes: impl FnOnce(&Most) -> PassRows,
    ) -> Self {
        let blocks = |tokens: usize| tokens.div_ceil(KV_BLOCK);
        let text = options.max_text_tokens;
        let sequences = options.max_sequences.clamp(1, MAX_SEQUENCES);
        let len = |[from, to]: [u32; 2]| (to - from) as usize;
        // One branch at a time: a question with its frame and its answer, or the slots of a chunk.
        let (segments, trunk, branch, ranges, longest) = match model {
            ModelConfig::Unimodal(c) => {
                let image = c.image_codes() + 2;
                let state = 1 + c.state.names.len();
                let action = 1 + c.action.executed * c.action.names.len();
                let window = |m| c.window(m).unwrap_or(0);
                let begin = c.task_prefix_len.saturating_add(text);
                let trunk = blocks(begin)
                    + window(Modality::Image) * blocks(image)
                    + window(Modality::State) * blocks(state)
                    + window(Modality::Action) * blocks(action);
                let segments =
                    1 + window(Modality::Image) + window(Modality::State) + window(Modality::Action);
                let branch = text.saturating_add(2).max(c.chunk_len());
                let longest = [begin, image, state, action, branch].into_iter().max().unwrap_or(0);
                (segments, trunk, blocks(branch), len(c.tokens.bins).max(len(c.tokens.image)), longest)
            }
            ModelConfig::Janus(c) => (0, 0, blocks(text), sequences * c.drawing.vq.codebook_size, text),
            _ => (0, 0, blocks(text), 0, text),
        };
        let mut most = Most { rows: 0, sequences, segments: segments + 1, blocks: trunk + branch, parts };
        let passes = passes(&most);
        // A pass extends one segment, or has a row of each sequence.
        most.rows = passes.rows().min(longest).max(sequences);
        Self {
            segments,
            most,
            logits: (sequences * model.text_range().len()).max(ranges),
            row: if model.code_ids().is_empty() { 0 } else { model.text_range().len() },
            passes,
        }
    }

    /// Bytes of the arena and of the buffers that grow with the model or the options: in 128 bits, where nothing that a
    /// checked model or an option can ask for overflows.
    pub(super) fn bytes(&self, c: &DecoderConfig, arena: &ArenaShape) -> u128 {
        let Self { most, passes, .. } = self;
        let angles = most.blocks as u128 * (KV_BLOCK * c.head_dim) as u128;
        let rows = most.rows as u128 * passes.row as u128;
        arena.bytes() + rows + passes.beside + 4 * (angles + (self.logits + self.row) as u128)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::nano;
    use crate::engine::ActivationKinds;
    use crate::kv::KvDtype;

    /// What the CPU says of `parts` and `kinds`.
    fn on_cpu(c: &DecoderConfig, parts: usize, kinds: ActivationKinds) -> PassRows {
        let most = Most { rows: 0, sequences: 1, segments: 1, blocks: 1, parts };
        PassRows::on_cpu(c, &most, kinds, 2)
    }

    #[test]
    fn a_pass_has_as_many_rows_as_its_buffers_may_take() {
        use ActivationKinds::{Both, Float, Int8};
        let mut c = nano().decoder();
        assert_eq!(on_cpu(&c, 2, Int8).rows(), 384);
        (c.d_model, c.n_heads, c.n_kv_heads, c.head_dim, c.d_ff) = (1024, 16, 4, 64, 2816);
        assert_eq!(on_cpu(&c, 1, Int8).rows(), 192, "6 MiB of 28,416 bytes are 221 rows");
        (c.d_model, c.n_kv_heads, c.head_dim, c.d_ff) = (2048, 16, 128, 5632);
        assert_eq!(on_cpu(&c, 1, Int8).rows(), 96);
        (c.d_model, c.n_kv_heads, c.head_dim, c.d_ff) = (1024, 4, 64, 2816);
        let rows = |parts, kinds| on_cpu(&c, parts, kinds).rows();
        assert_eq!((rows(2, Int8), rows(2, Both)), (192, 96), "floats beside INT8 take room");
        assert_eq!(rows(1, Float), 96);
    }

    #[test]
    fn a_session_has_buffers_for_its_longest_segment_at_most() {
        let model = ModelConfig::from(nano());
        let rows = |text, max_sequences| {
            let options = SessionOptions { max_text_tokens: text, max_sequences };
            let passes = |_: &Most| PassRows { stretch: 128, most: 1024, bytes: 1 << 30, row: 4, beside: 0 };
            Capacity::new(&model, &options, 1, passes).most.rows
        };
        // A picture of 64 codes; an instruction behind 4 rows of prefix.
        assert_eq!([0, 10, 100, 4096].map(|text| rows(text, 1)), [66, 66, 104, 1024]);
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
            2,
            |most| PassRows::on_cpu(&c, most, ActivationKinds::Int8, 2),
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
        let bytes = capacity.bytes(&c, &arena);
        assert!(texts < bytes && bytes < texts + texts / 1000, "{bytes}, of which the texts are {texts}");
    }
}
