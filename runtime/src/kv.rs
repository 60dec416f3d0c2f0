//! The KV arena: keys and values of every live token, in blocks of 16, allocated once.
//!
//! A segment is a chain of blocks. Evicting it gives its blocks back; nothing else moves, since keys are stored
//! rotated by their offset inside the segment and so do not depend on what lies before it.

use crate::engine::Engine;
use crate::kernels::KV_BLOCK;

/// A block's index in the arena.
pub(crate) type BlockId = u32;

/// No block: the end of a chain.
const NONE: BlockId = BlockId::MAX;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KvDtype {
    /// INT8, one scale per head and token: what an `int8` bundle runs with.
    I8,
    /// Single precision: float bundles, the reference.
    F32,
}

/// One token's row of keys or values for all heads is spread over the heads' blocks: `[layer][block][kv head][16][head_dim]`.
enum Store {
    I8 { values: Vec<i8>, scales: Vec<f32> },
    F32 { values: Vec<f32> },
}

impl Store {
    fn new(dtype: KvDtype, tokens: usize, head_dim: usize) -> Self {
        match dtype {
            KvDtype::I8 => Self::I8 { values: vec![0; tokens * head_dim], scales: vec![0.0; tokens] },
            KvDtype::F32 => Self::F32 { values: vec![0.0; tokens * head_dim] },
        }
    }

    /// Stores one head's vector of one token.
    fn write(&mut self, engine: &Engine, token: usize, x: &[f32]) {
        match self {
            Self::I8 { values, scales } => {
                scales[token] = (engine.kernels().quantise_row)(x, &mut values[token * x.len()..][..x.len()]);
            }
            Self::F32 { values } => values[token * x.len()..][..x.len()].copy_from_slice(x),
        }
    }

    fn block(&self, token: usize, head_dim: usize) -> KvBlock<'_> {
        let range = token * head_dim..(token + KV_BLOCK) * head_dim;
        match self {
            Self::I8 { values, scales } => {
                KvBlock::I8 { values: &values[range], scales: &scales[token..token + KV_BLOCK] }
            }
            Self::F32 { values } => KvBlock::F32 { values: &values[range] },
        }
    }
}

/// Sixteen tokens of one head: `values [16, head_dim]`, `scales [16]`.
#[derive(Clone, Copy)]
pub(crate) enum KvBlock<'a> {
    /// INT8 values with a scale per token.
    I8 {
        /// `[16, head_dim]`
        values: &'a [i8],
        /// `[16]`
        scales: &'a [f32],
    },
    /// Single-precision values.
    F32 {
        /// `[16, head_dim]`
        values: &'a [f32],
    },
}

/// A segment's tokens: a chain of blocks, the last one partly filled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    head: BlockId,
    tail: BlockId,
    /// Tokens stored.
    pub(crate) len: usize,
}

impl Chain {
    /// A chain without tokens.
    pub(crate) const EMPTY: Self = Self { head: NONE, tail: NONE, len: 0 };
}

/// Sizes of an arena.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ArenaShape {
    pub(crate) n_layers: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) n_blocks: usize,
    pub(crate) dtype: KvDtype,
}

/// Keys and values of one session.
pub(crate) struct KvArena {
    shape: ArenaShape,
    keys: Store,
    values: Store,
    /// The block after this one in its chain.
    next: Vec<BlockId>,
    free: Vec<BlockId>,
}

impl KvArena {
    /// Allocates everything; no later call does.
    pub(crate) fn new(shape: ArenaShape) -> Self {
        let tokens = shape.n_layers * shape.n_blocks * shape.n_kv_heads * KV_BLOCK;
        let n_blocks = BlockId::try_from(shape.n_blocks).unwrap_or(BlockId::MAX);
        Self {
            shape,
            keys: Store::new(shape.dtype, tokens, shape.head_dim),
            values: Store::new(shape.dtype, tokens, shape.head_dim),
            next: vec![NONE; shape.n_blocks],
            free: (0..n_blocks).rev().collect(),
        }
    }

    /// Whether keys and values are INT8.
    pub(crate) fn dtype(&self) -> KvDtype {
        self.shape.dtype
    }

    /// Bytes of a session's keys and values.
    pub(crate) fn bytes(&self) -> usize {
        let of = |store: &Store| match store {
            Store::I8 { values, scales } => values.len() + 4 * scales.len(),
            Store::F32 { values } => 4 * values.len(),
        };
        of(&self.keys) + of(&self.values)
    }

    /// Whether `tokens` more fit into `chain`.
    pub(crate) fn fits(&self, chain: &Chain, tokens: usize) -> bool {
        let room = chain.len.next_multiple_of(KV_BLOCK) - chain.len;
        tokens.saturating_sub(room).div_ceil(KV_BLOCK) <= self.free.len()
    }

    /// Makes room for `tokens` more at the end of `chain`.
    ///
    /// # Panics
    /// If they do not fit; [`Self::fits`] tells.
    pub(crate) fn extend(&mut self, chain: &mut Chain, tokens: usize) {
        let needed = (chain.len + tokens).div_ceil(KV_BLOCK) - chain.len.div_ceil(KV_BLOCK);
        for _ in 0..needed {
            let block = self.free.pop().expect("the caller asked `fits` first");
            self.next[block as usize] = NONE;
            if chain.head == NONE {
                chain.head = block;
            } else {
                self.next[chain.tail as usize] = block;
            }
            chain.tail = block;
        }
        chain.len += tokens;
    }

    /// Gives a chain's blocks back.
    pub(crate) fn release(&mut self, chain: &mut Chain) {
        let mut block = chain.head;
        while block != NONE {
            self.free.push(block);
            block = self.next[block as usize];
        }
        *chain = Chain::EMPTY;
    }

    /// Blocks that no segment holds.
    #[cfg(test)]
    pub(crate) fn free_blocks(&self) -> usize {
        self.free.len()
    }

    /// The blocks of a chain, in order.
    pub(crate) fn blocks(&self, chain: &Chain) -> impl Iterator<Item = BlockId> {
        let mut block = chain.head;
        std::iter::from_fn(move || {
            let this = (block != NONE).then_some(block)?;
            block = self.next[this as usize];
            Some(this)
        })
    }

    /// Where one head's 16 tokens of a block begin, counted in tokens.
    fn base(&self, layer: usize, block: BlockId, head: usize) -> usize {
        let s = &self.shape;
        ((layer * s.n_blocks + block as usize) * s.n_kv_heads + head) * KV_BLOCK
    }

    /// Stores token `lane` of `block`: `k, v [n_kv_heads, head_dim]`, the keys rotated by their offset in the segment.
    pub(crate) fn write(
        &mut self,
        engine: &Engine,
        layer: usize,
        (block, lane): (BlockId, usize),
        k: &[f32],
        v: &[f32],
    ) {
        assert!(lane < KV_BLOCK);
        let head_dim = self.shape.head_dim;
        for (head, (k, v)) in k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim)).enumerate() {
            let token = self.base(layer, block, head) + lane;
            self.keys.write(engine, token, k);
            self.values.write(engine, token, v);
        }
    }

    /// One head's keys in a block.
    pub(crate) fn keys(&self, layer: usize, block: BlockId, head: usize) -> KvBlock<'_> {
        self.keys.block(self.base(layer, block, head), self.shape.head_dim)
    }

    /// One head's values in a block.
    pub(crate) fn values(&self, layer: usize, block: BlockId, head: usize) -> KvBlock<'_> {
        self.values.block(self.base(layer, block, head), self.shape.head_dim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(n_blocks: usize) -> KvArena {
        KvArena::new(ArenaShape { n_layers: 1, n_kv_heads: 1, head_dim: 4, n_blocks, dtype: KvDtype::F32 })
    }

    #[test]
    fn blocks_come_and_go_without_loss() {
        let mut arena = arena(4);
        let (mut a, mut b) = (Chain::EMPTY, Chain::EMPTY);
        arena.extend(&mut a, 17);
        arena.extend(&mut b, 16);
        assert_eq!(arena.free_blocks(), 1);
        assert!(arena.fits(&a, 15 + 16) && !arena.fits(&a, 15 + 17));
        assert!(arena.fits(&b, 16) && !arena.fits(&b, 17));
        arena.extend(&mut a, 15);
        assert_eq!(arena.free_blocks(), 1, "the last block had room for 15 more");
        arena.release(&mut a);
        arena.release(&mut b);
        assert_eq!(arena.free_blocks(), 4);
        assert_eq!(arena.blocks(&a).count(), 0);
    }

    #[test]
    fn a_chain_keeps_its_order_across_reuse() {
        let mut arena = arena(6);
        let (mut a, mut b) = (Chain::EMPTY, Chain::EMPTY);
        arena.extend(&mut a, 32);
        arena.extend(&mut b, 32);
        arena.release(&mut a);
        arena.extend(&mut b, 40);
        let blocks: Vec<_> = arena.blocks(&b).collect();
        assert_eq!(blocks.len(), 5);
        let mut unique = blocks.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), 5, "no block twice");
    }
}
