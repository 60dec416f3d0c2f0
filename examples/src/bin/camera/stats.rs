//! Percentiles over the last few seconds of each stage.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use crate::run::Seen;

/// Frames that the percentiles look back on.
const WINDOW: usize = 256;
/// The stages, as they are called on the screen.
pub(crate) const STAGES: [&str; 5] = ["decode", "tokenize", "prefill", "generate", "age"];

/// The newest samples of each stage.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    samples: [VecDeque<f64>; STAGES.len()],
    times: VecDeque<Instant>,
}

/// Half and all but one in twenty of the samples lie below.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Percentiles {
    /// Median, in milliseconds.
    pub(crate) p50: f64,
    /// 95th percentile, in milliseconds.
    pub(crate) p95: f64,
}

/// What a person wants to know of the last few seconds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Summary {
    /// Processed frames a second.
    pub(crate) frames_per_s: f64,
    /// In the order of [`STAGES`].
    pub(crate) stages: [Percentiles; STAGES.len()],
}

impl Stats {
    /// Takes in one frame.
    pub(crate) fn add(&mut self, seen: &Seen, now: Instant) {
        let t = &seen.timings;
        for (samples, value) in
            self.samples.iter_mut().zip([t.decode, t.tokenize, t.prefill, t.generate, seen.age])
        {
            keep(samples, ms(value));
        }
        keep(&mut self.times, now);
    }

    /// Sums up what is in the window.
    pub(crate) fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        for (samples, percentiles) in self.samples.iter().zip(&mut summary.stages) {
            let mut sorted: Vec<f64> = samples.iter().copied().collect();
            sorted.sort_by(f64::total_cmp);
            *percentiles = Percentiles { p50: rank(&sorted, 50), p95: rank(&sorted, 95) };
        }
        if let (Some(first), Some(last)) = (self.times.front(), self.times.back()) {
            let span_s = (*last - *first).as_secs_f64();
            #[allow(clippy::cast_precision_loss, reason = "at most WINDOW")]
            let frames = (self.times.len() - 1) as f64;
            summary.frames_per_s = if span_s > 0.0 { frames / span_s } else { 0.0 };
        }
        summary
    }
}

/// Milliseconds of a duration.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn keep<T>(samples: &mut VecDeque<T>, value: T) {
    if samples.len() == WINDOW {
        samples.pop_front();
    }
    samples.push_back(value);
}

/// The smallest sample that at least `percent` of all do not exceed (nearest rank).
fn rank(sorted: &[f64], percent: usize) -> f64 {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or(0.0)
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "ms          p50      p95")?;
        for (stage, p) in STAGES.iter().zip(&self.stages) {
            write!(f, "\n{stage:<8} {:>6.2} {:>8.2}", p.p50, p.p95)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_by_hand() {
        assert_eq!(rank(&[], 50), 0.0);
        assert_eq!((rank(&[7.0], 50), rank(&[7.0], 95)), (7.0, 7.0));
        assert_eq!(rank(&[1.0, 2.0, 3.0, 4.0], 50), 2.0);
        let twenty: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!((rank(&twenty, 50), rank(&twenty, 95)), (10.0, 19.0));
    }

    #[test]
    fn only_the_window_counts() {
        let mut stats = Stats::default();
        let start = Instant::now();
        for i in 0..WINDOW as u64 * 2 {
            let age = Duration::from_millis(if i < WINDOW as u64 { 1000 } else { 5 });
            stats.add(&Seen { age, ..Seen::default() }, start + Duration::from_millis(i * 10));
        }
        let summary = stats.summary();
        assert_eq!(summary.stages[4], Percentiles { p50: 5.0, p95: 5.0 });
        assert!((summary.frames_per_s - 100.0).abs() < 1e-6, "{}", summary.frames_per_s);
    }
}
