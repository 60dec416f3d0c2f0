//! Held-out quality of a bundle, measured through the runtime: what is shipped, not what was trained.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use indicatif::ProgressBar;
use saccade::engine::EngineOptions;
use saccade::family::Model;
use saccade::sample::Sampler;
use saccade::session::{ActionChunk, Session, SessionOptions};
use saccade::tokenize::{ImageTokenizer, Picture, Tokenizer as _};
use saccade_convert::compare::heldout::{self, Episode};
use serde::Serialize;

use crate::data::pictures::{Pictures, Question, easy_vqa, easy_vqa_questions};
use crate::data::{SIDE_PX, fetch};
use crate::error::Result;

/// All results; shares are of 1.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The official test questions of easy-VQA 1.0.
    pub easy_vqa: EasyVqa,
    /// Captions with instruction, states and executed actions given.
    pub caption: Captions,
    /// Captions from pixels alone, as a bare camera has them.
    pub caption_pixels_only: Captions,
    /// Questions about the held-out frames.
    pub questions: Questions,
    /// Action chunks, with everything given.
    pub action: Actions,
}

/// Results on easy-VQA.
#[derive(Debug, Clone, Serialize)]
pub struct EasyVqa {
    /// Answers that are exactly right.
    pub accuracy: f64,
    /// What the likeliest training answer to each question text would reach.
    pub question_only: f64,
    /// What the likeliest training answer would reach.
    pub majority: f64,
    /// Questions asked.
    pub questions: usize,
}

/// Results on captions.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Captions {
    /// Captions that are exactly right.
    pub exact: f64,
    /// First sentences (what the robot does) that are right.
    pub task: f64,
    /// Second sentences (where the hand is) that are right.
    pub relations: f64,
    /// Third sentences (the gripper) that are right.
    pub gripper: f64,
    /// What always saying the commonest caption would reach.
    pub chance: f64,
    /// What the commonest first sentence would reach.
    pub chance_task: f64,
    /// What the commonest second sentence would reach.
    pub chance_relations: f64,
    /// Captions compared.
    pub frames: usize,
}

/// Results on questions about held-out frames.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Questions {
    /// Answers that are exactly right.
    pub accuracy: f64,
    /// What the commonest held-out answer to each question text would reach.
    pub question_only: f64,
    /// Questions asked.
    pub questions: usize,
}

/// Results on action chunks.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Actions {
    /// Bins that are exactly right.
    pub bin_accuracy: f64,
    /// What the commonest bin of each dimension would reach.
    pub chance_bin_accuracy: f64,
    /// Mean squared error of the values.
    pub mse: f64,
    /// What the mean action would reach.
    pub chance_mse: f64,
    /// Chunks compared.
    pub chunks: usize,
}

/// A bundle at work.
struct Bench {
    model: Arc<Model>,
    session: Session,
    images: ImageTokenizer,
    codes: Vec<u16>,
    answer: Vec<u32>,
}

impl Bench {
    fn open(bundle: &Path) -> Result<Bench> {
        let model = Model::open(bundle, &EngineOptions::default())?;
        let session = Session::new(&model, &SessionOptions::default())?;
        let images = ImageTokenizer::new(&model)?;
        Ok(Bench { model, session, images, codes: Vec::new(), answer: Vec::new() })
    }

    fn see(&mut self, picture: Picture<'_>) -> Result<()> {
        self.images.encode(picture, &mut self.codes)?;
        Ok(self.session.push_image(&self.codes)?)
    }

    fn ask(&mut self, question: &str) -> Result<String> {
        let ids = self.model.text()?.encode(question)?;
        let most = self.model.config().generation().max_new_tokens;
        self.session.answer(&ids, most, &mut Sampler::greedy(), &mut self.answer, &mut |_| true)?;
        Ok(self.model.text()?.decode(&self.answer)?)
    }
}

/// Measures `bundle` on the held-out episodes in `data` and on easy-VQA, which is fetched into `cache` when it is missing.
///
/// # Errors
/// If the bundle or a data set cannot be read.
pub fn evaluate(bundle: &Path, data: &Path, cache: &Path) -> Result<Report> {
    let mut bench = Bench::open(bundle)?;
    let episodes = heldout::read_all(data, bench.model.unimodal()?)?;
    let vqa = fetch::easy_vqa(cache, "python3")?;
    let test = easy_vqa(&vqa, "test")?;
    let train = easy_vqa_questions(&vqa, "train")?;
    let easy_vqa = measure_easy_vqa(&mut bench, &test, &train)?;
    let mut given = Robot::default();
    let mut bare = Robot::default();
    let bar = ProgressBar::new(2 * episodes.len() as u64);
    for episode in &episodes {
        run_episode(&mut bench, episode, Context::Everything, &mut given)?;
        bar.inc(1);
        run_episode(&mut bench, episode, Context::Pixels, &mut bare)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(Report {
        easy_vqa,
        caption: captions(&given.captions),
        caption_pixels_only: captions(&bare.captions),
        questions: questions(&given.answers),
        action: actions(&given.values, given.chunks),
    })
}

fn share(right: usize, of: usize) -> f64 {
    if of == 0 { 0.0 } else { right as f64 / of as f64 }
}

/// The commonest of `items`, and how often it comes.
fn commonest<T: std::hash::Hash + Eq + Ord + Clone>(items: impl Iterator<Item = T>) -> Option<(T, usize)> {
    let mut counts: HashMap<T, usize> = HashMap::new();
    items.for_each(|i| *counts.entry(i).or_default() += 1);
    counts.into_iter().max_by(|a, b| a.1.cmp(&b.1).then(b.0.cmp(&a.0)))
}

fn measure_easy_vqa(bench: &mut Bench, test: &Pictures, train: &[Question]) -> Result<EasyVqa> {
    let mut by_question: HashMap<&str, Vec<&str>> = HashMap::new();
    train.iter().for_each(|q| by_question.entry(&q.question).or_default().push(&q.answer));
    let likeliest: HashMap<&str, &str> = by_question
        .into_iter()
        .filter_map(|(q, answers)| Some((q, commonest(answers.into_iter())?.0)))
        .collect();
    let majority = commonest(train.iter().map(|q| q.answer.as_str())).map(|m| m.0).unwrap_or_default();
    let (mut right, mut by_text, mut by_majority) = (0, 0, 0);
    let bar = ProgressBar::new(test.frames.len() as u64);
    for (picture, list) in test.by_picture().into_iter().enumerate() {
        bench.session.begin("vqa", &[])?;
        bench.see(Picture::rgb(test.frames.frame(picture), SIDE_PX, SIDE_PX))?;
        for q in list {
            right += usize::from(bench.ask(&q.question)? == q.answer);
            by_text += usize::from(likeliest.get(q.question.as_str()) == Some(&q.answer.as_str()));
            by_majority += usize::from(majority == q.answer);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let n = test.questions.len();
    Ok(EasyVqa {
        accuracy: share(right, n),
        question_only: share(by_text, n),
        majority: share(by_majority, n),
        questions: n,
    })
}

/// What a robot sequence is given besides frames.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Context {
    Everything,
    Pixels,
}

/// A predicted bin and value with the expert's, and the dimension.
struct ActionPair {
    dim: usize,
    bin: u16,
    expert_bin: u16,
    value: f32,
    expert: f32,
}

/// What was said, asked and done.
#[derive(Default)]
struct Robot {
    /// Said and true.
    captions: Vec<(String, String)>,
    /// Question, answered and true.
    answers: Vec<(String, String, String)>,
    values: Vec<ActionPair>,
    chunks: usize,
}

/// Questions asked at each held-out step: a few of the many, different ones from step to step.
const QUESTIONS_A_STEP: usize = 4;

fn run_episode(bench: &mut Bench, episode: &Episode, context: Context, out: &mut Robot) -> Result<()> {
    let config = bench.model.unimodal()?.action.clone();
    let n_bins = bench.model.unimodal()?.n_bins();
    let bins = saccade::tokenize::Bins::new("action", &config.low, &config.high, n_bins);
    let all = context == Context::Everything;
    let instruction = if all { bench.model.text()?.encode(&episode.instruction)? } else { Vec::new() };
    let caption = bench.model.unimodal()?.chat.caption.clone();
    bench.session.begin("robot", &instruction)?;
    let mut chunk = ActionChunk::default();
    for (at, (frame, step)) in episode.frames().zip(&episode.steps).enumerate() {
        bench.see(frame)?;
        if all {
            bench.session.push_state(&step.state)?;
        }
        out.captions.push((bench.ask(&caption)?, step.caption.clone()));
        if !all {
            continue;
        }
        for [q, a] in
            step.qa.iter().cycle().skip(QUESTIONS_A_STEP * at).take(QUESTIONS_A_STEP.min(step.qa.len()))
        {
            out.answers.push((q.clone(), bench.ask(q)?, a.clone()));
        }
        bench.session.act(&mut chunk)?;
        out.chunks += 1;
        let expert = step.chunk.concat();
        for (i, ((&bin, &value), &expert)) in chunk.bins.iter().zip(&chunk.values).zip(&expert).enumerate() {
            let dim = i % config.low.len();
            out.values.push(ActionPair { dim, bin, expert_bin: bins.bin(dim, expert), value, expert });
        }
        let executed = step.executed.concat();
        if !executed.is_empty() {
            bench.session.push_action(&executed)?;
        }
    }
    Ok(())
}

/// Sentence `i` of a caption.
fn sentence(caption: &str, i: usize) -> &str {
    caption.trim_end_matches('.').split(". ").nth(i).unwrap_or("")
}

fn captions(pairs: &[(String, String)]) -> Captions {
    let n = pairs.len();
    let same = |i: usize| share(pairs.iter().filter(|(a, b)| sentence(a, i) == sentence(b, i)).count(), n);
    let most = |i: usize| commonest(pairs.iter().map(|(_, b)| sentence(b, i))).map_or(0, |m| m.1);
    Captions {
        exact: share(pairs.iter().filter(|(a, b)| a == b).count(), n),
        task: same(0),
        relations: same(1),
        gripper: same(2),
        chance: share(commonest(pairs.iter().map(|(_, b)| b.as_str())).map_or(0, |m| m.1), n),
        chance_task: share(most(0), n),
        chance_relations: share(most(1), n),
        frames: n,
    }
}

fn questions(answers: &[(String, String, String)]) -> Questions {
    let n = answers.len();
    let mut by_question: HashMap<&str, Vec<&str>> = HashMap::new();
    answers.iter().for_each(|(q, _, a)| by_question.entry(q).or_default().push(a));
    let best: usize = by_question.into_values().filter_map(|a| commonest(a.into_iter())).map(|m| m.1).sum();
    let right = answers.iter().filter(|(_, said, a)| said == a).count();
    Questions { accuracy: share(right, n), question_only: share(best, n), questions: n }
}

fn actions(pairs: &[ActionPair], chunks: usize) -> Actions {
    let n = pairs.len();
    let dims = pairs.iter().map(|p| p.dim + 1).max().unwrap_or(0);
    let (mut chance_bins, mut chance_square) = (0, 0.0);
    for dim in 0..dims {
        let own: Vec<&ActionPair> = pairs.iter().filter(|p| p.dim == dim).collect();
        chance_bins += commonest(own.iter().map(|p| p.expert_bin)).map_or(0, |m| m.1);
        let mean = own.iter().map(|p| f64::from(p.expert)).sum::<f64>() / own.len().max(1) as f64;
        chance_square += own.iter().map(|p| (f64::from(p.expert) - mean).powi(2)).sum::<f64>();
    }
    let square: f64 = pairs.iter().map(|p| f64::from(p.value - p.expert).powi(2)).sum();
    Actions {
        bin_accuracy: share(pairs.iter().filter(|p| p.bin == p.expert_bin).count(), n),
        chance_bin_accuracy: share(chance_bins, n),
        mse: square / n.max(1) as f64,
        chance_mse: chance_square / n.max(1) as f64,
        chunks,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_compared_whole_and_by_sentence() {
        let say = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let c = captions(&[
            say(
                "the robot a. the hand is x. the gripper is open.",
                "the robot a. the hand is x. the gripper is open.",
            ),
            say(
                "the robot a. the hand is y. the gripper is open.",
                "the robot a. the hand is x. the gripper is closed.",
            ),
            say("", "the robot b. the hand is z. the gripper is open."),
        ]);
        assert_eq!((c.exact, c.task, c.relations, c.gripper), (1.0 / 3.0, 2.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0));
        assert_eq!((c.chance, c.chance_task, c.chance_relations), (1.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0));
    }

    #[test]
    fn action_errors_and_their_chance_are_computed_by_dimension() {
        let pair = |dim, bin, expert_bin, value, expert| ActionPair { dim, bin, expert_bin, value, expert };
        let pairs = [
            pair(0, 1, 1, 0.5, 0.5),
            pair(0, 2, 1, 1.0, 0.5),
            pair(1, 0, 0, 0.0, 1.0),
            pair(1, 5, 9, 2.0, 3.0),
        ];
        let a = actions(&pairs, 2);
        assert_eq!((a.bin_accuracy, a.chance_bin_accuracy), (0.5, 0.75));
        assert_eq!(a.mse, (0.0 + 0.25 + 1.0 + 1.0) / 4.0);
        assert_eq!(a.chance_mse, (0.0 + 0.0 + 1.0 + 1.0) / 4.0);
    }
}
