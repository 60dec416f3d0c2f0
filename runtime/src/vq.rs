//! VQGAN, as Chameleon and Janus have it: a picture into the codes of a grid, and back.
//!
//! Levels of residual blocks, each half as wide and high as the one before, a middle with attention over all places, one vector a place,
//! the nearest vector of the code book; and the same the other way round.
//!
//! Source: Esser et al. 2021 (arXiv:2012.09841); the order of operations is that of transformers' `ChameleonVQVAE` and `JanusVQVAE`.

mod decoder;
mod encoder;
pub(crate) mod layers;

use crate::Result;
use crate::config::VqConfig;
use crate::engine::maps::Conv;
use crate::family::{Role, TensorSpec};
use crate::weights::Weights;

use layers::{Attention, Level, Middle, Norm, ResBlock};

pub(crate) use decoder::VqDecoder;
pub(crate) use encoder::VqEncoder;

/// Where the tensors' names begin.
const PREFIX: &str = "vq";

/// A residual block: its name and its channels.
struct ResShape {
    name: String,
    input: usize,
    out: usize,
}

/// Channels of a level, counted from the picture.
fn channels(c: &VqConfig, level: usize) -> usize {
    c.base_channels * c.channel_multiplier[level]
}

/// The residual blocks of the encoder in order: those of the levels, then two of the middle.
fn encoder_blocks(c: &VqConfig) -> Vec<ResShape> {
    let mut list = Vec::new();
    let mut input = c.base_channels;
    for level in 0..c.channel_multiplier.len() {
        let out = channels(c, level);
        for block in 0..c.n_res {
            list.push(ResShape { name: format!("encoder.down.{level}.block.{block}"), input, out });
            input = out;
        }
    }
    for block in ["block_1", "block_2"] {
        list.push(ResShape { name: format!("encoder.mid.{block}"), input, out: input });
    }
    list
}

/// The residual blocks of the decoder in order: two of the middle, then those of the levels from the grid up.
fn decoder_blocks(c: &VqConfig) -> Vec<ResShape> {
    let last = c.channel_multiplier.len() - 1;
    let mut input = channels(c, last);
    let middle = ["block_1", "block_2"];
    let mut list: Vec<_> = middle
        .iter()
        .map(|block| ResShape { name: format!("decoder.mid.{block}"), input, out: input })
        .collect();
    for level in 0..=last {
        let out = channels(c, last - level);
        for block in 0..=c.n_res {
            list.push(ResShape { name: format!("decoder.up.{level}.block.{block}"), input, out });
            input = out;
        }
    }
    list
}

/// Every tensor of the network and its code book. They stay float: codes must not flip.
pub(crate) fn tensors(c: &VqConfig) -> Vec<TensorSpec> {
    let mut list = Vec::new();
    let mut add = |name: &str, shape: &[usize], role| {
        list.push(TensorSpec::new(format!("{PREFIX}.{name}"), shape, role));
    };
    let mut pair = |name: &str, shape: &[usize], role| {
        add(&format!("{name}.weight"), shape, role);
        add(&format!("{name}.bias"), &shape[..1], Role::Exact);
    };
    let last = c.channel_multiplier.len() - 1;
    let top = channels(c, last);
    let attention = |pair: &mut dyn FnMut(&str, &[usize], Role), stem: &str| {
        pair(&format!("{stem}.norm"), &[top], Role::Exact);
        for part in ["q", "k", "v", "proj_out"] {
            pair(&format!("{stem}.{part}"), &[top, top, 1, 1], Role::Float);
        }
    };
    pair("encoder.conv_in", &[c.base_channels, 3, 3, 3], Role::Float);
    let blocks = encoder_blocks(c).into_iter().chain(if c.decoder { decoder_blocks(c) } else { Vec::new() });
    for ResShape { name, input, out } in blocks {
        pair(&format!("{name}.norm1"), &[input], Role::Exact);
        pair(&format!("{name}.conv1"), &[out, input, 3, 3], Role::Float);
        pair(&format!("{name}.norm2"), &[out], Role::Exact);
        pair(&format!("{name}.conv2"), &[out, out, 3, 3], Role::Float);
        if input != out {
            pair(&format!("{name}.nin_shortcut"), &[out, input, 1, 1], Role::Float);
        }
    }
    for level in 0..last {
        let n = channels(c, level);
        pair(&format!("encoder.down.{level}.downsample.conv"), &[n, n, 3, 3], Role::Float);
    }
    if c.last_level_attention {
        (0..c.n_res).for_each(|i| attention(&mut pair, &format!("encoder.down.{last}.attn.{i}")));
    }
    attention(&mut pair, "encoder.mid.attn_1");
    pair("encoder.norm_out", &[top], Role::Exact);
    pair("encoder.conv_out", &[c.latent_channels, top, 3, 3], Role::Float);
    pair("quant_conv", &[c.code_dim, c.latent_channels, 1, 1], Role::Float);
    // The way back to pixels begins with it; checkpoints without a decoder have it too.
    pair("post_quant_conv", &[c.latent_channels, c.code_dim, 1, 1], Role::Float);
    if c.decoder {
        pair("decoder.conv_in", &[top, c.latent_channels, 3, 3], Role::Float);
        attention(&mut pair, "decoder.mid.attn_1");
        if c.last_level_attention {
            (0..=c.n_res).for_each(|i| attention(&mut pair, &format!("decoder.up.0.attn.{i}")));
        }
        for level in 0..last {
            let n = channels(c, last - level);
            pair(&format!("decoder.up.{level}.upsample.conv"), &[n, n, 3, 3], Role::Float);
        }
        pair("decoder.norm_out", &[c.base_channels * c.channel_multiplier[0]], Role::Exact);
        pair("decoder.conv_out", &[3, channels(c, 0), 3, 3], Role::Float);
    }
    add("quantize.embedding.weight", &[c.codebook_size, c.code_dim], Role::Float);
    list
}

/// Finds a residual block.
fn block(w: &Weights, ResShape { name, input, out }: &ResShape) -> Result<ResBlock> {
    ResBlock::resolve(w, &format!("{PREFIX}.{name}"), [*input, *out], false)
}

/// Finds the attention `stem`.
fn attention(w: &Weights, stem: &str) -> Result<Attention> {
    let norm = Norm::resolve(w, &format!("{stem}.norm"), false)?;
    Attention::resolve(w, norm, stem, ["q", "k", "v", "proj_out"])
}

/// Finds the middle of one way, whose blocks are the two.
fn middle(w: &Weights, half: &str, [first, second]: [ResBlock; 2]) -> Result<Middle> {
    Ok(Middle(first, attention(w, &format!("{PREFIX}.{half}.mid.attn_1"))?, second))
}

/// Finds a level of those blocks; `attends` says whether it has attention.
fn level(
    w: &Weights,
    stem: &str,
    blocks: Vec<ResBlock>,
    attends: bool,
    resize: Option<Conv>,
) -> Result<Level> {
    let with = |(i, block): (usize, ResBlock)| {
        let attention = attends.then(|| attention(w, &format!("{PREFIX}.{stem}.attn.{i}")));
        Ok((block, attention.transpose()?))
    };
    Ok(Level { blocks: blocks.into_iter().enumerate().map(with).collect::<Result<_>>()?, resize })
}
