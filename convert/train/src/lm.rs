//! The `unimodal` transformer in training: the same forward pass as the runtime's, over packed sequences.

use burn::tensor::activation::log_softmax;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{FloatDType, Tensor};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::batch::{Batch, Rope};
use crate::layout::{Dims, N_CODES, N_MODALITIES, N_SLOTS, N_TASKS, PREFIX_LEN};
use crate::ops::{Fused, linear};
use crate::params::{Leaves, Params, Rule};
use crate::qat;

/// How a forward pass computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Float32 throughout: goldens, evaluation.
    F32,
    /// Matrix products in bfloat16 where the backend likes that.
    Mixed,
    /// Mixed, and INT8 as the runtime rounds, with straight-through gradients.
    FakeInt8,
}

/// Standard deviation of the first embedding rows.
const EMBED_STD: f32 = 0.02 * 5.0;

/// A normal deviate from uniform ones (the sum of twelve, less six).
fn normal(rng: &mut ChaCha8Rng, std: f32) -> f32 {
    ((0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0) * std
}

/// Declares the transformer's parameters with their first values.
///
/// The embedding rows of image codes start as a random projection of the `codebook` (`[codebook_size, code_dim]`), so that
/// similar codes start similar.
pub fn declare<B: AutodiffBackend>(
    params: &mut Params<B>,
    dims: &Dims,
    codebook: &[f32],
    rng: &mut ChaCha8Rng,
) {
    let d = dims.d_model;
    let gauss =
        |n: usize, std: f32, rng: &mut ChaCha8Rng| (0..n).map(|_| normal(rng, std)).collect::<Vec<f32>>();
    let mut embed = gauss(dims.vocab_size() * d, EMBED_STD, rng);
    project_codes(&mut embed[dims.image_codes().start * d..], dims, codebook, rng);
    params.declare("embed.weight", &[dims.vocab_size(), d], Rule::Adam, embed);
    params.declare(
        "modality_embed.weight",
        &[N_MODALITIES, d],
        Rule::Adam,
        gauss(N_MODALITIES * d, EMBED_STD, rng),
    );
    let n_prefix = N_TASKS * PREFIX_LEN;
    params.declare("task_prefix.weight", &[n_prefix, d], Rule::Adam, gauss(n_prefix * d, EMBED_STD, rng));
    params.declare("image_grid.weight", &[N_CODES, d], Rule::Adam, gauss(N_CODES * d, EMBED_STD, rng));
    params.declare("action_slots.weight", &[N_SLOTS, d], Rule::Adam, gauss(N_SLOTS * d, EMBED_STD, rng));
    params.declare("norm.weight", &[d], Rule::Adam, vec![1.0; d]);
    let (q, kv) = (dims.n_heads * dims.head_dim, dims.n_kv_heads * dims.head_dim);
    let small = 1.0 / (2.0 * dims.n_layers as f32).sqrt();
    for l in 0..dims.n_layers {
        let mut matrix = |name: &str, out: usize, inp: usize, gain: f32| {
            let values = gauss(out * inp, gain / (inp as f32).sqrt(), rng);
            params.declare(format!("layers.{l}.{name}.weight"), &[out, inp], Rule::Muon, values);
        };
        matrix("attn.q", q, d, 1.0);
        matrix("attn.k", kv, d, 1.0);
        matrix("attn.v", kv, d, 1.0);
        matrix("attn.o", d, q, small);
        matrix("ffn.gate", dims.d_ff, d, 1.0);
        matrix("ffn.up", dims.d_ff, d, 1.0);
        matrix("ffn.down", d, dims.d_ff, small);
        for (name, n) in [
            ("attn_norm", d),
            ("ffn_norm", d),
            ("attn.q_norm", dims.head_dim),
            ("attn.k_norm", dims.head_dim),
        ] {
            params.declare(format!("layers.{l}.{name}.weight"), &[n], Rule::Adam, vec![1.0; n]);
        }
        let bias = [dims.n_heads, N_MODALITIES, N_MODALITIES];
        params.declare(
            format!("layers.{l}.attn.modality_bias"),
            &bias,
            Rule::Adam,
            vec![0.0; bias.iter().product()],
        );
    }
}

/// Overwrites the rows of image codes by a random projection of their vectors, scaled to the others' deviation.
fn project_codes(rows: &mut [f32], dims: &Dims, codebook: &[f32], rng: &mut ChaCha8Rng) {
    let (d, c, n) = (dims.d_model, dims.image.code_dim, dims.image.codebook_size);
    if codebook.len() != n * c {
        return;
    }
    let mean: Vec<f32> = (0..c).map(|j| codebook.iter().skip(j).step_by(c).sum::<f32>() / n as f32).collect();
    let centred: Vec<f32> = codebook.iter().enumerate().map(|(i, v)| v - mean[i % c]).collect();
    let std = (centred.iter().map(|v| v * v).sum::<f32>() / centred.len() as f32).sqrt().max(1e-6);
    let projection: Vec<f32> = (0..c * d).map(|_| normal(rng, 1.0 / (c as f32).sqrt())).collect();
    for (row, code) in rows.chunks_exact_mut(d).zip(centred.chunks_exact(c)) {
        for (i, v) in row.iter_mut().enumerate() {
            let dot: f32 = code.iter().enumerate().map(|(j, x)| x * projection[j * d + i]).sum();
            *v = (0.9 * dot / std + normal(rng, 0.3)) * EMBED_STD;
        }
    }
}

/// The residual stream after the last norm.
///
/// Shapes: out `[b·n, d_model]`.
pub fn forward<B: Fused>(p: &Leaves<B>, dims: &Dims, batch: &Batch<B>, precision: Precision) -> Tensor<B, 2> {
    let embed = embedding(p, precision);
    let table = Tensor::cat(vec![embed, p.get("task_prefix.weight"), p.get("action_slots.weight")], 0);
    let grid = p.get("image_grid.weight");
    let none = Tensor::zeros([1, dims.d_model], &grid.device());
    let mut x = table.select(0, batch.rows.clone())
        + Tensor::cat(vec![grid, none], 0).select(0, batch.raster.clone())
        + batch.modality.clone().matmul(p.get("modality_embed.weight"));
    for l in 0..dims.n_layers {
        let w = |name: &str| p.get(&format!("layers.{l}.{name}.weight"));
        let v = |name: &str| p.vector(&format!("layers.{l}.{name}.weight"));
        let n = B::rms_norm(x.clone(), v("attn_norm"), dims.norm_eps);
        x = x + attention(p, l, dims, batch, n, precision).cast(FloatDType::F32);
        let n = B::rms_norm(x.clone(), v("ffn_norm"), dims.norm_eps);
        let gate_up = project(n, Tensor::cat(vec![w("ffn.gate"), w("ffn.up")], 0), "ffn.gate", precision);
        let mut halves = gate_up.split(dims.d_ff, 1).into_iter();
        if let (Some(gate), Some(up)) = (halves.next(), halves.next()) {
            let h = B::silu_mul(gate, up);
            x = x + project(h, w("ffn.down"), &format!("layers.{l}.ffn.down"), precision)
                .cast(FloatDType::F32);
        }
    }
    B::rms_norm(x, p.vector("norm.weight"), dims.norm_eps)
}

/// The embedding matrix, rounded as the runtime stores it when INT8 is imitated.
fn embedding<B: Fused>(p: &Leaves<B>, precision: Precision) -> Tensor<B, 2> {
    match precision {
        Precision::FakeInt8 => qat::rows(p.get("embed.weight")),
        _ => p.get("embed.weight"),
    }
}

/// `x · wᵀ` in the chosen precision, for the layer of this name (layers that are multiplied together have one).
fn project<B: Fused>(x: Tensor<B, 2>, w: Tensor<B, 2>, name: &str, precision: Precision) -> Tensor<B, 2> {
    match precision {
        Precision::F32 => linear(x, w, false),
        Precision::Mixed => linear(x, w, true),
        Precision::FakeInt8 => linear(activations(x.cast(FloatDType::F32), name), qat::rows(w), false),
    }
}

/// Activations as the layer `name` sees them in an INT8 bundle. Two INT8 parts are as good as the float they came from.
fn activations<B: Backend>(x: Tensor<B, 2>, name: &str) -> Tensor<B, 2> {
    if saccade_convert::store::own_two_part(name) { x } else { qat::rows(x) }
}

/// Rotates halves: pairs (i, i + d/2).
fn rotate<B: Backend>(x: Tensor<B, 4>, rope: &Rope<B>) -> Tensor<B, 4> {
    let half = x.dims()[3] / 2;
    let a = x.clone().narrow(3, 0, half);
    let b = x.narrow(3, half, half);
    Tensor::cat(
        vec![
            a.clone() * rope.cos.clone() - b.clone() * rope.sin.clone(),
            b * rope.cos.clone() + a * rope.sin.clone(),
        ],
        3,
    )
}

/// Grouped-query attention over the packed keys, with the modality bias as four extra dimensions of query and key.
///
/// Shapes: `x [b·n, d_model]`, out the same.
fn attention<B: Fused>(
    p: &Leaves<B>,
    l: usize,
    dims: &Dims,
    batch: &Batch<B>,
    x: Tensor<B, 2>,
    precision: Precision,
) -> Tensor<B, 2> {
    let (b, n, m) = (batch.b, batch.n, batch.keys());
    let (h, g, hd) = (dims.n_heads, dims.n_kv_heads, dims.head_dim);
    let w = |name: &str| p.get(&format!("layers.{l}.attn.{name}.weight"));
    let norm = |x: Tensor<B, 2>, heads: usize, name: &str| {
        let weight = p.vector(&format!("layers.{l}.attn.{name}.weight"));
        let x = B::rms_norm(x.reshape([b * n * heads, hd]), weight, dims.norm_eps);
        x.reshape([b, n, heads, hd]).swap_dims(1, 2)
    };
    let qkv = project(x, Tensor::cat(vec![w("q"), w("k"), w("v")], 0), "attn.q", precision);
    let dtype = qkv.dtype();
    let q = rotate(norm(qkv.clone().narrow(1, 0, h * hd), h, "q_norm"), &batch.query_rope);
    let k = rotate(norm(qkv.clone().narrow(1, h * hd, g * hd), g, "k_norm"), &batch.offset_rope);
    let v = qkv.narrow(1, (h + g) * hd, g * hd).reshape([b, n, g, hd]).swap_dims(1, 2);
    let (q, k, v) = match precision {
        Precision::FakeInt8 => (qat::heads(q), qat::heads(k), qat::heads(v.cast(FloatDType::F32))),
        _ => (q, k, v),
    };
    let k = rotate(with_ghosts(k, batch), &batch.base_rope);
    let v = with_ghosts(v, batch);
    // The bias of (head, query modality, key modality) is a dot product with the key's one-hot modality.
    let scale = 1.0 / (hd as f64).sqrt();
    let bias = p.get(&format!("layers.{l}.attn.modality_bias")).reshape([h, N_MODALITIES, N_MODALITIES]);
    let bias = bias.swap_dims(0, 1).reshape([N_MODALITIES, h * N_MODALITIES]).mul_scalar(1.0 / scale);
    let bias = batch.modality.clone().matmul(bias).reshape([b, n, h, N_MODALITIES]).swap_dims(1, 2);
    let one_hot = batch.key_modality.clone().expand([b, g, m, N_MODALITIES]);
    let blank = Tensor::zeros([b, g, m, N_MODALITIES], &v.device());
    let q = crate::ops::like(Tensor::cat(vec![q, bias], 3), dtype);
    let k = crate::ops::like(Tensor::cat(vec![k, one_hot], 3), dtype);
    let v = crate::ops::like(Tensor::cat(vec![v.cast(FloatDType::F32), blank], 3), dtype);
    let out = B::attend(q, repeat(k, h / g), repeat(v, h / g), batch.mask.clone(), scale);
    let out = out.narrow(3, 0, hd).swap_dims(1, 2).reshape([b * n, h * hd]);
    project(out, w("o"), "attn.o", precision)
}

/// Keys or values of the tokens, then the copies of segment 0.
fn with_ghosts<B: Backend>(x: Tensor<B, 4>, batch: &Batch<B>) -> Tensor<B, 4> {
    if batch.ghosts == 0 {
        return x;
    }
    let s0 = x.clone().narrow(2, 0, batch.s0);
    let mut parts = vec![x];
    parts.extend(std::iter::repeat_n(s0, batch.ghosts));
    Tensor::cat(parts, 2)
}

/// Each key head for its group of query heads.
fn repeat<B: Backend>(x: Tensor<B, 4>, times: usize) -> Tensor<B, 4> {
    let [b, g, m, d] = x.dims();
    x.reshape([b, g, 1, m, d]).expand([b, g, times, m, d]).reshape([b, g * times, m, d])
}

/// Logits of `head` (0 text, 1 bins, 2 image) at its loss positions.
///
/// Shapes: `x [b·n, d_model]`, out `[targets, range]`.
pub fn logits<B: Fused>(
    p: &Leaves<B>,
    dims: &Dims,
    batch: &Batch<B>,
    x: &Tensor<B, 2>,
    head: usize,
    precision: Precision,
) -> Option<Tensor<B, 2>> {
    let targets = batch.targets[head].as_ref()?;
    let range = [dims.text(), dims.bins(), dims.image_codes()][head].clone();
    let x = x.clone().select(0, targets.at.clone());
    let w = embedding(p, precision).narrow(0, range.start, range.len());
    let x = if precision == Precision::FakeInt8 { activations(x, "embed") } else { x };
    Some(linear(x, w, precision == Precision::Mixed).cast(FloatDType::F32))
}

/// Mean cross-entropy and how many predictions were right.
pub struct HeadLoss<B: Backend> {
    /// Mean over the positions, `[1]`.
    pub loss: Tensor<B, 1>,
    /// Mean of the right ones, `[1]`, without a graph.
    pub accuracy: Tensor<B, 1>,
}

/// The loss of one head, where the batch has positions for it.
pub fn head_loss<B: Fused>(
    p: &Leaves<B>,
    dims: &Dims,
    batch: &Batch<B>,
    x: &Tensor<B, 2>,
    head: usize,
    precision: Precision,
) -> Option<HeadLoss<B>> {
    let targets = batch.targets[head].as_ref()?;
    let logits = logits(p, dims, batch, x, head, precision)?;
    let right = logits.clone().detach().argmax(1).reshape([targets.count]).equal(targets.id.clone());
    let picked = log_softmax(logits, 1).gather(1, targets.id.clone().reshape([targets.count, 1]));
    Some(HeadLoss { loss: picked.mean().neg(), accuracy: right.float().mean() })
}
