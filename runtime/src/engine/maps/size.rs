//! How much a network needs: its operations over shapes alone.

#[cfg(feature = "cuda")]
use std::hash::Hasher as _;
use std::hash::{DefaultHasher, Hash};

use super::{
    Affine, Biased, ChannelNorm, CodeBook, Conv, Grid, Maps, QUERIES, SLOTS, STRIP, Shape, Slot, Then,
};
use crate::Result;
use crate::picture::{Picture, Plan};
use crate::weights::TableRef;

/// The most of everything that a network needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Values of each buffer. Slots begin in the buffers of their number.
    pub(crate) slots: [usize; SLOTS],
    /// Bytes that are put into a slot at a time.
    pub(crate) loaded: usize,
    /// Bytes that are put into slots in all.
    pub(crate) staged: usize,
    /// Pixels between the passes of a resize, on a card.
    pub(crate) between: usize,
    /// Rooms that the CPU needs to resize pictures.
    pub(crate) rooms: [usize; 4],
    /// Values that the network gives.
    pub(crate) given: usize,
    /// Values that it keeps.
    pub(crate) kept: usize,
    /// Inputs of a patch.
    pub(crate) patch: usize,
    /// Places and the more of inputs and outputs of a linear layer.
    pub(crate) rows: [usize; 2],
    /// Places and channels that attention runs over, and its heads.
    pub(crate) attended: [usize; 3],
    /// Places and channels of the largest sums of a group norm.
    pub(crate) strips: [usize; 2],
    /// Places and inputs of the largest layer over INT8 rows.
    pub(crate) int8: [usize; 2],
    /// Channels of the widest layer norm.
    pub(crate) normed: usize,
    /// Places and channels of the largest search in a code book.
    pub(crate) coded: [usize; 2],
}

impl Sizes {
    /// The more of both.
    pub(crate) fn max(self, other: Self) -> Self {
        fn each<const N: usize>(a: [usize; N], b: [usize; N]) -> [usize; N] {
            std::array::from_fn(|i| a[i].max(b[i]))
        }
        Self {
            slots: each(self.slots, other.slots),
            loaded: self.loaded.max(other.loaded),
            staged: self.staged.max(other.staged),
            between: self.between.max(other.between),
            rooms: each(self.rooms, other.rooms),
            given: self.given.max(other.given),
            kept: self.kept.max(other.kept),
            patch: self.patch.max(other.patch),
            rows: each(self.rows, other.rows),
            attended: each(self.attended, other.attended),
            strips: each(self.strips, other.strips),
            int8: each(self.int8, other.int8),
            normed: self.normed.max(other.normed),
            coded: each(self.coded, other.coded),
        }
    }

    /// Without what a card needs alone.
    pub(crate) fn of_cpu(self) -> Self {
        Self { loaded: 0, staged: 0, between: 0, ..self }
    }

    /// Without what the CPU needs alone.
    #[cfg(feature = "cuda")]
    pub(crate) fn of_card(self) -> Self {
        Self { rooms: [0; 4], ..self }
    }

    /// Bytes that are put into slots, of which there were `staged` before: the next ones may be floats.
    pub(crate) fn staged_with(staged: usize, bytes: usize) -> usize {
        staged.saturating_add(bytes).checked_next_multiple_of(size_of::<f32>()).unwrap_or(usize::MAX)
    }

    /// Rows and the longest of them that attention multiplies at a time.
    pub(crate) fn attention(&self) -> [usize; 2] {
        let [places, channels, _] = self.attended;
        [places.min(QUERIES), places.max(channels)]
    }
}

/// Where slots lie, and what lies in them. At first each lies in the buffer of its number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slots {
    buffer: [usize; SLOTS],
    shape: [Shape; SLOTS],
}

impl Default for Slots {
    fn default() -> Self {
        Self { buffer: std::array::from_fn(|i| i), shape: [Shape::default(); SLOTS] }
    }
}

impl Slots {
    pub(crate) fn swap(&mut self, a: Slot, b: Slot) {
        self.buffer.swap(a as usize, b as usize);
        self.shape.swap(a as usize, b as usize);
    }

    pub(crate) fn shape(&self, slot: Slot) -> Shape {
        self.shape[slot as usize]
    }

    /// Says what will lie in a slot, and returns its buffer.
    pub(crate) fn put(&mut self, slot: Slot, shape: Shape) -> usize {
        self.shape[slot as usize] = shape;
        self.buffer[slot as usize]
    }

    pub(crate) fn buffer(&self, slot: Slot) -> usize {
        self.buffer[slot as usize]
    }
}

/// Counts what a network needs.
#[derive(Default)]
pub(crate) struct Needs {
    slots: Slots,
    pub(crate) sizes: Sizes,
    operations: DefaultHasher,
}

impl Needs {
    /// A hash of what the network does: of everything but the values that it is given.
    #[cfg(feature = "cuda")]
    pub(crate) fn fingerprint(&self) -> u64 {
        self.operations.finish()
    }

    /// Counts an operation, whose shapes follow from those of what was put into slots before.
    fn note(&mut self, name: &str, what: impl Hash) {
        (name, what).hash(&mut self.operations);
    }

    /// Counts bytes that are put into a slot.
    fn stage(&mut self, bytes: usize) {
        self.sizes.loaded = self.sizes.loaded.max(bytes);
        self.sizes.staged = Sizes::staged_with(self.sizes.staged, bytes);
    }

    fn put(&mut self, to: Slot, shape: Shape) -> Result<()> {
        let buffer = self.slots.put(to, shape);
        let most = &mut self.sizes.slots[buffer];
        *most = (*most).max(shape.len());
        Ok(())
    }

    fn same(&mut self, from: Slot, to: Slot) -> Result<()> {
        self.put(to, self.slots.shape(from))
    }

    fn layer(&mut self, layer: &Biased, places: usize) {
        if layer.weight.is_int8() {
            let [rows, k] = &mut self.sizes.int8;
            (*rows, *k) = ((*rows).max(places), (*k).max(layer.weight.k));
        }
    }
}

impl Maps for Needs {
    fn shape(&self, slot: Slot) -> Shape {
        self.slots.shape(slot)
    }

    fn swap(&mut self, a: Slot, b: Slot) {
        self.note("swap", (a, b));
        self.slots.swap(a, b);
    }

    fn load(&mut self, to: Slot, shape: Shape, _: &dyn Fn(&mut [f32])) -> Result<()> {
        self.note("load", (to, shape));
        self.stage(shape.len().saturating_mul(4));
        self.put(to, shape)
    }

    fn load_picture(&mut self, to: Slot, plan: &Plan, picture: Picture<'_>) -> Result<()> {
        let tables = plan.tables().map(<[u8]>::len);
        let Picture { format, width, height, .. } = picture;
        self.note("load_picture", (to, format, [width, height, picture.stride()]));
        self.note("plan", (plan.columns, plan.rows, plan.background, tables, plan.filter()));
        self.stage(tables.iter().sum::<usize>() + picture.sizes().0);
        let (width, height) = plan.between();
        let rooms = plan.rooms(picture);
        self.sizes = self.sizes.max(Sizes { between: width * height, rooms, ..Sizes::default() });
        self.put(to, Shape::picture(plan.canvas(), 3))
    }

    fn give(&mut self, from: Slot) -> Result<()> {
        self.note("give", from);
        self.sizes.given = self.sizes.given.saturating_add(self.shape(from).len());
        Ok(())
    }

    fn keep(&mut self, from: Slot) -> Result<()> {
        self.note("keep", from);
        self.sizes.kept = self.shape(from).len();
        Ok(())
    }

    fn take_frame(&mut self, clip: Slot, frame: usize, to: Slot) -> Result<()> {
        self.note("take_frame", (clip, frame, to));
        self.put(to, Shape { time: 1, ..self.shape(clip) })
    }

    fn put_frame(&mut self, from: Slot, clip: Slot, frame: usize, frames: usize) -> Result<()> {
        self.note("put_frame", (from, clip, frame, frames));
        self.put(clip, Shape { time: frames, ..self.shape(from) })
    }

    fn convolve(&mut self, conv: &Conv, from: Slot, to: Slot) -> Result<()> {
        self.note("convolve", (conv, from, to));
        let shape = conv.shape(self.shape(from));
        self.sizes.patch = self.sizes.patch.max(conv.layer.weight.k);
        self.layer(&conv.layer, shape.places());
        self.put(to, shape)
    }

    fn linear(&mut self, layer: &Biased, from: Slot, to: Slot) -> Result<()> {
        self.note("linear", (layer, from, to));
        let shape = Grid::POINT.shape(self.shape(from), layer.weight.n);
        let [rows, widest] = &mut self.sizes.rows;
        (*rows, *widest) = ((*rows).max(shape.places()), (*widest).max(layer.weight.k));
        self.layer(layer, shape.places());
        self.put(to, shape)
    }

    fn group_norm(
        &mut self,
        norm: &Affine,
        modulation: Option<[Slot; 2]>,
        from: Slot,
        to: Slot,
        then: Then,
    ) -> Result<()> {
        self.note("group_norm", (norm, modulation, from, to, then));
        let shape = self.shape(from);
        let [strips, channels] = &mut self.sizes.strips;
        *strips = (*strips).max(shape.places().div_ceil(STRIP));
        *channels = (*channels).max(shape.channels);
        self.same(from, to)
    }

    fn layer_norm(&mut self, norm: &Affine, eps: f32, from: Slot, to: Slot) -> Result<()> {
        self.note("layer_norm", (norm, eps.to_bits(), from, to));
        self.sizes.normed = self.sizes.normed.max(self.slots.shape(from).channels);
        self.same(from, to)
    }

    fn channel_norm_swish(&mut self, norm: &ChannelNorm, from: Slot, to: Slot) -> Result<()> {
        self.note("channel_norm_swish", (norm, from, to));
        self.same(from, to)
    }

    fn silu(&mut self, from: Slot, to: Slot) -> Result<()> {
        self.note("silu", (from, to));
        self.same(from, to)
    }

    fn gelu(&mut self, x: Slot) -> Result<()> {
        self.note("gelu", x);
        Ok(())
    }

    fn add(&mut self, x: Slot, y: Slot) -> Result<()> {
        self.note("add", (x, y));
        Ok(())
    }

    fn add_rows(&mut self, x: Slot, table: &TableRef) -> Result<()> {
        self.note("add_rows", (x, table));
        Ok(())
    }

    fn enlarge(&mut self, from: Slot, to: Slot) -> Result<()> {
        self.note("enlarge", (from, to));
        self.put(to, enlarged(self.shape(from)))
    }

    fn repeat_frames(&mut self, from: Slot, to: Slot) -> Result<()> {
        self.note("repeat_frames", (from, to));
        let shape = self.shape(from);
        self.put(to, Shape { time: shape.time.saturating_mul(2), ..shape })
    }

    fn nearest(&mut self, book: CodeBook<'_>, from: Slot, to: Slot) -> Result<()> {
        self.note("nearest", (book, from, to));
        let shape = self.shape(from);
        let [places, channels] = &mut self.sizes.coded;
        (*places, *channels) = ((*places).max(shape.places()), (*channels).max(shape.channels));
        self.put(to, Shape { channels: 1, ..shape })
    }

    fn attend(&mut self, qkv: [Slot; 3], heads: usize, to: Slot) -> Result<()> {
        self.note("attend", (qkv, heads, to));
        let shape = self.shape(qkv[0]);
        let of = [shape.places(), shape.channels, heads];
        self.sizes.attended = std::array::from_fn(|i| self.sizes.attended[i].max(of[i]));
        self.put(to, shape)
    }
}

/// Twice as high and wide.
pub(crate) fn enlarged(shape: Shape) -> Shape {
    Shape { height: shape.height.saturating_mul(2), width: shape.width.saturating_mul(2), ..shape }
}
