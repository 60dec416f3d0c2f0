//! Chooses one kernel set per process.

use std::ops::Range;
use std::sync::OnceLock;

use half::f16;

use super::attention::{KvPanels, Queries};
use super::{Epilogue, FloatRows, RowsI8, scalar};
use crate::quant::TilesI8;
use crate::threads::Columns;

/// A matrix product over float weights: activations `[m, k]`, weights, output rows, epilogue, out `[m, rows.len()]`.
type MatmulFloat<T> = fn(&[f32], FloatRows<T>, Range<usize>, Epilogue, Columns<f32>);

/// One function per kernel, all from the same instruction set. Every one checks its lengths and panics when they do not fit.
#[derive(Clone, Copy, Debug)]
pub struct Kernels {
    /// Name for logs and benchmarks, e.g. `"avx512-vnni"`.
    pub name: &'static str,
    /// Whether the INT8 products take their left operand as `x + 128` in unsigned bytes: `vpdpbusd` wants that.
    unsigned_operands: bool,
    /// Quantises one row: `x [k]`, `q [≥ k]` (tail zeroed) → its scale. See [`crate::quant::quantise_row`].
    pub quantise_row: fn(&[f32], &mut [i8]) -> f32,
    /// INT8 matrix product: activations, weights, output rows (any bounds), epilogue, out `[m, rows.len()]`.
    pub matmul_i8: fn(RowsI8, TilesI8, Range<usize>, Epilogue, Columns<f32>),
    /// The same over half weights.
    pub matmul_f16: MatmulFloat<f16>,
    /// The same over single weights.
    pub matmul_f32: MatmulFloat<f32>,
    /// In place over rows of `w`: `x`, `w`, eps.
    pub rms_norm_f32: fn(&mut [f32], &[f32], f32),
    /// In place over one row.
    pub softmax_f32: fn(&mut [f32]),
    /// In place.
    pub silu_f32: fn(&mut [f32]),
    /// `gate = silu(gate) · up`: `gate`, `up`.
    pub silu_mul_f32: fn(&mut [f32], &[f32]),
    /// Rotates in place: `x [heads, head_dim]`, `cos`, `sin [head_dim/2]`.
    pub rope_f32: fn(&mut [f32], &[f32], &[f32]),
    /// Queries against panels of keys; scores of row `i` go to `out[i · stride..]`. See [`super::attention`].
    pub scores_i8: fn(Queries, KvPanels, &mut [f32], usize),
    /// Scores `[keys]`, scales of the values `[keys]` and their factor → weights `[2, keys]` and the sum of exponentials.
    pub softmax_u14: fn(&[f32], &[f32], f32, &mut [i8]) -> f32,
    /// Weights `[m, 2, keys]`, scale of each row, panels of values → out `[m, head_dim]`.
    pub weighted_sum_i8: fn(&[i8], &[f32], KvPanels, &mut [f32]),
    /// One query against up to 16 keys in floats: `q [head_dim]`, `k [keys, head_dim]`, out `[keys]`.
    pub scores_f32: fn(&[f32], &[f32], &mut [f32]),
    /// Adds up to 16 weighted values in floats: `p [keys]`, `v [keys, head_dim]`, out `[head_dim]`, accumulated.
    pub weighted_sum_f32: fn(&[f32], &[f32], &mut [f32]),
    /// Reads memory and does little else: the exclusive or of its little-endian words of eight bytes. See [`crate::limits`].
    pub checksum: fn(&[u8]) -> u64,
    /// Keeps the set's INT8 instruction busy for so many rounds; returns the multiply-accumulates done. See [`crate::limits`].
    pub peak_i8: fn(u64) -> u64,
}

/// The set of a module whose functions need features that have just been detected.
macro_rules! detected_set {
    ($name:literal, $module:ident) => {
        detected_set!(@ $name, $module,
            quantise_row(x, q),
            matmul_i8(x, w, rows, epilogue, out),
            matmul_f16(x, w, rows, epilogue, out),
            matmul_f32(x, w, rows, epilogue, out),
            rms_norm_f32(x, w, eps),
            softmax_f32(x),
            silu_f32(x),
            silu_mul_f32(gate, up),
            rope_f32(x, cos, sin),
            scores_i8(q, kv, out, stride),
            softmax_u14(s, v_scale, c, p),
            weighted_sum_i8(p, scale, kv, out),
            scores_f32(q, k, out),
            weighted_sum_f32(p, v, out),
            checksum(bytes),
            peak_i8(rounds),
        )
    };
    (@ $name:literal, $module:ident, $($kernel:ident($($argument:ident),*),)*) => {
        Kernels {
            name: $name,
            unsigned_operands: $module::UNSIGNED_OPERANDS,
            // SAFETY: this is only expanded after every feature that the module's functions enable was detected.
            $($kernel: |$($argument),*| unsafe { $module::$kernel($($argument),*) },)*
        }
    };
}

impl Kernels {
    /// The scalar definition. Always available.
    pub const SCALAR: Self = Self {
        name: "scalar",
        unsigned_operands: scalar::UNSIGNED_OPERANDS,
        quantise_row: scalar::quantise_row,
        matmul_i8: scalar::matmul_i8,
        matmul_f16: scalar::matmul_f16,
        matmul_f32: scalar::matmul_f32,
        rms_norm_f32: scalar::rms_norm_f32,
        softmax_f32: scalar::softmax_f32,
        silu_f32: scalar::silu_f32,
        silu_mul_f32: scalar::silu_mul_f32,
        rope_f32: scalar::rope_f32,
        scores_i8: scalar::scores_i8,
        softmax_u14: scalar::softmax_u14,
        weighted_sum_i8: scalar::weighted_sum_i8,
        scores_f32: scalar::scores_f32,
        weighted_sum_f32: scalar::weighted_sum_f32,
        checksum: scalar::checksum,
        peak_i8: scalar::peak_i8,
    };

    /// Turns quantised rows, in place, into the left operand of `matmul_i8` or `scores_i8`: once, where they are made, instead of in
    /// every inner loop that reads them.
    pub fn make_operand(&self, q: &mut [i8]) {
        if self.unsigned_operands {
            // Flipping the top bit adds 128.
            q.iter_mut().for_each(|q| *q ^= i8::MIN);
        }
    }

    /// The AVX2 set, if this CPU has it.
    #[cfg(target_arch = "x86_64")]
    pub fn avx2() -> Option<Self> {
        use super::avx2;
        let detected = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c");
        detected.then_some(detected_set!("avx2", avx2))
    }

    /// The AVX-512 VNNI set, if this CPU has it.
    #[cfg(target_arch = "x86_64")]
    pub fn avx512() -> Option<Self> {
        use super::avx512;
        let detected = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        detected.then_some(detected_set!("avx512-vnni", avx512))
    }

    /// The NEON set: every 64-bit Arm has it.
    #[cfg(target_arch = "aarch64")]
    pub fn neon() -> Option<Self> {
        use super::neon;
        std::arch::is_aarch64_feature_detected!("neon").then_some(detected_set!("neon", neon))
    }

    /// The NEON set with the dot product, if this CPU has it.
    #[cfg(target_arch = "aarch64")]
    pub fn neon_dotprod() -> Option<Self> {
        use super::neon_dotprod;
        let detected = Self::neon().is_some() && std::arch::is_aarch64_feature_detected!("dotprod");
        detected.then_some(detected_set!("neon-dotprod", neon_dotprod))
    }

    /// The NEON set with the matrix product, if this CPU has it.
    #[cfg(target_arch = "aarch64")]
    pub fn neon_i8mm() -> Option<Self> {
        use super::neon_i8mm;
        let detected = Self::neon_dotprod().is_some() && std::arch::is_aarch64_feature_detected!("i8mm");
        detected.then_some(detected_set!("neon-i8mm", neon_i8mm))
    }

    /// Every set this CPU can run, slowest (scalar) first. Tests and benchmarks iterate over it.
    pub fn available() -> &'static [Self] {
        static AVAILABLE: OnceLock<Vec<Kernels>> = OnceLock::new();
        AVAILABLE.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            let wide = [Self::avx2(), Self::avx512()];
            #[cfg(target_arch = "aarch64")]
            let wide = [Self::neon(), Self::neon_dotprod(), Self::neon_i8mm()];
            #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
            let wide = [];
            [Self::SCALAR].into_iter().chain(wide.into_iter().flatten()).collect()
        })
    }
}

/// The fastest set this CPU can run, chosen once.
pub fn kernels() -> &'static Kernels {
    Kernels::available().last().unwrap_or(&Kernels::SCALAR)
}
