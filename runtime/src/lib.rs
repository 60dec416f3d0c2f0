//! Saccade: an embedded runtime for unified multimodal transformers.
//!
//! ```text
//! source ──frame──▶ tokenizer ──codes──▶ session (KV arena) ──logits──▶ sampler ──tokens──▶ text, actions
//! ```
//!
//! From the roof to the ground, each floor importing only what lies below it:
//!
//! | module | knows |
//! |---|---|
//! | [`session`] | a sequence: segments, windows, prefill, decode |
//! | [`family`] | one small file per model family: its tensors and options |
//! | `block`, `conv`, `vq`, `movq`, [`tokenize`] | the decoder block, like the paper; convolution nets; one modality into codes and back |
//! | [`engine`], [`onnx`] | the operations, and the CPU's way of doing them; imported graphs |
//! | `weights`, `kv` | mapped, checked tensors; the arena of keys and values |
//! | [`limits`] | what the machine could do at most, for comparison |
//! | [`source`], [`format`](mod@format), [`config`], [`kernels`], [`threads`] | frames; the container; `saccade.json`; instruction sets; the thread pool |
//! | [`error`], `memory`, [`pages`], `picture`, [`sample`], [`quant`] | refusals; how much memory there is; maps in huge pages; pictures to another size; logits to a token; the INT8 arithmetic |
//!
//! **Architecture invariants.** This crate has no command line, no TOML, no `anyhow` and no `println!`. Between taking a frame out of
//! the slot and its token ids and action values nothing allocates, locks, or logs above `debug`. Nothing read from
//! outside can panic, hang or exhaust memory. `examples`, `convert`, the daemon and the trainer depend on this crate; it
//! depends on nothing of ours.
//!
//! ```no_run
//! use saccade::engine::EngineOptions;
//! use saccade::family::Model;
//! use saccade::sample::Sampler;
//! use saccade::session::{Session, SessionOptions};
//! use saccade::tokenize::{ImageTokenizer, Picture, Tokenizer};
//!
//! let model = Model::open("examples/models/nano", &EngineOptions::default())?;
//! let mut images = ImageTokenizer::new(&model)?;
//! let mut session = Session::new(&model, &SessionOptions::default())?;
//!
//! let (mut codes, mut answer) = (Vec::new(), Vec::new());
//! session.begin("robot", &[])?;
//! images.encode(Picture::rgb(&[0; 64 * 64 * 3], 64, 64), &mut codes)?;
//! session.push_image(&codes)?;
//! let question = model.text()?.encode("what is happening?")?;
//! session.answer(&question, 64, &mut Sampler::greedy(), &mut answer, &mut |_| true)?;
//! let text = model.text()?.decode(&answer)?;
//! # Ok::<(), saccade::Error>(())
//! ```

mod block;
pub mod config;
mod conv;
#[cfg(feature = "cuda")]
pub mod cuda;
mod decoder;
pub mod engine;
pub mod error;
pub mod family;
pub mod format;
pub mod kernels;
mod kv;
pub mod limits;
mod memory;
mod movq;
pub mod onnx;
pub mod pages;
mod picture;
pub mod quant;
mod rope;
pub mod sample;
pub mod session;
pub mod source;
pub mod threads;
pub mod tokenize;
mod vit;
mod vq;
mod weights;

pub use error::{Error, Result};
