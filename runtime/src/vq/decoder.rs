//! The codes of a grid into a picture.

use super::layers::{Level, Middle, Norm, Out, through};
use super::{PREFIX, block, decoder_blocks, level, middle};
use crate::Result;
use crate::config::{CodeNorm, VqConfig};
use crate::engine::maps::{Conv, Maps, Shape, Slot, l2_normalise};
use crate::weights::{LinearRef, Weights};

/// Where the decoder's tensors lie in the mapped file.
#[derive(Debug)]
pub(crate) struct VqDecoder {
    codebook: LinearRef,
    post_quant_conv: Conv,
    conv_in: Conv,
    middle: Middle,
    /// From the grid up.
    levels: Vec<Level>,
    out: Out,
}

impl VqDecoder {
    /// Finds every tensor.
    pub(crate) fn resolve(w: &Weights, c: &VqConfig) -> Result<Self> {
        let named = |name: &str| format!("{PREFIX}.{name}");
        let mut all = decoder_blocks(c).into_iter().map(|shape| block(w, &shape));
        let mut next = || all.next().expect("`decoder_blocks` begins with two of the middle");
        let middle = middle(w, "decoder", [next()?, next()?])?;
        let last = c.channel_multiplier.len() - 1;
        let mut levels = Vec::new();
        for at in 0..=last {
            let up = named(&format!("decoder.up.{at}.upsample.conv"));
            let up = (at < last).then(|| Conv::resolve(w, &up, 3, 1, [1, 1])).transpose()?;
            let blocks = all.by_ref().take(c.n_res + 1).collect::<Result<_>>()?;
            // Its levels count from the grid, those of the multipliers from the picture.
            levels.push(level(w, &format!("decoder.up.{at}"), blocks, c.attends(last - at), up)?);
        }
        Ok(Self {
            codebook: w.linear(&named("quantize.embedding"))?,
            post_quant_conv: Conv::resolve(w, &named("post_quant_conv"), 1, 1, [0, 0])?,
            conv_in: Conv::resolve(w, &named("decoder.conv_in"), 3, 1, [1, 1])?,
            middle,
            levels,
            out: Out(
                Norm::resolve(w, &named("decoder.norm_out"), false)?,
                Conv::resolve(w, &named("decoder.conv_out"), 3, 1, [1, 1])?,
            ),
        })
    }

    /// Puts the picture of some codes, `size` high and wide, into slot `X`: `[height, width, 3]`.
    ///
    /// # Panics
    /// If there are not as many codes as places, or one is not in the code book.
    pub(crate) fn decode(
        &self,
        w: &Weights,
        c: &VqConfig,
        (codes, size): (&[u16], (usize, usize)),
        m: &mut dyn Maps,
    ) -> Result<()> {
        assert_eq!(codes.len(), size.0 * size.1);
        m.load(Slot::X, Shape::picture(size, c.code_dim), &|x| {
            for (row, &code) in x.chunks_exact_mut(c.code_dim).zip(codes) {
                self.codebook.read_row(w, code.into(), row);
                if c.code_norm != CodeNorm::None {
                    l2_normalise(row);
                }
            }
        })?;
        through(&self.post_quant_conv, m)?;
        through(&self.conv_in, m)?;
        self.middle.forward(m)?;
        for level in &self.levels {
            level.up(m)?;
        }
        self.out.forward(m)
    }
}
