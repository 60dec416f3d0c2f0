//! AVX-512 VNNI kernels. Same names and signatures as `scalar`.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes. Flipping the top bit of an `i8` adds 128 to it as a `u8`, so
//! `Σ (x + 128) · w = Σ x · w + 128 · Σ w`; the sums of the weight rows are stored beside them and taken off at the start.

use core::arch::x86_64::*;
use std::hint::black_box;
use std::ops::Range;

use half::f16;

use super::attention::{KeyPanels, Queries, ValuePanels, check_scores_i8, check_weighted_sum_i8};
use super::float::Dots;
use super::{Epilogue, FloatRows, KV_BLOCK, PEAK_CHAINS, ProductI8, RowsI8, check_matmul_i8, float, scalar};
use crate::quant::{LANES, TILE, TILE_K, TILE_N, TilesI8, pad_k};
use crate::threads::Columns;

float::instantiate! { #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")] }

/// See [`super::scalar::matmul_i8`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn matmul_i8(x: RowsI8, w: TilesI8, rows: Range<usize>, epilogue: Epilogue, out: Columns<f32>) {
    let m = check_matmul_i8(x, &w, &rows, epilogue, &out);
    let mut group = rows.start / TILE_N;
    let end = rows.end.div_ceil(TILE_N);
    let mut product = ProductI8 { x, w, rows, epilogue, out };
    // 8 rows × 3 groups: 24 accumulators, 3 tiles and 1 broadcast in 32 registers.
    while group + 3 <= end {
        product.panel::<3>(m, group);
        group += 3;
    }
    while group < end {
        product.panel::<1>(m, group);
        group += 1;
    }
}

/// See [`super::scalar::checksum`].
#[target_feature(enable = "avx512f")]
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    let (lines, tail) = bytes.as_chunks::<256>();
    let mut acc = [_mm512_setzero_si512(); 256 / 64];
    for line in lines {
        for (acc, bytes) in acc.iter_mut().zip(line.as_chunks::<64>().0) {
            // SAFETY: `bytes` is 64 bytes.
            *acc = _mm512_xor_si512(*acc, unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) });
        }
    }
    let mut words = [0; 256];
    for (acc, bytes) in acc.into_iter().zip(words.as_chunks_mut::<64>().0) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), acc) };
    }
    scalar::checksum(&words) ^ scalar::checksum(tail)
}

/// See [`super::scalar::peak_i8`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn peak_i8(rounds: u64) -> u64 {
    let [x, y] = black_box([_mm512_set1_epi8(3), _mm512_set1_epi8(1)]);
    // Behind a black box they may differ, so the compiler cannot make one sum of them all.
    let mut acc = black_box([_mm512_setzero_si512(); PEAK_CHAINS]);
    for _ in 0..rounds {
        for acc in &mut acc {
            *acc = _mm512_dpbusd_epi32(*acc, x, y);
        }
    }
    black_box(acc);
    rounds * (PEAK_CHAINS * TILE) as u64
}

impl ProductI8<'_> {
    /// All rows against `T` groups of 16 output rows, which come from memory once and stay in the cache meanwhile.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn panel<const T: usize>(&mut self, m: usize, group: usize) {
        let whole = m / 8 * 8;
        for i in (0..whole).step_by(8) {
            self.block::<8, T>(i, group);
        }
        match m - whole {
            1 => self.block::<1, T>(whole, group),
            2 => self.block::<2, T>(whole, group),
            3 => self.block::<3, T>(whole, group),
            4 => self.block::<4, T>(whole, group),
            5 => self.block::<5, T>(whole, group),
            6 => self.block::<6, T>(whole, group),
            7 => self.block::<7, T>(whole, group),
            _ => {}
        }
    }

    /// `M` tokens from `i` on against `T` groups of 16 output rows from `group` on.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn block<const M: usize, const T: usize>(&mut self, i: usize, group: usize) {
        let k_pad = pad_k(self.w.k);
        let tokens = &self.x.q[i * k_pad..][..M * k_pad];
        let tiles = &self.w.tiles[group * TILE_N * k_pad..][..T * TILE_N * k_pad];
        let flip = _mm512_set1_epi8(i8::MIN);
        let start: [__m512i; T] = std::array::from_fn(|t| {
            let lanes = Lanes::of(group + t, 0..self.w.n);
            _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32::<7>(lanes.load_i32(self.w.sum)))
        });
        let mut acc = [start; M];
        for quad in 0..k_pad / TILE_K {
            let mut weights = [flip; T];
            for (t, w) in weights.iter_mut().enumerate() {
                // SAFETY: `quad < k_pad/4` and `tiles` holds T · k_pad/4 tiles of 64 bytes; loads are unaligned ones.
                *w = unsafe {
                    _mm512_loadu_si512(tiles.as_ptr().add(t * TILE_N * k_pad + quad * TILE).cast())
                };
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                // SAFETY: `tokens` holds M rows of k_pad bytes, and four from `4 · quad` on are inside one.
                let x =
                    unsafe { tokens.as_ptr().add(r * k_pad + quad * TILE_K).cast::<i32>().read_unaligned() };
                let x = _mm512_xor_si512(_mm512_set1_epi32(x), flip);
                for (acc, w) in acc.iter_mut().zip(weights) {
                    *acc = _mm512_dpbusd_epi32(*acc, x, w);
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            for (t, acc) in acc.into_iter().enumerate() {
                self.store_register(i + r, group + t, acc);
            }
        }
    }

    /// [`ProductI8::store`] from a register.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn store_register(&mut self, i: usize, group: usize, acc: __m512i) {
        let lanes = Lanes::of(group, self.rows.clone());
        let scale = _mm512_mul_ps(_mm512_set1_ps(self.x.scale[i]), lanes.load(self.w.scale));
        let mut y = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), scale);
        let part = i % self.x.parts;
        if let Some(bias) = self.epilogue.bias.filter(|_| part == 0) {
            y = _mm512_add_ps(y, lanes.load(bias));
        }
        let row = self.out.row(i / self.x.parts);
        let at = row.as_mut_ptr().wrapping_add(lanes.first).wrapping_sub(self.rows.start);
        if part > 0 || self.epilogue.residual {
            // SAFETY: as below; masked lanes are not read.
            y = _mm512_add_ps(unsafe { _mm512_maskz_loadu_ps(lanes.mask, at) }, y);
        }
        // SAFETY: only lanes of outputs within `rows` are written, and output `n` lies at `row[n − rows.start]`.
        unsafe { _mm512_mask_storeu_ps(at, lanes.mask, y) };
    }
}

/// The 16 outputs of a group, and which of them count.
#[derive(Clone, Copy)]
struct Lanes {
    first: usize,
    /// Never has a lane at or beyond the `rows.end` that it was made with.
    mask: __mmask16,
    end: usize,
}

impl Lanes {
    #[inline]
    fn of(group: usize, rows: Range<usize>) -> Self {
        let first = group * TILE_N;
        let below = |end: usize| (1u32 << end.saturating_sub(first).min(TILE_N)) - 1;
        Self { first, mask: (below(rows.end) & !below(rows.start)) as __mmask16, end: rows.end }
    }

    /// The group's lanes of a slice over all outputs; 0 where they do not count.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(self, x: &[f32]) -> __m512 {
        assert!(self.end <= x.len());
        // SAFETY: lanes at `end` and beyond are masked, and a masked lane is not read.
        unsafe { _mm512_maskz_loadu_ps(self.mask, x.as_ptr().wrapping_add(self.first)) }
    }

    /// As [`Self::load`].
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load_i32(self, x: &[i32]) -> __m512i {
        assert!(self.end <= x.len());
        // SAFETY: as in `load`.
        unsafe { _mm512_maskz_loadu_epi32(self.mask, x.as_ptr().wrapping_add(self.first)) }
    }
}

/// See [`super::scalar::matmul_f16`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn matmul_f16(
    x: &[f32],
    w: FloatRows<f16>,
    rows: Range<usize>,
    epilogue: Epilogue,
    out: Columns<f32>,
) {
    // SAFETY: `Avx512` needs the features that are enabled here.
    unsafe { float::matmul::<Avx512, _, 4, 4>(x, w, rows, epilogue, out) };
}

/// See [`super::scalar::matmul_f32`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn matmul_f32(
    x: &[f32],
    w: FloatRows<f32>,
    rows: Range<usize>,
    epilogue: Epilogue,
    out: Columns<f32>,
) {
    // SAFETY: as above.
    unsafe { float::matmul::<Avx512, _, 4, 4>(x, w, rows, epilogue, out) };
}

/// One register of 16 lanes for each sum.
struct Avx512;

/// Stamps [`Dots`] for one weight type, given its masked load of 16.
macro_rules! dots {
    ($weight:ty, $load:expr) => {
        impl Dots<$weight> for Avx512 {
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
            unsafe fn dots<const M: usize, const N: usize>(
                x: [&[f32]; M],
                w: [&[$weight]; N],
            ) -> [[f32; N]; M] {
                let k = x[0].len();
                assert!(x.iter().all(|x| x.len() == k) && w.iter().all(|w| w.len() == k));
                let mut acc = [[_mm512_setzero_ps(); N]; M];
                for at in (0..k).step_by(LANES) {
                    // Lanes beyond the end load as zeros, and adding 0 · 0 changes no sum: none of them is ever −0.
                    let mask = ((1u32 << (k - at).min(LANES)) - 1) as __mmask16;
                    let mut weights = [_mm512_setzero_ps(); N];
                    for (wide, w) in weights.iter_mut().zip(w) {
                        // SAFETY: `w` is `k` long and the mask ends there; masked lanes are not read.
                        *wide = unsafe { $load(mask, w.as_ptr().add(at)) };
                    }
                    for (acc, x) in acc.iter_mut().zip(x) {
                        // SAFETY: as above, for `x`.
                        let x = unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr().add(at)) };
                        for (acc, w) in acc.iter_mut().zip(weights) {
                            *acc = _mm512_add_ps(*acc, _mm512_mul_ps(x, w));
                        }
                    }
                }
                let mut sums = [[0.0; N]; M];
                for (sums, acc) in sums.iter_mut().zip(&acc) {
                    for (sum, acc) in sums.iter_mut().zip(acc) {
                        *sum = sum_register(*acc);
                    }
                }
                sums
            }
        }
    };
}

/// [`crate::quant::sum_lanes`] of a register.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn sum_register(lanes: __m512) -> f32 {
    let eight = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps::<1>(lanes));
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

dots!(f32, |mask, p: *const f32| _mm512_maskz_loadu_ps(mask, p));
dots!(f16, |mask, p: *const f16| _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p.cast())));

/// See [`super::scalar::scores_i8`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn scores_i8(q: Queries, k: KeyPanels, out: &mut [f32], stride: usize) {
    let m = check_scores_i8(q, k, out, stride);
    for (c, pair) in k.which.chunks(2).enumerate() {
        let out = &mut out[2 * c * KV_BLOCK..];
        match *pair {
            [a, b] => scores_panels(q, k, [a, b], m, out, stride),
            [a] => scores_panels(q, k, [a], m, out, stride),
            _ => {}
        }
    }
}

/// All queries against `T` panels.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn scores_panels<const T: usize>(
    q: Queries,
    k: KeyPanels,
    panels: [u32; T],
    m: usize,
    out: &mut [f32],
    stride: usize,
) {
    let whole = m / 8 * 8;
    for i in (0..whole).step_by(8) {
        scores_block::<8, T>(q, k, panels, i, out, stride);
    }
    match m - whole {
        1 => scores_block::<1, T>(q, k, panels, whole, out, stride),
        2 => scores_block::<2, T>(q, k, panels, whole, out, stride),
        3 => scores_block::<3, T>(q, k, panels, whole, out, stride),
        4 => scores_block::<4, T>(q, k, panels, whole, out, stride),
        5 => scores_block::<5, T>(q, k, panels, whole, out, stride),
        6 => scores_block::<6, T>(q, k, panels, whole, out, stride),
        7 => scores_block::<7, T>(q, k, panels, whole, out, stride),
        _ => {}
    }
}

/// `M` queries from `i` on against `T` panels; the loop of [`ProductI8::block`] with panels for groups.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn scores_block<const M: usize, const T: usize>(
    q: Queries,
    k: KeyPanels,
    panels: [u32; T],
    i: usize,
    out: &mut [f32],
    stride: usize,
) {
    let (k_pad, panel_len) = (pad_k(k.head_dim), KeyPanels::panel_len(k.head_dim));
    let rows = &q.q[i * k_pad..][..M * k_pad];
    let tiles = panels.map(|p| &k.tiles[p as usize * panel_len..][..panel_len]);
    let flip = _mm512_set1_epi8(i8::MIN);
    let start: [__m512i; T] = panels.map(|p| {
        let sum = &k.sum[p as usize * KV_BLOCK..][..KV_BLOCK];
        // SAFETY: `sum` is 16 elements.
        let sum = unsafe { _mm512_loadu_si512(sum.as_ptr().cast()) };
        _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32::<7>(sum))
    });
    let mut acc = [start; M];
    for quad in 0..k_pad / TILE_K {
        let mut keys = [flip; T];
        for (keys, tiles) in keys.iter_mut().zip(tiles) {
            // SAFETY: `quad < k_pad/4`, and `tiles` is as many tiles of 64 bytes.
            *keys = unsafe { _mm512_loadu_si512(tiles.as_ptr().add(quad * TILE).cast()) };
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: `rows` holds M rows of k_pad bytes, and four from `4 · quad` on are inside one.
            let x = unsafe { rows.as_ptr().add(r * k_pad + quad * TILE_K).cast::<i32>().read_unaligned() };
            let x = _mm512_xor_si512(_mm512_set1_epi32(x), flip);
            for (acc, keys) in acc.iter_mut().zip(keys) {
                *acc = _mm512_dpbusd_epi32(*acc, x, keys);
            }
        }
    }
    for (t, p) in panels.into_iter().enumerate() {
        let scale = &k.scale[p as usize * KV_BLOCK..][..KV_BLOCK];
        // SAFETY: `scale` is 16 elements.
        let scale = unsafe { _mm512_loadu_ps(scale.as_ptr()) };
        for (r, acc) in acc.iter().enumerate() {
            let scale = _mm512_mul_ps(_mm512_set1_ps(q.scale[i + r]), scale);
            let s = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[t]), scale);
            let s = _mm512_add_ps(s, _mm512_set1_ps(q.bias[i + r]));
            let out = &mut out[(i + r) * stride + t * KV_BLOCK..][..KV_BLOCK];
            // SAFETY: `out` is 16 elements.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), s) };
        }
    }
}

/// See [`super::scalar::weighted_sum_i8`]. The weights are unsigned, so nothing has to be corrected here.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn weighted_sum_i8(p: &[i8], scale: &[f32], v: ValuePanels, out: &mut [f32]) {
    let m = check_weighted_sum_i8(p, scale, v, out);
    let groups = v.head_dim.div_ceil(TILE_N);
    let mut group = 0;
    // As many rows as leave no accumulator free: two for each group and row, 24 in all.
    while group + 4 <= groups {
        weighted_groups::<3, 4>(p, scale, v, m, group, out);
        group += 4;
    }
    while group + 2 <= groups {
        weighted_groups::<6, 2>(p, scale, v, m, group, out);
        group += 2;
    }
    if group < groups {
        weighted_groups::<8, 1>(p, scale, v, m, group, out);
    }
}

/// All rows, `R` at a time, against `T` groups of 16 outputs.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn weighted_groups<const R: usize, const T: usize>(
    p: &[i8],
    scale: &[f32],
    v: ValuePanels,
    m: usize,
    group: usize,
    out: &mut [f32],
) {
    let whole = m / R * R;
    for i in (0..whole).step_by(R) {
        weighted_block::<R, T>(p, scale, v, i, group, out);
    }
    for i in whole..m {
        weighted_block::<1, T>(p, scale, v, i, group, out);
    }
}

/// `R` rows from `i` on against `T` groups of 16 outputs from `group` on.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn weighted_block<const R: usize, const T: usize>(
    p: &[i8],
    scale: &[f32],
    v: ValuePanels,
    i: usize,
    group: usize,
    out: &mut [f32],
) {
    let (keys, panel_len) = (v.which.len() * KV_BLOCK, ValuePanels::panel_len(v.head_dim));
    let rows = &p[2 * i * keys..][..2 * R * keys];
    let mut acc = [[[_mm512_setzero_si512(); 2]; T]; R];
    for (c, &panel) in v.which.iter().enumerate() {
        let tiles =
            &v.tiles[panel as usize * panel_len + group * KV_BLOCK * TILE_N..][..T * KV_BLOCK * TILE_N];
        for quad in 0..KV_BLOCK / TILE_K {
            let mut values = [_mm512_setzero_si512(); T];
            for (t, values) in values.iter_mut().enumerate() {
                // SAFETY: `tiles` holds four tiles of 64 bytes for each of T groups.
                *values = unsafe {
                    _mm512_loadu_si512(tiles.as_ptr().add(t * KV_BLOCK * TILE_N + quad * TILE).cast())
                };
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                for part in 0..2 {
                    let at = (2 * r + part) * keys + c * KV_BLOCK + quad * TILE_K;
                    // SAFETY: `rows` holds 2R rows of `keys` bytes, and four from `16c + 4 · quad` on are inside one.
                    let x = unsafe { rows.as_ptr().add(at).cast::<i32>().read_unaligned() };
                    let x = _mm512_set1_epi32(x);
                    for (acc, values) in acc.iter_mut().zip(values) {
                        acc[part] = _mm512_dpbusd_epi32(acc[part], x, values);
                    }
                }
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        let out = &mut out[(i + r) * v.head_dim..][..v.head_dim];
        for (t, [high, low]) in acc.iter().enumerate() {
            let lanes = Lanes::of(group + t, 0..v.head_dim);
            let high = _mm512_mul_ps(_mm512_cvtepi32_ps(*high), _mm512_set1_ps(128.0));
            let y = _mm512_add_ps(high, _mm512_cvtepi32_ps(*low));
            let y = _mm512_mul_ps(y, _mm512_set1_ps(scale[i + r]));
            let at = out.as_mut_ptr().wrapping_add(lanes.first);
            // SAFETY: only lanes below `head_dim` are written.
            unsafe { _mm512_mask_storeu_ps(at, lanes.mask, y) };
        }
    }
}
