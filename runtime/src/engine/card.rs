//! A pass on a card: the operations of a block as launches of kernels.
//!
//! The weights lie before the card as they lie in the file, so a tensor's address is where it begins in the file behind one base. What
//! the rows of a step are is written by the host into one list ([`Lists`]); the buffers stay where they are, so the launches of a step
//! of one row a sequence are captured for each number of sequences, once where they see few keys and once where they see many, and then put
//! into the stream as one graph.

mod buffers;
mod drawing;
mod features;
mod graphs;
mod head;
mod maps;
mod passes;
pub(crate) mod placement;
mod staging;
mod verdicts;

use std::sync::Arc;

pub(crate) use buffers::{Beside, CardBuffers};
use buffers::{Lists, narrow};
pub(crate) use features::CardFeatures;
pub(crate) use maps::MapBuffers;
#[cfg(test)]
pub(crate) use maps::patches_at;
use placement::Placed;

use super::device::{DeviceOptions, DeviceReport};
use super::pass::{HEAD_EPS, Layer, Pass, QkNorms, Rows};
use crate::Result;
use crate::config::{DecoderConfig, NormPlace};
use crate::cuda::launch::{
    At, AttentionShape, FEW_PANELS, HeadNorms, HeadShape, Layer as LayerAt, Layers, StepAt, TableAt,
};
use crate::cuda::{CudaOptions, Device};
use crate::kernels::KV_BLOCK;
use crate::weights::{LinearPlace, LinearRef, VectorRef, Weights};

/// Bytes that the weights are copied by.
const CHUNK: usize = 8 << 20;
/// The tables that input vectors come from: the embedding, features of pictures, task prefixes, slots of actions, codes that were
/// drawn.
pub(crate) const EMBED: i32 = 0;
pub(crate) const SEEN: i32 = 1;
pub(crate) const PREFIX: i32 = 2;
pub(crate) const SLOTS: i32 = 3;
pub(crate) const DRAWN: i32 = 4;

/// An open card with a bundle's weights.
#[derive(Debug)]
pub(crate) struct Card {
    pub(crate) device: Arc<Device>,
    weights: Placed,
}

impl Card {
    /// Opens the card that is asked for, and places the weights.
    pub(crate) fn choose(options: &DeviceOptions, weights: &Weights) -> Result<Self> {
        let kernels = options.kernels_dir();
        let device = Device::open(&CudaOptions { ordinal: options.ordinal, kernels })?;
        let weights = Placed::new(&device, weights, options)?;
        Ok(Self { device, weights })
    }

    /// What it is, and where it finds the weights.
    pub(crate) fn report(&self) -> DeviceReport {
        DeviceReport {
            name: "cuda",
            what: self.device.name().into(),
            reason: "a card is there".into(),
            weights: self.weights.name(),
            weights_reason: self.weights.reason().into(),
        }
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

/// What the next layers read: rows, and the norm that they go through first.
#[derive(Clone, Copy, Debug, Default)]
struct Loaded {
    x: At,
    norm: At,
    k: usize,
    /// Whether they are quantised, or normed, already.
    ready: bool,
}

/// What goes through the keys that a unit of queries sees in an INT8 arena.
#[derive(Clone, Copy, Debug)]
enum Spread {
    /// A warp: there are many units.
    Warp,
    /// A block of the card: there are few keys.
    Block,
    /// Several blocks.
    Blocks,
}

/// Rows on their way through the blocks.
struct CardPass<'a> {
    card: &'a Card,
    c: &'a DecoderConfig,
    b: &'a CardBuffers,
    rows: usize,
    units: usize,
    int8: bool,
    spread: Spread,
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
        let scratch = self.b.at(self.b.scratch);
        let bias = self.card.vector(bias);
        if !self.int8 {
            return Ok(device.attention_f32(shape, self.rows, step, bias, q, out, scratch)?);
        }
        let units = (self.b.at(self.b.lists_at + self.b.lists.units), self.units);
        match self.spread {
            Spread::Block => {
                let shape = AttentionShape { max_keys: narrow(FEW_PANELS * KV_BLOCK), ..shape };
                device.attention_i8(shape, units, step, bias, q, out)?;
            }
            Spread::Blocks => {
                let splits = shape.splits(self.units, device.multiprocessors());
                device.attention_i8_split(shape, units, step, bias, q, out, (scratch, splits))?;
            }
            Spread::Warp => device.attention_i8_rows(shape, units, step, bias, q, out)?,
        }
        Ok(())
    }
}
