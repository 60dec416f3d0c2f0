//! Admission: the one function that decides whether a request may cost the engine anything.
//!
//! Every way in (today HTTP) calls [`admit`] before a request is queued. What comes out has been bounded in every
//! number and every length; what does not come out has cost no more than its own bytes.

use saccade::engine::DeviceReport;
use saccade::sample::{Sampler, SamplerOptions};
use saccade::tokenize::Message;
use serde_json::Number;

use crate::draw::Sketch;
use crate::error::ApiError;
use crate::picture::Picture;
use crate::turns;
use crate::wire::ChatRequest;

/// The longest stop string, in bytes.
const MAX_STOP_BYTES: usize = 256;
/// The largest `max_tokens` that is a number and not a mistake; the model's own limit then applies silently.
const MAX_MAX_TOKENS: u64 = 1 << 20;

/// What a request is judged by: facts of the model that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Served {
    /// The model's name; `name` and `name:task` are what clients may ask for.
    pub(crate) name: String,
    /// Whether it takes a conversation, and not one question about pictures.
    pub(crate) talks: bool,
    /// Whether it draws.
    pub(crate) draws: bool,
    /// Names of the tasks.
    pub(crate) tasks: Vec<String>,
    /// Pictures that the model sees at once.
    pub(crate) max_pictures: usize,
    /// Tokens of an answer when the request does not say, and at most.
    pub(crate) max_new_tokens: usize,
    /// The question of a request that has none.
    pub(crate) caption: String,
    /// The kernel set in use.
    pub(crate) kernels: String,
    /// What the decoder runs on, and why.
    pub(crate) device: DeviceReport,
    /// Threads of the engine.
    pub(crate) threads: usize,
    /// When the model was ready, in seconds since 1970.
    pub(crate) created: u64,
}

impl Served {
    /// Every model id that a client may ask for.
    pub(crate) fn ids(&self) -> Vec<String> {
        let tasks = self.tasks.iter().map(|task| format!("{}:{task}", self.name));
        std::iter::once(self.name.clone()).chain(tasks).collect()
    }
}

/// A request that may cost something.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) prompt: Prompt,
    /// The id under which the client asked, and is answered.
    pub(crate) model: String,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
}

/// What a model can be asked.
#[derive(Debug)]
pub(crate) enum Asks {
    /// One question about pictures.
    Look(Look),
    /// The next turn of a conversation, with the pictures that are shown in it, oldest first.
    Talk(Vec<Message>, Vec<Picture>),
    /// A picture of what is said.
    Draw(Sketch),
}

/// One question about pictures, as Saccade's own family takes it.
#[derive(Debug, Default)]
pub(crate) struct Look {
    pub(crate) task: String,
    /// Text of the system messages: the instruction of the task.
    pub(crate) instruction: String,
    /// Oldest first.
    pub(crate) pictures: Vec<Picture>,
    pub(crate) question: String,
}

/// What the inference thread is asked to do.
#[derive(Debug)]
pub(crate) struct Prompt {
    pub(crate) asks: Asks,
    pub(crate) max_new: usize,
    pub(crate) stop: Vec<String>,
    sampling: SamplerOptions,
}

impl Prompt {
    /// A picture, which comes as one event.
    pub(crate) fn drawing(sketch: Sketch) -> Self {
        let sampling = SamplerOptions::default();
        Self { asks: Asks::Draw(sketch), max_new: 0, stop: Vec::new(), sampling }
    }

    /// How tokens are picked: the likeliest unless the request has a temperature.
    pub(crate) fn sampler(&self) -> Sampler {
        Sampler::new(self.sampling)
    }
}

/// Judges one chat-completion body.
///
/// # Errors
/// 4xx with the parameter and the rule that it breaks.
pub(crate) fn admit(body: &[u8], served: &Served) -> Result<Admitted, ApiError> {
    let request: ChatRequest = serde_json::from_slice(body).map_err(|error| {
        let reason: String = error.to_string().chars().take(200).collect();
        ApiError::unreadable(format!("the body is no chat-completion request: {reason}"))
    })?;
    let (model, task) = choose_model(request.model.as_deref(), served)?;
    let sampling = sampling(&request)?;
    let max_new = max_new(&request, served)?;
    let stop = request.stop.map_or_else(Vec::new, |stops| stops.0);
    if stop.iter().any(|s| s.is_empty() || s.len() > MAX_STOP_BYTES) {
        let message = format!("a stop string has between 1 and {MAX_STOP_BYTES} bytes");
        return Err(ApiError::invalid("stop", message));
    }
    if let Some(format) = &request.response_format
        && format.kind != "text"
    {
        return Err(ApiError::invalid("response_format", "this model answers in plain text: ask for `text`"));
    }
    let asks = if served.talks {
        let (messages, pictures) = turns::conversation(&request.messages.0, served)?;
        Asks::Talk(messages, pictures)
    } else {
        let mut look = turns::look(&request.messages.0, served)?;
        look.task = task.or_else(|| default_task(served, !look.pictures.is_empty())).unwrap_or_default();
        Asks::Look(look)
    };
    Ok(Admitted {
        prompt: Prompt { asks, max_new, stop, sampling },
        model,
        stream: request.stream.unwrap_or(false),
        include_usage: request.stream_options.and_then(|o| o.include_usage).unwrap_or(false),
    })
}

/// The id to answer under, and the task if the id names one.
pub(crate) fn choose_model(
    asked: Option<&str>,
    served: &Served,
) -> Result<(String, Option<String>), ApiError> {
    let Some(asked) = asked.filter(|id| !id.is_empty()) else { return Ok((served.name.clone(), None)) };
    if asked == served.name {
        return Ok((asked.into(), None));
    }
    let task = asked.strip_prefix(&*served.name).and_then(|rest| rest.strip_prefix(':'));
    match task.filter(|task| served.tasks.iter().any(|known| known == task)) {
        Some(task) => Ok((asked.into(), Some(task.into()))),
        None => Err(ApiError::unknown_model(asked, &served.ids())),
    }
}

/// Pictures without another word are frames (the first task); text alone is for the last one.
fn default_task(served: &Served, has_pictures: bool) -> Option<String> {
    if has_pictures { served.tasks.first().cloned() } else { served.tasks.last().cloned() }
}

fn max_new(request: &ChatRequest, served: &Served) -> Result<usize, ApiError> {
    let fields =
        [("max_completion_tokens", &request.max_completion_tokens), ("max_tokens", &request.max_tokens)];
    let mut asked = None;
    for (param, number) in fields {
        if let Some(number) = number {
            let value = whole(param, number, 1, MAX_MAX_TOKENS)?;
            asked = asked.or(Some(value));
        }
    }
    let asked = asked.map_or(served.max_new_tokens, |value| usize::try_from(value).unwrap_or(usize::MAX));
    Ok(asked.min(served.max_new_tokens))
}

/// How to sample; a request without a temperature gets the likeliest tokens, as a robot should.
fn sampling(request: &ChatRequest) -> Result<SamplerOptions, ApiError> {
    if let Some(n) = &request.n {
        whole("n", n, 1, 1)?;
    }
    let seed = seed(request.seed.as_ref())?;
    let top_p = within("top_p", request.top_p.as_ref(), 1.0)?.unwrap_or(1.0);
    let temperature = within("temperature", request.temperature.as_ref(), 2.0)?.unwrap_or(0.0);
    #[allow(clippy::cast_possible_truncation, reason = "between 0 and 2")]
    Ok(SamplerOptions { temperature: temperature as f32, top_p: top_p as f32, seed, ..Default::default() })
}

/// What makes the draws repeatable: any 64 bits will do.
pub(crate) fn seed(number: Option<&Number>) -> Result<u64, ApiError> {
    let Some(number) = number else { return Ok(0) };
    let bits = number.as_u64().or_else(|| number.as_i64().map(i64::cast_unsigned));
    bits.ok_or_else(|| ApiError::invalid("seed", "`seed` must be a whole number of 64 bits"))
}

/// A number from 0 to `high`.
fn within(param: &str, number: Option<&Number>, high: f64) -> Result<Option<f64>, ApiError> {
    let value = number.and_then(Number::as_f64);
    if value.is_some_and(|value| !(0.0..=high).contains(&value)) {
        return Err(ApiError::invalid(param, format!("`{param}` must lie between 0 and {high}")));
    }
    Ok(value)
}

/// A whole number within bounds; `8.0` is one too, as JSON has no other way to say so in some clients.
pub(crate) fn whole(param: &str, number: &Number, low: u64, high: u64) -> Result<u64, ApiError> {
    let exact = number.as_u64().or_else(|| {
        let value = number.as_f64()?;
        // Below 2^53 every whole f64 is exact, so the cast is too.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        (value.fract() == 0.0 && (0.0..9e15).contains(&value)).then_some(value as u64)
    });
    exact.filter(|value| (low..=high).contains(value)).ok_or_else(|| {
        let message = if low == high {
            format!("`{param}` must be {low}")
        } else {
            format!("`{param}` must be a whole number between {low} and {high}")
        };
        ApiError::invalid(param, message)
    })
}

#[cfg(test)]
#[path = "admit_tests.rs"]
mod tests;
