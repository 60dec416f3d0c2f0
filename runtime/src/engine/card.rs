//! A pass on a card: the operations of a block as launches of kernels.
//!
//! The weights lie on the card as they lie in the file, so a tensor's address is where it begins in the file behind one base. What
//! the rows of a step are is written by the host into one list ([`Lists`]); the buffers stay where they are, so the launches of a step
//! of one row a sequence are captured once for each number of sequences and then put into the stream as one graph.

use std::sync::Arc;

use super::device::{DeviceOptions, kernels_dir};
use super::pass::{HEAD_EPS, Layer, Most, Own, Pass, QkNorms, Rows, Sequence};
use crate::Result;
use crate::config::{DecoderConfig, Modality, NormPlace};
use crate::cuda::launch::{
    At, AttentionShape, HeadNorms, HeadShape, InputAt, Layer as LayerAt, Layers, RowAt, SegmentAt,
    SequenceAt, StepAt, TableAt, Tables, UnitAt,
};
use crate::cuda::{CudaOptions, Device, Graph, Memory, Pinned};
use crate::decoder::Decoder;
use crate::family::unimodal::Unimodal;
use crate::kernels::KV_BLOCK;
use crate::kv::KvDtype;
use crate::quant::pad_k;
use crate::rope::Rope;
use crate::weights::{LinearPlace, LinearRef, TableRef, VectorRef, Weights};

/// Bytes that the weights are copied by.
const CHUNK: usize = 8 << 20;
/// The tables that input vectors come from: the embedding, vectors that the host gives, task prefixes, slots of actions.
pub(crate) const EMBED: i32 = 0;
pub(crate) const GIVEN: i32 = 1;
pub(crate) const PREFIX: i32 = 2;
pub(crate) const SLOTS: i32 = 3;
/// Every array begins at a multiple of this.
const ALIGN: usize = 256;

/// An open card with a bundle's weights.
#[derive(Debug)]
pub(crate) struct Card {
    pub(crate) device: Arc<Device>,
    weights: Memory,
}

impl Card {
    /// Opens the card that is asked for, and copies the weights to it.
    pub(crate) fn choose(options: &DeviceOptions, weights: &Weights) -> Result<Self> {
        let kernels = kernels_dir(options);
        Self::new(Device::open(&CudaOptions { ordinal: options.ordinal, kernels })?, weights)
    }

    /// Copies the weights to a card.
    fn new(device: Arc<Device>, weights: &Weights) -> Result<Self> {
        let bytes: &[u8] = weights.map();
        let memory = device.allocate("the weights", bytes.len())?;
        let mut rooms = [Pinned::new(&device, CHUNK)?, Pinned::new(&device, CHUNK)?];
        for (i, chunk) in bytes.chunks(CHUNK).enumerate() {
            let room = &mut rooms[i % 2];
            room.get()?[..chunk.len()].copy_from_slice(chunk);
            memory.write_from(i * CHUNK, room, chunk.len())?;
        }
        device.wait()?;
        log::info!("weights on the card: {} bytes", bytes.len());
        Ok(Self { device, weights: memory })
    }

    fn at(&self, place: usize) -> At {
        self.weights.at() + place as u64
    }

    fn vector(&self, vector: Option<&VectorRef>) -> At {
        vector.map_or(0, |vector| self.at(vector.place()))
    }

    /// A matrix as a table of rows.
    fn rows_of(&self, matrix: &LinearRef) -> TableAt {
        match matrix.place() {
            (at, LinearPlace::Tiles { scale, .. }) => {
                TableAt { rows: self.at(at), scale: self.at(scale), kind: 0 }
            }
            (at, LinearPlace::Rows { half }) => self.table(at, half),
        }
    }

    fn table(&self, at: usize, half: bool) -> TableAt {
        TableAt { rows: self.at(at), scale: 0, kind: if half { 1 } else { 2 } }
    }
}

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
struct Lists {
    inputs: usize,
    rows: usize,
    units: usize,
    sequences: usize,
    segments: usize,
    blocks: usize,
    bytes: usize,
}

/// What a step on a card works in, allocated once.
pub(crate) struct CardBuffers {
    memory: Memory,
    shape: AttentionShape,
    tables: Tables,
    /// Of the rows of the next step.
    inputs: Vec<InputAt>,
    x: usize,
    q: usize,
    k: usize,
    v: usize,
    attended: usize,
    hidden: usize,
    /// `[rows, d_ff]`, the other half of a gate of float layers.
    up: usize,
    /// `[rows, widest]`, rows that were normed.
    normed: usize,
    quantised: usize,
    scale: usize,
    cosines: usize,
    sines: usize,
    scratch: Option<usize>,
    logits: usize,
    flag: usize,
    lists_at: usize,
    lists: Lists,
    /// Positions whose angles are on the card.
    positions: usize,
    /// In turn, so that one is written while the other is copied.
    staging: [Pinned; 2],
    turn: usize,
    results: Pinned,
    /// Of steps of one row a sequence, by the number of sequences.
    graphs: Vec<Option<Graph>>,
}

impl CardBuffers {
    /// For steps of at most so much, and so many logits at a time; `own`: what Saccade's own family has beside the decoder.
    pub(crate) fn new(
        card: &Card,
        decoder: &Decoder,
        own: Option<&Unimodal>,
        most: Most,
        logits: usize,
        dtype: KvDtype,
    ) -> Result<Self> {
        let c = &decoder.config;
        let (heads, kvs) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let widest = c.d_model.max(c.d_ff).max(heads);
        let narrow = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let root = root(c.head_dim);
        let shape = AttentionShape {
            n_heads: narrow(c.n_heads),
            n_kv_heads: narrow(c.n_kv_heads),
            head_dim: narrow(c.head_dim),
            layer: 0,
            modalities: narrow(Modality::ALL.len()),
            max_keys: narrow((most.blocks * KV_BLOCK).next_multiple_of(2 * KV_BLOCK)),
            factor: if dtype == KvDtype::I8 { root * std::f32::consts::LOG2_E } else { root },
        };
        let scratch = match dtype {
            KvDtype::I8 if Device::fits_block(&shape) => None,
            KvDtype::I8 => Some(shape.scratch_i8(most.rows)),
            KvDtype::F32 => Some(shape.scratch_f32(most.rows)),
        };
        let mut arrays = Arrays::default();
        let mut floats = |n: usize| arrays.add(4 * n);
        let rows = most.rows;
        let (x, q, k, v) =
            (floats(rows * c.d_model), floats(rows * heads), floats(rows * kvs), floats(rows * kvs));
        let (attended, hidden, up) = (floats(rows * heads), floats(rows * c.d_ff), floats(rows * c.d_ff));
        let normed = floats(rows * widest);
        let angles = (most.blocks * KV_BLOCK + 1) * c.head_dim / 2;
        let (cosines, sines, logits_at, scale) =
            (floats(angles), floats(angles), floats(logits), floats(rows * most.parts));
        let flag = arrays.add(4);
        let quantised = arrays.add(rows * most.parts * pad_k(widest));
        let scratch = scratch.map(|bytes| arrays.add(bytes));
        let mut lists = Arrays::default();
        let lists = Lists {
            inputs: lists.add(rows * size_of::<InputAt>()),
            rows: lists.add(rows * size_of::<RowAt>()),
            units: lists.add(rows * size_of::<UnitAt>()),
            sequences: lists.add(most.sequences * size_of::<SequenceAt>()),
            segments: lists.add(most.sequences * most.segments * size_of::<SegmentAt>()),
            blocks: lists.add(most.sequences * most.blocks * 4),
            bytes: lists.bytes,
        };
        let lists_at = arrays.add(lists.bytes);
        let memory = card.device.allocate("the buffers of a session", arrays.bytes)?;
        let mut tables = Tables { d: narrow(c.d_model), ..Tables::default() };
        tables.table[EMBED as usize] = card.rows_of(&decoder.embed);
        tables.table[GIVEN as usize] = TableAt { rows: memory.at() + normed as u64, scale: 0, kind: 2 };
        if let Some(own) = own {
            tables.table[PREFIX as usize] = card.rows_of(&own.task_prefix);
            tables.table[SLOTS as usize] = card.rows_of(&own.action_slots);
            let [grid, modality] = [&own.image_grid, &own.modality_embed].map(TableRef::place);
            (tables.grid, tables.modality) = (card.table(grid.0, grid.1), card.table(modality.0, modality.1));
        }
        memory.fill(0, arrays.bytes)?;
        if dtype == KvDtype::I8 && scratch.is_none() {
            card.device.allow_block_memory("attention_i8")?;
        }
        let staged = lists.bytes.max(4 * rows * c.d_model).max(8 * angles.min(CHUNK / 8));
        let staging = [Pinned::new(&card.device, staged)?, Pinned::new(&card.device, staged)?];
        let results = Pinned::new(&card.device, 4 * (logits.max(rows * c.d_model) + 1))?;
        Ok(Self {
            memory,
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
            quantised,
            scale,
            cosines,
            sines,
            scratch,
            logits: logits_at,
            flag,
            lists_at,
            lists,
            positions: 0,
            staging,
            turn: 0,
            results,
            graphs: (0..=most.sequences).map(|_| None).collect(),
        })
    }

    fn at(&self, offset: usize) -> At {
        self.memory.at() + offset as u64
    }

    /// Puts bytes that `write` makes to `offset`, in the stream.
    fn stage(&mut self, offset: usize, bytes: usize, write: impl FnOnce(&mut [u8])) -> Result<()> {
        self.turn = 1 - self.turn;
        let room = &mut self.staging[self.turn];
        write(&mut room.get()?[..bytes]);
        Ok(self.memory.write_from(offset, room, bytes)?)
    }

    /// The angles of every position below `end`.
    fn reach(&mut self, rope: &Rope, end: usize) -> Result<()> {
        let half = self.shape.head_dim as usize / 2;
        let at_once = (self.staging_bytes() / (4 * half)).max(1);
        while self.positions < end {
            let first = self.positions;
            let last = end.min(first + at_once);
            let [cos, sin] = rope.angles(first..last);
            for (offset, values) in [(self.cosines, cos), (self.sines, sin)] {
                let bytes = bytemuck::cast_slice::<f32, u8>(values);
                self.stage(offset + 4 * first * half, bytes.len(), |room| room.copy_from_slice(bytes))?;
            }
            self.positions = last;
        }
        Ok(())
    }

    fn staging_bytes(&self) -> usize {
        self.lists.bytes.max(4 * KV_BLOCK * self.shape.head_dim as usize)
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
                let first_segment = segment;
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
                };
                put(room, lists.sequences, i, at);
                for first in (0..s.rows).step_by(unit_rows) {
                    let rows = narrow(unit_rows.min(s.rows - first));
                    put(room, lists.units, units, UnitAt { first: narrow(row + first), rows });
                    units += 1;
                }
                for n in 0..s.rows {
                    let offset = s.offset + n;
                    let position = narrow(s.own.base + offset);
                    put(
                        room,
                        lists.rows,
                        row + n,
                        RowAt { sequence: narrow(i), offset: narrow(offset), position, pad: 0 },
                    );
                }
                row += s.rows;
            }
            inputs[..row].iter().enumerate().for_each(|(n, &input)| put(room, lists.inputs, n, input));
        });
        self.inputs = inputs;
        staged.map(|()| units)
    }

    /// Every block over the rows of the sequences, which begin with what [`Self::input`] said; `x [rows, d_model]` has those that are
    /// given as vectors. Puts it all into the stream; [`Self::check`] tells whether the
    /// results are numbers.
    pub(crate) fn decode(
        &mut self,
        card: &Card,
        decoder: &Decoder,
        rope: &Rope,
        sequences: &[Sequence<'_>],
        x: &[f32],
    ) -> Result<()> {
        let c = &decoder.config;
        let rows = x.len() / c.d_model;
        let end = sequences.iter().map(|s| s.own.base + s.offset + s.rows).max().unwrap_or(0);
        self.reach(rope, end)?;
        let units = self.describe(sequences)?;
        if self.inputs[..rows].iter().any(|input| input.table == GIVEN) {
            let bytes = bytemuck::cast_slice::<f32, u8>(x);
            self.stage(self.normed, bytes.len(), |room| room.copy_from_slice(bytes))?;
        }

        let single = sequences.iter().all(|s| s.rows == 1);
        if single && let Some(graph) = self.graphs.get(rows).and_then(Option::as_ref) {
            return Ok(graph.launch()?);
        }
        let int8 = sequences.iter().all(|s| s.kv.dtype() == KvDtype::I8);
        let forward = || -> Result<()> {
            let inputs = self.at(self.lists_at + self.lists.inputs);
            card.device.embed(&self.tables, inputs, rows, self.at(self.x))?;
            let mut pass = CardPass { card, c, b: self, rows, units, int8, loaded: Loaded::default() };
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
        self.graphs[rows] = Some(graph);
        Ok(())
    }

    /// The logits of the rows from `first` to below `end` over outputs `range` of the head, in the stream; [`Self::read_logits`]
    /// waits for them.
    pub(crate) fn score(
        &mut self,
        card: &Card,
        decoder: &Decoder,
        rows: std::ops::Range<usize>,
        range: std::ops::Range<usize>,
        offset: usize,
    ) -> Result<()> {
        let c = &decoder.config;
        let n = rows.len();
        let x = self.at(self.x) + (4 * rows.start * c.d_model) as u64;
        let out = self.at(self.logits) + 4 * offset as u64;
        let (device, norm) = (&card.device, (card.at(decoder.norm.place()), c.norm_eps));
        let (at, place) = decoder.head.place();
        match place {
            LinearPlace::Tiles { scale, parts } => {
                let (q, x_scale) = (self.at(self.quantised), self.at(self.scale));
                let mut layers =
                    Layers { count: 1, k: narrow(c.d_model), parts: narrow(parts), ..Layers::default() };
                layers.layer[0] = LayerAt {
                    tiles: card.at(at),
                    scale: card.at(scale),
                    bias: 0,
                    out,
                    first: narrow(range.start),
                    end: narrow(range.end),
                };
                device.quantise_rows(x, norm, [n, c.d_model, parts], q, x_scale)?;
                device.linear_i8(&layers, q, x_scale, n * parts)?;
            }
            LinearPlace::Rows { half } => {
                let normed = self.at(self.normed);
                device.rms_norm_rows(x, norm, [n, c.d_model], normed, false)?;
                let w = (card.at(at), half);
                device.linear_float(normed, w, 0, out, [n, c.d_model], [range.start, range.end], false)?;
            }
        }
        Ok(())
    }

    /// Waits for `n` logits, and says whether everything since the last time was a number.
    pub(crate) fn read_logits(&mut self, n: usize) -> Result<(&[f32], bool)> {
        self.read(self.logits, n)
    }

    /// The same of the rows of `x` from `first` on: `n` values.
    pub(crate) fn read_x(&mut self, first: usize, n: usize) -> Result<(&[f32], bool)> {
        self.read(self.x + 4 * first, n)
    }

    fn read(&mut self, offset: usize, n: usize) -> Result<(&[f32], bool)> {
        let Self { memory, results, flag, .. } = self;
        memory.read_into(*flag, results, 0, 4)?;
        memory.fill(*flag, 4)?;
        memory.read_into(offset, results, 4, 4 * n)?;
        let words: &[u32] = bytemuck::cast_slice(&results.get()?[..4 * (n + 1)]);
        Ok((bytemuck::cast_slice(&words[1..]), words[0] == 0))
    }
}

fn narrow(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// `1/√head_dim`.
#[allow(clippy::cast_precision_loss)] // head_dim ≤ 1024
fn root(head_dim: usize) -> f32 {
    1.0 / (head_dim as f32).sqrt()
}

/// Writes entry `i` of a list.
fn put<T: bytemuck::Pod>(room: &mut [u8], list: usize, i: usize, value: T) {
    room[list + i * size_of::<T>()..][..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(&value));
}

/// What the next layers read: rows, and the norm that they go through first.
#[derive(Clone, Copy, Debug, Default)]
struct Loaded {
    x: At,
    norm: At,
    k: usize,
    /// Whether they are quantised, or normed, already.
    ready: bool,
}

/// Rows on their way through the blocks.
struct CardPass<'a> {
    card: &'a Card,
    c: &'a DecoderConfig,
    b: &'a CardBuffers,
    rows: usize,
    units: usize,
    int8: bool,
    loaded: Loaded,
}

impl CardPass<'_> {
    fn step(&self) -> StepAt {
        let list = |offset: usize| self.b.at(self.b.lists_at + offset);
        let Lists { rows, sequences, segments, blocks, .. } = self.b.lists;
        StepAt {
            rows: list(rows),
            sequences: list(sequences),
            segments: list(segments),
            blocks: list(blocks),
            cosines: self.b.at(self.b.cosines),
            sines: self.b.at(self.b.sines),
        }
    }

    /// The products of these layers, which are alike, with what is loaded.
    fn products(&mut self, layers: &[(&Layer, At)], residual: bool, gated: bool) -> Result<()> {
        let (device, eps) = (&self.card.device, self.c.norm_eps);
        let Loaded { x, norm, k, ready } = self.loaded;
        let place = layers[0].0.weight.place().1;
        let LinearPlace::Tiles { parts, .. } = place else {
            return self.float_products(layers, residual, gated);
        };
        let mut at = Layers {
            count: narrow(layers.len()),
            k: narrow(k),
            parts: narrow(parts),
            residual: i32::from(residual),
            gated: i32::from(gated),
            ..Layers::default()
        };
        for (at, (layer, out)) in at.layer.iter_mut().zip(layers) {
            let (tiles, place) = layer.weight.place();
            let LinearPlace::Tiles { scale, .. } = place else {
                unreachable!(
                    "layers that share their activations are of one kind: `Block::resolve` checks it"
                );
            };
            let bias = self.card.vector(layer.bias.as_ref());
            let (tiles, scale, end) = (self.card.at(tiles), self.card.at(scale), narrow(layer.weight.n));
            *at = LayerAt { tiles, scale, bias, out: *out, first: 0, end };
        }
        if self.rows == 1 && Device::takes_float_row(k, parts) {
            return Ok(device.linear_i8_of_floats(&at, x, norm, eps)?);
        }
        let (q, scale) = (self.b.at(self.b.quantised), self.b.at(self.b.scale));
        if !ready {
            device.quantise_rows(x, (norm, eps), [self.rows, k, parts], q, scale)?;
            self.loaded.ready = true;
        }
        Ok(device.linear_i8(&at, q, scale, self.rows * parts)?)
    }

    fn float_products(&mut self, layers: &[(&Layer, At)], residual: bool, gated: bool) -> Result<()> {
        let device = &self.card.device;
        let Loaded { x, norm, k, ready } = self.loaded;
        let normed = self.b.at(self.b.normed);
        if norm != 0 && !ready {
            device.rms_norm_rows(x, (norm, self.c.norm_eps), [self.rows, k], normed, false)?;
            self.loaded.ready = true;
        }
        let x = if norm == 0 { x } else { normed };
        for (i, (layer, out)) in layers.iter().enumerate() {
            let (w, place) = layer.weight.place();
            let half = matches!(place, LinearPlace::Rows { half: true });
            let bias = self.card.vector(layer.bias.as_ref());
            let out = if gated && i == 1 { self.b.at(self.b.up) } else { *out };
            let w = (self.card.at(w), half);
            device.linear_float(x, w, bias, out, [self.rows, k], [0, layer.weight.n], residual)?;
        }
        if gated {
            device.silu_multiply(layers[0].1, self.b.at(self.b.up), self.rows * layers[0].0.weight.n)?;
        }
        Ok(())
    }
}

impl Pass for CardPass<'_> {
    fn load(&mut self, from: Rows, norm: Option<&VectorRef>, to: &Layer) -> Result<()> {
        let x = match from {
            Rows::X => self.b.x,
            Rows::Attended => self.b.attended,
            Rows::Hidden => self.b.hidden,
        };
        let (x, norm) = (self.b.at(x), self.card.vector(norm));
        self.loaded = Loaded { x, norm, k: to.weight.k, ready: false };
        Ok(())
    }

    fn project(&mut self, q: &Layer, k: &Layer, v: &Layer) -> Result<()> {
        let [to_q, to_k, to_v] = [self.b.q, self.b.k, self.b.v].map(|offset| self.b.at(offset));
        self.products(&[(q, to_q), (k, to_k), (v, to_v)], false, false)
    }

    fn gate(&mut self, gate: &Layer, up: &Layer) -> Result<()> {
        let hidden = self.b.at(self.b.hidden);
        self.products(&[(gate, hidden), (up, hidden)], false, true)
    }

    fn add(&mut self, layer: &Layer, norm: Option<&VectorRef>) -> Result<()> {
        let x = self.b.at(self.b.x);
        let Some(norm) = norm else { return self.products(&[(layer, x)], true, false) };
        debug_assert_eq!(self.c.norm_place, NormPlace::After);
        let normed = self.b.at(self.b.normed);
        self.products(&[(layer, normed)], false, false)?;
        let norm = (self.card.vector(Some(norm)), self.c.norm_eps);
        Ok(self.card.device.rms_norm_rows(normed, norm, [self.rows, self.c.d_model], x, true)?)
    }

    fn store(&mut self, layer: usize, norms: &QkNorms) -> Result<()> {
        let vector = |vector| self.card.vector(Some(vector));
        let norms = match norms {
            QkNorms::None => HeadNorms::default(),
            QkNorms::Rms([q, k]) => {
                HeadNorms { q: vector(q), k: vector(k), eps: self.c.norm_eps, ..HeadNorms::default() }
            }
            QkNorms::Layer([[q, q_bias], [k, k_bias]]) => HeadNorms {
                q: vector(q),
                k: vector(k),
                q_bias: vector(q_bias),
                k_bias: vector(k_bias),
                eps: HEAD_EPS,
            },
        };
        let AttentionShape { n_heads, n_kv_heads, head_dim, .. } = self.b.shape;
        let shape =
            HeadShape { rows: narrow(self.rows), n_heads, n_kv_heads, head_dim, layer: narrow(layer) };
        let [q, k, v] = [self.b.q, self.b.k, self.b.v].map(|offset| self.b.at(offset));
        Ok(self.card.device.store_heads(shape, norms, self.step(), q, k, v)?)
    }

    fn attend(&mut self, layer: usize, bias: Option<&VectorRef>) -> Result<()> {
        let (device, step) = (&self.card.device, self.step());
        let shape = AttentionShape { layer: narrow(layer), ..self.b.shape };
        let (q, out) = (self.b.at(self.b.q), self.b.at(self.b.attended));
        let scratch = self.b.scratch.map_or(0, |offset| self.b.at(offset));
        let bias = self.card.vector(bias);
        if self.int8 {
            let units = (self.b.at(self.b.lists_at + self.b.lists.units), self.units);
            return Ok(device.attention_i8(shape, units, step, bias, q, out, scratch)?);
        }
        Ok(device.attention_f32(shape, self.rows, step, bias, q, out, scratch)?)
    }
}
