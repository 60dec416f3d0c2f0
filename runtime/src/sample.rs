//! Logits to a token.

/// Index of the largest logit; of equals, the first. `None` if any is NaN or all are −∞.
#[must_use]
pub fn argmax(logits: &[f32]) -> Option<usize> {
    let mut best: Option<(usize, f32)> = None;
    for (at, &logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            return None;
        }
        if logit > best.map_or(f32::NEG_INFINITY, |(_, b)| b) {
            best = Some((at, logit));
        }
    }
    best.map(|(at, _)| at)
}

/// Picks tokens: the likeliest, or at random by temperature, with a seed that makes it repeatable.
#[derive(Clone, Debug)]
pub struct Sampler {
    temperature: f32,
    state: u64,
}

impl Sampler {
    /// Always the likeliest token.
    #[must_use]
    pub const fn greedy() -> Self {
        Self { temperature: 0.0, state: 0 }
    }

    /// At random by `exp(logit / temperature)`; 0 is greedy.
    ///
    /// # Panics
    /// If `temperature` is negative or not a number.
    #[must_use]
    pub fn with_temperature(temperature: f32, seed: u64) -> Self {
        assert!(temperature >= 0.0, "temperature {temperature}");
        Self { temperature, state: seed }
    }

    /// A token index, or `None` if the logits are not numbers.
    pub fn pick(&mut self, logits: &[f32]) -> Option<usize> {
        let best = argmax(logits)?;
        if self.temperature == 0.0 {
            return Some(best);
        }
        let (top, temperature) = (logits[best], self.temperature);
        let weight = |logit: f32| f64::from((logit - top) / temperature).exp();
        let total: f64 = logits.iter().map(|&logit| weight(logit)).sum();
        let target = total * self.next_unit();
        let mut reached = 0.0;
        let after = |(at, &logit): (usize, &f32)| {
            reached += weight(logit);
            (reached > target).then_some(at)
        };
        let picked = logits.iter().enumerate().find_map(after);
        Some(picked.unwrap_or(best))
    }

    /// The next number in [0, 1): splitmix64 (Steele, Lea and Flood 2014).
    fn next_unit(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        // 53 bits fill the mantissa exactly.
        #[allow(clippy::cast_precision_loss)]
        {
            (z >> 11) as f64 / (1_u64 << 53) as f64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equals_wins_and_nan_never_does() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), Some(1));
        assert_eq!(argmax(&[f32::NEG_INFINITY, -2.0]), Some(1));
        assert_eq!(argmax(&[1.0, f32::NAN]), None);
        assert_eq!(argmax(&[f32::NEG_INFINITY]), None);
        assert_eq!(argmax(&[]), None);
    }

    #[test]
    fn sampling_repeats_with_its_seed_and_follows_the_weights() {
        let logits = [0.0, (3.0_f32).ln(), f32::NEG_INFINITY];
        let draw = |seed| {
            let mut sampler = Sampler::with_temperature(1.0, seed);
            (0..4000).map(|_| sampler.pick(&logits).unwrap()).collect::<Vec<_>>()
        };
        let first = draw(7);
        assert_eq!(first, draw(7));
        assert_ne!(first, draw(8));
        let ones = first.iter().filter(|&&t| t == 1).count();
        assert!((2850..3150).contains(&ones), "{ones} of 4000, 3000 expected");
        assert!(!first.contains(&2));
    }
}
