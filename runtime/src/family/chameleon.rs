//! Chameleon: a language model whose vocabulary has the codes of pictures, and the encoder that makes them.

use super::{TensorSpec, llama};
use crate::config::ChameleonConfig;
use crate::vq;

/// Every tensor of the family.
pub(super) fn tensors(c: &ChameleonConfig) -> Vec<TensorSpec> {
    let mut list = llama::tensors(&c.language.decoder);
    list.extend(vq::tensors(&c.image.vq));
    list
}
