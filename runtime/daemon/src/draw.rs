//! `/v1/images/generations`: a description in, a PNG out, for models that draw.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::ImageEncoder as _;
use image::codecs::png::PngEncoder;
use saccade::Error;
use saccade::family::Model;
use saccade::session::{self, Session, SessionError, SessionOptions};
use saccade::tokenize::{DrawPrompt, painted};
use serde::Deserialize;
use serde_json::{Number, json};
use tokio::sync::mpsc::Receiver;

use crate::admit::{self, Admitted, Prompt, Served};
use crate::app::unix_s;
use crate::error::ApiError;
use crate::infer::ms;
use crate::job::{Event, Job, Timings};
use crate::metrics::Metrics;
use crate::turns::MAX_TEXT_BYTES;
use crate::wire::Text;

/// The longest side that is a number and not a mistake, in pixels; the model's own limits come on top.
const MAX_SIDE_PX: usize = 65_535;

/// The body of `POST /v1/images/generations`.
#[derive(Debug, Deserialize)]
struct ImageRequest<'a> {
    #[serde(borrow)]
    prompt: Option<Text<'a>>,
    /// As other servers of pictures have it; OpenAI's has none.
    #[serde(borrow)]
    negative_prompt: Option<Text<'a>>,
    model: Option<String>,
    n: Option<Number>,
    size: Option<String>,
    response_format: Option<String>,
    output_format: Option<String>,
    seed: Option<Number>,
    stream: Option<bool>,
}

/// What is to be drawn.
#[derive(Debug)]
pub(crate) struct Sketch {
    words: String,
    avoid: Option<String>,
    size_px: Option<[usize; 2]>,
    seed: u64,
}

/// A picture that was drawn, and what it took.
#[derive(Debug)]
pub(crate) struct Drawn {
    png: Vec<u8>,
    prompt_tokens: usize,
    codes: usize,
    timings: Timings,
}

/// Judges one body.
///
/// # Errors
/// 4xx with the parameter and the rule that it breaks.
pub(crate) fn admit(body: &[u8], served: &Served) -> Result<Admitted, ApiError> {
    let request: ImageRequest<'_> = serde_json::from_slice(body).map_err(|error| {
        let reason: String = error.to_string().chars().take(200).collect();
        ApiError::unreadable(format!("the body is no request for a picture: {reason}"))
    })?;
    let (model, _) = admit::choose_model(request.model.as_deref(), served)?;
    if !served.draws {
        let message = format!("`{model}` does not draw: serve a model that does (Janus, Emu3, Anole)");
        return Err(ApiError::invalid("model", message));
    }
    if let Some(n) = &request.n {
        admit::whole("n", n, 1, 1)?;
    }
    for (param, asked, known) in [
        ("response_format", &request.response_format, "b64_json"),
        ("output_format", &request.output_format, "png"),
    ] {
        if asked.as_ref().is_some_and(|asked| asked != known) {
            return Err(ApiError::invalid(
                param,
                format!("pictures are sent as `{known}` alone: ask for that"),
            ));
        }
    }
    if request.stream == Some(true) {
        return Err(ApiError::invalid("stream", "pictures are sent whole: leave `stream` out"));
    }
    let words = |text: Option<Text<'_>>| text.map(|text| text.0.trim().to_owned());
    let (prompt, avoid) = (words(request.prompt).unwrap_or_default(), words(request.negative_prompt));
    if prompt.is_empty() {
        return Err(ApiError::invalid("prompt", "`prompt` is empty: say what to draw"));
    }
    if prompt.len() + avoid.as_ref().map_or(0, String::len) > MAX_TEXT_BYTES {
        let message = format!("the text is longer than {MAX_TEXT_BYTES} bytes: shorten it");
        return Err(ApiError::invalid("prompt", message));
    }
    let size_px = request.size.as_deref().filter(|size| *size != "auto").map(size).transpose()?;
    let seed = admit::seed(request.seed.as_ref())?;
    let prompt = Prompt::drawing(Sketch { words: prompt, avoid, size_px, seed });
    Ok(Admitted { prompt, model, stream: false, include_usage: false })
}

/// `WIDTHxHEIGHT` as height and width.
fn size(text: &str) -> Result<[usize; 2], ApiError> {
    let side = |text: &str| text.parse().ok().filter(|side| (1..=MAX_SIDE_PX).contains(side));
    let sides = text.split_once('x').and_then(|(width, height)| Some([side(height)?, side(width)?]));
    sides.ok_or_else(|| ApiError::invalid("size", "`size` is `auto` or two numbers, as in `720x720`"))
}

/// Draws; nothing if the client left. The two sequences last as long as the picture.
///
/// # Errors
/// What of the request does not fit the model; 500 if the model fails.
pub(crate) fn run(
    model: &Arc<Model>,
    sketch: &Sketch,
    job: &Job,
    mut timings: Timings,
    metrics: &Metrics,
) -> Result<Option<Event>, ApiError> {
    let start = Instant::now();
    let mut prompt = DrawPrompt::new(model, &sketch.words, sketch.avoid.as_deref(), sketch.size_px)
        .map_err(|error| refuse(&error))?;
    prompt.sampling.seed = sketch.seed;
    let options = SessionOptions { max_text_tokens: prompt.tokens(), max_sequences: 2 };
    let session = || Session::new(model, &options).map_err(|error| refuse(&error));
    let (mut guided, mut free) = (session()?, session()?);
    let (mut codes, mut first) = (Vec::new(), None);
    session::draw(&mut guided, &mut free, &prompt, &mut codes, &mut |_| {
        first.get_or_insert_with(|| {
            metrics.time_to_first_token_s.observe(job.queued.elapsed().as_secs_f64());
            Instant::now()
        });
        !job.reply.is_closed()
    })
    .map_err(|error| refuse(&error))?;
    let prompt_tokens = prompt.guided.len() + prompt.free.len();
    metrics.prompt_tokens.inc_by(prompt_tokens as u64);
    metrics.generated_tokens.inc_by(codes.len() as u64);
    if job.reply.is_closed() {
        return Ok(None);
    }
    let (now, first) = (Instant::now(), first.unwrap_or(start));
    let picture = painted(model, &codes, prompt.grid).map_err(|error| refuse(&error))?;
    let mut png = Vec::new();
    let side = |px: usize| u32::try_from(px).unwrap_or(u32::MAX);
    PngEncoder::new(&mut png)
        .write_image(&picture.rgb, side(picture.width), side(picture.height), image::ExtendedColorType::Rgb8)
        .map_err(|error| {
            log::error!("a picture could not be written as PNG: {error}");
            ApiError::engine()
        })?;
    timings.prefill_ms = ms(first - start);
    timings.decode_ms = ms(now - first);
    timings.vision_ms = ms(now.elapsed());
    #[allow(clippy::cast_precision_loss, reason = "a picture has some thousand codes")]
    let later = codes.len().saturating_sub(1) as f64;
    timings.tokens_per_s = if timings.decode_ms > 0.0 { later / timings.decode_ms * 1e3 } else { 0.0 };
    Ok(Some(Event::Drawn(Drawn { png, prompt_tokens, codes: codes.len(), timings })))
}

/// Waits for the picture.
///
/// # Errors
/// What the engine refused; 500 if it went away.
pub(crate) async fn answer(mut events: Receiver<Event>) -> Result<Response, ApiError> {
    match events.recv().await {
        Some(Event::Drawn(Drawn { png, prompt_tokens, codes, timings })) => Ok(Json(json!({
            "created": unix_s(),
            "output_format": "png",
            "data": [{"b64_json": STANDARD.encode(png)}],
            "usage": {"input_tokens": prompt_tokens, "output_tokens": codes, "total_tokens": prompt_tokens + codes},
            "timings": timings,
        }))
        .into_response()),
        Some(Event::Failed(error)) => Err(error),
        Some(Event::Text(_) | Event::Done(_)) | None => Err(ApiError::engine()),
    }
}

/// A refusal of the runtime as one of ours.
fn refuse(error: &Error) -> ApiError {
    match error {
        Error::Session(error @ (SessionError::PictureSize { .. } | SessionError::Drawing { .. })) => {
            ApiError::invalid("size", error.to_string())
        }
        Error::Session(error @ SessionError::Avoid) => {
            ApiError::invalid("negative_prompt", error.to_string())
        }
        Error::Session(error @ SessionError::Text(_)) => ApiError::invalid("prompt", error.to_string()),
        Error::Memory { .. } => ApiError::invalid("size", format!("{error}, or ask for a smaller `size`")),
        _ => ApiError::of_model("a drawing", error),
    }
}

#[cfg(test)]
mod tests {
    use saccade::config::WeightDtype;
    use saccade::engine::EngineOptions;
    use saccade_convert::bundle::convert;
    use saccade_convert::checkpoint::Checkpoint;
    use saccade_convert::progress::Progress;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::admit::Asks;

    fn served(draws: bool) -> Served {
        Served {
            name: "tiny".into(),
            talks: true,
            draws,
            tasks: Vec::new(),
            max_pictures: 0,
            max_new_tokens: 16,
            caption: String::new(),
            kernels: "scalar".into(),
            device: saccade::engine::DeviceReport::cpu("scalar", "asked for"),
            threads: 1,
            created: 1,
        }
    }

    #[test]
    fn what_openai_clients_send_is_admitted() {
        for body in [
            r#"{"prompt": "a house"}"#,
            r#"{"prompt": "a house", "model": "tiny", "n": 1, "size": "auto", "response_format": "b64_json", "user": "x"}"#,
            r#"{"prompt": "ein Häuschen", "size": "640x480", "seed": -1, "output_format": "png", "quality": "high"}"#,
        ] {
            assert!(admit(body.as_bytes(), &served(true)).is_ok(), "{body}");
        }
        assert_eq!(size("640x480").unwrap(), [480, 640]);
    }

    #[test]
    fn what_breaks_a_rule_is_named() {
        let long = format!(r#"{{"prompt": "{}"}}"#, "x".repeat(MAX_TEXT_BYTES + 1));
        for (body, param) in [
            (r#"{}"#, "prompt"),
            (r#"{"prompt": "  "}"#, "prompt"),
            (&*long, "prompt"),
            (r#"{"prompt": "a", "n": 2}"#, "n"),
            (r#"{"prompt": "a", "size": "big"}"#, "size"),
            (r#"{"prompt": "a", "size": "0x8"}"#, "size"),
            (r#"{"prompt": "a", "size": "8x99999999999999999999"}"#, "size"),
            (r#"{"prompt": "a", "response_format": "url"}"#, "response_format"),
            (r#"{"prompt": "a", "output_format": "webp"}"#, "output_format"),
            (r#"{"prompt": "a", "stream": true}"#, "stream"),
            (r#"{"prompt": "a", "seed": 1.5}"#, "seed"),
            (r#"{"prompt": "a", "model": "dall-e-3"}"#, "model"),
        ] {
            let error = admit(body.as_bytes(), &served(true)).unwrap_err().to_json();
            assert_eq!(error["error"]["param"], param, "{body}: {error}");
        }
        let error = admit(br#"{"prompt": "a"}"#, &served(false)).unwrap_err();
        assert!(error.message.contains("does not draw"), "{}", error.message);
        assert!(admit(b"[]", &served(true)).unwrap_err().message.contains("no request for a picture"));
    }

    #[test]
    fn a_client_that_left_ends_its_drawing() {
        let dir = tempfile::tempdir().unwrap();
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../../convert/tests/fixtures/hf/janus");
        let mut checkpoint = Checkpoint::open(fixture.as_ref()).unwrap();
        let bundle = dir.path().join("tiny");
        convert(&mut checkpoint, &bundle, WeightDtype::Int8, false, &mut Progress::silent()).unwrap();
        let model = Model::open(&bundle, &EngineOptions { threads: 1, ..EngineOptions::default() }).unwrap();
        let draws = |stays: bool| {
            let admitted = admit(br#"{"prompt": "a house"}"#, &served(true)).unwrap();
            let (reply, events) = Job::replies(&admitted.prompt);
            let memory = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
            let job = Job { prompt: admitted.prompt, reply, queued: Instant::now(), _memory: memory };
            let held = stays.then_some(events);
            let Asks::Draw(sketch) = &job.prompt.asks else { panic!("{:?}", job.prompt.asks) };
            let metrics = Metrics::new();
            let drawn = run(&model, sketch, &job, Timings::default(), &metrics).unwrap();
            drop(held);
            (drawn.is_some(), metrics.generated_tokens.get())
        };
        assert_eq!(draws(true), (true, 16), "a grid of 4 × 4");
        assert_eq!(draws(false), (false, 1));
    }
}
