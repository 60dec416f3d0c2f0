//! Emu3: a language model whose vocabulary has the codes of pictures and clips, and the net that makes them and turns them back.

use super::{TensorSpec, llama};
use crate::config::Emu3Config;
use crate::movq;

/// Every tensor of the family.
pub(super) fn tensors(c: &Emu3Config) -> Vec<TensorSpec> {
    let mut list = llama::tensors(&c.language.decoder);
    list.extend(movq::tensors(&c.image.movq));
    list
}
