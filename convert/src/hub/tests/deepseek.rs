//! DeepSeek's own layout of Janus: the same bundle as from transformers', and every tensor of the full size has its name.

use saccade::config::{CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, WeightDtype};
use saccade::format::{TensorPlan, Writer};

use super::*;
use crate::bundle;
use crate::hub::deepseek;
use crate::progress::Progress;

/// DeepSeek's name for transformers', the one of the three for queries, keys and values.
///
/// Source: what `convert_janus_weights_to_hf.py` of transformers turns round.
fn theirs(hf: &str) -> String {
    if hf == "lm_head.weight" {
        return "language_model.lm_head.weight".into();
    }
    let hf = hf.strip_prefix("model.").unwrap();
    if let Some(rest) = hf.strip_prefix("language_model.") {
        return format!("language_model.model.{rest}");
    }
    if let Some(rest) = hf.strip_prefix("vqmodel.") {
        let renamed = [
            (".down.", ".conv_blocks."),
            (".up.", ".conv_blocks."),
            (".block.", ".res."),
            (".mid.block_1.", ".mid.0."),
            (".mid.attn_1.", ".mid.1."),
            (".mid.block_2.", ".mid.2."),
        ];
        return renamed.iter().fold(format!("gen_vision_model.{rest}"), |name, (a, b)| name.replace(a, b));
    }
    if hf == "vision_model.embeddings.position_embedding.weight" {
        return "vision_model.vision_tower.pos_embed".into();
    }
    let renamed = [
        ("vision_model.", "vision_model.vision_tower."),
        ("embeddings.patch_embedding", "patch_embed.proj"),
        ("post_layernorm", "norm"),
        ("encoder.layers", "blocks"),
        ("layer_norm", "norm"),
        ("self_attn.projection_layer", "attn.proj"),
        ("self_attn.q_proj", "attn.qkv"),
        ("self_attn.k_proj", "attn.qkv"),
        ("self_attn.v_proj", "attn.qkv"),
        ("generation_embeddings", "gen_embed"),
        ("generation_head.proj_out", "gen_head.output_mlp_projector"),
        ("generation_head", "gen_head"),
        ("generation_aligner", "gen_aligner"),
        ("aligner.fc1", "aligner.layers.0"),
        ("aligner.hidden_layers.0", "aligner.layers.2"),
    ];
    renamed.iter().fold(hf.to_owned(), |name, (a, b)| name.replace(a, b))
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn write(path: &Path, value: &Value) {
    std::fs::write(path, value.to_string()).unwrap();
}

/// DeepSeek's `config.json` of a model that transformers describes so, with every size said.
fn config(hf: &Value) -> Value {
    let (text, vision, vq) = (&hf["text_config"], &hf["vision_config"], &hf["vq_config"]);
    let mut language = Map::new();
    for key in [
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "vocab_size",
    ] {
        language.insert(key.into(), text[key].clone());
    }
    json!({
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "language_config": language,
        "vision_config": {"cls": "CLIPVisionTower", "model_type": "vision", "params": {"model_name": "siglip_of_tests",
            "select_feature": "same", "select_layer": -1, "image_size": vision["image_size"], "width": vision["hidden_size"],
            "layers": vision["num_hidden_layers"], "heads": vision["num_attention_heads"], "patch_size": vision["patch_size"],
            "mlp_ratio": vision["mlp_ratio"]}},
        "aligner_config": {"cls": "MlpProjector", "model_type": "aligner", "params": {"depth": 2, "input_dim": vision["hidden_size"],
            "n_embed": text["hidden_size"], "projector_type": "mlp_gelu"}},
        "gen_vision_config": {"cls": "VQ-16", "model_type": "gen_vision", "params": {"image_token_size": vq["num_embeddings"],
            "n_embed": vq["embed_dim"], "ch": vq["base_channels"], "encoder_ch_mult": vq["channel_multiplier"],
            "num_res_blocks": vq["num_res_blocks"], "z_channels": vq["latent_channels"]}},
        "gen_aligner_config": {"cls": "MlpProjector", "model_type": "gen_aligner", "params": {"depth": 2, "input_dim": vq["embed_dim"],
            "n_embed": text["hidden_size"], "projector_type": "mlp_gelu"}},
        "gen_head_config": {"cls": "vision_head", "model_type": "gen_head", "params": {"image_token_embed": vq["projection_dim"],
            "image_token_size": vq["num_embeddings"], "n_embed": text["hidden_size"]}},
    })
}

/// The tiny Janus in DeepSeek's layout, in a folder `to`.
fn rewrite(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
    write(&to.join("config.json"), &config(&read(&from.join("config.json"))));
    let mut processor = read(&from.join("processor_config.json"))["image_processor"].take();
    let size = processor["size"]["height"].take();
    processor["image_processor_type"] = json!("VLMImageProcessor");
    processor["image_size"] = size;
    for gone in ["size", "resample"] {
        processor.as_object_mut().unwrap().remove(gone);
    }
    write(&to.join("preprocessor_config.json"), &processor);

    let from = from.join("model.safetensors");
    let (header, bytes) = (read_file_header(&from, Rules::Foreign).unwrap(), std::fs::read(&from).unwrap());
    let mut tensors: BTreeMap<String, (TensorPlan, Vec<u8>)> = BTreeMap::new();
    let mut add = |name: String, dtype, mut shape: Vec<usize>, data: &[u8]| {
        if name.ends_with("pos_embed") {
            shape.insert(0, 1);
        }
        match tensors.get_mut(&name) {
            // Queries come first in a file of transformers, but the alphabet has keys before them.
            Some((plan, whole)) => {
                plan.shape[0] += shape[0];
                whole.extend_from_slice(data);
            }
            None => {
                tensors.insert(name.clone(), (TensorPlan { name, dtype, shape }, data.to_vec()));
            }
        }
    };
    let order = |name: &str| ["q_proj", "k_proj", "v_proj"].iter().position(|part| name.contains(part));
    let mut found: Vec<_> = header.tensors.iter().collect();
    found.sort_by_key(|tensor| order(&tensor.name));
    for tensor in found {
        add(theirs(&tensor.name), tensor.dtype, tensor.shape.clone(), tensor.data(&bytes).unwrap());
    }
    let dtype = header.tensors[0].dtype;
    for left_out in ["vision_model.vision_tower.attn_pool.latent", "gen_vision_model.quantize.codebook_used"]
    {
        add(left_out.into(), dtype, vec![2], &[0; 8]);
    }
    let plan: Vec<_> = tensors.values().map(|(plan, _)| plan.clone()).collect();
    let path = to.join("model.safetensors");
    let mut writer = Writer::create(&path, &plan, &BTreeMap::new(), Rules::Foreign).unwrap();
    for (name, (_, data)) in &tensors {
        writer.write(name, data).unwrap();
    }
    writer.finish().unwrap();
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf/janus")
}

#[test]
fn a_bundle_is_the_same_from_both_layouts() {
    let dir = tempfile::tempdir().unwrap();
    let deepseek = dir.path().join("janus");
    rewrite(&fixture(), &deepseek);
    for dtype in [WeightDtype::Int8, WeightDtype::F32] {
        let [ours, hf] = [(&deepseek, "ours"), (&fixture(), "hf")].map(|(from, name)| {
            let out = dir.path().join(format!("{name}-{dtype:?}"));
            let mut checkpoint = Checkpoint::open(from).unwrap();
            bundle::convert(&mut checkpoint, &out, dtype, false, &mut Progress::silent()).unwrap();
            out
        });
        for file in [WEIGHTS_FILE, TOKENIZER_FILE] {
            let bytes = |dir: &Path| std::fs::read(dir.join(file)).unwrap();
            assert!(bytes(&ours) == bytes(&hf), "{dtype:?}: {file} differs");
        }
        let model = |dir: &Path| {
            let mut model = read(&dir.join(CONFIG_FILE))["model"].take();
            let chat = model["language"]["chat"].take();
            (model, chat["template"].as_str().unwrap().to_owned())
        };
        let ((ours, ours_chat), (hf, _)) = (model(&ours), model(&hf));
        assert_eq!(ours, hf);
        assert!(ours_chat.contains("helpful language and vision assistant"));
    }
}

#[test]
fn a_conversation_is_deepseeks() {
    use saccade::tokenize::{Message, Part};
    let dir = tempfile::tempdir().unwrap();
    let (deepseek, bundle) = (dir.path().join("janus"), dir.path().join("bundle"));
    rewrite(&fixture(), &deepseek);
    let mut checkpoint = Checkpoint::open(&deepseek).unwrap();
    bundle::convert(&mut checkpoint, &bundle, WeightDtype::Int8, false, &mut Progress::silent()).unwrap();
    let model = saccade::family::Model::open(&bundle, &saccade::engine::EngineOptions::default()).unwrap();
    let text = model.text().unwrap();
    let asked = Message {
        role: "user".into(),
        content: vec![Part::Image, Part::Text { text: "what is it?".into() }],
    };
    let talk = [Message::text("system", "be brief"), asked, Message::text("assistant", "a ring")];
    let ids = text.encode_chat(&talk).unwrap();
    let plain = |text_of: &str| text.encode(text_of).unwrap();
    // <bos> 1, <eos> 2, the place of a picture 3, <|User|> 6, <|Assistant|> 7.
    let expected = [
        vec![1],
        plain("be brief\n\n"),
        vec![6],
        plain(": "),
        vec![3],
        plain("\nwhat is it?\n\n"),
        vec![7],
        plain(": a ring"),
        vec![2, 7],
        plain(":"),
    ];
    assert_eq!(ids, expected.concat());
    let alone = text.encode_chat(&talk[1..2]).unwrap();
    let begins = plain("You are a helpful language and vision assistant.");
    assert!(alone[1..].starts_with(&begins[..begins.len() - 1]), "{alone:?}");
}

#[test]
fn janus_pro_1b_and_1_3b_are_planned_whole() {
    let hf = json!({
        "text_config": {"model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
            "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 102400, "max_position_embeddings": 16384},
        "vision_config": {"hidden_size": 1024, "image_size": 384, "patch_size": 16, "num_hidden_layers": 24,
            "num_attention_heads": 16, "mlp_ratio": 4.0},
        "vq_config": {"embed_dim": 8, "num_embeddings": 16384, "projection_dim": 2048},
    });
    let mut config = config(&hf);
    let vision = &mut config["vision_config"]["params"];
    *vision = json!({"image_size": 384, "model_name": "siglip_large_patch16_384", "select_feature": "same", "select_layer": -1});
    let vq = &mut config["gen_vision_config"]["params"];
    *vq = json!({"image_token_size": 16384, "n_embed": 8});
    let processor = json!({"image_processor_type": "VLMImageProcessor", "image_size": 384, "min_size": 14, "do_normalize": true,
        "background_color": [127, 127, 127], "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        "rescale_factor": 0.003_921_568_627_450_98});
    let dir = tempfile::tempdir().unwrap();
    let config = folder(dir.path(), config, &processor, json!({}));
    let special = [
        (100_000, "<｜begin▁of▁sentence｜>"),
        (100_001, "<｜end▁of▁sentence｜>"),
        (100_002, "<｜▁pad▁｜>"),
        (100_016, "<begin_of_image>"),
        (100_593, "<end_of_image>"),
        (100_581, "<image_placeholder>"),
    ];
    let added: Vec<_> = special.iter().map(|(id, content)| json!({"id": id, "content": content})).collect();
    write(&dir.path().join("tokenizer.json"), &json!({"added_tokens": added, "model": {"vocab": {}}}));
    let model = deepseek::model(of(dir.path(), config)).unwrap();
    let ModelConfig::Janus(c) = &model else { panic!("another family") };
    assert_eq!((c.vision.placeholder, c.vision.begin, c.vision.end), (100_581, 100_016, 100_593));
    assert_eq!(
        (c.language.bos, &c.language.end_ids[..], c.drawing.pad),
        (Some(100_000), &[100_001][..], 100_002)
    );
    // By transformers' names, each of which has one of DeepSeek's that means the same.
    check("januspro1b", &model, janus::name);
    let layout = Layout { name: deepseek::name, left_out: &deepseek::LEFT_OUT };
    for line in self::layout("januspro1b").1 {
        let hf = line.name.replace(".N", ".0");
        let (ours, expected) = (layout.ours(theirs(&hf), &model), janus::name(&hf).unwrap());
        assert!(ours.contains(&expected), "{hf}: {ours:?} has no {expected}");
        let joined = theirs(&hf).contains(".attn.qkv.");
        assert_eq!(ours.len(), if joined { 3 } else { 1 }, "{hf}: {ours:?}");
    }
}

#[test]
fn what_is_not_known_is_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let deepseek = dir.path().join("janus");
    rewrite(&fixture(), &deepseek);
    let good = read(&deepseek.join("config.json"));
    for (at, key, value, words) in [
        ("vision_config", "select_layer", json!(-2), "select_layer"),
        ("aligner_config", "projector_type", json!("low_high_hybrid_split_mlp_gelu"), "only `mlp_gelu`"),
        ("vision_config", "width", json!(null), "siglip_large_patch16_384"),
        ("gen_head_config", "image_token_embed", json!(null), "gen_head_config"),
    ] {
        let mut bad = good.clone();
        bad[at]["params"][key] = value;
        write(&deepseek.join("config.json"), &bad);
        let sentence = Checkpoint::open(&deepseek).unwrap_err().to_string();
        assert!(sentence.contains(words), "{sentence}");
    }
}
