//! The sums of a group norm on the CPU, in the order that a card has too.

use super::{GROUP_EPS, GROUPS, STRIP};
use crate::quant::LANES;

/// The sums of a group norm: over the places of a strip one after the other, over strips in lanes and their tree, over the channels of a
/// group one after the other. All in F64, for a group may have millions of values.
pub(crate) struct GroupSums {
    /// `[channels]`
    strip: Vec<f64>,
    /// `[LANES, channels]`
    lanes: Vec<f64>,
}

impl GroupSums {
    /// For maps of at most so many channels.
    pub(crate) fn new(channels: usize) -> Self {
        Self { strip: vec![0.0; channels], lanes: vec![0.0; LANES * channels] }
    }

    /// Of each group its mean and `1 / √(variance + eps)`.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "sums in F64, results in F32"
    )]
    pub(crate) fn stats(&mut self, x: &[f32], channels: usize) -> [(f32, f32); GROUPS] {
        let n = (x.len() / GROUPS) as f64;
        let sums = self.of_groups(x, channels, &|_, x| x);
        let means = sums.map(|sum| sum / n);
        let sums = self.of_groups(x, channels, &|group, x| (x - means[group]) * (x - means[group]));
        std::array::from_fn(|g| (means[g] as f32, (1.0 / (sums[g] / n + GROUP_EPS).sqrt()) as f32))
    }

    /// `Σ f(group, x)` of each group.
    fn of_groups(&mut self, x: &[f32], channels: usize, f: &impl Fn(usize, f64) -> f64) -> [f64; GROUPS] {
        let (strip, lanes) = (&mut self.strip[..channels], &mut self.lanes[..LANES * channels]);
        let size = channels / GROUPS;
        lanes.fill(0.0);
        for (i, places) in x.chunks(STRIP * channels).enumerate() {
            strip.fill(0.0);
            for row in places.chunks_exact(channels) {
                let groups = strip.chunks_exact_mut(size).zip(row.chunks_exact(size)).enumerate();
                for (group, (sums, row)) in groups {
                    sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f(group, f64::from(x)));
                }
            }
            let lane = &mut lanes[i % LANES * channels..][..channels];
            lane.iter_mut().zip(&*strip).for_each(|(lane, sum)| *lane += sum);
        }
        let mut half = LANES / 2;
        while half > 0 {
            let (low, high) = lanes.split_at_mut(half * channels);
            low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
            half /= 2;
        }
        std::array::from_fn(|g| lanes[g * size..(g + 1) * size].iter().fold(0.0, |sum, x| sum + x))
    }
}
