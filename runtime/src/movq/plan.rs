//! Which blocks the net has and which tensors they consist of, from its sizes alone.

use crate::config::MovqConfig;
use crate::family::{Role, TensorSpec};

/// Where the tensors' names begin.
pub(super) const PREFIX: &str = "movq";

/// One level of the encoder or the decoder, and its blocks in the order in which they run.
pub(super) struct Level {
    /// Name, with [`PREFIX`].
    pub(super) name: String,
    /// Channels in and out of each residual block.
    pub(super) blocks: Vec<[usize; 2]>,
    /// Whether there is attention behind each of them.
    pub(super) attention: bool,
    /// Name of the convolution that halves or doubles the size, except behind the last level.
    pub(super) resize: Option<String>,
}

impl Level {
    /// Channels out.
    pub(super) fn channels(&self) -> usize {
        self.blocks.last().map_or(0, |[_, out]| *out)
    }
}

/// Channels of the innermost level.
pub(super) fn top(c: &MovqConfig) -> usize {
    c.base_channels * c.channel_multiplier.last().copied().unwrap_or(1)
}

/// How many convolutions halve or double the number of frames.
pub(super) fn time_levels(c: &MovqConfig) -> usize {
    c.time_factor.trailing_zeros() as usize
}

/// The levels of the encoder.
pub(super) fn down(c: &MovqConfig) -> Vec<Level> {
    let last = c.channel_multiplier.len() - 1;
    levels(c, 0..=last, (c.base_channels, c.n_res), ("encoder.down_block.down", "downsample"), last)
}

/// The levels of the decoder. They are numbered like the encoder's, so that the last one runs first.
pub(super) fn up(c: &MovqConfig) -> Vec<Level> {
    let last = c.channel_multiplier.len() - 1;
    levels(c, (0..=last).rev(), (top(c), c.n_res + 1), ("decoder.up_block.up", "upsample"), 0)
}

fn levels(
    c: &MovqConfig,
    order: impl Iterator<Item = usize>,
    (mut input, n_blocks): (usize, usize),
    (name, resize): (&str, &str),
    last: usize,
) -> Vec<Level> {
    let mut list = Vec::new();
    for level in order {
        let out = c.base_channels * c.channel_multiplier[level];
        let mut blocks = vec![[out; 2]; n_blocks];
        blocks[0][0] = input;
        input = out;
        let name = format!("{PREFIX}.{name}.{level}");
        let resize = (level != last).then(|| format!("{name}.{resize}.conv"));
        list.push(Level { blocks, attention: c.attention_levels.contains(&level), resize, name });
    }
    list
}

/// Every tensor of encoder, decoder and code book. They stay float: codes must not flip.
pub(crate) fn tensors(c: &MovqConfig) -> Vec<TensorSpec> {
    let (mut list, d) = (List(Vec::new()), c.code_dim);
    for (half, levels) in [("encoder", down(c)), ("decoder", up(c))] {
        let half = format!("{PREFIX}.{half}");
        let code = (!half.ends_with("encoder")).then_some(d);
        let (input, output, inner, outer, kt) = match code {
            None => (3, d, c.base_channels, top(c), 4),
            Some(_) => (d, 3, top(c), c.base_channels * c.channel_multiplier[0], 3),
        };
        list.pair(&format!("{half}.conv_in"), &[inner, input, 3, 3], Role::Float);
        for level in &levels {
            list.level(level, code);
        }
        list.block(&format!("{half}.middle_block.block_1"), [top(c); 2], code);
        list.attention(&format!("{half}.middle_block.attn_1"), top(c));
        list.norm(&format!("{half}.middle_block.attn_norm"), top(c), code);
        list.block(&format!("{half}.middle_block.block_2"), [top(c); 2], code);
        list.norm(&format!("{half}.norm_out"), outer, code);
        list.pair(&format!("{half}.conv_out"), &[output, outer, 3, 3], Role::Float);
        for level in 0..time_levels(c) {
            list.pair(&format!("{half}.time_conv.{level}.conv.conv"), &[d, d, kt, 3, 3], Role::Float);
        }
        for block in 0..c.n_res {
            for i in [1, 2] {
                let stem = format!("{half}.time_res_stack.{block}");
                list.batch_norm(&format!("{stem}.norm{i}"), d);
                list.pair(&format!("{stem}.conv{i}.conv"), &[d, d, 3, 3, 3], Role::Float);
            }
        }
    }
    list.pair(&format!("{PREFIX}.quant_conv.conv"), &[d, d, 3, 1, 1], Role::Float);
    list.pair(&format!("{PREFIX}.post_quant_conv.conv"), &[d, d, 3, 1, 1], Role::Float);
    list.add(format!("{PREFIX}.quantize.embedding.weight"), &[c.codebook_size, d], Role::Float);
    list.0
}

/// Tensors as they are found; `code` is the length of the vectors that spatial norms see, of the decoder.
struct List(Vec<TensorSpec>);

impl List {
    fn add(&mut self, name: String, shape: &[usize], role: Role) {
        self.0.push(TensorSpec::new(name, shape, role));
    }

    /// Weight and bias.
    fn pair(&mut self, stem: &str, shape: &[usize], role: Role) {
        self.add(format!("{stem}.weight"), shape, role);
        self.add(format!("{stem}.bias"), &shape[..1], Role::Exact);
    }

    fn norm(&mut self, stem: &str, channels: usize, code: Option<usize>) {
        let Some(code) = code else { return self.pair(stem, &[channels], Role::Exact) };
        self.pair(&format!("{stem}.norm_layer"), &[channels], Role::Exact);
        for part in ["conv_y", "conv_b"] {
            self.pair(&format!("{stem}.{part}"), &[channels, code, 1, 1], Role::Float);
        }
    }

    fn batch_norm(&mut self, stem: &str, channels: usize) {
        self.pair(stem, &[channels], Role::Exact);
        for part in ["running_mean", "running_var"] {
            self.add(format!("{stem}.{part}"), &[channels], Role::Exact);
        }
    }

    fn block(&mut self, stem: &str, [input, out]: [usize; 2], code: Option<usize>) {
        self.norm(&format!("{stem}.norm1"), input, code);
        self.pair(&format!("{stem}.conv1"), &[out, input, 3, 3], Role::Float);
        self.norm(&format!("{stem}.norm2"), out, code);
        self.pair(&format!("{stem}.conv2"), &[out, out, 3, 3], Role::Float);
        if input != out {
            self.pair(&format!("{stem}.nin_shortcut"), &[out, input, 1, 1], Role::Float);
        }
    }

    fn attention(&mut self, stem: &str, channels: usize) {
        for part in ["q", "k", "v", "out"] {
            self.pair(&format!("{stem}.{part}_proj"), &[channels, channels], Role::Float);
        }
    }

    fn level(&mut self, level: &Level, code: Option<usize>) {
        let Level { name, blocks, attention, resize } = level;
        for (i, &block) in blocks.iter().enumerate() {
            self.block(&format!("{name}.block.{i}"), block, code);
            if *attention {
                self.attention(&format!("{name}.attn.{i}"), block[1]);
                self.norm(&format!("{name}.attn_norms.{i}"), block[1], code);
            }
        }
        if let Some(resize) = resize {
            self.pair(resize, &[level.channels(), level.channels(), 3, 3], Role::Float);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_sizes_have_as_many_parameters_as_the_published_net() {
        let c = MovqConfig {
            base_channels: 256,
            channel_multiplier: vec![1, 2, 2, 4],
            attention_levels: vec![3],
            n_res: 2,
            code_dim: 4,
            codebook_size: 32_768,
            time_factor: 4,
        };
        // 270,740,359 with the batch counters of eight norms, which nothing reads.
        let found: usize = tensors(&c).iter().map(TensorSpec::parameters).sum();
        assert_eq!(found, 270_740_359 - 8);
    }
}
