//! What travels between a connection and the inference thread.

use std::time::Instant;

use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::admit::Prompt;
use crate::draw::Drawn;
use crate::error::ApiError;

/// Requests that may wait for the engine; the next one is told to come back.
pub(crate) const QUEUE_LEN: usize = 8;

/// An admitted request on its way to the inference thread.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) prompt: Prompt,
    /// Room for every event that the prompt can cause, so that the engine never waits for a slow reader.
    pub(crate) reply: mpsc::Sender<Event>,
    pub(crate) queued: Instant,
    /// The request's share of the memory for bodies, given back when the job is dropped.
    pub(crate) _memory: OwnedSemaphorePermit,
}

impl Job {
    /// The events that a prompt can cause: one per token, one at the end, and one to spare.
    pub(crate) fn replies(prompt: &Prompt) -> (mpsc::Sender<Event>, mpsc::Receiver<Event>) {
        mpsc::channel(prompt.max_new + 2)
    }
}

/// What the inference thread has to say of a job.
#[derive(Debug)]
pub(crate) enum Event {
    /// More of the answer.
    Text(String),
    /// The answer is complete.
    Done(Done),
    /// The picture is drawn.
    Drawn(Drawn),
    /// There will be no answer.
    Failed(ApiError),
}

/// The end of an answer.
#[derive(Debug, Clone)]
pub(crate) struct Done {
    pub(crate) finish: Finish,
    /// Tokens that the model read: task prefix, pictures, text.
    pub(crate) prompt_tokens: usize,
    /// Those of them whose keys and values an earlier request had left.
    pub(crate) cached_tokens: usize,
    /// Tokens that it wrote, the end token included.
    pub(crate) completion_tokens: usize,
    pub(crate) timings: Timings,
}

/// Why an answer ended, in OpenAI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Finish {
    /// The model ended it, or a stop string did.
    Stop,
    /// The token limit did.
    Length,
}

/// Where the time of a request went, in milliseconds.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Timings {
    /// From admission to the inference thread.
    pub(crate) queue_ms: f64,
    /// Decoding the pictures.
    pub(crate) preprocess_ms: f64,
    /// Turning pictures into codes, or codes into a picture.
    pub(crate) vision_ms: f64,
    /// Reading instruction and pictures, up to the first token of the answer.
    pub(crate) prefill_ms: f64,
    /// From the first token of the answer to the last.
    pub(crate) decode_ms: f64,
    /// Tokens of the answer per second of decoding.
    pub(crate) tokens_per_s: f64,
}
