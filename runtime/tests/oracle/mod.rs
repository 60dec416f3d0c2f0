//! The `unimodal` family once more, in double precision, straight from its definition: dense attention over a whole
//! sequence, the mask and every position written out, no cache, no engine. Slow and obvious; the runtime is tested against it.

// A module of tests: everything in it is for the test files that include it, none of which uses all.
#![allow(dead_code, unreachable_pub, clippy::needless_range_loop)]

pub mod bundle;

use std::collections::BTreeMap;

use saccade::config::{Modality, UnimodalConfig};
use saccade::family::tensors;

/// The smallest model that has everything: 4 codes a picture, windows of 2, 3 actions of 2 dimensions.
pub fn tiny() -> UnimodalConfig {
    let mut c = saccade::config::nano();
    c.name = "tiny".into();
    (c.d_model, c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim, c.d_ff) = (48, 2, 4, 2, 16, 72);
    for modality in &mut c.modalities {
        modality.window = modality.window.map(|_| 2);
    }
    (c.tokens.text, c.tokens.bins, c.tokens.image) = ([0, 96], [96, 352], [352, 416]);
    c.vocab_size = 416;
    (c.image.width, c.image.height, c.image.grid) = (16, 16, [2, 2]);
    (c.image.code_dim, c.image.codebook_size, c.image.res_hidden) = (6, 64, 5);
    (c.image.encoder_channels, c.image.decoder_channels) = ([7, 9, 10], [10, 9, 7]);
    for bins in [&mut c.action.names, &mut c.state.names] {
        bins.truncate(2);
    }
    for bounds in [&mut c.action.low, &mut c.action.high, &mut c.state.low, &mut c.state.high] {
        bounds.truncate(2);
    }
    (c.action.steps, c.action.executed) = (3, 2);
    c
}

/// A checkpoint's tensors, by name: shape and values.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Random values for every tensor: norms around 1, everything else small enough that no softmax saturates.
pub fn random_tensors(c: &UnimodalConfig, seed: u64) -> Tensors {
    let mut state = seed;
    let mut unit = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        #[allow(clippy::cast_precision_loss)]
        {
            (state >> 40) as f32 / (1_u64 << 24) as f32 * 2.0 - 1.0
        }
    };
    let fill = |name: &str, n: usize, fan_in: usize| -> Vec<f32> {
        #[allow(clippy::cast_precision_loss)]
        let scale = (3.0 / fan_in as f32).sqrt();
        (0..n)
            .map(|_| if name.ends_with("norm.weight") { 1.0 + 0.3 * unit() } else { scale * unit() })
            .collect()
    };
    let mut fill = fill;
    tensors(&c.clone().into())
        .iter()
        .map(|t| {
            let [_, fan_in] = t.matrix();
            let fan_in = if t.name.contains("embed") || t.shape.len() == 1 { 3 } else { fan_in };
            (t.name.clone(), (t.shape.clone(), fill(&t.name, t.parameters(), fan_in)))
        })
        .collect()
}

/// What a token's input vector is made of.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    /// A token of the vocabulary.
    Token(u32),
    /// An image code (0-based) at a place of the grid.
    Code(u16, usize),
    /// A task prefix vector.
    Prefix(usize),
    /// An action slot.
    Slot(usize),
}

/// A segment and the segments that are live for its tokens, oldest first (indices of earlier ones, itself left out).
#[derive(Clone, Debug)]
pub struct Segment {
    pub modality: Modality,
    pub inputs: Vec<Input>,
    pub live: Vec<usize>,
    /// Tokens see only themselves of their own segment.
    pub slots: bool,
}

/// The model in double precision.
pub struct Oracle<'a> {
    pub c: &'a UnimodalConfig,
    pub t: &'a Tensors,
}

impl Oracle<'_> {
    fn get(&self, name: &str) -> &[f32] {
        &self.t[name].1
    }

    fn row(&self, name: &str, row: usize) -> Vec<f64> {
        let cols = self.t[name].0[1];
        self.get(name)[row * cols..][..cols].iter().map(|&v| f64::from(v)).collect()
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        self.get(name)
            .chunks_exact(x.len())
            .map(|w| w.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum())
            .collect()
    }

    fn rms_norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let w = self.get(name);
        x.chunks_exact(w.len())
            .flat_map(|x| {
                #[allow(clippy::cast_precision_loss)]
                let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
                let r = 1.0 / (mean + f64::from(self.c.norm_eps)).sqrt();
                x.iter().zip(w).map(move |(v, &w)| v * r * f64::from(w)).collect::<Vec<_>>()
            })
            .collect()
    }

    /// Rotates each head of `x` by the angles of position `pos`.
    #[allow(clippy::cast_precision_loss)]
    fn rope(&self, x: &[f64], pos: usize) -> Vec<f64> {
        let (hd, half) = (self.c.head_dim, self.c.head_dim / 2);
        let mut out = x.to_vec();
        for (head, out) in x.chunks_exact(hd).zip(out.chunks_exact_mut(hd)) {
            for i in 0..half {
                let angle = pos as f64 * f64::from(self.c.rope_theta).powf(-2.0 * i as f64 / hd as f64);
                let (sin, cos) = angle.sin_cos();
                out[i] = head[i] * cos - head[i + half] * sin;
                out[i + half] = head[i + half] * cos + head[i] * sin;
            }
        }
        out
    }

    fn embed(&self, input: Input, modality: Modality) -> Vec<f64> {
        let mut x = match input {
            Input::Token(id) => self.row("embed.weight", id as usize),
            Input::Code(code, place) => {
                let mut x = self.row("embed.weight", self.c.tokens.image[0] as usize + usize::from(code));
                add(&mut x, &self.row("image_grid.weight", place));
                x
            }
            Input::Prefix(at) => self.row("task_prefix.weight", at),
            Input::Slot(at) => self.row("action_slots.weight", at),
        };
        add(&mut x, &self.row("modality_embed.weight", modality.index()));
        x
    }

    /// Final hidden states of every token, after the last norm: `[segment][token][d_model]`.
    pub fn forward(&self, segments: &[Segment]) -> Vec<Vec<Vec<f64>>> {
        let c = self.c;
        let mut x: Vec<Vec<Vec<f64>>> =
            segments.iter().map(|s| s.inputs.iter().map(|&i| self.embed(i, s.modality)).collect()).collect();
        for layer in 0..c.n_layers {
            let name = |n: &str| format!("layers.{layer}.{n}");
            let project =
                |x: &[f64], n: &str| self.linear(&name(n), &self.rms_norm(&name("attn_norm.weight"), x));
            let head_norm = |x: &[f64], n: &str| self.rms_norm(&name(n), x);
            let each = |f: &dyn Fn(&[f64]) -> Vec<f64>| -> Vec<Vec<Vec<f64>>> {
                x.iter().map(|s| s.iter().map(|x| f(x)).collect()).collect()
            };
            let q = each(&|x| head_norm(&project(x, "attn.q.weight"), "attn.q_norm.weight"));
            let k = each(&|x| head_norm(&project(x, "attn.k.weight"), "attn.k_norm.weight"));
            let v = each(&|x| project(x, "attn.v.weight"));
            for (at, segment) in segments.iter().enumerate() {
                for i in 0..segment.inputs.len() {
                    let attended =
                        self.attend(segments, at, i, (&q, &k, &v), self.get(&name("attn.modality_bias")));
                    add(&mut x[at][i], &self.linear(&name("attn.o.weight"), &attended));
                    let n = self.rms_norm(&name("ffn_norm.weight"), &x[at][i]);
                    let (gate, up) =
                        (self.linear(&name("ffn.gate.weight"), &n), self.linear(&name("ffn.up.weight"), &n));
                    let hidden: Vec<f64> =
                        gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                    let down = self.linear(&name("ffn.down.weight"), &hidden);
                    add(&mut x[at][i], &down);
                }
            }
        }
        x.iter().map(|s| s.iter().map(|x| self.rms_norm("norm.weight", x)).collect()).collect()
    }

    /// One token's attention over what it sees, positions counted in the concatenation of its live segments.
    #[allow(clippy::type_complexity)]
    fn attend(
        &self,
        segments: &[Segment],
        at: usize,
        i: usize,
        (q, k, v): (&[Vec<Vec<f64>>], &[Vec<Vec<f64>>], &[Vec<Vec<f64>>]),
        bias: &[f32],
    ) -> Vec<f64> {
        let (c, hd) = (self.c, self.c.head_dim);
        let me = &segments[at];
        let mut seen = Vec::new();
        let mut base = 0;
        for &s in &me.live {
            seen.extend((0..segments[s].inputs.len()).map(|j| (s, j, base + j)));
            base += segments[s].inputs.len();
        }
        let own = if me.slots { i..=i } else { 0..=i };
        seen.extend(own.map(|j| (at, j, base + j)));

        let turned_q = self.rope(&q[at][i], base + i);
        let turned_k: Vec<Vec<f64>> = seen.iter().map(|&(s, j, pos)| self.rope(&k[s][j], pos)).collect();
        let m = Modality::ALL.len();
        let mut out = vec![0.0; c.n_heads * hd];
        for head in 0..c.n_heads {
            let kv = head * c.n_kv_heads / c.n_heads;
            let logits: Vec<f64> = seen
                .iter()
                .zip(&turned_k)
                .map(|(&(s, ..), k)| {
                    let dot: f64 =
                        turned_q[head * hd..][..hd].iter().zip(&k[kv * hd..][..hd]).map(|(a, b)| a * b).sum();
                    let b = bias[(head * m + me.modality.index()) * m + segments[s].modality.index()];
                    #[allow(clippy::cast_precision_loss)]
                    {
                        dot / (hd as f64).sqrt() + f64::from(b)
                    }
                })
                .collect();
            let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = logits.iter().map(|l| (l - max).exp()).sum();
            for (&(s, j, _), l) in seen.iter().zip(&logits) {
                let p = (l - max).exp() / total;
                for (out, v) in out[head * hd..][..hd].iter_mut().zip(&v[s][j][kv * hd..][..hd]) {
                    *out += p * v;
                }
            }
        }
        out
    }

    /// Logits over a range of token ids.
    pub fn logits(&self, hidden: &[f64], [from, to]: [u32; 2]) -> Vec<f64> {
        (from..to)
            .map(|id| self.row("embed.weight", id as usize).iter().zip(hidden).map(|(w, h)| w * h).sum())
            .collect()
    }

    /// A convolution over `[height][width][channels]`, from the checkpoint's `[out, in, kh, kw]`.
    pub fn conv(&self, stem: &str, x: &[Vec<Vec<f64>>], stride: usize, pad: usize) -> Vec<Vec<Vec<f64>>> {
        let (shape, w) = &self.t[&format!("{stem}.weight")];
        let bias = self.get(&format!("{stem}.bias"));
        let [out, input, kh, kw] = shape[..] else { panic!("{stem} is no convolution") };
        let (height, width) = (x.len(), x[0].len());
        let size = |n: usize, k: usize| (n + 2 * pad - k) / stride + 1;
        let value = |o: usize, row: usize, col: usize| {
            let mut sum = f64::from(bias[o]);
            for i in 0..input {
                for a in 0..kh {
                    for b in 0..kw {
                        let (y, z) =
                            ((row * stride + a).wrapping_sub(pad), (col * stride + b).wrapping_sub(pad));
                        if y < height && z < width {
                            sum += f64::from(w[((o * input + i) * kh + a) * kw + b]) * x[y][z][i];
                        }
                    }
                }
            }
            sum
        };
        (0..size(height, kh))
            .map(|row| {
                (0..size(width, kw)).map(|col| (0..out).map(|o| value(o, row, col)).collect()).collect()
            })
            .collect()
    }
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}
