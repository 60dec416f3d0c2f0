//! What a step on a card works in.

use super::super::pass::{Most, Own, Sequence, Visible};
use super::drawing::CardDrawing;
use super::passes::{attention_shape, most_split, widest};
use super::staging::Staging;
use super::{CHUNK, Card, CardFeatures, CardPass, EMBED, Loaded, PREFIX, SLOTS, Spread};
use crate::Result;
use crate::config::Modality;
use crate::cuda::launch::{
    At, AttentionShape, FEW_PANELS, InputAt, MAX_PICKED, RowAt, SegmentAt, SequenceAt, Tables, UnitAt,
};
use crate::cuda::{CudaError, Graph, Memory, Pinned};
use crate::decoder::Decoder;
use crate::family::janus::Drawing;
use crate::family::unimodal::Unimodal;
use crate::kernels::KV_BLOCK;
use crate::kv::KvDtype;
use crate::quant::pad_k;
use crate::rope::Rope;
use crate::weights::TableRef;

/// Every array begins at a multiple of this.
const ALIGN: usize = 256;

/// Arrays one after the other, each aligned.
#[derive(Default)]
struct Arrays {
    bytes: usize,
}

impl Arrays {
    fn add(&mut self, bytes: usize) -> usize {
        let at = self.bytes;
        self.bytes = (at + bytes).next_multiple_of(ALIGN);
        at
    }
}

/// Offsets of what a step's rows are, in one array that the host writes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lists {
    pub(super) inputs: usize,
    pub(super) rows: usize,
    pub(super) units: usize,
    pub(super) sequences: usize,
    pub(super) segments: usize,
    pub(super) blocks: usize,
    pub(super) bytes: usize,
}

/// What a model has beside the decoder.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Beside<'a> {
    Nothing,
    Own(&'a Unimodal),
    Drawing(&'a Drawing),
}

/// What a step on a card works in, allocated once.
pub(crate) struct CardBuffers {
    pub(super) memory: Memory,
    pub(super) shape: AttentionShape,
    pub(super) head_dim: usize,
    pub(super) tables: Tables,
    /// Of the rows of the next step.
    pub(super) inputs: Vec<InputAt>,
    pub(super) x: usize,
    pub(super) q: usize,
    pub(super) k: usize,
    pub(super) v: usize,
    pub(super) attended: usize,
    pub(super) hidden: usize,
    /// `[rows, d_ff]`, the other half of a gate of float layers.
    pub(super) up: usize,
    /// `[rows, widest]`, rows that were normed.
    pub(super) normed: usize,
    /// Of a model that draws.
    pub(super) drawing: Option<CardDrawing>,
    /// Of the question's pictures.
    pub(super) features: CardFeatures,
    pub(super) quantised: usize,
    pub(super) scale: usize,
    pub(super) cosines: usize,
    pub(super) sines: usize,
    /// Attention's own.
    pub(super) scratch: usize,
    pub(super) logits: usize,
    /// `[codes] i32`, where each code of a picture stands among the logits; and `[codes] f32`, those of them under guidance.
    pub(super) codes: usize,
    pub(super) mixed: usize,
    pub(super) n_codes: usize,
    /// Behind it lies what was picked, which comes back with it.
    pub(super) flag: usize,
    pub(super) lists_at: usize,
    pub(super) lists: Lists,
    /// Positions whose angles are on the card.
    pub(super) positions: usize,
    pub(super) staging: Staging,
    pub(super) results: Pinned,
    /// Of steps of one row a sequence, by the number of sequences, and by whether they see few keys.
    pub(super) graphs: Vec<[Option<Graph>; 2]>,
}

impl CardBuffers {
    /// For steps of at most so much, and so many logits at a time; `codes`: where the code of each index stands among the logits over codes.
    pub(crate) fn new(
        card: &Card,
        decoder: &Decoder,
        beside: Beside<'_>,
        most: Most,
        logits: usize,
        codes: &[i32],
        dtype: KvDtype,
    ) -> Result<Self> {
        let c = &decoder.config;
        let (heads, kvs) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let (drawn, widest) = (CardDrawing::widest(beside), widest(c, beside));
        // A block holds a row that it norms or quantises.
        let row = 4 * if dtype == KvDtype::I8 { widest } else { c.d_model };
        let room = card.device.block_room();
        if row > room {
            return Err(
                CudaError::RowTooLong { what: "the layers of this model", bytes: row, most: room }.into()
            );
        }
        let shape = attention_shape(c, most.blocks, dtype);
        let units = shape.most_units(most.rows, most.sequences);
        let scratch = match dtype {
            KvDtype::F32 => shape.scratch_f32(most.rows),
            KvDtype::I8 => most_split(&shape, most.sequences, card.device.multiprocessors()),
        };
        let mut arrays = Arrays::default();
        let mut floats = |n: usize| arrays.add(4 * n);
        let rows = most.rows;
        let (x, q, k, v) =
            (floats(rows * c.d_model), floats(rows * heads), floats(rows * kvs), floats(rows * kvs));
        let (attended, hidden, up) = (floats(rows * heads), floats(rows * c.d_ff), floats(rows * c.d_ff));
        let normed = floats(rows * widest);
        let drawing = [floats(rows * drawn), floats(rows * drawn)];
        let angles = (most.blocks * KV_BLOCK + 1) * c.head_dim / 2;
        let (cosines, sines, logits_at, scale) =
            (floats(angles), floats(angles), floats(logits), floats(rows * most.parts));
        let (codes_at, mixed) = (floats(codes.len()), floats(codes.len()));
        let flag = arrays.add(4 * (1 + rows.max(MAX_PICKED)));
        let quantised = arrays.add(rows * most.parts * pad_k(widest));
        let scratch = arrays.add(scratch);
        let mut lists = Arrays::default();
        let lists = Lists {
            inputs: lists.add(rows * size_of::<InputAt>()),
            rows: lists.add(rows * size_of::<RowAt>()),
            units: lists.add(units * size_of::<UnitAt>()),
            sequences: lists.add(most.sequences * size_of::<SequenceAt>()),
            segments: lists.add(most.sequences * most.segments * size_of::<SegmentAt>()),
            blocks: lists.add(most.sequences * most.blocks * 4),
            bytes: lists.bytes,
        };
        let lists_at = arrays.add(lists.bytes);
        let memory = card.device.allocate("the buffers of a session", arrays.bytes)?;
        let mut tables = Tables { d: narrow(c.d_model), ..Tables::default() };
        tables.table[EMBED as usize] = card.rows_of(&decoder.embed);
        let drawing = match beside {
            Beside::Drawing(net) => Some(CardDrawing::new(card, net, drawing)),
            Beside::Nothing | Beside::Own(_) => None,
        };
        if let Beside::Own(own) = beside {
            tables.table[PREFIX as usize] = card.rows_of(&own.task_prefix);
            tables.table[SLOTS as usize] = card.rows_of(&own.action_slots);
            let [grid, modality] = [&own.image_grid, &own.modality_embed].map(TableRef::place);
            (tables.grid, tables.modality) = (card.table(grid.0, grid.1), card.table(modality.0, modality.1));
        }
        memory.fill(0, arrays.bytes)?;
        let staged = lists.bytes.max(8 * angles.min(CHUNK / 8)).max(4 * codes.len());
        let staging = Staging::new(&card.device, staged)?;
        let results = 4 * (logits.max(rows).max(MAX_PICKED) + 1);
        let results = Pinned::new(&card.device, results)?;
        let mut buffers = Self {
            memory,
            head_dim: c.head_dim,
            tables,
            inputs: vec![InputAt::default(); rows],
            shape,
            x,
            q,
            k,
            v,
            attended,
            hidden,
            up,
            normed,
            drawing,
            features: CardFeatures::default(),
            quantised,
            scale,
            cosines,
            sines,
            scratch,
            logits: logits_at,
            codes: codes_at,
            mixed,
            n_codes: codes.len(),
            flag,
            lists_at,
            lists,
            positions: 0,
            staging,
            results,
            graphs: (0..=most.sequences).map(|_| [None, None]).collect(),
        };
        if !codes.is_empty() {
            let codes = bytemuck::cast_slice::<i32, u8>(codes);
            buffers.stage(codes_at, codes.len(), |room| room.copy_from_slice(codes))?;
        }
        Ok(buffers)
    }

    pub(super) fn at(&self, offset: usize) -> At {
        self.memory.at() + offset as u64
    }

    /// Puts bytes that `write` makes to `offset`, in the stream.
    fn stage(&mut self, offset: usize, bytes: usize, write: impl FnOnce(&mut [u8])) -> Result<()> {
        self.staging.put(&self.memory, offset, bytes, write)
    }

    /// The angles of every position below `end`.
    fn reach(&mut self, rope: &Rope, end: usize) -> Result<()> {
        let half = self.head_dim / 2;
        let at_once = (self.staging.len() / (2 * 4 * half)).max(1);
        while self.positions < end {
            let first = self.positions;
            let last = end.min(first + at_once);
            let [cos, sin] = rope.angles(first..last);
            let to = |offset| offset + 4 * first * half;
            let (cosines, sines) = ((to(self.cosines), cos), (to(self.sines), sin));
            self.staging.put_both(&self.memory, [cosines, sines])?;
            self.positions = last;
        }
        Ok(())
    }

    /// What row `n` of the next step begins with.
    pub(crate) fn input(
        &mut self,
        n: usize,
        table: i32,
        row: usize,
        place: Option<usize>,
        modality: Option<Modality>,
    ) {
        let or_none = |at: Option<usize>| at.map_or(-1, narrow);
        let modality = or_none(modality.map(Modality::index));
        self.inputs[n] = InputAt { table, row: narrow(row), place: or_none(place), modality };
    }

    /// Writes what the rows are.
    fn describe(&mut self, sequences: &[Sequence<'_>]) -> Result<usize> {
        let (lists, unit_rows) = (self.lists, self.shape.unit_rows());
        let mut units = 0;
        let inputs = std::mem::take(&mut self.inputs);
        let staged = self.stage(self.lists_at, lists.bytes, |room| {
            let mut row = 0;
            let (mut segment, mut block) = (0, 0);
            for (i, s) in sequences.iter().enumerate() {
                let (first_segment, first_block) = (segment, block);
                for visible in s.context.iter().chain([&s.own]) {
                    let at = SegmentAt {
                        base: narrow(visible.base),
                        modality: narrow(visible.modality.index()),
                        len: narrow(visible.chain.len),
                        first_block: narrow(block),
                    };
                    put(room, lists.segments, segment, at);
                    segment += 1;
                    for id in s.kv.blocks(&visible.chain) {
                        put(room, lists.blocks, block, id);
                        block += 1;
                    }
                }
                let ([first, second], n_blocks) = s.kv.at().expect("a session on a card has its arena there");
                let int8 = s.kv.dtype() == KvDtype::I8;
                let of = |wanted: bool, at: At| if wanted { at } else { 0 };
                let at = SequenceAt {
                    tiles: of(int8, first),
                    scales: of(int8, second),
                    keys: of(!int8, first),
                    values: of(!int8, second),
                    n_blocks: narrow(n_blocks),
                    first_segment: narrow(first_segment),
                    segments: narrow(segment - first_segment),
                    causal: i32::from(s.own_rule == Own::Causal),
                    first_block: narrow(first_block),
                    pad: 0,
                };
                put(room, lists.sequences, i, at);
                let context = panels(s.context);
                for first in (0..s.rows).step_by(unit_rows) {
                    let rows = unit_rows.min(s.rows - first);
                    let at = UnitAt {
                        first: narrow(row + first),
                        rows: narrow(rows),
                        sequence: narrow(i),
                        blocks: narrow(context + (s.offset + first + rows - 1) / KV_BLOCK + 1),
                    };
                    put(room, lists.units, units, at);
                    units += 1;
                }
                let own = s.kv.blocks(&s.own.chain).skip(s.offset / KV_BLOCK);
                let of_tokens =
                    own.flat_map(|id| std::iter::repeat_n(id, KV_BLOCK)).skip(s.offset % KV_BLOCK);
                for (n, id) in of_tokens.take(s.rows).enumerate() {
                    let offset = s.offset + n;
                    let at = RowAt {
                        sequence: narrow(i),
                        offset: narrow(offset),
                        position: narrow(s.own.base + offset),
                        block: id.cast_signed(),
                    };
                    put(room, lists.rows, row + n, at);
                }
                row += s.rows;
            }
            inputs[..row].iter().enumerate().for_each(|(n, &input)| put(room, lists.inputs, n, input));
        });
        self.inputs = inputs;
        staged.map(|()| units)
    }

    /// Every block over the rows of the sequences, which begin with what [`Self::input`] said. Puts it all into the stream;
    /// [`Self::read_logits`] tells whether the results are numbers.
    pub(crate) fn decode(
        &mut self,
        card: &Card,
        decoder: &Decoder,
        rope: &Rope,
        sequences: &[Sequence<'_>],
    ) -> Result<()> {
        let c = &decoder.config;
        let rows = sequences.iter().map(|sequence| sequence.rows).sum();
        let end = sequences.iter().map(|s| s.own.base + s.offset + s.rows).max().unwrap_or(0);
        self.reach(rope, end)?;
        let units = self.describe(sequences)?;
        self.align(card, [rows, c.d_model])?;
        self.place_features([rows, c.d_model])?;

        let single = sequences.iter().all(|s| s.rows == 1);
        let int8 = sequences.iter().all(|s| s.kv.dtype() == KvDtype::I8);
        let few = !int8 || sequences.iter().all(|s| panels(s.context) + panels([&s.own]) <= FEW_PANELS);
        let spread = if !single && self.shape.fill(units, card.device.multiprocessors()) {
            Spread::Warp
        } else if few {
            Spread::Block
        } else {
            Spread::Blocks
        };
        if single
            && let Some(graph) = self.graphs.get(rows).and_then(|graphs| graphs[usize::from(few)].as_ref())
        {
            return Ok(graph.launch()?);
        }
        let forward = || -> Result<()> {
            let inputs = self.at(self.lists_at + self.lists.inputs);
            card.device.embed(&self.tables, inputs, rows, self.at(self.x))?;
            let loaded = Loaded::default();
            let mut pass = CardPass { card, c, b: self, rows, units, int8, spread, loaded };
            for (layer, block) in decoder.blocks.iter().enumerate() {
                block.forward(&mut pass, layer)?;
            }
            Ok(card.device.check_finite(self.at(self.x), rows * c.d_model, self.at(self.flag))?)
        };
        if !single {
            return forward();
        }
        let graph = card.device.capture(forward)?;
        graph.launch()?;
        self.graphs[rows][usize::from(few)] = Some(graph);
        Ok(())
    }
}

/// Blocks of keys of these segments.
fn panels<'a>(segments: impl IntoIterator<Item = &'a Visible>) -> usize {
    segments.into_iter().map(|visible| visible.chain.len.div_ceil(KV_BLOCK)).sum()
}

pub(super) fn narrow(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// Writes entry `i` of a list.
fn put<T: bytemuck::Pod>(room: &mut [u8], list: usize, i: usize, value: T) {
    room[list + i * size_of::<T>()..][..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(&value));
}
