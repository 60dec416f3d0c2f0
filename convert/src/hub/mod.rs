//! Folders of the hub's layout: `config.json`, `*.safetensors`, `tokenizer.json` and what stands beside them.
//!
//! Each architecture is a file here: its fields of `config.json`, and its names for the tensors that
//! [`saccade::family::tensors`] lists.

mod chameleon;
mod deepseek;
mod emu3;
mod janus;
mod layout;
mod llama;
mod names;
mod pixels;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use saccade::config::{ChatTemplate, ModelConfig};
use saccade::format::{Rules, read_file_header};
use saccade::tokenize::TextTokenizer;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::checkpoint::{Checkpoint, config_reason};
use crate::error::{ConvertError, Result, io};
use crate::pieces::PieceModel;
use layout::Layout;

/// Longest accepted JSON file beside the weights: an index of the largest models has half a megabyte.
const MAX_JSON_BYTES: u64 = 16 << 20;
/// Longest accepted `tokenizer.json`.
const MAX_TOKENIZER_BYTES: u64 = 128 << 20;
/// What `max_new_tokens` is where a checkpoint does not say, as far as its positions allow.
pub(crate) const MAX_NEW_TOKENS: usize = 1024;
/// What can be converted, by `model_type`.
const KNOWN: &str = "anole, chameleon, emu3, janus, llama, mistral, multi_modality (DeepSeek's own layout of Janus), qwen2, qwen3";

/// The file of SentencePiece, which folders of models of its time have, some of them alone.
const PIECES: &str = "tokenizer.model";
/// Lists which tensor lies in which file.
const INDEX: &str = "model.safetensors.index.json";

const AGAIN: &str = "download the folder again";

/// A folder while it is being read.
struct Folder<'a> {
    path: &'a Path,
    /// What a model made of it is called.
    name: String,
    config: Map<String, Value>,
    generation: Generation,
    /// What `tokenizer_config.json` says.
    words: Words,
}

/// `generation_config.json`, as far as it is used.
#[derive(Debug, Default, Deserialize)]
struct Generation {
    eos_token_id: Option<OneOrMany>,
    max_new_tokens: Option<usize>,
}

/// `tokenizer_config.json`, as far as it is used.
#[derive(Debug, Default, Deserialize)]
struct Words {
    bos_token: Option<Word>,
    eos_token: Option<Word>,
    pad_token: Option<Word>,
    chat_template: Option<String>,
    add_bos_token: Option<bool>,
    boi_token: Option<Word>,
    eoi_token: Option<Word>,
    eof_token: Option<Word>,
    image_wrapper_token: Option<Word>,
    sep_token: Option<Word>,
}

/// A special token: its spelling, or an object that has it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Word {
    Plain(String),
    Object { content: String },
}

impl Word {
    fn text(&self) -> &str {
        match self {
            Self::Plain(text) | Self::Object { content: text } => text,
        }
    }
}

/// An id, or a few.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    fn ids(&self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![*id],
            Self::Many(ids) => ids.clone(),
        }
    }
}

/// Ids by the spelling of tokens.
type Vocabulary = BTreeMap<String, u32>;

/// The vocabulary of the folder's `tokenizer.json`, special tokens included; nothing where there is none, as when a conversion is planned.
fn vocabulary(folder: &Folder<'_>) -> Result<Vocabulary> {
    #[derive(Deserialize)]
    struct Tokenizer {
        #[serde(default)]
        added_tokens: Vec<Added>,
        model: Model,
    }
    #[derive(Deserialize)]
    struct Added {
        id: u32,
        content: String,
    }
    #[derive(Deserialize)]
    struct Model {
        #[serde(default)]
        vocab: Value,
    }
    let path = folder.path.join("tokenizer.json");
    if !path.exists() {
        return Ok(Vocabulary::new());
    }
    let text = read_text(&path, MAX_TOKENIZER_BYTES)?;
    let Tokenizer { added_tokens, model } =
        serde_json::from_str(&text).map_err(|error| refuse(&path, format!("{error}; {AGAIN}")))?;
    let mut all = Vocabulary::new();
    for (token, id) in model.vocab.as_object().into_iter().flatten() {
        if let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) {
            all.insert(token.clone(), id);
        }
    }
    all.extend(added_tokens.into_iter().map(|token| (token.content, token.id)));
    Ok(all)
}

/// Opens a folder of the hub's layout; unless it must be `whole`, weights and tokenizer may be missing where there is an index.
///
/// # Errors
/// [`ConvertError`]: a file that is missing or cannot be used, an architecture that is not known, a tensor that does not fit.
pub(crate) fn open(path: &Path, whole: bool) -> Result<Checkpoint> {
    let config = path.join("config.json");
    if !config.exists() {
        let reason = "the folder has no config.json; name a folder of the hub's layout, a .gguf file, or the .safetensors file that \
                      saccade-train writes";
        return Err(refuse(path, reason.into()));
    }
    let config: Map<String, Value> = read_json(&config)?;
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("none").to_owned();
    let resolved = path.canonicalize().map_err(io(path))?;
    let folder = Folder {
        path,
        name: resolved.file_name().map_or_else(|| kind.clone(), |name| name.to_string_lossy().into_owned()),
        config,
        generation: read_json_if_there(&path.join("generation_config.json"))?,
        words: read_json_if_there(&path.join("tokenizer_config.json"))?,
    };
    let (model, layout): (_, Layout) = match kind.as_str() {
        "llama" | "mistral" | "qwen2" | "qwen3" => {
            (ModelConfig::Llama(llama::kin(&folder, &kind)?), Layout::of(llama::name))
        }
        "chameleon" | "anole" => (chameleon::model(&folder)?, Layout::of(chameleon::name)),
        "emu3" => (emu3::model(&folder)?, Layout::of(emu3::name)),
        "janus" => (janus::model(&folder)?, Layout::of(janus::name)),
        "multi_modality" => {
            (deepseek::model(folder)?, Layout { name: deepseek::name, left_out: &deepseek::LEFT_OUT })
        }
        "Emu3" | "Emu3VisionVQ" => {
            let reason = "it is of BAAI's own layout, which has language model, code book and tokenizer in separate forms; take the folder \
                          that transformers reads (`model_type` emu3, on the hub with -hf behind its name)";
            return Err(folder.refused(reason.into()));
        }
        other => {
            let reason = format!(
                "its model_type is `{}`, which cannot be converted; these can: {KNOWN}",
                other.escape_debug()
            );
            return Err(refuse(&path.join("config.json"), reason));
        }
    };
    model.check().map_err(|error| refuse(&path.join("config.json"), config_reason(&error)))?;
    if !whole && shards(path).is_err() {
        let Index { weight_map } = read_json(&path.join(INDEX))?;
        let names = weight_map.into_keys().flat_map(|theirs| layout.ours(theirs, &model)).collect();
        return Checkpoint::planned(path, &names, model, AGAIN);
    }
    let tokenizer = tokenizer(path)?;
    TextTokenizer::from_bytes(tokenizer.as_bytes(), &model)
        .map_err(|reason| refuse(&path.join("tokenizer.json"), reason))?;
    let values = layout.weights(&shards(path)?, &model)?;
    let mut provenance = Map::new();
    provenance.insert("source".into(), json!("hub folder"));
    provenance.insert("model_type".into(), json!(kind));
    Checkpoint::of(path, values, model, tokenizer, provenance, AGAIN)
}

/// The folder's `tokenizer.json`, or what its `tokenizer.model` says as one.
fn tokenizer(path: &Path) -> Result<String> {
    let (file, model) = (path.join("tokenizer.json"), path.join(PIECES));
    if file.exists() || !model.exists() {
        return read_text(&file, MAX_TOKENIZER_BYTES);
    }
    let added = path.join("added_tokens.json");
    if added.exists() {
        let reason = "it adds tokens to those of tokenizer.model, which is not supported; save the tokenizer as tokenizer.json with \
                      transformers";
        return Err(refuse(&added, reason.into()));
    }
    let pieces = PieceModel::read(&read_bytes(&model, MAX_TOKENIZER_BYTES)?)
        .map_err(|reason| refuse(&model, reason))?;
    pieces
        .pieces()
        .tokenizer_json()
        .map_err(|reason| refuse(&model, format!("the tokenizer's {reason}; {AGAIN}")))
}

/// `model.safetensors.index.json`, as far as it is used.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The weight files: the one, or those that the index lists.
fn shards(path: &Path) -> Result<Vec<PathBuf>> {
    let (one, index) = (path.join("model.safetensors"), path.join(INDEX));
    if !index.exists() {
        if one.exists() {
            return Ok(vec![one]);
        }
        let reason = "it has neither model.safetensors nor model.safetensors.index.json; files of other formats (.bin, .pth) \
                      have to be saved as safetensors first";
        return Err(refuse(path, reason.into()));
    }
    let Index { weight_map } = read_json(&index)?;
    let names: BTreeSet<String> = weight_map.into_values().collect();
    let mut shards = Vec::new();
    for name in names {
        if name.contains(['/', '\\']) || name.starts_with('.') {
            return Err(refuse(&index, format!("`{}` is no plain file name; {AGAIN}", name.escape_debug())));
        }
        let shard = path.join(&name);
        if !shard.is_file() {
            return Err(refuse(&shard, format!("it is missing, and the index lists it; {AGAIN}")));
        }
        shards.push(shard);
    }
    Ok(shards)
}

impl Folder<'_> {
    /// A field of `config.json`, or of one of its objects.
    fn field<T: DeserializeOwned>(&self, object: &Map<String, Value>, key: &str) -> Result<Option<T>> {
        match object.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value).map(Some).map_err(|error| {
                refuse(&self.path.join("config.json"), format!("field `{key}`: {error}; {AGAIN}"))
            }),
        }
    }

    /// The same of a field that must be there.
    fn required<T: DeserializeOwned>(&self, object: &Map<String, Value>, key: &str) -> Result<T> {
        self.field(object, key)?.ok_or_else(|| {
            refuse(&self.path.join("config.json"), format!("field `{key}` is missing; {AGAIN}"))
        })
    }

    /// Whether the weights have tensors whose names begin so.
    fn has_tensor(&self, prefix: &str) -> Result<bool> {
        let (one, index) = (self.path.join("model.safetensors"), self.path.join(INDEX));
        if index.exists() {
            let Index { weight_map } = read_json(&index)?;
            return Ok(weight_map.keys().any(|name| name.starts_with(prefix)));
        }
        // Whoever reads the weights says that they are missing.
        if !one.exists() {
            return Ok(false);
        }
        let header = read_file_header(&one, Rules::Foreign)?;
        Ok(header.tensors.iter().any(|tensor| tensor.name.starts_with(prefix)))
    }

    /// Something in `config.json` that cannot be converted.
    fn refused(&self, reason: String) -> ConvertError {
        refuse(&self.path.join("config.json"), reason)
    }

    /// The id of a token in `vocabulary_map`; `what` it is.
    fn token(&self, vocabulary: &BTreeMap<String, u32>, what: &str, name: &str) -> Result<u32> {
        vocabulary.get(name).copied().ok_or_else(|| {
            self.refused(format!("`vocabulary_map` has no `{}`, the {what}", name.escape_debug()))
        })
    }

    /// The token of each of `codes` codes; `code` says which one a name stands for, or none for names of other tokens.
    fn code_ids(
        &self,
        vocabulary: &BTreeMap<String, u32>,
        codes: usize,
        code: impl Fn(&str) -> Option<Option<usize>>,
    ) -> Result<Vec<u32>> {
        if codes > vocabulary.len() {
            let names = vocabulary.len();
            return Err(
                self.refused(format!("`vocabulary_map` has {names} names, too few for {codes} codes"))
            );
        }
        let mut ids = vec![None; codes];
        for (name, &id) in vocabulary {
            let Some(code) = code(name) else { continue };
            match code.and_then(|code| ids.get_mut(code)) {
                Some(place) => *place = Some(id),
                None => {
                    let name = name.escape_debug();
                    return Err(self.refused(format!("`vocabulary_map`: `{name}` is none of {codes} codes")));
                }
            }
        }
        match ids.iter().position(Option::is_none) {
            Some(code) => {
                Err(self.refused(format!("`vocabulary_map` has no token for code {code} of {codes}")))
            }
            None => Ok(ids.into_iter().flatten().collect()),
        }
    }

    /// The chat template: a file of its own, or a field of `tokenizer_config.json`.
    fn chat(&self) -> Result<Option<ChatTemplate>> {
        let file = self.path.join("chat_template.jinja");
        let template = match file.exists() {
            true => Some(read_text(&file, MAX_JSON_BYTES)?),
            false => self.words.chat_template.clone(),
        };
        let word =
            |word: &Option<Word>| word.as_ref().map_or_else(String::new, |word| word.text().to_owned());
        Ok(template.map(|template| ChatTemplate {
            template,
            bos_token: word(&self.words.bos_token),
            eos_token: word(&self.words.eos_token),
        }))
    }
}

fn refuse(path: &Path, reason: String) -> ConvertError {
    ConvertError::Refused { path: path.into(), reason }
}

fn read_text(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(read_bytes(path, limit)?).map_err(|_| refuse(path, format!("it is no text; {AGAIN}")))
}

fn read_bytes(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(io(path))?;
    let found = file.metadata().map_err(io(path))?;
    if !found.is_file() {
        return Err(refuse(path, format!("it is no regular file; {AGAIN}")));
    }
    if found.len() > limit {
        return Err(refuse(path, format!("it has {} bytes, at most {limit} are read; {AGAIN}", found.len())));
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).map_err(io(path))?;
    Ok(bytes)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = read_text(path, MAX_JSON_BYTES)?;
    serde_json::from_str(&text).map_err(|error| refuse(path, format!("{error}; {AGAIN}")))
}

fn read_json_if_there<T: DeserializeOwned + Default>(path: &Path) -> Result<T> {
    if path.exists() { read_json(path) } else { Ok(T::default()) }
}
