//! The container of weights.

/// A rule of the container that a file broke.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {}
