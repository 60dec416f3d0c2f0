//! Pictures of bytes to another size, byte for byte as Pillow's `Image.resize` makes them.
//!
//! Columns and rows, one after the other, each a weighted sum of the inputs under a filter that widens with the
//! reduction. Weights have 22 fractional bits, and the first sums are rounded to bytes before they are added up again.
//! Source: `src/libImaging/Resample.c` of Pillow; the order is that of Pillow 13.0, see [`rows_first`].

use serde::{Deserialize, Serialize};

use super::axis::Axis;

/// Fractional bits of a weight: of 32, 8 hold the byte and 2 the sign and the overshoot of a sum.
const PRECISION_BITS: u32 = 32 - 8 - 2;
/// A half, where every sum starts: the shift at its end then rounds to nearest.
const HALF: i32 = 1 << (PRECISION_BITS - 1);

/// What an output takes of the inputs around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// Keys' cubic with a = -0.5, over 2 inputs to either side.
    Bicubic,
    /// sinc(x) sinc(x / 3), over 3 inputs to either side.
    Lanczos,
}

impl Filter {
    /// Inputs to either side of the centre, when nothing shrinks.
    const fn support(self) -> f64 {
        match self {
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// The weight, not yet normalised, of an input at distance `x`.
    fn at(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
            Self::Lanczos if x < 3.0 => sinc(x) * sinc(x / 3.0),
            Self::Bicubic | Self::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// Which part of a resized axis is wanted: outputs `first..first + len` of `out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Window {
    /// Outputs of the whole axis.
    pub(crate) out: usize,
    /// First one wanted.
    pub(crate) first: usize,
    /// How many are wanted.
    pub(crate) len: usize,
}

impl Window {
    /// All of them.
    pub(crate) const fn whole(out: usize) -> Self {
        Self { out, first: 0, len: out }
    }
}

/// `axis` for a window of `inputs` inputs; the weights of an output add up to 2²² but for rounding. `exact` holds those of one before
/// they are rounded.
// Sizes are exact in f64. `as usize` takes what is negative to 0, as the first input should be; weights are below 2 · 2²².
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn set(axis: &mut Axis<i32>, exact: &mut Vec<f64>, filter: Filter, inputs: usize, window: Window) {
    axis.clear();
    let scale = inputs as f64 / window.out as f64;
    let filter_scale = scale.max(1.0);
    let (support, inverse) = (filter.support() * filter_scale, 1.0 / filter_scale);
    for i in window.first..window.first + window.len {
        let centre = (i as f64 + 0.5) * scale;
        let first = (centre - support + 0.5) as usize;
        let end = ((centre + support + 0.5) as usize).min(inputs);
        exact.clear();
        exact.extend((first..end).map(|x| filter.at((x as f64 - centre + 0.5) * inverse)));
        let sum: f64 = exact.iter().sum();
        let sum = if sum == 0.0 { 1.0 } else { sum };
        axis.push(first, exact.iter().map(|w| (w / sum * f64::from(1 << PRECISION_BITS)).round() as i32));
    }
}

/// A sum of weighted bytes as a byte: rounded, and clipped where the filter overshoots.
// Clamped to the range of a byte.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Whether rows are resized before columns: if the height loses more than twice as many pixels as the width.
///
/// Source: what Pillow 13.0 does, found from 1,414 resizes whose bytes tell the order. Up to 12.3 columns came first
/// always. Where the order tells, for pictures more than twice as high as wide, about a byte in six of a photo differs,
/// by at most 7 of 255: where the filter overshoots black or white, the first pass clips.
// Sizes are at most 2³².
#[allow(clippy::cast_possible_wrap)]
const fn rows_first((width, height): (usize, usize), (columns, rows): (usize, usize)) -> bool {
    let lost = [width as i64 - columns as i64, height as i64 - rows as i64];
    lost[1] > 0 && lost[1] > 2 * lost[0]
}

/// The weights of one size, and a part of another that is made.
#[derive(Debug)]
pub(crate) struct Resample {
    filter: Filter,
    /// Whether rows are resized before columns.
    pub(crate) rows_first: bool,
    columns: Axis<i32>,
    rows: Axis<i32>,
    /// The weights of one output before they are rounded.
    exact: Vec<f64>,
}

impl Resample {
    /// Without weights yet.
    pub(crate) fn new(filter: Filter) -> Self {
        let (columns, rows) = Default::default();
        Self { filter, rows_first: false, columns, rows, exact: Vec::new() }
    }

    /// Makes the weights for pictures of `width` × `height`; both at least 1, as are the windows' sizes. Nothing as large as a picture
    /// is allocated.
    pub(super) fn set(&mut self, (width, height): (usize, usize), (columns, rows): (Window, Window)) {
        self.rows_first = rows_first((width, height), (columns.out, rows.out));
        set(&mut self.columns, &mut self.exact, self.filter, width, columns);
        set(&mut self.rows, &mut self.exact, self.filter, height, rows);
    }

    /// By which weights.
    pub(crate) fn filter(&self) -> Filter {
        self.filter
    }

    /// Columns and rows.
    pub(crate) fn axes(&self) -> [&Axis<i32>; 2] {
        [&self.columns, &self.rows]
    }

    /// The first row or column that the second pass takes something of: what the first one begins with.
    pub(crate) fn first(&self) -> usize {
        if self.rows_first { self.columns.inputs().0 } else { self.rows.inputs().0 }
    }

    /// Columns and rows of what lies between the two passes: what of the pictures is needed, with its columns or its rows resized.
    pub(crate) fn between(&self) -> (usize, usize) {
        let ((left, right), (top, bottom)) = (self.columns.inputs(), self.rows.inputs());
        if self.rows_first {
            (right - left, self.rows.spans().len())
        } else {
            (self.columns.spans().len(), bottom - top)
        }
    }

    /// Resizes `rgb`, rows of `stride` bytes, to `out [rows, columns, 3] u8`, as large as the windows. What lies `between` the passes,
    /// `[rows, columns, 3] u8`, and the `sums` of one of its rows have room there.
    pub(super) fn run(
        &self,
        rgb: &[u8],
        stride: usize,
        (between, sums): (&mut [u8], &mut [i32]),
        out: &mut [u8],
    ) {
        let Self { columns, rows, .. } = self;
        let (first, line) = (self.first(), sums.len());
        if self.rows_first {
            resize_rows(rows, Part { x: &rgb[first * 3..], stride, first: 0 }, sums, between);
            resize_columns(columns, Part { x: between, stride: line, first }, out);
        } else {
            resize_columns(columns, Part { x: &rgb[first * stride..], stride, first: 0 }, between);
            resize_rows(rows, Part { x: between, stride: line, first }, sums, out);
        }
    }
}

/// A part of a picture, as one pass reads it.
#[derive(Clone, Copy, Debug)]
struct Part<'a> {
    /// Bytes from its first pixel on; the last row may end early.
    x: &'a [u8],
    /// Bytes from row to row.
    stride: usize,
    /// The index, along the axis of the pass, that its first pixel has.
    first: usize,
}

/// `out [rows, spans of the axis, 3]` from as many rows of `from`.
fn resize_columns(axis: &Axis<i32>, from: Part<'_>, out: &mut [u8]) {
    let rows = from.x.chunks(from.stride);
    for (out, row) in out.chunks_exact_mut(axis.spans().len() * 3).zip(rows) {
        for (out, &span) in out.as_chunks_mut::<3>().0.iter_mut().zip(axis.spans()) {
            let mut sums = [HALF; 3];
            let pixels = row[(span.first() - from.first) * 3..].as_chunks::<3>().0;
            for (&w, pixel) in axis.weights(span).iter().zip(pixels) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += w * i32::from(value);
                }
            }
            *out = sums.map(to_byte);
        }
    }
}

/// `out [spans of the axis, columns, 3]` from the first columns of `from`, as many as there are `sums [columns, 3]`.
fn resize_rows(axis: &Axis<i32>, from: Part<'_>, sums: &mut [i32], out: &mut [u8]) {
    for (out, &span) in out.chunks_exact_mut(sums.len()).zip(axis.spans()) {
        sums.fill(HALF);
        let rows = from.x.chunks(from.stride).skip(span.first() - from.first);
        for (&w, row) in axis.weights(span).iter().zip(rows) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += w * i32::from(value);
            }
        }
        out.iter_mut().zip(&*sums).for_each(|(out, &sum)| *out = to_byte(sum));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::noise;
    use super::*;

    /// `filter` as the definition has it, in f64, with bytes between the passes.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn naive(filter: Filter, rgb: &[u8], from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
        // One axis at a time: `[outer, inputs, inner]` becomes `[outer, out, inner]`.
        let axis = |x: &[u8], inputs: usize, inner: usize, out: usize| -> Vec<u8> {
            let scale = inputs as f64 / out as f64;
            let wide = scale.max(1.0);
            let mut result = Vec::new();
            for block in x.chunks_exact(inputs * inner) {
                for i in 0..out {
                    let centre = (i as f64 + 0.5) * scale;
                    let near = |j: &usize| (*j as f64 + 0.5 - centre).abs() < filter.support() * wide + 0.5;
                    let weights: Vec<(usize, f64)> = (0..inputs)
                        .filter(near)
                        .map(|j| (j, filter.at((j as f64 + 0.5 - centre) / wide)))
                        .collect();
                    let sum: f64 = weights.iter().map(|(_, w)| w).sum();
                    for c in 0..inner {
                        let v: f64 = weights.iter().map(|&(j, w)| w * f64::from(block[j * inner + c])).sum();
                        result.push((v / sum).round().clamp(0.0, 255.0) as u8);
                    }
                }
            }
            result
        };
        if rows_first(from, to) {
            axis(&axis(rgb, from.1, from.0 * 3, to.1), from.0, 3, to.0)
        } else {
            axis(&axis(rgb, from.0, 3, to.0), from.1, to.0 * 3, to.1)
        }
    }

    fn resample(filter: Filter, rgb: &[u8], from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
        window(filter, rgb, from, (Window::whole(to.0), Window::whole(to.1)))
    }

    fn window(filter: Filter, rgb: &[u8], from: (usize, usize), windows: (Window, Window)) -> Vec<u8> {
        let mut resample = Resample::new(filter);
        resample.set(from, windows);
        let (width, height) = resample.between();
        let (mut between, mut sums) = (vec![7; width * height * 3], vec![7; width * 3]);
        let mut out = vec![7; windows.0.len * windows.1.len * 3];
        resample.run(rgb, from.0 * 3, (&mut between, &mut sums), &mut out);
        out
    }

    const BOTH: [Filter; 2] = [Filter::Bicubic, Filter::Lanczos];
    /// Widths and heights, from and to.
    const SIZES: [[(usize, usize); 2]; 18] = [
        [(1, 1), (1, 1)],
        [(1, 1), (5, 4)],
        [(1, 500), (3, 7)],
        [(500, 1), (7, 3)],
        [(500, 1), (1, 1)],
        [(3, 7), (1, 1)],
        [(3, 7), (2, 2)],
        [(3, 7), (7, 3)],
        [(3, 7), (20, 31)],
        [(7, 3), (7, 3)],
        [(2, 2), (17, 1)],
        [(33, 21), (32, 20)],
        [(40, 30), (13, 9)],
        [(64, 2), (9, 12)],
        [(22, 25), (20, 21)],
        [(22, 25), (20, 20)],
        [(12, 40), (5, 17)],
        [(9, 20), (11, 14)],
    ];

    #[test]
    fn is_the_definition_at_awkward_sizes() {
        for (filter, [from, to]) in BOTH.into_iter().flat_map(|f| SIZES.map(|s| (f, s))) {
            let rgb = noise(from.0, from.1);
            let (found, expected) = (resample(filter, &rgb, from, to), naive(filter, &rgb, from, to));
            assert_eq!(found.len(), expected.len());
            // The definition has weights of 53 bits, so that a sum near a half may round the other way.
            for (at, (f, e)) in found.iter().zip(&expected).enumerate() {
                assert!(f.abs_diff(*e) <= 1, "{filter:?} {from:?} to {to:?}, byte {at}: {f}, expected {e}");
            }
        }
    }

    #[test]
    fn is_pillow_byte_for_byte_at_awkward_sizes() {
        let bytes = std::fs::read("tests/fixtures/hf/pillow.safetensors").unwrap();
        let golden = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (filter, [from, to]) in BOTH.into_iter().flat_map(|f| SIZES.map(|s| (f, s))) {
            let name = format!("{filter:?} {}x{} {}x{}", from.0, from.1, to.0, to.1).to_lowercase();
            let expected = golden.tensor(&name).unwrap();
            assert_eq!(expected.shape(), [to.1, to.0, 3]);
            assert_eq!(resample(filter, &noise(from.0, from.1), from, to), expected.data(), "{name}");
        }
        assert_eq!(golden.len(), 2 * SIZES.len(), "every golden is compared");
    }

    #[test]
    fn a_flat_picture_stays_flat_and_the_same_size_changes_nothing() {
        for (filter, [from, to]) in BOTH.into_iter().flat_map(|f| SIZES.map(|s| (f, s))) {
            for value in [0, 1, 127, 128, 254, 255] {
                let flat = vec![value; from.0 * from.1 * 3];
                let found = resample(filter, &flat, from, to);
                assert!(found.iter().all(|&v| v == value), "{filter:?} {from:?} to {to:?}: {value}");
            }
            assert_eq!(resample(filter, &noise(from.0, from.1), from, from), noise(from.0, from.1));
        }
    }

    #[test]
    fn a_window_is_a_part_of_the_whole() {
        let sizes = [((37, 23), (30, 40)), ((37, 83), (30, 40))];
        for (filter, (from, to)) in BOTH.into_iter().flat_map(|f| sizes.map(|s| (f, s))) {
            let rgb = noise(from.0, from.1);
            let whole = resample(filter, &rgb, from, to);
            let windows = (Window { out: 30, first: 11, len: 5 }, Window { out: 40, first: 20, len: 19 });
            let part = window(filter, &rgb, from, windows);
            assert_eq!(rows_first(from, to), from.1 == 83);
            let rows = whole.chunks_exact(90).skip(20).take(19);
            let expected: Vec<u8> = rows.flat_map(|row| row[33..48].to_vec()).collect();
            assert_eq!(part, expected, "{filter:?} {from:?}");
        }
    }

    #[test]
    fn sums_fit_32_bits() {
        let mut axis = Axis::default();
        for filter in BOTH {
            for (inputs, out) in (1..50).flat_map(|i| (1..120).map(move |o| (i, o))).chain([(65_535, 3)]) {
                set(&mut axis, &mut Vec::new(), filter, inputs, Window::whole(out));
                for &span in axis.spans() {
                    let sum: i64 = axis.weights(span).iter().map(|&w| i64::from(w.abs())).sum();
                    assert!(sum * 255 + i64::from(HALF) <= i64::from(i32::MAX), "{inputs} to {out}");
                }
            }
        }
    }
}
