//! The configuration of a bundle.

/// A rule of the configuration that a file broke.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {}
