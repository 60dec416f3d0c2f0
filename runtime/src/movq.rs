//! The VQ-VAE of Emu3: pictures and clips into grids of codes and back.
//!
//! Each frame goes alone through a net over its places, `[height, width, channels] f32`; then all frames go together through causal
//! convolutions over time, `[time, rows, columns, code_dim] f32`, which leave one grid of codes of `time_factor` frames. The decoder does
//! the same backwards, and its norms see the code book vectors. A picture is a clip that repeats it.
//!
//! Source: Wang et al. 2024 (arXiv:2409.18869), section 2.1; the order of operations is that of transformers' `Emu3VQVAE`.

mod plan;
mod time;

use crate::Result;
use crate::config::MovqConfig;
use crate::engine::maps::Slot::{Clip, ClipA, ClipCode, Code, X};
use crate::engine::maps::{CodeBook, Conv, Maps, Shape};
use crate::vq::layers::{self, Attention, Middle, Norm, Out, ResBlock, through};
use crate::weights::{LinearRef, Weights};

pub(crate) use plan::tensors;
use plan::{Level, PREFIX};
use time::TimeStack;

/// What encoder and decoder have alike.
#[derive(Clone, Debug)]
struct Half {
    conv_in: Conv,
    /// In the order in which they run.
    levels: Vec<layers::Level>,
    middle: Middle,
    out: Out,
    time: TimeStack,
}

/// Where the net's tensors lie in the mapped file.
#[derive(Debug)]
pub(crate) struct Movq {
    encoder: Half,
    decoder: Half,
    quant_conv: Conv,
    post_quant_conv: Conv,
    /// `[codebook_size, code_dim]`
    codebook: LinearRef,
    /// Frames of a grid.
    time_factor: usize,
}

impl Half {
    fn resolve(w: &Weights, c: &MovqConfig, half: &str, levels: &[Level]) -> Result<Self> {
        let spatial = half == "decoder";
        let named = |name: &str| format!("{PREFIX}.{half}.{name}");
        let middle = |block: &str| {
            ResBlock::resolve(w, &named(&format!("middle_block.{block}")), [plan::top(c); 2], spatial)
        };
        let (attn, attn_norm) = (named("middle_block.attn_1"), named("middle_block.attn_norm"));
        Ok(Self {
            conv_in: Conv::resolve(w, &named("conv_in"), 3, 1, [1, 1])?,
            levels: levels.iter().map(|of| level(w, of, spatial)).collect::<Result<_>>()?,
            middle: Middle(
                middle("block_1")?,
                Attention::resolve(w, Norm::resolve(w, &attn_norm, spatial)?, &attn, ATTENTION)?,
                middle("block_2")?,
            ),
            out: Out(
                Norm::resolve(w, &named("norm_out"), spatial)?,
                Conv::resolve(w, &named("conv_out"), 3, 1, [1, 1])?,
            ),
            time: TimeStack::resolve(w, c, half)?,
        })
    }
}

/// What projections of attention are called.
const ATTENTION: [&str; 4] = ["q_proj", "k_proj", "v_proj", "out_proj"];

/// Finds the tensors of a level.
fn level(w: &Weights, level: &Level, spatial: bool) -> Result<layers::Level> {
    let Level { name, blocks, attention, resize } = level;
    let block = |(i, &channels): (usize, &[usize; 2])| {
        let block = ResBlock::resolve(w, &format!("{name}.block.{i}"), channels, spatial)?;
        let attention_of = || {
            let norm = Norm::resolve(w, &format!("{name}.attn_norms.{i}"), spatial)?;
            Attention::resolve(w, norm, &format!("{name}.attn.{i}"), ATTENTION)
        };
        Ok((block, attention.then(attention_of).transpose()?))
    };
    // Down: a row and a column of zeros behind the picture, none before it. Up: as large as what goes in.
    let (stride, pad) = if spatial { (1, [1, 1]) } else { (2, [0, 1]) };
    Ok(layers::Level {
        blocks: blocks.iter().enumerate().map(block).collect::<Result<_>>()?,
        resize: resize.as_ref().map(|stem| Conv::resolve(w, stem, 3, stride, pad)).transpose()?,
    })
}

impl Movq {
    /// Finds every tensor.
    pub(crate) fn resolve(w: &Weights, c: &MovqConfig) -> Result<Self> {
        let conv = |name: &str| Conv::over_time(w, &format!("{PREFIX}.{name}.conv"), [3, 1], 1);
        Ok(Self {
            encoder: Half::resolve(w, c, "encoder", &plan::down(c))?,
            decoder: Half::resolve(w, c, "decoder", &plan::up(c))?,
            quant_conv: conv("quant_conv")?,
            post_quant_conv: conv("post_quant_conv")?,
            codebook: w.linear(&format!("{PREFIX}.quantize.embedding"))?,
            time_factor: c.time_factor,
        })
    }

    /// A clip of frames into codes `[grids, rows, columns]`, which it gives. `load` puts one frame after the other, `[height, width, 3]`,
    /// into slot `X`. Their number is a multiple of the model's `time_factor`; one frame is a picture, which stands for as many.
    pub(crate) fn encode(
        &self,
        frames: usize,
        load: &dyn Fn(usize, &mut dyn Maps) -> Result<()>,
        m: &mut dyn Maps,
    ) -> Result<()> {
        for i in 0..frames {
            load(i, m)?;
            self.encode_frame(m)?;
            if frames > 1 {
                m.put_frame(X, Clip, i, frames)?;
            }
        }
        if frames == 1 {
            // Frames alike are alike up to here: the net over places ran once.
            (0..self.time_factor).try_for_each(|i| m.put_frame(X, Clip, i, self.time_factor))?;
        }
        self.encoder.time.shrink(m)?;
        m.convolve(&self.quant_conv, Clip, ClipA)?;
        m.nearest(CodeBook { vectors: &self.codebook, unit: false }, ClipA, Clip)?;
        m.give(Clip)
    }

    /// One frame in slot `X` through the net over places: `[height / patch, width / patch, code_dim]`.
    fn encode_frame(&self, m: &mut dyn Maps) -> Result<()> {
        through(&self.encoder.conv_in, m)?;
        for level in &self.encoder.levels {
            level.down(m)?;
        }
        self.encoder.middle.forward(m)?;
        self.encoder.out.forward(m)
    }

    /// The first `frames` frames of what grids of codes stand for, which it gives: `[frames, height, width, 3]`.
    ///
    /// Shapes: `codes [grids, rows, columns]`, each below the size of the code book.
    pub(crate) fn decode(
        &self,
        w: &Weights,
        (codes, (grids, height, width)): (&[u16], (usize, usize, usize)),
        frames: usize,
        m: &mut dyn Maps,
    ) -> Result<()> {
        let channels = self.codebook.k;
        m.load(ClipCode, Shape { time: grids, height, width, channels }, &|x| {
            for (row, &code) in x.chunks_exact_mut(channels).zip(codes) {
                self.codebook.read_row(w, usize::from(code), row);
            }
        })?;
        m.convolve(&self.post_quant_conv, ClipCode, Clip)?;
        self.decoder.time.grow(m)?;
        // The vectors themselves, which the norms see, go through the same stack as what became of them.
        m.swap(Clip, ClipCode);
        self.decoder.time.grow(m)?;
        for frame in 0..frames.min(m.shape(Clip).time) {
            m.take_frame(Clip, frame, Code)?;
            m.take_frame(ClipCode, frame, X)?;
            self.decode_frame(m)?;
            m.give(X)?;
        }
        Ok(())
    }

    /// The vectors of one frame in slot `X` through the net over places: `[height · patch, width · patch, 3]`.
    fn decode_frame(&self, m: &mut dyn Maps) -> Result<()> {
        through(&self.decoder.conv_in, m)?;
        self.decoder.middle.forward(m)?;
        for level in &self.decoder.levels {
            level.up(m)?;
        }
        self.decoder.out.forward(m)
    }
}
