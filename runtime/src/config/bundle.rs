//! A whole `saccade.json`: the model, how its weights are stored, and the hash of every file.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{ConfigError, ModelConfig, invalid};

/// The version of `saccade.json` that this crate reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// Largest accepted `saccade.json`, in bytes.
pub const MAX_CONFIG_BYTES: usize = 4 << 20;

/// The file that holds every weight of a bundle.
pub const WEIGHTS_FILE: &str = "weights.safetensors";
/// The text tokenizer of a bundle.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// What the converter calls an imported graph.
pub const GRAPH_FILE: &str = "vision.onnx";
/// The description of a bundle.
pub const CONFIG_FILE: &str = "saccade.json";

/// How the linear layers of a bundle are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightDtype {
    /// `n16k4` INT8 tiles, one scale per output row; activations are quantised per token.
    Int8,
    /// Plain half-precision rows.
    F16,
    /// Plain single-precision rows, and everything else in single precision too.
    F32,
}

/// What a file of the bundle must contain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Size in bytes.
    pub bytes: u64,
    /// BLAKE3 of the content, 64 hex digits.
    pub blake3: String,
}

/// How weights became integers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantisation {
    /// The recipe in words.
    pub recipe: String,
    /// Linear layers that stayed float, as patterns.
    pub float_tensors: Vec<String>,
    /// Tiled layers whose activations are quantised in two INT8 parts, the value and what its rounding left: names without
    /// `.weight`.
    pub two_part_activations: BTreeSet<String>,
    /// Linear layers of an INT8 bundle that are stored in F16 because whoever converted it asked for that: names without `.weight`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub kept_float: BTreeSet<String>,
}

/// Which part of a model an imported graph stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Pixels into the features that a text takes: of `janus`.
    Vision,
    /// Pixels into the vectors whose nearest code book vectors are the codes: of `chameleon`.
    VqEncoder,
}

/// An ONNX graph that reads pictures in place of our kernels. The weights of the part stay in the bundle, for comparison.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrontEnd {
    /// The graph's file, one of [`BundleConfig::files`].
    pub graph: String,
    /// What it stands for.
    pub replaces: Part,
}

impl Part {
    /// The part of `model` that a graph can stand for, if there is one.
    #[must_use]
    pub const fn of(model: &ModelConfig) -> Option<Self> {
        match model {
            ModelConfig::Janus(_) => Some(Self::Vision),
            ModelConfig::Chameleon(_) => Some(Self::VqEncoder),
            ModelConfig::Unimodal(_) | ModelConfig::Llama(_) | ModelConfig::Emu3(_) => None,
        }
    }
}

/// A whole `saccade.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleConfig {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// How linear layers are stored.
    pub dtype: WeightDtype,
    /// The network.
    pub model: ModelConfig,
    /// How weights became integers.
    pub quantisation: Quantisation,
    /// Logical `[N, K]` of every tiled weight, by name without `.weight`.
    pub linears: BTreeMap<String, [usize; 2]>,
    /// Where the weights come from; free text fields.
    pub provenance: serde_json::Map<String, serde_json::Value>,
    /// The graph that reads pictures, if one was imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub front_end: Option<FrontEnd>,
    /// Every other file of the bundle.
    pub files: BTreeMap<String, FileEntry>,
    /// BLAKE3 of this file with these 64 digits replaced by zeros.
    #[serde(default)]
    pub self_blake3: String,
}

const SELF_HASH_KEY: &str = "\"self_blake3\": \"";
const HASH_DIGITS: usize = 64;

impl BundleConfig {
    /// Parses and checks the bytes of a `saccade.json`.
    ///
    /// # Errors
    /// [`ConfigError`]: too large, not JSON, changed after it was written, or a value that contradicts another.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLarge { found: bytes.len() as u64, limit: MAX_CONFIG_BYTES as u64 });
        }
        // The version comes first: a newer format may have fields that this one does not know.
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let Version { format_version } = serde_json::from_slice(bytes)?;
        if format_version != FORMAT_VERSION {
            return Err(ConfigError::Version { found: format_version });
        }
        let config: Self = serde_json::from_slice(bytes)?;
        if self_hash(bytes).is_none_or(|(_, hash)| hash != config.self_blake3) {
            return Err(ConfigError::SelfHash);
        }
        config.model.check()?;
        config.check_front_end()?;
        for (name, entry) in &config.files {
            if name.contains(['/', '\\']) || name.starts_with('.') || name == "saccade.json" {
                return Err(invalid("files", format!("`{name}` is no plain file name")));
            }
            if entry.blake3.len() != HASH_DIGITS || !entry.blake3.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(invalid("files", format!("`{name}` has no BLAKE3 of 64 hex digits")));
            }
        }
        for required in [WEIGHTS_FILE, TOKENIZER_FILE] {
            if !config.files.contains_key(required) {
                return Err(invalid("files", format!("`{required}` is not listed")));
            }
        }
        Ok(config)
    }

    /// The bytes of `saccade.json`, its own hash filled in.
    ///
    /// # Errors
    /// [`ConfigError`] if the configuration breaks a rule.
    pub fn to_json(&self) -> Result<Vec<u8>, ConfigError> {
        self.model.check()?;
        self.check_front_end()?;
        let unhashed = Self { self_blake3: "0".repeat(HASH_DIGITS), ..self.clone() };
        let mut bytes = serde_json::to_vec_pretty(&unhashed)?;
        bytes.push(b'\n');
        let (at, hash) = self_hash(&bytes).ok_or(ConfigError::SelfHash)?;
        bytes[at..at + HASH_DIGITS].copy_from_slice(hash.as_bytes());
        Ok(bytes)
    }

    /// A graph is listed and stands for a part that the model has; `.onnx` files are in a bundle for nothing else.
    fn check_front_end(&self) -> Result<(), ConfigError> {
        let graphs = || self.files.keys().filter(|name| name.ends_with(".onnx"));
        let Some(FrontEnd { graph, replaces }) = &self.front_end else {
            return match graphs().next() {
                Some(name) => Err(invalid("files", format!("`{name}` is listed, but there is no front_end"))),
                None => Ok(()),
            };
        };
        if graphs().ne([graph]) {
            return Err(invalid(
                "front_end.graph",
                format!("`{graph}` must be listed, and be the only .onnx file"),
            ));
        }
        if Part::of(&self.model) != Some(*replaces) {
            let family = self.model.family();
            return Err(invalid(
                "front_end.replaces",
                format!("a model of family `{family}` has no such part"),
            ));
        }
        Ok(())
    }
}

/// Where the 64 digits stand, and what they should be. The last occurrence counts: the field is the last one.
fn self_hash(bytes: &[u8]) -> Option<(usize, String)> {
    let key = SELF_HASH_KEY.as_bytes();
    let at = bytes.windows(key.len()).rposition(|w| w == key)? + key.len();
    let digits = bytes.get(at..at.checked_add(HASH_DIGITS)?)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..at]);
    hasher.update(&[b'0'; HASH_DIGITS]);
    hasher.update(&bytes[at + digits.len()..]);
    Some((at, hasher.finalize().to_hex().to_string()))
}
