//! Logits to a token.

use crate::quant::exp2_f32;

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

/// What one token is drawn with. Also the `Draw` of `pick.cu`, in which a card does the same.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Draw {
    /// Differences of logits become bits by this; 0 takes the likeliest.
    scale: f32,
    top_p: f32,
    top_k: u64,
    /// In [0, 1).
    unit: f64,
}

/// Picks tokens: the likeliest, or at random from the likeliest.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplerOptions,
    state: u64,
    /// Grows to the widest range of ids once.
    weights: Vec<u32>,
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
        Self { options, state: options.seed, weights: Vec::new() }
    }

    /// A token index, or `None` if the logits are not numbers.
    pub fn pick(&mut self, logits: &[f32]) -> Option<usize> {
        let best = argmax(logits)?;
        let draw = self.draw();
        if draw.scale == 0.0 {
            return Some(best);
        }
        let largest = logits[best];
        self.weights.clear();
        self.weights.extend(logits.iter().map(|logit| weigh(logit - largest, draw.scale)));
        Some(draw.token(&self.weights).unwrap_or(best))
    }

    /// What the next token is drawn with.
    pub(crate) fn draw(&mut self) -> Draw {
        let SamplerOptions { temperature, top_k, top_p, .. } = self.options;
        if temperature == 0.0 {
            return Draw::default();
        }
        let scale = (std::f32::consts::LOG2_E / temperature).clamp(f32::MIN_POSITIVE, f32::MAX);
        Draw { scale, top_p, top_k: top_k as u64, unit: self.next_unit() }
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

/// What the likeliest token weighs. Weights are whole numbers, so that sums of them have no order: a card draws what a CPU draws. What is
/// 2³⁰ times less likely than the likeliest is never drawn.
const LIKELIEST: f32 = 1_073_741_824.0;

/// The softmax of a logit that is so much below the largest, up to a factor.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to a little above 2³⁰")]
fn weigh(below: f32, scale: f32) -> u32 {
    (exp2_f32(below * scale) * LIKELIEST) as u32
}

/// How far one goes among tokens in order, likeliest first and of equals the first: to so many, or to where they weigh so much together.
#[derive(Clone, Copy)]
enum Until {
    Count(u64),
    Mass(u64),
}

/// Tokens of equal weight, and what stands before them in that order.
#[derive(Clone, Copy, Default)]
struct Level {
    weight: u32,
    /// What all weigh that weigh more.
    mass_before: u64,
    /// How many they are.
    count_before: u64,
}

impl Draw {
    /// The token that is drawn from those that `top_k` and `top_p` leave; nothing if all weigh nothing.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "sums of weights are below 2⁵³"
    )]
    fn token(&self, weights: &[u32]) -> Option<usize> {
        let mut total: u64 = weights.iter().copied().map(u64::from).sum();
        if self.top_k > 0 {
            let Level { weight, mass_before, count_before } = level(weights, Until::Count(self.top_k));
            total = total.min(mass_before + (self.top_k - count_before) * u64::from(weight));
        }
        if self.top_p < 1.0 {
            let enough = (f64::from(self.top_p) * total as f64).ceil().max(1.0) as u64;
            let Level { weight, mass_before, .. } = level(weights, Until::Mass(enough));
            let more = (enough - mass_before).div_ceil(u64::from(weight.max(1)));
            total = mass_before + more * u64::from(weight);
        }
        let target = ((total as f64 * self.unit) as u64).min(total.checked_sub(1)?);
        let Level { weight, mass_before, .. } = level(weights, Until::Mass(target + 1));
        let before = (target - mass_before) / u64::from(weight);
        let alike = weights.iter().enumerate().filter(|&(_, &other)| other == weight);
        alike.map(|(at, _)| at).nth(before as usize)
    }
}

/// Where one comes to in the order of tokens: byte by byte of the weight, the highest first, without sorting. Those that weigh nothing
/// are not there.
fn level(weights: &[u32], until: Until) -> Level {
    let mut level = Level::default();
    for shift in [24, 16, 8, 0] {
        let mut bins = [(0, 0); 256];
        for &weight in weights.iter().filter(|&&weight| weight > 0 && weight >> shift >> 8 == level.weight) {
            let (mass, count): &mut (u64, u64) = &mut bins[(weight >> shift & 255) as usize];
            *mass += u64::from(weight);
            *count += 1;
        }
        let mut byte = 255;
        loop {
            let (mass, count) = bins[byte as usize];
            let reached = match until {
                Until::Count(wanted) => level.count_before + count >= wanted,
                Until::Mass(wanted) => level.mass_before + mass >= wanted,
            };
            if reached || byte == 0 {
                break;
            }
            level.mass_before += mass;
            level.count_before += count;
            byte -= 1;
        }
        level.weight = level.weight << 8 | byte;
    }
    level
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

    /// The same by sorting, as the papers have it.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "sums of weights are below 2⁵³"
    )]
    fn sorted(draw: &Draw, weights: &[u32]) -> Option<usize> {
        let mut order: Vec<(usize, u64)> =
            weights.iter().map(|&w| u64::from(w)).enumerate().filter(|(_, w)| *w > 0).collect();
        order.sort_by_key(|&(at, weight)| (std::cmp::Reverse(weight), at));
        let total = |order: &[(usize, u64)]| order.iter().map(|(_, weight)| weight).sum::<u64>();
        if draw.top_k > 0 {
            order.truncate(draw.top_k as usize);
        }
        if draw.top_p < 1.0 {
            let enough = f64::from(draw.top_p) * total(&order) as f64;
            let mut reached = 0;
            let last = order.iter().position(|(_, weight)| {
                reached += weight;
                reached as f64 >= enough
            })?;
            order.truncate(last + 1);
        }
        let target = (total(&order) as f64 * draw.unit) as u64;
        let mut reached = 0;
        let picked = order.iter().find(|(_, weight)| {
            reached += weight;
            reached > target
        });
        picked.or(order.last()).map(|&(at, _)| at)
    }

    #[test]
    fn draws_without_sorting_are_those_of_the_definition() {
        let mut random = crate::kernels::tests::Random(9);
        let mut sampler = Sampler::new(SamplerOptions { temperature: 1.0, ..Default::default() });
        for n in [1, 2, 7, 300, 2112] {
            for round in 0..40 {
                let mut weights: Vec<u32> =
                    random.f32s(n).iter().map(|x| weigh(-9.0 * x.abs(), 1.4)).collect();
                match round % 4 {
                    0 => weights.iter_mut().for_each(|w| *w &= 0x3c00_0000),
                    1 => weights.fill(1 << 30),
                    2 => weights.iter_mut().skip(1).step_by(2).for_each(|w| *w = 0),
                    _ => {}
                }
                for (top_k, top_p) in
                    [(0, 1.0), (1, 1.0), (3, 1.0), (0, 0.0), (0, 0.3), (0, 0.97), (5, 0.5), (9999, 0.9)]
                {
                    let draw = Draw { top_k, top_p, ..sampler.draw() };
                    assert_eq!(draw.token(&weights), sorted(&draw, &weights), "{n} {round} {draw:?}");
                }
                for unit in [0.0, 1.0 - f64::EPSILON / 2.0] {
                    let draw = Draw { scale: 1.0, top_p: 1.0, top_k: 0, unit };
                    assert_eq!(draw.token(&weights), sorted(&draw, &weights), "{n} {round} {draw:?}");
                }
            }
        }
        let draw = Draw { scale: 1.0, top_p: 1.0, top_k: 0, unit: 0.5 };
        assert_eq!(draw.token(&[0, 0]), None);
    }

    #[test]
    fn extreme_temperatures_stay_numbers() {
        let logits = [1.0, 3.0e38, -3.0e38, 2.0];
        for temperature in [f32::MIN_POSITIVE, 1e-3, f32::MAX] {
            let mut sampler = Sampler::new(SamplerOptions { temperature, ..Default::default() });
            let picked = sampler.pick(&logits).unwrap();
            assert!(temperature == f32::MAX || picked == 1, "{temperature}: {picked}");
        }
    }
}
