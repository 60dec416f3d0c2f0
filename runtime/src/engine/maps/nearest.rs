//! The nearest vectors of a code book on the CPU.

use crate::weights::LinearRef;

/// A code book that is searched.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) struct CodeBook<'a> {
    /// `[codes, code_dim]`, floats.
    pub(crate) vectors: &'a LinearRef,
    /// Whether they are made of length one first, and what is looked for too.
    pub(crate) unit: bool,
}

/// Vectors that distances are computed to together: as many sums as registers hold.
const CODES: usize = 32;

/// What a search works in.
pub(crate) struct Search {
    /// Some vectors of the code book turned round, `[code_dim, CODES]`, so that distances run over codes.
    turned: Vec<f32>,
    /// `[code_dim]`
    row: Vec<f32>,
    /// The least distance of each place so far.
    least: Vec<f32>,
}

impl Search {
    /// For at most so many places and values of a vector.
    pub(crate) fn new([places, code_dim]: [usize; 2]) -> Self {
        let floats = |n: usize| vec![0.0; n];
        Self { turned: floats(code_dim * CODES), row: floats(code_dim), least: floats(places) }
    }

    /// Bytes of it.
    pub(crate) fn bytes([places, code_dim]: [usize; 2]) -> u128 {
        4 * (places as u128 + (CODES as u128 + 1) * code_dim as u128)
    }

    /// The number of the vector that is nearest to each place of `x [places, code_dim]`, of equals the lowest; NaN where
    /// none has a distance that is a number below infinity. `read` says what each of the `n` vectors is.
    #[allow(clippy::cast_precision_loss, reason = "numbers of codes")]
    pub(crate) fn run(&mut self, n: usize, read: &dyn Fn(usize, &mut [f32]), x: &[f32], codes: &mut [f32]) {
        let k = x.len() / codes.len();
        let (turned, row) = (&mut self.turned[..k * CODES], &mut self.row[..k]);
        let least = &mut self.least[..codes.len()];
        least.fill(f32::INFINITY);
        codes.fill(f32::NAN);
        for first in (0..n).step_by(CODES) {
            let together = CODES.min(n - first);
            for code in 0..together {
                read(first + code, row);
                turned.iter_mut().skip(code).step_by(CODES).zip(&*row).for_each(|(to, &e)| *to = e);
            }
            for ((z, least), nearest) in x.chunks_exact(k).zip(&mut *least).zip(&mut *codes) {
                let mut distances = [0.0; CODES];
                for (&z, e) in z.iter().zip(turned.as_chunks::<CODES>().0) {
                    distances.iter_mut().zip(e).for_each(|(distance, &e)| *distance += (z - e) * (z - e));
                }
                for (code, &distance) in distances[..together].iter().enumerate() {
                    if distance < *least {
                        (*least, *nearest) = (distance, (first + code) as f32);
                    }
                }
            }
        }
    }
}

/// `x / max(‖x‖, 1e-12)`; NaN if the norm is not finite, so that nothing is near.
///
/// Source: `F.normalize` in `VectorQuantizer` of LlamaGen and Janus (`vq_model.py`, `codebook_l2_norm`).
pub(crate) fn l2_normalise(x: &mut [f32]) {
    let norm = x.iter().map(|v| v * v).sum::<f32>().sqrt();
    let norm = if norm.is_finite() { norm.max(1e-12) } else { f32::NAN };
    x.iter_mut().for_each(|v| *v /= norm);
}
