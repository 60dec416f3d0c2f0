//! Checkpoints in, bundles out.
