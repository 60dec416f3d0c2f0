//! The VQ-VAE of Emu3: pictures and clips into grids of codes and back.
//!
//! Each frame goes alone through a net over its places, `[height, width, channels] f32`; then all frames go together through causal
//! convolutions over time, `[time, rows, columns, code_dim] f32`, which leave one grid of codes of `time_factor` frames. The decoder does
//! the same backwards, and its norms see the code book vectors. A picture is a clip that repeats it.
//!
//! Source: Wang et al. 2024 (arXiv:2409.18869), section 2.1; the order of operations is that of transformers' `Emu3VQVAE`.

mod plan;
mod time;

use crate::config::{CodeNorm, MovqConfig};
use crate::conv::{Clip, Conv, Map, TimeConv};
use crate::engine::Engine;
use crate::session::SessionError;
use crate::vq::layers::{self, Attention, Middle, Norm, Out, ResBlock, Run, enlarged, through};
use crate::vq::nearest;
use crate::weights::{LinearRef, Weights};
use crate::{Result, memory};

pub(crate) use plan::tensors;
use plan::{Level, PREFIX};
use time::{TimeBuffers, TimeStack};

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
    quant_conv: TimeConv,
    post_quant_conv: TimeConv,
    /// `[codebook_size, code_dim]`
    codebook: LinearRef,
    /// Pixels that a place is wide and high, and frames of a grid.
    patch: usize,
    time_factor: usize,
    /// Channels of the widest level.
    widest: usize,
    /// Values of the largest map, for each place of the grid.
    largest: usize,
    /// Places that attention runs over at the finest level that has it, for each place of the grid.
    attended: usize,
}

/// What the net works in; grows to what the first picture or clip needs.
pub(crate) struct Buffers {
    frame: layers::Buffers,
    time: TimeBuffers,
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
        let conv = |name: &str| TimeConv::resolve(w, &format!("{PREFIX}.{name}.conv"), [3, 1], 1);
        Ok(Self {
            encoder: Half::resolve(w, c, "encoder", &plan::down(c))?,
            decoder: Half::resolve(w, c, "decoder", &plan::up(c))?,
            quant_conv: conv("quant_conv")?,
            post_quant_conv: conv("post_quant_conv")?,
            codebook: w.linear(&format!("{PREFIX}.quantize.embedding"))?,
            patch: c.patch(),
            time_factor: c.time_factor,
            widest: c.base_channels * widest(&c.channel_multiplier),
            largest: c.channel_multiplier.iter().enumerate().fold(0, |largest, (level, _)| {
                // The decoder enlarges a map before it takes channels away.
                let around = &c.channel_multiplier[level..c.channel_multiplier.len().min(level + 2)];
                largest.max((c.patch() >> level).pow(2) * c.base_channels * widest(around))
            }),
            attended: c.attention_levels.iter().map(|&level| (c.patch() >> level).pow(2)).max().unwrap_or(1),
        })
    }

    /// Buffers for frames that become a grid of `places`.
    ///
    /// # Errors
    /// If there is not enough memory for them.
    pub(crate) fn buffers(&self, e: &Engine, places: usize) -> Result<Buffers> {
        let over_time = self.encoder.time.convs().chain(self.decoder.time.convs()).map(TimeConv::k);
        let last = [&self.quant_conv, &self.post_quant_conv].map(TimeConv::k);
        // The widest 3 × 3 convolution, or one over time where there are few channels.
        let max_k = over_time.chain(last).chain([9 * self.widest]).max().unwrap_or(1);
        let (largest, attended) =
            (places as u128 * self.largest as u128, places.saturating_mul(self.attended));
        memory::check(
            "the picture tokenizer of this model",
            layers::Buffers::bytes(attended, largest, max_k, self.widest),
        )?;
        Ok(Buffers {
            frame: layers::Buffers::new(e, attended, max_k, self.widest),
            time: TimeBuffers::default(),
        })
    }

    /// The codes of a picture, row by row.
    ///
    /// # Errors
    /// If a result is not a number.
    pub(crate) fn encode_picture(
        &self,
        (e, w): (&Engine, &Weights),
        picture: Map<'_>,
        b: &mut Buffers,
        codes: &mut Vec<u16>,
    ) -> Result<()> {
        self.encode_frame((e, w), picture, &mut b.frame);
        b.time.x.clear();
        // Frames alike are alike up to here: the net over places runs once.
        for _ in 0..self.time_factor {
            b.time.x.extend_from_slice(&b.frame.x);
        }
        let (height, width) = (picture.height / self.patch, picture.width / self.patch);
        self.encode_time((e, w), (self.time_factor, height, width), b, codes)
    }

    /// The codes of a clip of frames, whose number is a multiple of the model's `time_factor`: `[grids, rows, columns]`.
    ///
    /// # Errors
    /// If a result is not a number.
    pub(crate) fn encode_clip(
        &self,
        (e, w): (&Engine, &Weights),
        clip: Clip<'_>,
        b: &mut Buffers,
        codes: &mut Vec<u16>,
    ) -> Result<()> {
        let Clip { time, height, width, x } = clip;
        b.time.x.clear();
        for frame in x.chunks_exact(height * width * 3) {
            self.encode_frame((e, w), Map { x: frame, height, width }, &mut b.frame);
            b.time.x.extend_from_slice(&b.frame.x);
        }
        self.encode_time((e, w), (time, height / self.patch, width / self.patch), b, codes)
    }

    /// One frame through the net over places: leaves `[height / patch, width / patch, code_dim]` in `b.x`.
    fn encode_frame(&self, (e, w): (&Engine, &Weights), frame: Map<'_>, b: &mut layers::Buffers) {
        let run = Run { e, w, code: None };
        let mut size = (frame.height, frame.width);
        b.x.clear();
        b.x.extend_from_slice(frame.x);
        through(&self.encoder.conv_in, run, size, b);
        for level in &self.encoder.levels {
            level.blocks(run, size, b);
            if let Some(down) = &level.resize {
                size = through(down, run, size, b);
            }
        }
        self.encoder.middle.forward(run, size, b);
        self.encoder.out.forward(run, size, b);
    }

    /// The codes of the frames' vectors in `b.time.x`.
    fn encode_time(
        &self,
        run: (&Engine, &Weights),
        (time, height, width): (usize, usize, usize),
        b: &mut Buffers,
        codes: &mut Vec<u16>,
    ) -> Result<()> {
        let Buffers { frame, time: t } = b;
        let time = self.encoder.time.shrink(run, (time, height, width), t, &mut frame.conv);
        self.quant_conv.forward(run, Clip { x: &t.x, time, height, width }, &mut t.a, &mut frame.conv);
        nearest(run.1, &self.codebook, CodeNorm::None, &t.a, codes)
    }

    /// The first `frames` frames of what grids of codes stand for, one after the other: `out [frames, height, width, 3]`.
    ///
    /// Shapes: `codes [grids, rows, columns]`, each below the size of the code book.
    ///
    /// # Errors
    /// If a result is not a number.
    pub(crate) fn decode(
        &self,
        (e, w): (&Engine, &Weights),
        (codes, size): (&[u16], (usize, usize, usize)),
        frames: usize,
        b: &mut Buffers,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let (grids, height, width) = size;
        let Buffers { frame, time: t } = b;
        let d = self.codebook.k;
        let mut vectors = vec![0.0; codes.len() * d];
        for (row, &code) in vectors.chunks_exact_mut(d).zip(codes) {
            self.codebook.read_row(w, usize::from(code), row);
        }
        // The vectors themselves, which the norms see, go through the same stack as what becomes of them.
        let clip = Clip { x: &vectors, time: grids, height, width };
        self.post_quant_conv.forward((e, w), clip, &mut t.x, &mut frame.conv);
        self.decoder.time.grow((e, w), size, t, &mut frame.conv);
        let latents = std::mem::replace(&mut t.x, vectors);
        self.decoder.time.grow((e, w), size, t, &mut frame.conv);
        let one = height * width * d;
        out.clear();
        for (latent, code) in latents.chunks_exact(one).zip(t.x.chunks_exact(one)).take(frames) {
            let run = Run { e, w, code: Some(Map { x: code, height, width }) };
            frame.x.clear();
            frame.x.extend_from_slice(latent);
            self.decode_frame(run, (height, width), frame);
            out.extend_from_slice(&frame.x);
        }
        if out.iter().any(|x| !x.is_finite()) {
            return Err(SessionError::NumericFault.into());
        }
        Ok(())
    }

    /// The vectors of one frame in `b.x` through the net over places: leaves `[height · patch, width · patch, 3]` there.
    fn decode_frame(&self, run: Run<'_>, mut size: (usize, usize), b: &mut layers::Buffers) {
        through(&self.decoder.conv_in, run, size, b);
        self.decoder.middle.forward(run, size, b);
        for level in &self.decoder.levels {
            level.blocks(run, size, b);
            if let Some(up) = &level.resize {
                size = enlarged(up, run, size, b);
            }
        }
        self.decoder.out.forward(run, size, b);
    }
}

/// The largest of some multipliers.
fn widest(multipliers: &[usize]) -> usize {
    multipliers.iter().copied().max().unwrap_or(1)
}
