//! Language models of the Llama kind: the decoder and nothing else.

use super::{Role, TensorSpec};
use crate::config::{DecoderConfig, RopeScaling};
use crate::decoder::block_tensors;

/// Every tensor of the family.
pub(super) fn tensors(c: &DecoderConfig) -> Vec<TensorSpec> {
    let vocabulary = |name: &str| TensorSpec::new(name, &[c.vocab_size, c.d_model], Role::Linear);
    let mut list = vec![vocabulary("embed.weight")];
    list.extend(block_tensors(c));
    list.push(TensorSpec::new("norm.weight", &[c.d_model], Role::Exact));
    if !c.tied {
        list.push(vocabulary("head.weight"));
    }
    if c.rope_scaling == RopeScaling::Factors {
        list.push(TensorSpec::new("rope.factors", &[c.head_dim / 2], Role::Exact));
    }
    list
}
