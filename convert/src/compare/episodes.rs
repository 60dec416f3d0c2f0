//! Saccade's own family on held-out episodes, teacher forced: the same codes (the float tokenizer's), the true answers, the executed
//! actions. Compared are the distributions over the next token on answers (captions and questions), action slots and image codes, and
//! the image codes themselves.

use std::sync::Arc;

use saccade::family::Model;
use saccade::session::{ActionChunk, Session, SessionOptions};
use saccade::tokenize::{Bins, ImageTokenizer, Tokenizer as _};
use serde::Serialize;

use super::heldout::{self, Episode};
use super::stats::{Positions, Rows};
use super::{Fault, Models};
use crate::error::Result;
use crate::inspect::ratio;
use crate::progress::Progress;

/// The task whose prefix opens every episode.
const TASK: &str = "robot";
/// Questions asked at each step, beside the caption: they take turns, so that every one is asked over an episode.
const QUESTIONS_PER_STEP: usize = 2;

/// The report. Divergences in nats, shares as fractions of one.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Mean KL(float ‖ bundle) on answer and action positions.
    pub kl_mean: f64,
    /// Its 99th percentile.
    pub kl_p99: f64,
    /// Its maximum.
    pub kl_max: f64,
    /// Share of answer and action positions with the same most likely token.
    pub same_top: f64,
    /// The same on image positions.
    pub same_top_image: f64,
    /// Share of image codes that the bundle's encoder gives another value.
    pub code_flip: f64,
    /// Share of predicted action bins that are equal.
    pub action_bin_equal: f64,
    /// Four bytes × parameters ÷ bytes of the weights file.
    pub size_ratio_f32: f64,
    /// The same for linear layers alone, their scales and sums counted.
    pub size_ratio_linear: f64,
    /// Mean squared error of the bundle's predicted actions against the expert's, in action units.
    pub action_mse: f64,
    /// That of the float model.
    pub action_mse_base: f64,
    /// Episodes seen.
    pub episodes: usize,
    /// Frames seen.
    pub frames: usize,
    /// Answer and action positions in the rows of llama-perplexity.
    pub all: Rows,
    /// Caption and answer tokens.
    pub answer: Rows,
    /// Action slots.
    pub action: Rows,
    /// Image codes.
    pub image: Rows,
}

/// Compares both models on every episode.
///
/// # Errors
/// An episode that cannot be used, or a model that gives no numbers.
pub(super) fn compare(models: &Models, episodes: &[Episode]) -> Result<Comparison> {
    let Models { base, candidate, size_ratio_f32, size_ratio_linear, .. } = models;
    let mut pair = Pair::new(base, candidate)?;
    let mut progress = Progress::counted("compare", episodes.len() as u64);
    for episode in episodes {
        let path = &episode.path;
        pair.episode(episode).map_err(|fault| fault.in_file(path))?;
        progress.advance(1, &path.file_stem().unwrap_or_default().to_string_lossy());
    }
    drop(progress);

    let mut all = pair.answer.clone();
    all.extend(&pair.action);
    let (all, answer, action, image) =
        (all.rows(), pair.answer.rows(), pair.action.rows(), pair.image.rows());
    Ok(Comparison {
        kl_mean: all.kl_mean,
        kl_p99: all.kl_p99,
        kl_max: all.kl_max,
        same_top: all.same_top,
        same_top_image: image.same_top,
        code_flip: ratio(pair.flipped, pair.codes),
        action_bin_equal: ratio(pair.bins_equal, pair.bins_seen),
        size_ratio_f32: *size_ratio_f32,
        size_ratio_linear: *size_ratio_linear,
        action_mse: pair.squared_error[1] / as_f64(pair.bins_seen),
        action_mse_base: pair.squared_error[0] / as_f64(pair.bins_seen),
        episodes: episodes.len(),
        frames: pair.frames,
        all,
        answer,
        action,
        image,
    })
}

#[allow(clippy::cast_precision_loss, reason = "a count of predicted values")]
fn as_f64(count: u64) -> f64 {
    count.max(1) as f64
}

/// One of the two models at work.
struct Side {
    /// Its name in a sentence.
    name: &'static str,
    session: Session,
    images: ImageTokenizer,
    codes: Vec<u16>,
    chunk: ActionChunk,
}

impl Side {
    fn new(name: &'static str, model: &Arc<Model>) -> saccade::Result<Self> {
        Ok(Self {
            name,
            session: Session::new(model, &SessionOptions::default())?,
            images: ImageTokenizer::new(model)?,
            codes: Vec::new(),
            chunk: ActionChunk::default(),
        })
    }

    fn fault(&self, error: saccade::Error) -> Fault {
        Fault::of(self.name, error)
    }
}

/// Both models, and what was seen of them.
struct Pair {
    model: Arc<Model>,
    base: Side,
    candidate: Side,
    expert: Bins,
    /// The base's logits of one call, position after position.
    logits: Vec<f32>,
    answer: Positions,
    action: Positions,
    image: Positions,
    flipped: u64,
    codes: u64,
    bins_equal: u64,
    bins_seen: u64,
    /// Of the base and of the candidate.
    squared_error: [f64; 2],
    frames: usize,
}

/// A call that scores positions on a session.
type Scoring<'a> = &'a mut dyn FnMut(&mut Side, &mut dyn FnMut(usize, &[f32])) -> saccade::Result<()>;

impl Pair {
    fn new(base: &Arc<Model>, candidate: &Arc<Model>) -> saccade::Result<Self> {
        let c = base.unimodal()?;
        Ok(Self {
            model: Arc::clone(base),
            base: Side::new("float model", base)?,
            candidate: Side::new("bundle", candidate)?,
            expert: Bins::new("chunk", &c.action.low, &c.action.high, c.n_bins()),
            logits: Vec::new(),
            answer: Positions::default(),
            action: Positions::default(),
            image: Positions::default(),
            flipped: 0,
            codes: 0,
            bins_equal: 0,
            bins_seen: 0,
            squared_error: [0.0; 2],
            frames: 0,
        })
    }

    /// Runs `call` on both and collects each position, with its true token from `targets`.
    fn score(&mut self, targets: &[usize], call: Scoring<'_>) -> std::result::Result<Positions, Fault> {
        let Self { base, candidate, logits, .. } = self;
        let mut positions = Positions::default();
        logits.clear();
        call(base, &mut |_, row| logits.extend_from_slice(row)).map_err(|error| base.fault(error))?;
        call(candidate, &mut |at, row| {
            positions.add(&logits[at * row.len()..][..row.len()], row, targets[at]);
        })
        .map_err(|error| candidate.fault(error))?;
        assert_eq!(positions.len(), targets.len(), "a position for each target");
        Ok(positions)
    }

    fn episode(&mut self, episode: &Episode) -> std::result::Result<(), Fault> {
        let instruction = self.model.text()?.encode(&episode.instruction)?;
        for side in [&mut self.base, &mut self.candidate] {
            side.session.begin(TASK, &instruction).map_err(|error| side.fault(error))?;
        }
        for (at, (frame, step)) in episode.frames().zip(&episode.steps).enumerate() {
            self.frames += 1;
            for side in [&mut self.base, &mut self.candidate] {
                side.images.encode(frame, &mut side.codes).map_err(|error| side.fault(error))?;
            }
            let codes = self.base.codes.clone();
            self.codes += codes.len() as u64;
            self.flipped += codes.iter().zip(&self.candidate.codes).filter(|(a, b)| a != b).count() as u64;

            let targets: Vec<usize> = codes.iter().map(|&code| code.into()).collect();
            let image =
                self.score(&targets, &mut |side, on_logits| side.session.score_image(&codes, on_logits))?;
            self.image.extend(&image);
            for side in [&mut self.base, &mut self.candidate] {
                side.session.push_state(&step.state).map_err(|error| side.fault(error))?;
            }
            self.questions(at, step)?;
            self.actions(step)?;
            let executed = step.executed.concat();
            if !executed.is_empty() {
                for side in [&mut self.base, &mut self.candidate] {
                    side.session.push_action(&executed).map_err(|error| side.fault(error))?;
                }
            }
        }
        Ok(())
    }

    /// The caption and some of the questions.
    fn questions(&mut self, at: usize, step: &heldout::Step) -> std::result::Result<(), Fault> {
        let model = Arc::clone(&self.model);
        let (text, c) = (model.text()?, model.unimodal()?);
        let turn = (at * QUESTIONS_PER_STEP).checked_rem(step.qa.len()).unwrap_or(0);
        let asked = step.qa.iter().cycle().skip(turn).take(QUESTIONS_PER_STEP.min(step.qa.len()));
        let asked =
            asked.map(|[question, answer]| (question, answer)).chain([(&c.chat.caption, &step.caption)]);
        for (question, answer) in asked {
            let question = text.encode(&format!("{question}{}", c.chat.question_suffix))?;
            let answer = text.encode(answer)?;
            let first = c.tokens.text[0];
            let targets: Vec<usize> =
                answer.iter().chain([&c.special.eos]).map(|&id| (id - first) as usize).collect();
            let scored = self.score(&targets, &mut |side, on_logits| {
                side.session.score_answer(&question, &answer, on_logits)
            })?;
            self.answer.extend(&scored);
        }
        Ok(())
    }

    /// The predicted chunk, against the expert's.
    fn actions(&mut self, step: &heldout::Step) -> std::result::Result<(), Fault> {
        let truth = step.chunk.concat();
        let mut bins = Vec::new();
        self.expert.encode(&truth, &mut bins)?;
        let targets: Vec<usize> = bins.iter().map(|&bin| bin.into()).collect();
        let scored = self.score(&targets, &mut |side, on_logits| {
            let mut chunk = std::mem::take(&mut side.chunk);
            let result = side.session.score_act(&mut chunk, on_logits);
            side.chunk = chunk;
            result
        })?;
        self.action.extend(&scored);

        let chunks = [&self.base.chunk, &self.candidate.chunk];
        self.bins_seen += chunks[0].bins.len() as u64;
        self.bins_equal += chunks[0].bins.iter().zip(&chunks[1].bins).filter(|(a, b)| a == b).count() as u64;
        for (sum, chunk) in self.squared_error.iter_mut().zip(chunks) {
            *sum += chunk.values.iter().zip(&truth).map(|(v, t)| f64::from(v - t).powi(2)).sum::<f64>();
        }
        Ok(())
    }
}

impl Comparison {
    /// The report for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = self.all.to_text("Answers and actions");
        for (rows, title) in
            [(&self.answer, "Answers"), (&self.action, "Action slots"), (&self.image, "Image codes")]
        {
            text += &rows.to_text(title);
        }
        let percent = |share: f64| format!("{:.3} %", 100.0 * share);
        text += "====== The bundle ======\n";
        for (name, value) in [
            ("Image codes flipped", percent(self.code_flip)),
            ("Action bins equal", percent(self.action_bin_equal)),
            ("Action MSE(Q)", format!("{:.6}", self.action_mse)),
            ("Action MSE(base)", format!("{:.6}", self.action_mse_base)),
            ("Size F32/Q", format!("{:.3}", self.size_ratio_f32)),
            ("Size F32/Q, linear", format!("{:.3}", self.size_ratio_linear)),
            ("Episodes, frames", format!("{}, {}", self.episodes, self.frames)),
        ] {
            text += &format!("{name:<22}: {value}\n");
        }
        text
    }
}
