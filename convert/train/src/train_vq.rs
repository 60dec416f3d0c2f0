//! The loop of stage one: batches of augmented frames, checkpoints, a report per data set.

use std::collections::HashMap;
use std::path::PathBuf;

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::data::{FRAME_BYTES, Frames, SIDE_PX};
use crate::error::{Error, Result};
use crate::layout::{Dims, ImageDims};
use crate::log_file::RunLog;
use crate::ops::Fused;
use crate::params::{Optimiser, Params, host};
use crate::vq::{self, CodeBook};

/// Settings of a run of stage one.
#[derive(Debug, Clone)]
pub struct VqRun {
    /// Where checkpoint and log go.
    pub out: PathBuf,
    /// Optimiser steps.
    pub steps: usize,
    /// Frames a step.
    pub batch: usize,
    /// Learning rate at its peak.
    pub lr: f64,
    /// Seed of everything random.
    pub seed: u64,
    /// Seconds between checkpoints.
    pub save_every_s: f64,
}

/// A trained image tokenizer.
pub struct Tokenizer<B: AutodiffBackend> {
    /// Encoder and decoder.
    pub params: Params<B>,
    /// Code book.
    pub book: CodeBook,
    /// Sizes.
    pub dims: ImageDims,
}

/// The name of the checkpoint in the output folder.
pub const CHECKPOINT: &str = "vq.safetensors";

impl<B: AutodiffBackend + Fused> Tokenizer<B>
where
    B::InnerBackend: Fused,
{
    /// Reads the checkpoint of stage one in `out`.
    ///
    /// # Errors
    /// If there is none, or it belongs to other sizes.
    pub fn open(out: &std::path::Path, dims: &Dims, device: &B::Device) -> Result<Tokenizer<B>> {
        let mut params = Params::new(device);
        vq::declare(&mut params, &dims.image, &mut ChaCha8Rng::seed_from_u64(0));
        let path = out.join(CHECKPOINT);
        let meta = params.load(&path)?;
        let book = meta.get("codebook").and_then(|b| serde_json::from_str(b).ok());
        let book = book.ok_or_else(|| Error::content(&path, "has no code book; train stage one again"))?;
        Ok(Tokenizer { params, book, dims: dims.image.clone() })
    }

    /// Codes of a batch of frames, 64 a frame.
    ///
    /// Shapes: `pixels [n, 3, 64, 64]`, planar, −1..1.
    pub fn encode(&self, pixels: Vec<f32>, n: usize) -> Vec<u16> {
        let device = self.params.device();
        let x = Tensor::from_data(TensorData::new(pixels, [n, 3, SIDE_PX, SIDE_PX]), device);
        let z = vq::rows(vq::encode(&self.params.frozen(), &self.dims, x));
        vq::nearest(z, self.book.tensor(device))
    }

    /// Frames of a batch of codes, planar, clamped to −1..1.
    pub fn decode(&self, codes: &[u16]) -> Vec<f32> {
        let device = self.params.device();
        let z = vq::look_up(&self.book, codes, device);
        let n = codes.len() / crate::layout::N_CODES;
        host(&vq::decode(&self.params.frozen(), &self.dims, vq::grid(z, n)).clamp(-1.0, 1.0))
    }
}

/// One frame as planar pixels in −1..1, shifted by `dx, dy` (edges repeated) with `gain` and `lift`.
pub fn planar(frame: &[u8], shift: (i32, i32), gain: f32, lift: f32, out: &mut Vec<f32>) {
    let side = i32::try_from(SIDE_PX).unwrap_or(64);
    for c in 0..3 {
        for y in 0..side {
            let sy = usize::try_from((y - shift.1).clamp(0, side - 1)).unwrap_or(0);
            for x in 0..side {
                let sx = usize::try_from((x - shift.0).clamp(0, side - 1)).unwrap_or(0);
                let v = f32::from(frame[(sy * SIDE_PX + sx) * 3 + c]) / 127.5 - 1.0;
                out.push((v * gain + lift).clamp(-1.0, 1.0));
            }
        }
    }
}

/// A random batch over the sets by weight, lightly augmented.
fn batch(sets: &[(&str, &Frames, f64)], n: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let total: f64 = sets.iter().map(|s| s.2).sum();
    let mut out = Vec::with_capacity(n * FRAME_BYTES);
    for _ in 0..n {
        let mut at = rng.random_range(0.0..total);
        let set = sets.iter().find(|s| {
            at -= s.2;
            at < 0.0
        });
        let frames = set.unwrap_or(&sets[0]).1;
        let frame = frames.frame(rng.random_range(0..frames.len()));
        let shift = (rng.random_range(-6..=6), rng.random_range(-2..=2));
        let from = out.len();
        planar(frame, shift, rng.random_range(0.85..1.15), rng.random_range(-0.08..0.08), &mut out);
        if rng.random_bool(0.3) {
            let noise = rng.random_range(0.0..0.06f32);
            for v in &mut out[from..] {
                *v = (*v + rng.random_range(-noise..=noise)).clamp(-1.0, 1.0);
            }
        }
    }
    out
}

/// Trains stage one, resuming where its checkpoint ends.
///
/// # Errors
/// If there are no frames or the output folder cannot be written.
pub fn train<B: AutodiffBackend + Fused>(
    run: &VqRun,
    dims: &Dims,
    sets: &[(&str, &Frames, f64)],
    device: &B::Device,
) -> Result<Tokenizer<B>>
where
    B::InnerBackend: Fused,
{
    if sets.is_empty() || sets.iter().any(|s| s.1.is_empty()) {
        return Err(Error::Setting("a data set of stage one has no frames; generate it first".into()));
    }
    let mut log = RunLog::open(&run.out, "vq", run.steps)?;
    let path = run.out.join(CHECKPOINT);
    let mut rng = ChaCha8Rng::seed_from_u64(run.seed);
    let mut params = Params::<B>::new(device);
    vq::declare(&mut params, &dims.image, &mut rng);
    let mut book = None;
    let mut step = 0;
    if path.is_file() {
        let meta = params.load(&path)?;
        let state = meta.get("rng").and_then(|r| serde_json::from_str(r).ok());
        book = meta.get("codebook").and_then(|b| serde_json::from_str(b).ok());
        step = meta.get("step").and_then(|s| s.parse().ok()).unwrap_or(0);
        rng = state.unwrap_or(rng);
        log::info!("resuming {} at step {step}", path.display());
    }
    let pixels = |values: Vec<f32>, n: usize| TensorData::new(values, [n, 3, SIDE_PX, SIDE_PX]);
    let mut book: CodeBook = match book {
        Some(book) => book,
        None => {
            let x = Tensor::from_data(pixels(batch(sets, run.batch, &mut rng), run.batch), device);
            let z = vq::rows(vq::encode(&params.frozen(), &dims.image, x));
            CodeBook::drawn_from(&host(&z), &dims.image, &mut rng)
        }
    };
    let mut saved_s = log.seconds();
    while step < run.steps {
        let x = Tensor::<B, 4>::from_data(pixels(batch(sets, run.batch, &mut rng), run.batch), device);
        let leaves = params.leaves();
        let (loss, parts) = vq::loss(&leaves, &dims.image, &mut book, x, &mut rng);
        let mut grads = loss.backward();
        step += 1;
        let lr = run.lr * crate::schedule(step, run.steps, 100.min(run.steps / 10 + 1), 0.05);
        let norm = params.update(&leaves, &mut grads, lr, step, &Optimiser::default());
        log.at(step, format!("mse {:.4} revived {}", parts.mse, parts.revived));
        if step.is_multiple_of(20) || step == run.steps {
            log.line(json!({"step": step, "mse": parts.mse, "l1": parts.l1, "commit": parts.commit, "revived": parts.revived, "norm": norm, "lr": lr}))?;
        }
        if log.seconds() - saved_s > run.save_every_s || step == run.steps {
            saved_s = log.seconds();
            let meta = HashMap::from([
                ("step".to_owned(), step.to_string()),
                ("rng".to_owned(), json!(rng).to_string()),
                ("codebook".to_owned(), json!(book).to_string()),
            ]);
            params.save(&path, meta)?;
        }
    }
    let tokenizer = Tokenizer { params, book, dims: dims.image.clone() };
    for (name, frames, _) in sets {
        log.line(report(&tokenizer, name, frames))?;
    }
    Ok(tokenizer)
}

/// PSNR and code usage on up to 512 evenly spaced frames of a set.
pub fn report<B: AutodiffBackend + Fused>(
    tokenizer: &Tokenizer<B>,
    name: &str,
    frames: &Frames,
) -> serde_json::Value
where
    B::InnerBackend: Fused,
{
    let picks: Vec<usize> = (0..frames.len()).step_by((frames.len() / 512).max(1)).collect();
    let mut psnr = 0.0;
    let mut used = vec![false; tokenizer.dims.codebook_size];
    for part in picks.chunks(64) {
        let mut x = Vec::new();
        part.iter().for_each(|&i| planar(frames.frame(i), (0, 0), 1.0, 0.0, &mut x));
        let codes = tokenizer.encode(x.clone(), part.len());
        codes.iter().for_each(|&c| used[usize::from(c)] = true);
        let y = tokenizer.decode(&codes);
        for (a, b) in x.chunks_exact(FRAME_BYTES).zip(y.chunks_exact(FRAME_BYTES)) {
            let mse: f32 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>() / FRAME_BYTES as f32;
            psnr += 10.0 * f64::from(4.0 / mse.max(1e-9)).log10();
        }
    }
    let usage = used.iter().filter(|u| **u).count() as f64 / used.len() as f64;
    json!({"set": name, "frames": picks.len(), "psnr_db": psnr / picks.len() as f64, "code_usage": usage})
}
