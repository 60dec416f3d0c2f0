//! Image networks on a card: the operations over maps as launches of kernels. What a network takes goes there once and what it gives
//! comes back once; nothing in between leaves the card.

mod buffers;
mod pictures;

pub(crate) use buffers::MapBuffers;
use buffers::POSITIONS;

use super::{Card, narrow};
use crate::Result;
use crate::cuda::launch::vision::{GroupNormAt, GroupNormShape, Patches, Product, WeightRows};
use crate::cuda::launch::{At, Layer as LayerAt, Layers};
use crate::engine::maps::{
    Affine, Biased, CHANNEL_EPS, ChannelNorm, CodeBook, Conv, GROUP_EPS, GROUPS, Grid, Maps, QUERIES, STRIP,
    Shape, Sizes, Slot, Slots, Then, enlarged,
};
use crate::picture::{Picture, Plan};
use crate::weights::{LinearPlace, TableRef};

/// A run of a network on a card.
pub(super) struct CardMaps<'a> {
    card: &'a Card,
    b: &'a mut MapBuffers,
    slots: Slots,
    /// Where the next bytes go in the staging.
    staged: usize,
}

impl<'a> CardMaps<'a> {
    pub(super) fn new(card: &'a Card, b: &'a mut MapBuffers) -> Self {
        (b.given, b.kept) = (0, [0; 2]);
        Self { card, b, slots: Slots::default(), staged: 0 }
    }

    fn offset(&self, slot: Slot) -> usize {
        self.b.slots[self.slots.buffer(slot)]
    }

    fn at(&self, slot: Slot) -> At {
        self.b.at(self.offset(slot))
    }

    /// Says what will lie in a slot, and returns its address.
    fn put(&mut self, slot: Slot, shape: Shape) -> At {
        let buffer = self.slots.put(slot, shape);
        self.b.at(self.b.slots[buffer])
    }

    /// Puts `bytes` that `fill` writes to an offset of the memory, by way of the staging.
    fn stage(&mut self, bytes: usize, offset: usize, fill: impl FnOnce(&mut [u8])) -> Result<()> {
        let MapBuffers { memory, staging, .. } = &mut *self.b;
        // One behind the other, as a graph copies them; from the beginning again where a long clip has more.
        let at = if self.staged.saturating_add(bytes) <= staging.len() { self.staged } else { 0 };
        self.staged = Sizes::staged_with(at, bytes);
        fill(&mut staging.get()?[at..][..bytes]);
        Ok(memory.write_from(offset, staging, at, bytes)?)
    }

    fn copy(&mut self, from: usize, to: usize, values: usize) -> Result<()> {
        Ok(self.b.memory.copy_within(from, to, 4 * values)?)
    }

    /// A layer over patches of a slot, into another one.
    fn layer(&mut self, layer: &Biased, grid: &Grid, from: Slot, to: Slot) -> Result<()> {
        let (input, n) = (self.shape(from), layer.weight.n);
        let shape = grid.shape(input, n);
        let patches = patches_at(grid, input, shape);
        let (x, out) = (self.at(from), self.put(to, shape));
        let (device, bias) = (&self.card.device, self.card.at(layer.bias.place()));
        let (at, place) = layer.weight.place();
        let LinearPlace::Tiles { scale, parts } = place else {
            let rows = match place {
                LinearPlace::Rows { half: true } => WeightRows::F16,
                _ => WeightRows::F32,
            };
            let (w_n, n) = (patches.k, narrow(n));
            let product = Product { patches, n, w_n, w_k: 1, out_row: n, ..Product::default() };
            return Ok(device.convolve(&product, 1, x, (self.card.at(at), rows), bias, out)?);
        };
        let (q, x_scale) = (self.b.at(self.b.quantised), self.b.at(self.b.scale));
        for first in (0..shape.places()).step_by(POSITIONS) {
            let count = POSITIONS.min(shape.places() - first);
            let layer = LayerAt {
                tiles: self.card.at(at),
                scale: self.card.at(scale),
                bias,
                out: out + 4 * (first * n) as u64,
                first: 0,
                end: narrow(n),
            };
            let layers = Layers::alone(layer, patches.k, narrow(parts));
            device.quantise_patches(&patches, x, (first, count), parts, q, x_scale)?;
            device.linear_i8(&layers, q, x_scale, count * parts)?;
        }
        Ok(())
    }
}

/// Where the patches of a map lie that become a map of shape `out`.
pub(crate) fn patches_at(grid: &Grid, input: Shape, out: Shape) -> Patches {
    let [kernel_t, kernel] = grid.kernel;
    Patches {
        time: narrow(input.time),
        height: narrow(input.height),
        width: narrow(input.width),
        channels: narrow(input.channels),
        out_height: narrow(out.height),
        out_width: narrow(out.width),
        positions: narrow(out.places()),
        kernel_t: narrow(kernel_t),
        kernel: narrow(kernel),
        stride_t: narrow(grid.stride[0]),
        stride: narrow(grid.stride[1]),
        before_t: narrow(grid.before[0]),
        before: narrow(grid.before[1]),
        k: narrow(kernel_t * kernel * kernel * input.channels),
        row: narrow(input.channels),
    }
}

impl Maps for CardMaps<'_> {
    fn shape(&self, slot: Slot) -> Shape {
        self.slots.shape(slot)
    }

    fn swap(&mut self, a: Slot, b: Slot) {
        self.slots.swap(a, b);
    }

    fn load(&mut self, to: Slot, shape: Shape, fill: &dyn Fn(&mut [f32])) -> Result<()> {
        self.put(to, shape);
        self.stage(4 * shape.len(), self.offset(to), |room| fill(bytemuck::cast_slice_mut(room)))
    }

    fn load_picture(&mut self, to: Slot, plan: &Plan, picture: Picture<'_>) -> Result<()> {
        self.show(to, plan, picture)
    }

    fn give(&mut self, from: Slot) -> Result<()> {
        let (offset, values) = (self.offset(from), self.shape(from).len());
        let MapBuffers { memory, results, given, .. } = &mut *self.b;
        memory.read_into(offset, results, 4 * *given, 4 * values)?;
        *given += values;
        Ok(())
    }

    fn keep(&mut self, from: Slot) -> Result<()> {
        self.b.kept = [self.offset(from), self.shape(from).len()];
        Ok(())
    }

    fn take_frame(&mut self, clip: Slot, frame: usize, to: Slot) -> Result<()> {
        let shape = Shape { time: 1, ..self.shape(clip) };
        self.put(to, shape);
        self.copy(self.offset(clip) + 4 * frame * shape.len(), self.offset(to), shape.len())
    }

    fn put_frame(&mut self, from: Slot, clip: Slot, frame: usize, frames: usize) -> Result<()> {
        let shape = self.shape(from);
        self.put(clip, Shape { time: frames, ..shape });
        self.copy(self.offset(from), self.offset(clip) + 4 * frame * shape.len(), shape.len())
    }

    fn convolve(&mut self, conv: &Conv, from: Slot, to: Slot) -> Result<()> {
        self.layer(&conv.layer, &conv.grid, from, to)
    }

    fn linear(&mut self, layer: &Biased, from: Slot, to: Slot) -> Result<()> {
        self.layer(layer, &Grid::POINT, from, to)
    }

    #[allow(clippy::cast_precision_loss, reason = "a number of values")]
    fn group_norm(
        &mut self,
        norm: &Affine,
        modulation: Option<[Slot; 2]>,
        from: Slot,
        to: Slot,
        then: Then,
    ) -> Result<()> {
        let shape = self.shape(from);
        let (places, channels) = (shape.places(), shape.channels);
        let (group, n) = (channels / GROUPS, (shape.len() / GROUPS) as f64);
        let device = &self.card.device;
        let [partial, mean, inverse] = [self.b.partial, self.b.mean, self.b.inverse].map(|at| self.b.at(at));
        let (x, sizes) = (self.at(from), [places.div_ceil(STRIP), channels, group]);
        device.strip_sums(x, 0, partial, [places, channels, group], STRIP)?;
        device.fold_strips(partial, sizes, (n, 0.0), mean, 0)?;
        device.strip_sums(x, mean, partial, [places, channels, group], STRIP)?;
        device.fold_strips(partial, sizes, (n, GROUP_EPS), mean, inverse)?;
        let code = modulation.map_or(shape, |[scale, _]| self.shape(scale));
        let [scale, shift] = modulation.map_or([0; 2], |maps| maps.map(|slot| self.at(slot)));
        let of = GroupNormShape {
            places: narrow(places),
            channels: narrow(channels),
            group: narrow(group),
            width: narrow(shape.width),
            code_width: narrow(code.width),
            factor: narrow((shape.width / code.width).max(1)),
            swish: i32::from(then == Then::Swish),
        };
        let (weight, bias) = (self.card.at(norm.weight.place()), self.card.at(norm.bias.place()));
        let y = self.put(to, shape);
        let at = GroupNormAt { mean, inverse, weight, bias, scale, shift };
        Ok(self.card.device.group_norm(&of, x, y, at)?)
    }

    fn layer_norm(&mut self, norm: &Affine, eps: f32, from: Slot, to: Slot) -> Result<()> {
        let shape = self.shape(from);
        let norm = (self.card.at(norm.weight.place()), self.card.at(norm.bias.place()), eps);
        let (x, y) = (self.at(from), self.put(to, shape));
        Ok(self.card.device.layer_norm(x, y, norm, [shape.places(), shape.channels])?)
    }

    fn channel_norm_swish(&mut self, norm: &ChannelNorm, from: Slot, to: Slot) -> Result<()> {
        let shape = self.shape(from);
        let of_channels = [&norm.affine.weight, &norm.affine.bias, &norm.mean, &norm.variance]
            .map(|vector| self.card.at(vector.place()));
        let (x, y) = (self.at(from), self.put(to, shape));
        let sizes = [shape.places(), shape.channels];
        Ok(self.card.device.channel_norm(x, y, of_channels, CHANNEL_EPS, sizes)?)
    }

    fn silu(&mut self, from: Slot, to: Slot) -> Result<()> {
        let shape = self.shape(from);
        let (x, y) = (self.at(from), self.put(to, shape));
        Ok(self.card.device.silu_map(x, y, shape.len())?)
    }

    fn gelu(&mut self, x: Slot) -> Result<()> {
        Ok(self.card.device.gelu_map(self.at(x), self.shape(x).len())?)
    }

    fn add(&mut self, x: Slot, y: Slot) -> Result<()> {
        Ok(self.card.device.add_maps(self.at(x), self.at(y), self.shape(x).len())?)
    }

    fn add_rows(&mut self, x: Slot, table: &TableRef) -> Result<()> {
        let (at, half) = table.place();
        Ok(self.card.device.add_table(self.at(x), (self.card.at(at), half), self.shape(x).len())?)
    }

    fn enlarge(&mut self, from: Slot, to: Slot) -> Result<()> {
        let shape = self.shape(from);
        let (x, y) = (self.at(from), self.put(to, enlarged(shape)));
        let rows = shape.time * shape.height;
        Ok(self.card.device.enlarge_map(x, y, [rows, shape.width, shape.channels])?)
    }

    fn repeat_frames(&mut self, from: Slot, to: Slot) -> Result<()> {
        let shape = self.shape(from);
        let frame = shape.len() / shape.time;
        self.put(to, Shape { time: 2 * shape.time, ..shape });
        let (from, to) = (self.offset(from), self.offset(to));
        (0..2 * shape.time).try_for_each(|i| self.copy(from + 4 * (i / 2) * frame, to + 4 * i * frame, frame))
    }

    fn nearest(&mut self, book: CodeBook<'_>, from: Slot, to: Slot) -> Result<()> {
        let (shape, (at, place)) = (self.shape(from), book.vectors.place());
        let LinearPlace::Rows { half } = place else { unreachable!("code books stay float: `Role::Float`") };
        let (x, codes) = (self.at(from), self.put(to, Shape { channels: 1, ..shape }));
        let sizes = [shape.places(), book.vectors.n, shape.channels];
        Ok(self.card.device.nearest(x, (self.card.at(at), half), book.unit, sizes, codes)?)
    }

    #[allow(clippy::cast_precision_loss, reason = "the width of a head")]
    fn attend(&mut self, qkv: [Slot; 3], heads: usize, to: Slot) -> Result<()> {
        let shape = self.shape(qkv[0]);
        let (n, d, width) = (shape.places(), shape.channels, shape.channels / heads);
        let [q, k, v] = qkv.map(|slot| self.at(slot));
        let (out, scores) = (self.put(to, shape), self.b.at(self.b.scores));
        let device = &self.card.device;
        let scale = 1.0 / (width as f32).sqrt();
        for first in (0..n).step_by(QUERIES) {
            let rows = QUERIES.min(n - first);
            // Rows of `row` values, of which `k` are read.
            let rows_of = |k: usize, row: usize| {
                let input = Shape::picture((1, rows), k);
                Patches { row: narrow(row), ..patches_at(&Grid::POINT, input, input) }
            };
            let of_rows = 4 * (first * d) as u64;
            let by_keys = Product {
                patches: rows_of(width, d),
                n: narrow(n),
                w_n: narrow(d),
                w_k: 1,
                out_row: narrow(n),
                x_batch: narrow(width),
                w_batch: narrow(width),
                out_batch: narrow(rows * n),
            };
            device.convolve(&by_keys, heads, q + of_rows, (k, WeightRows::F32), 0, scores)?;
            device.softmax_rows(scores, scale, [heads * rows, n])?;
            let by_values = Product {
                patches: rows_of(n, n),
                n: narrow(width),
                w_n: 1,
                w_k: narrow(d),
                out_row: narrow(d),
                x_batch: narrow(rows * n),
                w_batch: narrow(width),
                out_batch: narrow(width),
            };
            device.convolve(&by_values, heads, scores, (v, WeightRows::Turned), 0, out + of_rows)?;
        }
        Ok(())
    }
}
