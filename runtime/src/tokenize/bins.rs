//! Robot states and actions as bins: an affine map per dimension, then 256 equal steps.

use super::Tokenizer;
use crate::session::SessionError;

/// Values of a fixed number of dimensions, each cut into equal bins between `low` and `high`.
#[derive(Clone, Debug)]
pub struct Bins {
    what: &'static str,
    low: Vec<f32>,
    high: Vec<f32>,
    n_bins: u16,
}

impl Bins {
    /// Bins of `n_bins` steps; `what` names them in errors ("state", "action").
    #[must_use]
    pub fn new(what: &'static str, low: &[f32], high: &[f32], n_bins: u16) -> Self {
        assert_eq!(low.len(), high.len());
        assert!(n_bins > 0 && !low.is_empty());
        Self { what, low: low.to_vec(), high: high.to_vec(), n_bins }
    }

    /// Dimensions.
    #[must_use]
    pub fn dims(&self) -> usize {
        self.low.len()
    }

    /// The bin of `value` in dimension `dim`: `floor((value − low) / (high − low) · bins)`, clamped to the range.
    #[must_use]
    pub fn bin(&self, dim: usize, value: f32) -> u16 {
        let (low, high) = (self.low[dim], self.high[dim]);
        let bin = ((value - low) / (high - low) * f32::from(self.n_bins)).floor();
        // Clamped to the range just before, so neither sign nor size can be lost.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        {
            bin.clamp(0.0, f32::from(self.n_bins - 1)) as u16
        }
    }

    /// The value at the centre of `bin` in dimension `dim`.
    #[must_use]
    pub fn value(&self, dim: usize, bin: u16) -> f32 {
        let (low, high) = (self.low[dim], self.high[dim]);
        low + (f32::from(bin) + 0.5) / f32::from(self.n_bins) * (high - low)
    }
}

impl Tokenizer for Bins {
    type Input<'a> = &'a [f32];
    type Output = Vec<f32>;
    type Code = u16;

    /// `input` is any whole number of steps, `[steps, dims]`.
    fn encode(&mut self, input: &[f32], codes: &mut Vec<u16>) -> crate::Result<()> {
        let dims = self.dims();
        if input.is_empty() || !input.len().is_multiple_of(dims) {
            return Err(
                SessionError::Dimensions { what: self.what, found: input.len(), expected: dims }.into()
            );
        }
        if let Some(at) = input.iter().position(|v| !v.is_finite()) {
            return Err(SessionError::NotANumber { what: self.what, at }.into());
        }
        codes.clear();
        codes.extend(input.iter().enumerate().map(|(i, &value)| self.bin(i % dims, value)));
        Ok(())
    }

    fn decode(&mut self, codes: &[u16], output: &mut Vec<f32>) -> crate::Result<()> {
        let dims = self.dims();
        if !codes.len().is_multiple_of(dims) {
            return Err(
                SessionError::Dimensions { what: self.what, found: codes.len(), expected: dims }.into()
            );
        }
        if let Some(&code) = codes.iter().find(|&&code| code >= self.n_bins) {
            return Err(
                SessionError::Token { what: "bin", id: code.into(), limit: self.n_bins.into() }.into()
            );
        }
        output.clear();
        output.extend(codes.iter().enumerate().map(|(i, &bin)| self.value(i % dims, bin)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hand_computed_bins() {
        let bins = Bins::new("action", &[-1.0], &[1.0], 256);
        for (value, bin) in [
            (-1.0, 0),
            (-0.9921876, 0),
            (-0.992187, 1),
            (0.0, 128),
            (0.9999, 255),
            (1.0, 255),
            (9.0, 255),
            (-9.0, 0),
        ] {
            assert_eq!(bins.bin(0, value), bin, "{value}");
        }
        assert!((bins.value(0, 0) + 0.996_093_75).abs() < 1e-7);
    }

    #[test]
    fn every_bin_survives_the_way_there_and_back() {
        let bins = Bins::new("state", &[-0.3, 0.02], &[0.7, 0.09], 256);
        for dim in 0..2 {
            for bin in 0..256 {
                assert_eq!(bins.bin(dim, bins.value(dim, bin)), bin);
            }
        }
    }

    #[test]
    fn refuses_what_is_no_number_and_what_does_not_fit() {
        let mut bins = Bins::new("state", &[0.0; 4], &[1.0; 4], 256);
        let mut codes = Vec::new();
        assert!(
            bins.encode(&[0.0, f32::NAN, 0.0, 0.0], &mut codes)
                .unwrap_err()
                .to_string()
                .contains("state value 1")
        );
        assert!(bins.encode(&[0.0; 3], &mut codes).is_err());
        assert!(bins.decode(&[256; 4], &mut Vec::new()).is_err());
    }
}
