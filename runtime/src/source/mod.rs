//! Sources of frames.

/// A source of frames failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {}
