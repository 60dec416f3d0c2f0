//! Rotary angles of models that were stretched to more positions than they were first trained on.

use serde::{Deserialize, Serialize};

use super::check::within;
use super::{ConfigError, invalid};

/// What becomes of the frequencies `theta^(−2i / head_dim)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum RopeScaling {
    /// They stay.
    #[default]
    None,
    /// All are divided by one factor (Chen et al. 2023, arXiv:2306.15595).
    Linear {
        /// The factor.
        factor: f32,
    },
    /// Slow ones are divided by a factor, fast ones stay, with a slope between them, as in Llama 3.1 and later.
    Llama3 {
        /// The factor.
        factor: f32,
        /// Those that turn fewer times within the original positions are divided.
        low_freq_factor: f32,
        /// Those that turn more times within the original positions stay.
        high_freq_factor: f32,
        /// Positions that the model was first trained on.
        original_positions: usize,
    },
    /// `YaRN` (Peng et al. 2023, arXiv:2309.00071): as `Llama3` with a slope over the pairs' numbers, and longer queries and keys.
    Yarn {
        /// The factor.
        factor: f32,
        /// Pairs that turn more often within the original positions stay.
        beta_fast: f32,
        /// Pairs that turn less often within the original positions are divided.
        beta_slow: f32,
        /// Positions that the model was first trained on.
        original_positions: usize,
        /// What turned queries and keys are multiplied by.
        amplitude: f32,
    },
    /// Each is divided by a factor of its own, the tensor `rope.factors [head_dim / 2]`, as GGUF files have it.
    Factors,
}

impl RopeScaling {
    /// What `YaRN` multiplies queries and keys by where a model does not say: `0.1 · ln(factor) + 1`.
    #[must_use]
    pub fn yarn_amplitude(factor: f32) -> f32 {
        0.1 * factor.max(1.0).ln() + 1.0
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let positive = |x: f32| x > 0.0 && x.is_finite();
        let (factor, original_positions) = match *self {
            Self::None | Self::Factors => return Ok(()),
            Self::Linear { factor } => (factor, 1),
            Self::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_positions } => {
                if !(positive(low) && positive(high) && low < high) {
                    return Err(invalid(
                        "model.rope_scaling",
                        "low_freq_factor must be below high_freq_factor",
                    ));
                }
                (factor, original_positions)
            }
            Self::Yarn { factor, beta_fast, beta_slow, original_positions, amplitude } => {
                if !(positive(beta_fast) && positive(beta_slow) && beta_slow < beta_fast) {
                    return Err(invalid("model.rope_scaling", "beta_slow must be below beta_fast"));
                }
                if !positive(amplitude) {
                    return Err(invalid("model.rope_scaling.amplitude", "must be a positive number"));
                }
                (factor, original_positions)
            }
        };
        if !(factor >= 1.0 && factor.is_finite()) {
            return Err(invalid("model.rope_scaling.factor", "must be a number of at least 1"));
        }
        within("model.rope_scaling.original_positions", original_positions, 1, 1 << 24)
    }
}
