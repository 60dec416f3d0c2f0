//! Language models of the Llama kind: text in, text out.

use serde::{Deserialize, Serialize};

use super::{DecoderConfig, GenerationConfig};

/// A language model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlamaConfig {
    /// Its name, as `/v1/models` shows it.
    pub name: String,
    /// Sizes and options.
    pub decoder: DecoderConfig,
    /// Longest sequence that it was trained for, in tokens.
    pub max_positions: usize,
    /// Put before every text, if there is one.
    pub bos: Option<u32>,
    /// Ids that end an answer.
    pub end_ids: Vec<u32>,
    /// How a conversation becomes text; without one the last message is continued.
    pub chat: Option<ChatTemplate>,
    /// Generation defaults.
    pub generation: GenerationConfig,
}

/// How a conversation becomes text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatTemplate {
    /// Jinja, as on the hub.
    pub template: String,
    /// What the template calls `bos_token`.
    pub bos_token: String,
    /// What the template calls `eos_token`.
    pub eos_token: String,
}
