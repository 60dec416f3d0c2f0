//! The kernels of image networks.

use super::{At, Device, Result, c_void, each, threads};
use crate::quant::LANES;

/// Positions and outputs of a block of `convolve`.
const BLOCK: usize = 32;

/// `Patches` of `patch.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Patches {
    pub(crate) time: i32,
    pub(crate) height: i32,
    pub(crate) width: i32,
    pub(crate) channels: i32,
    pub(crate) out_height: i32,
    pub(crate) out_width: i32,
    pub(crate) positions: i32,
    pub(crate) kernel_t: i32,
    pub(crate) kernel: i32,
    pub(crate) stride_t: i32,
    pub(crate) stride: i32,
    pub(crate) before_t: i32,
    pub(crate) before: i32,
    pub(crate) k: i32,
    pub(crate) row: i32,
}

/// `Product` of `convolve.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Product {
    pub(crate) patches: Patches,
    pub(crate) n: i32,
    pub(crate) w_n: i32,
    pub(crate) w_k: i32,
    pub(crate) out_row: i32,
    pub(crate) x_batch: i32,
    pub(crate) w_batch: i32,
    pub(crate) out_batch: i32,
}

/// How the weights of a product lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightRows {
    /// `[n, k] f32`
    F32,
    /// `[n, k] f16`
    F16,
    /// `[k, n] f32`
    Turned,
}

/// `GroupNorm` of `group_norm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GroupNormShape {
    pub(crate) places: i32,
    pub(crate) channels: i32,
    pub(crate) group: i32,
    pub(crate) width: i32,
    pub(crate) code_width: i32,
    pub(crate) factor: i32,
    pub(crate) swish: i32,
}

/// Where a group norm finds what belongs to channels and places; 0 where there is nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GroupNormAt {
    /// `[groups] f64`, `[groups] f32`
    pub(crate) mean: At,
    pub(crate) inverse: At,
    /// `[channels] f32`
    pub(crate) weight: At,
    pub(crate) bias: At,
    /// `[places / factor², channels] f32`
    pub(crate) scale: At,
    pub(crate) shift: At,
}

/// `Raw` of `pixels.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawAt {
    pub(crate) bytes: At,
    pub(crate) stride: u64,
    pub(crate) height: i32,
    /// A [`PixelFormat`](crate::picture::PixelFormat).
    pub(crate) format: i32,
}

/// `Axis` of `pixels.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct AxisAt {
    pub(crate) spans: At,
    pub(crate) weights: At,
}

/// `Pass` of `pixels.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct PassAt {
    pub(crate) raw: RawAt,
    pub(crate) axis: AxisAt,
    pub(crate) down: i32,
    pub(crate) first: i32,
    pub(crate) beside: i32,
}

/// `Canvas` of `pixels.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct CanvasAt {
    pub(crate) width: i32,
    pub(crate) left: i32,
    pub(crate) top: i32,
    pub(crate) shown_width: i32,
    pub(crate) shown_height: i32,
    pub(crate) background: [u8; 3],
}

impl Device {
    /// `out [batch, positions, n] = patches of x · w + bias`.
    pub(crate) fn convolve(
        &self,
        c: &Product,
        batch: usize,
        x: At,
        (w, rows): (At, WeightRows),
        bias: At,
        out: At,
    ) -> Result {
        let kernel = match rows {
            WeightRows::F32 => "convolve_f32",
            WeightRows::F16 => "convolve_f16",
            WeightRows::Turned => "convolve_turned",
        };
        let grid = [(c.patches.positions as usize).div_ceil(BLOCK), (c.n as usize).div_ceil(BLOCK), batch];
        launch!(self, kernel, grid, 256, 0, *c, x, w, bias, out)
    }

    /// The patches of `count` positions from `first` on → `q [count, parts, pad_k(k)] i8`, `scale [count, parts] f32`.
    pub(crate) fn quantise_patches(
        &self,
        p: &Patches,
        x: At,
        (first, count): (usize, usize),
        parts: usize,
        q: At,
        scale: At,
    ) -> Result {
        let (first, parts) = (first as i32, parts as i32);
        let shared = 4 * p.k as usize;
        launch!(self, "quantise_patches", [count, 1, 1], threads(256), shared, *p, x, first, parts, q, scale)
    }

    /// `Σ x` of each strip and channel, or `Σ (x − mean)²` where there are means: `x [places, channels]` → `partial [strips, channels] f64`.
    pub(crate) fn strip_sums(
        &self,
        x: At,
        mean: At,
        partial: At,
        [places, channels, group]: [usize; 3],
        strip: usize,
    ) -> Result {
        let threads = threads(128);
        let grid = [places.div_ceil(strip), channels.div_ceil(threads), 1];
        let [places, channels, group, strip] = [places, channels, group, strip].map(|n| n as i32);
        launch!(self, "strip_sums", grid, threads, 0, x, mean, partial, places, channels, group, strip)
    }

    /// Of each group the mean of `n` values → `mean [groups] f64`, or `1 / √(that + eps)` → `inverse [groups] f32` where that is wanted.
    pub(crate) fn fold_strips(
        &self,
        partial: At,
        [strips, channels, group]: [usize; 3],
        (n, eps): (f64, f64),
        mean: At,
        inverse: At,
    ) -> Result {
        let grid = [channels / group, 1, 1];
        let [strips, channels, group] = [strips, channels, group].map(|n| n as i32);
        launch!(self, "fold_strips", grid, 256, 0, partial, strips, channels, group, n, eps, mean, inverse)
    }

    /// `x [places, channels]` normed, modulated and swished → `y`.
    pub(crate) fn group_norm(&self, shape: &GroupNormShape, x: At, y: At, at: GroupNormAt) -> Result {
        let n = shape.places as usize * shape.channels as usize;
        let GroupNormAt { mean, inverse, weight, bias, scale, shift } = at;
        let (grid, threads) = each(n);
        launch!(self, "group_norm", grid, threads, 0, *shape, x, y, mean, inverse, weight, bias, scale, shift)
    }

    /// `y = layer norm of x [rows, n]`.
    pub(crate) fn layer_norm(
        &self,
        x: At,
        y: At,
        (weight, bias, eps): (At, At, f32),
        [rows, n]: [usize; 2],
    ) -> Result {
        let (grid, shared) = ([rows.div_ceil(4), 1, 1], 16 * n);
        let (rows, n) = (rows as i32, n as i32);
        launch!(self, "layer_norm", grid, 128, shared, x, y, weight, bias, eps, rows, n)
    }

    /// `x = softmax(factor · x)` of each row of `x [rows, n]`.
    pub(crate) fn softmax_rows(&self, x: At, factor: f32, [rows, n]: [usize; 2]) -> Result {
        let grid = [rows.div_ceil(256 / LANES), 1, 1];
        let (rows, n) = (rows as i32, n as i32);
        launch!(self, "softmax_rows", grid, 256, 0, x, factor, rows, n)
    }

    /// `y = silu(x)`, `n` values.
    pub(crate) fn silu_map(&self, x: At, y: At, n: usize) -> Result {
        let ((grid, threads), count) = (each(n), n as u32);
        launch!(self, "silu_map", grid, threads, 0, x, y, count)
    }

    /// `x = gelu(x)`, `n` values.
    pub(crate) fn gelu_map(&self, x: At, n: usize) -> Result {
        let ((grid, threads), count) = (each(n), n as u32);
        launch!(self, "gelu_map", grid, threads, 0, x, count)
    }

    /// `x += y`, `n` values.
    pub(crate) fn add_maps(&self, x: At, y: At, n: usize) -> Result {
        let ((grid, threads), count) = (each(n), n as u32);
        launch!(self, "add_maps", grid, threads, 0, x, y, count)
    }

    /// `x += table`, `n` values, those of the table in F16 (`half`) or F32.
    pub(crate) fn add_table(&self, x: At, (table, half): (At, bool), n: usize) -> Result {
        let ((grid, threads), half, count) = (each(n), i32::from(half), n as u32);
        launch!(self, "add_table", grid, threads, 0, x, table, half, count)
    }

    /// `y = swish((x − mean) · weight / √(variance + eps) + bias)` of `x [places, channels]`; weight, bias, mean, variance `[channels]`.
    pub(crate) fn channel_norm(
        &self,
        x: At,
        y: At,
        [weight, bias, mean, variance]: [At; 4],
        eps: f32,
        [places, channels]: [usize; 2],
    ) -> Result {
        let n = places * channels;
        let ((grid, threads), channels, count) = (each(n), channels as i32, n as u32);
        launch!(
            self,
            "channel_norm",
            grid,
            threads,
            0,
            x,
            y,
            weight,
            bias,
            mean,
            variance,
            eps,
            channels,
            count
        )
    }

    /// `x [rows, width, channels]` → `y [2 · rows, 2 · width, channels]`; rows of all frames.
    pub(crate) fn enlarge_map(&self, x: At, y: At, [rows, width, channels]: [usize; 3]) -> Result {
        let n = 4 * rows * width * channels;
        let ((grid, threads), width, channels, count) = (each(n), width as i32, channels as i32, n as u32);
        launch!(self, "enlarge_map", grid, threads, 0, x, y, width, channels, count)
    }

    /// A picture by the weights of its columns and rows → `x [height, width, 3] f32`, as `levels [3, 256] f32` say.
    pub(crate) fn area_to_map(
        &self,
        raw: RawAt,
        [columns, rows]: [AxisAt; 2],
        levels: At,
        x: At,
        [width, height]: [usize; 2],
    ) -> Result {
        let ((grid, threads), count) = (each(width * height), (width * height) as u32);
        let width = width as i32;
        launch!(self, "area_to_map", grid, threads, 0, raw, columns, rows, levels, x, width, count)
    }

    /// The first pass of a resize → `out [height, width, 3] u8`.
    pub(crate) fn resample(&self, pass: &PassAt, out: At, [width, height]: [usize; 2]) -> Result {
        let ((grid, threads), count) = (each(width * height), (width * height) as u32);
        let width = width as i32;
        launch!(self, "resample", grid, threads, 0, *pass, out, width, count)
    }

    /// The second pass on a canvas of `n` pixels → `x [n, 3] f32`, as `levels [3, 256] f32` say.
    pub(crate) fn resample_to_map(
        &self,
        pass: &PassAt,
        canvas: &CanvasAt,
        levels: At,
        x: At,
        n: usize,
    ) -> Result {
        let ((grid, threads), count) = (each(n), n as u32);
        launch!(self, "resample_to_map", grid, threads, 0, *pass, *canvas, levels, x, count)
    }

    /// The number of the vector of `book [n, k]`, in F16 (`half`) or F32, that is nearest to each place of `x [places, k] f32` → `codes [places]
    /// f32`; NaN where there is none. With `unit` both are made of length one first.
    pub(crate) fn nearest(
        &self,
        x: At,
        (book, half): (At, bool),
        unit: bool,
        [places, n, k]: [usize; 3],
        codes: At,
    ) -> Result {
        let (kernel, grid) = (if half { "nearest_f16" } else { "nearest_f32" }, [places.div_ceil(32), 1, 1]);
        let ([places, n, k], unit) = ([places, n, k].map(|n| n as i32), i32::from(unit));
        launch!(self, kernel, grid, 256, 0, x, book, unit, places, n, k, codes)
    }
}
