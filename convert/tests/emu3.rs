//! Emu3 from a folder of the hub's layout: what it becomes, and how pictures, clips and codes fit each other.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use saccade::config::{ModelConfig, WeightDtype};
use saccade::engine::EngineOptions;
use saccade::family::{Model, tensors};
use saccade::format::{Dtype, Rules, TensorPlan, Writer};
use saccade::session::{Session, SessionOptions};
use saccade::tokenize::{Clips, Frames, Picture, PictureReader, PixelValues, Tokenizer};
use serde_json::{Value, json};
use support::Workshop;

/// `config.json` of a tiny model: 16 codes from id 40 on.
fn config() -> Value {
    let mut vocabulary: BTreeMap<String, u32> =
        (0..16).map(|code| (format!("<|visual token {code:06}|>"), 40 + code)).collect();
    let special =
        ["<image>", "<|image start|>", "<|image end|>", "<|image token|>", "<|extra_200|>", "<|extra_201|>"];
    vocabulary.extend((20..).zip(special).map(|(id, name)| (name.to_owned(), id)));
    json!({
        "model_type": "emu3",
        "vocabulary_map": vocabulary,
        "text_config": {
            "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
            "intermediate_size": 48, "vocab_size": 269, "bos_token_id": 1, "eos_token_id": 2,
            "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "max_position_embeddings": 256,
        },
        "vq_config": {
            "base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1, "attn_resolutions": [1],
            "latent_channels": 4, "embed_dim": 4, "codebook_size": 16, "temporal_downsample_factor": 2,
            "hidden_size": 64,
        },
    })
}

/// A folder `name`; `theirs` says what a tensor of the bundle is called in it.
fn folder(shop: &Workshop, name: &str, config: &Value, theirs: fn(&str) -> String) {
    let llama = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama/tiny");
    fs::create_dir(shop.path(name)).unwrap();
    fs::copy(llama.join("tokenizer.json"), shop.path(name).join("tokenizer.json")).unwrap();
    fs::write(shop.path(name).join("config.json"), config.to_string()).unwrap();
    let processor = json!({"image_processor_type": "Emu3ImageProcessor", "spatial_factor": 2, "min_pixels": 16,
        "max_pixels": 256});
    fs::write(shop.path(name).join("preprocessor_config.json"), processor.to_string()).unwrap();
    let mut plan = Vec::new();
    let mut bytes = Vec::new();
    let mut state = 1u32;
    for spec in tensors(&expected()) {
        // As large as keeps activations of one size; variances above 0.
        let inputs = f32::from(u16::try_from(spec.parameters() / spec.shape[0]).unwrap());
        let mut value = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let uniform = f32::from(u16::try_from(state >> 16).unwrap()) / 32768.0 - 1.0;
            match spec.name.rsplit('.').next().unwrap() {
                "running_var" => uniform.abs() + 0.5,
                _ => uniform * (3.0 / inputs).sqrt(),
            }
        };
        bytes.push((0..spec.parameters()).flat_map(|_| value().to_le_bytes()).collect::<Vec<u8>>());
        plan.push(TensorPlan { name: theirs(&spec.name), dtype: Dtype::F32, shape: spec.shape.clone() });
    }
    // What only training counts.
    plan.push(TensorPlan {
        name: theirs("movq.encoder.time_res_stack.0.norm1.num_batches_tracked"),
        dtype: Dtype::F32,
        shape: vec![1],
    });
    bytes.push(vec![0; 4]);
    let path = shop.path(name).join("model.safetensors");
    let mut writer = Writer::create(&path, &plan, &BTreeMap::new(), Rules::Foreign).unwrap();
    for (plan, bytes) in plan.iter().zip(&bytes) {
        writer.write(&plan.name, bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// The model that `config()` describes, as far as its tensors go.
fn expected() -> ModelConfig {
    let text = r#"{"family": "emu3", "language": {"name": "x", "decoder": {"d_model": 32, "n_layers": 1, "n_heads": 2,
        "n_kv_heads": 1, "head_dim": 16, "d_ff": 48, "vocab_size": 269, "rope_theta": 1e6, "norm_eps": 1e-6, "qk_norm": "none",
        "norm_place": "before", "modality_bias": null, "tied": false}, "max_positions": 256, "bos": 1, "end_ids": [2],
        "chat": null, "generation": {"max_new_tokens": 256}}, "image": {"pixels": {"resize": {"multiples": {"factor": 2,
        "min_pixels": 16, "max_pixels": 256}}, "filter": "bicubic", "fit": "whole", "rescale": 0.00392156862745098,
        "mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}, "movq":
        {"base_channels": 32, "channel_multiplier": [1, 2], "attention_levels": [1], "n_res": 1, "code_dim": 4,
        "codebook_size": 16, "time_factor": 2}, "placeholder": 20, "begin": 21, "end": 22, "wrapper": 23, "row_end": 24,
        "frame_end": 25, "ids": [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55]}}"#;
    ModelConfig::from_json(text).unwrap()
}

/// The end of a name in both layouts of a language model.
fn text(ours: &str) -> String {
    let parts = [
        ("attn_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("attn.", "self_attn."),
        ("ffn.", "mlp."),
        ("embed.", "embed_tokens."),
    ];
    let name = parts.iter().fold(ours.to_owned(), |name, (ours, theirs)| name.replace(ours, theirs));
    ["q", "k", "v", "o", "gate", "up", "down"]
        .iter()
        .fold(name, |name, part| name.replace(&format!(".{part}.weight"), &format!(".{part}_proj.weight")))
}

fn of_files(ours: &str) -> String {
    match ours.strip_prefix("movq.") {
        Some(rest) => format!("vqmodel.{rest}"),
        None if ours == "head.weight" => "text_model.lm_head.weight".into(),
        None => format!("text_model.model.{}", text(ours)),
    }
}

fn of_modules(ours: &str) -> String {
    match ours.strip_prefix("movq.") {
        Some(rest) => format!("model.vqmodel.{rest}"),
        None if ours == "head.weight" => "lm_head.weight".into(),
        None => format!("model.text_model.{}", text(ours)),
    }
}

fn open(shop: &Workshop) -> Arc<Model> {
    folder(shop, "tiny", &config(), of_files);
    shop.succeeds(&["convert", "tiny", "bundle", "--dtype", "f32"]);
    Model::open(shop.path("bundle"), &EngineOptions::default()).unwrap()
}

/// Numbers between −1 and 1.
fn noise(len: usize, seed: usize) -> Vec<f32> {
    (0..len)
        .map(|i| f32::from(u16::try_from((i * 7919 + seed * 104_729) % 2003).unwrap()) / 1001.5 - 1.0)
        .collect()
}

fn near(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4)
}

#[test]
fn both_layouts_become_the_same_bundle() {
    let shop = Workshop::new();
    folder(&shop, "files", &config(), of_files);
    folder(&shop, "modules", &config(), of_modules);
    let [files, modules] = ["files", "modules"].map(|name| {
        let out = format!("{name}-bundle");
        shop.succeeds(&["convert", name, &out, "--dtype", "int8"]);
        let model = Model::open(shop.path(&out), &EngineOptions::default()).unwrap();
        assert_eq!(model.bundle().dtype, WeightDtype::Int8);
        let ModelConfig::Emu3(mut found) = model.config().clone() else { panic!("another family") };
        found.language.name = "x".into();
        assert_eq!(ModelConfig::Emu3(found), expected());
        fs::read(shop.path(&out).join("weights.safetensors")).unwrap()
    });
    assert!(files == modules, "the weights differ");
}

#[test]
fn a_picture_is_a_clip_that_repeats_it() {
    let shop = Workshop::new();
    let mut clips = Clips::new(&open(&shop)).unwrap();
    let (width, height) = (8, 6);
    let values = noise(width * height * 3, 1);
    let (mut of_picture, mut of_clip) = (Vec::new(), Vec::new());
    clips.encode_picture(PixelValues { values: &values, width, height }, &mut of_picture).unwrap();
    let twice = [&values[..], &values].concat();
    clips.encode_frames(&twice, Frames { time: 2, height, width }, &mut of_clip).unwrap();
    assert_eq!(of_picture, of_clip);
    assert_eq!(of_picture.len(), 3 * 4);
    assert!(of_picture.iter().any(|code| *code != of_picture[0]), "all codes are alike: {of_picture:?}");

    let (mut picture, mut clip) = (Vec::new(), Vec::new());
    clips.decode_picture(&of_picture, (3, 4), &mut picture).unwrap();
    clips.decode_frames(&of_clip, Frames { time: 1, height: 3, width: 4 }, &mut clip).unwrap();
    assert_eq!(clip.len(), 2 * values.len());
    assert_eq!(picture, clip[..values.len()]);
}

#[test]
fn what_comes_later_changes_nothing_that_came_before() {
    let shop = Workshop::new();
    let mut clips = Clips::new(&open(&shop)).unwrap();
    let (height, width, frame) = (4, 4, 4 * 4 * 3);
    let frames = Frames { time: 4, height, width };
    let (mut codes, mut others) = (Vec::new(), Vec::new());
    let values = noise(4 * frame, 2);
    let changed = [&values[..2 * frame], &noise(2 * frame, 3)].concat();
    clips.encode_frames(&values, frames, &mut codes).unwrap();
    clips.encode_frames(&changed, frames, &mut others).unwrap();
    assert_eq!((codes.len(), &codes[..4]), (8, &others[..4]));
    assert_ne!(codes, others);

    let (mut all, mut first) = (Vec::new(), Vec::new());
    clips.decode_frames(&codes, Frames { time: 2, height: 2, width: 2 }, &mut all).unwrap();
    clips.decode_frames(&codes[..4], Frames { time: 1, height: 2, width: 2 }, &mut first).unwrap();
    assert!(near(&all[..2 * frame], &first));
}

#[test]
fn tokens_are_rows_with_ends_and_become_a_picture() {
    let shop = Workshop::new();
    let mut clips = Clips::new(&open(&shop)).unwrap();
    let rgb: Vec<u8> = (0..8 * 6 * 3).map(|i| u8::try_from(i * 37 % 256).unwrap()).collect();
    let (mut ids, mut codes, mut drawn) = (Vec::new(), Vec::new(), Vec::new());
    clips.encode(Picture::rgb(&rgb, 8, 6), &mut ids).unwrap();
    assert_eq!(ids.len(), 3 * 5);
    assert!(
        ids.chunks(5).all(|row| row[4] == 24 && row[..4].iter().all(|id| (40..56).contains(id))),
        "{ids:?}"
    );
    assert_eq!(clips.codes(&ids, &mut codes).unwrap(), 4);
    assert!(
        codes.iter().zip(ids.iter().filter(|id| **id != 24)).all(|(code, id)| u32::from(*code) + 40 == *id)
    );
    clips.decode(&ids, &mut drawn).unwrap();
    assert_eq!(drawn.len(), rgb.len());
}

#[test]
fn a_picture_in_a_text_has_its_size_before_it() {
    let shop = Workshop::new();
    let model = open(&shop);
    let mut session = Session::new(&model, &SessionOptions::default()).unwrap();
    let rgb: Vec<u8> = (0..8 * 6 * 3).map(|i| u8::try_from(i * 53 % 256).unwrap()).collect();
    let picture = Picture::rgb(&rgb, 8, 6);
    let mut reader = PictureReader::new(&model).unwrap().unwrap();
    let found = reader.read(&[1, 20, 7], &[picture], &mut session).unwrap();
    let mut ids = Vec::new();
    Clips::new(&model).unwrap().encode(picture, &mut ids).unwrap();
    let size = model.text().unwrap().encode("3*4").unwrap();
    assert_eq!(found, [&[1, 21][..], &size, &[23], &ids, &[25, 22, 7]].concat());
}

#[test]
fn what_does_not_fit_is_refused() {
    let shop = Workshop::new();
    let mut clips = Clips::new(&open(&shop)).unwrap();
    let (mut codes, mut values) = (Vec::new(), Vec::new());
    let x = noise(5 * 4 * 4 * 3, 4);
    let picture = |values, width, height| PixelValues { values, width, height };
    for (values, width, height) in [(&x[..45], 5, 3), (&x[..47], 4, 4), (&x[..0], 0, 4), (&x[..0], 4, 0)] {
        clips.encode_picture(picture(values, width, height), &mut codes).unwrap_err();
    }
    for frames in [
        Frames { time: 5, height: 4, width: 4 },
        Frames { time: 4, height: 4, width: 4 },
        Frames { time: usize::MAX, height: usize::MAX, width: usize::MAX },
    ] {
        clips.encode_frames(&x, frames, &mut codes).unwrap_err();
    }
    clips.decode_picture(&[1, 2, 3], (2, 2), &mut values).unwrap_err();
    clips.decode_picture(&[1, 2, 3, 16], (2, 2), &mut values).unwrap_err();
    clips.decode_picture(&[], (0, 2), &mut values).unwrap_err();
    for ids in [&[][..], &[24], &[40, 41], &[40, 41, 24, 42, 24], &[40, 39, 24], &[40, 24, 41, 24, 42]] {
        clips.codes(ids, &mut codes).unwrap_err();
    }
}

#[test]
fn a_folder_that_describes_another_net_is_refused_in_a_sentence() {
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 6] = [
        ("`<|extra_200|>`, the end of a row", |c| {
            drop(c["vocabulary_map"].as_object_mut().unwrap().remove("<|extra_200|>"));
        }),
        ("no token for code 7 of 16", |c| {
            drop(c["vocabulary_map"].as_object_mut().unwrap().remove("<|visual token 000007|>"));
        }),
        ("is none of 16 codes", |c| c["vocabulary_map"]["<|visual token 000016|>"] = json!(60)),
        ("attention of several heads", |c| c["vq_config"]["num_attention_heads"] = json!(2)),
        ("other latent channels", |c| c["vq_config"]["latent_channels"] = json!(8)),
        ("time_factor: must be a power of two", |c| c["vq_config"]["temporal_downsample_factor"] = json!(3)),
    ];
    for (words, change) in cases {
        let shop = Workshop::new();
        let mut config = config();
        change(&mut config);
        folder(&shop, "tiny", &config, of_files);
        shop.refuses(&["convert", "tiny", "out"], &[words]);
    }
}
