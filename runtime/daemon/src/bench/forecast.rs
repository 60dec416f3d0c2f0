//! `saccaded bench --board NAME`: what a board's card would need for a model, from bytes and operations counted kernel by kernel.
//!
//! A roofline, not a measurement: a kernel takes as long as its bytes at the memory's bandwidth or its operations at the INT8 rate, whichever
//! is longer, plus what a launch inside a graph costs. Bandwidth and rate are the profile's; how much of them kernels reach is an
//! assumption that the report states.

use anyhow::Context as _;
use saccade::config::{BundleConfig, CONFIG_FILE, DecoderConfig};
use saccade_boards::{Board, Root};
use serde_json::{Value, json};
use std::path::Path;

use super::rounded;

/// Share of the memory's bandwidth that kernels reach: what a public measurement reads on an Orin Nano, 62 of 68 GB/s, less a margin.
const MEMORY: f64 = 0.8;
/// Share of the dense INT8 rate that `mma.sync` products reach.
const INT8: f64 = 0.6;
/// Between two kernels of a graph.
///
/// Units: seconds.
const GAP: f64 = 2e-6;
/// Tokens of the prompt, and before a decoded token.
const TOKENS: usize = 576;
/// Rows that `gemv_i8` takes.
const FEW_ROWS: usize = 16;

/// All launches of one kind in a step.
struct Kernel {
    name: &'static str,
    launches: usize,
    bytes: f64,
    /// Multiply-accumulates times two, in INT8.
    operations: f64,
}

/// What the card can do.
struct Card {
    bytes_per_s: f64,
    operations_per_s: f64,
}

impl Card {
    /// Of a board in its fastest mode.
    fn of(board: &Board) -> anyhow::Result<Self> {
        let no = |what: &str| {
            format!("the profile of `{}` has no {what}, so there is nothing to reckon with", board.name)
        };
        let gpu = board.gpu.as_ref().with_context(|| no("card"))?;
        let tops = gpu.int8_dense_super_tops.as_ref().or(gpu.int8_dense_tops.as_ref());
        let bandwidth = board.memory_super_gb_per_s.as_ref().or(board.memory_gb_per_s.as_ref());
        Ok(Self {
            bytes_per_s: bandwidth.with_context(|| no("memory bandwidth"))?.value * 1e9,
            operations_per_s: tops.with_context(|| no("INT8 rate"))?.value * 1e12,
        })
    }

    /// Seconds of all launches of a kernel.
    #[allow(clippy::cast_precision_loss, reason = "thousands of launches")]
    fn time(&self, kernel: &Kernel) -> f64 {
        let memory = kernel.bytes / (self.bytes_per_s * MEMORY);
        let int8 = kernel.operations / (self.operations_per_s * INT8);
        memory.max(int8) + kernel.launches as f64 * GAP
    }
}

/// The kernels of one step: `rows` new tokens of each of `sequences` that see [`TOKENS`] (or, of a prompt, themselves).
#[allow(clippy::cast_precision_loss, reason = "sizes far below 2⁵²")]
fn kernels(bundle: &BundleConfig, rows: usize, sequences: usize) -> Vec<Kernel> {
    let c: DecoderConfig = bundle.model.decoder();
    let (heads, kvs) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
    let two_part = &bundle.quantisation.two_part_activations;
    let parts = |layer: &str| if two_part.contains(&format!("layers.0.{layer}")) { 2 } else { 1 };
    let tokens = rows * sequences;
    let few = |parts: usize| tokens * parts <= FEW_ROWS;
    // Rows of activations are read again by every block of outputs of a large product; a small one keeps them in the cache.
    let product = |n: usize, k: usize, parts: usize| {
        let m = (tokens * parts) as f64;
        let again = if few(parts) { 1.0 } else { (n as f64 / 128.0).ceil() };
        let bytes = (n * k) as f64 + 8.0 * n as f64 + m * k as f64 * again + 4.0 * (tokens * n) as f64;
        (bytes, 2.0 * m * (n * k) as f64)
    };
    let mut list: Vec<Kernel> = Vec::new();
    let mut add = |name, launches: usize, (bytes, operations): (f64, f64)| {
        let times = launches as f64;
        list.push(Kernel { name, launches, bytes: bytes * times, operations: operations * times });
    };
    let n = c.n_layers;
    add("embed", 1, (8.0 * (tokens * c.d_model) as f64, 0.0));
    if tokens > 1 {
        let values = tokens * (2 * c.d_model + heads + c.d_ff);
        add("quantise_rows", 4 * n, (5.0 * values as f64 / 4.0, 0.0));
    }
    add("products: query, key, value", n, product(heads + 2 * kvs, c.d_model, parts("attn.q")));
    add("store_heads", n, (8.0 * (tokens * (heads + 2 * kvs)) as f64, 0.0));
    // Keys and values of what is seen, read for each unit of 16 queries.
    let group = c.n_heads / c.n_kv_heads;
    let units = rows.div_ceil((16 / group).max(1)) * sequences;
    let seen = if rows == 1 { TOKENS } else { rows / 2 };
    let (panels, operations) =
        ((units * seen * (kvs + 6 * c.n_kv_heads)) as f64, 2.0 * (tokens * seen * heads) as f64);
    if rows == 1 {
        let scores = 4.0 * (tokens * seen * c.n_heads) as f64;
        add("attention_i8_scores", n, (panels + scores, operations));
        add("attention_i8_values", n, (panels + 3.0 * scores, 2.0 * operations));
    } else {
        // Keys are read, and scores computed, once for the largest and once for the weights, of which there are two.
        add("attention_i8_rows", n, (3.0 * panels, 4.0 * operations));
    }
    add("product: output", n, product(c.d_model, heads, parts("attn.o")));
    add("products: gate, up", n, product(2 * c.d_ff, c.d_model, parts("ffn.gate")));
    add("product: down", n, product(c.d_model, c.d_ff, parts("ffn.down")));
    let text = bundle.model.text_range().len();
    let (bytes, operations) = product(text, c.d_model, 1);
    // Of a prompt the last row's logits are wanted.
    let (share, rows) = (1.0 / rows as f64, sequences as f64);
    let bytes = (text * c.d_model) as f64 + (bytes - (text * c.d_model) as f64) * share;
    add("head", 2, (bytes / 2.0, operations * share / 2.0));
    add("check_finite", 1, (4.0 * rows * c.d_model as f64, 0.0));
    add("pick", 1, (4.0 * rows * text as f64, 0.0));
    list
}

/// What the board would need.
///
/// # Errors
/// If there is no such board, its profile lacks a figure, or the model's description cannot be read.
pub(super) fn run(name: &str, dir: &Path) -> anyhow::Result<Value> {
    let boards = saccade_boards::profiles(&Root::system())?;
    let wanted = |board: &&Board| board.name.eq_ignore_ascii_case(name) || slug(&board.name) == slug(name);
    let known =
        || boards.iter().filter(|b| b.gpu.is_some()).map(|b| slug(&b.name)).collect::<Vec<_>>().join(", ");
    let board =
        boards.iter().find(wanted).with_context(|| format!("no board `{name}`; there are: {}", known()))?;
    let path = dir.join(CONFIG_FILE);
    let bytes = std::fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let bundle = BundleConfig::from_json(&bytes).with_context(|| path.display().to_string())?;
    let card = Card::of(board)?;
    let step = |rows: usize, sequences: usize| {
        let list = kernels(&bundle, rows, sequences);
        let total: f64 = list.iter().map(|kernel| card.time(kernel)).sum();
        let rows: Vec<Value> = list
            .iter()
            .map(|kernel| {
                json!({
                    "kernel": kernel.name, "launches": kernel.launches, "bytes": kernel.bytes, "operations": kernel.operations,
                    "us": rounded(card.time(kernel) * 1e6),
                })
            })
            .collect();
        (total, rows)
    };
    let ((decode, decode_kernels), (prefill, prefill_kernels), (eight, _)) =
        (step(1, 1), step(TOKENS, 1), step(1, 8));
    let weights: f64 = bundle.files.values().map(|file| file.bytes as f64).sum();
    Ok(json!({
        "board": board.name,
        "model": bundle.model.name(),
        "assumed": {
            "memory_share": MEMORY, "int8_share": INT8, "gap_us": GAP * 1e6,
            "why": "shares of the profile's figures that kernels are taken to reach; none was measured on this board",
        },
        "memory_gbps": card.bytes_per_s / 1e9,
        "int8_tops": card.operations_per_s / 1e12,
        "decode": {"tokens_per_s": rounded(1.0 / decode), "step_ms": rounded(decode * 1e3), "kernels": decode_kernels,
            "dram_share": rounded(weights / card.bytes_per_s / decode)},
        "batch": {"8": {"tokens_per_s": rounded(8.0 / eight), "speedup": rounded(8.0 * decode / eight)}},
        "prefill": {"576": {"tokens_per_s": rounded(576.0 / prefill), "ms": rounded(prefill * 1e3), "kernels": prefill_kernels}},
    }))
}

/// A board's name as its file is called: lower case, without the maker's words.
fn slug(name: &str) -> String {
    let name = name.to_lowercase();
    let words =
        name.split(|c: char| !c.is_alphanumeric()).filter(|word| !["", "jetson", "nvidia"].contains(word));
    words.collect::<Vec<_>>().join("-")
}

/// The report as a person reads it.
pub(super) fn to_table(report: &Value) -> String {
    let number = |path: &str| report.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let text = |path: &str| report.pointer(path).and_then(Value::as_str).unwrap_or("?").to_owned();
    let mut out = format!(
        "{} on {}: a forecast, not a measurement\n{} GB/s and {} INT8 TOPS by the profile; assumed to be reached: {} and {} of them, {} µs between kernels\n",
        text("/model"),
        text("/board"),
        number("/memory_gbps"),
        number("/int8_tops"),
        number("/assumed/memory_share"),
        number("/assumed/int8_share"),
        number("/assumed/gap_us"),
    );
    for (title, path) in
        [("decode, one token", "/decode/kernels"), ("prefill, 576 tokens", "/prefill/576/kernels")]
    {
        out += &format!("\n{title:<30}{:>9}{:>11}{:>11}{:>10}\n", "launches", "MB", "GOP", "µs");
        for kernel in report.pointer(path).and_then(Value::as_array).into_iter().flatten() {
            let of = |key: &str| kernel[key].as_f64().unwrap_or(f64::NAN);
            let name = kernel["kernel"].as_str().unwrap_or("?");
            out += &format!(
                "{name:<30}{:>9}{:>11.2}{:>11.3}{:>10.1}\n",
                of("launches"),
                of("bytes") / 1e6,
                of("operations") / 1e9,
                of("us")
            );
        }
    }
    out + &format!(
        "\ndecode {:.1} tokens/s ({:.2} ms, {:.0} % of the bandwidth), 8 sequences {:.2} times that, prefill {:.0} tokens/s ({:.1} ms)\n",
        number("/decode/tokens_per_s"),
        number("/decode/step_ms"),
        100.0 * number("/decode/dram_share"),
        number("/batch/8/speedup"),
        number("/prefill/576/tokens_per_s"),
        number("/prefill/576/ms"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(board: &str) -> anyhow::Result<Value> {
        run(board, &crate::shipped::model(None).unwrap())
    }

    #[test]
    fn every_weight_is_read_once_in_decode() {
        let report = report("orin-nano-8gb").unwrap();
        let kernels = report["decode"]["kernels"].as_array().unwrap();
        let bytes: f64 = kernels
            .iter()
            .filter(|k| k["kernel"].as_str().unwrap().starts_with("product") || k["kernel"] == "head")
            .map(|k| k["bytes"].as_f64().unwrap())
            .sum();
        // 6 layers of 192 × (192 + 2 · 64 + 192 + 3 · 512) weights, 2,112 ids of text, and a twentieth for scales and activations.
        let weights = f64::from(6 * 192 * (192 + 2 * 64 + 192 + 3 * 512) + 192 * 2112);
        assert!(bytes > weights && bytes < 1.1 * weights, "{bytes} of {weights}");
    }

    #[test]
    fn a_faster_board_is_faster_and_an_unknown_one_is_named() {
        let speed = |board: &str| report(board).unwrap()["decode"]["tokens_per_s"].as_f64().unwrap();
        assert!(speed("thor-t5000") > speed("Jetson Orin Nano 8GB"));
        let error = report("toaster").unwrap_err().to_string();
        assert!(
            error.starts_with("no board `toaster`; there are: ") && error.contains("orin-nano-8gb"),
            "{error}"
        );
        let error = report("nano-4gb").unwrap_err().to_string();
        assert!(error.contains("INT8 rate"), "{error}");
    }
}
