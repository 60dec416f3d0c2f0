//! Whether a bundle, or one weights file, is what it claims to be.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use saccade::config::BundleConfig;
use saccade::format::{Rules, read_file_header};

use crate::bundle::opens;
use crate::checkpoint::hash_file;
use crate::error::{ConvertError, Result, io};
use crate::gguf::{self, Gguf};
use crate::inspect::read_config;
use crate::progress::Progress;

/// Verifies what lies at `path` and says what was found.
///
/// A folder is a bundle: the size and BLAKE3 of every file, then everything the runtime checks when it opens one.
/// A file is a GGUF or a safetensors container and is judged by its format's rules alone.
///
/// # Errors
/// [`ConvertError`] with the first thing that is wrong.
pub fn verify(path: &Path) -> Result<String> {
    if path.is_dir() {
        return bundle(path);
    }
    let mut magic = Vec::new();
    let metadata = path.metadata().map_err(io(path))?;
    if metadata.is_file() {
        File::open(path).and_then(|file| file.take(4).read_to_end(&mut magic)).map_err(io(path))?;
    }
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    if magic == gguf::MAGIC || extension == "gguf" {
        let Gguf { version, metadata, tensors, file_bytes } = gguf::read_file(path)?;
        return Ok(format!(
            "{}: GGUF version {version}, {} tensors, {} metadata entries, {file_bytes} bytes, every rule of the container holds",
            path.display(),
            tensors.len(),
            metadata.len(),
        ));
    }
    let header = read_file_header(path, Rules::Foreign)?;
    Ok(format!(
        "{}: {} tensors, {} bytes, every rule of the container holds",
        path.display(),
        header.tensors.len(),
        header.file_bytes
    ))
}

fn bundle(dir: &Path) -> Result<String> {
    let BundleConfig { files, dtype, model, .. } = read_config(dir)?;
    let mut progress = Progress::new("verify", files.values().map(|entry| entry.bytes).sum());
    for (name, entry) in &files {
        let path = dir.join(name);
        if !path.is_file() {
            let reason = "saccade.json lists this file but it is missing; copy the bundle again";
            return Err(ConvertError::Refused { path, reason: reason.into() });
        }
        let found = path.metadata().map_err(io(&path))?.len();
        if found != entry.bytes {
            return Err(saccade::Error::FileSize { path, expected: entry.bytes, found }.into());
        }
        let found = hash_file(&path)?;
        // Compared as hashes: the digits in saccade.json may be of either case.
        if blake3::Hash::from_hex(&entry.blake3).ok() != Some(found) {
            let (expected, found) = (entry.blake3.clone(), found.to_hex().to_string());
            return Err(ConvertError::Hash { path, expected, found });
        }
        progress.advance(entry.bytes, name);
    }
    drop(progress);
    opens(dir)?;
    Ok(format!(
        "{}: {} {dtype:?}, {} files, every hash and every tensor is as saccade.json says",
        dir.display(),
        model.name(),
        files.len()
    ))
}
