//! A build without ONNX Runtime: there is no graph.

use std::path::Path;

use super::OnnxError;
use crate::Result;
use crate::config::{BundleConfig, FrontEnd, ModelConfig};
use crate::engine::EngineOptions;

/// A graph that is open; here there is none.
#[derive(Debug)]
pub(crate) enum Graph {}

impl Graph {
    /// Refuses a bundle that has a graph.
    pub(crate) fn open(
        dir: &Path,
        _: &BundleConfig,
        FrontEnd { graph, .. }: &FrontEnd,
        _: &EngineOptions,
        _: usize,
    ) -> Result<Self> {
        Err(OnnxError::Feature { path: dir.join(graph) }.into())
    }

    /// Never called.
    pub(crate) fn run(&self, _: &[f32], _: (usize, usize), _: &mut Vec<f32>) -> Result<()> {
        match *self {}
    }
}

/// Refuses the graph.
///
/// # Errors
/// [`OnnxError::Feature`].
pub fn check(path: &Path, _: &ModelConfig) -> Result<()> {
    Err(OnnxError::Feature { path: path.into() }.into())
}
