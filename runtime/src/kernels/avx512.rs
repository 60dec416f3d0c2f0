//! AVX-512 VNNI kernels. Same names and signatures as `scalar`.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes. Operands are stored as `x + 128`, and
//! `Σ (x + 128) · w = Σ x · w + 128 · Σ w`; the sums of the weight rows are stored beside them and taken off at the start.
//!
//! Many rows go through blocks of 8 rows by 48 outputs: 24 sums, 3 tiles and 1 broadcast in 32 registers. A few rows (decoding) are a
//! stream: one group of 16 outputs after the other, so that a thread reads one ascending range of memory, with as many sums for
//! every row as hide the latency.
//!
//! What was found (Sapphire Rapids, one core, 96 rows, weights from memory; shares of the rate of `vpdpbusd` in registers): flipping
//! bytes in the inner loop takes a quarter of the slots of that instruction (63 %, flipped beforehand 95 % in the cache); all inputs at a
//! time leave 78 to 83 %, as the weights of a panel then come from the second cache for every block of rows; stretches of 512 inputs,
//! which stay in the first, 82 to 88 %; an epilogue that loads scales and divides row numbers once for a block and not once for a
//! register gives another 3 to 7. Asking for the next panel while this one is used is worth a tenth when weights come from memory.
//! What is left are the first panel of each share, which nobody asked for, and groups that are not a multiple of three.
//!
//! Where neighbours share the cores (a virtual machine), the loads are what suffers: the loop below, with everything in the first cache,
//! gave 0.49 to 0.90 of the register rate within a minute, while the same instruction on registers alone stayed where it was; without the
//! broadcasts of the rows it lost nothing, with empty instructions in their place neither, with the broadcasts alone 7 %. So a share of
//! the register peak says more about the host than about this file; `limits::cached_gops` measures the loop beside it. Shorter
//! and longer stretches (256 to 1,024), shares of 48 outputs handed out in order, and asking for the panel that the next share begins with
//! changed nothing that could be told from noise in prefills of 96 and 384 rows.

use core::arch::x86_64::*;
use std::hint::black_box;
use std::ops::Range;

use half::f16;

use super::float::Dots;
use super::{Epilogue, FloatRows, PEAK_CHAINS, ProductI8, RowsI8, check_matmul_i8, float, scalar};
use crate::quant::{LANES, TILE, TILE_K, TILE_N, TilesI8, pad_k};
use crate::threads::Columns;

mod attention;
pub(super) use attention::{scores_i8, softmax_u14, weighted_sum_i8};

float::instantiate! { #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")] }

/// See [`super::Kernels::make_operand`].
pub(super) const UNSIGNED_OPERANDS: bool = true;

/// Rows up to which the weights are streamed group by group.
const STREAM_ROWS: usize = 8;
/// Inputs of a stretch: 24 KiB of weights.
const STRETCH: usize = 512;
/// Blocks of 8 rows that meet a stretch of weights together.
const BLOCKS: usize = 12;
/// Bytes that a stream is asked for ahead of its use: the hardware's own look-ahead ends with each page of 4 KiB.
const AHEAD: usize = 4096;

/// See [`super::scalar::matmul_i8`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn matmul_i8(x: RowsI8, w: TilesI8, rows: Range<usize>, epilogue: Epilogue, out: Columns<f32>) {
    let m = check_matmul_i8(x, &w, &rows, epilogue, &out);
    let group = rows.start / TILE_N;
    let end = rows.end.div_ceil(TILE_N);
    let mut product = ProductI8 { x, w, rows, epilogue, out };
    if m <= STREAM_ROWS {
        (group..end).for_each(|group| product.stream_rows(m, group));
        return;
    }
    let mut sums = [[[_mm512_setzero_si512(); 3]; 8]; BLOCKS];
    for first in (0..m).step_by(8 * BLOCKS) {
        let rows = first..m.min(first + 8 * BLOCKS);
        let mut group = group;
        // Four are two times two: a single group has too few sums to hide the latency behind.
        while group < end {
            group += match end - group {
                1 => product.panel::<1>(rows.clone(), group, &mut sums),
                2 | 4 => product.panel::<2>(rows.clone(), group, &mut sums),
                _ => product.panel::<3>(rows.clone(), group, &mut sums),
            };
        }
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

/// The sums of a panel so far.
type Sums = [[[__m512i; 3]; 8]; BLOCKS];

impl ProductI8<'_> {
    /// Some rows against `T` groups of 16 output rows, a stretch of inputs at a time, so that the weights of a stretch stay in the
    /// first cache while all rows meet them. On the way the next groups are asked for, so that they have come from memory when it is
    /// their turn. Returns `T`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn panel<const T: usize>(&mut self, rows: Range<usize>, group: usize, sums: &mut Sums) -> usize {
        let k_pad = pad_k(self.w.k);
        // Beyond this call's outputs too: the next call goes on where this one ends, often enough.
        let next = &self.w.tiles[(group + T) * TILE_N * k_pad..];
        let next = &next[..next.len().min(T * TILE_N * k_pad)];
        let parts = k_pad.div_ceil(STRETCH) * rows.len().div_ceil(8);
        let mut ahead = next.chunks(next.len().div_ceil(parts).max(1));
        for first in (0..k_pad).step_by(STRETCH) {
            let inputs = first..k_pad.min(first + STRETCH);
            for (i, sums) in rows.clone().step_by(8).zip(sums.iter_mut()) {
                let (inputs, ahead) = (inputs.clone(), ahead.next().unwrap_or_default());
                match rows.end - i {
                    1 => self.block::<1, T>(i, group, inputs, ahead, sums),
                    2 => self.block::<2, T>(i, group, inputs, ahead, sums),
                    3 => self.block::<3, T>(i, group, inputs, ahead, sums),
                    4 => self.block::<4, T>(i, group, inputs, ahead, sums),
                    5 => self.block::<5, T>(i, group, inputs, ahead, sums),
                    6 => self.block::<6, T>(i, group, inputs, ahead, sums),
                    7 => self.block::<7, T>(i, group, inputs, ahead, sums),
                    _ => self.block::<8, T>(i, group, inputs, ahead, sums),
                }
            }
        }
        T
    }

    /// `M` rows from `i` on against `T` groups, over some inputs, a multiple of 32. The sums begin with the first inputs and go to
    /// the outputs with the last ones.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn block<const M: usize, const T: usize>(
        &mut self,
        i: usize,
        group: usize,
        inputs: Range<usize>,
        ahead: &[i8],
        sums: &mut [[__m512i; 3]; 8],
    ) {
        let k_pad = pad_k(self.w.k);
        let tokens = &self.x.q[i * k_pad..][..M * k_pad];
        let tiles = &self.w.tiles[group * TILE_N * k_pad..][..T * TILE_N * k_pad];
        assert!(inputs.end <= k_pad);
        let mut acc = [[_mm512_setzero_si512(); T]; M];
        if inputs.start == 0 {
            acc = [std::array::from_fn(|t| self.start(group + t)); M];
        } else {
            for (acc, sums) in acc.iter_mut().zip(&*sums) {
                acc.copy_from_slice(&sums[..T]);
            }
        }
        let steps = inputs.len() / 32;
        let lines = ahead.len().div_ceil(TILE).div_ceil(steps);
        for step in 0..steps {
            for line in 0..lines {
                _mm_prefetch::<_MM_HINT_T1>(ahead.as_ptr().wrapping_add((step * lines + line) * TILE));
            }
            for quad in 0..8 {
                let quad = inputs.start / TILE_K + 8 * step + quad;
                let mut weights = [_mm512_setzero_si512(); T];
                for (t, w) in weights.iter_mut().enumerate() {
                    // SAFETY: `quad < k_pad/4` and `tiles` holds T · k_pad/4 tiles of 64 bytes; loads are unaligned ones.
                    *w = unsafe {
                        _mm512_loadu_si512(tiles.as_ptr().add(t * TILE_N * k_pad + quad * TILE).cast())
                    };
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
        if inputs.end < k_pad {
            for (acc, sums) in acc.iter().zip(sums) {
                sums[..T].copy_from_slice(acc);
            }
        } else {
            self.store_registers(i, group, acc);
        }
    }

    /// What the sums of a group begin with.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn start(&self, group: usize) -> __m512i {
        let sum = Lanes::of(group, 0..self.w.n).load_i32(self.w.sum);
        _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32::<7>(sum))
    }

    /// At most [`STREAM_ROWS`] rows against one group.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn stream_rows(&mut self, m: usize, group: usize) {
        match m {
            1 => self.stream::<1, 8>(group),
            2 => self.stream::<2, 4>(group),
            3 => self.stream::<3, 4>(group),
            4 => self.stream::<4, 4>(group),
            5 => self.stream::<5, 2>(group),
            6 => self.stream::<6, 2>(group),
            7 => self.stream::<7, 2>(group),
            8 => self.stream::<8, 2>(group),
            _ => {}
        }
    }

    /// `M` rows against one group, with `U` accumulators a row, a divisor of 8.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn stream<const M: usize, const U: usize>(&mut self, group: usize) {
        let k_pad = pad_k(self.w.k);
        let tokens = &self.x.q[..M * k_pad];
        let tiles = &self.w.tiles[group * TILE_N * k_pad..][..TILE_N * k_pad];
        let zero = _mm512_setzero_si512();
        let mut acc = [[zero; M]; U];
        acc[0] = [self.start(group); M];
        for step in (0..k_pad / TILE_K).step_by(U) {
            for (u, acc) in acc.iter_mut().enumerate() {
                let quad = step + u;
                // SAFETY: `quad < k_pad/4`, a multiple of 8, and `tiles` holds as many tiles of 64 bytes.
                let at = unsafe { tiles.as_ptr().add(quad * TILE) };
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD));
                // SAFETY: as above; loads are unaligned ones.
                let weights = unsafe { _mm512_loadu_si512(at.cast()) };
                for (r, acc) in acc.iter_mut().enumerate() {
                    // SAFETY: `tokens` holds M rows of k_pad bytes, and four from `4 · quad` on are inside one.
                    let x = unsafe {
                        tokens.as_ptr().add(r * k_pad + quad * TILE_K).cast::<i32>().read_unaligned()
                    };
                    *acc = _mm512_dpbusd_epi32(*acc, _mm512_set1_epi32(x), weights);
                }
            }
        }
        let sum = |r: usize| acc.iter().fold(zero, |sum, acc| _mm512_add_epi32(sum, acc[r]));
        self.store_registers(0, group, std::array::from_fn::<_, M, _>(|r| [sum(r)]));
    }

    /// [`ProductI8::store`] from registers: `M` rows from `i` on of `T` groups.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn store_registers<const M: usize, const T: usize>(
        &mut self,
        i: usize,
        group: usize,
        acc: [[__m512i; T]; M],
    ) {
        let lanes: [_; T] = std::array::from_fn(|t| Lanes::of(group + t, self.rows.clone()));
        let mut scale = [_mm512_setzero_ps(); T];
        let mut bias = [_mm512_setzero_ps(); T];
        for (t, lanes) in lanes.into_iter().enumerate() {
            scale[t] = lanes.load(self.w.scale);
            if let Some(of_all) = self.epilogue.bias {
                bias[t] = lanes.load(of_all);
            }
        }
        let (mut token, mut part) = match self.x.parts {
            1 => (i, 0),
            parts => (i / parts, i % parts),
        };
        for (acc, &x_scale) in acc.iter().zip(&self.x.scale[i..]) {
            let x_scale = _mm512_set1_ps(x_scale);
            let row = self.out.row(token).as_mut_ptr();
            for t in 0..T {
                let mut y = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[t]), _mm512_mul_ps(x_scale, scale[t]));
                if part == 0 && self.epilogue.bias.is_some() {
                    y = _mm512_add_ps(y, bias[t]);
                }
                let at = row.wrapping_add(lanes[t].first).wrapping_sub(self.rows.start);
                if part > 0 || self.epilogue.residual {
                    // SAFETY: as below; masked lanes are not read.
                    y = _mm512_add_ps(unsafe { _mm512_maskz_loadu_ps(lanes[t].mask, at) }, y);
                }
                // SAFETY: only lanes of outputs within `rows` are written, and output `n` lies at `row[n − rows.start]`.
                unsafe { _mm512_mask_storeu_ps(at, lanes[t].mask, y) };
            }
            part += 1;
            if part == self.x.parts {
                (token, part) = (token + 1, 0);
            }
        }
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
