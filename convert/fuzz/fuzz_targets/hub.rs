//! A folder of the hub's layout with one file of arbitrary bytes: opening it, whole and as a plan, gives a checkpoint or a sentence.
//!
//! The first byte of an input says which folder and which of its files, the rest is that file. A weights file is its header alone: it is
//! made as long as the header says.
#![no_main]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use saccade_convert::checkpoint::Checkpoint;
use tempfile::TempDir;

const FAMILIES: [&str; 5] = ["llama/tiny", "hf/chameleon", "hf/janus", "hf/emu3", "kin/mistral"];
const FILES: [&str; 8] = [
    "config.json",
    "model.safetensors.index.json",
    "model.safetensors",
    "tokenizer_config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer.model",
];
/// Where `model.safetensors` of an input goes in a folder of two shards.
const SHARD: &str = "model-00001-of-00002.safetensors";

/// The fixtures where they can be written to: in memory, where there is such a place.
static FOLDERS: LazyLock<(TempDir, [PathBuf; 5])> = LazyLock::new(|| {
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { TempDir::new_in(shm) } else { TempDir::new() }.expect("a temporary folder");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let folders = FAMILIES.map(|family| {
        let to = dir.path().join(family);
        fs::create_dir_all(&to).expect("a folder");
        for entry in fs::read_dir(fixtures.join(family)).expect("the fixtures").flatten() {
            if !entry.file_name().to_string_lossy().starts_with("golden") {
                fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
            }
        }
        to
    });
    (dir, folders)
});

/// Writes the file, and says how it was before.
fn replace(path: &Path, bytes: &[u8], weights: bool) -> Option<Vec<u8>> {
    let before = fs::read(path).ok();
    fs::write(path, bytes).expect("the file can be written");
    if weights {
        let end = end_of_data(bytes).unwrap_or(bytes.len() as u64);
        // Of a size that no file can have, nothing more is written.
        let _ = File::options().write(true).open(path).and_then(|file| file.set_len(end));
    }
    before
}

/// The length of a file with this header.
fn end_of_data(bytes: &[u8]) -> Option<u64> {
    let header = u64::from_le_bytes(*bytes.first_chunk()?);
    let json = bytes.get(8..usize::try_from(header).ok()?.checked_add(8)?)?;
    let json: serde_json::Value = serde_json::from_slice(json).ok()?;
    let ends = json.as_object()?.values().filter_map(|tensor| tensor["data_offsets"][1].as_u64());
    ends.max()?.checked_add(8)?.checked_add(header)
}

/// Takes away the hook that ends the program at any panic: those of the tokenizer's library are caught, ours still end it.
static HOOK: LazyLock<()> = LazyLock::new(|| drop(std::panic::take_hook()));

fuzz_target!(|data: &[u8]| {
    LazyLock::force(&HOOK);
    let Some((&first, bytes)) = data.split_first() else { return };
    let folder = &FOLDERS.1[usize::from(first) % FAMILIES.len()];
    let file = FILES[usize::from(first) / FAMILIES.len() % FILES.len()];
    let weights = file == "model.safetensors";
    let shards = folder.join(SHARD).exists();
    let path = folder.join(if weights && shards { SHARD } else { file });
    let before = replace(&path, bytes, weights);
    for opened in [Checkpoint::open(folder), Checkpoint::open_plan(folder)] {
        if let Err(error) = opened {
            assert!(!error.to_string().is_empty());
        }
    }
    match before {
        Some(before) => fs::write(&path, before).expect("the file can be written"),
        None => fs::remove_file(&path).expect("the file can be removed"),
    }
});
