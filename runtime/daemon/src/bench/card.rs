//! `saccaded bench --engine --device cuda`: the engine on a card, beside what the card can do at most.
//!
//! What each figure should be stands beside it, with a verdict ([`checks`]).

mod checks;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use saccade::cuda::{CardLimits, CudaOptions, Device, Effort};
use saccade::engine::{DeviceOptions, EngineOptions};
use saccade::family::Model;
use saccade::sample::{Sampler, argmax};
use saccade::session::{Session, SessionOptions, step, step_sampled};
use serde_json::{Map, Value, json};

use super::engine::Work;
use super::{percentile, rounded};
use crate::count::Count;

/// Two tokens whose logits differ by less may change places between engines.
const NEAR_TIE: f32 = 0.05;

/// How much is measured.
pub(super) struct Sizes {
    /// For the card itself.
    effort: Effort,
    /// Tokens of the prompts whose prefill is measured.
    prompts: &'static [usize],
    /// Prompts that are timed.
    repeats: usize,
    /// Tokens before a decoded one, at first.
    decode_prompt: usize,
    /// Steps that are timed, after some that capture the graph and raise the clock.
    steps: [usize; 2],
    /// Sequences that are decoded together.
    batches: &'static [usize],
    /// Tokens of the prompt, and greedy steps behind it, that are compared with the CPU's.
    parity: [usize; 2],
}

impl Sizes {
    /// What figures need.
    pub(super) const WHOLE: Self = Self {
        effort: Effort::Whole,
        prompts: &[256, 576, 2048],
        repeats: 7,
        decode_prompt: 64,
        steps: [100, 20],
        batches: &[1, 2, 4, 8],
        parity: [24, 64],
    };
    /// What runs every line.
    pub(super) const QUICK: Self = Self {
        effort: Effort::Quick,
        prompts: &[2, 3],
        repeats: 1,
        decode_prompt: 2,
        steps: [1, 1],
        batches: &[1, 8],
        parity: [3, 2],
    };

    /// Tokens that a session has room for, of a model that reads at most `most`.
    fn room(&self, most: usize) -> usize {
        let longest = self.prompts.iter().copied().filter(|&tokens| tokens + 2 <= most).max().unwrap_or(0);
        (longest + 2).max(self.decode_prompt + self.steps.iter().sum::<usize>() + 2)
    }
}

/// Measures everything.
///
/// # Errors
/// If there is no card, the model fails, or there is no memory for the sessions.
#[allow(clippy::cast_precision_loss, reason = "tokens and sequences are far below 2⁵²")]
pub(super) fn run(
    dir: &Path,
    threads: usize,
    options: DeviceOptions,
    sizes: &Sizes,
) -> anyhow::Result<Value> {
    // The context exists before anything is timed.
    let kernels = options.kernels_dir();
    let device = Device::open(&CudaOptions { ordinal: options.ordinal, kernels })?;
    let limits = CardLimits::measure(&device, sizes.effort)?;

    let start = Instant::now();
    let model = Model::open(dir, &EngineOptions { threads, device: options, ..EngineOptions::default() })?;
    let work = Work::of(&model);
    let token = model.config().text_range().start + 10;
    let most = model.config().language().map_or(usize::MAX, |language| language.max_positions);
    let room = sizes.room(most);
    let session = |sequences: usize| {
        Session::new(&model, &SessionOptions { max_text_tokens: room, max_sequences: sequences })
    };
    let mut first = session(1)?;
    ask(&mut first, &[token])?;
    let first_token_ms = start.elapsed().as_secs_f64() * 1e3;
    drop(first);
    let on_cpu = Model::open(dir, &EngineOptions { threads, ..EngineOptions::default() })?;
    let parity = parity(&on_cpu, &model, token, sizes.parity)?;
    drop(on_cpu);

    // It has waited for the CPU.
    CardLimits::warm_up(&device, sizes.effort)?;
    let mut prefill = Map::new();
    for &tokens in sizes.prompts.iter().filter(|&&tokens| tokens + 2 <= room) {
        let prompt = vec![token; tokens];
        let mut session = session(1)?;
        let mut times = Vec::new();
        for _ in 0..=sizes.repeats {
            let start = Instant::now();
            ask(&mut session, &prompt)?;
            times.push(start.elapsed().as_secs_f64());
        }
        let time = percentile(&times[1..], 50).unwrap_or(f64::NAN);
        let rate = 2.0 * work.macs * tokens as f64 / time;
        prefill.insert(
            tokens.to_string(),
            json!({"tokens_per_s": rounded(tokens as f64 / time), "ms": rounded(time * 1e3),
                "gemm_share": rounded(rate / (limits.gemm_tops[1] * 1e12)),
                "peak_share": rounded(rate / (limits.peak_tops * 1e12))}),
        );
    }

    let (mut batch, mut alone, mut allocations) = (Map::new(), f64::NAN, 0.0);
    for &sequences in sizes.batches {
        let (time, allocs) = decode(&mut || session(sequences), sequences, token, sizes)?;
        if sequences == 1 {
            (alone, allocations) = (time, allocs);
            continue;
        }
        let per_s = sequences as f64 / time;
        let speedup = rounded(sequences as f64 * alone / time);
        batch.insert(sequences.to_string(), json!({"tokens_per_s": rounded(per_s), "speedup": speedup}));
    }
    let mut report = json!({
        "model": model.config().name(),
        "device": model.device().what,
        "sm": device.sm(),
        "weights": model.device().weights,
        "weights_reason": model.device().weights_reason,
        "limits": {
            "copy_gbps": rounded(limits.copy_gbps), "gemv_gbps": rounded(limits.gemv_gbps),
            "gemv8_gbps": rounded(limits.gemv8_gbps), "gemv_share": rounded(limits.gemv_gbps / limits.copy_gbps),
            "peak_tops": rounded(limits.peak_tops), "gemm_tops_576": rounded(limits.gemm_tops[0]),
            "gemm_tops_2048": rounded(limits.gemm_tops[1]),
            "gemm_share_576": rounded(limits.gemm_tops[0] / limits.peak_tops),
            "gemm_share_2048": rounded(limits.gemm_tops[1] / limits.peak_tops),
        },
        "parity": parity,
        "prefill": prefill,
        "decode": {"tokens_per_s": rounded(1.0 / alone), "step_us": rounded(alone * 1e6),
            "copy_share": rounded(work.bytes / alone / (limits.copy_gbps * 1e9))},
        "batch": batch,
        "first_token_ms": rounded(first_token_ms),
        "allocs_per_step": rounded(allocations),
        "quick": sizes.effort == Effort::Quick,
    });
    report["checks"] = checks::checks(&report);
    Ok(report)
}

/// The logits of a prompt and of some greedy steps on both: whether they are the same bits, and how far apart they are.
///
/// The steps follow the CPU's choices on both, so that one near tie does not make two texts of one.
fn parity(
    cpu: &Arc<Model>,
    card: &Arc<Model>,
    token: u32,
    [tokens, steps]: [usize; 2],
) -> anyhow::Result<Value> {
    let prompt: Vec<u32> = (token..token + 7).cycle().take(tokens).collect();
    let said = |model: &Arc<Model>, choices: Option<&[usize]>| -> anyhow::Result<Vec<Vec<f32>>> {
        let options = SessionOptions { max_text_tokens: tokens + steps + 2, max_sequences: 1 };
        let mut session = Session::new(model, &options)?;
        ask(&mut session, &prompt)?;
        let mut said: Vec<Vec<f32>> = Vec::new();
        for i in 0..steps {
            step(&mut [&mut session], &mut |_, logits| {
                said.push(logits.to_vec());
                choices.map_or_else(|| argmax(logits).unwrap_or(0), |choices| choices[i])
            })?;
        }
        Ok(said)
    };
    let want = said(cpu, None)?;
    let choices: Vec<usize> = want.iter().map(|logits| argmax(logits).unwrap_or(0)).collect();
    let got = said(card, Some(&choices))?;
    let pairs = || want.iter().zip(&got);
    let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let same_bits = pairs().filter(|(want, got)| bits(want) == bits(got)).count();
    let differ = |want: &[f32], got: &[f32]| argmax(want) != argmax(got);
    let same_top = pairs().filter(|(want, got)| !differ(want, got)).count();
    let clear = pairs().filter(|(want, got)| differ(want, got) && lead(want) > NEAR_TIE).count();
    let kl = largest(pairs().map(|(want, got)| divergence(want, got)));
    Ok(json!({"steps": steps, "same_bits": same_bits, "same_top": same_top, "other_top_of_clear": clear,
        "kl_max": kl}))
}

/// The largest value, or none of them: `f64::max` would step over a NaN.
fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |most, value| if value.is_nan() || value > most { value } else { most })
}

/// By how much the most likely token leads the next one.
fn lead(logits: &[f32]) -> f32 {
    let mut top = [f32::NEG_INFINITY; 2];
    for &logit in logits {
        if logit > top[0] {
            top = [logit, top[0]];
        } else if logit > top[1] {
            top[1] = logit;
        }
    }
    top[0] - top[1]
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
    step_sampled(&mut [&mut *session], &mut [Sampler::greedy()])?;
    Ok(())
}

/// Seconds of a step of so many sequences, and allocations in it.
#[allow(clippy::cast_precision_loss, reason = "a handful")]
fn decode(
    session: &mut dyn FnMut() -> saccade::Result<Session>,
    sequences: usize,
    token: u32,
    sizes: &Sizes,
) -> anyhow::Result<(f64, f64)> {
    let [timed, warm_up] = sizes.steps;
    let prompt = vec![token; sizes.decode_prompt];
    let mut sessions = (0..sequences).map(|_| session()).collect::<saccade::Result<Vec<_>>>()?;
    for session in &mut sessions {
        ask(session, &prompt)?;
    }
    let mut together: Vec<&mut Session> = sessions.iter_mut().collect();
    let mut samplers = vec![Sampler::greedy(); sequences];
    let mut times = Vec::new();
    let mut allocations = 0;
    for i in 0..timed + warm_up {
        let (start, count) = (Instant::now(), Count::start());
        step_sampled(&mut together, &mut samplers)?;
        let counted = count.stop();
        if i >= warm_up {
            times.push(start.elapsed().as_secs_f64());
            allocations += counted;
        }
    }
    Ok((percentile(&times, 50).unwrap_or(f64::NAN), allocations as f64 / times.len() as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparators_see_what_differs() {
        assert_eq!(lead(&[1.0, 3.0, 2.5]), 0.5);
        assert_eq!(lead(&[3.0, 3.0]), 0.0);
        assert!(divergence(&[1.0, 2.0], &[1.0, 2.0]).abs() < 1e-12);
        assert!(divergence(&[1.0, 2.0], &[1.0, 2.1]) > 1e-4);
        assert!(divergence(&[1.0, 2.0], &[f32::NAN, 2.0]).is_nan());
        assert_eq!(largest([0.1, 0.3, 0.2].into_iter()), 0.3);
        assert!(largest([0.1, f64::NAN, 0.2].into_iter()).is_nan());
    }
}
