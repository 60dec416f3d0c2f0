//! Maps on the CPU.

use super::{
    Affine, Biased, CHANNEL_EPS, ChannelNorm, CodeBook, Conv, GROUPS, Grid, GroupSums, Machine, Maps,
    QUERIES, SLOTS, Search, Shape, Sizes, Slot, Slots, Then, enlarged, l2_normalise,
};
use crate::Result;
use crate::engine::{ActivationKinds, Activations, Engine, Linear, layer_norm};
use crate::picture::{Picture, Plan, Scratch};
use crate::quant::gelu;
use crate::weights::TableRef;

/// Output positions that are gathered at a time, so that their patches stay in the cache.
const ROWS: usize = 64;

/// What networks work in on the CPU, allocated once for the largest.
pub(crate) struct CpuBuffers {
    slots: [Vec<f32>; SLOTS],
    /// What pictures are resized in.
    scratch: Scratch,
    given: Vec<f32>,
    /// `[ROWS, patch]`
    patches: Vec<f32>,
    /// What convolutions, layers over all places, and attention read.
    activations: [Activations; 3],
    /// Queries of one head and what becomes of them, its keys, its values turned, and the scores.
    head: [Vec<f32>; 5],
    sums: GroupSums,
    search: Search,
}

impl CpuBuffers {
    /// Bytes of them.
    pub(crate) fn bytes(s: &Sizes) -> u128 {
        let slots: u128 = s.slots.iter().map(|&values| values as u128).sum();
        let [rows, widest] = s.attention().map(|n| n as u128);
        let heads = s.attended[0] as u128 * s.attended[1] as u128;
        let layers = s.rows[0] as u128 * s.rows[1] as u128;
        let [rgb, between, shown, line] = s.rooms.map(|n| n as u128);
        rgb + between
            + shown
            + 4 * (line
                + slots
                + s.given as u128
                + s.kept as u128
                + 2 * (ROWS * s.patch) as u128
                + 2 * layers
                + 2 * heads
                + 4 * rows * widest)
            + Search::bytes(s.coded)
    }

    pub(crate) fn new(e: &Engine, s: &Sizes) -> Self {
        let ([rows, widest], [places, channels, _]) = (s.attention(), s.attended);
        let of = |rows, k, kinds| Activations::new(rows, k, 2, e.threads(), kinds);
        let floats = |n: usize| vec![0.0; n];
        Self {
            slots: s.slots.map(floats),
            scratch: Scratch::new(s.rooms),
            given: Vec::with_capacity(s.given + s.kept),
            patches: floats(ROWS * s.patch),
            activations: [
                of(ROWS, s.patch, ActivationKinds::Both),
                of(s.rows[0], s.rows[1], ActivationKinds::Both),
                of(rows, widest, ActivationKinds::Float),
            ],
            head: [
                floats(rows * channels),
                floats(rows * channels),
                floats(places * channels),
                floats(places * channels),
                floats(rows * places),
            ],
            sums: GroupSums::new(s.strips[1]),
            search: Search::new(s.coded),
        }
    }

    /// What the last network gave.
    pub(crate) fn given(&mut self) -> &mut [f32] {
        &mut self.given
    }
}

/// A run of a network on the CPU.
pub(crate) struct CpuMaps<'a> {
    on: Machine<'a>,
    b: &'a mut CpuBuffers,
    slots: Slots,
}

impl<'a> CpuMaps<'a> {
    pub(crate) fn new(on: Machine<'a>, b: &'a mut CpuBuffers) -> Self {
        b.given.clear();
        Self { on, b, slots: Slots::default() }
    }

    /// What lies in a slot.
    fn get(&self, slot: Slot) -> &[f32] {
        &self.b.slots[self.slots.buffer(slot)][..self.slots.shape(slot).len()]
    }

    /// What lies in a slot and what is to lie in another one, of that shape.
    fn pair(&mut self, from: Slot, to: Slot, shape: Shape) -> (&[f32], &mut [f32]) {
        let len = self.slots.shape(from).len();
        let (a, b) = (self.slots.buffer(from), self.slots.put(to, shape));
        let [from, to] = self.b.slots.get_disjoint_mut([a, b]).expect("two slots");
        (&from[..len], &mut to[..shape.len()])
    }

    /// A copy of a slot in another one, or the slot itself.
    fn copied(&mut self, from: Slot, to: Slot) -> &mut [f32] {
        let shape = self.slots.shape(from);
        if from != to {
            let (from, to) = self.pair(from, to, shape);
            to.copy_from_slice(from);
        }
        &mut self.b.slots[self.slots.buffer(to)][..shape.len()]
    }

    /// Takes the buffer of a slot that is to have a shape; [`Self::put_back`] follows.
    fn take(&mut self, to: Slot, shape: Shape) -> Vec<f32> {
        let buffer = self.slots.put(to, shape);
        std::mem::take(&mut self.b.slots[buffer])
    }

    fn put_back(&mut self, to: Slot, values: Vec<f32>) {
        self.b.slots[self.slots.buffer(to)] = values;
    }
}

impl Maps for CpuMaps<'_> {
    fn shape(&self, slot: Slot) -> Shape {
        self.slots.shape(slot)
    }

    fn swap(&mut self, a: Slot, b: Slot) {
        self.slots.swap(a, b);
    }

    fn load(&mut self, to: Slot, shape: Shape, fill: &dyn Fn(&mut [f32])) -> Result<()> {
        let buffer = self.slots.put(to, shape);
        fill(&mut self.b.slots[buffer][..shape.len()]);
        Ok(())
    }

    fn load_picture(&mut self, to: Slot, plan: &Plan, picture: Picture<'_>) -> Result<()> {
        let shape = Shape::picture(plan.canvas(), 3);
        let buffer = self.slots.put(to, shape);
        let CpuBuffers { slots, scratch, .. } = &mut *self.b;
        plan.run(picture, scratch, &mut slots[buffer][..shape.len()]);
        Ok(())
    }

    fn give(&mut self, from: Slot) -> Result<()> {
        let buffer = &self.b.slots[self.slots.buffer(from)];
        self.b.given.extend_from_slice(&buffer[..self.slots.shape(from).len()]);
        Ok(())
    }

    fn keep(&mut self, from: Slot) -> Result<()> {
        self.give(from)
    }

    fn take_frame(&mut self, clip: Slot, frame: usize, to: Slot) -> Result<()> {
        let shape = Shape { time: 1, ..self.shape(clip) };
        let (clip, to) = self.pair(clip, to, shape);
        to.copy_from_slice(&clip[frame * to.len()..][..to.len()]);
        Ok(())
    }

    fn put_frame(&mut self, from: Slot, clip: Slot, frame: usize, frames: usize) -> Result<()> {
        let shape = Shape { time: frames, ..self.shape(from) };
        let (from, clip) = self.pair(from, clip, shape);
        clip[frame * from.len()..][..from.len()].copy_from_slice(from);
        Ok(())
    }

    fn convolve(&mut self, conv: &Conv, from: Slot, to: Slot) -> Result<()> {
        let (input, shape) = (self.shape(from), conv.shape(self.shape(from)));
        let mut out = self.take(to, shape);
        let (weight, bias) = (&conv.layer.weight, Some(conv.layer.bias.get(self.on.w)));
        let (n, k) = (weight.n, weight.k);
        let CpuBuffers { slots, patches, activations: [a, ..], .. } = &mut *self.b;
        let x = &slots[self.slots.buffer(from)][..input.len()];
        let mut first = 0;
        for out in out[..shape.len()].chunks_mut(ROWS * n) {
            let rows = out.len() / n;
            for (row, patch) in patches.chunks_exact_mut(k).take(rows).enumerate() {
                gather((x, input), &conv.grid, shape, first + row, patch);
            }
            self.on.e.linear(&patches[..rows * k], weight.get(self.on.w), bias, out, a);
            first += rows;
        }
        self.put_back(to, out);
        Ok(())
    }

    fn linear(&mut self, layer: &Biased, from: Slot, to: Slot) -> Result<()> {
        let shape = Grid::POINT.shape(self.shape(from), layer.weight.n);
        let mut out = self.take(to, shape);
        let (weight, bias) = (layer.weight.get(self.on.w), Some(layer.bias.get(self.on.w)));
        let x = &self.b.slots[self.slots.buffer(from)][..self.slots.shape(from).len()];
        self.on.e.linear(x, weight, bias, &mut out[..shape.len()], &mut self.b.activations[1]);
        self.put_back(to, out);
        Ok(())
    }

    fn group_norm(
        &mut self,
        norm: &Affine,
        modulation: Option<[Slot; 2]>,
        from: Slot,
        to: Slot,
        then: Then,
    ) -> Result<()> {
        let (Shape { width, channels, .. }, e) = (self.shape(from), self.on.e);
        let (weight, bias) = (norm.weight.get(self.on.w), norm.bias.get(self.on.w));
        let x = &self.b.slots[self.slots.buffer(from)][..self.slots.shape(from).len()];
        let stats = self.b.sums.stats(x, channels);
        let size = channels / GROUPS;
        for x in self.copied(from, to).chunks_exact_mut(channels) {
            for (group, (mean, inverse)) in stats.iter().enumerate() {
                let of_group = group * size..(group + 1) * size;
                let affine = weight[of_group.clone()].iter().zip(&bias[of_group.clone()]);
                for (x, (weight, bias)) in x[of_group].iter_mut().zip(affine) {
                    *x = (*x - mean) * inverse * weight + bias;
                }
            }
        }
        if let Some(maps) = modulation {
            let mut x = self.take(to, self.shape(from));
            let len = self.shape(to).len();
            let (scale, shift) = (self.get(maps[0]), self.get(maps[1]));
            let code = self.shape(maps[0]);
            let factor = (width / code.width).max(1);
            for (at, x) in x[..len].chunks_exact_mut(channels).enumerate() {
                let place = (at / width / factor) * code.width + at % width / factor;
                let of_place = place * channels..(place + 1) * channels;
                for ((x, scale), shift) in x.iter_mut().zip(&scale[of_place.clone()]).zip(&shift[of_place]) {
                    *x = *x * scale + shift;
                }
            }
            self.put_back(to, x);
        }
        if then == Then::Swish {
            e.silu_inplace(self.copied(to, to));
        }
        Ok(())
    }

    fn layer_norm(&mut self, norm: &Affine, eps: f32, from: Slot, to: Slot) -> Result<()> {
        let (weight, bias) = (norm.weight.get(self.on.w), norm.bias.get(self.on.w));
        let rows = self.copied(from, to).chunks_exact_mut(weight.len());
        rows.for_each(|x| layer_norm(x, weight, bias, eps));
        Ok(())
    }

    fn channel_norm_swish(&mut self, norm: &ChannelNorm, from: Slot, to: Slot) -> Result<()> {
        let [weight, bias, mean, variance] =
            [&norm.affine.weight, &norm.affine.bias, &norm.mean, &norm.variance].map(|v| v.get(self.on.w));
        let e = self.on.e;
        let x = self.copied(from, to);
        for (c, weight) in weight.iter().enumerate() {
            let scale = weight / (variance[c] + CHANNEL_EPS).sqrt();
            for x in x.iter_mut().skip(c).step_by(mean.len()) {
                *x = (*x - mean[c]) * scale + bias[c];
            }
        }
        e.silu_inplace(x);
        Ok(())
    }

    fn silu(&mut self, from: Slot, to: Slot) -> Result<()> {
        let e = self.on.e;
        e.silu_inplace(self.copied(from, to));
        Ok(())
    }

    fn gelu(&mut self, x: Slot) -> Result<()> {
        self.copied(x, x).iter_mut().for_each(|x| *x = gelu(*x));
        Ok(())
    }

    fn add(&mut self, x: Slot, y: Slot) -> Result<()> {
        let (e, shape) = (self.on.e, self.shape(x));
        let (y, x) = self.pair(y, x, shape);
        e.add(x, y);
        Ok(())
    }

    fn add_rows(&mut self, x: Slot, table: &TableRef) -> Result<()> {
        let (w, channels) = (self.on.w, self.shape(x).channels);
        let rows = self.copied(x, x).chunks_exact_mut(channels).enumerate();
        rows.for_each(|(place, row)| table.add_row(w, place, row));
        Ok(())
    }

    fn enlarge(&mut self, from: Slot, to: Slot) -> Result<()> {
        let Shape { width, channels, .. } = self.shape(from);
        let (x, out) = self.pair(from, to, enlarged(self.shape(from)));
        for (at, pixel) in out.chunks_exact_mut(channels).enumerate() {
            let (row, col) = (at / (2 * width), at % (2 * width));
            pixel.copy_from_slice(&x[((row / 2) * width + col / 2) * channels..][..channels]);
        }
        Ok(())
    }

    fn repeat_frames(&mut self, from: Slot, to: Slot) -> Result<()> {
        let shape = self.shape(from);
        let frame = shape.len() / shape.time;
        let (x, out) = self.pair(from, to, Shape { time: 2 * shape.time, ..shape });
        for (twice, frame) in out.chunks_exact_mut(2 * frame).zip(x.chunks_exact(frame)) {
            twice.chunks_exact_mut(frame.len()).for_each(|out| out.copy_from_slice(frame));
        }
        Ok(())
    }

    fn nearest(&mut self, book: CodeBook<'_>, from: Slot, to: Slot) -> Result<()> {
        let shape = self.shape(from);
        let mut codes = self.take(to, Shape { channels: 1, ..shape });
        let x = &mut self.b.slots[self.slots.buffer(from)][..shape.len()];
        if book.unit {
            x.chunks_exact_mut(shape.channels).for_each(l2_normalise);
        }
        let read = |code: usize, row: &mut [f32]| {
            book.vectors.read_row(self.on.w, code, row);
            if book.unit {
                l2_normalise(row);
            }
        };
        self.b.search.run(book.vectors.n, &read, x, &mut codes[..shape.places()]);
        self.put_back(to, codes);
        Ok(())
    }

    #[allow(clippy::cast_precision_loss, reason = "the width of a head")]
    fn attend(&mut self, qkv: [Slot; 3], heads: usize, to: Slot) -> Result<()> {
        let (shape, e) = (self.shape(qkv[0]), self.on.e);
        let (n, d, width) = (shape.places(), shape.channels, shape.channels / heads);
        let mut out = self.take(to, shape);
        let CpuBuffers { slots, head: [head_q, given, head_k, head_v, scores], activations: [.., a], .. } =
            &mut *self.b;
        let [q, k, v] = qkv.map(|slot| &slots[self.slots.buffer(slot)][..n * d]);
        let (head_k, head_v) = (&mut head_k[..n * width], &mut head_v[..n * width]);
        let scale = 1.0 / (width as f32).sqrt();
        for first in (0..d).step_by(width) {
            of_head(k, d, first, head_k, width);
            // Values turned: a linear layer's weights are rows of inputs.
            for (at, row) in head_v.chunks_exact_mut(n).enumerate() {
                row.iter_mut().zip(v[first + at..].iter().step_by(d)).for_each(|(to, from)| *to = *from);
            }
            let keys = Linear::F32 { rows: head_k, n, k: width };
            let values = Linear::F32 { rows: head_v, n: width, k: n };
            for (q, out) in q.chunks(QUERIES * d).zip(out[..n * d].chunks_mut(QUERIES * d)) {
                let rows = q.len() / d;
                let (head_q, given) = (&mut head_q[..rows * width], &mut given[..rows * width]);
                let scores = &mut scores[..rows * n];
                of_head(q, d, first, head_q, width);
                e.linear(head_q, keys, None, scores, a);
                for row in scores.chunks_exact_mut(n) {
                    row.iter_mut().for_each(|x| *x *= scale);
                    e.softmax_inplace(row);
                }
                e.linear(scores, values, None, given, a);
                for (out, given) in out.chunks_exact_mut(d).zip(given.chunks_exact(width)) {
                    out[first..first + width].copy_from_slice(given);
                }
            }
        }
        self.put_back(to, out);
        Ok(())
    }
}

/// The columns from `first` on of `x [rows, d]`, as `out [rows, width]`.
fn of_head(x: &[f32], d: usize, first: usize, out: &mut [f32], width: usize) {
    let rows = out.chunks_exact_mut(width).zip(x.chunks_exact(d));
    rows.for_each(|(out, x)| out.copy_from_slice(&x[first..first + width]));
}

/// The patch under output position `at`: `(kt, kh, kw, in)`, zeros outside the input.
fn gather((x, input): (&[f32], Shape), grid: &Grid, shape: Shape, at: usize, patch: &mut [f32]) {
    let Shape { time, height, width, channels } = input;
    let (frame, row, col) =
        (at / (shape.height * shape.width), at / shape.width % shape.height, at % shape.width);
    let [t0, y0, x0] = [(frame, 0), (row, 1), (col, 1)].map(|(n, of): (usize, usize)| n * grid.stride[of]);
    let [kt, side] = grid.kernel;
    let mut taps = patch.chunks_exact_mut(channels);
    for t in (0..kt).map(|tap| (t0 + tap).wrapping_sub(grid.before[0])) {
        for y in (0..side).map(|tap| (y0 + tap).wrapping_sub(grid.before[1])) {
            for x_at in (0..side).map(|tap| (x0 + tap).wrapping_sub(grid.before[1])) {
                let out = taps.next().expect("a patch has as many taps as the kernel");
                if t < time && y < height && x_at < width {
                    out.copy_from_slice(&x[((t * height + y) * width + x_at) * channels..][..channels]);
                } else {
                    out.fill(0.0);
                }
            }
        }
    }
}
