//! The inference thread: one model, one request at a time.

use std::path::Path;
use std::sync::mpsc::Receiver;

use crate::admit::Served;
use crate::job::Job;
use crate::metrics::Metrics;

/// Loads the bundle, says so through `ready`, and answers jobs until their queue is closed.
///
/// # Errors
/// If the bundle cannot be opened.
pub(crate) fn run(
    _model: Option<&Path>,
    _threads: usize,
    _ready: impl FnOnce(Served),
    _jobs: &Receiver<Job>,
    _metrics: &Metrics,
) -> anyhow::Result<()> {
    anyhow::bail!("no engine yet")
}
