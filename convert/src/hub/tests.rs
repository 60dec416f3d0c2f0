//! Plans of full-size models against the known names, shapes and totals of their tensors.

mod deepseek;

use std::collections::{BTreeMap, BTreeSet};

use saccade::family::tensors;

use super::*;

/// Names, counts, shapes and totals, made from transformers' model classes.
const LAYOUTS: &str = include_str!("../../tests/fixtures/hf-tensor-layouts.txt");

/// A line of a model: the name with N for numbers, how many there are, the distinct shapes (more than four are cut off).
struct Tensors {
    name: String,
    count: usize,
    shapes: BTreeSet<Vec<usize>>,
    cut: bool,
}

/// The total of a model, and its lines.
fn layout(model: &str) -> (u64, Vec<Tensors>) {
    let mut lines = LAYOUTS.lines().skip_while(|line| !line.starts_with(&format!("## {model} total ")));
    let total = lines.next().unwrap().split(' ').nth(3).unwrap().parse().unwrap();
    let tensors =
        lines.take_while(|line| !line.starts_with("##")).filter(|line| !line.is_empty()).map(|line| {
            let (name, rest) = line.split_once(" x").unwrap();
            let (count, shapes) = rest.split_once(' ').unwrap();
            let cut = shapes.ends_with("...");
            let numbers = |shape: &str| {
                shape
                    .split(|c: char| !c.is_ascii_digit())
                    .filter(|n| !n.is_empty())
                    .map(|n| n.parse().unwrap())
                    .collect()
            };
            let shapes = shapes.split("),").map(numbers).collect();
            Tensors { name: name.into(), count: count.parse().unwrap(), shapes, cut }
        });
    (total, tensors.collect())
}

/// A name with N for its numbers, but for those that belong to a word (`fc1`).
fn numbered(name: &str) -> String {
    let part =
        |part: &str| if part.bytes().all(|b| b.is_ascii_digit()) { "N".to_owned() } else { part.to_owned() };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

/// Every tensor of the layout is one of ours with the same shape, there are as many, and nothing is left over.
fn check(model: &str, config: &ModelConfig, name: fn(&str) -> Option<String>) {
    config.check().unwrap();
    let (mut total, mut lines) = layout(model);
    lines.retain(|line| {
        let ignored = names::IGNORED.iter().any(|ignored| line.name.ends_with(ignored));
        // Those are single numbers.
        total -= if ignored { line.count as u64 } else { 0 };
        !ignored
    });
    let specs = tensors(config);
    let names: BTreeSet<_> = specs.iter().map(|spec| &spec.name).collect();
    assert_eq!(names.len(), specs.len(), "{model}: a tensor is listed twice");
    let mut ours: BTreeMap<String, (usize, BTreeSet<Vec<usize>>)> = BTreeMap::new();
    for spec in &specs {
        let (count, shapes) = ours.entry(numbered(&spec.name)).or_default();
        *count += 1;
        shapes.insert(spec.shape.clone());
    }
    let mut theirs: BTreeMap<String, (usize, BTreeSet<Vec<usize>>, bool)> = BTreeMap::new();
    for line in lines {
        let ours = name(&line.name.replace(".N", ".0"))
            .unwrap_or_else(|| panic!("{model}: `{}` has no name of ours", line.name));
        let (count, shapes, cut) = theirs.entry(numbered(&ours)).or_default();
        *count += line.count;
        shapes.extend(line.shapes);
        *cut |= line.cut;
    }
    for (name, (count, shapes, cut)) in &theirs {
        let (our_count, our_shapes) =
            ours.remove(name).unwrap_or_else(|| panic!("{model}: the plan has no `{name}`"));
        assert_eq!(our_count, *count, "{model}: `{name}`");
        assert!(
            our_shapes == *shapes || *cut && our_shapes.is_superset(shapes),
            "{model}: `{name}` {our_shapes:?} {shapes:?}"
        );
    }
    assert!(ours.is_empty(), "{model}: the plan has what the model has not: {ours:?}");
    assert_eq!(specs.iter().map(|spec| spec.parameters() as u64).sum::<u64>(), total, "{model}");
}

fn folder(path: &Path, config: Value, processor: &Value, words: Value) -> Map<String, Value> {
    let write = |name: &str, value: &Value| std::fs::write(path.join(name), value.to_string()).unwrap();
    write("preprocessor_config.json", processor);
    write("tokenizer_config.json", &words);
    let Value::Object(config) = config else { panic!("no object") };
    config
}

fn of<'a>(path: &'a Path, config: Map<String, Value>) -> Folder<'a> {
    let words = read_json_if_there(&path.join("tokenizer_config.json")).unwrap();
    Folder { path, name: "full".into(), config, generation: Generation::default(), words }
}

#[test]
fn chameleon_7b_is_planned_whole() {
    let dir = tempfile::tempdir().unwrap();
    let letters = |code: usize| {
        code.to_string().bytes().map(|digit| char::from(digit - b'0' + b'A')).collect::<String>()
    };
    let mut vocabulary: Map<String, Value> =
        (0..8192).map(|code| (format!("IMGIMG{}Z", letters(code)), json!(4 + code))).collect();
    for (name, id) in [("<image>", 8711), ("<racm3:break>", 8197), ("<eoss>", 8196)] {
        vocabulary.insert(name.into(), json!(id));
    }
    let config = json!({
        "model_type": "chameleon", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 65536, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "eos_token_id": 2, "vocabulary_map": vocabulary,
        "vq_config": {"base_channels": 128, "channel_multiplier": [1, 1, 2, 2, 4], "num_res_blocks": 2, "latent_channels": 256,
            "embed_dim": 256, "num_embeddings": 8192, "attn_resolutions": null, "attn_type": "vanilla", "double_latent": false},
    });
    let processor = json!({"image_processor_type": "ChameleonImageProcessor", "size": {"shortest_edge": 512},
        "crop_size": {"height": 512, "width": 512}, "resample": 1, "rescale_factor": 0.0078,
        "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]});
    let config = folder(dir.path(), config, &processor, json!({}));
    let model = chameleon::model(&of(dir.path(), config)).unwrap();
    check("chameleon7b", &model, chameleon::name);
}

#[test]
fn janus_pro_1b_is_planned_whole() {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({
        "model_type": "janus", "image_token_id": 100581,
        "text_config": {"model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
            "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 102400, "max_position_embeddings": 16384,
            "rms_norm_eps": 1e-6, "bos_token_id": 100000, "eos_token_id": 100001, "pad_token_id": 100002},
        "vision_config": {"hidden_size": 1024, "image_size": 384, "patch_size": 16, "num_hidden_layers": 24,
            "num_attention_heads": 16, "mlp_ratio": 4.0, "hidden_act": "gelu", "depth": 2},
        "vq_config": {"base_channels": 128, "channel_multiplier": [1, 1, 2, 2, 4], "num_res_blocks": 2, "latent_channels": 256,
            "embed_dim": 8, "num_embeddings": 16384, "projection_dim": 2048, "num_hidden_layers": 2, "out_channels": 3},
    });
    let processor = json!({"image_processor_type": "JanusImageProcessor", "size": {"height": 384, "width": 384}, "resample": 3,
        "min_size": 14, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]});
    let config = folder(dir.path(), config, &processor, json!({}));
    let tokens = json!({"added_tokens": [{"id": 100016, "content": "<begin_of_image>"}, {"id": 100593, "content": "<end_of_image>"}],
        "model": {"vocab": {}}});
    std::fs::write(dir.path().join("tokenizer.json"), tokens.to_string()).unwrap();
    let model = janus::model(&of(dir.path(), config)).unwrap();
    check("januspro1b", &model, janus::name);
}

#[test]
fn emu3_is_planned_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut vocabulary: Map<String, Value> =
        (0..32768).map(|code| (format!("<|visual token {code:06}|>"), json!(151_854 + code))).collect();
    let special = ["<|image start|>", "<|image end|>", "<|image token|>", "<|extra_200|>", "<|extra_201|>"];
    vocabulary.extend((151_843..).zip(special).map(|(id, name)| (name.into(), json!(id))));
    let config = json!({
        "model_type": "emu3", "image_token_id": 151_851, "vocabulary_map": vocabulary,
        "text_config": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 184_622, "max_position_embeddings": 9216, "rms_norm_eps": 1e-5,
            "rope_theta": 1e6, "bos_token_id": 151_849, "eos_token_id": 151_850},
        "vq_config": {"base_channels": 256, "channel_multiplier": [1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [3],
            "latent_channels": 4, "embed_dim": 4, "codebook_size": 32768, "temporal_downsample_factor": 4, "hidden_size": 1024},
    });
    let processor = json!({"image_processor_type": "Emu3ImageProcessor"});
    let config = folder(dir.path(), config, &processor, json!({}));
    let model = emu3::model(&of(dir.path(), config)).unwrap();
    check("emu3", &model, emu3::name);
}
