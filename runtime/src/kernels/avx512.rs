//! AVX-512 VNNI kernels. Same names and signatures as `scalar`.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes. Operands are stored as `x + 128`, and
//! `Σ (x + 128) · w = Σ x · w + 128 · Σ w`; the sums of the weight rows are stored beside them and taken off at the start.
//!
//! Many rows go through blocks of 8 rows by 48 outputs. A few rows (decoding) are a stream: one group of 16 outputs after the other,
//! so that a thread reads one ascending range of memory, with as many accumulators for every row as hide the latency.

use core::arch::x86_64::*;
use std::hint::black_box;
use std::ops::Range;

use half::f16;

use super::float::Dots;
use super::{Epilogue, FloatRows, PEAK_CHAINS, ProductI8, RowsI8, check_matmul_i8, float, scalar};
use crate::quant::{LANES, TILE, TILE_K, TILE_N, TilesI8, pad_k};
use crate::threads::Columns;

mod attention;
pub(super) use attention::{scores_i8, weighted_sum_i8};

float::instantiate! { #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")] }

/// See [`super::Kernels::make_operand`].
pub(super) const UNSIGNED_OPERANDS: bool = true;

/// Rows up to which the weights are streamed group by group.
const STREAM_ROWS: usize = 8;
/// Bytes that a stream is asked for ahead of its use: the hardware's own look-ahead ends with each page of 4 KiB.
const AHEAD: usize = 4096;

/// See [`super::scalar::matmul_i8`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn matmul_i8(x: RowsI8, w: TilesI8, rows: Range<usize>, epilogue: Epilogue, out: Columns<f32>) {
    let m = check_matmul_i8(x, &w, &rows, epilogue, &out);
    let mut group = rows.start / TILE_N;
    let end = rows.end.div_ceil(TILE_N);
    let mut product = ProductI8 { x, w, rows, epilogue, out };
    if m <= STREAM_ROWS {
        (group..end).for_each(|group| product.stream_rows(m, group));
        return;
    }
    // 8 rows × 3 groups: 24 accumulators, 3 tiles and 1 broadcast in 32 registers.
    while group + 3 <= end {
        product.panel::<3>(m, group);
        group += 3;
    }
    match end - group {
        1 => product.panel::<1>(m, group),
        2 => product.panel::<2>(m, group),
        _ => {}
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
            self.block::<8, T, 1>(i, group);
        }
        match m - whole {
            1 => self.block::<1, T, 1>(whole, group),
            2 => self.block::<2, T, 1>(whole, group),
            3 => self.block::<3, T, 1>(whole, group),
            4 => self.block::<4, T, 1>(whole, group),
            5 => self.block::<5, T, 1>(whole, group),
            6 => self.block::<6, T, 1>(whole, group),
            7 => self.block::<7, T, 1>(whole, group),
            _ => {}
        }
    }

    /// At most [`STREAM_ROWS`] rows against one group.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn stream_rows(&mut self, m: usize, group: usize) {
        match m {
            1 => self.block::<1, 1, 8>(0, group),
            2 => self.block::<2, 1, 4>(0, group),
            3 => self.block::<3, 1, 4>(0, group),
            4 => self.block::<4, 1, 4>(0, group),
            5 => self.block::<5, 1, 2>(0, group),
            6 => self.block::<6, 1, 2>(0, group),
            7 => self.block::<7, 1, 2>(0, group),
            8 => self.block::<8, 1, 2>(0, group),
            _ => {}
        }
    }

    /// `M` rows from `i` on against `T` groups of 16 output rows from `group` on, in `U` accumulators for each, a divisor of 8.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn block<const M: usize, const T: usize, const U: usize>(&mut self, i: usize, group: usize) {
        let k_pad = pad_k(self.w.k);
        let tokens = &self.x.q[i * k_pad..][..M * k_pad];
        let tiles = &self.w.tiles[group * TILE_N * k_pad..][..T * TILE_N * k_pad];
        let zero = _mm512_setzero_si512();
        let mut acc = [[[zero; T]; M]; U];
        acc[0] = [std::array::from_fn(|t| {
            let lanes = Lanes::of(group + t, 0..self.w.n);
            _mm512_sub_epi32(zero, _mm512_slli_epi32::<7>(lanes.load_i32(self.w.sum)))
        }); M];
        // `k_pad` is a multiple of 32: of eight quads.
        for step in (0..k_pad / TILE_K).step_by(U) {
            for (u, acc) in acc.iter_mut().enumerate() {
                let quad = step + u;
                let mut weights = [zero; T];
                for (t, w) in weights.iter_mut().enumerate() {
                    // SAFETY: `quad < k_pad/4` and `tiles` holds T · k_pad/4 tiles of 64 bytes; loads are unaligned ones.
                    let at = unsafe { tiles.as_ptr().add(t * TILE_N * k_pad + quad * TILE) };
                    if U > 1 {
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD));
                    }
                    // SAFETY: as above.
                    *w = unsafe { _mm512_loadu_si512(at.cast()) };
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    // SAFETY: `tokens` holds M rows of k_pad bytes, and four from `4 · quad` on are inside one.
                    let x = unsafe {
                        tokens.as_ptr().add(r * k_pad + quad * TILE_K).cast::<i32>().read_unaligned()
                    };
                    let x = _mm512_set1_epi32(x);
                    for (acc, w) in acc.iter_mut().zip(weights) {
                        *acc = _mm512_dpbusd_epi32(*acc, x, w);
                    }
                }
            }
        }
        for r in 0..M {
            for t in 0..T {
                let sum = acc.iter().fold(zero, |sum, acc| _mm512_add_epi32(sum, acc[r][t]));
                self.store_register(i + r, group + t, sum);
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
