//! The inference thread: one model, one session, one request at a time.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use saccade::Error;
use saccade::config::Modality;
use saccade::engine::EngineOptions;
use saccade::family::Model;
use saccade::session::{self, Session, SessionError, SessionOptions};
use saccade::source::Frame;
use saccade::tokenize::{self, ImageTokenizer, PictureReader, Tokenizer as _};

use crate::admit::{Asks, Look, Served};
use crate::app::unix_s;
use crate::draw;
use crate::error::ApiError;
use crate::exit::CardLost;
use crate::job::{Done, Event, Finish, Job, Timings};
use crate::metrics::Metrics;
use crate::picture::Picture;
use crate::shipped;
use crate::tokens::TextStream;

/// Pictures of a request where the model itself sets no bound.
const MAX_PICTURES: usize = 16;

/// Loads the bundle, says so through `ready`, and answers jobs until their queue is closed. `lost` is told that the card is lost before
/// a client is.
///
/// # Errors
/// If the bundle cannot be opened, or the card is lost.
pub(crate) fn run(
    model: Option<&Path>,
    options: &EngineOptions,
    context: usize,
    ready: impl FnOnce(Served),
    lost: &dyn Fn(),
    jobs: &Receiver<Job>,
    metrics: &Metrics,
) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut engine = Answerer::open(&shipped::model(model)?, options, context)?;
    log::info!("ready load_ms={:.1}", ms(start.elapsed()));
    ready(engine.served());
    for job in jobs {
        metrics.queue_len.dec();
        if job.reply.is_closed() {
            // The client left while the job waited.
            metrics.cancelled.inc();
            continue;
        }
        if engine.answer(&job, lost, metrics) == Fate::Lost {
            for job in jobs.try_iter() {
                // A client that left needs no reason.
                let _ = job.reply.try_send(Event::Failed(ApiError::card_lost()));
            }
            return Err(CardLost.into());
        }
    }
    Ok(())
}

/// What is left after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// An engine for the next one.
    Works,
    /// Nothing: the card does no more for this process.
    Lost,
}

/// A model with everything that one request at a time needs.
struct Answerer {
    model: Arc<Model>,
    session: Session,
    /// Of a model of Saccade's own family.
    images: Option<ImageTokenizer>,
    /// Of a language model that takes pictures.
    reader: Option<PictureReader>,
    /// The picture that is being looked at.
    frame: Frame,
    codes: Vec<u16>,
    answer: Vec<u32>,
}

impl Answerer {
    fn open(dir: &Path, options: &EngineOptions, context: usize) -> anyhow::Result<Self> {
        let model = Model::open(dir, options)?;
        // Read now rather than in the first request: a damaged tokenizer must keep the service from being ready.
        model.text()?;
        let options = match model.config().language() {
            Some(c) => {
                SessionOptions { max_text_tokens: context.min(c.max_positions), ..SessionOptions::default() }
            }
            None => SessionOptions::default(),
        };
        let mut session = Session::new(&model, &options)?;
        session.reuse_prompts();
        Ok(Self {
            session,
            images: model.unimodal().is_ok().then(|| ImageTokenizer::new(&model)).transpose()?,
            reader: PictureReader::new(&model)?,
            frame: Frame::default(),
            codes: Vec::new(),
            answer: Vec::new(),
            model,
        })
    }

    fn served(&self) -> Served {
        let config = self.model.config();
        let looks = self.model.unimodal().ok();
        Served {
            name: config.name().to_owned(),
            talks: looks.is_none(),
            draws: self.model.draws(),
            tasks: looks.map_or_else(Vec::new, |c| c.tasks.clone()),
            max_pictures: match looks {
                Some(c) => c.window(Modality::Image).unwrap_or(MAX_PICTURES),
                None if self.reader.is_some() => MAX_PICTURES,
                None => 0,
            },
            max_new_tokens: config.generation().max_new_tokens,
            caption: looks.map_or_else(String::new, |c| c.chat.caption.clone()),
            kernels: self.model.engine().kernels().name.to_string(),
            device: self.model.device().clone(),
            threads: self.model.engine().threads(),
            created: unix_s(),
        }
    }

    /// Answers one job; whatever goes wrong is that job's alone, unless the card is lost.
    fn answer(&mut self, job: &Job, lost: &dyn Fn(), metrics: &Metrics) -> Fate {
        let mut fate = Fate::Works;
        let ended = self.answer_prompt(job, metrics).unwrap_or_else(|error| {
            if error.is_card_lost() {
                fate = Fate::Lost;
                lost();
            }
            Some(Event::Failed(error))
        });
        metrics.request_s.observe(job.queued.elapsed().as_secs_f64());
        match ended {
            // There is room for every event; a closed channel means that the client left.
            Some(event) => {
                let _ = job.reply.try_send(event);
            }
            None => {
                metrics.cancelled.inc();
            }
        }
        fate
    }

    /// Answers one prompt token by token; nothing if the client left.
    fn answer_prompt(&mut self, job: &Job, metrics: &Metrics) -> Result<Option<Event>, ApiError> {
        let prompt = &job.prompt;
        let start = Instant::now();
        let mut timings = Timings { queue_ms: ms(start - job.queued), ..Timings::default() };
        let model = Arc::clone(&self.model);
        let text = model.text().map_err(|error| refuse(&error))?;
        let (question, prefill) = match &prompt.asks {
            Asks::Talk(messages, pictures) => {
                metrics.pictures.inc_by(pictures.len() as u64);
                let ids = text.encode_chat(messages).map_err(|error| refuse(&error))?;
                (self.read(ids, pictures, &mut timings)?, Duration::ZERO)
            }
            Asks::Look(look) => {
                metrics.pictures.inc_by(look.pictures.len() as u64);
                self.look(look, text, &mut timings)?
            }
            Asks::Draw(sketch) => return draw::run(&model, sketch, job, timings, metrics),
        };

        let asked = Instant::now();
        let mut first_token = None;
        let mut left = false;
        let mut stream = TextStream::new(&prompt.stop);
        let decode = |ids: &[u32]| text.decode(ids).unwrap_or_default();
        let mut show = |more: String| {
            // Refused only when the client has left: there is room for every event.
            left |= !more.is_empty() && job.reply.try_send(Event::Text(more)).is_err();
            !left && !job.reply.is_closed()
        };
        let mut sampler = prompt.sampler();
        let finish =
            self.session.answer(&question, prompt.max_new, &mut sampler, &mut self.answer, &mut |id| {
                first_token.get_or_insert_with(|| {
                    metrics.time_to_first_token_s.observe(job.queued.elapsed().as_secs_f64());
                    Instant::now()
                });
                show(stream.push(id, decode)) && !stream.stopped()
            });
        let finish = finish.map_err(|error| refuse(&error))?;
        if !show(stream.finish(decode)) {
            return Ok(None);
        }
        let now = Instant::now();
        let first_token = first_token.unwrap_or(now);
        timings.prefill_ms = ms(prefill + (first_token - asked));
        timings.decode_ms = ms(now - first_token);
        let finish = if stream.stopped() { Ended::StopString } else { finish.into() };
        let done = self.done(&question, finish, timings);
        metrics.prompt_tokens.inc_by(done.prompt_tokens as u64);
        metrics.prompt_tokens_cached.inc_by(done.cached_tokens as u64);
        metrics.generated_tokens.inc_by(done.completion_tokens as u64);
        log::debug!(
            "answered prompt_tokens={} cached_tokens={} completion_tokens={}",
            done.prompt_tokens,
            done.cached_tokens,
            done.completion_tokens
        );
        Ok(Some(Event::Done(done)))
    }

    /// Decodes the pictures of a conversation and puts them in their places.
    fn read(
        &mut self,
        ids: Vec<u32>,
        pictures: &[Picture],
        timings: &mut Timings,
    ) -> Result<Vec<u32>, ApiError> {
        let Some(reader) = &mut self.reader else { return Ok(ids) };
        let start = Instant::now();
        let mut frames = Vec::with_capacity(pictures.len());
        for picture in pictures {
            let mut frame = Frame::default();
            picture.decode(&mut frame)?;
            frames.push(frame);
        }
        let decoded = Instant::now();
        let shown: Vec<_> = frames.iter().map(Frame::picture).collect();
        let ids = reader.read(&ids, &shown, &mut self.session).map_err(|error| refuse(&error))?;
        timings.preprocess_ms += ms(decoded - start);
        timings.vision_ms += ms(decoded.elapsed());
        Ok(ids)
    }

    /// Shows the session a task and its pictures; returns the question, and the time in the session alone.
    fn look(
        &mut self,
        look: &Look,
        text: &tokenize::TextTokenizer,
        timings: &mut Timings,
    ) -> Result<(Vec<u32>, Duration), ApiError> {
        let model = Arc::clone(&self.model);
        let suffix = &model.unimodal().map_err(|error| refuse(&error))?.chat.question_suffix;
        let instruction = encode(text, &look.instruction)?;
        let question = encode(text, &format!("{}{suffix}", look.question.trim()))?;
        self.session.begin(&look.task, &instruction).map_err(|error| refuse(&error))?;
        let prefill = self.push_pictures(&look.pictures, timings)?;
        Ok((question, prefill))
    }

    /// Decodes, tokenizes and pushes the pictures; returns the time in the session alone.
    fn push_pictures(&mut self, pictures: &[Picture], timings: &mut Timings) -> Result<Duration, ApiError> {
        let Some(images) = &mut self.images else { return Ok(Duration::ZERO) };
        let mut prefill = Duration::ZERO;
        for picture in pictures {
            let start = Instant::now();
            picture.decode(&mut self.frame)?;
            let decoded = Instant::now();
            images.encode(self.frame.picture(), &mut self.codes).map_err(|error| refuse(&error))?;
            let tokenized = Instant::now();
            self.session.push_image(&self.codes).map_err(|error| refuse(&error))?;
            prefill += tokenized.elapsed();
            timings.preprocess_ms += ms(decoded - start);
            timings.vision_ms += ms(tokenized - decoded);
        }
        Ok(prefill)
    }

    fn done(&self, question: &[u32], ended: Ended, mut timings: Timings) -> Done {
        // <ask> and <ans> stand around a question about pictures.
        let frame = if self.images.is_some() { 2 } else { 0 };
        let prompt_tokens = self.session.live_tokens() + question.len() + frame;
        let completion_tokens = self.answer.len() + usize::from(ended == Ended::EndToken);
        #[allow(clippy::cast_precision_loss, reason = "an answer has few tokens")]
        let later_tokens = completion_tokens.saturating_sub(1) as f64;
        timings.tokens_per_s =
            if timings.decode_ms > 0.0 { later_tokens / timings.decode_ms * 1e3 } else { 0.0 };
        let finish = if ended == Ended::Limit { Finish::Length } else { Finish::Stop };
        let cached_tokens = self.session.reused_tokens();
        Done { finish, prompt_tokens, cached_tokens, completion_tokens, timings }
    }
}

/// What ended an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The model's end token, which it wrote as well.
    EndToken,
    /// A stop string of the request.
    StopString,
    /// The token limit.
    Limit,
}

impl From<session::Finish> for Ended {
    fn from(finish: session::Finish) -> Self {
        match finish {
            session::Finish::Stop => Self::EndToken,
            session::Finish::Length => Self::Limit,
        }
    }
}

/// The model was trained on lower-case text alone, so that is what it is shown.
fn encode(text: &tokenize::TextTokenizer, words: &str) -> Result<Vec<u32>, ApiError> {
    text.encode(&words.trim().to_lowercase()).map_err(|error| refuse(&error))
}

/// A refusal of the runtime as one of ours: too much text is the client's affair, everything else is logged.
fn refuse(error: &Error) -> ApiError {
    match error {
        Error::Session(SessionError::TooLong { tokens, room }) => ApiError::invalid(
            "messages",
            format!("the text has {tokens} tokens, there is room for {room}: shorten it"),
        ),
        Error::Session(
            error @ (SessionError::NoText
            | SessionError::Text(_)
            | SessionError::PictureSize { .. }
            | SessionError::Places { .. }),
        ) => ApiError::invalid("messages", error.to_string()),
        _ => ApiError::of_model("a request", error),
    }
}

pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
