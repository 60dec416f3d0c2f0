//! The encoded data sets: image codes and token ids, and how sequences are drawn from them.

use std::collections::HashMap;
use std::path::Path;

use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tokenizers::Tokenizer;

use crate::data::episodes::{Episode, Step};
use crate::data::pictures::Question;
use crate::error::{Error, Result};
use crate::layout::{ACTION_DIM, CHUNK_STEPS, Dims, EXECUTED_STEPS, Modality, N_CODES, STATE_DIM, Task};
use crate::pack::{Binning, Sequence};
use crate::text;

/// The question whose answer is the caption.
pub const CAPTION_QUESTION: &str = "what is happening?";

/// Every so many pictures and episodes one is kept for validation and never drawn. Not a divisor of the sets' regularities:
/// each task and both kinds of episode (with and without action noise) come up.
const VALIDATION_EVERY: usize = 37;

/// A random index below `n` that is not kept for validation.
fn draw_index(n: usize, rng: &mut ChaCha8Rng) -> usize {
    loop {
        let i = rng.random_range(0..n);
        if n < VALIDATION_EVERY || !i.is_multiple_of(VALIDATION_EVERY) {
            return i;
        }
    }
}

/// The indices below `n` that are kept for validation; none of a set too small to spare any.
fn validation_indices(n: usize) -> impl Iterator<Item = usize> {
    (0..n).step_by(VALIDATION_EVERY).take(if n < VALIDATION_EVERY { 0 } else { n })
}

/// Codes of `n` pictures in some augmented variants; variant 0 is the plain picture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Codes {
    /// `[variants, n, 64]`.
    pub codes: Vec<u16>,
    /// Pictures a variant.
    pub n: usize,
}

impl Codes {
    /// Codes of picture `i` in a variant.
    pub fn picture(&self, variant: usize, i: usize) -> &[u16] {
        &self.codes[(variant * self.n + i) * N_CODES..][..N_CODES]
    }

    /// Variants of each picture.
    pub fn variants(&self) -> usize {
        self.codes.len() / (self.n * N_CODES).max(1)
    }

    /// Writes `sets` by name, whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(path: &Path, sets: &[(&str, &Codes)]) -> Result<()> {
        let raw: Vec<Vec<u8>> =
            sets.iter().map(|(_, c)| c.codes.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
        let views = sets
            .iter()
            .zip(&raw)
            .map(|((n, c), b)| {
                Ok(((*n).to_owned(), TensorView::new(Dtype::U16, vec![c.variants(), c.n, N_CODES], b)?))
            })
            .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(|e| Error::content(path, e.to_string()))?;
        let raw = safetensors::serialize(views, None).map_err(|e| Error::content(path, e.to_string()))?;
        crate::params::write_whole(path, &raw)
    }

    /// Reads what [`Codes::save`] wrote.
    ///
    /// # Errors
    /// If the file is missing or not of that kind.
    pub fn load(path: &Path) -> Result<HashMap<String, Codes>> {
        let raw = std::fs::read(path).map_err(Error::file(path))?;
        let file = SafeTensors::deserialize(&raw).map_err(|e| Error::content(path, e.to_string()))?;
        let mut out = HashMap::new();
        for (name, view) in file.iter() {
            let &[_, n, N_CODES] = view.shape() else {
                return Err(Error::content(
                    path,
                    format!("`{name}` is no [variants, n, 64]; run `encode` again"),
                ));
            };
            if view.dtype() != Dtype::U16 {
                return Err(Error::content(path, format!("`{name}` is not U16; run `encode` again")));
            }
            let codes = view.data().chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
            out.insert(name.to_owned(), Codes { codes, n });
        }
        Ok(out)
    }
}

/// Token ids of texts, each tokenised once.
struct Words<'a> {
    tokenizer: &'a Tokenizer,
    seen: HashMap<String, Vec<u32>>,
}

impl Words<'_> {
    fn ids(&mut self, text: &str) -> Result<Vec<u32>> {
        if let Some(ids) = self.seen.get(text) {
            return Ok(ids.clone());
        }
        let ids = text::encode(self.tokenizer, text)?;
        self.seen.insert(text.to_owned(), ids.clone());
        Ok(ids)
    }
}

/// A question and its answer as ids.
pub type Qa = (Vec<u32>, Vec<u32>);

/// Pictures with questions, encoded.
pub struct PictureSet {
    codes: Codes,
    questions: Vec<Vec<Qa>>,
}

impl PictureSet {
    /// Tokenises the questions of each picture.
    ///
    /// # Errors
    /// If there are not as many codes as pictures are asked about.
    pub fn new(codes: Codes, questions: &[Question], tokenizer: &Tokenizer) -> Result<PictureSet> {
        let mut words = Words { tokenizer, seen: HashMap::new() };
        let mut lists = vec![Vec::new(); codes.n];
        for q in questions {
            let list = lists.get_mut(q.picture).ok_or_else(|| {
                Error::Setting(
                    "there are fewer encoded pictures than questions ask about; run `encode` again".into(),
                )
            })?;
            list.push((words.ids(&q.question)?, words.ids(&q.answer)?));
        }
        Ok(PictureSet { codes, questions: lists })
    }

    /// How many pictures there are.
    pub fn len(&self) -> usize {
        self.codes.n
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.codes.n == 0
    }

    /// How many questions there are.
    pub fn questions(&self) -> usize {
        self.questions.iter().map(Vec::len).sum()
    }

    /// One picture with up to `most` of its questions in random order.
    pub fn draw(&self, dims: &Dims, most: usize, rng: &mut ChaCha8Rng) -> Sequence {
        let picture = draw_index(self.codes.n, rng);
        let variant = rng.random_range(0..self.codes.variants());
        let mut order: Vec<usize> = (0..self.questions[picture].len()).collect();
        order.shuffle(rng);
        order.truncate(most);
        self.sequence(dims, variant, picture, &order)
    }

    /// A picture with the questions of these indices, in that order.
    pub fn sequence(&self, dims: &Dims, variant: usize, picture: usize, order: &[usize]) -> Sequence {
        let mut s = Sequence::open(dims, Task::Vqa, &[]);
        s.image(dims, self.codes.picture(variant, picture));
        for &q in order {
            let (question, answer) = &self.questions[picture][q];
            s.ask(question, answer);
        }
        s
    }

    /// The pictures kept for validation, plain, each with all its questions.
    pub fn validation(&self, dims: &Dims) -> Vec<Sequence> {
        let whole = |i: usize| self.sequence(dims, 0, i, &(0..self.questions[i].len()).collect::<Vec<_>>());
        validation_indices(self.len()).map(whole).collect()
    }
}

/// What a robot sequence leaves out, and how long it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Decision steps.
    pub steps: usize,
    /// Whether the instruction is given.
    pub instruction: bool,
    /// Whether states are given.
    pub states: bool,
    /// Whether executed actions are given.
    pub actions: bool,
    /// Steps at which questions hang.
    pub asked: usize,
}

impl Shape {
    /// A random shape: a quarter are long enough that windows evict; a third are pixels only, as a bare camera is.
    pub fn draw(rng: &mut ChaCha8Rng) -> Shape {
        let long = rng.random_bool(0.25);
        let bare = rng.random_bool(0.3);
        let mut keep = |p: f64| rng.random_bool(p) && !bare;
        let (instruction, states, actions) = (keep(0.7), keep(0.7), keep(0.6));
        Shape {
            steps: if long { 6 } else { 2 },
            instruction,
            states,
            actions,
            asked: if long { 3 } else { 2 },
        }
    }
}

/// Episodes, encoded.
pub struct RobotSet {
    codes: Codes,
    steps: Vec<Step>,
    episodes: Vec<Episode>,
    instructions: Vec<Vec<u32>>,
    captions: Vec<Vec<u32>>,
    qa: Vec<Vec<Qa>>,
    question: Vec<u32>,
    /// Range of the states.
    pub state: Binning,
    /// Range of the actions.
    pub action: Binning,
}

/// Global ids of the bins of `values`, whole rows of the binning's dimensions.
pub fn bins(dims: &Dims, binning: &Binning, values: &[f32]) -> Vec<u32> {
    let start = dims.bins().start;
    let id = |(i, &v): (usize, &f32)| binning.bin(i % binning.low.len(), v, dims.n_bins) + start;
    values.iter().enumerate().map(|v| u32::try_from(id(v)).unwrap_or(0)).collect()
}

/// Frames between two decisions.
const STRIDE: usize = EXECUTED_STEPS;

impl RobotSet {
    /// Tokenises captions, questions and instructions, and fits the bins.
    ///
    /// # Errors
    /// If codes and steps do not match.
    pub fn new(
        codes: Codes,
        steps: Vec<Step>,
        episodes: Vec<Episode>,
        tokenizer: &Tokenizer,
    ) -> Result<RobotSet> {
        if codes.n != steps.len()
            || episodes.iter().any(|e| e.frames.end > steps.len() || e.frames.is_empty())
        {
            return Err(Error::Setting("encoded frames and steps do not match; run `encode` again".into()));
        }
        let mut words = Words { tokenizer, seen: HashMap::new() };
        let captions = steps.iter().map(|s| words.ids(&s.caption)).collect::<Result<_>>()?;
        let qa = steps
            .iter()
            .map(|s| s.qa.iter().map(|(q, a)| Ok((words.ids(q)?, words.ids(a)?))).collect())
            .collect::<Result<_>>()?;
        let instructions = episodes.iter().map(|e| words.ids(&e.instruction)).collect::<Result<_>>()?;
        let question = words.ids(CAPTION_QUESTION)?;
        let column = |f: fn(&Step) -> &Vec<f32>| steps.iter().map(|s| f(s).clone()).collect::<Vec<_>>();
        let state = Binning::fitted(&column(|s| &s.state), STATE_DIM);
        let action = Binning::fitted(&column(|s| &s.action), ACTION_DIM);
        Ok(RobotSet { codes, steps, episodes, instructions, captions, qa, question, state, action })
    }

    /// How many frames there are.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// How many questions there are, the caption's among them.
    pub fn questions(&self) -> usize {
        self.qa.iter().map(|qa| qa.len() + 1).sum()
    }

    /// A sequence of this shape from a random place.
    ///
    /// # Errors
    /// If the set's actions do not have four dimensions.
    pub fn draw(&self, dims: &Dims, shape: &Shape, rng: &mut ChaCha8Rng) -> Result<Sequence> {
        let e = draw_index(self.episodes.len(), rng);
        let frames = self.episodes[e].frames.clone();
        let span = (shape.steps - 1) * STRIDE;
        let first = if frames.len() > span {
            frames.start + rng.random_range(0..frames.len() - span)
        } else {
            frames.start + rng.random_range(0..STRIDE.min(frames.len()))
        };
        let at: Vec<usize> =
            (0..shape.steps).map(|i| first + i * STRIDE).filter(|f| *f < frames.end).collect();
        let mut asked: Vec<usize> = (0..at.len()).collect();
        asked.shuffle(rng);
        asked.truncate(shape.asked);
        let variant = rng.random_range(0..self.codes.variants());
        let mut picks = Vec::new();
        for (i, &f) in at.iter().enumerate() {
            let mut order: Vec<usize> = (0..self.qa[f].len()).collect();
            order.shuffle(rng);
            order.truncate(2);
            picks.push(if asked.contains(&i) { Some(order) } else { None });
        }
        self.sequence(dims, shape, e, variant, &at, &picks)
    }

    /// Six steps of each episode kept for validation, caption and three questions a step; with everything `given` or pixels only.
    ///
    /// # Errors
    /// If the set's actions do not have four dimensions.
    pub fn validation(&self, dims: &Dims, given: bool) -> Result<Vec<Sequence>> {
        let shape = Shape { steps: 6, instruction: given, states: given, actions: given, asked: 6 };
        let one = |(nth, e): (usize, usize)| {
            let frames = self.episodes[e].frames.clone();
            let first = frames.start + 20 * (nth % 3);
            let at: Vec<usize> =
                (0..shape.steps).map(|i| first + i * STRIDE).filter(|f| *f < frames.end).collect();
            let picks: Vec<_> = at
                .iter()
                .enumerate()
                .map(|(i, &f)| {
                    let n = self.qa[f].len();
                    Some((0..n.min(3)).map(|j| (3 * i + j) % n).collect())
                })
                .collect();
            self.sequence(dims, &shape, e, 0, &at, &picks)
        };
        validation_indices(self.episodes.len()).enumerate().map(one).collect()
    }

    /// The sequence over the frames `at` of episode `e`; `picks` says which questions hang at each step, none without caption.
    ///
    /// # Errors
    /// If the set's actions do not have four dimensions.
    pub fn sequence(
        &self,
        dims: &Dims,
        shape: &Shape,
        e: usize,
        variant: usize,
        at: &[usize],
        picks: &[Option<Vec<usize>>],
    ) -> Result<Sequence> {
        let end = self.episodes[e].frames.end;
        let instruction: &[u32] = if shape.instruction { &self.instructions[e] } else { &[] };
        let mut s = Sequence::open(dims, Task::Robot, instruction);
        for (i, &f) in at.iter().enumerate() {
            s.image(dims, self.codes.picture(variant, f));
            if shape.states {
                s.bins(Modality::State, &bins(dims, &self.state, &self.steps[f].state));
            }
            if let Some(Some(picks)) = picks.get(i) {
                s.ask(&self.question, &self.captions[f]);
                for &q in picks {
                    let (question, answer) = &self.qa[f][q];
                    s.ask(question, answer);
                }
            }
            let chunk: Vec<f32> =
                (0..CHUNK_STEPS).flat_map(|t| self.steps[(f + t).min(end - 1)].action.clone()).collect();
            s.slots(&bins(dims, &self.action, &chunk))?;
            if shape.actions && i + 1 < at.len() {
                let done: Vec<f32> =
                    (f..(f + STRIDE).min(end)).flat_map(|t| self.steps[t].executed.clone()).collect();
                s.bins(Modality::Action, &bins(dims, &self.action, &done));
            }
        }
        Ok(s)
    }
}
