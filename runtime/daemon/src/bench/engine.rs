//! `saccaded bench --engine`: the engine beside what the machine can do at most.
//!
//! The limits are measured before, between and after the parts, since memory and clocks of a virtual machine change within minutes;
//! a part's shares are taken of the better of the two measurements around it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use saccade::config::Family;
use saccade::engine::{EngineOptions, Idle};
use saccade::family::Model;
use saccade::limits;
use saccade::sample::argmax;
use saccade::session::{Session, SessionOptions, step};
use serde_json::{Map, Value, json};

use super::first::First;
use super::rounded;
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
const PATIENCE: Duration = Duration::from_secs(3);
/// Repetitions of everything, at least.
const REPEATS: usize = 5;
/// Passes of each limit.
const PASSES: usize = 9;
/// Limits that differ by more than this have moved, and the run is repeated.
const MOVED: f64 = 1.15;
/// Runs at most.
const RUNS: usize = 3;

/// What a model asks of a machine for one token.
struct Work {
    /// Weights of the linear layers: multiply-accumulates a token of a prompt.
    macs: f64,
    /// The same with the head over text.
    macs_decoded: f64,
    /// Bytes read to decode a token.
    bytes: f64,
}

impl Work {
    #[allow(clippy::cast_precision_loss, reason = "sizes far below 2⁵²")]
    fn of(model: &Model) -> Self {
        let c = model.config();
        let Family::Unimodal = c.family else { unreachable!("families are listed") };
        let (heads, kv) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let layer =
            [(heads + 2 * kv, c.d_model), (c.d_model, heads), (2 * c.d_ff, c.d_model), (c.d_model, c.d_ff)];
        let head = ((c.tokens.text[1] - c.tokens.text[0]) as usize, c.d_model);
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

/// What the machine can do.
#[derive(Clone, Copy)]
struct Limits {
    dram_gbps: f64,
    dram_gbps_1t: f64,
    dram_gbps_mapped: f64,
    int8_gops: f64,
    int8_gops_1t: f64,
}

impl Limits {
    fn measure(model: &Model) -> anyhow::Result<Self> {
        let (threads, kernels) = (model.engine().threads(), model.engine().kernels());
        let dram = |threads| limits::dram_gbps(limits::DRAM_BYTES, threads, PASSES);
        let peak = |threads| limits::peak_gops(kernels, threads, PASSES).unwrap_or(f64::NAN);
        Ok(Self {
            dram_gbps: dram(threads)?,
            dram_gbps_1t: dram(1)?,
            dram_gbps_mapped: limits::dram_gbps_mapped(model.mapped(), threads, PASSES),
            int8_gops: peak(threads),
            int8_gops_1t: peak(1),
        })
    }

    fn all(&self) -> [(&'static str, f64); 5] {
        [
            ("dram_gbps", self.dram_gbps),
            ("int8_gops", self.int8_gops),
            ("dram_gbps_1t", self.dram_gbps_1t),
            ("int8_gops_1t", self.int8_gops_1t),
            ("dram_gbps_mapped", self.dram_gbps_mapped),
        ]
    }

    /// The better of two.
    fn max(self, other: Self) -> Self {
        Self {
            dram_gbps: self.dram_gbps.max(other.dram_gbps),
            dram_gbps_1t: self.dram_gbps_1t.max(other.dram_gbps_1t),
            dram_gbps_mapped: self.dram_gbps_mapped.max(other.dram_gbps_mapped),
            int8_gops: self.int8_gops.max(other.int8_gops),
            int8_gops_1t: self.int8_gops_1t.max(other.int8_gops_1t),
        }
    }

    /// Whether memory or the clock has changed.
    fn moved(&self, other: &Self) -> bool {
        let far = |a: f64, b: f64| a.max(b) > MOVED * a.min(b);
        far(self.dram_gbps, other.dram_gbps) || far(self.int8_gops, other.int8_gops)
    }

    fn to_json(self) -> Map<String, Value> {
        self.all().map(|(name, value)| (name.to_owned(), json!(rounded(value)))).into_iter().collect()
    }

    /// The shortest time in which `bytes` can be read and `macs` done.
    ///
    /// Units: seconds.
    fn bound(&self, bytes: f64, macs: f64) -> f64 {
        (bytes / self.dram_gbps).max(2.0 * macs / self.int8_gops) / 1e9
    }
}

/// Measures everything, again if the machine changed meanwhile.
///
/// # Errors
/// If the model fails, there is no memory for the sessions, or this program cannot be started again.
pub(super) fn run(dir: &Path, threads: usize) -> anyhow::Result<Value> {
    let model = Model::open(dir, &EngineOptions { threads, idle: Idle::ALONE, ..EngineOptions::default() })?;
    let mut report = measure(&model, dir)?;
    for _ in 1..RUNS {
        if report["limits"]["moved"] == json!(false) {
            break;
        }
        log::warn!("memory or clock changed by more than {MOVED} during the run; it is repeated");
        report = measure(&model, dir)?;
    }
    Ok(report)
}

fn measure(model: &Arc<Model>, dir: &Path) -> anyhow::Result<Value> {
    let work = Work::of(model);
    let mut limits = vec![Limits::measure(model)?];
    let around = |limits: &[Limits]| match limits {
        [.., a, b] => a.max(*b),
        _ => limits[0],
    };

    let mut prefills = Vec::new();
    for tokens in PROMPTS {
        prefills.push((tokens, prefill(model, tokens)?));
    }
    limits.push(Limits::measure(model)?);
    let peak = around(&limits).int8_gops;
    let mut prefill = Map::new();
    for (tokens, Prefill { wall, linear }) in prefills {
        #[allow(clippy::cast_precision_loss, reason = "a few hundred")]
        let tokens_f = tokens as f64;
        let share = |seconds: f64| rounded(2.0 * work.macs * tokens_f / seconds / 1e9 / peak);
        let value = json!({
            "tokens_per_s": rounded(tokens_f / wall),
            "peak_share": share(wall),
            "gemm_share": share(linear),
        });
        prefill.insert(tokens.to_string(), value);
    }

    let one = decode(model, 1, STEPS[0])?;
    let mut several = Vec::new();
    for sequences in BATCHES {
        several.push((sequences, decode(model, sequences, STEPS[1])?));
    }
    limits.push(Limits::measure(model)?);
    let now = around(&limits);
    let decoded = json!({
        "tokens_per_s": rounded(1.0 / one.step),
        "step_ms": rounded(one.step * 1e3),
        "dram_share": rounded(work.bytes / one.step / 1e9 / now.dram_gbps),
        "mapped_share": rounded(work.bytes / one.step / 1e9 / now.dram_gbps_mapped),
    });
    let mut batch = Map::new();
    for (sequences, Decode { step, .. }) in &several {
        #[allow(clippy::cast_precision_loss, reason = "at most eight")]
        let n = *sequences as f64;
        let value = json!({
            "tokens_per_s": rounded(n / step),
            "speedup": rounded(n * one.step / step),
            "bound_share": rounded(now.bound(work.bytes, n * work.macs_decoded) / step),
        });
        batch.insert(sequences.to_string(), value);
    }

    let threads = model.engine().threads();
    let warm = First::median(dir, threads, &[], REPEATS)?;
    let warm_4k = First::median(dir, threads, &["--small-pages"], REPEATS)?;
    let cold = First::median(dir, threads, &["--cold"], REPEATS)?;
    limits.push(Limits::measure(model)?);
    let now = around(&limits);

    let best = limits.iter().skip(1).fold(limits[0], |a, b| a.max(*b));
    let mut json = best.to_json();
    json.insert("moved".into(), json!(limits.iter().any(|l| best.moved(l))));
    json.insert("each".into(), limits.iter().map(|l| Value::Object(l.to_json())).collect());
    Ok(json!({
        "model": model.config().name,
        "kernels": model.engine().kernels().name,
        "threads": threads,
        "bytes_per_token": work.bytes,
        "macs_per_token": work.macs,
        "limits": json,
        "prefill": prefill,
        "decode": decoded,
        "batch": batch,
        "first_token_ms": {
            "warm": rounded(warm.ms),
            "warm_4k": rounded(warm_4k.ms),
            "cold": rounded(cold.ms),
            "bound": rounded(now.bound(work.bytes, 0.0) * 1e3),
            "huge_pages": rounded(warm.huge),
        },
        "anon_bytes": warm.anon_bytes,
        "arena_bytes": warm.arena_bytes,
        "allocs_per_step": one.allocations,
    }))
}

/// Token ids without a pattern that matters.
pub(super) fn prompt(model: &Model, tokens: usize) -> Vec<u32> {
    let [from, to] = model.config().tokens.text;
    (0..).map(|i: u32| from + (i.wrapping_mul(2_654_435_761) >> 8) % (to - from)).take(tokens).collect()
}

/// Median seconds of a prompt: all of it, and its linear layers.
struct Prefill {
    wall: f64,
    linear: f64,
}

/// A prompt of `tokens` tokens, prefix included, up to the logits after its last one.
fn prefill(model: &Arc<Model>, tokens: usize) -> anyhow::Result<Prefill> {
    let c = model.config();
    let mut session = Session::new(model, &options(tokens, 1))?;
    let ids = prompt(model, tokens.saturating_sub(c.task_prefix_len));
    let mut samples = Vec::new();
    let start = Instant::now();
    // The first one finds cold buffers.
    while samples.len() <= REPEATS || start.elapsed() < PATIENCE {
        let (linear, begin) = (model.engine().linear_time(), Instant::now());
        session.score_begin(&c.tasks[0], &ids, &mut |logits| {
            std::hint::black_box(argmax(logits));
        })?;
        samples.push((begin.elapsed(), model.engine().linear_time() - linear));
    }
    samples.remove(0);
    Ok(Prefill {
        wall: median(samples.iter().map(|s| s.0.as_secs_f64())),
        linear: median(samples.iter().map(|s| s.1.as_secs_f64())),
    })
}

/// Median seconds of a step, and its allocations.
struct Decode {
    step: f64,
    allocations: f64,
}

/// Sequences that are decoded together, each after a prompt.
fn decode(model: &Arc<Model>, sequences: usize, steps: usize) -> anyhow::Result<Decode> {
    let c = model.config();
    let ids = prompt(model, DECODE_PROMPT);
    let mut sessions: Vec<Session> = (0..sequences)
        .map(|_| Session::new(model, &options(DECODE_PROMPT + steps, sequences)))
        .collect::<Result<_, _>>()?;
    let mut sessions: Vec<&mut Session> = sessions.iter_mut().collect();
    let (mut samples, mut allocations) = (Vec::new(), 0);
    let start = Instant::now();
    let mut pick = |_: usize, logits: &[f32]| argmax(logits).unwrap_or(0);
    let mut runs = 0;
    while runs <= REPEATS || start.elapsed() < PATIENCE {
        for session in &mut sessions {
            session.begin(&c.tasks[0], &ids)?;
            session.open(&[])?;
        }
        // The question's pass.
        step(&mut sessions, &mut pick)?;
        let (count, begin) = (Count::start(), Instant::now());
        for _ in 0..steps {
            step(&mut sessions, &mut pick)?;
        }
        let elapsed = begin.elapsed();
        allocations += count.stop();
        #[allow(clippy::cast_precision_loss, reason = "a few steps")]
        samples.push(elapsed.as_secs_f64() / steps as f64);
        runs += 1;
    }
    samples.remove(0);
    #[allow(clippy::cast_precision_loss, reason = "counts far below 2⁵²")]
    let allocations = rounded(allocations as f64 / (runs * steps) as f64);
    Ok(Decode { step: median(samples.into_iter()), allocations })
}

pub(super) fn options(max_text_tokens: usize, max_sequences: usize) -> SessionOptions {
    SessionOptions { max_text_tokens, max_sequences }
}

pub(super) fn median(samples: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = samples.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A report as text.
pub(super) fn to_table(report: &Value) -> String {
    let at = |path: &str| report.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let mut text = format!(
        "{}, {} kernels, {} threads\nlimits: memory {:.1} GB/s ({:.1} on one thread, {:.1} mapped), INT8 {:.0} GOPS ({:.0} on one thread)\n\n",
        report["model"].as_str().unwrap_or_default(),
        report["kernels"].as_str().unwrap_or_default(),
        at("/threads"),
        at("/limits/dram_gbps"),
        at("/limits/dram_gbps_1t"),
        at("/limits/dram_gbps_mapped"),
        at("/limits/int8_gops"),
        at("/limits/int8_gops_1t"),
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
