//! The few operations that a backend may do in one piece: attention, RMS norm and convolution, here spelled out for any backend.

use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, FloatDType, Tensor};

/// What training asks of a backend beyond burn's own trait.
pub trait Fused: Backend {
    /// Whether matrix products in bfloat16 pay on this backend.
    const BF16: bool = false;

    /// Softmax attention with an additive mask.
    ///
    /// Shapes: `q [b, h, n, d]`, `k, v [b, h, m, d]`, `mask [b, 1, n, m]` (0 or a large negative number).
    fn attend(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        mask: Tensor<Self, 4>,
        scale: f64,
    ) -> Tensor<Self, 4> {
        let dtype = v.dtype();
        let scores =
            q.matmul(k.swap_dims(2, 3)).cast(FloatDType::F32).mul_scalar(scale) + mask.cast(FloatDType::F32);
        like(softmax(scores, 3), dtype).matmul(v)
    }

    /// `x · rsqrt(mean(x²) + eps) · w` over the last dimension, in float32.
    ///
    /// Shapes: `x [rows, n]`, `w [n]`, out `[rows, n]`.
    fn rms_norm(x: Tensor<Self, 2>, w: Tensor<Self, 1>, eps: f64) -> Tensor<Self, 2> {
        let x = x.cast(FloatDType::F32);
        let scale = x.clone().powf_scalar(2.0).mean_dim(1).add_scalar(eps).sqrt().recip();
        x * scale * w.unsqueeze()
    }

    /// `silu(gate) · up`.
    ///
    /// Shapes: all `[rows, n]`.
    fn silu_mul(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        burn::tensor::activation::silu(gate) * up
    }

    /// `x · sigmoid(x)`.
    fn silu(x: Tensor<Self, 4>) -> Tensor<Self, 4> {
        burn::tensor::activation::silu(x)
    }

    /// Every pixel four times (nearest neighbour).
    ///
    /// Shapes: `x [b, c, h, w]`, out `[b, c, 2h, 2w]`.
    fn double(x: Tensor<Self, 4>) -> Tensor<Self, 4> {
        let [b, c, h, w] = x.dims();
        x.reshape([b * c, h, 1, w, 1]).expand([b * c, h, 2, w, 2]).reshape([b, c, 2 * h, 2 * w])
    }

    /// Two-dimensional convolution.
    ///
    /// Shapes: `x [b, c, h, w]`, `weight [o, c, k, k]`, `bias [o]`.
    fn convolution(
        x: Tensor<Self, 4>,
        weight: Tensor<Self, 4>,
        bias: Tensor<Self, 1>,
        stride: usize,
        padding: usize,
    ) -> Tensor<Self, 4> {
        let options = ConvOptions::new([stride; 2], [padding; 2], [1; 2], 1);
        conv2d(x, weight, Some(bias), options)
    }
}

/// `x` in `dtype` (bfloat16 stays, everything else is float32).
pub fn like<B: Backend, const D: usize>(x: Tensor<B, D>, dtype: DType) -> Tensor<B, D> {
    x.cast(if dtype == DType::BF16 { FloatDType::BF16 } else { FloatDType::F32 })
}

/// `x · wᵀ`, in bfloat16 where the backend likes that; the result stays in that type.
///
/// Shapes: `x [rows, in]`, `w [out, in]`, out `[rows, out]`.
pub fn linear<B: Fused>(x: Tensor<B, 2>, w: Tensor<B, 2>, bf16: bool) -> Tensor<B, 2> {
    if bf16 && B::BF16 {
        x.cast(FloatDType::BF16).matmul(w.cast(FloatDType::BF16).transpose())
    } else {
        x.cast(FloatDType::F32).matmul(w.transpose())
    }
}

#[cfg(feature = "flex")]
mod flex {
    use super::Fused;
    use burn::backend::{Autodiff, Flex};

    impl Fused for Flex {}
    impl Fused for Autodiff<Flex> {}
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::Fused;
    use burn::backend::{Autodiff, Cuda};

    impl Fused for Cuda {}
    impl Fused for Autodiff<Cuda> {}
}
