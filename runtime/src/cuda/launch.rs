//! One typed function for each kernel: what it takes, and the shape it is launched in. Addresses are the card's.
// Kernels take 32-bit sizes, and everything here was checked to be far below that when the model was opened and the session made.
#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)]

use std::ffi::c_void;

use super::arguments::UNIT_QUERIES;
pub(crate) use super::arguments::{
    At, AttentionShape, Draws, FEW_PANELS, HeadNorms, HeadShape, InputAt, Layer, Layers, MAX_PICKED, Parts,
    RowAt, SegmentAt, SequenceAt, StepAt, TableAt, Tables, UnitAt,
};
use super::driver::Device;
use super::error::CudaError;
use crate::kernels::KV_BLOCK;
use crate::quant::{TILE_N, pad_k};

type Result = std::result::Result<(), CudaError>;

/// INT8 rows that `gemv_i8` takes at most; from there on `gemm_i8` is used.
const GEMV_ROWS: usize = 16;
/// Shared memory that every card gives a block without being asked.
const BLOCK_MEMORY: usize = 48 << 10;
/// Stages of `gemm_i8`, inputs of a stage, outputs of a block.
const GEMM: [usize; 3] = [3, 64, 128];

/// Threads of a block of a kernel that takes any number of warps: `usual`, or in tests what they try.
fn threads(usual: usize) -> usize {
    #[cfg(test)]
    if let Some(threads) = super::tests::BLOCK.get() {
        return threads;
    }
    usual
}

/// Grid and block of a kernel that has a thread for each of `n` values.
fn each(n: usize) -> ([usize; 3], usize) {
    let threads = threads(256);
    ([n.div_ceil(threads), 1, 1], threads)
}

/// Launches a kernel with these arguments, whose types are those that it takes.
macro_rules! launch {
    ($device:expr, $kernel:expr, $grid:expr, $threads:expr, $shared:expr, $($argument:expr),+ $(,)?) => {{
        let mut arguments = [$((&raw const $argument).cast_mut().cast::<c_void>()),+];
        // SAFETY: every function here lists the kernel's parameters in order, with their types; its caller vouches for the addresses.
        unsafe { $device.launch($kernel, $grid, $threads, $shared, &mut arguments) }
    }};
}

pub(crate) mod vision;

impl Device {
    /// `x [rows, k] f32`, `norm [k]` or nothing → `q [rows, parts, pad_k(k)] i8`, `scale [rows, parts] f32`.
    pub(crate) fn quantise_rows(
        &self,
        x: At,
        (norm, eps): (At, f32),
        [rows, k, parts]: [usize; 3],
        q: At,
        scale: At,
    ) -> Result {
        let (k32, parts) = (k as i32, parts as i32);
        launch!(self, "quantise_rows", [rows, 1, 1], threads(256), 4 * k, x, norm, eps, k32, parts, q, scale)
    }

    /// Layers over `rows` INT8 rows: `q [rows, pad_k(k)] i8`, `scale [rows] f32`.
    pub(crate) fn linear_i8(&self, layers: &Layers, q: At, scale: At, rows: usize) -> Result {
        let count = rows as i32;
        if rows <= GEMV_ROWS {
            let kernel = match rows {
                0 => return Ok(()),
                1 => "gemv_i8_1",
                2 => "gemv_i8_2",
                3..=4 => "gemv_i8_4",
                5..=8 => "gemv_i8_8",
                _ => "gemv_i8_16",
            };
            return launch!(self, kernel, [layers.groups(1), 1, 1], 256, 0, *layers, q, scale, count);
        }
        let [stages, k, outputs] = GEMM;
        let per_block = outputs / TILE_N / if layers.gated != 0 { 2 } else { 1 };
        let blocks = layers.groups(per_block);
        // The largest block that still gives every multiprocessor one.
        let enough = |bm: &usize| blocks * rows.div_ceil(*bm) >= self.multiprocessors();
        let bm = [128, 64].into_iter().find(enough).unwrap_or(32);
        let kernel = match bm {
            128 => "gemm_i8_128",
            64 => "gemm_i8_64",
            _ => "gemm_i8_32",
        };
        let shared = stages * k * (outputs + bm);
        launch!(self, kernel, [blocks, rows.div_ceil(bm), 1], 128, shared, *layers, q, scale, count)
    }

    /// Whether [`Self::linear_f32_row`] can take rows of `k` inputs.
    pub(crate) fn takes_float_row(k: usize, parts: usize) -> bool {
        (4 * k).next_multiple_of(16) + parts * pad_k(k) <= BLOCK_MEMORY - (4 << 10)
    }

    /// Layers over one token `x [k] f32`, which every block norms (where there is a norm) and quantises for itself.
    pub(crate) fn linear_i8_of_floats(&self, layers: &Layers, x: At, norm: At, eps: f32) -> Result {
        let (k, parts) = (layers.k as usize, layers.parts as usize);
        let kernel = if parts == 1 { "gemv_f32_1" } else { "gemv_f32_2" };
        let shared = (4 * k).next_multiple_of(16) + parts * pad_k(k);
        launch!(self, kernel, [layers.groups(1), 1, 1], 256, shared, *layers, x, norm, eps)
    }

    /// `out [m, end − first] = x [m, k] · w [n, k]ᵀ + bias` over plain rows in F16 (`half`) or F32.
    #[expect(clippy::too_many_arguments, reason = "those of the kernel")]
    pub(crate) fn linear_float(
        &self,
        x: At,
        (w, half): (At, bool),
        bias: At,
        out: At,
        [m, k]: [usize; 2],
        [first, end]: [usize; 2],
        residual: bool,
    ) -> Result {
        let kernel = if half { "linear_f16" } else { "linear_f32" };
        let grid = [(end - first).div_ceil(16), m, 1];
        let (k, first, end, residual) = (k as i32, first as i32, end as i32, i32::from(residual));
        launch!(self, kernel, grid, 256, 0, x, w, bias, out, k, first, end, residual)
    }

    /// Norms of the heads, rotation of the keys, and the arena: `q [rows, n_heads · head_dim]` in place, `k, v [rows, n_kv_heads · head_dim]`.
    pub(crate) fn store_heads(
        &self,
        shape: HeadShape,
        norms: HeadNorms,
        s: StepAt,
        q: At,
        k: At,
        v: At,
    ) -> Result {
        let items = (shape.rows * (shape.n_heads + 2 * shape.n_kv_heads)) as usize;
        let shared = 4 * 4 * shape.head_dim as usize;
        launch!(self, "store_heads", [items.div_ceil(4), 1, 1], 128, shared, shape, norms, s, q, k, v)
    }

    /// Attention of `q [rows, n_heads · head_dim]` over few keys of an INT8 arena → `out`, alike. `units`: a list of `count` units on the card.
    pub(crate) fn attention_i8(
        &self,
        shape: AttentionShape,
        (units, count): (At, usize),
        s: StepAt,
        bias: At,
        q: At,
        out: At,
    ) -> Result {
        let grid = [count, shape.n_kv_heads as usize, shape.chunks()];
        let shared = Self::query_memory(&shape) + shape.unit_bytes();
        launch!(self, "attention_i8", grid, 128, shared, shape, units, s, bias, q, out)
    }

    /// The same of many rows, over any number of keys.
    pub(crate) fn attention_i8_rows(
        &self,
        shape: AttentionShape,
        (units, count): (At, usize),
        s: StepAt,
        bias: At,
        q: At,
        out: At,
    ) -> Result {
        // What two warps need of heads of 1,024 is what every card gives a block.
        let warps = if shape.head_dim <= 512 { 4 } else { 2 };
        let grid = [count.div_ceil(warps), shape.n_kv_heads as usize, shape.chunks()];
        let shared = warps * Self::query_memory(&shape);
        let kernel = if shape.head_dim <= 64 { "attention_i8_rows_4" } else { "attention_i8_rows_8" };
        let count = count as i32;
        launch!(self, kernel, grid, 32 * warps, shared, shape, units, count, s, bias, q, out)
    }

    /// The same of few rows: the keys of a query are split over `splits` blocks. `scratch` has [`AttentionShape::scratch_split`] bytes.
    #[expect(clippy::too_many_arguments, reason = "those of the kernels")]
    pub(crate) fn attention_i8_split(
        &self,
        shape: AttentionShape,
        (units, count): (At, usize),
        s: StepAt,
        bias: At,
        q: At,
        out: At,
        (scratch, splits): (At, usize),
    ) -> Result {
        let grid = [count, shape.n_kv_heads as usize, shape.chunks() * splits];
        let memory = [Self::query_memory(&shape), 2 * UNIT_QUERIES * (KV_BLOCK * shape.range(splits) + 16)];
        let splits = splits as i32;
        launch!(
            self,
            "attention_i8_scores",
            grid,
            128,
            memory[0],
            shape,
            units,
            s,
            bias,
            q,
            splits,
            scratch
        )?;
        launch!(self, "attention_i8_values", grid, 128, memory[1], shape, units, s, out, splits, scratch)
    }

    fn query_memory(shape: &AttentionShape) -> usize {
        UNIT_QUERIES * (pad_k(shape.head_dim as usize) + 16)
    }

    /// Attention over the arena of a float bundle; `scratch` has [`AttentionShape::scratch_f32`] bytes.
    #[expect(clippy::too_many_arguments, reason = "those of the kernel")]
    pub(crate) fn attention_f32(
        &self,
        shape: AttentionShape,
        count: usize,
        s: StepAt,
        bias: At,
        q: At,
        out: At,
        scratch: At,
    ) -> Result {
        let grid = [count, shape.n_heads as usize, 1];
        let shared = 4 * shape.head_dim as usize;
        launch!(self, "attention_f32", grid, threads(128), shared, shape, s, bias, q, out, scratch)
    }

    /// `y = norm(x)`, or `y += norm(x)`: `x, y [rows, k] f32`.
    pub(crate) fn rms_norm_rows(
        &self,
        x: At,
        (norm, eps): (At, f32),
        [rows, k]: [usize; 2],
        y: At,
        add: bool,
    ) -> Result {
        let (k32, add) = (k as i32, i32::from(add));
        launch!(self, "rms_norm_rows", [rows, 1, 1], threads(256), 4 * k, x, norm, eps, k32, y, add)
    }

    /// `gate = silu(gate) · up`, `n` values.
    pub(crate) fn silu_multiply(&self, gate: At, up: At, n: usize) -> Result {
        let ((grid, threads), count) = (each(n), n as i32);
        launch!(self, "silu_multiply", grid, threads, 0, gate, up, count)
    }

    /// Sets `flag` where one of `n` values is not finite.
    pub(crate) fn check_finite(&self, x: At, n: usize, flag: At) -> Result {
        let ((grid, threads), count) = (each(n), n as i32);
        launch!(self, "check_finite", grid, threads, 0, x, count, flag)
    }

    /// `out [n] = free + guidance · (guided − free)` of two rows of logits `[2, width] f32`, those that `ids [n] i32` names.
    pub(crate) fn guide_logits(
        &self,
        (logits, width): (At, usize),
        (ids, n): (At, usize),
        guidance: f32,
        out: At,
    ) -> Result {
        let (width, count) = (width as i32, n as i32);
        let (grid, threads) = each(n);
        launch!(self, "guide_logits", grid, threads, 0, logits, width, ids, count, guidance, out)
    }

    /// INT8 products in registers alone: `rounds` · 8 of 16 × 8 × 32 in each of 8 warps of `blocks` blocks. `out` is one value.
    pub(crate) fn peak_int8(&self, blocks: usize, rounds: usize, out: At) -> Result {
        let rounds = rounds as i32;
        launch!(self, "peak_int8", [blocks, 1, 1], 256, 0, rounds, out)
    }

    /// The input vectors of `rows` rows: `inputs [rows]` → `x [rows, d] f32`. Rows of a table that is nowhere stay as they are.
    pub(crate) fn embed(&self, tables: &Tables, inputs: At, rows: usize, x: At) -> Result {
        launch!(self, "embed", [rows, 1, 1], threads(128), 0, *tables, inputs, x)
    }

    /// The next token of each row of `logits`, drawn or the likeliest → `picked [rows] u32`. `flag` is set where a logit is not finite.
    pub(crate) fn pick(&self, logits: &Parts, draws: &Draws, rows: usize, flag: At, picked: At) -> Result {
        assert!(rows <= draws.0.len(), "{rows} rows");
        launch!(self, "pick", [rows, 1, 1], 512, 0, *logits, *draws, flag, picked)
    }
}
