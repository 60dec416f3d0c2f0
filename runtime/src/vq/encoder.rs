//! A picture into the codes of a grid.

use super::layers::{Attention, Buffers, GroupNorm, Level, ResBlock, through};
use super::{PREFIX, encoder_blocks, l2_normalise};
use crate::Result;
use crate::config::{CodeNorm, VqConfig};
use crate::conv::Conv;
use crate::engine::Engine;
use crate::session::SessionError;
use crate::weights::{LinearRef, Weights};

/// Where the encoder's tensors lie in the mapped file.
#[derive(Debug)]
pub(crate) struct VqEncoder {
    conv_in: Conv,
    levels: Vec<Level>,
    middle: [ResBlock; 2],
    attention: Attention,
    norm_out: GroupNorm,
    conv_out: Conv,
    quant_conv: Conv,
    codebook: LinearRef,
}

impl VqEncoder {
    /// Finds every tensor.
    pub(crate) fn resolve(w: &Weights, c: &VqConfig) -> Result<Self> {
        let named = |name: &str| format!("{PREFIX}.{name}");
        let mut all =
            encoder_blocks(c).iter().map(|shape| ResBlock::resolve(w, shape)).collect::<Result<Vec<_>>>()?;
        let middle = [all.split_off(all.len() - 1), all.split_off(all.len() - 1)].map(|mut one| one.pop());
        let [Some(second), Some(first)] = middle else {
            unreachable!("`encoder_blocks` ends with two of the middle")
        };
        let mut all = all.into_iter();
        let last = c.channel_multiplier.len() - 1;
        let mut levels = Vec::new();
        for level in 0..=last {
            let down = named(&format!("encoder.down.{level}.downsample.conv"));
            // A row and a column of zeros behind the picture, none before it.
            let down = (level < last).then(|| Conv::resolve(w, &down, 3, 2, [0, 1])).transpose()?;
            let blocks: Vec<_> = all.by_ref().take(c.n_res).collect();
            let stem = named(&format!("encoder.down.{level}.attn"));
            let attention = (0..if c.attends(level) { c.n_res } else { 0 })
                .map(|i| Attention::resolve(w, &format!("{stem}.{i}")))
                .collect::<Result<_>>()?;
            levels.push(Level { blocks, attention, size: down });
        }
        Ok(Self {
            conv_in: Conv::resolve(w, &named("encoder.conv_in"), 3, 1, [1, 1])?,
            levels,
            middle: [first, second],
            attention: Attention::resolve(w, &named("encoder.mid.attn_1"))?,
            norm_out: GroupNorm::resolve(w, &named("encoder.norm_out"))?,
            conv_out: Conv::resolve(w, &named("encoder.conv_out"), 3, 1, [1, 1])?,
            quant_conv: Conv::resolve(w, &named("quant_conv"), 1, 1, [0, 0])?,
            codebook: w.linear(&named("quantize.embedding"))?,
        })
    }

    /// Buffers for pictures that become a grid of `places`.
    pub(crate) fn buffers(&self, e: &Engine, places: usize) -> Buffers {
        let blocks = self.levels.iter().flat_map(|level| &level.blocks).chain(&self.middle);
        let convs = blocks.flat_map(|block| [&block.conv1, &block.conv2]);
        let widest = convs.chain([&self.conv_in, &self.conv_out]).map(Conv::k).max().unwrap_or(1);
        Buffers::new(e, widest, places, self.attention.q.out_channels())
    }

    /// The picture in `b.x [height, width, 3]` into the vectors that are coded, `b.x [places, code_dim]`, row by row.
    pub(crate) fn latents(
        &self,
        e: &Engine,
        w: &Weights,
        (mut height, mut width): (usize, usize),
        b: &mut Buffers,
    ) {
        through(&self.conv_in, e, w, &mut height, &mut width, b);
        for level in &self.levels {
            level.forward(e, w, (height, width), b);
            if let Some(down) = &level.size {
                through(down, e, w, &mut height, &mut width, b);
            }
        }
        self.middle[0].forward(e, w, (height, width), b);
        self.attention.forward(e, w, (height, width), b);
        self.middle[1].forward(e, w, (height, width), b);
        self.norm_out.forward(w, &mut b.x);
        e.silu_inplace(&mut b.x);
        through(&self.conv_out, e, w, &mut height, &mut width, b);
        through(&self.quant_conv, e, w, &mut height, &mut width, b);
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
