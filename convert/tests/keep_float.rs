//! Linear layers that stay float in an INT8 bundle: what is stored, that it runs, and what is refused.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use saccade::config::BundleConfig;
use serde_json::Value;
use support::Workshop;

fn config(shop: &Workshop, bundle: &str) -> BundleConfig {
    BundleConfig::from_json(&std::fs::read(shop.path(bundle).join("saccade.json")).unwrap()).unwrap()
}

#[test]
fn what_matches_is_stored_in_f16_and_said() {
    let shop = Workshop::new();
    let args = ["--keep-float", r"ffn\.down$", "--keep-float", r"^layers\.1\.attn\.[qkv]$"];
    let plan = shop.succeeds(&[&["convert", "tiny.safetensors", "out", "--dry-run"], &args[..]].concat());
    let text = shop.succeeds(&[&["convert", "tiny.safetensors", "out"], &args[..]].concat());
    for text in [plan, text.clone()] {
        assert!(text.contains("linear layers that stay float: 5, for "), "{text}");
    }
    assert!(text.contains("layers.*.ffn.down") && text.contains("of 2, 2 kept float"), "{text}");
    shop.succeeds(&["verify", "out"]);
    let config = config(&shop, "out");
    let kept: Vec<_> = config.quantisation.kept_float.iter().map(String::as_str).collect();
    let expected =
        ["layers.0.ffn.down", "layers.1.attn.k", "layers.1.attn.q", "layers.1.attn.v", "layers.1.ffn.down"];
    assert_eq!(kept, expected);
    assert!(kept.iter().all(|name| !config.linears.contains_key(*name)));
    assert!(config.quantisation.two_part_activations.iter().all(|name| !kept.contains(&name.as_str())));
    let found: Value = serde_json::from_str(&shop.succeeds(&["inspect", "out", "--json"])).unwrap();
    let tensors = found["tensors"].as_array().unwrap();
    let dtype = |name: &str| &tensors.iter().find(|tensor| tensor["name"] == name).unwrap()["dtype"];
    assert_eq!(dtype("layers.1.attn.q.weight"), "F16");
    assert_eq!(dtype("layers.0.attn.q.weight"), "I8");
    assert!(!tensors.iter().any(|tensor| tensor["name"] == "layers.1.attn.q.scale"));
}

#[test]
fn json_has_the_effect() {
    let shop = Workshop::new();
    let report = shop.succeeds(&["convert", "tiny.safetensors", "out", "--json", "--keep-float", "embed"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    let embed = report["rounding"].as_array().unwrap().iter().find(|group| group["name"] == "embed").unwrap();
    assert_eq!((&embed["layers"], &embed["kept_float"]), (&1.into(), &1.into()), "{report}");
    let mean = embed["mean"].as_f64().unwrap();
    // Uniform weights of 32 inputs: half a step is 1/254 of the largest, the root mean square of rounding 1/√12 of a step.
    assert!((0.003..0.006).contains(&mean), "{report}");
    let bytes = report["kept_float_bytes"].as_u64().unwrap();
    // Two bytes a parameter for one, whose 593 rows are padded to 608, and neither scales nor sums; every tensor starts at 64 bytes.
    assert!(bytes.abs_diff(2 * 593 * 32 - (608 * 32 + 593 * 8)) < 4 * 64, "{report}");
    assert!(report["peak_memory_bytes"].as_u64().unwrap() > report["largest_tensor_bytes"].as_u64().unwrap());
}

#[test]
fn mixed_bundles_compute_what_the_float_model_does() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let shop = Workshop::new();
    let divergence = |model: &str, golden: &str, out: &str, patterns: &[&str]| -> f64 {
        let [model, golden] = [model, golden].map(|name| fixtures.join(name).to_string_lossy().into_owned());
        let mut args = vec!["convert", &model, out];
        args.extend(patterns.iter().flat_map(|pattern| ["--keep-float", pattern]));
        shop.succeeds(&args);
        let output = shop.run(&["golden", out, "--golden", &golden, "--precision", "int8", "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["logits"]["kl_mean"].as_f64().unwrap()
    };
    let (llama, llama_golden) = ("llama/tiny", "llama/golden.safetensors");
    let int8 = divergence(llama, llama_golden, "int8", &[]);
    // Keys and values stay INT8, so that something is left.
    let float = divergence(llama, llama_golden, "float", &["."]);
    assert!(float < int8 / 2.0, "{float} of {int8}");
    let some = divergence(llama, llama_golden, "some", &[r"attn\.", "head", "embed"]);
    assert!(float < some && some < int8, "{float} < {some} < {int8}");

    // Layers outside of the blocks share the buffers of those inside.
    let (janus, janus_golden) = ("hf/janus", "hf/janus/golden.safetensors");
    let int8 = divergence(janus, janus_golden, "janus-int8", &[]);
    let drawing = divergence(janus, janus_golden, "janus-drawing", &["^drawing"]);
    assert!((drawing - int8).abs() < 1e-9, "what draws is not read by the text: {drawing}, {int8}");
    assert!(divergence(janus, janus_golden, "janus-float", &["^layers", "^head"]) < int8 / 2.0);
}

#[test]
fn patterns_that_do_not_fit_are_refused() {
    let shop = Workshop::new();
    let refuses = |args: &[&str], words: &[&str]| {
        shop.refuses(&[&["convert", "tiny.safetensors", "out"], args].concat(), words);
        shop.refuses(&[&["convert", "tiny.safetensors", "out", "--dry-run"], args].concat(), words);
    };
    refuses(
        &["--keep-float", "^lm_head$"],
        &[
            "--keep-float ^lm_head$",
            "matches no linear layer",
            "`layers.0.attn.q`",
            "`layers.0.ffn.down`",
            "`embed`",
        ],
    );
    refuses(&["--keep-float", "embed", "--keep-float", "nothing"], &["--keep-float nothing"]);
    refuses(
        &["--keep-float", r"layers\.1\.attn\.(q|v)"],
        &[
            "`layers.1.attn.q` would be float",
            "`layers.1.attn.k` INT8",
            "attn.q, attn.k, attn.v",
            "all of them or none",
        ],
    );
    refuses(&["--keep-float", "gate"], &["`layers.0.ffn.gate`", "`layers.0.ffn.up`"]);
    refuses(&["--keep-float", "embed", "--dtype", "f16"], &["only INT8 bundles"]);
    let output = shop.run(&["convert", "tiny.safetensors", "out", "--keep-float", "("]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("unclosed group"));
}
