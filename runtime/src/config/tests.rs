use std::collections::BTreeMap;

use super::*;
use crate::quant::MAX_K;
use crate::tokenize::{Filter, Fit, PixelConfig, ResizeRule};

fn bundle() -> BundleConfig {
    let entry = FileEntry { bytes: 1, blake3: "a".repeat(64) };
    BundleConfig {
        format_version: FORMAT_VERSION,
        dtype: WeightDtype::Int8,
        model: nano().into(),
        quantisation: Quantisation {
            recipe: "w8a8".into(),
            float_tensors: vec![],
            two_part_activations: Default::default(),
            kept_float: Default::default(),
        },
        linears: BTreeMap::new(),
        provenance: serde_json::Map::new(),
        front_end: None,
        files: [(WEIGHTS_FILE.into(), entry.clone()), (TOKENIZER_FILE.into(), entry)].into(),
        self_blake3: String::new(),
    }
}

#[test]
fn nano_passes_its_own_checks() {
    ModelConfig::from(nano()).check().unwrap();
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
    let mut value = serde_json::to_value(ModelConfig::from(nano())).unwrap();
    value["d_modle"] = 3.into();
    let error = ModelConfig::from_json(&value.to_string()).unwrap_err();
    let reason = std::error::Error::source(&error).unwrap().to_string();
    assert!(reason.contains("d_modle"), "{reason}");
    assert!(!error.to_string().contains(&reason), "the reason is said once: {error}");
}

#[test]
fn refuses_more_bytes_than_any_configuration_has() {
    let error = BundleConfig::from_json(&vec![b' '; MAX_CONFIG_BYTES + 1]).unwrap_err();
    assert!(error.to_string().contains("4194305 bytes, more than the 4194304"), "{error}");
}

#[test]
fn refuses_to_write_what_it_would_not_read() {
    let mut config = bundle();
    config.model = UnimodalConfig { d_model: 0, ..nano() }.into();
    let error = config.to_json().unwrap_err();
    assert!(error.to_string().contains("model.d_model"), "{error}");
}

/// Each entry breaks one rule of the list of files.
#[test]
fn each_broken_rule_of_the_files_names_the_file() {
    let entry = |blake3: &str| FileEntry { bytes: 1, blake3: blake3.into() };
    let hash = "b".repeat(64);
    let strays =
        ["../x", "a/b", "a\\b", ".hidden", "saccade.json"].map(|name| (name, entry(&hash), "file name"));
    let hashes = ["", &"b".repeat(63), &"g".repeat(64)].map(|hash| ("x.bin", entry(hash), "64 hex digits"));
    for (name, entry, part) in strays.into_iter().chain(hashes) {
        let mut config = bundle();
        config.files.insert(name.into(), entry);
        let error = BundleConfig::from_json(&config.to_json().unwrap()).unwrap_err().to_string();
        assert!(error.contains(&format!("files: `{name}`")) && error.contains(part), "{name}: {error}");
    }
    for name in [WEIGHTS_FILE, TOKENIZER_FILE] {
        let mut config = bundle();
        config.files.remove(name);
        let error = BundleConfig::from_json(&config.to_json().unwrap()).unwrap_err().to_string();
        assert!(error.contains(&format!("`{name}` is not listed")), "{error}");
    }
}

type Break = fn(&mut UnimodalConfig);

/// Each entry breaks one rule; the message must name the field and the reason.
fn check_cases(cases: &[(&str, &str, Break)]) {
    for (i, (field, reason, broken)) in cases.iter().enumerate() {
        let mut config = nano();
        broken(&mut config);
        let error = ModelConfig::from(config).check().expect_err(&format!("case {i}, {field}")).to_string();
        assert!(error.contains(&format!("model.{field}: ")), "case {i}, {field}: {error}");
        assert!(error.contains(reason), "case {i}, {reason}: {error}");
    }
}

#[test]
fn each_broken_rule_of_the_sizes_names_its_field() {
    check_cases(&[
        ("d_model", "0 is outside 1 to", |c| c.d_model = 0),
        ("d_model", "is outside 1 to", |c| c.d_model = MAX_K + 1),
        ("n_layers", "0 is outside", |c| c.n_layers = 0),
        ("n_layers", "513 is outside", |c| c.n_layers = 513),
        ("n_heads", "0 is outside", |c| c.n_heads = 0),
        ("n_heads", "1025 is outside", |c| c.n_heads = 1025),
        ("n_kv_heads", "0 is outside", |c| c.n_kv_heads = 0),
        ("n_kv_heads", "7 is outside 1 to 6", |c| c.n_kv_heads = 7),
        ("n_kv_heads", "4 does not divide n_heads 6", |c| c.n_kv_heads = 4),
        ("head_dim", "0 is outside", |c| c.head_dim = 0),
        ("head_dim", "1026 is outside", |c| c.head_dim = 1026),
        ("head_dim", "must be even", |c| c.head_dim = 31),
        ("n_heads × head_dim", "262144 is outside", |c| (c.n_heads, c.head_dim) = (256, 1024)),
        ("d_ff", "0 is outside", |c| c.d_ff = 0),
        ("d_ff", "is outside", |c| c.d_ff = MAX_K + 1),
        ("vocab_size", "0 is outside", |c| c.vocab_size = 0),
        ("vocab_size", "is outside", |c| c.vocab_size = usize::MAX),
        ("rope_theta", "above 1", |c| c.rope_theta = f32::NAN),
        ("rope_theta", "above 1", |c| c.rope_theta = f32::INFINITY),
        ("norm_eps", "between 0 and 1", |c| c.norm_eps = 0.0),
        ("norm_eps", "between 0 and 1", |c| c.norm_eps = f32::NAN),
        ("generation.max_new_tokens", "0 is outside", |c| c.generation.max_new_tokens = 0),
        ("generation.max_new_tokens", "is outside", |c| c.generation.max_new_tokens = usize::MAX),
    ]);
}

#[test]
fn each_broken_rule_of_the_vocabulary_names_its_field() {
    check_cases(&[
        ("tokens.image", "[2368, 9999) is empty or leaves", |c| c.tokens.image = [2368, 9999]),
        ("tokens.text", "[5, 5) is empty or leaves", |c| c.tokens.text = [5, 5]),
        ("tokens.bins", "[9, 5) is empty or leaves", |c| c.tokens.bins = [9, 5]),
        ("tokens.bins", "1 is outside 2 to 65535", |c| c.tokens.bins = [2112, 2113]),
        ("tokens.bins", "65536 is outside 2 to 65535", |c| {
            (c.vocab_size, c.tokens.bins) = (100_000, [3392, 3392 + 65_536]);
        }),
        ("tokens.text", "overlaps", |c| c.tokens.text = [0, 2200]),
        ("special", "id 8 is used twice", |c| c.special.ans = c.special.ask),
        ("special", "id 2112 is used twice or is no text token", |c| c.special.eos = 2112),
        ("tasks", "0 is outside", |c| c.tasks.clear()),
        ("tasks", "4097 is outside", |c| c.tasks = vec!["x".into(); 4097]),
        ("task_prefix_len", "0 is outside", |c| c.task_prefix_len = 0),
        ("task_prefix_len", "65 is outside", |c| c.task_prefix_len = 65),
        ("modalities", "in this order", |c| c.modalities.swap(0, 1)),
        ("modalities", "in this order", |c| c.modalities.truncate(3)),
        ("modalities", "text has no window", |c| c.modalities[0].window = Some(4)),
        ("modalities", "needs a window", |c| c.modalities[2].window = None),
        ("modalities.window", "0 is outside", |c| c.modalities[1].window = Some(0)),
        ("modalities.window", "4097 is outside", |c| c.modalities[3].window = Some(4097)),
    ]);
}

#[test]
fn each_broken_rule_of_the_pictures_names_its_field() {
    check_cases(&[
        ("image.height", "0 is outside 8 to 4096", |c| c.image.height = 0),
        ("image.width", "100000 is outside 8 to 4096", |c| c.image.width = 100_000),
        ("image.width", "65 is not 8 times", |c| c.image.width = 65),
        ("image.height", "64 is not 8 times the 9", |c| c.image.grid[0] = 9),
        // Eight times this is 64 in 64 bits.
        ("image.height", "64 is not 8 times", |c| c.image.grid[0] = (1 << 61) + 8),
        ("image.code_dim", "0 is outside", |c| c.image.code_dim = 0),
        ("image.code_dim", "4097 is outside", |c| c.image.code_dim = 4097),
        ("image.codebook_size", "0 is outside", |c| c.image.codebook_size = 0),
        ("image.codebook_size", "65537 is outside", |c| c.image.codebook_size = 65_537),
        ("image.codebook_size", "1000 codes, but 1024 image tokens", |c| c.image.codebook_size = 1000),
        ("image channels", "0 is outside", |c| c.image.encoder_channels[1] = 0),
        ("image channels", "4097 is outside", |c| c.image.decoder_channels[2] = 4097),
        ("image.res_hidden", "0 is outside", |c| c.image.res_hidden = 0),
        ("image.n_res", "65 is outside", |c| c.image.n_res = 65),
        ("image.std", "mean and std must be numbers", |c| c.image.mean = f32::NAN),
        ("image.std", "mean and std must be numbers", |c| c.image.std = f32::INFINITY),
        ("image.std", "std above 0", |c| c.image.std = 0.0),
    ]);
}

#[test]
fn each_broken_rule_of_states_and_actions_names_its_field() {
    check_cases(&[
        ("state", "0 is outside 1 to 256", |c| c.state.names.clear()),
        ("action", "257 is outside 1 to 256", |c| c.action.names = vec!["x".into(); 257]),
        ("state", "4 names, 3 low and 4 high values", |c| c.state.low.truncate(3)),
        ("action", "4 names, 4 low and 5 high values", |c| c.action.high.push(1.0)),
        ("state", "`hand_y`: low NaN and high 1", |c| c.state.low[1] = f32::NAN),
        ("action", "`dz`: low inf and high 1", |c| c.action.low[2] = f32::INFINITY),
        ("action", "`dx`: low -1 and high inf", |c| c.action.high[0] = f32::INFINITY),
        ("action", "`dx`: low 1 and high 1", |c| c.action.low[0] = 1.0),
        ("action", "`dx`: low 2 and high 1", |c| c.action.low[0] = 2.0),
        // Numbers both, but their difference is none.
        ("state", "`gripper`: low", |c| (c.state.low[3], c.state.high[3]) = (f32::MIN, f32::MAX)),
        ("action.steps", "0 is outside", |c| c.action.steps = 0),
        ("action.steps", "65 is outside", |c| c.action.steps = 65),
        ("action.executed", "0 is outside", |c| c.action.executed = 0),
        ("action.executed", "9 is outside 1 to 8", |c| c.action.executed = 9),
        ("action.rate_hz", "positive", |c| c.action.rate_hz = 0.0),
        ("action.rate_hz", "positive", |c| c.action.rate_hz = f32::INFINITY),
    ]);
}

#[test]
fn an_emu3_whose_parts_contradict_each_other_is_refused() {
    let fixture = emu3();
    ModelConfig::Emu3(fixture.clone()).check().unwrap();
    type Change = fn(&mut Emu3Config);
    let cases: [(&str, Change); 9] = [
        ("attention_levels", |c| c.image.movq.attention_levels = vec![4]),
        ("attention_levels", |c| c.image.movq.attention_levels = vec![0]),
        ("attention_levels", |c| c.image.movq.attention_levels = vec![3, 3]),
        ("time_factor", |c| c.image.movq.time_factor = 3),
        ("base_channels", |c| c.image.movq.base_channels = 48),
        ("pixels.resize", |c| {
            c.image.pixels.resize = ResizeRule::Multiples { factor: 4, min_pixels: 64, max_pixels: 4096 };
        }),
        ("image.ids", |c| c.image.ids.truncate(63)),
        ("image.ids", |c| c.image.frame_end = 501),
        ("image.ids", |c| c.image.row_end = c.image.ids[5]),
    ];
    for (field, change) in cases {
        let mut changed = fixture.clone();
        change(&mut changed);
        let sentence = ModelConfig::Emu3(changed).check().unwrap_err().to_string();
        assert!(sentence.contains(field), "{field}: {sentence}");
    }
}

#[test]
fn each_broken_rule_of_rotary_scaling_names_its_field() {
    let llama3 = |factor, low_freq_factor, high_freq_factor, original_positions| RopeScaling::Llama3 {
        factor,
        low_freq_factor,
        high_freq_factor,
        original_positions,
    };
    let yarn = |beta_fast, beta_slow, amplitude| RopeScaling::Yarn {
        factor: 4.0,
        beta_fast,
        beta_slow,
        original_positions: 64,
        amplitude,
    };
    let mut model = emu3();
    model.language.decoder.rope_scaling = llama3(8.0, 1.0, 4.0, 8192);
    let written = serde_json::to_string(&ModelConfig::Emu3(model.clone())).unwrap();
    assert_eq!(ModelConfig::from_json(&written).unwrap(), ModelConfig::Emu3(model.clone()));
    for (field, scaling) in [
        ("factor: must be", RopeScaling::Linear { factor: 0.5 }),
        ("factor: must be", RopeScaling::Linear { factor: f32::NAN }),
        ("factor: must be", llama3(f32::INFINITY, 1.0, 4.0, 8192)),
        ("low_freq_factor", llama3(8.0, 4.0, 4.0, 8192)),
        ("low_freq_factor", llama3(8.0, f32::NAN, 4.0, 8192)),
        ("original_positions", llama3(8.0, 1.0, 4.0, 0)),
        ("beta_slow", yarn(1.0, 32.0, 1.0)),
        ("amplitude", yarn(32.0, 1.0, 0.0)),
    ] {
        model.language.decoder.rope_scaling = scaling;
        let sentence = ModelConfig::Emu3(model.clone()).check().unwrap_err().to_string();
        assert!(sentence.contains(field), "{field}: {sentence}");
    }
    let unknown = written.replace("llama3", "dynamic");
    assert!(ModelConfig::from_json(&unknown).is_err());
}

/// A tiny Emu3.
fn emu3() -> Emu3Config {
    let decoder = DecoderConfig {
        d_model: 64,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 16,
        d_ff: 160,
        vocab_size: 501,
        rope_theta: 1e6,
        rope_scaling: RopeScaling::None,
        norm_eps: 1e-5,
        qk_norm: QkNorm::None,
        norm_place: NormPlace::Before,
        modality_bias: None,
        biases: Biases::default(),
        tied: false,
    };
    let language = LlamaConfig {
        name: "tiny".into(),
        decoder,
        max_positions: 1024,
        bos: Some(1),
        end_ids: vec![2],
        chat: None,
        generation: GenerationConfig { max_new_tokens: 24 },
    };
    let pixels = PixelConfig {
        resize: ResizeRule::Multiples { factor: 8, min_pixels: 1024, max_pixels: 2304 },
        filter: Filter::Bicubic,
        fit: Fit::Whole,
        rescale: 1.0 / 255.0,
        mean: [0.5; 3],
        std: [0.25; 3],
    };
    let movq = MovqConfig {
        base_channels: 32,
        channel_multiplier: vec![1, 1, 2, 2],
        attention_levels: vec![3],
        n_res: 1,
        code_dim: 4,
        codebook_size: 64,
        time_factor: 4,
    };
    let ids = (9..9 + 64).collect();
    let image = ClipCodes {
        pixels,
        movq,
        placeholder: 3,
        begin: 4,
        end: 5,
        wrapper: 6,
        row_end: 7,
        frame_end: 8,
        ids,
    };
    Emu3Config { language, image }
}
