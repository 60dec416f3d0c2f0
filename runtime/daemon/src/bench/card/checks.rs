//! What the figures of a card should be: each with its target and whether it is met.
//!
//! They are those of a data-centre card, where gaps between launches outweigh bytes.

use serde_json::{Value, json};

/// On which side of its target a figure should be.
#[derive(Clone, Copy)]
enum Side {
    AtLeast,
    AtMost,
}
use Side::{AtLeast, AtMost};

/// The models that a target is for; no name: every one.
type Of = &'static [&'static str];
const ALL: Of = &[];
const NANO: Of = &["nano"];
const M: Of = &["random-M"];
const L: Of = &["random-L"];
const M_AND_L: Of = &["random-M", "random-L"];

/// What, the way to it in the report, on which side of what, for which models.
const TARGETS: [(&str, &str, Side, f64, Of); 13] = [
    ("linear layer of one token, 256 MB: share of copy bandwidth", "/limits/gemv_share", AtLeast, 0.8, ALL),
    ("whole decode step: share of copy bandwidth", "/decode/copy_share", AtLeast, 0.5, L),
    ("decode step, us", "/decode/step_us", AtMost, 350.0, M),
    ("decode step, us", "/decode/step_us", AtMost, 150.0, NANO),
    ("8 sequences together, times one", "/batch/8/speedup", AtLeast, 6.0, M_AND_L),
    ("prefill of 2048 tokens: share of a bare product", "/prefill/2048/gemm_share", AtLeast, 0.6, L),
    ("prefill of 576 tokens: share of a bare product", "/prefill/576/gemm_share", AtLeast, 0.35, L),
    ("bare product of 2048 tokens: share of the instruction", "/limits/gemm_share_2048", AtLeast, 0.6, ALL),
    ("map to first token, ms", "/first_token_ms", AtMost, 100.0, M),
    ("map to first token, ms", "/first_token_ms", AtMost, 250.0, L),
    ("divergence from the CPU, largest", "/parity/kl_max", AtMost, 1e-4, ALL),
    ("other greedy token where the CPU's leads by 0.05", "/parity/other_top_of_clear", AtMost, 0.0, ALL),
    ("allocations of a step", "/allocs_per_step", AtMost, 0.0, ALL),
];

/// Every target of the report's model beside its figure; `met` is null where there is no figure.
pub(super) fn checks(report: &Value) -> Value {
    let model = report["model"].as_str().unwrap_or_default();
    let ours = TARGETS.iter().filter(|(.., of)| of.is_empty() || of.contains(&model));
    let rows = ours.map(|(what, at, side, target, _)| {
        let value = report.pointer(at).and_then(Value::as_f64);
        let met = value.map(|value| match side {
            AtLeast => value >= *target,
            AtMost => value <= *target,
        });
        let side = if matches!(side, AtLeast) { "at least" } else { "at most" };
        json!({"what": what, "value": value, "side": side, "target": target, "met": met})
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_on_its_side_of_its_target_or_is_none() {
        let report = json!({
            "model": "random-M", "decode": {"step_us": 350.0}, "batch": {"8": {"speedup": 5.999}},
            "parity": {"kl_max": f64::NAN, "other_top_of_clear": 0},
        });
        let checks = checks(&report);
        let met = |what: &str| {
            let row = checks.as_array().unwrap().iter().find(|row| row["what"] == what).unwrap();
            row["met"].clone()
        };
        assert_eq!(met("decode step, us"), true);
        assert_eq!(met("8 sequences together, times one"), false);
        // JSON has no NaN: what is none is not met.
        assert_eq!(met("divergence from the CPU, largest"), Value::Null);
        assert_eq!(met("other greedy token where the CPU's leads by 0.05"), true);
        assert_eq!(met("map to first token, ms"), Value::Null);
        assert!(!checks.to_string().contains("whole decode step"), "a target of L alone");
    }
}
