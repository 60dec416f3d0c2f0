//! What a trainer's checkpoint must hold, and how it is read: one tensor at a time.
//!
//! A checkpoint is one safetensors file: the tensors of [`saccade::family::tensors`] in F32, F16 or BF16, no others, and
//! four metadata texts, `format` ([`FORMAT`]), `model` (the JSON of a [`ModelConfig`]), `tokenizer` (the whole
//! `tokenizer.json`) and `provenance` (a JSON object, free).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use saccade::config::{ConfigError, ModelConfig};
use saccade::family::{TensorSpec, tensors};
use saccade::format::{Dtype, Header, Rules, TensorInfo, read_file_header};
use saccade::tokenize::TextTokenizer;
use serde_json::{Map, Value};

use crate::error::{ConvertError, Result, io};

/// The metadata text `format` of every checkpoint.
pub const FORMAT: &str = "saccade-checkpoint-1";

/// A checkpoint whose every tensor is known to be there.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    file: File,
    header: Header,
    /// The network.
    pub model: ModelConfig,
    /// The text of `tokenizer.json`.
    pub tokenizer: String,
    /// What the trainer says of itself.
    pub provenance: Map<String, Value>,
    /// The tensors that the model implies, in the order of the bundle.
    pub specs: Vec<TensorSpec>,
}

impl Checkpoint {
    /// Opens a checkpoint and checks everything about it but the values.
    ///
    /// # Errors
    /// [`ConvertError`]: not a safetensors file, not a checkpoint, or a tensor that does not fit the model.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let reason = "it is a folder; folders of the hub's layout cannot be converted yet, name the .safetensors \
                          file that saccade-train writes";
            return Err(ConvertError::Refused { path: path.into(), reason: reason.into() });
        }
        let mut header = read_file_header(path, Rules::Foreign)?;
        let file = File::open(path).map_err(io(path))?;
        match header.metadata.get("format").map(String::as_str) {
            Some(FORMAT) => {}
            found => return Err(no_checkpoint(path, found)),
        }
        let mut text = |key| header.metadata.remove(key).ok_or_else(|| missing(path, key));
        let (model, tokenizer, provenance) = (text("model")?, text("tokenizer")?, text("provenance")?);
        let model = ModelConfig::from_json(&model).map_err(|e| unusable(path, "model", config_reason(&e)))?;
        TextTokenizer::from_bytes(tokenizer.as_bytes(), &model)
            .map_err(|reason| unusable(path, "tokenizer", reason))?;
        let provenance = serde_json::from_str(&provenance)
            .map_err(|e| unusable(path, "provenance", format!("{e}, expected an object")))?;
        let checkpoint =
            Self { path: path.into(), file, specs: tensors(&model), header, model, tokenizer, provenance };
        checkpoint.check_tensors()?;
        Ok(checkpoint)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of parameters of the model.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.specs.iter().map(|spec| spec.parameters() as u64).sum()
    }

    /// BLAKE3 of the whole file.
    ///
    /// # Errors
    /// [`ConvertError::Io`] when it cannot be read.
    pub fn blake3(&self) -> Result<blake3::Hash> {
        hash_file(&self.path)
    }

    /// The values of a tensor as F32, in the checkpoint's own order.
    ///
    /// Shapes: `spec.shape`, row-major.
    ///
    /// # Errors
    /// [`ConvertError::Io`] when it cannot be read, [`ConvertError::Tensor`] when a value is infinite or no number.
    pub fn read(&mut self, spec: &TensorSpec) -> Result<Vec<f32>> {
        let Some(info) = self.header.find(&spec.name) else {
            return Err(refuse(
                &self.path,
                &spec.name,
                "it is missing; train again or export the checkpoint again".into(),
            ));
        };
        let mut bytes = vec![0; usize::try_from(info.bytes).unwrap_or(usize::MAX)];
        self.file.seek(SeekFrom::Start(info.offset)).map_err(io(&self.path))?;
        self.file.read_exact(&mut bytes).map_err(io(&self.path))?;
        let values: Vec<f32> = match info.dtype {
            Dtype::F16 => bytes.as_chunks().0.iter().map(|&v| f16::from_le_bytes(v).to_f32()).collect(),
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|&v| bf16::from_le_bytes(v).to_f32()).collect(),
            _ => bytes.as_chunks().0.iter().map(|&v| f32::from_le_bytes(v)).collect(),
        };
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let reason =
                format!("value {at} is {}; the training diverged, take an earlier checkpoint", values[at]);
            return Err(refuse(&self.path, &spec.name, reason));
        }
        Ok(values)
    }

    /// Every tensor that the model implies, and no other.
    fn check_tensors(&self) -> Result<()> {
        let refuse = |name: &str, reason| Err(refuse(&self.path, name, reason));
        for spec in &self.specs {
            let Some(TensorInfo { dtype, shape, .. }) = self.header.find(&spec.name) else {
                return refuse(&spec.name, "it is missing; export the checkpoint again".into());
            };
            if *shape != spec.shape {
                let reason = format!(
                    "shape {shape:?} does not match the model's {:?}; the `model` metadata is another's",
                    spec.shape
                );
                return refuse(&spec.name, reason);
            }
            if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                return refuse(
                    &spec.name,
                    format!("dtype {dtype} cannot be converted; export it as F16 or F32"),
                );
            }
        }
        match self.header.tensors.iter().find(|t| !self.specs.iter().any(|spec| spec.name == t.name)) {
            Some(tensor) => {
                refuse(&tensor.name, "it does not belong to this model; export the checkpoint again".into())
            }
            None => Ok(()),
        }
    }
}

/// BLAKE3 of a file, read in pieces.
///
/// # Errors
/// [`ConvertError::Io`] when it cannot be read.
pub fn hash_file(path: &Path) -> Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).map_err(io(path))?;
    hasher.update_reader(file).map_err(io(path))?;
    Ok(hasher.finalize())
}

fn refuse(path: &Path, name: &str, reason: String) -> ConvertError {
    ConvertError::Tensor { path: path.into(), name: name.into(), reason }
}

fn missing(path: &Path, key: &str) -> ConvertError {
    ConvertError::NoCheckpoint { path: path.into(), reason: format!("its metadata has no `{key}`") }
}

fn no_checkpoint(path: &Path, format: Option<&str>) -> ConvertError {
    let reason = match format {
        Some(found) => format!("its metadata `format` is `{}`, not `{FORMAT}`", found.escape_debug()),
        None => "its metadata has no `format`".into(),
    };
    ConvertError::NoCheckpoint { path: path.into(), reason }
}

fn unusable(path: &Path, key: &'static str, reason: String) -> ConvertError {
    ConvertError::Metadata { path: path.into(), key, reason }
}

/// The reason alone: here the description does not come from a `saccade.json`.
fn config_reason(error: &ConfigError) -> String {
    match error {
        ConfigError::Json(e) => e.to_string(),
        ConfigError::Invalid { field, reason } => format!("{field}: {reason}"),
        error => error.to_string(),
    }
}
