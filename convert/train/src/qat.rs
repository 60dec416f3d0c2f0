//! Fake quantisation: the runtime's INT8 rounding forward, the identity backward.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// Rounds each row to INT8 as the runtime does: `round_ties_even(x · 127/amax) · amax/127`, a row of zeros stays.
///
/// Shapes: `x [rows, n]`, out the same.
pub fn rows<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    through(x, 1)
}

/// The same for each head and token.
///
/// Shapes: `x [b, heads, n, head_dim]`, out the same.
pub fn heads<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 4> {
    through(x, 3)
}

fn through<B: Backend, const D: usize>(x: Tensor<B, D>, dim: usize) -> Tensor<B, D> {
    let plain = x.clone().detach();
    let amax = plain.clone().abs().max_dim(dim).clamp_min(1e-20);
    let rounded =
        (plain.clone() * amax.clone().recip().mul_scalar(127.0)).round() * amax.mul_scalar(1.0 / 127.0);
    x + (rounded - plain)
}
