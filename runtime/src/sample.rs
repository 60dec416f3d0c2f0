//! Logits to a token.

/// Index of the largest logit; of equals, the first. `None` if any is NaN or all are −∞.
#[must_use]
pub fn argmax(logits: &[f32]) -> Option<usize> {
    // In chunks without branches, which the compiler turns into vectors: a vocabulary is long.
    let (mut nan, mut largest) = (false, f32::NEG_INFINITY);
    for chunk in logits.chunks(64) {
        nan |= chunk.iter().fold(false, |nan, x| nan | x.is_nan());
        largest = chunk.iter().fold(largest, |a, &b| if b > a { b } else { a });
    }
    if nan || largest == f32::NEG_INFINITY {
        return None;
    }
    logits.iter().position(|&x| x == largest)
}

/// How tokens are drawn. The default is greedy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Logits are divided by this; 0 always takes the likeliest.
    pub temperature: f32,
    /// Only so many of the likeliest are drawn from; 0 means all.
    pub top_k: usize,
    /// Only the likeliest whose probabilities together reach this are drawn from; 1 means all.
    ///
    /// Source: Holtzman et al. 2019 (arXiv:1904.09751).
    pub top_p: f32,
    /// Makes the draws repeatable.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

/// Picks tokens: the likeliest, or at random from the likeliest.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplerOptions,
    state: u64,
    /// Candidates with their weights, likeliest first. Grows to the widest range of ids once.
    candidates: Vec<(usize, f64)>,
}

impl Sampler {
    /// Always the likeliest token.
    #[must_use]
    pub fn greedy() -> Self {
        Self::new(SamplerOptions::default())
    }

    /// A sampler at the start of its random numbers.
    ///
    /// # Panics
    /// If the temperature is negative, or `top_p` is not in 0 to 1.
    #[must_use]
    pub fn new(options: SamplerOptions) -> Self {
        assert!(options.temperature >= 0.0, "temperature {}", options.temperature);
        assert!((0.0..=1.0).contains(&options.top_p), "top_p {}", options.top_p);
        Self { options, state: options.seed, candidates: Vec::new() }
    }

    /// A token index, or `None` if the logits are not numbers.
    pub fn pick(&mut self, logits: &[f32]) -> Option<usize> {
        let best = argmax(logits)?;
        let SamplerOptions { temperature, top_k, top_p, .. } = self.options;
        if temperature == 0.0 {
            return Some(best);
        }
        // Softmax up to a factor; the likeliest token weighs 1.
        let weight = |logit: f32| (f64::from(logit - logits[best]) / f64::from(temperature)).exp();
        self.candidates.clear();
        self.candidates.extend(logits.iter().enumerate().map(|(at, &logit)| (at, weight(logit))));
        if top_k > 0 || top_p < 1.0 {
            let likelier = |a: &(usize, f64), b: &(usize, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
            if (1..logits.len()).contains(&top_k) {
                // The others need no order.
                self.candidates.select_nth_unstable_by(top_k - 1, likelier);
                self.candidates.truncate(top_k);
            }
            self.candidates.sort_unstable_by(likelier);
            let enough = f64::from(top_p) * self.total();
            let mut reached = 0.0;
            let last = self.candidates.iter().position(|(_, weight)| {
                reached += weight;
                reached >= enough
            });
            self.candidates.truncate(last.map_or(logits.len(), |last| last + 1));
        }
        let target = self.total() * self.next_unit();
        let mut reached = 0.0;
        let picked = self.candidates.iter().find(|(_, weight)| {
            reached += weight;
            reached > target
        });
        Some(picked.map_or(best, |&(at, _)| at))
    }

    fn total(&self) -> f64 {
        self.candidates.iter().map(|(_, weight)| weight).sum()
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
            let mut sampler = Sampler::new(SamplerOptions { temperature: 1.0, seed, ..Default::default() });
            (0..4000).map(|_| sampler.pick(&logits).unwrap()).collect::<Vec<_>>()
        };
        let first = draw(7);
        assert_eq!(first, draw(7));
        assert_ne!(first, draw(8));
        let ones = first.iter().filter(|&&t| t == 1).count();
        assert!((2850..3150).contains(&ones), "{ones} of 4000, 3000 expected");
        assert!(!first.contains(&2));
    }

    #[test]
    fn top_k_and_top_p_draw_from_the_likeliest_alone() {
        // Probabilities 0.1, 0.4, 0.3, 0.2.
        let logits = [0.1, 0.4, 0.3, 0.2].map(f32::ln);
        let drawn = |top_k, top_p| {
            let mut sampler =
                Sampler::new(SamplerOptions { temperature: 1.0, top_k, top_p, ..Default::default() });
            let mut drawn: Vec<usize> = (0..500).map(|_| sampler.pick(&logits).unwrap()).collect();
            drawn.sort_unstable();
            drawn.dedup();
            drawn
        };
        assert_eq!(drawn(0, 1.0), [0, 1, 2, 3]);
        assert_eq!(drawn(2, 1.0), [1, 2]);
        assert_eq!(drawn(0, 0.0), [1]);
        assert_eq!(drawn(0, 0.39), [1]);
        assert_eq!(drawn(0, 0.41), [1, 2]);
        assert_eq!(drawn(0, 0.75), [1, 2, 3]);
        // The share is one of what top_k leaves: 0.4 of 0.9 is less than a half.
        assert_eq!(drawn(3, 0.5), [1, 2]);
    }
}
