//! A picture into the codes of a grid.

use super::layers::{Level, Middle, Norm, Out, through};
use super::{PREFIX, block, encoder_blocks, level, middle};
use crate::Result;
use crate::config::{CodeNorm, VqConfig};
use crate::engine::maps::Slot::{A, X};
use crate::engine::maps::{CodeBook, Conv, Maps};
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

    /// The codes of the vectors in slot `X`, which it gives.
    pub(crate) fn codes(&self, c: &VqConfig, m: &mut dyn Maps) -> Result<()> {
        m.nearest(CodeBook { vectors: &self.codebook, unit: c.code_norm == CodeNorm::Both }, X, A)?;
        m.give(A)
    }
}
