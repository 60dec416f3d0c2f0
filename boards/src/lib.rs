//! What a board is.
