//! Stage one, the image tokenizer: a VQ-VAE with a flat code book.
//!
//! The encoder and decoder are trained by gradients; the code book follows its vectors by moving averages on the host,
//! where reviving a dead code is a copy.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::layout::ImageDims;
use crate::ops::Fused;
use crate::params::{Leaves, Params, Rule, host};

/// Declares the encoder's and decoder's parameters with their first values.
pub fn declare<B: AutodiffBackend>(params: &mut Params<B>, dims: &ImageDims, rng: &mut ChaCha8Rng) {
    let [c0, c1, c2] = dims.channels;
    let mut conv = |name: String, out: usize, inp: usize, k: usize| {
        let bound = (3.0 / (inp * k * k) as f32).sqrt();
        let weight = (0..out * inp * k * k).map(|_| rng.random_range(-bound..bound)).collect();
        params.declare(format!("image.{name}.weight"), &[out, inp, k, k], Rule::Adam, weight);
        params.declare(format!("image.{name}.bias"), &[out], Rule::Adam, vec![0.0; out]);
    };
    conv("encoder.0".into(), c0, 3, 4);
    conv("encoder.1".into(), c1, c0, 4);
    conv("encoder.2".into(), c2, c1, 4);
    for side in ["encoder", "decoder"] {
        for i in 0..dims.n_res {
            conv(format!("{side}.res.{i}.conv1"), dims.res_hidden, c2, 3);
            conv(format!("{side}.res.{i}.conv2"), c2, dims.res_hidden, 1);
        }
    }
    conv("encoder.out".into(), dims.code_dim, c2, 1);
    conv("decoder.in".into(), c2, dims.code_dim, 3);
    conv("decoder.up.0".into(), c1, c2, 3);
    conv("decoder.up.1".into(), c0, c1, 3);
    conv("decoder.up.2".into(), 3, c0, 3);
}

/// One convolution of the net, by its name under `image.`.
fn conv<B: Fused>(p: &Leaves<B>, name: &str, k: usize, stride: usize, x: Tensor<B, 4>) -> Tensor<B, 4> {
    let weight = p.get(&format!("image.{name}.weight"));
    let [out, fan] = weight.dims();
    let weight = weight.reshape([out, fan / (k * k), k, k]);
    let padding = usize::from(k > 1);
    B::convolution(x, weight, p.vector(&format!("image.{name}.bias")), stride, padding)
}

fn res<B: Fused>(p: &Leaves<B>, name: &str, x: Tensor<B, 4>) -> Tensor<B, 4> {
    let h = conv(p, &format!("{name}.conv1"), 3, 1, B::silu(x.clone()));
    x + conv(p, &format!("{name}.conv2"), 1, 1, B::silu(h))
}

/// Frames to the vectors before the code book.
///
/// Shapes: `x [b, 3, 64, 64]` in −1..1, out `[b, code_dim, 8, 8]`.
pub fn encode<B: Fused>(p: &Leaves<B>, dims: &ImageDims, x: Tensor<B, 4>) -> Tensor<B, 4> {
    let h = B::silu(conv(p, "encoder.0", 4, 2, x));
    let h = B::silu(conv(p, "encoder.1", 4, 2, h));
    let mut h = conv(p, "encoder.2", 4, 2, h);
    for i in 0..dims.n_res {
        h = res(p, &format!("encoder.res.{i}"), h);
    }
    conv(p, "encoder.out", 1, 1, B::silu(h))
}

/// Code vectors to frames, not clamped.
///
/// Shapes: `z [b, code_dim, 8, 8]`, out `[b, 3, 64, 64]`.
pub fn decode<B: Fused>(p: &Leaves<B>, dims: &ImageDims, z: Tensor<B, 4>) -> Tensor<B, 4> {
    let mut h = conv(p, "decoder.in", 3, 1, z);
    for i in 0..dims.n_res {
        h = res(p, &format!("decoder.res.{i}"), h);
    }
    let h = B::silu(conv(p, "decoder.up.0", 3, 1, B::double(h)));
    let h = B::silu(conv(p, "decoder.up.1", 3, 1, B::double(h)));
    conv(p, "decoder.up.2", 3, 1, B::double(h))
}

/// `[b, c, h, w]` to one row a position.
pub fn rows<B: Backend>(z: Tensor<B, 4>) -> Tensor<B, 2> {
    let [b, c, h, w] = z.dims();
    z.permute([0, 2, 3, 1]).reshape([b * h * w, c])
}

/// One row a position back to `[b, c, h, w]`.
pub fn grid<B: Backend>(rows: Tensor<B, 2>, b: usize) -> Tensor<B, 4> {
    let [n, c] = rows.dims();
    let side = (n / b).isqrt();
    rows.reshape([b, side, side, c]).permute([0, 3, 1, 2])
}

/// The flat code book, kept on the host and moved by exponential averages.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CodeBook {
    /// Vectors, `[codebook_size, code_dim]`.
    pub vectors: Vec<f32>,
    dim: usize,
    count: Vec<f32>,
    sum: Vec<f32>,
}

/// Decay of the code book's averages.
const DECAY: f32 = 0.98;
/// A code that is used less than this often (vectors a batch, averaged) is dead.
const DEAD: f32 = 0.06;

impl CodeBook {
    /// A code book whose vectors are drawn from `z`, the vectors of a first batch.
    pub fn drawn_from(z: &[f32], dims: &ImageDims, rng: &mut ChaCha8Rng) -> CodeBook {
        let (n, dim) = (dims.codebook_size, dims.code_dim);
        let mut vectors = Vec::with_capacity(n * dim);
        for _ in 0..n {
            let row = rng.random_range(0..z.len() / dim);
            vectors.extend(z[row * dim..][..dim].iter().map(|v| v + rng.random_range(-0.01..0.01f32)));
        }
        CodeBook { count: vec![1.0; n], sum: vectors.clone(), vectors, dim }
    }

    /// The vectors as a tensor `[codebook_size, code_dim]`.
    pub fn tensor<B: Backend>(&self, device: &B::Device) -> Tensor<B, 2> {
        let n = self.vectors.len() / self.dim;
        Tensor::from_data(TensorData::new(self.vectors.clone(), [n, self.dim]), device)
    }

    /// Moves the vectors towards `z` with its `codes`; revives dead ones from `z`. Returns how many were revived.
    pub fn update(&mut self, z: &[f32], codes: &[u16], rng: &mut ChaCha8Rng) -> usize {
        let dim = self.dim;
        let mut count = vec![0.0f32; self.count.len()];
        let mut sum = vec![0.0f32; self.sum.len()];
        for (row, &code) in z.chunks_exact(dim).zip(codes) {
            let code = usize::from(code);
            count[code] += 1.0;
            for (s, v) in sum[code * dim..][..dim].iter_mut().zip(row) {
                *s += v;
            }
        }
        let mut revived = 0;
        let moved = |old: f32, new: f32| DECAY * old + (1.0 - DECAY) * new;
        self.sum.iter_mut().zip(sum).for_each(|(old, new)| *old = moved(*old, new));
        for (code, count) in count.into_iter().enumerate() {
            self.count[code] = moved(self.count[code], count);
            if self.count[code] < DEAD {
                let row = rng.random_range(0..codes.len());
                let at = code * dim..(code + 1) * dim;
                self.vectors[at.clone()].copy_from_slice(&z[row * dim..][..dim]);
                self.count[code] = 1.0;
                self.sum[at.clone()].copy_from_slice(&self.vectors[at]);
                revived += 1;
            } else {
                for i in code * dim..(code + 1) * dim {
                    self.vectors[i] = self.sum[i] / self.count[code].max(1e-5);
                }
            }
        }
        revived
    }
}

/// The nearest code of each row; ties go to the lowest id.
///
/// Shapes: `z [n, code_dim]`, `book [codebook_size, code_dim]`.
pub fn nearest<B: Backend>(z: Tensor<B, 2>, book: Tensor<B, 2>) -> Vec<u16> {
    let size = book.clone().powf_scalar(2.0).sum_dim(1).transpose();
    let distance = size - z.matmul(book.transpose()).mul_scalar(2.0);
    let codes = distance.argmin(1).into_data();
    codes.iter::<i64>().map(|c| u16::try_from(c).unwrap_or(0)).collect()
}

/// The rows of `book` for `codes`, as a tensor.
pub fn look_up<B: Backend>(book: &CodeBook, codes: &[u16], device: &B::Device) -> Tensor<B, 2> {
    let dim = book.dim;
    let values: Vec<f32> =
        codes.iter().flat_map(|&c| book.vectors[usize::from(c) * dim..][..dim].iter().copied()).collect();
    Tensor::from_data(TensorData::new(values, [codes.len(), dim]), device)
}

/// What one training step measured.
#[derive(Debug, Clone, Copy)]
pub struct StepLoss {
    /// Mean squared error, pixels in −1..1.
    pub mse: f32,
    /// Mean absolute error.
    pub l1: f32,
    /// Commitment of the encoder to its codes.
    pub commit: f32,
    /// Codes revived.
    pub revived: usize,
}

/// Weight of the commitment.
const COMMITMENT: f64 = 0.25;

/// The loss of one batch, the code book moved on the way.
///
/// Shapes: `x [b, 3, 64, 64]`.
pub fn loss<B: AutodiffBackend + Fused>(
    p: &Leaves<B>,
    dims: &ImageDims,
    book: &mut CodeBook,
    x: Tensor<B, 4>,
    rng: &mut ChaCha8Rng,
) -> (Tensor<B, 1>, StepLoss)
where
    B::InnerBackend: Fused,
{
    let b = x.dims()[0];
    let device = x.device();
    let z = rows(encode(p, dims, x.clone()));
    let plain = z.clone().inner();
    let codes = nearest(plain.clone(), book.tensor(&device));
    let e: Tensor<B, 2> = look_up(book, &codes, &device);
    let revived = book.update(&host(&plain), &codes, rng);
    let commit = (z.clone() - e.clone()).powf_scalar(2.0).mean();
    let through = z.clone() + (e - z).detach();
    let error = decode(p, dims, grid(through, b)) - x;
    let mse = error.clone().powf_scalar(2.0).mean();
    let l1 = error.abs().mean();
    let read = |t: &Tensor<B, 1>| host(&t.clone().inner())[0];
    let parts = StepLoss { mse: read(&mse), l1: read(&l1), commit: read(&commit), revived };
    (mse + l1 + commit.mul_scalar(COMMITMENT), parts)
}
