//! A checkpoint: what `saccade-train` writes, a folder of the hub's layout, or a GGUF file. Known to be whole before a value is read.
//!
//! A trainer's checkpoint is one safetensors file: the tensors of [`saccade::family::tensors`] in F32, F16 or BF16, no others, and
//! four metadata texts, `format` ([`FORMAT`]), `model` (the JSON of a [`ModelConfig`]), `tokenizer` (the whole
//! `tokenizer.json`) and `provenance` (a JSON object, free).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use saccade::config::{ConfigError, ModelConfig, Part};
use saccade::family::{TensorSpec, tensors};
use saccade::format::{Rules, TensorInfo, read_file_header};
use saccade::onnx;
use saccade::tokenize::TextTokenizer;
use serde_json::{Map, Value};

use crate::error::{ConvertError, Result, io};
use crate::values::{Elements, Origin, Rows, Values};
use crate::{gguf, hub};

/// The metadata text `format` of every trainer's checkpoint.
pub const FORMAT: &str = "saccade-checkpoint-1";

/// A checkpoint whose every tensor is known to be there.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    values: Values,
    /// The network.
    pub model: ModelConfig,
    /// The text of `tokenizer.json`.
    pub tokenizer: String,
    /// Where it comes from.
    pub provenance: Map<String, Value>,
    /// The tensors that the model implies, in the order of the bundle.
    pub specs: Vec<TensorSpec>,
    /// The ONNX graph that reads pictures, if one was put to it.
    graph: Option<PathBuf>,
}

impl Checkpoint {
    /// Opens a checkpoint of any kind and checks everything about it but the values.
    ///
    /// # Errors
    /// [`ConvertError`]: no checkpoint, of an unknown architecture, or a tensor that does not fit the model.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return hub::open(path, true);
        }
        if begins_with(path, &gguf::MAGIC)? {
            return gguf::open(path);
        }
        Self::open_trainers(path)
    }

    /// Opens a checkpoint to plan its conversion: of a folder of the hub's layout the configuration and the index are enough, the names of
    /// the tensors are checked then, and nothing can be read.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_plan(path: &Path) -> Result<Self> {
        if path.is_dir() { hub::open(path, false) } else { Self::open(path) }
    }

    fn open_trainers(path: &Path) -> Result<Self> {
        let mut header = read_file_header(path, Rules::Foreign)?;
        match header.metadata.get("format").map(String::as_str) {
            Some(FORMAT) => {}
            found => return Err(no_checkpoint(path, found)),
        }
        let mut text = |key| header.metadata.remove(key).ok_or_else(|| missing(path, key));
        let (model, tokenizer, provenance) = (text("model")?, text("tokenizer")?, text("provenance")?);
        let model = ModelConfig::from_json(&model).map_err(|e| unusable(path, "model", config_reason(&e)))?;
        let provenance = serde_json::from_str(&provenance)
            .map_err(|e| unusable(path, "provenance", format!("{e}, expected an object")))?;
        let mut values = Values::default();
        let file = values.add_file(path);
        for tensor in &header.tensors {
            values.add(tensor.name.clone(), origin(file, tensor))?;
        }
        TextTokenizer::from_bytes(tokenizer.as_bytes(), &model)
            .map_err(|reason| unusable(path, "tokenizer", reason))?;
        Self::of(path, values, model, tokenizer, provenance, "export the checkpoint again")
    }

    /// A checkpoint of these parts.
    ///
    /// # Errors
    /// [`ConvertError::Tensor`] when a tensor of the model is missing or another shape, or there is one too many; `again` says what to
    /// do then.
    pub(crate) fn of(
        path: &Path,
        values: Values,
        model: ModelConfig,
        tokenizer: String,
        provenance: Map<String, Value>,
        again: &str,
    ) -> Result<Self> {
        let specs = tensors(&model);
        values.check(path, &specs, again)?;
        Ok(Self { path: path.into(), values, model, tokenizer, provenance, specs, graph: None })
    }

    /// What can be planned of a model whose weights are not there, with the names that its tensors have in a bundle.
    ///
    /// # Errors
    /// [`ConvertError::Tensor`] when a name is missing or one is too many; `again` says what to do then.
    pub(crate) fn planned(
        path: &Path,
        names: &BTreeSet<String>,
        model: ModelConfig,
        again: &str,
    ) -> Result<Self> {
        let specs = tensors(&model);
        let refuse = |name: &str, reason: String| {
            Err(ConvertError::Tensor {
                path: path.into(),
                name: name.into(),
                reason: format!("{reason}; {again}"),
            })
        };
        if let Some(spec) = specs.iter().find(|spec| !names.contains(&spec.name)) {
            return refuse(&spec.name, "it is missing".into());
        }
        if let Some(name) = names.iter().find(|name| !specs.iter().any(|spec| spec.name == **name)) {
            return refuse(name, "it does not belong to this model".into());
        }
        let (values, tokenizer, provenance) = (Values::default(), String::new(), Map::new());
        Ok(Self { path: path.into(), values, model, tokenizer, provenance, specs, graph: None })
    }

    /// Puts an ONNX graph to it that reads pictures in place of our kernels.
    ///
    /// # Errors
    /// [`ConvertError`]: a model without a part that a graph can stand for, a file that is no graph, has parts in other files or does not
    /// fit the model, a build without the feature `onnx`.
    pub fn with_graph(mut self, graph: &Path) -> Result<Self> {
        if Part::of(&self.model).is_none() {
            let reason = format!(
                "a graph stands for the vision encoder of `janus` or the picture encoder of `chameleon`, and this is a model of family \
                 `{}`; leave it out",
                self.model.family()
            );
            return Err(ConvertError::Refused { path: graph.into(), reason });
        }
        onnx::check(graph, &self.model)?;
        self.graph = Some(graph.into());
        Ok(self)
    }

    /// The graph, and what it stands for.
    #[must_use]
    pub fn graph(&self) -> Option<(&Path, Part)> {
        Some((self.graph.as_deref()?, Part::of(&self.model)?))
    }

    /// The file or folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of parameters of the model.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.specs.iter().map(|spec| spec.parameters() as u64).sum()
    }

    /// BLAKE3 of the file that holds the weights; of several, of their hashes one after the other.
    ///
    /// # Errors
    /// [`ConvertError::Io`] when one cannot be read.
    pub fn blake3(&self) -> Result<blake3::Hash> {
        let hashes = self.values.paths().map(hash_file).collect::<Result<Vec<_>>>()?;
        if let [hash] = hashes[..] {
            return Ok(hash);
        }
        let mut all = blake3::Hasher::new();
        for hash in hashes {
            all.update(hash.as_bytes());
        }
        Ok(all.finalize())
    }

    /// A hash of what the checkpoint says of itself: its files' sizes and times, where each tensor lies, the model, the tokenizer. Reads
    /// no weights, so a file that was changed and given its old time passes for the old one.
    ///
    /// # Errors
    /// [`ConvertError::Io`] when a file cannot be looked at.
    pub(crate) fn fingerprint(&self) -> Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        for path in self.values.paths() {
            let found = path.metadata().map_err(io(path))?;
            hasher.update(&found.len().to_le_bytes());
            hasher.update(format!("{:?}", found.modified().map_err(io(path))?).as_bytes());
        }
        for part in [
            self.values.layout(),
            serde_json::json!([&self.model, &self.provenance]).to_string(),
            self.tokenizer.clone(),
        ] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        Ok(hasher.finalize())
    }

    /// The values of a tensor as F32, in the order of its shape.
    ///
    /// Shapes: `spec.shape`, row-major.
    ///
    /// # Errors
    /// As [`Values::read`].
    pub fn read(&mut self, spec: &TensorSpec) -> Result<Vec<f32>> {
        self.values.read(spec)
    }
}

/// A tensor of a safetensors file.
pub(crate) fn origin(file: usize, tensor: &TensorInfo) -> Origin {
    Origin {
        name: tensor.name.clone(),
        file,
        offset: tensor.offset,
        bytes: tensor.bytes,
        shape: tensor.shape.clone(),
        elements: Elements::Plain(tensor.dtype),
        rows: Rows::AsTheyAre,
    }
}

fn begins_with(path: &Path, magic: &[u8]) -> Result<bool> {
    let mut found = Vec::new();
    let file = File::open(path).map_err(io(path))?;
    if file.metadata().map_err(io(path))?.is_file() {
        file.take(magic.len() as u64).read_to_end(&mut found).map_err(io(path))?;
    }
    Ok(found == magic)
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
pub(crate) fn config_reason(error: &ConfigError) -> String {
    match error {
        ConfigError::Json(e) => e.to_string(),
        ConfigError::Invalid { field, reason } => format!("{field}: {reason}"),
        error => error.to_string(),
    }
}
