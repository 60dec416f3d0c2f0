//! Attention: the loops of the linear layer with panels for groups, and the softmax between them.

use core::arch::x86_64::*;

use super::super::KV_BLOCK;
use super::super::attention::{KvPanels, Queries, check_scores_i8, check_weighted_sum_i8};
use super::Lanes;
use crate::quant::{EXP2, EXP2_LOWEST, LANES, TILE, TILE_K, TILE_N, pad_k};

/// See [`super::super::scalar::scores_i8`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(in crate::kernels) fn scores_i8(q: Queries, kv: KvPanels, out: &mut [f32], stride: usize) {
    let m = check_scores_i8(q, kv, out, stride);
    if m == 0 {
        return;
    }
    for (c, pair) in kv.which.chunks(2).enumerate() {
        let out = &mut out[2 * c * KV_BLOCK..];
        match *pair {
            [a, b] => scores_panels(q, kv, [a, b], m, out, stride),
            [a] => scores_panels(q, kv, [a], m, out, stride),
            _ => {}
        }
    }
}

/// All queries against `T` panels.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn scores_panels<const T: usize>(
    q: Queries,
    kv: KvPanels,
    panels: [u32; T],
    m: usize,
    out: &mut [f32],
    stride: usize,
) {
    let whole = m / 8 * 8;
    for i in (0..whole).step_by(8) {
        scores_block::<8, T>(q, kv, panels, i, out, stride);
    }
    match m - whole {
        1 => scores_block::<1, T>(q, kv, panels, whole, out, stride),
        2 => scores_block::<2, T>(q, kv, panels, whole, out, stride),
        3 => scores_block::<3, T>(q, kv, panels, whole, out, stride),
        4 => scores_block::<4, T>(q, kv, panels, whole, out, stride),
        5 => scores_block::<5, T>(q, kv, panels, whole, out, stride),
        6 => scores_block::<6, T>(q, kv, panels, whole, out, stride),
        7 => scores_block::<7, T>(q, kv, panels, whole, out, stride),
        _ => {}
    }
}

/// `M` queries from `i` on against `T` panels; the loop of [`ProductI8::block`] with panels for groups.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn scores_block<const M: usize, const T: usize>(
    q: Queries,
    kv: KvPanels,
    panels: [u32; T],
    i: usize,
    out: &mut [f32],
    stride: usize,
) {
    let k_pad = pad_k(kv.head_dim);
    let rows = &q.q[i * k_pad..][..M * k_pad];
    let tiles = panels.map(|p| kv.keys(p));
    let start: [__m512i; T] = panels.map(|p| {
        let sum = &kv.scales(p).key_sum;
        // SAFETY: `sum` is 16 elements.
        let sum = unsafe { _mm512_loadu_si512(sum.as_ptr().cast()) };
        _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32::<7>(sum))
    });
    let mut acc = [start; M];
    for quad in 0..k_pad / TILE_K {
        let mut keys = [_mm512_setzero_si512(); T];
        for (keys, tiles) in keys.iter_mut().zip(tiles) {
            // SAFETY: `quad < k_pad/4`, and `tiles` is as many tiles of 64 bytes.
            *keys = unsafe { _mm512_loadu_si512(tiles.as_ptr().add(quad * TILE).cast()) };
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: `rows` holds M rows of k_pad bytes, and four from `4 · quad` on are inside one.
            let x = unsafe { rows.as_ptr().add(r * k_pad + quad * TILE_K).cast::<i32>().read_unaligned() };
            let x = _mm512_set1_epi32(x);
            for (acc, keys) in acc.iter_mut().zip(keys) {
                *acc = _mm512_dpbusd_epi32(*acc, x, keys);
            }
        }
    }
    for (t, p) in panels.into_iter().enumerate() {
        // SAFETY: a panel's scales are 16 elements.
        let scale = unsafe { _mm512_loadu_ps(kv.scales(p).key.as_ptr()) };
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

/// See [`super::super::float::softmax_u14`]: the same operations, with the sum and the largest score in registers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(in crate::kernels) fn softmax_u14(s: &[f32], v_scale: &[f32], c: f32, p: &mut [i8]) -> f32 {
    let keys = s.len();
    assert!(keys.is_multiple_of(LANES) && v_scale.len() == keys && p.len() == 2 * keys, "weights of {keys}");
    let (s, v_scale) = (s.as_chunks::<LANES>().0, v_scale.as_chunks::<LANES>().0);
    let (high, low) = p.split_at_mut(keys);
    // SAFETY: a chunk is as long as a register.
    let load = |chunk: &[f32; LANES]| unsafe { _mm512_loadu_ps(chunk.as_ptr()) };
    // Of a NaN and a number `vmaxps` gives its second operand: NaN is passed over.
    let mut largest = [_mm512_set1_ps(f32::NEG_INFINITY); 4];
    for s in s.chunks(4) {
        for (largest, s) in largest.iter_mut().zip(s) {
            *largest = _mm512_max_ps(load(s), *largest);
        }
    }
    let [a, b, c0, d] = largest;
    let max = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c0, d)));
    let (max, c, seven) = (_mm512_set1_ps(max), _mm512_set1_ps(c), _mm512_set1_epi32(127));
    let mut sum = _mm512_setzero_ps();
    let parts = high.as_chunks_mut::<LANES>().0.iter_mut().zip(low.as_chunks_mut::<LANES>().0);
    for ((s, v), (high, low)) in s.iter().zip(v_scale).zip(parts) {
        let e = exp2(_mm512_sub_ps(load(s), max));
        sum = _mm512_add_ps(sum, e);
        let t = _mm512_mul_ps(_mm512_mul_ps(e, load(v)), c);
        let t = _mm512_castps_si512(_mm512_add_ps(t, _mm512_set1_ps(8_388_608.0)));
        let tops = _mm512_cvtepi32_epi8(_mm512_and_si512(_mm512_srli_epi32::<7>(t), seven));
        let rest = _mm512_cvtepi32_epi8(_mm512_and_si512(t, seven));
        // SAFETY: both are 16 bytes.
        unsafe { _mm_storeu_si128(high.as_mut_ptr().cast(), tops) };
        // SAFETY: as above.
        unsafe { _mm_storeu_si128(low.as_mut_ptr().cast(), rest) };
    }
    super::sum_register(sum)
}

/// [`crate::quant::exp2_f32`] of a register.
#[inline]
#[target_feature(enable = "avx512f")]
fn exp2(x: __m512) -> __m512 {
    let round = _mm512_set1_ps(12_582_912.0);
    let x = _mm512_min_ps(_mm512_set1_ps(128.0), _mm512_max_ps(_mm512_set1_ps(EXP2_LOWEST), x));
    let shifted = _mm512_add_ps(x, round);
    let r = _mm512_sub_ps(x, _mm512_sub_ps(shifted, round));
    let mut p = _mm512_set1_ps(EXP2[0]);
    for &c in &EXP2[1..] {
        p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(c));
    }
    let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
    let one = _mm512_castps_si512(_mm512_set1_ps(1.0));
    _mm512_mul_ps(p, _mm512_castsi512_ps(_mm512_add_epi32(exponent, one)))
}

/// See [`super::super::scalar::weighted_sum_i8`]. The weights are unsigned, so nothing has to be corrected here.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(in crate::kernels) fn weighted_sum_i8(p: &[i8], scale: &[f32], kv: KvPanels, out: &mut [f32]) {
    let m = check_weighted_sum_i8(p, scale, kv, out);
    let groups = kv.head_dim.div_ceil(TILE_N);
    let mut group = 0;
    // As many rows as leave no accumulator free: two for each group and row, 24 in all.
    while group + 4 <= groups {
        weighted_groups::<3, 4>(p, scale, kv, m, group, out);
        group += 4;
    }
    while group + 2 <= groups {
        weighted_groups::<6, 2>(p, scale, kv, m, group, out);
        group += 2;
    }
    if group < groups {
        weighted_groups::<8, 1>(p, scale, kv, m, group, out);
    }
}

/// All rows, `R` at a time, against `T` groups of 16 outputs.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn weighted_groups<const R: usize, const T: usize>(
    p: &[i8],
    scale: &[f32],
    kv: KvPanels,
    m: usize,
    group: usize,
    out: &mut [f32],
) {
    let whole = m / R * R;
    for i in (0..whole).step_by(R) {
        weighted_block::<R, T>(p, scale, kv, i, group, out);
    }
    for i in whole..m {
        weighted_block::<1, T>(p, scale, kv, i, group, out);
    }
}

/// `R` rows from `i` on against `T` groups of 16 outputs from `group` on.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn weighted_block<const R: usize, const T: usize>(
    p: &[i8],
    scale: &[f32],
    kv: KvPanels,
    i: usize,
    group: usize,
    out: &mut [f32],
) {
    let keys = kv.which.len() * KV_BLOCK;
    let rows = &p[2 * i * keys..][..2 * R * keys];
    let mut acc = [[[_mm512_setzero_si512(); 2]; T]; R];
    for (c, &panel) in kv.which.iter().enumerate() {
        let tiles = &kv.values(panel)[group * KV_BLOCK * TILE_N..][..T * KV_BLOCK * TILE_N];
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
        let out = &mut out[(i + r) * kv.head_dim..][..kv.head_dim];
        for (t, [high, low]) in acc.iter().enumerate() {
            let lanes = Lanes::of(group + t, 0..kv.head_dim);
            let high = _mm512_mul_ps(_mm512_cvtepi32_ps(*high), _mm512_set1_ps(128.0));
            let y = _mm512_add_ps(high, _mm512_cvtepi32_ps(*low));
            let y = _mm512_mul_ps(y, _mm512_set1_ps(scale[i + r]));
            let at = out.as_mut_ptr().wrapping_add(lanes.first);
            // SAFETY: only lanes below `head_dim` are written.
            unsafe { _mm512_mask_storeu_ps(at, lanes.mask, y) };
        }
    }
}
