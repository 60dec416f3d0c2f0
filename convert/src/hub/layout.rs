//! Tensors of a folder under the names that a bundle gives them.

use std::path::PathBuf;

use saccade::config::ModelConfig;
use saccade::format::{Rules, read_file_header};

use super::{chameleon, names};
use crate::checkpoint::origin;
use crate::error::Result;
use crate::values::{Origin, Values};

/// The names that a layout has for tensors.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// Ours for theirs.
    pub(super) name: fn(&str) -> Option<String>,
    /// How names begin of what is not converted.
    pub(super) left_out: &'static [&'static str],
}

/// In our names, stands for queries, keys and values in one tensor, one below the other.
pub(super) const QKV: &str = "attn.qkv";

impl Layout {
    pub(super) fn of(name: fn(&str) -> Option<String>) -> Self {
        Self { name, left_out: &[] }
    }

    /// Every tensor of safetensors files under the name that the bundle gives it.
    pub(super) fn weights(self, shards: &[PathBuf], model: &ModelConfig) -> Result<Values> {
        let mut values = Values::default();
        for shard in shards {
            let header = read_file_header(shard, Rules::Foreign)?;
            let file = values.add_file(shard);
            for tensor in &header.tensors {
                let ours = self.ours(tensor.name.clone(), model);
                let parts = ours.len();
                for (at, ours) in ours.into_iter().enumerate() {
                    values.add(ours, part(origin(file, tensor), at, parts))?;
                }
            }
        }
        Ok(values)
    }

    /// The names that a bundle gives a tensor, its own if it is not known; none for what is not converted.
    pub(super) fn ours(self, theirs: String, model: &ModelConfig) -> Vec<String> {
        if names::IGNORED.iter().any(|ignored| theirs.ends_with(ignored))
            || self.left_out.iter().any(|left_out| theirs.starts_with(left_out))
        {
            return Vec::new();
        }
        let ours = (self.name)(&theirs).unwrap_or(theirs);
        let ours = match model {
            ModelConfig::Chameleon(c) => chameleon::from_the_grid(c, ours),
            _ => ours,
        };
        // A tied head is stored by some as well.
        if ours == "head.weight" && model.decoder().tied {
            return Vec::new();
        }
        if ours.contains(QKV) {
            return ["attn.q", "attn.k", "attn.v"].map(|part| ours.replace(QKV, part)).into();
        }
        vec![ours]
    }
}

/// Rows `at`, of so many `parts` of a tensor one below the other; all of it where it cannot be cut so, which its shape tells. A batch of
/// one in front of positions goes.
fn part(mut origin: Origin, at: usize, parts: usize) -> Origin {
    if let [1, _, _] = origin.shape[..] {
        origin.shape.remove(0);
    }
    match origin.shape.first_mut() {
        Some(rows) if parts > 1 && rows.is_multiple_of(parts) => {
            *rows /= parts;
            origin.bytes /= parts as u64;
            origin.offset += at as u64 * origin.bytes;
        }
        _ => {}
    }
    origin
}
