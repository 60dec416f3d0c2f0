//! The loop: a frame out of the slot, through the model, to whoever publishes it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use saccade::config::UnimodalConfig;
use saccade::family::Model;
use saccade::sample::Sampler;
use saccade::session::{ActionChunk, Session, SessionOptions};
use saccade::source::{Capture, Frame, Taken};
use saccade::tokenize::{ImageTokenizer, Tokenizer as _};

use crate::publish::Outlet;

/// How long to wait for a frame before looking whether someone wants to stop.
const PATIENCE: Duration = Duration::from_millis(100);

/// Where the time of one frame went.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Timings {
    /// Decoding the picture, on the capture thread.
    pub(crate) decode: Duration,
    /// Picture to codes.
    pub(crate) tokenize: Duration,
    /// Codes into the session.
    pub(crate) prefill: Duration,
    /// The action and the answer.
    pub(crate) generate: Duration,
}

/// One frame and what the model made of it. Reused for ever.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The picture.
    pub(crate) frame: Frame,
    /// Its codes, `[grid]`.
    pub(crate) codes: Vec<u16>,
    /// The answer's tokens.
    pub(crate) answer: Vec<u32>,
    /// The predicted actions, `[steps, dims]`.
    pub(crate) action: ActionChunk,
    /// Where the time went.
    pub(crate) timings: Timings,
    /// Age of the frame when the answer was there.
    pub(crate) age: Duration,
    /// Frames dropped since the start, because newer ones came first.
    pub(crate) dropped: u64,
}

impl Seen {
    /// Room for everything that such a model can say.
    pub(crate) fn new(config: &UnimodalConfig) -> Self {
        Self {
            codes: Vec::with_capacity(config.image_codes()),
            answer: Vec::with_capacity(config.generation.max_new_tokens),
            action: ActionChunk {
                bins: Vec::with_capacity(config.chunk_len()),
                values: Vec::with_capacity(config.chunk_len()),
            },
            ..Self::default()
        }
    }
}

/// A session that is shown one frame after another and asked the same question each time.
#[derive(Debug)]
pub(crate) struct Eye {
    session: Session,
    images: ImageTokenizer,
    question_text: String,
    question: Vec<u32>,
    max_new_tokens: usize,
}

impl Eye {
    /// A session on `model` that asks `ask`, or for a caption.
    ///
    /// # Errors
    /// If the question does not fit the model.
    pub(crate) fn new(model: &Arc<Model>, ask: Option<&str>) -> saccade::Result<Self> {
        let config = model.unimodal()?;
        // The model was trained on lower-case text alone.
        let question_text =
            ask.unwrap_or(&config.chat.caption).trim().to_lowercase() + &config.chat.question_suffix;
        let question = model.text()?.encode(&question_text)?;
        let mut session = Session::new(model, &SessionOptions::default())?;
        session.begin(&config.tasks[0], &[])?;
        let images = ImageTokenizer::new(model)?;
        Ok(Self {
            session,
            images,
            question_text,
            question,
            max_new_tokens: config.generation.max_new_tokens,
        })
    }

    /// What is asked of each frame.
    pub(crate) fn question_text(&self) -> &str {
        &self.question_text
    }

    /// Takes in `seen.frame` and fills the rest of `seen`; the action comes before the words.
    fn look(&mut self, seen: &mut Seen) -> saccade::Result<()> {
        let start = Instant::now();
        self.images.encode(seen.frame.picture(), &mut seen.codes)?;
        let tokenized = Instant::now();
        self.session.push_image(&seen.codes)?;
        let prefilled = Instant::now();
        self.session.act(&mut seen.action)?;
        let sampler = &mut Sampler::greedy();
        self.session.answer(&self.question, self.max_new_tokens, sampler, &mut seen.answer, &mut |_| true)?;
        let generated = Instant::now();
        seen.age = seen.frame.age();
        seen.timings = Timings {
            decode: Duration::from_nanos(seen.frame.decode_ns),
            tokenize: tokenized - start,
            prefill: prefilled - tokenized,
            generate: generated - prefilled,
        };
        Ok(())
    }
}

/// How a run went.
#[derive(Debug)]
pub(crate) struct Run {
    frames: u64,
    dropped: u64,
    unpublished: u64,
    bad_frames: u64,
    elapsed: Duration,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        #[allow(clippy::cast_precision_loss, reason = "for a person")]
        let rate = self.frames as f64 / self.elapsed.as_secs_f64().max(1e-9);
        write!(f, "{} frames, {rate:.1} a second, {} dropped before the model", self.frames, self.dropped)?;
        if self.bad_frames > 0 {
            write!(f, ", {} damaged", self.bad_frames)?;
        }
        if self.unpublished > 0 {
            write!(f, ", {} not written because the disk was too slow", self.unpublished)?;
        }
        Ok(())
    }
}

/// Shows `eye` one frame after another until `frames` are done, the source ends, or `stop` is set.
///
/// # Errors
/// If the source or the model fails for good.
pub(crate) fn watch(
    mut eye: Eye,
    capture: &Capture,
    mut outlet: Outlet,
    frames: Option<u64>,
    stop: &AtomicBool,
) -> anyhow::Result<Run> {
    let start = Instant::now();
    let mut run = Run { frames: 0, dropped: 0, unpublished: 0, bad_frames: 0, elapsed: Duration::ZERO };
    let mut seen = outlet.first();
    while !stop.load(Ordering::Relaxed) && frames.is_none_or(|frames| run.frames < frames) {
        match capture.take(&mut seen.frame, PATIENCE)? {
            Taken::Frame { dropped, .. } => run.dropped += dropped,
            Taken::Timeout => {
                outlet.waiting(capture.stats().state);
                continue;
            }
            Taken::End => break,
        }
        seen.dropped = run.dropped;
        eye.look(&mut seen)?;
        run.frames += 1;
        if !outlet.publish(&mut seen) {
            run.unpublished += 1;
        }
    }
    run.elapsed = start.elapsed();
    run.bad_frames = capture.stats().bad_frames;
    Ok(run)
}
