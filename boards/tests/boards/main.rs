//! The board files, and what is said of fixture trees of boards.

#![allow(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

mod detect;
mod fixtures;
mod profiles;
mod report;
mod sensors;
