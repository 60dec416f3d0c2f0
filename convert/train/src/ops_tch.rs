//! The fused operations on libtorch: its own kernels forward, its own autograd backward, as one node of burn's graph.
//!
//! Burn spells attention, norms and convolution gradients out in many passes over memory; libtorch has them in one. On two
//! cores that is most of the time of a step.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, LibTorch};
use burn::tensor::{Tensor, TensorPrimitive};
use burn_tch::TchTensor;

use crate::ops::Fused;

type Cpu = LibTorch<f32>;
type Graph = Autodiff<Cpu>;

/// One node: the leaves that libtorch differentiates and its result.
#[derive(Debug, Clone)]
struct Saved {
    leaves: Vec<TchTensor>,
    out: TchTensor,
    /// Keeps burn from reusing the memory of the inputs in place.
    _inputs: Vec<TchTensor>,
}

#[derive(Debug)]
struct Region<const N: usize>;

impl<const N: usize> Backward<Cpu, N> for Region<N> {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Cpu>(&ops.node);
        let seen = (&ops.state.out.tensor * grad.tensor.to_kind(ops.state.out.tensor.kind())).sum(None);
        let leaves: Vec<&tch::Tensor> = ops.state.leaves.iter().map(|t| &t.tensor).collect();
        let found = tch::Tensor::run_backward(&[seen], &leaves, false, false);
        for (parent, grad) in ops.parents.into_iter().zip(found) {
            if let Some(parent) = parent {
                grads.register::<Cpu>(parent.id, TchTensor::new(grad));
            }
        }
    }
}

/// Runs `f` as one node with `N` differentiable inputs.
fn region<const N: usize, const D: usize>(
    inputs: [TensorPrimitive<Graph>; N],
    f: impl FnOnce([&tch::Tensor; N]) -> tch::Tensor,
) -> Tensor<Graph, D> {
    let inputs = inputs.map(TensorPrimitive::tensor);
    let nodes = inputs.each_ref().map(|t| t.node.clone());
    let out = match Region::<N>.prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let leaves = inputs.each_ref().map(|t| t.primitive.tensor.detach().set_requires_grad(true));
            let out = TchTensor::new(f(leaves.each_ref()));
            // The storage is shared with the saved result, so burn never overwrites it in place.
            let visible = TchTensor { tensor: out.tensor.detach(), storage: out.storage.clone() };
            let leaves = leaves.into_iter().map(TchTensor::new).collect();
            let inputs = inputs.into_iter().map(|t| t.primitive).collect();
            prep.finish(Saved { leaves, out, _inputs: inputs }, visible)
        }
        OpsKind::UnTracked(prep) => {
            prep.finish(TchTensor::new(f(inputs.each_ref().map(|t| &t.primitive.tensor))))
        }
    };
    Tensor::from_primitive(TensorPrimitive::Float(out))
}

fn sdpa(q: &tch::Tensor, k: &tch::Tensor, v: &tch::Tensor, mask: &tch::Tensor, scale: f64) -> tch::Tensor {
    tch::Tensor::scaled_dot_product_attention(q, k, v, Some(mask), 0.0, false, scale, false)
}

fn rms(x: &tch::Tensor, w: &tch::Tensor, eps: f64) -> tch::Tensor {
    let x = x.to_kind(tch::Kind::Float);
    let scale = (x.square().mean_dim(-1i64, true, None) + eps).rsqrt();
    x * scale * w
}

fn conv(x: &tch::Tensor, w: &tch::Tensor, b: &tch::Tensor, stride: usize, padding: usize) -> tch::Tensor {
    let [stride, padding] = [stride, padding].map(|n| i64::try_from(n).unwrap_or(0));
    x.conv2d(w, Some(b), [stride; 2], [padding; 2], [1, 1], 1)
}

/// The libtorch tensor of a plain tensor.
fn plain<const D: usize>(t: Tensor<Cpu, D>) -> TchTensor {
    t.into_primitive().tensor()
}

fn wrap<const D: usize>(t: tch::Tensor) -> Tensor<Cpu, D> {
    Tensor::from_primitive(TensorPrimitive::Float(TchTensor::new(t)))
}

impl Fused for Cpu {
    const BF16: bool = true;

    fn attend(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        mask: Tensor<Self, 4>,
        scale: f64,
    ) -> Tensor<Self, 4> {
        let [q, k, v, mask] = [q, k, v, mask].map(plain);
        wrap(sdpa(&q.tensor, &k.tensor, &v.tensor, &mask.tensor.to_kind(q.tensor.kind()), scale))
    }

    fn convolution(
        x: Tensor<Self, 4>,
        weight: Tensor<Self, 4>,
        bias: Tensor<Self, 1>,
        stride: usize,
        padding: usize,
    ) -> Tensor<Self, 4> {
        wrap(conv(&plain(x).tensor, &plain(weight).tensor, &plain(bias).tensor, stride, padding))
    }
}

impl Fused for Graph {
    const BF16: bool = true;

    fn attend(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        mask: Tensor<Self, 4>,
        scale: f64,
    ) -> Tensor<Self, 4> {
        let mask = plain(mask.inner());
        region([q, k, v].map(Tensor::into_primitive), |[q, k, v]| {
            sdpa(q, k, v, &mask.tensor.to_kind(q.kind()), scale)
        })
    }

    fn rms_norm(x: Tensor<Self, 2>, w: Tensor<Self, 1>, eps: f64) -> Tensor<Self, 2> {
        region([x.into_primitive(), w.into_primitive()], |[x, w]| rms(x, w, eps))
    }

    fn silu_mul(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        region([gate.into_primitive(), up.into_primitive()], |[gate, up]| gate.silu() * up)
    }

    fn silu(x: Tensor<Self, 4>) -> Tensor<Self, 4> {
        region([x.into_primitive()], |[x]| x.silu())
    }

    fn double(x: Tensor<Self, 4>) -> Tensor<Self, 4> {
        let [_, _, h, w] = x.dims();
        let size = [h, w].map(|n| i64::try_from(2 * n).unwrap_or(0));
        region([x.into_primitive()], |[x]| x.upsample_nearest2d(size, None, None))
    }

    fn convolution(
        x: Tensor<Self, 4>,
        weight: Tensor<Self, 4>,
        bias: Tensor<Self, 1>,
        stride: usize,
        padding: usize,
    ) -> Tensor<Self, 4> {
        region([x.into_primitive(), weight.into_primitive(), bias.into_primitive()], |[x, w, b]| {
            conv(x, w, b, stride, padding)
        })
    }
}
