//! A pass of some rows through the decoder: what the rows are, and the operations that a block is written in.

use crate::Result;
use crate::config::Modality;
use crate::kv::{Chain, KvArena};
use crate::weights::{LinearRef, VectorRef};

/// A linear layer, with a bias where the family has one.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// `[n, k]`
    pub(crate) weight: LinearRef,
    /// `[n]`
    pub(crate) bias: Option<VectorRef>,
}

/// The norms of query and key heads.
#[derive(Clone, Debug)]
pub(crate) enum QkNorms {
    None,
    /// `[head_dim]` of the queries and of the keys.
    Rms([VectorRef; 2]),
    /// Weights and biases, `[heads, head_dim]`, of the queries and of the keys.
    Layer([[VectorRef; 2]; 2]),
}

/// Added to every variance of head norms. Source: `nn.LayerNorm` of PyTorch, whose default Chameleon has.
pub(crate) const HEAD_EPS: f32 = 1e-5;

/// A segment that the rows of a step see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visible {
    /// Its tokens in the arena.
    pub(crate) chain: Chain,
    /// Position of its first token.
    pub(crate) base: usize,
    /// What it is.
    pub(crate) modality: Modality,
}

/// What a row sees of its own segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Own {
    /// Everything up to itself.
    Causal,
    /// Itself alone: the slots of an action chunk.
    Itself,
}

/// Rows of one segment of one session.
pub(crate) struct Sequence<'a> {
    /// Its keys and values.
    pub(crate) kv: &'a mut KvArena,
    /// Number of rows.
    pub(crate) rows: usize,
    /// Offset of the first row inside its segment.
    pub(crate) offset: usize,
    /// Their own segment, already extended by the rows.
    pub(crate) own: Visible,
    /// What a row sees of it.
    pub(crate) own_rule: Own,
    /// Earlier live segments, oldest first.
    pub(crate) context: &'a [Visible],
}

/// The most of everything that a step may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Most {
    /// Rows.
    pub(crate) rows: usize,
    /// Sequences.
    pub(crate) sequences: usize,
    /// Segments that a sequence sees, its own included.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "a card's lists are as long as this"))]
    pub(crate) segments: usize,
    /// Blocks of keys that a sequence sees.
    pub(crate) blocks: usize,
    /// INT8 rows of a token's activations.
    pub(crate) parts: usize,
}

/// How many rows an engine takes through the network together, and what its buffers take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PassRows {
    /// Rows of a stretch: a pass has whole ones.
    pub(crate) stretch: usize,
    /// The most rows.
    pub(crate) most: usize,
    /// What their buffers may take; a single stretch may take more.
    pub(crate) bytes: usize,
    /// Bytes of a row.
    pub(crate) row: usize,
    /// Bytes that do not depend on the rows: in 128 bits, where nothing that can be asked for overflows.
    pub(crate) beside: u128,
}

impl PassRows {
    /// The rows.
    pub(crate) fn rows(&self) -> usize {
        (self.bytes / self.row / self.stretch * self.stretch).clamp(self.stretch, self.most)
    }
}

/// What a linear layer reads: one row a token, the rows of all sequences one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    /// The residual stream, `X [rows, d_model]`.
    X,
    /// What attention gives, `[rows, n_heads · head_dim]`.
    Attended,
    /// The inner width of the feed-forward network, `[rows, d_ff]`.
    Hidden,
}

/// The operations of a block, on the CPU ([`super::cpu`]) or on a card.
pub(crate) trait Pass {
    /// Readies rows, normed where there is a norm, for the layer `to` and all that want the same of them.
    fn load(&mut self, from: Rows, norm: Option<&VectorRef>, to: &Layer) -> Result<()>;

    /// `Q, K, V = loaded · wᵀ + bias` of these three layers.
    fn project(&mut self, q: &Layer, k: &Layer, v: &Layer) -> Result<()>;

    /// `Hidden = silu(loaded · gateᵀ) · (loaded · upᵀ)`.
    fn gate(&mut self, gate: &Layer, up: &Layer) -> Result<()>;

    /// `X += loaded · wᵀ + bias`, through a norm where there is one.
    fn add(&mut self, layer: &Layer, norm: Option<&VectorRef>) -> Result<()>;

    /// Norms every head of `Q` and `K` where the family does, rotates the keys by their offset in the segment, and stores `K` and `V`.
    fn store(&mut self, layer: usize, norms: &QkNorms) -> Result<()>;

    /// `Attended = attention(Q)` over the arena, with what a head adds for each pair of modalities,
    /// `[n_heads, modalities of the query, modalities of the key]`.
    fn attend(&mut self, layer: usize, bias: Option<&VectorRef>) -> Result<()>;
}
