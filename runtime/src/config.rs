//! `saccade.json`: what a bundle says of itself, and the checks that make it believable.
//!
//! A [`ModelConfig`] describes a network and its vocabulary; trainers put one into their checkpoints. A
//! [`BundleConfig`] is a whole `saccade.json`: a model, how its weights are stored, and the hash of every other
//! file. Neither exists unless every rule below holds, so the rest of the crate does arithmetic on them freely.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::quant::MAX_K;

/// The version of `saccade.json` that this crate reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// Largest accepted `saccade.json`, in bytes.
pub const MAX_CONFIG_BYTES: usize = 4 << 20;

/// A rule of `saccade.json` (or of a checkpoint's model description) that a file broke.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not JSON, a field of another type, or a field this version does not know.
    #[error("saccade.json: {0}; the bundle may be damaged or made by a newer converter")]
    Json(#[from] serde_json::Error),
    /// More bytes than any honest configuration has.
    #[error("saccade.json has {found} bytes, more than the {limit} that are accepted")]
    TooLarge {
        /// Bytes found.
        found: usize,
        /// Bytes accepted.
        limit: usize,
    },
    /// Another format version.
    #[error(
        "saccade.json has format version {found}, this build reads version {FORMAT_VERSION}; convert the checkpoint again"
    )]
    Version {
        /// The version found.
        found: u32,
    },
    /// The file's own hash does not fit its bytes.
    #[error(
        "saccade.json was changed after it was written (its self_blake3 does not match); convert the checkpoint again"
    )]
    SelfHash,
    /// A value that contradicts another one or that no model has.
    #[error("saccade.json: {field}: {reason}")]
    Invalid {
        /// The field, dotted.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

fn invalid(field: &'static str, reason: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { field, reason: reason.into() }
}

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

/// Which network this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Family {
    /// Saccade's own: discrete codes of every modality in, discrete codes out.
    Unimodal,
}

/// What kind of thing a token stands for. The discriminant is the row of the modality tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Modality {
    /// Words, task prefixes, `<ask>`, `<ans>`, `<eos>`.
    Text = 0,
    /// Image codes between `<img>` and `</img>`.
    Image = 1,
    /// Robot state after `<state>`.
    State = 2,
    /// Robot actions after `<act>`, and the slots of an action chunk.
    Action = 3,
}

impl Modality {
    /// All of them, in table order.
    pub const ALL: [Self; 4] = [Self::Text, Self::Image, Self::State, Self::Action];

    /// The row of the modality tables.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// One modality and how much of it a query sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModalityConfig {
    /// Which one.
    pub name: Modality,
    /// How many segments stay visible, the newest included; all of them when absent.
    pub window: Option<usize>,
}

/// Half-open ranges of token ids by what they stand for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRanges {
    /// Special tokens and text: what an answer may consist of.
    pub text: [u32; 2],
    /// Bins of states and actions.
    pub bins: [u32; 2],
    /// Image codes.
    pub image: [u32; 2],
}

/// Ids of the special tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecialTokens {
    /// Fills training batches; never seen at run time.
    pub pad: u32,
    /// Ends an answer.
    pub eos: u32,
    /// Opens an image segment.
    pub img: u32,
    /// Closes an image segment.
    pub img_end: u32,
    /// Opens a point cloud.
    pub pts: u32,
    /// Closes a point cloud.
    pub pts_end: u32,
    /// Opens a state segment.
    pub state: u32,
    /// Opens an action segment.
    pub act: u32,
    /// Opens a question.
    pub ask: u32,
    /// Opens an answer.
    pub ans: u32,
}

/// The image tokenizer: its picture, its code grid and the sizes of its network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// Width of the model's picture, in pixels.
    pub width: usize,
    /// Height of the model's picture, in pixels.
    pub height: usize,
    /// Rows and columns of the code grid.
    pub grid: [usize; 2],
    /// Length of a code book vector.
    pub code_dim: usize,
    /// Number of code book vectors.
    pub codebook_size: usize,
    /// Whether vectors are compared after L2 normalisation.
    pub l2_norm: bool,
    /// Channels after each stride-2 stage of the encoder.
    pub encoder_channels: [usize; 3],
    /// Channels of the decoder, from the code grid up.
    pub decoder_channels: [usize; 3],
    /// Hidden channels of a residual unit.
    pub res_hidden: usize,
    /// Residual units in the encoder, and in the decoder.
    pub n_res: usize,
    /// Subtracted from a pixel value of 0 to 255.
    pub mean: f32,
    /// Divides what is left.
    pub std: f32,
}

/// Robot state as bins: one per dimension, affine between `low` and `high`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateConfig {
    /// One name per dimension.
    pub names: Vec<String>,
    /// Value at the lower edge of bin 0 (the 1st percentile of the training data).
    pub low: Vec<f32>,
    /// Value at the upper edge of the last bin (the 99th percentile).
    pub high: Vec<f32>,
}

/// What an action value means to the robot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActionSemantics {
    /// A target in the robot's own frame.
    Absolute,
    /// An offset from the state at prediction time.
    Relative,
    /// An offset from the step before.
    Delta,
}

/// Robot actions as bins, and the chunk that one decoding step yields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionConfig {
    /// One name per dimension.
    pub names: Vec<String>,
    /// Value at the lower edge of bin 0.
    pub low: Vec<f32>,
    /// Value at the upper edge of the last bin.
    pub high: Vec<f32>,
    /// Steps in a predicted chunk.
    pub steps: usize,
    /// At most so many executed steps re-enter the context between two frames.
    pub executed: usize,
    /// What the values mean.
    pub semantics: ActionSemantics,
    /// Steps per second at which the robot executes them.
    pub rate_hz: f32,
}

/// Fixed texts of the conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatConfig {
    /// The question whose answer is a caption.
    pub caption: String,
    /// Appended to every question.
    pub question_suffix: String,
}

/// Defaults of text generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerationConfig {
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
}

/// A network: sizes, vocabulary and modalities. Trainers store it in their checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Which network this is.
    pub family: Family,
    /// Its name, as `/v1/models` shows it.
    pub name: String,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Decoder blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Inner width of the feed-forward network.
    pub d_ff: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Base of the rotary angles.
    pub rope_theta: f32,
    /// Added to the mean square in every RMSNorm.
    pub norm_eps: f32,
    /// Modalities in table order, with their windows.
    pub modalities: Vec<ModalityConfig>,
    /// Token ids by meaning.
    pub tokens: TokenRanges,
    /// Ids of the special tokens.
    pub special: SpecialTokens,
    /// Names of the task prefixes.
    pub tasks: Vec<String>,
    /// Learned vectors in each prefix.
    pub task_prefix_len: usize,
    /// The image tokenizer.
    pub image: ImageConfig,
    /// Robot state.
    pub state: StateConfig,
    /// Robot actions.
    pub action: ActionConfig,
    /// Fixed texts.
    pub chat: ChatConfig,
    /// Generation defaults.
    pub generation: GenerationConfig,
}

impl ModelConfig {
    /// Parses and checks a model description.
    ///
    /// # Errors
    /// [`ConfigError`] with the field and the reason.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let config: Self = serde_json::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    /// Number of codes in a picture.
    #[must_use]
    pub const fn image_codes(&self) -> usize {
        self.image.grid[0] * self.image.grid[1]
    }

    /// Number of values in an action chunk: steps × dimensions.
    #[must_use]
    pub fn chunk_len(&self) -> usize {
        self.action.steps * self.action.names.len()
    }

    /// How many segments of `modality` stay visible; `None` means all.
    #[must_use]
    pub fn window(&self, modality: Modality) -> Option<usize> {
        self.modalities.get(modality.index()).and_then(|m| m.window)
    }

    /// Checks every rule that the rest of the crate relies on.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with the field and the reason.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.check_sizes()?;
        self.check_vocabulary()?;
        self.check_modalities()?;
        self.check_image()?;
        check_bins("model.state", &self.state.names, &self.state.low, &self.state.high)?;
        check_bins("model.action", &self.action.names, &self.action.low, &self.action.high)?;
        within("model.action.steps", self.action.steps, 1, 64)?;
        within("model.action.executed", self.action.executed, 1, self.action.steps)?;
        if !(self.action.rate_hz > 0.0 && self.action.rate_hz.is_finite()) {
            return Err(invalid("model.action.rate_hz", "must be a positive number"));
        }
        within("model.generation.max_new_tokens", self.generation.max_new_tokens, 1, 65_536)
    }

    fn check_sizes(&self) -> Result<(), ConfigError> {
        within("model.d_model", self.d_model, 1, MAX_K)?;
        within("model.n_layers", self.n_layers, 1, 512)?;
        within("model.n_heads", self.n_heads, 1, 1024)?;
        within("model.n_kv_heads", self.n_kv_heads, 1, self.n_heads)?;
        within("model.head_dim", self.head_dim, 2, 1024)?;
        within("model.d_ff", self.d_ff, 1, MAX_K)?;
        within("model.vocab_size", self.vocab_size, 1, 1 << 24)?;
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(invalid(
                "model.n_kv_heads",
                format!("{} does not divide n_heads {}", self.n_kv_heads, self.n_heads),
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(invalid("model.head_dim", "must be even, since rotary pairs are its two halves"));
        }
        within("model.n_heads × head_dim", self.n_heads * self.head_dim, 1, MAX_K)?;
        if !(self.rope_theta > 1.0 && self.rope_theta.is_finite()) {
            return Err(invalid("model.rope_theta", "must be a number above 1"));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return Err(invalid("model.norm_eps", "must lie between 0 and 1"));
        }
        Ok(())
    }

    fn check_vocabulary(&self) -> Result<(), ConfigError> {
        let vocab = u32::try_from(self.vocab_size).unwrap_or(u32::MAX);
        let ranges = [
            ("model.tokens.text", self.tokens.text),
            ("model.tokens.bins", self.tokens.bins),
            ("model.tokens.image", self.tokens.image),
        ];
        for (field, [from, to]) in ranges {
            if from >= to || to > vocab {
                return Err(invalid(
                    field,
                    format!("[{from}, {to}) is empty or leaves the vocabulary of {vocab}"),
                ));
            }
        }
        for (i, (field, a)) in ranges.iter().enumerate() {
            if let Some((_, b)) = ranges[i + 1..].iter().find(|(_, b)| a[0] < b[1] && b[0] < a[1]) {
                return Err(invalid(field, format!("{a:?} overlaps {b:?}")));
            }
        }
        let s = &self.special;
        let special = [s.pad, s.eos, s.img, s.img_end, s.pts, s.pts_end, s.state, s.act, s.ask, s.ans];
        let [from, to] = self.tokens.text;
        for (i, id) in special.iter().enumerate() {
            if !(from..to).contains(id) || special[..i].contains(id) {
                return Err(invalid("model.special", format!("id {id} is used twice or is no text token")));
            }
        }
        within("model.tasks", self.tasks.len(), 1, 4096)?;
        within("model.task_prefix_len", self.task_prefix_len, 1, 64)
    }

    fn check_modalities(&self) -> Result<(), ConfigError> {
        if self.modalities.iter().map(|m| m.name).ne(Modality::ALL) {
            return Err(invalid("model.modalities", "must be text, image, state and action, in this order"));
        }
        for m in &self.modalities {
            match (m.name, m.window) {
                (Modality::Text, None) => {}
                (Modality::Text, Some(_)) => {
                    return Err(invalid("model.modalities", "text has no window: all of it stays visible"));
                }
                (_, Some(window)) => within("model.modalities.window", window, 1, 4096)?,
                (_, None) => {
                    return Err(invalid(
                        "model.modalities",
                        "every modality but text needs a window, so that memory is bounded",
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_image(&self) -> Result<(), ConfigError> {
        let image = &self.image;
        for (field, grid, pixels) in [
            ("model.image.height", image.grid[0], image.height),
            ("model.image.width", image.grid[1], image.width),
        ] {
            within(field, pixels, 8, 4096)?;
            if grid * 8 != pixels {
                return Err(invalid(field, format!("{pixels} is not 8 times the {grid} of the code grid")));
            }
        }
        within("model.image.code_dim", image.code_dim, 1, 4096)?;
        within("model.image.codebook_size", image.codebook_size, 1, 65_536)?;
        let [from, to] = self.tokens.image;
        if image.codebook_size != (to - from) as usize {
            return Err(invalid(
                "model.image.codebook_size",
                format!("{} codes, but {} image tokens", image.codebook_size, to - from),
            ));
        }
        for channels in image.encoder_channels.iter().chain(&image.decoder_channels) {
            within("model.image channels", *channels, 1, 4096)?;
        }
        within("model.image.res_hidden", image.res_hidden, 1, 4096)?;
        within("model.image.n_res", image.n_res, 0, 64)?;
        if !(image.mean.is_finite() && image.std.is_finite() && image.std > 0.0) {
            return Err(invalid("model.image.std", "mean and std must be numbers, std above 0"));
        }
        Ok(())
    }
}

fn within(field: &'static str, value: usize, low: usize, high: usize) -> Result<(), ConfigError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(invalid(field, format!("{value} is outside {low} to {high}")))
}

fn check_bins(field: &'static str, names: &[String], low: &[f32], high: &[f32]) -> Result<(), ConfigError> {
    within(field, names.len(), 1, 256)?;
    if low.len() != names.len() || high.len() != names.len() {
        return Err(invalid(
            field,
            format!("{} names, {} low and {} high values", names.len(), low.len(), high.len()),
        ));
    }
    for (low, high) in low.iter().zip(high) {
        if !(low.is_finite() && high.is_finite() && low < high) {
            return Err(invalid(field, format!("low {low} must be below high {high}")));
        }
    }
    Ok(())
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
            return Err(ConfigError::TooLarge { found: bytes.len(), limit: MAX_CONFIG_BYTES });
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
        let unhashed = Self { self_blake3: "0".repeat(HASH_DIGITS), ..self.clone() };
        let mut bytes = serde_json::to_vec_pretty(&unhashed)?;
        bytes.push(b'\n');
        let (at, hash) = self_hash(&bytes).ok_or(ConfigError::SelfHash)?;
        bytes[at..at + HASH_DIGITS].copy_from_slice(hash.as_bytes());
        Ok(bytes)
    }
}

/// The file that holds every weight of a bundle.
pub const WEIGHTS_FILE: &str = "weights.safetensors";
/// The text tokenizer of a bundle.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// The description of a bundle.
pub const CONFIG_FILE: &str = "saccade.json";

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

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;

/// The `nano` model of Saccade: the sizes that are shipped, trained and tested.
#[must_use]
pub fn nano() -> ModelConfig {
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    ModelConfig {
        family: Family::Unimodal,
        name: "nano".into(),
        d_model: 192,
        n_layers: 6,
        n_heads: 6,
        n_kv_heads: 2,
        head_dim: 32,
        d_ff: 512,
        vocab_size: 3392,
        rope_theta: 10_000.0,
        norm_eps: 1e-5,
        modalities: Modality::ALL
            .into_iter()
            .map(|name| ModalityConfig { name, window: (name != Modality::Text).then_some(4) })
            .collect(),
        tokens: TokenRanges { text: [0, 2112], bins: [2112, 2368], image: [2368, 3392] },
        special: SpecialTokens {
            pad: 0,
            eos: 1,
            img: 2,
            img_end: 3,
            pts: 4,
            pts_end: 5,
            state: 6,
            act: 7,
            ask: 8,
            ans: 9,
        },
        tasks: names(&["robot", "vqa", "text"]),
        task_prefix_len: 4,
        image: ImageConfig {
            width: 64,
            height: 64,
            grid: [8, 8],
            code_dim: 16,
            codebook_size: 1024,
            l2_norm: false,
            encoder_channels: [32, 64, 96],
            decoder_channels: [96, 64, 32],
            res_hidden: 48,
            n_res: 2,
            mean: 127.5,
            std: 127.5,
        },
        state: StateConfig {
            names: names(&["hand_x", "hand_y", "hand_z", "gripper"]),
            low: vec![-1.0; 4],
            high: vec![1.0; 4],
        },
        action: ActionConfig {
            names: names(&["dx", "dy", "dz", "gripper"]),
            low: vec![-1.0; 4],
            high: vec![1.0; 4],
            steps: 8,
            executed: 4,
            semantics: ActionSemantics::Delta,
            rate_hz: 20.0,
        },
        chat: ChatConfig { caption: "what is happening?".into(), question_suffix: String::new() },
        generation: GenerationConfig { max_new_tokens: 64 },
    }
}
