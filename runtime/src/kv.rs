//! The KV arena: keys and values of every live token, in blocks of 16, allocated once.
//!
//! A segment is a chain of blocks. Evicting it gives its blocks back; nothing else moves, since keys are stored
//! rotated by their offset inside the segment and so do not depend on what lies before it.

use std::mem::size_of;

use bytemuck::allocation::zeroed_slice_box;

use crate::config::MAX_HEAD_DIM;
#[cfg(feature = "cuda")]
use crate::cuda::{CudaError, Device, Memory};
use crate::engine::{Engine, PARALLEL_VALUES};
use crate::kernels::KV_BLOCK;
use crate::kernels::attention::{KvPanels, PanelScales};
use crate::quant::{TILE, TILE_K, TILE_N};

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

/// Zeroed bytes that start with a cache line. The system has zeroed pages ready, but an allocator that is asked
/// for an alignment too writes zeros to all of them.
struct Lines {
    bytes: Vec<i8>,
    start: usize,
    len: usize,
}

impl Lines {
    fn zeroed(len: usize) -> Self {
        let bytes = vec![0; len + TILE];
        // A vector's address does not change while nothing is added to it.
        let start = bytes.as_ptr().align_offset(TILE).min(TILE);
        Self { bytes, start, len }
    }

    fn get(&self) -> &[i8] {
        &self.bytes[self.start..self.start + self.len]
    }

    fn get_mut(&mut self) -> &mut [i8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// Keys and values in panels: 16 tokens of one head of one layer, `[layer][kv head][block]`.
enum Store {
    /// Panels as [`KvPanels`] has them.
    I8 { tiles: Lines, scales: Box<[PanelScales]> },
    /// `[panels, 16, head_dim]` each.
    F32 { keys: Vec<f32>, values: Vec<f32> },
    /// One of these on a card, its two arrays one after the other.
    #[cfg(feature = "cuda")]
    Card { memory: Memory, panels: usize },
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

impl ArenaShape {
    /// Bytes of the keys and values.
    pub(crate) fn bytes(&self) -> u128 {
        let panel = match self.dtype {
            KvDtype::I8 => {
                KvPanels::panel_len(self.head_dim).iter().sum::<usize>() + size_of::<PanelScales>()
            }
            KvDtype::F32 => 2 * 4 * KV_BLOCK * self.head_dim,
        };
        (self.n_layers * self.n_kv_heads * panel) as u128 * self.n_blocks as u128
    }
}

/// Keys and values of one session.
pub(crate) struct KvArena {
    shape: ArenaShape,
    store: Store,
    /// The block after this one in its chain.
    next: Vec<BlockId>,
    free: Vec<BlockId>,
}

impl KvArena {
    /// Allocates everything; no later call does.
    pub(crate) fn new(shape: ArenaShape) -> Self {
        let panels = shape.n_layers * shape.n_blocks * shape.n_kv_heads;
        let tokens = panels * KV_BLOCK;
        let store = match shape.dtype {
            KvDtype::I8 => Store::I8 {
                tiles: Lines::zeroed(panels * KvPanels::panel_len(shape.head_dim).iter().sum::<usize>()),
                scales: zeroed_slice_box(panels),
            },
            KvDtype::F32 => Store::F32 {
                keys: vec![0.0; tokens * shape.head_dim],
                values: vec![0.0; tokens * shape.head_dim],
            },
        };
        Self::of(shape, store)
    }

    /// The same on a card, whose kernels write it.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_card(shape: ArenaShape, device: &std::sync::Arc<Device>) -> Result<Self, CudaError> {
        let bytes = usize::try_from(shape.bytes()).unwrap_or(usize::MAX);
        let memory = device.allocate("keys and values of a session", bytes)?;
        memory.fill(0, bytes)?;
        Ok(Self::of(
            shape,
            Store::Card { memory, panels: shape.n_layers * shape.n_blocks * shape.n_kv_heads },
        ))
    }

    fn of(shape: ArenaShape, store: Store) -> Self {
        let n_blocks = BlockId::try_from(shape.n_blocks).unwrap_or(BlockId::MAX);
        Self { shape, store, next: vec![NONE; shape.n_blocks], free: (0..n_blocks).rev().collect() }
    }

    /// On a card: where the two arrays of the arena begin, and its blocks.
    #[cfg(feature = "cuda")]
    pub(crate) fn at(&self) -> Option<([u64; 2], usize)> {
        let Store::Card { memory, panels } = &self.store else { return None };
        let first: usize = match self.shape.dtype {
            KvDtype::I8 => KvPanels::panel_len(self.shape.head_dim).iter().sum(),
            KvDtype::F32 => 4 * KV_BLOCK * self.shape.head_dim,
        };
        Some(([memory.at(), memory.at() + (panels * first) as u64], self.shape.n_blocks))
    }

    /// What it holds.
    #[cfg(feature = "cuda")]
    pub(crate) fn dtype(&self) -> KvDtype {
        self.shape.dtype
    }

    /// Bytes of a session's keys and values.
    pub(crate) fn bytes(&self) -> usize {
        usize::try_from(self.shape.bytes()).expect("they are allocated")
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

    /// Forgets what a chain holds behind its first `len` tokens, if it has more.
    pub(crate) fn truncate(&mut self, chain: &mut Chain, len: usize) {
        if len >= chain.len {
            return;
        }
        let Some(last) = len.div_ceil(KV_BLOCK).checked_sub(1).and_then(|last| self.blocks(chain).nth(last))
        else {
            return self.release(chain);
        };
        let head = std::mem::replace(&mut self.next[last as usize], NONE);
        self.release(&mut Chain { head, ..*chain });
        (chain.tail, chain.len) = (last, len);
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

    /// Zeroes what a chain holds. A weight of zero hides the values of a free block, but no NaN among them.
    pub(crate) fn clear(&mut self, chain: &Chain) {
        let mut block = chain.head;
        while block != NONE {
            for layer in 0..self.shape.n_layers {
                for head in 0..self.shape.n_kv_heads {
                    let panel = self.panel(layer, block, head) as usize;
                    match &mut self.store {
                        Store::I8 { tiles, scales } => {
                            let len = tiles.len / scales.len();
                            tiles.get_mut()[panel * len..][..len].fill(0);
                            scales[panel] = PanelScales::default();
                        }
                        Store::F32 { keys, values } => {
                            let len = KV_BLOCK * self.shape.head_dim;
                            keys[panel * len..][..len].fill(0.0);
                            values[panel * len..][..len].fill(0.0);
                        }
                        // Scales of zero hide the values beside them; what is lost with the card needs no zeros.
                        #[cfg(feature = "cuda")]
                        Store::Card { memory, panels } => {
                            let _ = clear_panel(memory, &self.shape, *panels, panel);
                        }
                    }
                }
            }
            block = self.next[block as usize];
        }
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

    /// The panel of one head of one layer in a block.
    pub(crate) fn panel(&self, layer: usize, block: BlockId, head: usize) -> u32 {
        let s = &self.shape;
        let panel = (layer * s.n_kv_heads + head) * s.n_blocks + block as usize;
        u32::try_from(panel).expect("an arena is far below 2³² panels of at least 512 bytes")
    }

    /// Stores tokens of a chain of `blocks` from offset `first` on: `k, v [tokens, n_kv_heads · head_dim]`, the keys rotated by their
    /// offset in the segment. Threads share the heads.
    ///
    /// # Panics
    /// If the tokens are not whole rows, or reach beyond the blocks.
    pub(crate) fn write(
        &mut self,
        e: &Engine,
        layer: usize,
        (blocks, first): (&[BlockId], usize),
        k: &[f32],
        v: &[f32],
    ) {
        let ArenaShape { n_kv_heads, head_dim, n_blocks, .. } = self.shape;
        assert_eq!(k.len(), v.len());
        // Block, lane, key and value of each token of a head.
        let row_len = n_kv_heads * head_dim;
        let tokens = |head: usize| {
            k.chunks_exact(row_len).zip(v.chunks_exact(row_len)).enumerate().map(move |(i, (k, v))| {
                let (block, lane) = (blocks[(first + i) / KV_BLOCK] as usize, (first + i) % KV_BLOCK);
                (block, lane, &k[head * head_dim..][..head_dim], &v[head * head_dim..][..head_dim])
            })
        };
        let heads = layer * n_kv_heads * n_blocks..(layer + 1) * n_kv_heads * n_blocks;
        let together = if k.len() < PARALLEL_VALUES { n_kv_heads } else { 1 };
        match &mut self.store {
            Store::I8 { tiles, scales } => {
                let len = tiles.len / scales.len();
                let tiles =
                    (&mut tiles.get_mut()[heads.start * len..heads.end * len], together * n_blocks * len);
                let scales = (&mut scales[heads], together * n_blocks);
                e.for_each_pair(tiles, scales, &|i, tiles, scales| {
                    let heads = tiles.chunks_exact_mut(n_blocks * len).zip(scales.chunks_exact_mut(n_blocks));
                    for (head, (tiles, scales)) in heads.enumerate() {
                        for (block, lane, k, v) in tokens(i * together + head) {
                            let panel = &mut tiles[block * len..][..len];
                            write_token(e, panel, &mut scales[block], lane, k, v);
                        }
                    }
                });
            }
            Store::F32 { keys, values } => {
                for head in 0..n_kv_heads {
                    for (block, lane, k, v) in tokens(head) {
                        let token = (heads.start + head * n_blocks + block) * KV_BLOCK + lane;
                        keys[token * head_dim..][..head_dim].copy_from_slice(k);
                        values[token * head_dim..][..head_dim].copy_from_slice(v);
                    }
                }
            }
            #[cfg(feature = "cuda")]
            Store::Card { .. } => unreachable!("a pass on the CPU has an arena there"),
        }
    }

    /// Keys and values of the whole arena.
    pub(crate) fn view(&self) -> KvView<'_> {
        match &self.store {
            Store::I8 { tiles, scales } => {
                KvView::I8(KvPanels { tiles: tiles.get(), scales, which: &[], head_dim: self.shape.head_dim })
            }
            Store::F32 { keys, values } => KvView::F32 { keys, values },
            #[cfg(feature = "cuda")]
            Store::Card { .. } => unreachable!("a pass on the CPU has an arena there"),
        }
    }
}

/// Zeroes one panel of an arena on a card: of floats both arrays, of INT8 the scales.
#[cfg(feature = "cuda")]
fn clear_panel(memory: &Memory, shape: &ArenaShape, panels: usize, panel: usize) -> Result<(), CudaError> {
    match shape.dtype {
        KvDtype::I8 => {
            let tiles = panels * KvPanels::panel_len(shape.head_dim).iter().sum::<usize>();
            memory.fill(tiles + panel * size_of::<PanelScales>(), size_of::<PanelScales>())
        }
        KvDtype::F32 => {
            let len = 4 * KV_BLOCK * shape.head_dim;
            memory.fill(panel * len, len)?;
            memory.fill((panels + panel) * len, len)
        }
    }
}

/// Quantises one token into lane `lane` of a panel.
fn write_token(e: &Engine, panel: &mut [i8], scales: &mut PanelScales, lane: usize, k: &[f32], v: &[f32]) {
    let mut row = [0; MAX_HEAD_DIM];
    let row = &mut row[..k.len()];
    let (keys, values) = panel.split_at_mut(KvPanels::panel_len(k.len())[0]);
    scales.key[lane] = (e.kernels().quantise_row)(k, row);
    scales.key_sum[lane] = row.iter().map(|&q| i32::from(q)).sum();
    for (tile, row) in keys.chunks_mut(TILE).zip(row.chunks(TILE_K)) {
        tile[lane * TILE_K..][..row.len()].copy_from_slice(row);
    }
    scales.value[lane] = (e.kernels().quantise_row)(v, row);
    for (tiles, row) in values.chunks_mut(TILE_N * KV_BLOCK).zip(row.chunks(TILE_N)) {
        let first = lane / TILE_K * TILE + lane % TILE_K;
        for (out, &q) in tiles[first..].iter_mut().step_by(TILE_K).zip(row) {
            *out = q;
        }
    }
}

/// What the arena holds.
pub(crate) enum KvView<'a> {
    /// INT8 tiles; no panel is chosen yet.
    I8(KvPanels<'a>),
    /// `[panels, 16, head_dim]`.
    F32 { keys: &'a [f32], values: &'a [f32] },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(n_blocks: usize) -> KvArena {
        KvArena::new(ArenaShape { n_layers: 1, n_kv_heads: 1, head_dim: 4, n_blocks, dtype: KvDtype::F32 })
    }

    #[test]
    fn bytes_are_those_that_are_allocated() {
        for (dtype, head_dim) in [(KvDtype::I8, 20), (KvDtype::I8, 64), (KvDtype::F32, 20)] {
            let arena = KvArena::new(ArenaShape { n_layers: 3, n_kv_heads: 2, head_dim, n_blocks: 5, dtype });
            let allocated = match &arena.store {
                Store::I8 { tiles, scales } => tiles.len + size_of_val(&scales[..]),
                Store::F32 { keys, values } => 4 * (keys.len() + values.len()),
                #[cfg(feature = "cuda")]
                Store::Card { .. } => 0,
            };
            assert_eq!(arena.bytes(), allocated, "{dtype:?}");
        }
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
    fn a_chain_is_cut_and_grows_again() {
        let mut arena = arena(6);
        for (len, cut, free) in
            [(80, 81, 1), (80, 80, 1), (80, 79, 1), (80, 33, 3), (80, 32, 4), (80, 1, 5), (80, 0, 6)]
        {
            let mut chain = Chain::EMPTY;
            arena.extend(&mut chain, len);
            let before: Vec<_> = arena.blocks(&chain).collect();
            arena.truncate(&mut chain, cut);
            assert_eq!((chain.len, arena.free_blocks()), (cut.min(len), free), "{cut}");
            assert!(arena.blocks(&chain).eq(before.into_iter().take(6 - free)), "{cut}");
            let more = 90 - chain.len;
            arena.extend(&mut chain, more);
            assert_eq!((arena.blocks(&chain).count(), arena.free_blocks()), (6, 0), "{cut}");
            arena.release(&mut chain);
            assert_eq!(arena.free_blocks(), 6, "{cut}");
        }
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
