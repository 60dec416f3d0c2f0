//! Checkpoints in, bundles out, and reports on what the conversion cost.
//!
//! | module | knows |
//! |---|---|
//! | [`checkpoint`] | what can be converted: a trainer's file, a folder of the hub's layout, a GGUF file |
//! | [`values`] | where the tensors lie; reads one at a time |
//! | [`store`] | how each tensor is stored in a bundle of a given type |
//! | [`bundle`] | one conversion: plan, write under another name, let the runtime open it, rename |
//! | [`gguf`] | what a GGUF file must look like, its weights and its tokenizer |
//! | [`rounding`] | what rounding to INT8 changes in each kind of layer |
//! | [`place`] | where a bundle goes, and what may be replaced there |
//! | [`inspect`] | what a bundle holds |
//! | [`verify`] | whether a bundle or a weights file is what it claims to be |
//! | [`compare`] | how far a bundle's answers are from the float model's |
//! | [`golden`] | whether a model computes what another implementation computed |
//! | [`random`] | a checkpoint of random numbers, for tests and for trying out a size |
//! | [`progress`] | how far a long job is, on stderr |
//!
//! Everything is also a program: `saccade-convert convert | inspect | verify | compare`.
//!
//! **Architecture invariants.** One tensor of the checkpoint is in memory at a time. Nothing appears under the name that
//! was asked for until the runtime itself has opened it. What a failed run has written is removed, unless the run was killed or its
//! disk was full: the next one goes on from there.

pub mod bundle;
pub mod checkpoint;
pub mod compare;
pub mod error;
pub mod gguf;
pub mod golden;
mod hub;
pub mod inspect;
mod journal;
mod keep;
mod memory;
mod pieces;
pub mod place;
pub mod progress;
pub mod random;
pub mod rounding;
pub mod store;
mod tokenizer_file;
pub mod values;
pub mod verify;

pub use error::{ConvertError, Result};
