use std::collections::BTreeMap;

use super::*;
use crate::quant::MAX_K;

fn bundle() -> BundleConfig {
    let entry = FileEntry { bytes: 1, blake3: "a".repeat(64) };
    BundleConfig {
        format_version: FORMAT_VERSION,
        dtype: WeightDtype::Int8,
        model: nano(),
        quantisation: Quantisation {
            recipe: "w8a8".into(),
            float_tensors: vec![],
            two_part_activations: Default::default(),
        },
        linears: BTreeMap::new(),
        provenance: serde_json::Map::new(),
        files: [(WEIGHTS_FILE.into(), entry.clone()), (TOKENIZER_FILE.into(), entry)].into(),
        self_blake3: String::new(),
    }
}

#[test]
fn nano_passes_its_own_checks() {
    nano().check().unwrap();
}

#[test]
fn round_trips_and_keeps_its_hash() {
    let bytes = bundle().to_json().unwrap();
    let read = BundleConfig::from_json(&bytes).unwrap();
    assert_eq!(read.to_json().unwrap(), bytes);
}

#[test]
fn any_changed_byte_is_noticed() {
    let bytes = bundle().to_json().unwrap();
    for at in (0..bytes.len()).step_by(7) {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(BundleConfig::from_json(&changed).is_err(), "byte {at}");
    }
}

#[test]
fn refuses_another_version_by_name() {
    let bytes = bundle().to_json().unwrap();
    let text =
        String::from_utf8(bytes).unwrap().replacen("\"format_version\": 1", "\"format_version\": 2", 1);
    let error = BundleConfig::from_json(text.as_bytes()).unwrap_err();
    assert!(matches!(error, ConfigError::Version { found: 2 }), "{error}");
}

#[test]
fn refuses_an_unknown_field() {
    let mut value = serde_json::to_value(nano()).unwrap();
    value["d_modle"] = 3.into();
    let error = ModelConfig::from_json(&value.to_string()).unwrap_err();
    assert!(error.to_string().contains("d_modle"), "{error}");
}

#[test]
fn refuses_a_path_among_the_files() {
    let mut config = bundle();
    config.files.insert("../x".into(), FileEntry { bytes: 1, blake3: "b".repeat(64) });
    let error = BundleConfig::from_json(&config.to_json().unwrap()).unwrap_err();
    assert!(error.to_string().contains("../x"), "{error}");
}

/// Each entry breaks one rule; the message must name the field.
#[test]
fn each_broken_rule_names_its_field() {
    type Break = fn(&mut ModelConfig);
    let cases: [(&str, Break); 14] = [
        ("d_model", |c| c.d_model = 0),
        ("n_kv_heads", |c| c.n_kv_heads = 4),
        ("head_dim", |c| c.head_dim = 31),
        ("d_ff", |c| c.d_ff = MAX_K + 1),
        ("rope_theta", |c| c.rope_theta = f32::NAN),
        ("norm_eps", |c| c.norm_eps = 0.0),
        ("tokens.image", |c| c.tokens.image = [2368, 9999]),
        ("tokens.text", |c| c.tokens.text = [0, 2200]),
        ("special", |c| c.special.ans = c.special.ask),
        ("modalities", |c| c.modalities.swap(0, 1)),
        ("window", |c| c.modalities[1].window = Some(0)),
        ("image.width", |c| c.image.width = 65),
        ("codebook_size", |c| c.image.codebook_size = 1000),
        ("action", |c| c.action.low[2] = f32::INFINITY),
    ];
    for (field, broken) in cases {
        let mut config = nano();
        broken(&mut config);
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
}
