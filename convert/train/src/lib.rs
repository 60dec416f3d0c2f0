//! Trains and evaluates Saccade's own unified models.
//!
//! Three stages: the image tokenizer ([`train_vq`]), the transformer on mixed sequences, and tuning under fake quantisation.
//! What is trained is exactly what the runtime computes: segments, windows and positions follow the same rule in [`pack`].
//!
//! The shipped model, on two cores with libtorch 2.9.0 (each verb reads what the ones before it left in `--out`, and
//! refuses what an older run left; those that train resume):
//!
//! ```text
//! cargo xtask train tokenizer --steps 1500 --batch 64 --lr 2e-3      # stage one: frames to codes
//! cargo xtask train encode                                           # every picture, once
//! cargo xtask train bpe
//! cargo xtask train pretrain --steps 2500 --tokens 5600 --tau 3      # stage two: mixed sequences
//! cargo xtask train tune --steps 250 --tokens 5600 --tau 3           # stage three: under fake INT8
//! cargo xtask train export
//! cargo run --release -p saccade-convert -- convert examples/models/nano-f16.safetensors examples/models/nano --force
//! cargo run --release -p saccade-train -- eval --bundle examples/models/nano --json   # needs no framework, fetches easy-VQA
//! ```
//!
//! **Architecture Invariant:** without a framework feature (`flex`, `tch`, `cuda`) nothing of burn is compiled; evaluation
//! runs bundles through the runtime.

pub mod error;
pub mod eval;
pub mod layout;

#[cfg(feature = "train")]
pub mod batch;
#[cfg(feature = "train")]
pub mod corpus;
pub mod data;
#[cfg(feature = "train")]
pub mod export;
#[cfg(feature = "train")]
pub mod golden;
#[cfg(feature = "train")]
pub mod ledger;
#[cfg(feature = "train")]
pub mod lm;
#[cfg(feature = "train")]
pub mod log_file;
#[cfg(feature = "train")]
pub mod ops;
#[cfg(feature = "tch")]
mod ops_tch;
#[cfg(feature = "train")]
pub mod pack;
#[cfg(feature = "train")]
pub mod params;
#[cfg(feature = "train")]
pub mod qat;
#[cfg(feature = "train")]
pub mod text;
#[cfg(feature = "train")]
pub mod train_lm;
#[cfg(feature = "train")]
pub mod train_vq;
#[cfg(feature = "train")]
pub mod vq;

/// Learning rate factor: linear warm-up, then a cosine from 1 to `floor`.
pub fn schedule(step: usize, steps: usize, warm_up: usize, floor: f64) -> f64 {
    if step <= warm_up {
        return step as f64 / warm_up.max(1) as f64;
    }
    let t = (step - warm_up) as f64 / steps.saturating_sub(warm_up).max(1) as f64;
    floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * t.min(1.0)).cos())
}
