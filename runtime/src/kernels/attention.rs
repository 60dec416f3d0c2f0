//! INT8 attention over panels of 16 tokens, for any set that can multiply tiles.
//!
//! Keys and values lie in the tile of the weights, `n16k4` ([`crate::quant`]): a panel of keys is a matrix of 16 outputs (tokens) by
//! `pad_k(head_dim)` inputs, a panel of values one of `pad_n(head_dim)` outputs by 16 inputs (tokens). So the inner loop of a
//! linear layer is the inner loop of both products here.
//!
//! Scores are in bits: `log2 e` is in the scale of the queries, so that the weights are powers of two.
//!
//! The weights of the second product are those powers times the scale of each value, in 14 bits: `t = round(e · v · c)` with
//! `c = 16383/amax v`, cut into two INT8 rows, `t = 128 · high + low`. An 8-bit weight would drop the tail of a softmax
//! that one token dominates.

use super::KV_BLOCK;
use crate::quant::{TILE_N, pad_k, pad_n};

/// The largest attention weight: 14 bits.
pub const WEIGHT_MAX: f32 = 16_383.0;

/// Queries against keys of one head, quantised.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// `[m, pad_k(head_dim)] i8`, tails zero, then made an operand by [`super::Kernels::make_operand`].
    pub q: &'a [i8],
    /// `[m] f32`, with `1/√head_dim` in it.
    pub scale: &'a [f32],
    /// `[m] f32`, added to every score of the row.
    pub bias: &'a [f32],
}

/// The scales of a panel's tokens.
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable)]
pub struct PanelScales {
    /// Of the keys.
    pub key: [f32; KV_BLOCK],
    /// The sum of each key, for dot products that want unsigned queries.
    pub key_sum: [i32; KV_BLOCK],
    /// Of the values; they go into the weights.
    pub value: [f32; KV_BLOCK],
}

/// Panels of keys and values, and which of them are meant, in order.
#[derive(Clone, Copy, Debug)]
pub struct KvPanels<'a> {
    /// `[panels, Σ Self::panel_len(head_dim)] i8`: tiles of 16 keys `[pad_k(head_dim)/4, 16, 4]`, then of their values
    /// `[pad_n(head_dim)/16, 4, 16, 4]`.
    pub tiles: &'a [i8],
    /// `[panels]`.
    pub scales: &'a [PanelScales],
    /// Indices of panels.
    pub which: &'a [u32],
    /// Length of a key and of a value.
    pub head_dim: usize,
}

impl<'a> KvPanels<'a> {
    /// Bytes of a panel: its keys, and its values.
    pub const fn panel_len(head_dim: usize) -> [usize; 2] {
        [KV_BLOCK * pad_k(head_dim), KV_BLOCK * pad_n(head_dim)]
    }

    /// The tiles of a panel's keys.
    #[inline(always)]
    pub(super) fn keys(&self, panel: u32) -> &'a [i8] {
        let [keys, values] = Self::panel_len(self.head_dim);
        &self.tiles[panel as usize * (keys + values)..][..keys]
    }

    /// The tiles of a panel's values.
    #[inline(always)]
    pub(super) fn values(&self, panel: u32) -> &'a [i8] {
        let [keys, values] = Self::panel_len(self.head_dim);
        &self.tiles[panel as usize * (keys + values) + keys..][..values]
    }

    /// The scales of a panel.
    #[inline(always)]
    pub fn scales(&self, panel: u32) -> &'a PanelScales {
        &self.scales[panel as usize]
    }

    fn check(&self) {
        let panels = self.scales.len();
        let len: usize = Self::panel_len(self.head_dim).iter().sum();
        assert_eq!(self.tiles.len(), panels * len, "tiles of {panels} panels");
        assert!(self.which.iter().all(|&p| (p as usize) < panels), "panels {:?} of {panels}", self.which);
    }
}

/// What every `scores_i8` asks of its arguments; returns `m`. Scores of row `i` go to `out[i · stride..]`, 16 for each panel.
///
/// # Panics
/// If a length does not fit or there is no such panel.
pub(super) fn check_scores_i8(q: Queries, kv: KvPanels, out: &[f32], stride: usize) -> usize {
    let (m, k_pad) = (q.scale.len(), pad_k(kv.head_dim));
    assert_eq!((q.q.len(), q.bias.len()), (m * k_pad, m), "queries of {m} rows of {}", kv.head_dim);
    kv.check();
    let width = kv.which.len() * KV_BLOCK;
    assert!(m == 0 || width <= stride && out.len() >= (m - 1) * stride + width, "scores of {m} × {width}");
    m
}

/// What every `weighted_sum_i8` asks of its arguments; returns `m`.
///
/// # Panics
/// If a length does not fit or there is no such panel.
pub(super) fn check_weighted_sum_i8(p: &[i8], scale: &[f32], kv: KvPanels, out: &[f32]) -> usize {
    let (m, keys) = (scale.len(), kv.which.len() * KV_BLOCK);
    assert_eq!(p.len(), 2 * m * keys, "weights of {m} rows in two parts of {keys}");
    assert_eq!(out.len(), m * kv.head_dim, "output of {m} × {}", kv.head_dim);
    kv.check();
    m
}

/// How a set multiplies a few rows of INT8 activations by the tiles of 16 outputs.
pub(super) trait DotTiles {
    /// The sums of `M` rows, `stride` apart in `x`, over `tiles.len()/16` inputs, which are a multiple of 16.
    ///
    /// # Safety
    /// The CPU must have the set's features.
    unsafe fn dot_tiles<const M: usize>(x: &[i8], stride: usize, tiles: &[i8]) -> [[i32; TILE_N]; M];
}

/// `out[i, c · 16 + j] = (q[i] · k[which[c], j]) as f32 · (scale[i] · k_scale[which[c], j]) + bias[i]`.
///
/// # Safety
/// The CPU must have the features of `D`.
#[inline(always)]
pub(super) unsafe fn scores<D: DotTiles>(q: Queries, kv: KvPanels, out: &mut [f32], stride: usize) {
    let m = check_scores_i8(q, kv, out, stride);
    let k_pad = pad_k(kv.head_dim);
    for (c, &panel) in kv.which.iter().enumerate() {
        let (tiles, k_scale) = (kv.keys(panel), &kv.scales(panel).key);
        let mut store = |i: usize, acc: [i32; TILE_N]| {
            let out = &mut out[i * stride + c * KV_BLOCK..][..KV_BLOCK];
            for ((out, &acc), &k_scale) in out.iter_mut().zip(&acc).zip(k_scale) {
                *out = acc as f32 * (q.scale[i] * k_scale) + q.bias[i];
            }
        };
        let whole = m / 4 * 4;
        for i in (0..whole).step_by(4) {
            // SAFETY: the caller vouches for the features.
            let acc = unsafe { D::dot_tiles::<4>(&q.q[i * k_pad..], k_pad, tiles) };
            acc.into_iter().enumerate().for_each(|(r, acc)| store(i + r, acc));
        }
        for i in whole..m {
            // SAFETY: as above.
            let [acc] = unsafe { D::dot_tiles::<1>(&q.q[i * k_pad..], k_pad, tiles) };
            store(i, acc);
        }
    }
}

/// `out[i] = ((Σ high · v) as f32 · 128 + (Σ low · v) as f32) · scale[i]`, the sums over every token of every panel.
///
/// Shapes: `p [m, 2, keys] i8` (high and low parts, 0 to 127), `scale [m] f32`, out `[m, head_dim] f32`.
///
/// # Safety
/// The CPU must have the features of `D`.
#[inline(always)]
pub(super) unsafe fn weighted_sum<D: DotTiles>(p: &[i8], scale: &[f32], kv: KvPanels, out: &mut [f32]) {
    let m = check_weighted_sum_i8(p, scale, kv, out);
    let (keys, group_len) = (kv.which.len() * KV_BLOCK, KV_BLOCK * TILE_N);
    for i in 0..m {
        let out = &mut out[i * kv.head_dim..][..kv.head_dim];
        for (group, out) in out.chunks_mut(TILE_N).enumerate() {
            let mut acc = [[0i32; TILE_N]; 2];
            for (c, &panel) in kv.which.iter().enumerate() {
                let tiles = &kv.values(panel)[group * group_len..][..group_len];
                // SAFETY: the caller vouches for the features.
                let sums = unsafe { D::dot_tiles::<2>(&p[2 * i * keys + c * KV_BLOCK..], keys, tiles) };
                for (acc, sums) in acc.iter_mut().zip(sums) {
                    acc.iter_mut().zip(sums).for_each(|(acc, sum)| *acc += sum);
                }
            }
            for (j, out) in out.iter_mut().enumerate() {
                *out = weighted(acc[0][j], acc[1][j], scale[i]);
            }
        }
    }
}

/// The two sums of an output, put together.
#[inline(always)]
pub(super) fn weighted(high: i32, low: i32, scale: f32) -> f32 {
    (high as f32 * 128.0 + low as f32) * scale
}

/// Stamps attention into a kernel set, given its [`DotTiles`].
macro_rules! instantiate_attention {
    ($dots:ty, $(#[$attribute:meta])*) => {
        /// See [`super::scalar::scores_i8`].
        $(#[$attribute])*
        pub(super) fn scores_i8(q: Queries, kv: KvPanels, out: &mut [f32], stride: usize) {
            // SAFETY: the features of the set's own dot product are enabled here.
            unsafe { super::attention::scores::<$dots>(q, kv, out, stride) }
        }

        /// See [`super::float::softmax_u14`].
        $(#[$attribute])*
        pub(super) fn softmax_u14(s: &[f32], v_scale: &[f32], c: f32, p: &mut [i8]) -> f32 {
            super::float::softmax_u14(s, v_scale, c, p)
        }

        /// See [`super::scalar::weighted_sum_i8`].
        $(#[$attribute])*
        pub(super) fn weighted_sum_i8(p: &[i8], scale: &[f32], kv: KvPanels, out: &mut [f32]) {
            // SAFETY: as above.
            unsafe { super::attention::weighted_sum::<$dots>(p, scale, kv, out) }
        }
    };
}
pub(super) use instantiate_attention;
