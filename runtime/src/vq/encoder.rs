//! A picture into the codes of a grid.

use super::layers::{Level, Middle, Norm, Out, through};
use super::{PREFIX, block, encoder_blocks, l2_normalise, level, middle};
use crate::Result;
use crate::config::{CodeNorm, VqConfig};
use crate::engine::maps::{Conv, Maps};
use crate::session::SessionError;
use crate::weights::{LinearRef, Weights};

/// Where the encoder's tensors lie in the mapped file.
#[derive(Debug)]
pub(crate) struct VqEncoder {
    conv_in: Conv,
    levels: Vec<Level>,
    middle: Middle,
    out: Out,
    quant_conv: Conv,
    codebook: LinearRef,
}

impl VqEncoder {
    /// Finds every tensor.
    pub(crate) fn resolve(w: &Weights, c: &VqConfig) -> Result<Self> {
        let named = |name: &str| format!("{PREFIX}.{name}");
        let mut all = encoder_blocks(c).into_iter().map(|shape| block(w, &shape));
        let last = c.channel_multiplier.len() - 1;
        let mut levels = Vec::new();
        for at in 0..=last {
            let down = named(&format!("encoder.down.{at}.downsample.conv"));
            // A row and a column of zeros behind the picture, none before it.
            let down = (at < last).then(|| Conv::resolve(w, &down, 3, 2, [0, 1])).transpose()?;
            let blocks = all.by_ref().take(c.n_res).collect::<Result<_>>()?;
            levels.push(level(w, &format!("encoder.down.{at}"), blocks, c.attends(at), down)?);
        }
        let mut next = || all.next().expect("`encoder_blocks` ends with two of the middle");
        Ok(Self {
            conv_in: Conv::resolve(w, &named("encoder.conv_in"), 3, 1, [1, 1])?,
            levels,
            middle: middle(w, "encoder", [next()?, next()?])?,
            out: Out(
                Norm::resolve(w, &named("encoder.norm_out"), false)?,
                Conv::resolve(w, &named("encoder.conv_out"), 3, 1, [1, 1])?,
            ),
            quant_conv: Conv::resolve(w, &named("quant_conv"), 1, 1, [0, 0])?,
            codebook: w.linear(&named("quantize.embedding"))?,
        })
    }

    /// The picture in slot `X`, `[height, width, 3]`, into the vectors that are coded, `[places, code_dim]`, row by row.
    pub(crate) fn latents(&self, m: &mut dyn Maps) -> Result<()> {
        through(&self.conv_in, m)?;
        for level in &self.levels {
            level.down(m)?;
        }
        self.middle.forward(m)?;
        self.out.forward(m)?;
        through(&self.quant_conv, m)
    }

    /// The codes of the vectors `x [places, code_dim]`.
    ///
    /// # Errors
    /// If a result is not a number.
    pub(crate) fn codes(&self, w: &Weights, c: &VqConfig, x: &mut [f32], codes: &mut Vec<u16>) -> Result<()> {
        if c.code_norm == CodeNorm::Both {
            x.chunks_exact_mut(c.code_dim).for_each(l2_normalise);
        }
        nearest(w, &self.codebook, c.code_norm, x, codes)
    }
}

/// The nearest code book vector of every place of `x [places, code_dim]`; of equals, the lowest.
///
/// # Errors
/// If a value is not a number.
pub(crate) fn nearest(
    w: &Weights,
    codebook: &LinearRef,
    norm: CodeNorm,
    x: &[f32],
    codes: &mut Vec<u16>,
) -> Result<()> {
    let LinearRef { n, k, .. } = *codebook;
    codes.clear();
    let mut best = vec![(f32::INFINITY, None); x.len() / k];
    let mut row = vec![0.0; k];
    for code in 0..n {
        codebook.read_row(w, code, &mut row);
        if norm == CodeNorm::Both {
            l2_normalise(&mut row);
        }
        for (z, best) in x.chunks_exact(k).zip(&mut best) {
            let distance: f32 = z.iter().zip(&row).map(|(z, e)| (z - e) * (z - e)).sum();
            if distance < best.0 {
                *best = (distance, u16::try_from(code).ok());
            }
        }
    }
    for (_, code) in best {
        codes.push(code.ok_or(SessionError::NumericFault)?);
    }
    Ok(())
}
