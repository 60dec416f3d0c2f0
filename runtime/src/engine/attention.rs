//! Grouped-query attention over the arena.
//!
//! A step's rows are cut into units of a few rows; in a unit, the query heads that share a key head are rows of one matrix product.
//! Scores of all visible keys, softmax, weighted sum: whole rows at a time, since the arena bounds how long they get.
//!
//! Source: Ainslie et al. 2023 (arXiv:2305.13245), with a learned bias per head and pair of modalities.

use std::f32::consts::LOG2_E;
use std::ops::Range;

use super::cpu::Net;
use super::pass::{Own, Sequence};
use crate::config::{DecoderConfig, Modality};
use crate::kernels::KV_BLOCK;
use crate::kernels::attention::{KvPanels, Queries, WEIGHT_MAX};
use crate::kv::{BlockId, Chain, KvArena, KvView};
use crate::quant::pad_k;

/// Queries that a unit multiplies at a time, about.
const UNIT_QUERIES: usize = 16;

/// Buffers of attention, allocated once.
#[derive(Default)]
pub(crate) struct AttentionScratch {
    /// Blocks of every visible segment of every sequence, one after the other.
    blocks: Vec<BlockId>,
    /// Where each sequence's blocks begin, and the end.
    starts: Vec<usize>,
    /// One for each thread.
    units: Vec<UnitScratch>,
}

/// What one unit needs.
struct UnitScratch {
    /// `[max_blocks]`, the panels of one key head.
    panels: Vec<u32>,
    /// `[head_dim]`, a query turned towards one segment.
    turned: Vec<f32>,
    /// `[queries, pad_k(head_dim)]`
    q: Vec<i8>,
    /// `[queries]`
    scale: Vec<f32>,
    /// `[queries]`
    bias: Vec<f32>,
    /// `[queries, keys]`
    scores: Vec<f32>,
    /// `[keys]`
    value_scale: Vec<f32>,
    /// `[queries, 2, keys]`
    weights: Vec<i8>,
    /// `[queries, head_dim]`
    out: Vec<f32>,
}

impl AttentionScratch {
    /// For steps of at most `max_sequences` sequences that see at most `max_blocks` blocks each.
    pub(crate) fn new(c: &DecoderConfig, max_blocks: usize, max_sequences: usize, threads: usize) -> Self {
        let queries = unit_rows(c) * c.n_heads / c.n_kv_heads;
        let keys = max_blocks * KV_BLOCK;
        let unit = || UnitScratch {
            panels: vec![0; max_blocks],
            turned: vec![0.0; c.head_dim],
            q: vec![0; queries * pad_k(c.head_dim)],
            scale: vec![0.0; queries],
            bias: vec![0.0; queries],
            scores: vec![0.0; queries * keys],
            value_scale: vec![0.0; keys],
            weights: vec![0; queries * 2 * keys],
            out: vec![0.0; queries * c.head_dim],
        };
        Self {
            blocks: Vec::with_capacity(max_sequences * max_blocks),
            starts: Vec::with_capacity(max_sequences + 1),
            units: (0..threads).map(|_| unit()).collect(),
        }
    }

    /// The blocks of one chain, as a slice.
    pub(crate) fn blocks_of(&mut self, kv: &KvArena, chain: &Chain) -> &[BlockId] {
        self.blocks.clear();
        self.blocks.extend(kv.blocks(chain));
        &self.blocks
    }
}

/// Rows of a unit: as many as make [`UNIT_QUERIES`] queries, at least one.
fn unit_rows(c: &DecoderConfig) -> usize {
    (UNIT_QUERIES * c.n_kv_heads / c.n_heads).max(1)
}

/// Attention of a step's rows over one layer of their arenas.
pub(crate) struct Attention<'a> {
    pub(crate) net: Net<'a>,
    pub(crate) layer: usize,
    /// `[n_heads, modalities of the query, modalities of the key]`
    pub(crate) bias: Option<&'a [f32]>,
}

impl Attention<'_> {
    /// Shapes: `q, out [rows, n_heads · head_dim] f32`, the sequences' rows one after the other.
    pub(crate) fn forward(
        &self,
        sequences: &[Sequence<'_>],
        q: &[f32],
        out: &mut [f32],
        s: &mut AttentionScratch,
    ) {
        let c = self.net.config;
        let heads = c.n_heads * c.head_dim;
        let AttentionScratch { blocks, starts, units } = s;
        blocks.clear();
        starts.clear();
        for sequence in sequences {
            starts.push(blocks.len());
            for segment in sequence.context.iter().chain([&sequence.own]) {
                blocks.extend(sequence.kv.blocks(&segment.chain));
            }
        }
        starts.push(blocks.len());
        let of = |i: usize| Of {
            attention: self,
            sequence: &sequences[i],
            blocks: &blocks[starts[i]..starts[i + 1]],
        };
        let pool = self.net.engine.pool();
        if sequences.iter().all(|sequence| sequence.rows == 1) {
            // A row each: the threads share the key heads of all.
            let group = heads / c.n_kv_heads;
            pool.for_each_piece((out, group), (&mut [(); 0], 0), units, &|i, out, _, t| {
                let (row, head) = (i / c.n_kv_heads, i % c.n_kv_heads);
                of(row).unit(&q[row * heads..][..heads], 0..1, head, out, t);
            });
            return;
        }
        let (unit, mut first) = (unit_rows(c), 0);
        for (i, sequence) in sequences.iter().enumerate() {
            let (this, rows) = (of(i), first..first + sequence.rows);
            let q = &q[rows.start * heads..rows.end * heads];
            let out = &mut out[rows.start * heads..rows.end * heads];
            pool.for_each_piece((out, unit * heads), (&mut [(); 0], 0), units, &|i, out, _, t| {
                let rows = i * unit..sequence.rows.min((i + 1) * unit);
                for head in 0..c.n_kv_heads {
                    this.unit(q, rows.clone(), head, out, t);
                }
            });
            first = rows.end;
        }
    }
}

/// One sequence's part of it.
struct Of<'a> {
    attention: &'a Attention<'a>,
    sequence: &'a Sequence<'a>,
    /// Of all that it sees, its own segment last.
    blocks: &'a [BlockId],
}

impl Of<'_> {
    /// The query heads of key head `kv_head` in `rows`; `out` begins with the first row (or, for one row, with the first head).
    fn unit(&self, q: &[f32], rows: Range<usize>, kv_head: usize, out: &mut [f32], t: &mut UnitScratch) {
        let (c, sequence) = (self.attention.net.config, self.sequence);
        let (hd, group) = (c.head_dim, c.n_heads / c.n_kv_heads);
        // Later rows' blocks of the own segment are invisible to all of these.
        let own_blocks = sequence.own.chain.len.div_ceil(KV_BLOCK);
        let context_blocks = self.blocks.len() - own_blocks;
        let visible = context_blocks + (sequence.offset + rows.end - 1) / KV_BLOCK + 1;
        for (panel, &block) in t.panels.iter_mut().zip(&self.blocks[..visible]) {
            *panel = sequence.kv.panel(self.attention.layer, block, kv_head);
        }
        let first_head = kv_head * group;
        let query =
            |i: usize| &q[((rows.start + i / group) * c.n_heads + first_head + i % group) * hd..][..hd];
        match sequence.kv.view() {
            KvView::I8(kv) => {
                self.unit_i8(kv, query, rows.clone(), first_head, (context_blocks, visible), t);
            }
            KvView::F32 { keys, values } => {
                self.unit_f32((keys, values), query, rows.clone(), first_head, (context_blocks, visible), t);
            }
        }
        // A piece of one head is as wide as its group of queries, a piece of rows as all heads.
        let (row_len, first) =
            if out.len() == group * hd { (group * hd, 0) } else { (c.n_heads * hd, first_head * hd) };
        for (out, row) in out.chunks_mut(row_len).zip(t.out.chunks_exact(group * hd)) {
            out[first..first + group * hd].copy_from_slice(row);
        }
    }

    fn unit_i8<'q>(
        &self,
        kv: KvPanels<'_>,
        query: impl Fn(usize) -> &'q [f32],
        rows: Range<usize>,
        first_head: usize,
        (context_blocks, visible): (usize, usize),
        t: &mut UnitScratch,
    ) {
        let Net { engine: e, config: c, rope, .. } = self.attention.net;
        let kernels = e.kernels();
        let (hd, k_pad, group) = (c.head_dim, pad_k(c.head_dim), c.n_heads / c.n_kv_heads);
        let (queries, keys) = (rows.len() * group, visible * KV_BLOCK);
        let UnitScratch { panels, turned, q, scale, bias, scores, value_scale, weights, out } = t;
        let kv = KvPanels { which: &panels[..visible], ..kv };

        // Scores in bits, segment by segment: the queries are turned by their distance to its first token.
        let mut block = 0;
        for segment in self.sequence.context.iter().chain([&self.sequence.own]) {
            let blocks = segment.chain.len.div_ceil(KV_BLOCK).min(visible - block);
            for i in 0..queries {
                turned.copy_from_slice(query(i));
                rope.rotate(e, turned, self.pos(rows.start + i / group) - segment.base);
                let amplitude = (kernels.quantise_row)(turned, &mut q[i * k_pad..][..k_pad]);
                scale[i] = amplitude * (root(hd) * LOG2_E);
                bias[i] = self.bias(first_head + i % group, segment.modality) * LOG2_E;
            }
            let q = &mut q[..queries * k_pad];
            kernels.make_operand(q);
            let q = Queries { q, scale: &scale[..queries], bias: &bias[..queries] };
            let kv = KvPanels { which: &kv.which[block..block + blocks], ..kv };
            let first = block * KV_BLOCK;
            (kernels.scores_i8)(q, kv, &mut scores[first..], keys);
            for (value_scale, &panel) in value_scale[first..].chunks_exact_mut(KV_BLOCK).zip(kv.which) {
                value_scale.copy_from_slice(&kv.scales(panel).value);
            }
            // What lies behind a segment's last token is somebody else's, or was.
            let (len, end) = (first + segment.chain.len, (block + blocks) * KV_BLOCK);
            for at in len.min(end)..end {
                (0..queries).for_each(|i| scores[i * keys + at] = f32::NEG_INFINITY);
                value_scale[at] = 0.0;
            }
            block += blocks;
        }

        let context_keys = context_blocks * KV_BLOCK;
        let context_amax = amax(&value_scale[..context_keys], 0.0);
        let mut row_amax = 0.0;
        for i in 0..queries {
            let scores = &mut scores[i * keys..][..keys];
            let seen = self.mask(rows.start + i / group, &mut scores[context_keys..]);
            if i % group == 0 {
                // Of what this row sees alone, so that rows do not depend on what comes after them.
                row_amax =
                    amax(&value_scale[context_keys + seen.start..context_keys + seen.end], context_amax);
            }
            // Capped so that what is hidden, 2⁻¹⁰⁰ times any scale, stays below half a step.
            let c = if row_amax > 0.0 { (WEIGHT_MAX / row_amax).min(2f32.powi(60)) } else { 0.0 };
            let weights = &mut weights[i * 2 * keys..][..2 * keys];
            let sum = (kernels.softmax_u14)(scores, &value_scale[..keys], c, weights);
            scale[i] = if c > 0.0 { 1.0 / c / sum } else { row_amax / sum };
        }
        let weights = &weights[..queries * 2 * keys];
        (kernels.weighted_sum_i8)(weights, &scale[..queries], kv, &mut out[..queries * hd]);
    }

    fn unit_f32<'q>(
        &self,
        (k, v): (&[f32], &[f32]),
        query: impl Fn(usize) -> &'q [f32],
        rows: Range<usize>,
        first_head: usize,
        (context_blocks, visible): (usize, usize),
        t: &mut UnitScratch,
    ) {
        let Net { engine: e, config: c, rope, .. } = self.attention.net;
        let kernels = e.kernels();
        let (hd, group) = (c.head_dim, c.n_heads / c.n_kv_heads);
        let keys = visible * KV_BLOCK;
        let panel = |panel: u32| panel as usize * KV_BLOCK * hd..(panel as usize + 1) * KV_BLOCK * hd;
        for i in 0..rows.len() * group {
            let scores = &mut t.scores[..keys];
            let mut block = 0;
            for segment in self.sequence.context.iter().chain([&self.sequence.own]) {
                t.turned.copy_from_slice(query(i));
                rope.rotate(e, &mut t.turned, self.pos(rows.start + i / group) - segment.base);
                let bias = self.bias(first_head + i % group, segment.modality);
                let blocks = segment.chain.len.div_ceil(KV_BLOCK).min(visible - block);
                for at in 0..blocks {
                    let scores = &mut scores[(block + at) * KV_BLOCK..][..KV_BLOCK];
                    (kernels.scores_f32)(&t.turned, &k[panel(t.panels[block + at])], scores);
                    for (lane, score) in scores.iter_mut().enumerate() {
                        let live = at * KV_BLOCK + lane < segment.chain.len;
                        *score = if live { *score * root(hd) + bias } else { f32::NEG_INFINITY };
                    }
                }
                block += blocks;
            }
            self.mask(rows.start + i / group, &mut scores[context_blocks * KV_BLOCK..]);
            (kernels.softmax_f32)(scores);
            let out = &mut t.out[i * hd..][..hd];
            out.fill(0.0);
            for (&at, p) in t.panels.iter().zip(scores.chunks_exact(KV_BLOCK)) {
                (kernels.weighted_sum_f32)(p, &v[panel(at)], out);
            }
        }
    }

    /// Position of a row.
    fn pos(&self, row: usize) -> usize {
        self.sequence.own.base + self.sequence.offset + row
    }

    /// What a head adds to its scores of keys of some modality.
    fn bias(&self, head: usize, modality: Modality) -> f32 {
        let Some(bias) = self.attention.bias else { return 0.0 };
        let modalities = Modality::ALL.len();
        let own = self.sequence.own.modality.index();
        bias[(head * modalities + own) * modalities + modality.index()]
    }

    /// Hides from a row what it must not see of its own segment, whose `scores` these are; returns what it sees.
    fn mask(&self, row: usize, scores: &mut [f32]) -> Range<usize> {
        let offset = self.sequence.offset + row;
        let seen = match self.sequence.own_rule {
            Own::Causal => 0..offset + 1,
            Own::Itself => offset..offset + 1,
        };
        scores[..seen.start].fill(f32::NEG_INFINITY);
        scores[seen.end..].fill(f32::NEG_INFINITY);
        seen
    }
}

/// `1/√head_dim`.
#[allow(clippy::cast_precision_loss)] // head_dim ≤ 1024
fn root(head_dim: usize) -> f32 {
    1.0 / (head_dim as f32).sqrt()
}

/// The largest of `from` and some magnitudes; NaN if one of them is.
fn amax(scale: &[f32], from: f32) -> f32 {
    // As in `quantise_row`: magnitudes order as their bits do, NaN above all.
    f32::from_bits(scale.iter().fold(from.to_bits(), |amax, x| amax.max(x.to_bits() & 0x7fff_ffff)))
}
