//! How far two distributions are apart, position by position: the rows that people know from llama-perplexity.

use std::fmt::Write as _;

use serde::Serialize;

/// Collects positions.
#[derive(Debug, Clone, Default)]
pub struct Positions {
    kl: Vec<f64>,
    same_top: u64,
    nll_base: f64,
    nll_candidate: f64,
    delta: f64,
    delta_squared: f64,
}

impl Positions {
    /// Adds a position: the logits of both models and the index of the true token.
    ///
    /// # Panics
    /// If the two differ in length, or `target` lies outside.
    pub fn add(&mut self, base: &[f32], candidate: &[f32], target: usize) {
        assert_eq!(base.len(), candidate.len());
        let (norm_base, norm_candidate) = (log_sum_exp(base), log_sum_exp(candidate));
        let mut kl = 0.0;
        for (&b, &c) in base.iter().zip(candidate) {
            let (b, c) = (f64::from(b) - norm_base, f64::from(c) - norm_candidate);
            kl += b.exp() * (b - c);
        }
        // Rounding can leave a divergence of nothing a little below zero. A NaN may carry a minus, which sorts first: here
        // it must be the largest. (`f64::max` would turn it into zero.)
        self.kl.push(if kl.is_nan() { f64::NAN } else { kl.max(0.0) });
        self.same_top += u64::from(top(base).is_some_and(|best| top(candidate) == Some(best)));
        let (b, c) = (f64::from(base[target]) - norm_base, f64::from(candidate[target]) - norm_candidate);
        self.nll_base -= b;
        self.nll_candidate -= c;
        let delta = c.exp() - b.exp();
        self.delta += delta;
        self.delta_squared += delta * delta;
    }

    /// How many there are.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.kl.len()
    }

    /// Adds everything that `other` collected.
    pub fn extend(&mut self, other: &Self) {
        self.kl.extend_from_slice(&other.kl);
        self.same_top += other.same_top;
        self.nll_base += other.nll_base;
        self.nll_candidate += other.nll_candidate;
        self.delta += other.delta;
        self.delta_squared += other.delta_squared;
    }

    /// The rows.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "counts of positions")]
    pub fn rows(&self) -> Rows {
        let mut kl = self.kl.clone();
        kl.sort_by(f64::total_cmp);
        let n = kl.len().max(1) as f64;
        let (ppl, ppl_base) = ((self.nll_candidate / n).exp(), (self.nll_base / n).exp());
        Rows {
            positions: kl.len(),
            ppl,
            ppl_base,
            ppl_ratio: ppl / ppl_base,
            kl_mean: kl.iter().sum::<f64>() / n,
            kl_max: kl.last().copied().unwrap_or(0.0),
            kl_p999: quantile(&kl, 0.999),
            kl_p99: quantile(&kl, 0.99),
            kl_median: quantile(&kl, 0.5),
            kl_min: kl.first().copied().unwrap_or(0.0),
            delta_p_mean: self.delta / n,
            delta_p_rms: (self.delta_squared / n).sqrt(),
            same_top: self.same_top as f64 / n,
        }
    }
}

/// The rows of llama-perplexity's report; Q is the candidate. Divergences in nats, probabilities as fractions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names are those of the report")]
pub struct Rows {
    pub positions: usize,
    pub ppl: f64,
    pub ppl_base: f64,
    pub ppl_ratio: f64,
    pub kl_mean: f64,
    pub kl_max: f64,
    pub kl_p999: f64,
    pub kl_p99: f64,
    pub kl_median: f64,
    pub kl_min: f64,
    pub delta_p_mean: f64,
    pub delta_p_rms: f64,
    pub same_top: f64,
}

impl Rows {
    /// The report of one kind of position.
    #[must_use]
    pub fn to_text(&self, title: &str) -> String {
        let mut text = format!("====== {title} ({} positions) ======\n", self.positions);
        for (name, value) in [
            ("Mean PPL(Q)", self.ppl),
            ("Mean PPL(base)", self.ppl_base),
            ("Mean PPL(Q)/PPL(base)", self.ppl_ratio),
            ("Mean    KLD", self.kl_mean),
            ("Maximum KLD", self.kl_max),
            ("99.9%   KLD", self.kl_p999),
            ("99.0%   KLD", self.kl_p99),
            ("Median  KLD", self.kl_median),
            ("Minimum KLD", self.kl_min),
        ] {
            let _ = writeln!(text, "{name:<22}: {value:>11.6}");
        }
        for (name, value) in
            [("Mean    Δp", self.delta_p_mean), ("RMS Δp", self.delta_p_rms), ("Same top p", self.same_top)]
        {
            let _ = writeln!(text, "{name:<22}: {:>9.3} %", 100.0 * value);
        }
        text
    }
}

/// `log Σ exp`, without overflow.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, &v| max.max(v));
    let max = f64::from(max);
    max + logits.iter().map(|&v| (f64::from(v) - max).exp()).sum::<f64>().ln()
}

/// The index of the largest; the first of equals. Logits that are not all finite have none.
fn top(logits: &[f32]) -> Option<usize> {
    if logits.iter().any(|v| !v.is_finite()) {
        return None;
    }
    let mut best = 0;
    for (i, v) in logits.iter().enumerate() {
        if *v > logits[best] {
            best = i;
        }
    }
    Some(best)
}

/// The value below which a fraction `q` of the sorted values lies; nearest rank.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "0 ≤ q ≤ 1"
)]
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(base: &[f32], candidate: &[f32], target: usize) -> Rows {
        let mut positions = Positions::default();
        positions.add(base, candidate, target);
        positions.rows()
    }

    #[test]
    fn equal_distributions_have_no_divergence() {
        // A constant added to the logits changes nothing.
        let rows = rows(&[1.0, 2.0, 3.0], &[101.0, 102.0, 103.0], 1);
        assert!(rows.kl_max < 1e-12 && rows.delta_p_rms < 1e-12, "{rows:?}");
        assert_eq!(rows.same_top, 1.0);
        assert!((rows.ppl_ratio - 1.0).abs() < 1e-12);
    }

    #[test]
    fn divergence_is_the_one_computed_by_hand() {
        // p = (1/2, 1/2), q = (1/4, 3/4): KL(p ‖ q) = ½ ln 2 + ½ ln ⅔.
        let rows = rows(&[0.0, 0.0], &[0.0, 3f32.ln()], 0);
        let expected = 0.5 * 2f64.ln() + 0.5 * (2.0 / 3.0f64).ln();
        assert!((rows.kl_mean - expected).abs() < 1e-7, "{} for {expected}", rows.kl_mean);
        assert!((rows.delta_p_mean + 0.25).abs() < 1e-7);
        assert!((rows.ppl_base - 2.0).abs() < 1e-7 && (rows.ppl - 4.0).abs() < 1e-6);
        assert_eq!(rows.same_top, 0.0);
    }

    #[test]
    fn logits_that_are_no_numbers_do_not_pass() {
        const GOOD: [f32; 2] = [1.0, 0.0];
        for bad in [[f32::NAN, 0.0], [f32::NAN; 2], [f32::INFINITY, 0.0], [f32::INFINITY; 2]] {
            for (base, candidate) in [(GOOD, bad), (bad, GOOD), (bad, bad)] {
                let mut positions = Positions::default();
                positions.add(&GOOD, &GOOD, 0);
                positions.add(&base, &candidate, 0);
                let rows = positions.rows();
                assert!(
                    !rows.kl_mean.is_finite() && !rows.kl_max.is_finite(),
                    "{base:?} {candidate:?}: {rows:?}"
                );
                assert!(!(rows.ppl_ratio - 1.0).is_finite(), "{base:?} {candidate:?}: {rows:?}");
                assert_eq!(rows.same_top, 0.5, "{base:?} {candidate:?}");
            }
        }
    }

    #[test]
    fn quantiles_are_nearest_ranks() {
        let values: Vec<f64> = (1..=1000).map(f64::from).collect();
        assert_eq!([0.5, 0.99, 0.999, 1.0].map(|q| quantile(&values, q)), [500.0, 990.0, 999.0, 1000.0]);
        assert_eq!(quantile(&[7.0], 0.5), 7.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
