//! The codes of a grid into a picture.

use super::layers::{Attention, Buffers, GroupNorm, Level, ResBlock, through};
use super::{PREFIX, decoder_blocks, l2_normalise};
use crate::Result;
use crate::config::{CodeNorm, VqConfig};
use crate::conv::{Conv, upsample_nearest};
use crate::engine::Engine;
use crate::weights::{LinearRef, Weights};

/// Where the decoder's tensors lie in the mapped file.
#[derive(Debug)]
pub(crate) struct VqDecoder {
    codebook: LinearRef,
    post_quant_conv: Conv,
    conv_in: Conv,
    middle: [ResBlock; 2],
    attention: Attention,
    /// From the grid up.
    levels: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv,
}

impl VqDecoder {
    /// Finds every tensor.
    pub(crate) fn resolve(w: &Weights, c: &VqConfig) -> Result<Self> {
        let named = |name: &str| format!("{PREFIX}.{name}");
        let mut all = decoder_blocks(c).into_iter().map(|shape| ResBlock::resolve(w, &shape));
        let mut next = || all.next().expect("`decoder_blocks` begins with two of the middle");
        let middle = [next()?, next()?];
        let last = c.channel_multiplier.len() - 1;
        let mut levels = Vec::new();
        for level in 0..=last {
            let up = named(&format!("decoder.up.{level}.upsample.conv"));
            let attention = named(&format!("decoder.up.{level}.attn"));
            // Its levels count from the grid, those of the multipliers from the picture.
            let attends = if c.attends(last - level) { c.n_res + 1 } else { 0 };
            levels.push(Level {
                blocks: all.by_ref().take(c.n_res + 1).collect::<Result<_>>()?,
                attention: (0..attends)
                    .map(|i| Attention::resolve(w, &format!("{attention}.{i}")))
                    .collect::<Result<_>>()?,
                size: (level < last).then(|| Conv::resolve(w, &up, 3, 1, [1, 1])).transpose()?,
            });
        }
        Ok(Self {
            codebook: w.linear(&named("quantize.embedding"))?,
            post_quant_conv: Conv::resolve(w, &named("post_quant_conv"), 1, 1, [0, 0])?,
            conv_in: Conv::resolve(w, &named("decoder.conv_in"), 3, 1, [1, 1])?,
            middle,
            attention: Attention::resolve(w, &named("decoder.mid.attn_1"))?,
            levels,
            norm_out: GroupNorm::resolve(w, &named("decoder.norm_out"))?,
            conv_out: Conv::resolve(w, &named("decoder.conv_out"), 3, 1, [1, 1])?,
        })
    }

    /// Buffers for a grid of `places`.
    pub(crate) fn buffers(&self, e: &Engine, places: usize) -> Buffers {
        let blocks = self.levels.iter().flat_map(|level| &level.blocks).chain(&self.middle);
        let convs = blocks.flat_map(|block| [&block.conv1, &block.conv2]);
        let sizes = self.levels.iter().filter_map(|level| level.size.as_ref());
        let widest =
            convs.chain(sizes).chain([&self.conv_in, &self.conv_out]).map(Conv::k).max().unwrap_or(1);
        Buffers::new(e, widest, places, self.attention.q.out_channels())
    }

    /// The picture of some codes, `b.x [height, width, 3]`; returns its height and width.
    ///
    /// # Panics
    /// If there are not as many codes as places, or one is not in the code book.
    pub(crate) fn decode(
        &self,
        e: &Engine,
        w: &Weights,
        c: &VqConfig,
        codes: &[u16],
        (mut height, mut width): (usize, usize),
        b: &mut Buffers,
    ) -> (usize, usize) {
        assert_eq!(codes.len(), height * width);
        b.x.resize(codes.len() * c.code_dim, 0.0);
        for (row, &code) in b.x.chunks_exact_mut(c.code_dim).zip(codes) {
            self.codebook.read_row(w, code.into(), row);
            if c.code_norm != CodeNorm::None {
                l2_normalise(row);
            }
        }
        through(&self.post_quant_conv, e, w, &mut height, &mut width, b);
        through(&self.conv_in, e, w, &mut height, &mut width, b);
        self.middle[0].forward(e, w, (height, width), b);
        self.attention.forward(e, w, (height, width), b);
        self.middle[1].forward(e, w, (height, width), b);
        for level in &self.levels {
            level.forward(e, w, (height, width), b);
            if let Some(up) = &level.size {
                let channels = b.x.len() / (height * width);
                let mut large = vec![0.0; 4 * b.x.len()];
                upsample_nearest(&b.x, (height, width), channels, &mut large);
                b.x = large;
                (height, width) = (2 * height, 2 * width);
                through(up, e, w, &mut height, &mut width, b);
            }
        }
        self.norm_out.forward(w, &mut b.x);
        e.silu_inplace(&mut b.x);
        through(&self.conv_out, e, w, &mut height, &mut width, b);
        (height, width)
    }
}
