//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864): the angles, and how stretched models scale them.

use std::f64::consts::TAU;

use crate::config::{DecoderConfig, RopeScaling};
use crate::engine::Engine;

/// Rotary angles: `cos, sin [positions, head_dim / 2]`, of as many positions as a sequence has reached so far.
#[derive(Default)]
pub(crate) struct Rope {
    /// Of each pair, in radians per position.
    frequency: Vec<f64>,
    /// What turned vectors are multiplied by.
    amplitude: f64,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// Room for the angles of positions `0..max_pos`; `factors [head_dim / 2]` belong to [`RopeScaling::Factors`].
    pub(crate) fn new(c: &DecoderConfig, factors: Option<&[f32]>, max_pos: usize) -> Self {
        let room = || Vec::with_capacity(max_pos * c.head_dim / 2);
        let amplitude = match c.rope_scaling {
            RopeScaling::Yarn { amplitude, .. } => amplitude.into(),
            _ => 1.0,
        };
        Self { frequency: frequencies(c, factors), amplitude, cos: room(), sin: room() }
    }

    /// Computes the angles of positions below `end` that are not there yet: a table of all of them would delay the first token.
    pub(crate) fn reach(&mut self, end: usize) {
        let half = self.frequency.len();
        for pos in self.cos.len() / half..end {
            for frequency in &self.frequency {
                // In double precision: at position 4,096 a single-precision product is off by 2e-4 rad. Exact below 2⁵².
                #[allow(clippy::cast_precision_loss)]
                let (sin, cos) = (pos as f64 * frequency).sin_cos();
                // The table is single precision, as everything that it multiplies.
                #[allow(clippy::cast_possible_truncation)]
                let (sin, cos) = ((self.amplitude * sin) as f32, (self.amplitude * cos) as f32);
                self.sin.push(sin);
                self.cos.push(cos);
            }
        }
    }

    /// Cosines and sines of some positions, which [`Self::reach`] reached: `[positions, head_dim / 2]` each.
    #[cfg(feature = "cuda")]
    pub(crate) fn angles(&self, positions: std::ops::Range<usize>) -> [&[f32]; 2] {
        let half = self.frequency.len();
        let at = positions.start * half..positions.end * half;
        [&self.cos[at.clone()], &self.sin[at]]
    }

    /// Rotates every head of `x [heads, head_dim]` to position `pos`.
    pub(crate) fn rotate(&self, e: &Engine, x: &mut [f32], pos: usize) {
        let half = self.frequency.len();
        let at = pos * half..(pos + 1) * half;
        e.rope_inplace(x, &self.cos[at.clone()], &self.sin[at]);
    }
}

/// `theta^(−2i / head_dim)` of each pair `i`, scaled.
///
/// Source: `modeling_rope_utils.py` of transformers; `ggml_rope_yarn_corr_dims` of ggml.
#[allow(clippy::cast_precision_loss, reason = "all far below 2⁵²")]
fn frequencies(c: &DecoderConfig, factors: Option<&[f32]>) -> Vec<f64> {
    let (theta, head_dim) = (f64::from(c.rope_theta), c.head_dim as f64);
    let plain = (0..c.head_dim / 2).map(|pair| theta.powf(-2.0 * pair as f64 / head_dim));
    match c.rope_scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|f| f / f64::from(factor)).collect(),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
            let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
            let scaled = |f: f64| {
                let turns = original_positions as f64 * f / TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                f * (kept + (1.0 - kept) / f64::from(factor))
            };
            plain.map(scaled).collect()
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original_positions, .. } => {
            // The pair that turns so often within the original positions.
            let pair_of = |turns: f32| {
                head_dim * (original_positions as f64 / (f64::from(turns) * TAU)).ln() / (2.0 * theta.ln())
            };
            let first = pair_of(beta_fast).floor().max(0.0);
            let last = pair_of(beta_slow).ceil().min(head_dim - 1.0);
            let slope = (last - first).max(0.001);
            let scaled = |(pair, f): (usize, f64)| {
                let kept = 1.0 - ((pair as f64 - first) / slope).clamp(0.0, 1.0);
                f * (kept + (1.0 - kept) / f64::from(factor))
            };
            plain.enumerate().map(scaled).collect()
        }
        RopeScaling::Factors => {
            plain.zip(factors.into_iter().flatten()).map(|(f, &factor)| f / f64::from(factor)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::nano;

    fn of(rope_scaling: RopeScaling, factors: Option<&[f32]>) -> Vec<f64> {
        let c = DecoderConfig { head_dim: 16, rope_theta: 10_000.0, rope_scaling, ..nano().decoder() };
        frequencies(&c, factors)
    }

    #[track_caller]
    fn close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= 1e-6 * e, "{found:?}, expected {expected:?}");
        }
    }

    #[test]
    fn frequencies_are_those_of_transformers() {
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_positions: 64,
        };
        let yarn = |beta_fast, beta_slow| RopeScaling::Yarn {
            factor: 4.0,
            beta_fast,
            beta_slow,
            original_positions: 256,
            amplitude: 1.0,
        };
        // What `ROPE_INIT_FUNCTIONS` of transformers 5.24 gives.
        let slow = [0.0025, 0.000_790_569_466, 0.00025, 0.000_079_056_946_6];
        for (scaling, fast) in [
            (RopeScaling::Linear { factor: 4.0 }, [0.25, 0.079_056_941, 0.025, 0.007_905_694_66]),
            (yarn(32.0, 1.0), [1.0, 0.256_935_06, 0.0625, 0.013_834_965_4]),
            (yarn(16.0, 2.0), [1.0, 0.237_170_815, 0.05, 0.007_905_694_66]),
            (llama3, [1.0, 0.244_384_587, 0.013_042_256_2, 0.003_952_847_33]),
        ] {
            let slow = slow.map(|f| if scaling == llama3 { f / 2.0 } else { f });
            close(&of(scaling, None), &[fast, slow].concat());
        }
    }

    #[test]
    fn factors_divide_each_pair() {
        let factors = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let plain = of(RopeScaling::None, None);
        let expected: Vec<f64> = plain.iter().zip(1..).map(|(f, factor)| f / f64::from(factor)).collect();
        close(&of(RopeScaling::Factors, Some(&factors)), &expected);
    }

    #[test]
    fn an_amplitude_lengthens_what_is_turned() {
        let scaling = RopeScaling::Yarn {
            factor: 1.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_positions: 64,
            amplitude: 1.5,
        };
        let c = DecoderConfig { head_dim: 16, rope_scaling: scaling, ..nano().decoder() };
        let mut rope = Rope::new(&c, None, 4);
        rope.reach(4);
        for (cos, sin) in rope.cos.iter().zip(&rope.sin) {
            assert!((cos.hypot(*sin) - 1.5).abs() <= 1e-6, "{cos} {sin}");
        }
    }
}
