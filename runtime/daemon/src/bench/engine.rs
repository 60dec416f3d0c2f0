//! `saccaded bench --engine`: the engine beside what the machine can do at most.
//!
//! The limits are measured before and after every sample, since memory and clocks of a virtual machine change from one second to the
//! next; a sample's share is taken of the better of the two around it, and the median of the shares is what is reported.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use saccade::config::{ModelConfig, WEIGHTS_FILE, WeightDtype};
use saccade::engine::{EngineOptions, Idle};
use saccade::family::Model;
use saccade::limits::{self, Dram};
use saccade::pages;
use saccade::sample::argmax;
use saccade::session::{Session, SessionOptions, step};
use serde_json::{Map, Value, json};

use super::first::First;
use super::{percentile, rounded};
use crate::count::Count;

/// Tokens of the prompts whose prefill is measured.
const PROMPTS: [usize; 2] = [256, 576];
/// Tokens before a decoded one, at first.
const DECODE_PROMPT: usize = 64;
/// Steps of a single sequence, and of several.
const STEPS: [usize; 2] = [64, 32];
/// Sequences that are decoded together.
const BATCHES: [usize; 3] = [2, 4, 8];
/// How long one thing is measured, at least.
const PATIENCE: Duration = Duration::from_secs(5);
/// Samples of everything, at least.
const REPEATS: usize = 7;
/// Passes of each limit.
const PASSES: usize = 3;
/// Limits whose tenth and ninetieth percentile differ by more than this have moved, and the run is repeated once; the one whose limits
/// moved less is reported.
const MOVED: f64 = 1.15;

/// What a model asks of a machine for one token.
pub(super) struct Work {
    /// Weights of the linear layers: multiply-accumulates a token of a prompt (second parts of activations are extra work that does
    /// not count).
    pub(super) macs: f64,
    /// The same with the head over text.
    macs_decoded: f64,
    /// Bytes read to decode a token.
    pub(super) bytes: f64,
}

impl Work {
    #[allow(clippy::cast_precision_loss, reason = "sizes far below 2⁵²")]
    pub(super) fn of(model: &Model) -> Self {
        let c = model.config().decoder();
        let (heads, kv) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let layer =
            [(heads + 2 * kv, c.d_model), (c.d_model, heads), (2 * c.d_ff, c.d_model), (c.d_model, c.d_ff)];
        let head = (model.config().text_range().len(), c.d_model);
        let macs = |(n, k): (usize, usize)| (n * k) as f64;
        // Of INT8 tiles: a byte a weight, a scale and a sum an output. Norms are a thousandth of that.
        let bytes = |(n, k): (usize, usize)| (n * k + 8 * n) as f64;
        let layers =
            |f: &dyn Fn((usize, usize)) -> f64| c.n_layers as f64 * layer.iter().map(|&l| f(l)).sum::<f64>();
        Self {
            macs: layers(&macs),
            macs_decoded: layers(&macs) + macs(head),
            bytes: layers(&bytes) + bytes(head),
        }
    }
}

/// What the machine can do, as often as it was asked.
struct Limits {
    dram: Dram,
    threads: usize,
    dram_gbps: Vec<f64>,
    int8_gops: Vec<f64>,
    int8_gops_cached: Vec<f64>,
}

impl Limits {
    fn new(threads: usize) -> anyhow::Result<Self> {
        let dram = Dram::new(limits::DRAM_BYTES)?;
        Ok(Self { dram, threads, dram_gbps: Vec::new(), int8_gops: Vec::new(), int8_gops_cached: Vec::new() })
    }

    /// Measures what the engine's threads can do together.
    fn look(&mut self, model: &Model) -> Limit {
        // Its workers stop spinning first.
        std::thread::sleep(2 * Idle::ALONE.spin);
        let peak = limits::peak_gops(model.engine().kernels(), self.threads, PASSES);
        let limit =
            Limit { dram_gbps: self.dram.gbps(self.threads, PASSES), int8_gops: peak.unwrap_or(f64::NAN) };
        self.dram_gbps.push(limit.dram_gbps);
        self.int8_gops.push(limit.int8_gops);
        self.int8_gops_cached.push(limits::cached_gops(model.engine().kernels(), self.threads, PASSES));
        limit
    }

    /// How far the limits were apart, the worse of the two.
    fn spread(&self) -> f64 {
        let spread = |samples: &[f64]| quantile(samples, 90) / quantile(samples, 10);
        spread(&self.dram_gbps).max(spread(&self.int8_gops))
    }

    fn to_json(&self, model: &Model) -> Value {
        let one = limits::peak_gops(model.engine().kernels(), 1, PASSES).unwrap_or(f64::NAN);
        json!({
            "dram_gbps": rounded(median(&self.dram_gbps)),
            "int8_gops": rounded(median(&self.int8_gops)),
            "int8_gops_cached": rounded(median(&self.int8_gops_cached)),
            "dram_gbps_1t": rounded(self.dram.gbps(1, PASSES)),
            "int8_gops_1t": rounded(one),
            "dram_gbps_mapped": rounded(limits::mapped_gbps(model.mapped(), self.threads, PASSES)),
            "dram_gbps_p10_p90": ([10, 90].map(|percent| rounded(quantile(&self.dram_gbps, percent)))),
            "int8_gops_p10_p90": ([10, 90].map(|percent| rounded(quantile(&self.int8_gops, percent)))),
            "int8_gops_cached_p10_p90": ([10, 90].map(|percent| rounded(quantile(&self.int8_gops_cached, percent)))),
            "moved": self.spread() > MOVED,
        })
    }
}

/// What the machine can do at one time.
#[derive(Clone, Copy)]
struct Limit {
    dram_gbps: f64,
    int8_gops: f64,
}

impl Limit {
    /// The shortest time in which `bytes` can be read and `macs` done.
    ///
    /// Units: seconds.
    fn bound(self, bytes: f64, macs: f64) -> f64 {
        (bytes / self.dram_gbps).max(2.0 * macs / self.int8_gops) / 1e9
    }
}

/// One run of something, in seconds, and what the machine could do around it.
struct Sample {
    wall: f64,
    linear: f64,
    allocations: u64,
    limit: Limit,
}

/// Runs `f` again and again; the first run, which finds cold buffers, does not count.
fn samples(
    model: &Model,
    limits: &mut Limits,
    f: &mut dyn FnMut() -> anyhow::Result<(Duration, Duration, u64)>,
) -> anyhow::Result<Vec<Sample>> {
    f()?;
    let (start, mut all) = (Instant::now(), Vec::new());
    let mut before = limits.look(model);
    while all.len() < REPEATS || start.elapsed() < PATIENCE {
        let (wall, linear, allocations) = f()?;
        let after = limits.look(model);
        let limit = Limit {
            dram_gbps: before.dram_gbps.max(after.dram_gbps),
            int8_gops: before.int8_gops.max(after.int8_gops),
        };
        all.push(Sample { wall: wall.as_secs_f64(), linear: linear.as_secs_f64(), allocations, limit });
        before = after;
    }
    Ok(all)
}

/// The median of something of all samples.
fn median_of(samples: &[Sample], f: impl Fn(&Sample) -> f64) -> f64 {
    median(&samples.iter().map(f).collect::<Vec<_>>())
}

/// Measures everything, again if the machine changed meanwhile.
///
/// # Errors
/// If the model fails, there is no memory for the sessions, or this program cannot be started again.
pub(super) fn run(dir: &Path, threads: usize) -> anyhow::Result<Value> {
    // Said before anything is measured; the mapping is gone again by then.
    if Model::open(dir, &EngineOptions { threads: 1, ..EngineOptions::default() })?.bundle().dtype
        != WeightDtype::Int8
    {
        bail!(
            "{} is not an INT8 bundle, and the engine's limits are those of INT8; convert it with --dtype int8",
            dir.display()
        );
    }
    let (spread, report) = measure(dir, threads)?;
    if spread <= MOVED {
        return Ok(report);
    }
    log::warn!("memory or clock changed by {spread:.2} during the run; it is repeated");
    let again = measure(dir, threads)?;
    Ok(if again.0 < spread { again.1 } else { report })
}

#[allow(clippy::cast_precision_loss, reason = "tokens, sequences and allocations are far below 2⁵²")]
fn measure(dir: &Path, threads: usize) -> anyhow::Result<(f64, Value)> {
    // Before this process maps the weights: what is mapped cannot be dropped from the page cache.
    let options = EngineOptions { threads, idle: Idle::ALONE, ..EngineOptions::default() };
    let cold = First::median(dir, threads, &["--cold"], REPEATS)?;
    pages::warm(&dir.join(WEIGHTS_FILE))?;
    let warm = First::median(dir, threads, &[], REPEATS)?;
    let warm_4k = First::median(dir, threads, &["--small-pages"], REPEATS)?;

    let model = &Model::open(dir, &options)?;
    let work = Work::of(model);
    let limits = &mut Limits::new(model.engine().threads())?;
    let first = limits.look(model);
    let mut prefill = Map::new();
    for tokens in PROMPTS {
        let samples = prefills(model, limits, tokens)?;
        let operations = 2.0 * work.macs * tokens as f64 / 1e9;
        let value = json!({
            "tokens_per_s": rounded(tokens as f64 / median_of(&samples, |s| s.wall)),
            "peak_share": rounded(median_of(&samples, |s| operations / s.wall / s.limit.int8_gops)),
            "gemm_share": rounded(median_of(&samples, |s| operations / s.linear / s.limit.int8_gops)),
        });
        prefill.insert(tokens.to_string(), value);
    }
    let one = decodes(model, limits, 1, STEPS[0])?;
    let step = median_of(&one, |s| s.wall);
    let decode = json!({
        "tokens_per_s": rounded(1.0 / step),
        "step_ms": rounded(step * 1e3),
        "dram_share": rounded(median_of(&one, |s| work.bytes / s.wall / 1e9 / s.limit.dram_gbps)),
        "linear_dram_share": rounded(median_of(&one, |s| work.bytes / s.linear / 1e9 / s.limit.dram_gbps)),
    });
    let (mut batch, mut guided) = (Map::new(), f64::NAN);
    for sequences in BATCHES {
        let (n, samples) = (sequences as f64, decodes(model, limits, sequences, STEPS[1])?);
        let wall = median_of(&samples, |s| s.wall);
        // Guidance is a second sequence in the same pass.
        guided = if sequences == 2 { wall / step } else { guided };
        let bound = |s: &Sample| s.limit.bound(work.bytes, n * work.macs_decoded) / s.wall;
        let value = json!({
            "tokens_per_s": rounded(n / wall),
            "speedup": rounded(n * step / wall),
            "bound_share": rounded(median_of(&samples, bound)),
        });
        batch.insert(sequences.to_string(), value);
    }
    let report = json!({
        "model": model.config().name(),
        "kernels": model.engine().kernels().name,
        "threads": model.engine().threads(),
        "bytes_per_token": work.bytes,
        "macs_per_token": work.macs,
        "limits": limits.to_json(model),
        "prefill": prefill,
        "decode": decode,
        "batch": batch,
        "guidance": {"times_one": rounded(guided)},
        "first_token_ms": {
            "warm": rounded(warm.ms),
            "warm_4k": rounded(warm_4k.ms),
            "cold": rounded(cold.ms),
            "bound": rounded(first.bound(work.bytes, 0.0) * 1e3),
            "huge_pages": rounded(warm.huge),
        },
        "anon_bytes": warm.anon_bytes,
        "arena_bytes": warm.arena_bytes,
        "allocs_per_step": rounded(one.iter().map(|s| s.allocations as f64).sum::<f64>() / (one.len() * STEPS[0]) as f64),
    });
    Ok((limits.spread(), report))
}

/// Token ids without a pattern that matters.
pub(super) fn prompt(model: &Model, tokens: usize) -> Vec<u32> {
    let Range { start: from, end: to } = model.config().text_range();
    (0..).map(|i: u32| from + (i.wrapping_mul(2_654_435_761) >> 8) % (to - from)).take(tokens).collect()
}

/// Reads a prompt in a session that is new; returns the likeliest token after it. A task prefix takes the place of the first tokens.
pub(super) fn read(session: &mut Session, ids: &[u32]) -> anyhow::Result<usize> {
    let model = Arc::clone(session.model());
    let mut likeliest = None;
    match model.config() {
        ModelConfig::Unimodal(c) => {
            let ids = &ids[c.task_prefix_len.min(ids.len())..];
            session.score_begin(&c.tasks[0], ids, &mut |logits| likeliest = argmax(logits))?;
        }
        _ => {
            session.open(ids)?;
            let mut pick = |_: usize, logits: &[f32]| {
                likeliest = argmax(logits);
                0
            };
            step(&mut [&mut *session], &mut pick)?;
            session.close();
        }
    }
    likeliest.context("the model has no token to say")
}

/// A prompt of `tokens` tokens, prefix included, up to the logits after its last one.
fn prefills(model: &Arc<Model>, limits: &mut Limits, tokens: usize) -> anyhow::Result<Vec<Sample>> {
    let mut session = Session::new(model, &options(tokens, 1))?;
    let ids = prompt(model, tokens);
    samples(model, limits, &mut || {
        let (linear, count, begin) = (model.engine().linear_time(), Count::start(), Instant::now());
        read(&mut session, &ids)?;
        Ok((begin.elapsed(), model.engine().linear_time() - linear, count.stop()))
    })
}

/// Some steps of sequences that are decoded together, each after a prompt; the times are those of one step.
fn decodes(
    model: &Arc<Model>,
    limits: &mut Limits,
    sequences: usize,
    steps: usize,
) -> anyhow::Result<Vec<Sample>> {
    let ids = prompt(model, DECODE_PROMPT);
    let mut sessions: Vec<Session> = (0..sequences)
        .map(|_| Session::new(model, &options(DECODE_PROMPT + steps, sequences)))
        .collect::<Result<_, _>>()?;
    let mut sessions: Vec<&mut Session> = sessions.iter_mut().collect();
    let mut pick = |_: usize, logits: &[f32]| argmax(logits).unwrap_or(0);
    let n = u32::try_from(steps).context("so many steps")?;
    samples(model, limits, &mut || {
        for session in &mut sessions {
            match model.config() {
                ModelConfig::Unimodal(c) => {
                    session.begin(&c.tasks[0], &ids)?;
                    session.open(&[])?;
                }
                _ => {
                    session.close();
                    session.open(&ids)?;
                }
            }
        }
        // The question's pass.
        step(&mut sessions, &mut pick)?;
        let (linear, count, begin) = (model.engine().linear_time(), Count::start(), Instant::now());
        for _ in 0..steps {
            step(&mut sessions, &mut pick)?;
        }
        let linear = model.engine().linear_time() - linear;
        Ok((begin.elapsed() / n, linear / n, count.stop()))
    })
}

pub(super) fn options(max_text_tokens: usize, max_sequences: usize) -> SessionOptions {
    SessionOptions { max_text_tokens, max_sequences }
}

pub(super) fn median(samples: &[f64]) -> f64 {
    quantile(samples, 50)
}

/// A percentile; NaN of no samples.
fn quantile(samples: &[f64], percent: usize) -> f64 {
    percentile(samples, percent).unwrap_or(f64::NAN)
}

/// A report as text.
pub(super) fn to_table(report: &Value) -> String {
    let at = |path: &str| report.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let mut text = format!(
        "{}, {} kernels, {} threads\nlimits: memory {:.1} GB/s ({:.1} on one thread, {:.1} mapped), INT8 {:.0} GOPS ({:.0} on one thread, {:.0} in a product from the cache)\n\n",
        report["model"].as_str().unwrap_or_default(),
        report["kernels"].as_str().unwrap_or_default(),
        at("/threads"),
        at("/limits/dram_gbps"),
        at("/limits/dram_gbps_1t"),
        at("/limits/dram_gbps_mapped"),
        at("/limits/int8_gops"),
        at("/limits/int8_gops_1t"),
        at("/limits/int8_gops_cached"),
    );
    for tokens in PROMPTS {
        text += &format!(
            "prefill {tokens:<4} {:>9.1} tokens/s   {:>5.1} % of INT8 peak, linear layers {:.1} %\n",
            at(&format!("/prefill/{tokens}/tokens_per_s")),
            100.0 * at(&format!("/prefill/{tokens}/peak_share")),
            100.0 * at(&format!("/prefill/{tokens}/gemm_share")),
        );
    }
    text += &format!(
        "decode 1     {:>9.1} tokens/s   {:>5.1} % of memory bandwidth\n",
        at("/decode/tokens_per_s"),
        100.0 * at("/decode/dram_share"),
    );
    for n in BATCHES {
        text += &format!(
            "decode {n}     {:>9.1} tokens/s   {:>5.1} % of the bound, {:.2} times one\n",
            at(&format!("/batch/{n}/tokens_per_s")),
            100.0 * at(&format!("/batch/{n}/bound_share")),
            at(&format!("/batch/{n}/speedup")),
        );
    }
    text += &format!("guidance     {:>9.2} times the step of one sequence\n", at("/guidance/times_one"),);
    text + &format!(
        "first token  warm {:.1} ms ({:.1} with 4 KiB pages), cold {:.1} ms; one pass over the weights {:.1} ms\n\
         memory       {:.1} MB anonymous, of which the arena {:.1} MB; {} allocations per step\n",
        at("/first_token_ms/warm"),
        at("/first_token_ms/warm_4k"),
        at("/first_token_ms/cold"),
        at("/first_token_ms/bound"),
        at("/anon_bytes") / 1e6,
        at("/arena_bytes") / 1e6,
        at("/allocs_per_step"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_by_hand() {
        assert_eq!(quantile(&[3.0, 1.0, 2.0, 5.0, 4.0], 50), 3.0);
        assert_eq!([0, 10, 90, 100].map(|q| quantile(&[1.0, 2.0, 3.0], q)), [1.0, 1.0, 3.0, 3.0]);
        assert!(quantile(&[], 50).is_nan());
        // 20 GB at 10 GB/s are two seconds; 5 · 10¹¹ MACs at 250 GOPS are four.
        let limit = Limit { dram_gbps: 10.0, int8_gops: 250.0 };
        assert_eq!([limit.bound(20e9, 1.0), limit.bound(20e9, 5e11)], [2.0, 4.0]);
    }

    #[test]
    fn a_report_becomes_text_even_where_it_has_holes() {
        let decode = json!({"tokens_per_s": 12.25, "dram_share": 0.5});
        let text = to_table(&json!({"model": "m", "decode": decode, "guidance": {"times_one": 1.125}}));
        assert!(text.contains("12.2") && text.contains("50.0 % of memory") && text.contains("NaN"), "{text}");
        assert!(text.contains("1.12 times the step of one sequence"), "{text}");
    }
}
