//! `preprocessor_config.json` of arbitrary bytes: a sentence, or steps that any picture goes through or is refused by, within the memory that
//! the limits of a result allow.
//!
//! The first byte of an input says which folder the file lies in, the next four the size of a picture, the rest is the file.
#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use saccade::config::ModelConfig;
use saccade::tokenize::{Picture, PixelFormat, Pixels};
use saccade_convert::checkpoint::Checkpoint;
use tempfile::TempDir;

const FAMILIES: [&str; 3] = ["chameleon", "janus", "emu3"];

/// Folders without weights or tokenizer: a plan is made of them.
static FOLDERS: LazyLock<(TempDir, [PathBuf; 3])> = LazyLock::new(|| {
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { TempDir::new_in(shm) } else { TempDir::new() }.expect("a temporary folder");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/hf");
    let folders = FAMILIES.map(|family| {
        let to = dir.path().join(family);
        fs::create_dir(&to).expect("a folder");
        fs::copy(fixtures.join(family).join("config.json"), to.join("config.json")).expect("a copy");
        let weights = fs::read(fixtures.join(family).join("model.safetensors")).expect("the fixture");
        let header = u64::from_le_bytes(*weights.first_chunk().expect("a header"));
        let header = &weights[8..8 + usize::try_from(header).expect("a length")];
        let header: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(header).expect("a header of tensors");
        let names: serde_json::Map<_, _> = header
            .into_iter()
            .filter(|(name, _)| name != "__metadata__")
            .map(|(name, _)| (name, "model-00001-of-00001.safetensors".into()))
            .collect();
        let index = serde_json::json!({ "weight_map": names }).to_string();
        fs::write(to.join("model.safetensors.index.json"), index).expect("the index can be written");
        to
    });
    (dir, folders)
});

fuzz_target!(|data: &[u8]| {
    let Some((&[which, a, b, c, d], bytes)) = data.split_first_chunk() else { return };
    let folder = &FOLDERS.1[usize::from(which) % FAMILIES.len()];
    fs::write(folder.join("preprocessor_config.json"), bytes).expect("the file can be written");
    let Ok(checkpoint) = Checkpoint::open_plan(folder) else { return };
    let config = match &checkpoint.model {
        ModelConfig::Chameleon(c) => &c.image.pixels,
        ModelConfig::Janus(c) => &c.vision.pixels,
        ModelConfig::Emu3(c) => &c.image.pixels,
        _ => unreachable!("the folders are of these families"),
    };
    let mut pixels = Pixels::new(config).expect("a plan has been checked");
    // Of any size without pixels of that size, then of a small one with them.
    let (width, height) = (u16::from_le_bytes([a, b]).into(), u16::from_le_bytes([c, d]).into());
    if let Ok((columns, rows)) = config.size(width, height) {
        assert!(columns * rows <= 1 << 22, "{columns} by {rows}");
    }
    let (width, height) = (width % 97, height % 89);
    let noise: Vec<u8> = (0..width * height * 3).map(|at| (at * 31 % 256) as u8).collect();
    let formats = [PixelFormat::Rgb, PixelFormat::Bgr, PixelFormat::Yuyv, PixelFormat::Nv12, PixelFormat::Grey];
    // Rows of every length, so that there are enough bytes and too few.
    let (format, stride) = (formats[usize::from(which) / FAMILIES.len() % formats.len()], usize::from(a));
    let camera = Picture { bytes: &noise, format, width, height, stride };
    for picture in [Picture::rgb(&noise, width, height), camera, Picture { stride: usize::MAX, ..camera }] {
        if let Ok(found) = pixels.run(picture) {
            assert_eq!(found.values.len(), found.width * found.height * 3);
            assert!(found.values.iter().all(|value| value.is_finite()));
        }
    }
});
