//! Bundles that cannot be used are refused when they are opened, each with a sentence that names what is wrong.

// Test code: a failed `unwrap` is a failed test.
#![allow(clippy::unwrap_used)]

mod oracle;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use oracle::bundle::write_bundle;
use oracle::{random_tensors, tiny};
use rustix::fs::{CWD, Mode, mkfifoat};
use saccade::config::{
    BundleConfig, CONFIG_FILE, FileEntry, ModelConfig, TOKENIZER_FILE, UnimodalConfig, WEIGHTS_FILE,
    WeightDtype,
};
use saccade::engine::{EngineError, EngineOptions};
use saccade::family::Model;
use saccade::source::{AviError, SourceError};
use saccade::{Error, Result};

/// A sound bundle, broken by `break_it`, and what using it then says.
fn refusal(dtype: WeightDtype, break_it: impl FnOnce(&Path, BundleConfig)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let c = tiny();
    let config = write_bundle(dir.path(), &c, &random_tensors(&c, 1), dtype);
    break_it(dir.path(), config);
    let error = open(dir.path()).unwrap_err();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(source) = cause.source() {
        assert!(!cause.to_string().contains(&source.to_string()), "said twice: {cause}");
        cause = source;
    }
    error.sentence()
}

/// Opens the model and its tokenizer, which is read later than the rest.
fn open(dir: &Path) -> Result<()> {
    Model::open(dir, &EngineOptions { threads: 1, ..EngineOptions::default() })?.text().map(drop)
}

fn write_config(dir: &Path, config: &BundleConfig) {
    fs::write(dir.join(CONFIG_FILE), config.to_json().unwrap()).unwrap();
}

/// Replaces a file and says so in `saccade.json`.
fn replace(dir: &Path, mut config: BundleConfig, name: &str, content: &[u8]) {
    fs::write(dir.join(name), content).unwrap();
    let blake3 = blake3::hash(content).to_hex().to_string();
    config.files.insert(name.into(), FileEntry { bytes: content.len() as u64, blake3 });
    write_config(dir, &config);
}

#[test]
fn what_is_no_file_is_refused_and_never_waited_for() {
    type Make = fn(&Path);
    for name in [CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE] {
        let kinds: [(&str, Make); 4] = [
            ("folder", |path| fs::create_dir(path).unwrap()),
            ("pipe", |path| mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).unwrap()),
            ("device", |path| symlink("/dev/zero", path).unwrap()),
            ("socket", |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap())),
        ];
        for (kind, make) in kinds {
            let sentence = refusal(WeightDtype::F32, |dir, _| {
                fs::remove_file(dir.join(name)).unwrap();
                make(&dir.join(name));
            });
            assert!(sentence.contains(name) && sentence.contains("is a folder"), "{kind}: {sentence}");
        }
    }
}

#[test]
fn missing_files_are_named() {
    for (name, part) in [
        (CONFIG_FILE, "has no saccade.json, so it is no bundle"),
        (WEIGHTS_FILE, "weights.safetensors is missing; copy the bundle again"),
        (TOKENIZER_FILE, "tokenizer.json is missing; copy the bundle again"),
    ] {
        let sentence = refusal(WeightDtype::F32, |dir, _| fs::remove_file(dir.join(name)).unwrap());
        assert!(sentence.contains(part), "{sentence}");
    }
    let sentence = open(Path::new("/nowhere")).unwrap_err().sentence();
    assert!(sentence.contains("/nowhere has no saccade.json"), "{sentence}");
}

#[test]
fn files_of_another_size_are_refused() {
    let resize = |name: &str, delta: i64| {
        refusal(WeightDtype::F32, |dir, _| {
            let file = File::options().write(true).open(dir.join(name)).unwrap();
            let bytes = file.metadata().unwrap().len();
            file.set_len(bytes.saturating_add_signed(delta)).unwrap();
        })
    };
    for (name, delta) in [(WEIGHTS_FILE, -1), (WEIGHTS_FILE, 1), (TOKENIZER_FILE, -2), (TOKENIZER_FILE, 1)] {
        let sentence = resize(name, delta);
        assert!(sentence.contains(name) && sentence.contains("it is damaged or half copied"), "{sentence}");
    }
    let sentence = resize(CONFIG_FILE, 5 << 20);
    assert!(sentence.contains("more than the 4194304 that are accepted"), "{sentence}");
}

#[test]
fn a_damaged_description_is_refused() {
    let sentence = refusal(WeightDtype::F32, |dir, _| fs::write(dir.join(CONFIG_FILE), "[1, 2").unwrap());
    assert!(sentence.contains("it is damaged, or of a newer converter: "), "{sentence}");
    let sentence = refusal(WeightDtype::F32, |dir, config| {
        let text = String::from_utf8(config.to_json().unwrap()).unwrap();
        fs::write(dir.join(CONFIG_FILE), text.replacen("\"tiny\"", "\"tony\"", 1)).unwrap();
    });
    assert!(sentence.contains("was changed after it was written"), "{sentence}");
}

#[test]
fn a_damaged_container_is_refused_by_name() {
    let sentence = refusal(WeightDtype::F32, |dir, config| {
        let mut bytes = fs::read(dir.join(WEIGHTS_FILE)).unwrap();
        bytes[8] = b'[';
        replace(dir, config, WEIGHTS_FILE, &bytes);
    });
    assert!(sentence.contains("weights.safetensors: header starts with byte 0x5b"), "{sentence}");
    let sentence = refusal(WeightDtype::F32, |dir, config| replace(dir, config, WEIGHTS_FILE, b""));
    assert!(sentence.contains("weights.safetensors: file of 0 bytes is too short"), "{sentence}");
}

#[test]
fn tensors_that_do_not_fit_the_description_are_named() {
    type Change = fn(&mut BundleConfig);
    let cases: [(WeightDtype, &str, Change); 13] = [
        (WeightDtype::F32, "tensor `layers.2.attn.k.weight` is missing", |c| unimodal(c).n_layers = 3),
        (WeightDtype::F32, "tensor `layers.1.attn_norm.weight` does not belong", |c| {
            unimodal(c).n_layers = 1
        }),
        (
            WeightDtype::F32,
            "`layers.0.ffn.down.weight`: shape [48, 72] does not match the model's [48, 71]",
            |c| {
                unimodal(c).d_ff = 71;
            },
        ),
        (WeightDtype::F32, "tensor `action_slots.weight`: element type F32, expected F16", |c| {
            c.dtype = WeightDtype::F16;
        }),
        (WeightDtype::F16, "tensor `embed.scale` is missing", |c| c.dtype = WeightDtype::Int8),
        // Both fill the same tiles, so that the tensors alone cannot tell.
        (WeightDtype::Int8, "saccade.json lists other `linears`", |c| {
            c.linears.insert("layers.0.ffn.down".into(), [48, 71]);
        }),
        (WeightDtype::Int8, "saccade.json lists other `linears`", |c| {
            c.linears.remove("embed");
        }),
        (WeightDtype::Int8, "in two parts to `image.codebook`, which is no tiled layer", |c| {
            c.quantisation.two_part_activations.insert("image.codebook".into());
        }),
        (WeightDtype::Int8, "`layers.1.attn.q`, which read the same", |c| {
            c.quantisation.two_part_activations.insert("layers.1.attn.k".into());
        }),
        (WeightDtype::Int8, "keeps `image.codebook` float, which is no linear layer", |c| {
            c.quantisation.kept_float.insert("image.codebook".into());
        }),
        (WeightDtype::Int8, "tensor `layers.1.attn.o.weight`: element type I8, expected F16", |c| {
            c.quantisation.kept_float.insert("layers.1.attn.o".into());
        }),
        (WeightDtype::F16, "`kept_float` layers, but no layer of a F16 bundle", |c| {
            c.quantisation.kept_float.insert("layers.1.attn.o".into());
        }),
        (WeightDtype::Int8, "`layers.0.ffn.up`, which read the same", |c| {
            c.quantisation.two_part_activations.insert("layers.0.ffn.gate".into());
        }),
    ];
    for (dtype, part, change) in cases {
        let sentence = refusal(dtype, |dir, mut config| {
            change(&mut config);
            write_config(dir, &config);
        });
        assert!(sentence.contains(part), "{part}: {sentence}");
        assert!(sentence.contains(WEIGHTS_FILE), "{sentence}");
    }
}

/// A `tokenizer.json` of two words, the second with this id.
fn vocabulary(id: u32, padding: &str) -> String {
    format!(
        r#"{{"version":"1.0","truncation":null,"padding":{padding},"added_tokens":[],"normalizer":null,
        "pre_tokenizer":null,"post_processor":null,"decoder":null,
        "model":{{"type":"WordLevel","vocab":{{"a":0,"b":{id}}},"unk_token":"a"}}}}"#
    )
}

#[test]
fn text_tokenizers_that_cannot_be_used_are_refused() {
    let replaced = |content: &[u8]| {
        refusal(WeightDtype::F32, |dir, config| replace(dir, config, TOKENIZER_FILE, content))
    };
    for (content, part) in [
        (&b"{}"[..], "no tokenizer: "),
        (b"\xff\xfe", "no tokenizer: invalid utf-8"),
        (vocabulary(96, "null").as_bytes(), "token \"b\" has id 96, but text tokens end at 96"),
    ] {
        let sentence = replaced(content);
        assert!(sentence.contains(part) && sentence.contains("convert the checkpoint again"), "{sentence}");
    }
    let sentence = refusal(WeightDtype::F32, |dir, mut config| {
        config.files.get_mut(TOKENIZER_FILE).unwrap().bytes = 1 << 40;
        File::create(dir.join(TOKENIZER_FILE)).unwrap().set_len(1 << 40).unwrap();
        write_config(dir, &config);
    });
    assert!(sentence.contains("it has 1099511627776 bytes, at most 134217728 are read"), "{sentence}");
}

#[test]
fn a_text_is_never_padded() {
    let dir = tempfile::tempdir().unwrap();
    let c = tiny();
    let config = write_bundle(dir.path(), &c, &random_tensors(&c, 1), WeightDtype::F32);
    let padding = r#"{"strategy":{"Fixed":100000},"direction":"Right","pad_to_multiple_of":null,"pad_id":0,"pad_type_id":0,"pad_token":"a"}"#;
    replace(dir.path(), config, TOKENIZER_FILE, vocabulary(95, padding).as_bytes());
    let model = Model::open(dir.path(), &EngineOptions { threads: 1, ..EngineOptions::default() }).unwrap();
    assert_eq!(model.text().unwrap().encode("b").unwrap(), [95]);
}

#[test]
fn what_the_system_said_is_said_once() {
    let said = || std::io::Error::other("the disk is on fire");
    let errors: [Error; 4] = [
        Error::Io { path: "x".into(), source: said() },
        EngineError::Threads { index: 1, threads: 2, source: said() }.into(),
        SourceError::Io { path: "x".into(), reason: said() }.into(),
        SourceError::Avi { path: "x".into(), reason: AviError::Io(said()) }.into(),
    ];
    for error in errors {
        assert_eq!(error.sentence().matches("on fire").count(), 1, "{}", error.sentence());
    }
    // Alone, too.
    assert!(std::error::Error::source(&AviError::Io(said())).is_none());
}

#[test]
fn a_kernel_set_that_is_not_there_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let c = tiny();
    write_bundle(dir.path(), &c, &random_tensors(&c, 1), WeightDtype::F32);
    let options = EngineOptions { threads: 1, kernels: Some("abacus"), ..EngineOptions::default() };
    let error = Model::open(dir.path(), &options).unwrap_err();
    assert!(matches!(error, Error::Engine(_)), "{error:?}");
    assert!(
        error.sentence().contains("no kernel set `abacus`; choose one of: scalar"),
        "{}",
        error.sentence()
    );
}

fn unimodal(c: &mut BundleConfig) -> &mut UnimodalConfig {
    match &mut c.model {
        ModelConfig::Unimodal(c) => c,
        other => panic!("a {} model", other.family()),
    }
}
