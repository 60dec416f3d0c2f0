//! The one body of every float kernel, plain Rust in the order that [`crate::quant`] writes down.
//!
//! Each set compiles these bodies under its own target features ([`instantiate`]); since rustc neither reorders nor
//! fuses float operations, wider registers change the speed and not a bit of the result.

use std::ops::Range;

use half::f16;

use super::{Epilogue, FloatRows, KV_BLOCK, check_matmul_float};
use crate::quant::{LANES, exp_f32, exp2_f32, f16_to_f32, fold_lanes, silu, sum_lanes};
use crate::threads::Columns;

/// Stamps the float kernels into a kernel set: `instantiate! { #[target_feature(enable = "…")] }`.
macro_rules! instantiate {
    ($(#[$attribute:meta])*) => {
        $(#[$attribute])*
        pub(super) fn quantise_row(x: &[f32], q: &mut [i8]) -> f32 {
            $crate::quant::quantise_row(x, q)
        }
        $(#[$attribute])*
        pub(super) fn rms_norm_f32(x: &mut [f32], w: &[f32], eps: f32) {
            super::float::rms_norm(x, w, eps);
        }
        $(#[$attribute])*
        pub(super) fn softmax_f32(x: &mut [f32]) {
            super::float::softmax(x);
        }
        $(#[$attribute])*
        pub(super) fn silu_f32(x: &mut [f32]) {
            super::float::silu_inplace(x);
        }
        $(#[$attribute])*
        pub(super) fn silu_mul_f32(gate: &mut [f32], up: &[f32]) {
            super::float::silu_mul(gate, up);
        }
        $(#[$attribute])*
        pub(super) fn rope_f32(x: &mut [f32], cos: &[f32], sin: &[f32]) {
            super::float::rope(x, cos, sin);
        }
        $(#[$attribute])*
        pub(super) fn scores_f32(q: &[f32], k: &[f32], out: &mut [f32]) {
            super::float::scores(q, k, out);
        }
        $(#[$attribute])*
        pub(super) fn weighted_sum_f32(p: &[f32], v: &[f32], out: &mut [f32]) {
            super::float::weighted_sum(p, v, out);
        }
    };
}
pub(super) use instantiate;

/// How a set multiplies a few rows of activations by a few rows of weights of type `T`.
pub(super) trait Dots<T> {
    /// The lane sums of every pair, each in the order of [`crate::quant`].
    ///
    /// # Safety
    /// The CPU must have the set's features, and all rows must be equally long.
    unsafe fn dots<const M: usize, const N: usize>(x: [&[f32]; M], w: [&[T]; N]) -> [[f32; N]; M];
}

/// `x · wᵀ`, then the epilogue, `MR` tokens by `NR` output rows at a time; the blocking does not change the order within a sum.
///
/// # Safety
/// The CPU must have the features of `S`.
pub(super) unsafe fn matmul<S: Dots<T>, T, const MR: usize, const NR: usize>(
    x: &[f32],
    w: FloatRows<T>,
    rows: Range<usize>,
    epilogue: Epilogue,
    mut out: Columns<f32>,
) {
    let m = check_matmul_float(x, &w, &rows, epilogue, &out);
    let (tokens, weights) =
        (|i: usize| &x[i * w.k..(i + 1) * w.k], |n: usize| &w.rows[n * w.k..(n + 1) * w.k]);
    for n in rows.clone().step_by(NR) {
        // At the edges a block repeats its last row; repeated results are not stored.
        let block = std::array::from_fn(|j| weights((n + j).min(rows.end - 1)));
        let mut store = |i: usize, sums: [f32; NR]| {
            let out = out.row(i)[n - rows.start..].iter_mut();
            for ((n, sum), out) in (n..rows.end).zip(sums).zip(out) {
                let y = epilogue.bias.map_or(sum, |bias| sum + bias[n]);
                *out = if epilogue.residual { *out + y } else { y };
            }
        };
        if m < MR {
            for i in 0..m {
                // SAFETY: the caller vouches for the features; the closures above cut rows of `w.k`.
                let [sums] = unsafe { S::dots([tokens(i)], block) };
                store(i, sums);
            }
            continue;
        }
        for i in (0..m).step_by(MR) {
            let x = std::array::from_fn(|r| tokens((i + r).min(m - 1)));
            // SAFETY: as above.
            let sums: [[f32; NR]; MR] = unsafe { S::dots(x, block) };
            for (i, sums) in (i..m).zip(sums) {
                store(i, sums);
            }
        }
    }
}

/// A weight as a single, exactly.
pub(super) trait Widen: Copy {
    fn widen(self) -> f32;
}

impl Widen for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Widen for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f16_to_f32(self)
    }
}

/// The definition of [`Dots`], for sets without a better way.
pub(super) struct Plain;

impl<T: Widen> Dots<T> for Plain {
    unsafe fn dots<const M: usize, const N: usize>(x: [&[f32]; M], w: [&[T]; N]) -> [[f32; N]; M] {
        x.map(|x| w.map(|w| dot(x, w)))
    }
}

/// `Σ x · w` in lanes.
#[inline(always)]
fn dot<T: Widen>(x: &[f32], w: &[T]) -> f32 {
    let ((x_chunks, x_tail), (w_chunks, w_tail)) = (x.as_chunks::<LANES>(), w.as_chunks::<LANES>());
    let mut lanes = [0.0; LANES];
    for (x, w) in x_chunks.iter().zip(w_chunks) {
        for lane in 0..LANES {
            lanes[lane] += x[lane] * w[lane].widen();
        }
    }
    for (lane, (&x, &w)) in lanes.iter_mut().zip(x_tail.iter().zip(w_tail)) {
        *lane += x * w.widen();
    }
    sum_lanes(lanes)
}

/// Each row of `w.len()` becomes `x / √(mean x² + eps) · w`.
///
/// Source: Zhang and Sennrich 2019 (arXiv:1910.07467), equation 4.
#[inline(always)]
pub(super) fn rms_norm(x: &mut [f32], w: &[f32], eps: f32) {
    assert!(!w.is_empty() && x.len().is_multiple_of(w.len()), "{} values in rows of {}", x.len(), w.len());
    for x in x.chunks_exact_mut(w.len()) {
        let squares = reduce(x, |x| x * x);
        let inverse = 1.0 / (squares / w.len() as f32 + eps).sqrt();
        for (x, &w) in x.iter_mut().zip(w) {
            *x = *x * inverse * w;
        }
    }
}

/// `e^(x − max) / Σ e^(x − max)`. A NaN anywhere makes every result NaN.
#[inline(always)]
pub(super) fn softmax(x: &mut [f32]) {
    let max = maximum(x);
    for x in x.iter_mut() {
        *x = exp_f32(*x - max);
    }
    let inverse = 1.0 / reduce(x, |x| x);
    for x in x.iter_mut() {
        *x *= inverse;
    }
}

/// The weights of [`super::attention`] from scores: `e = 2^(s − max)`, `t = round(e · v_scale · c) = 128 · high + low`; returns
/// `Σ e`. What is hidden has e = 2⁻¹⁰⁰, and a scale of 0 keeps it out. A NaN among the scores makes the sum NaN.
///
/// Shapes: `s, v_scale [keys] f32`, a multiple of 16, `p [2, keys] i8`, high parts first.
#[inline(always)]
pub(super) fn softmax_u14(s: &[f32], v_scale: &[f32], c: f32, p: &mut [i8]) -> f32 {
    const ROUND: f32 = 8_388_608.0; // 2²³: a sum with it has no bits for a fraction
    let keys = s.len();
    assert!(keys.is_multiple_of(LANES) && v_scale.len() == keys && p.len() == 2 * keys, "weights of {keys}");
    let max = maximum(s);
    let (high, low) = p.split_at_mut(keys);
    let mut lanes = [0.0; LANES];
    let values = s.as_chunks::<LANES>().0.iter().zip(v_scale.as_chunks::<LANES>().0);
    let parts = high.as_chunks_mut::<LANES>().0.iter_mut().zip(low.as_chunks_mut::<LANES>().0);
    for ((s, v), (high, low)) in values.zip(parts) {
        for lane in 0..LANES {
            let e = exp2_f32(s[lane] - max);
            lanes[lane] += e;
            let t = (e * v[lane] * c + ROUND).to_bits();
            high[lane] = (t >> 7 & 127) as i8;
            low[lane] = (t & 127) as i8;
        }
    }
    sum_lanes(lanes)
}

#[inline(always)]
pub(super) fn silu_inplace(x: &mut [f32]) {
    for x in x {
        *x = silu(*x);
    }
}

/// `gate = silu(gate) · up`.
#[inline(always)]
pub(super) fn silu_mul(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    for (gate, &up) in gate.iter_mut().zip(up) {
        *gate = silu(*gate) * up;
    }
}

/// Rotates every head by one set of angles: the pair `(i, i + head_dim/2)` by angle `i`.
///
/// Source: Su et al. 2021 (arXiv:2104.09864), in the half-split pairing of Llama.
#[inline(always)]
pub(super) fn rope(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    assert_eq!(sin.len(), half);
    assert!(half > 0 && x.len().is_multiple_of(2 * half), "{} values in heads of {}", x.len(), 2 * half);
    for head in x.chunks_exact_mut(2 * half) {
        let (a, b) = head.split_at_mut(half);
        for (((a, b), &cos), &sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// `out[j] = q · k[j]`.
#[inline(always)]
pub(super) fn scores(q: &[f32], k: &[f32], out: &mut [f32]) {
    assert!(out.len() <= KV_BLOCK && k.len() == out.len() * q.len(), "{} keys of {}", out.len(), q.len());
    for (j, out) in out.iter_mut().enumerate() {
        *out = dot(q, &k[j * q.len()..][..q.len()]);
    }
}

/// `out += Σ p[j] · v[j]`, j ascending.
#[inline(always)]
pub(super) fn weighted_sum(p: &[f32], v: &[f32], out: &mut [f32]) {
    assert!(p.len() <= KV_BLOCK && v.len() == p.len() * out.len(), "{} values of {}", p.len(), out.len());
    for (&p, v) in p.iter().zip(v.chunks_exact(out.len().max(1))) {
        for (out, &v) in out.iter_mut().zip(v) {
            *out += p * v;
        }
    }
}

/// `Σ f(x)` in lanes.
#[inline(always)]
fn reduce(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += f(chunk[lane]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(tail) {
        *lane += f(x);
    }
    sum_lanes(lanes)
}

/// The largest value, NaN passed over; −∞ of none.
#[inline(always)]
fn maximum(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], chunk[lane]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(tail) {
        *lane = larger(*lane, x);
    }
    fold_lanes(lanes, larger)
}
