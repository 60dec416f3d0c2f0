//! `saccaded bench --engine --device cuda`: the engine on a card, beside what the card can do at most.
//!
//! Targets of a data-centre card, where gaps between launches outweigh bytes, stand beside the figures.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use saccade::cuda::{CardLimits, CudaOptions, Device};
use saccade::engine::{DeviceOptions, EngineOptions};
use saccade::family::Model;
use saccade::sample::argmax;
use saccade::session::{Session, SessionOptions, step};
use serde_json::{Map, Value, json};

use super::engine::Work;
use super::{percentile, rounded};
use crate::count::Count;

/// Tokens of the prompts whose prefill is measured.
const PROMPTS: [usize; 2] = [256, 576];
/// Tokens before a decoded one, at first.
const DECODE_PROMPT: usize = 64;
/// Steps that are timed, after some that capture the graph and raise the clock.
const STEPS: [usize; 2] = [100, 20];
/// Sequences that are decoded together.
const BATCHES: [usize; 4] = [1, 2, 4, 8];
/// Greedy steps that are compared with the CPU's.
const PARITY_STEPS: usize = 16;
/// Prompts that are timed.
const REPEATS: usize = 7;

/// Measures everything.
///
/// # Errors
/// If there is no card, the model fails, or there is no memory for the sessions.
#[allow(clippy::cast_precision_loss, reason = "tokens and sequences are far below 2⁵²")]
pub(super) fn run(dir: &Path, threads: usize, options: DeviceOptions) -> anyhow::Result<Value> {
    // The context exists before anything is timed.
    let kernels = options.kernels.clone().context("name the folder of compiled kernels with --kernels")?;
    let device = Device::open(&CudaOptions { ordinal: options.ordinal, kernels })?;
    let limits = CardLimits::measure(&device)?;

    let start = Instant::now();
    let model = Model::open(dir, &EngineOptions { threads, device: options, ..EngineOptions::default() })?;
    let work = Work::of(&model);
    let token = model.config().text_range().start + 10;
    let longest = PROMPTS[1] + 2;
    let room = longest.max(DECODE_PROMPT + STEPS[0] + STEPS[1] + 2);
    let session = |sequences: usize| {
        Session::new(&model, &SessionOptions { max_text_tokens: room, max_sequences: sequences })
    };
    let mut first = session(1)?;
    ask(&mut first, &[token])?;
    let first_token_ms = start.elapsed().as_secs_f64() * 1e3;
    drop(first);
    let on_cpu = Model::open(dir, &EngineOptions { threads, ..EngineOptions::default() })?;
    let parity = parity(&on_cpu, &model, token)?;
    drop(on_cpu);

    let mut prefill = Map::new();
    for tokens in PROMPTS {
        let prompt = vec![token; tokens];
        let mut session = session(1)?;
        let mut times = Vec::new();
        for _ in 0..=REPEATS {
            let start = Instant::now();
            ask(&mut session, &prompt)?;
            times.push(start.elapsed().as_secs_f64());
        }
        let time = percentile(&times[1..], 50).unwrap_or(f64::NAN);
        let rate = 2.0 * work.macs * tokens as f64 / time;
        prefill.insert(
            tokens.to_string(),
            json!({"tokens_per_s": rounded(tokens as f64 / time), "ms": rounded(time * 1e3),
                "gemm_share": rounded(rate / (limits.gemm_tops[1] * 1e12))}),
        );
    }

    let (mut batch, mut alone, mut allocations) = (Map::new(), f64::NAN, 0.0);
    for sequences in BATCHES {
        let (time, allocs) = decode(&mut || session(sequences), sequences, token)?;
        if sequences == 1 {
            (alone, allocations) = (time, allocs);
            continue;
        }
        let per_s = sequences as f64 / time;
        let speedup = rounded(sequences as f64 * alone / time);
        batch.insert(sequences.to_string(), json!({"tokens_per_s": rounded(per_s), "speedup": speedup}));
    }
    Ok(json!({
        "model": model.config().name(),
        "device": model.device().what,
        "sm": device.sm(),
        "limits": {
            "copy_gbps": rounded(limits.copy_gbps), "gemv_gbps": rounded(limits.gemv_gbps),
            "gemv8_gbps": rounded(limits.gemv8_gbps), "gemv_share": rounded(limits.gemv_gbps / limits.copy_gbps),
            "peak_tops": rounded(limits.peak_tops), "gemm_tops_576": rounded(limits.gemm_tops[0]),
            "gemm_tops_2048": rounded(limits.gemm_tops[1]), "gemm_share": rounded(limits.gemm_tops[1] / limits.peak_tops),
        },
        "parity": parity,
        "prefill": prefill,
        "decode": {"tokens_per_s": rounded(1.0 / alone), "step_us": rounded(alone * 1e6),
            "copy_share": rounded(work.bytes / alone / (limits.copy_gbps * 1e9))},
        "batch": batch,
        "first_token_ms": rounded(first_token_ms),
        "allocs_per_step": rounded(allocations),
        "targets": {"gemv_share": 0.8, "gemm_share": 0.6, "gemm_share_576": 0.35, "copy_share_L": 0.5, "step_us_M": 350, "step_us_nano": 150,
            "speedup_8": 6, "first_token_ms_M": 100, "first_token_ms_L": 250},
    }))
}

/// The logits of a prompt and of some greedy steps on both: whether they are the same bits, and how far apart they are.
fn parity(cpu: &Arc<Model>, card: &Arc<Model>, token: u32) -> anyhow::Result<Value> {
    let said = |model: &Arc<Model>| -> anyhow::Result<Vec<Vec<f32>>> {
        let mut session = Session::new(model, &SessionOptions { max_text_tokens: 64, max_sequences: 1 })?;
        ask(&mut session, &(0..24).map(|i| token + i % 7).collect::<Vec<_>>())?;
        let mut said = Vec::new();
        for _ in 0..PARITY_STEPS {
            step(&mut [&mut session], &mut |_, logits| {
                said.push(logits.to_vec());
                argmax(logits).unwrap_or(0)
            })?;
        }
        Ok(said)
    };
    let (want, got) = (said(cpu)?, said(card)?);
    let pairs = || want.iter().zip(&got);
    let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let same_bits = pairs().filter(|(want, got)| bits(want) == bits(got)).count();
    let same_top = pairs().filter(|(want, got)| argmax(want) == argmax(got)).count();
    let kl = pairs().map(|(want, got)| divergence(want, got)).fold(0.0, f64::max);
    Ok(
        json!({"steps": PARITY_STEPS, "same_bits": same_bits, "same_top": same_top, "kl_max": kl, "kl_target": 1e-4}),
    )
}

/// Kullback-Leibler divergence of what `got` says from what `want` says.
fn divergence(want: &[f32], got: &[f32]) -> f64 {
    let log_softmax = |logits: &[f32]| {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
        logits.iter().map(|&x| f64::from(x - max) - sum.ln()).collect::<Vec<_>>()
    };
    let (want, got) = (log_softmax(want), log_softmax(got));
    want.iter()
        .zip(&got)
        .filter(|(want, _)| want.is_finite())
        .map(|(want, got)| want.exp() * (want - got))
        .sum()
}

/// The first token after a prompt.
fn ask(session: &mut Session, prompt: &[u32]) -> anyhow::Result<()> {
    session.reset();
    if let Ok(config) = session.model().unimodal() {
        let task = config.tasks[0].clone();
        session.begin(&task, &[])?;
    }
    session.open(prompt)?;
    step(&mut [&mut *session], &mut |_, logits| argmax(logits).unwrap_or(0))?;
    Ok(())
}

/// Seconds of a step of so many sequences, and allocations in it.
#[allow(clippy::cast_precision_loss, reason = "a handful")]
fn decode(
    session: &mut dyn FnMut() -> saccade::Result<Session>,
    sequences: usize,
    token: u32,
) -> anyhow::Result<(f64, f64)> {
    let mut sessions = (0..sequences).map(|_| session()).collect::<saccade::Result<Vec<_>>>()?;
    for session in &mut sessions {
        ask(session, &[token; DECODE_PROMPT])?;
    }
    let mut together: Vec<&mut Session> = sessions.iter_mut().collect();
    let mut times = Vec::new();
    let mut allocations = 0;
    for i in 0..STEPS[0] + STEPS[1] {
        let (start, count) = (Instant::now(), Count::start());
        step(&mut together, &mut |_, logits| argmax(logits).unwrap_or(0))?;
        let counted = count.stop();
        if i >= STEPS[1] {
            times.push(start.elapsed().as_secs_f64());
            allocations += counted;
        }
    }
    Ok((percentile(&times, 50).unwrap_or(f64::NAN), allocations as f64 / times.len() as f64))
}
