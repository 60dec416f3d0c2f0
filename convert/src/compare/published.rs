//! Published families on text and pictures of the user's, teacher forced.
//!
//! Text is scored as llama-perplexity does: the tokens of a file are cut into windows that see nothing of each other, the first token of
//! each gives way to the begin token where the model has one, and what the second half of a window says is scored. The rest of a file
//! that fills no window is left out. Each picture is put before the beginning of a text, as the family's processor does, and every token
//! of text behind it is scored; several texts take turns.
//!
//! Codes of pictures are the float model's on both sides and are scored where the family says such (Emu3); features are each model's own
//! (Janus), so that what its eye loses counts. Janus draws, too: the float model draws what the first text begins with, and both say how
//! likely each code was.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use saccade::config::ModelConfig;
use saccade::family::Model;
use saccade::sample::Sampler;
use saccade::session::{self, Session, SessionError, SessionOptions};
use saccade::source::{Frame, decode_picture};
use saccade::tokenize::{Features, Picture, PictureReader};
use serde::Serialize;

use super::stats::{Positions, Rows};
use super::{Fault, Given, Models};
use crate::error::{ConvertError, Result, io};
use crate::inspect::ratio;
use crate::progress::Progress;

/// Tokens of a window, where the user does not say and the model takes so many: llama-perplexity's.
const WINDOW: usize = 512;
/// Fewest tokens of a window.
const MIN_WINDOW: usize = 8;
/// Largest file of text or of a picture.
const MAX_BYTES: u64 = 64 << 20;
/// Positions that the float model may be ahead, each with its logits.
const AHEAD: usize = 4;
/// Most tokens of a text that is drawn.
const DRAWN_TOKENS: usize = 64;
/// What the drawing is guided with.
const GUIDANCE: f32 = 5.0;

/// The report. Divergences in nats, shares as fractions of one; a part that the family or the input has not is null.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Mean KL(float ‖ bundle) over tokens of text.
    pub kl_mean: f64,
    /// Its 99th percentile.
    pub kl_p99: f64,
    /// Its maximum.
    pub kl_max: f64,
    /// Share of tokens of text with the same most likely token.
    pub same_top: f64,
    /// Share of pictures' codes that the bundle's encoder gives another value.
    pub code_flip: Option<f64>,
    /// Root mean square of what the bundle's features of pictures are off, over that of the float model's features.
    pub feature_error: Option<f64>,
    /// Four bytes × parameters ÷ bytes of the weights file.
    pub size_ratio_f32: f64,
    /// The same for linear layers alone, their scales and sums counted.
    pub size_ratio_linear: f64,
    /// Windows of text.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Pictures.
    pub pictures: usize,
    /// Windows of text.
    pub text: Rows,
    /// Text behind a picture.
    pub behind_picture: Option<Rows>,
    /// Codes of pictures in a text.
    pub image: Option<Rows>,
    /// Codes of a drawing.
    pub drawing: Option<Rows>,
}

/// What both models are shown.
pub(super) struct Shown {
    texts: Vec<(PathBuf, Vec<u32>)>,
    pictures: Vec<(PathBuf, Frame)>,
    window: usize,
}

impl Shown {
    /// Reads every file, so that what is wrong with one is said before a model is converted.
    pub(super) fn read(bundle: &Path, model: &Model, given: &Given) -> Result<Self> {
        let most = model.config().language().map_or(WINDOW, |c| c.max_positions);
        let window = given.window.unwrap_or_else(|| WINDOW.min(most));
        if !(MIN_WINDOW..=most).contains(&window) {
            let reason =
                format!("a window has {MIN_WINDOW} to {most} tokens here, not {window}; change --window");
            return Err(refuse(bundle, reason));
        }
        let texts = given.texts.iter().map(|path| Ok((path.clone(), text(model, path, window)?)));
        let pictures = given.images.iter().map(|path| Ok((path.clone(), picture(path)?)));
        Ok(Self { texts: texts.collect::<Result<_>>()?, pictures: pictures.collect::<Result<_>>()?, window })
    }
}

fn refuse(path: &Path, reason: String) -> ConvertError {
    ConvertError::Refused { path: path.into(), reason }
}

fn bytes(path: &Path) -> Result<Vec<u8>> {
    let found = std::fs::metadata(path).map_err(io(path))?.len();
    if found > MAX_BYTES {
        return Err(refuse(
            path,
            format!("it has {found} bytes, at most {MAX_BYTES} are read; give a part of it"),
        ));
    }
    std::fs::read(path).map_err(io(path))
}

/// The tokens of a file, the begin token in front where the model has one.
fn text(model: &Model, path: &Path, window: usize) -> Result<Vec<u32>> {
    let text = String::from_utf8(bytes(path)?)
        .map_err(|_| refuse(path, "it is not UTF-8; --text takes plain text".into()))?;
    let mut ids: Vec<u32> = model.config().language().and_then(|c| c.bos).into_iter().collect();
    ids.extend(model.text()?.encode(&text)?);
    if ids.len() < window {
        let reason = format!(
            "it has {} tokens, fewer than one window of {window}; give a longer text or a smaller --window",
            ids.len()
        );
        return Err(refuse(path, reason));
    }
    Ok(ids)
}

fn picture(path: &Path) -> Result<Frame> {
    let mut frame = Frame::default();
    decode_picture(&bytes(path)?, &mut frame)
        .map_err(|error| refuse(path, format!("{error}; --image takes PNG and JPEG files")))?;
    Ok(frame)
}

/// Compares both models on what is shown.
///
/// # Errors
/// A text or picture that does not fit the models, or a model that gives no numbers.
pub(super) fn compare(models: &Models, shown: &Shown) -> Result<Comparison> {
    let mut pair = Pair::new(models)?;
    let Shown { texts, pictures, window } = shown;
    let windows: usize = texts.iter().map(|(_, ids)| ids.len() / window).sum();
    let mut progress = Progress::counted("compare", (windows + pictures.len()) as u64);
    for (path, ids) in texts {
        for ids in ids.chunks_exact(*window) {
            pair.window(ids).map_err(|fault| fault.in_file(path))?;
            progress.advance(1, "text");
        }
    }
    for ((path, frame), (_, ids)) in pictures.iter().zip(texts.iter().cycle()) {
        pair.picture(frame, &ids[..*window]).map_err(|fault| fault.in_file(path))?;
        progress.advance(1, "pictures");
    }
    if let Some((path, ids)) = texts.first() {
        pair.draw(ids).map_err(|fault| fault.in_file(path))?;
    }
    drop(progress);

    let mut all = pair.text.clone();
    all.extend(&pair.behind_picture);
    let all = all.rows();
    let some = |positions: &Positions| (positions.len() > 0).then(|| positions.rows());
    Ok(Comparison {
        kl_mean: all.kl_mean,
        kl_p99: all.kl_p99,
        kl_max: all.kl_max,
        same_top: all.same_top,
        code_flip: (pair.codes > 0).then(|| ratio(pair.flipped, pair.codes)),
        feature_error: (pair.features[0] > 0.0).then(|| (pair.features[1] / pair.features[0]).sqrt()),
        size_ratio_f32: models.size_ratio_f32,
        size_ratio_linear: models.size_ratio_linear,
        windows,
        window: *window,
        pictures: pictures.len(),
        text: pair.text.rows(),
        behind_picture: some(&pair.behind_picture),
        image: some(&pair.image),
        drawing: some(&pair.drawing),
    })
}

/// One of the two models at work.
struct Side {
    /// Its name in a sentence.
    name: &'static str,
    model: Arc<Model>,
    eye: Option<Eye>,
    session: Session,
    /// Tokens that the session takes.
    room: usize,
}

/// How a model reads pictures.
enum Eye {
    Codes(PictureReader),
    Features(Features),
}

impl Side {
    fn new(name: &'static str, model: &Arc<Model>) -> saccade::Result<Self> {
        let eye = match model.config() {
            ModelConfig::Janus(_) => Some(Eye::Features(Features::new(model)?)),
            _ => PictureReader::new(model)?.map(Eye::Codes),
        };
        let options = SessionOptions::default();
        let session = Session::new(model, &options)?;
        Ok(Self { name, model: Arc::clone(model), eye, session, room: options.max_text_tokens })
    }

    /// Sees to a session of so many tokens.
    fn reach(&mut self, tokens: usize) -> std::result::Result<(), Fault> {
        if tokens > self.room {
            let options = SessionOptions { max_text_tokens: tokens, ..SessionOptions::default() };
            self.session = Session::new(&self.model, &options)?;
            self.room = tokens;
        }
        Ok(())
    }

    /// The tokens of a picture with what stands around them; nothing of a model that reads features.
    fn codes(&mut self, placeholder: u32, picture: Picture<'_>) -> std::result::Result<Vec<u32>, Fault> {
        match &mut self.eye {
            Some(Eye::Codes(reader)) => reader
                .read(&[placeholder], &[picture], &mut self.session)
                .map_err(|error| Fault::of(self.name, error)),
            _ => Ok(Vec::new()),
        }
    }

    /// The features of a picture, `[patches, d_model]`; nothing of a model that reads codes.
    fn features(&mut self, picture: Picture<'_>) -> std::result::Result<Vec<f32>, Fault> {
        match &mut self.eye {
            Some(Eye::Features(eye)) => {
                Ok(eye.of(picture).map_err(|error| Fault::of(self.name, error))?.to_vec())
            }
            _ => Ok(Vec::new()),
        }
    }
}

/// What is scored: a text behind its row `first`, or the codes of a drawing.
#[derive(Clone, Copy)]
enum Scored<'a> {
    Text { ids: &'a [u32], first: usize },
    Drawing { prompt: &'a [u32], codes: &'a [u16] },
}

impl Scored<'_> {
    fn run(
        self,
        side: &mut Side,
        on_logits: &mut dyn FnMut(usize, &[f32]),
    ) -> std::result::Result<(), Fault> {
        let session = &mut side.session;
        let scored = match self {
            Self::Text { ids, first } => {
                let (question, answer) = ids.split_at(first + 1);
                session.score_answer(question, answer, on_logits)
            }
            Self::Drawing { prompt, codes } => session.score_drawing(prompt, codes, on_logits),
        };
        scored.map_err(|error| Fault::of(side.name, error))
    }

    /// How many there are.
    fn tokens(self) -> usize {
        match self {
            Self::Text { ids, .. } => ids.len(),
            Self::Drawing { prompt, codes } => prompt.len() + codes.len(),
        }
    }

    /// What truly follows the `at`th row that is scored.
    fn target(self, at: usize) -> Option<usize> {
        match self {
            Self::Text { ids, first } => ids.get(first + 1 + at).map(|&id| id as usize),
            Self::Drawing { codes, .. } => codes.get(at).map(|&code| code.into()),
        }
    }
}

/// Both models, and what was seen of them.
struct Pair {
    config: ModelConfig,
    base: Side,
    candidate: Side,
    /// Tokens that are codes of pictures.
    code_ids: HashSet<u32>,
    text: Positions,
    behind_picture: Positions,
    image: Positions,
    drawing: Positions,
    flipped: u64,
    codes: u64,
    /// Sums of squares: of the float model's features, and of what the bundle's are off.
    features: [f64; 2],
}

impl Pair {
    fn new(models: &Models) -> saccade::Result<Self> {
        let config = models.base.config().clone();
        let code_ids: &[u32] = match &config {
            ModelConfig::Chameleon(c) => &c.image.ids,
            ModelConfig::Emu3(c) => &c.image.ids,
            _ => &[],
        };
        Ok(Self {
            code_ids: code_ids.iter().copied().collect(),
            base: Side::new("float model", &models.base)?,
            candidate: Side::new("bundle", &models.candidate)?,
            text: Positions::default(),
            behind_picture: Positions::default(),
            image: Positions::default(),
            drawing: Positions::default(),
            flipped: 0,
            codes: 0,
            features: [0.0; 2],
            config,
        })
    }

    /// Scores what the second half of a window says.
    fn window(&mut self, ids: &[u32]) -> std::result::Result<(), Fault> {
        let bos = self.config.language().and_then(|c| c.bos);
        let ids: Vec<u32> = bos.into_iter().chain(ids.iter().skip(bos.iter().len()).copied()).collect();
        let Self { base, candidate, text, .. } = self;
        let scored = Scored::Text { ids: &ids, first: ids.len() / 2 };
        score(base, candidate, scored, &mut |target, expected, found| add(text, expected, found, target))
    }

    /// Shows both a picture and scores the text behind it, and the picture's codes where the family says such.
    fn picture(&mut self, frame: &Frame, text: &[u32]) -> std::result::Result<(), Fault> {
        let picture = Picture { rgb: &frame.rgb, width: frame.width as usize, height: frame.height as usize };
        let bos = self.config.language().and_then(|c| c.bos);
        let text = &text[bos.iter().len()..];
        let mut ids: Vec<u32> = bos.into_iter().collect();
        match &self.config {
            ModelConfig::Janus(c) => {
                let vision = &c.vision;
                ids.push(vision.begin);
                ids.extend(std::iter::repeat_n(vision.placeholder, vision.patches()));
                ids.push(vision.end);
            }
            ModelConfig::Chameleon(c) => ids.extend(self.codes(c.image.placeholder, picture)?),
            ModelConfig::Emu3(c) => ids.extend(self.codes(c.image.placeholder, picture)?),
            _ => {}
        }
        let before = ids.len();
        ids.extend_from_slice(text);
        let most = self.config.language().map_or(usize::MAX, |c| c.max_positions);
        if ids.len() > most {
            return Err(Fault::Runtime(SessionError::TooLong { tokens: ids.len(), room: most }.into()));
        }
        self.features(picture, ids.len())?;

        let Self { base, candidate, behind_picture, image, code_ids, config, .. } = self;
        // Without a prompt, nothing says what the first token behind the begin token is; from the picture's first code on there is.
        let says = !code_ids.is_empty() && config.unsaid().is_empty();
        let first = if says { 0 } else { before - 1 };
        let mut at = first;
        score(base, candidate, Scored::Text { ids: &ids, first }, &mut |target, expected, found| {
            at += 1;
            if at >= before {
                add(behind_picture, expected, found, target);
            } else if u32::try_from(target).is_ok_and(|id| code_ids.contains(&id)) {
                add(image, expected, found, target);
            }
        })
    }

    /// The float model's tokens of a picture; counts those of its codes that the bundle has otherwise.
    fn codes(&mut self, placeholder: u32, picture: Picture<'_>) -> std::result::Result<Vec<u32>, Fault> {
        let expected = self.base.codes(placeholder, picture)?;
        let found = self.candidate.codes(placeholder, picture)?;
        let codes = expected.iter().zip(&found).filter(|(expected, _)| self.code_ids.contains(expected));
        for (expected, found) in codes {
            self.codes += 1;
            self.flipped += u64::from(expected != found);
        }
        Ok(expected)
    }

    /// Shows each model its own features of a picture, where it reads such, before a text of so many tokens.
    fn features(&mut self, picture: Picture<'_>, tokens: usize) -> std::result::Result<(), Fault> {
        let (expected, found) = (self.base.features(picture)?, self.candidate.features(picture)?);
        for (expected, found) in expected.iter().zip(&found) {
            self.features[0] += f64::from(*expected).powi(2);
            self.features[1] += (f64::from(*found) - f64::from(*expected)).powi(2);
        }
        for (side, features) in [(&mut self.base, expected), (&mut self.candidate, found)] {
            side.reach(tokens)?;
            if !features.is_empty() {
                side.session.show(&features)?;
            }
        }
        Ok(())
    }

    /// Lets the float model draw what a text begins with, and scores its codes; nothing in families that do not draw.
    fn draw(&mut self, text: &[u32]) -> std::result::Result<(), Fault> {
        let ModelConfig::Janus(c) = &self.config else { return Ok(()) };
        let [rows, columns] = c.drawing.grid;
        let prompt: Vec<u32> = text.iter().take(DRAWN_TOKENS).copied().chain([c.vision.begin]).collect();
        let Self { base, candidate, drawing, .. } = self;
        let options = SessionOptions { max_text_tokens: prompt.len() + rows * columns, max_sequences: 2 };
        let (mut guided, mut free) =
            (Session::new(&base.model, &options)?, Session::new(&base.model, &options)?);
        let mut codes = Vec::new();
        session::draw(&mut guided, &mut free, &prompt, GUIDANCE, &mut Sampler::greedy(), &mut codes)
            .map_err(|error| Fault::of(base.name, error))?;
        let scored = Scored::Drawing { prompt: &prompt, codes: &codes };
        score(base, candidate, scored, &mut |target, expected, found| add(drawing, expected, found, target))
    }
}

/// Runs both models and gives `see` the true token and the logits of both at each position. The float model runs a few positions ahead, so
/// that no window's logits have to be kept.
fn score(
    base: &mut Side,
    candidate: &mut Side,
    scored: Scored<'_>,
    see: &mut dyn FnMut(usize, &[f32], &[f32]),
) -> std::result::Result<(), Fault> {
    base.reach(scored.tokens())?;
    candidate.reach(scored.tokens())?;
    let (sender, receiver) = sync_channel::<Vec<f32>>(AHEAD);
    std::thread::scope(|scope| {
        let ahead = scope.spawn(move || {
            scored.run(base, &mut |_, row| {
                // Refused only when the other one has failed, which is said.
                let _ = sender.send(row.to_vec());
            })
        });
        let followed = scored.run(candidate, &mut |at, found| {
            // None only when the float model has failed, which is said.
            let Ok(expected) = receiver.recv() else { return };
            if let Some(target) = scored.target(at) {
                see(target, &expected, found);
            }
        });
        drop(receiver);
        ahead.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).and(followed)
    })
}

/// Adds a position without what neither model ever says; nothing where the true token is such.
fn add(positions: &mut Positions, expected: &[f32], found: &[f32], target: usize) {
    let never = |at: usize| expected[at] == f32::NEG_INFINITY && found[at] == f32::NEG_INFINITY;
    if never(target) {
        return;
    }
    let said: Vec<usize> = (0..expected.len()).filter(|&at| !never(at)).collect();
    let of = |logits: &[f32]| said.iter().map(|&at| logits[at]).collect::<Vec<_>>();
    let at = said.binary_search(&target).expect("it is one that is said");
    positions.add(&of(expected), &of(found), at);
}

impl Comparison {
    /// The report for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = self.text.to_text("Text");
        for (rows, title) in [
            (&self.behind_picture, "Text behind a picture"),
            (&self.image, "Codes of pictures"),
            (&self.drawing, "Codes of a drawing"),
        ] {
            text += &rows.as_ref().map_or_else(String::new, |rows| rows.to_text(title));
        }
        let percent = |share: f64| format!("{:.3} %", 100.0 * share);
        text += "====== The bundle ======\n";
        for (name, value) in [
            ("Picture codes flipped", self.code_flip.map(percent)),
            ("Features off", self.feature_error.map(percent)),
            ("Size F32/Q", Some(format!("{:.3}", self.size_ratio_f32))),
            ("Size F32/Q, linear", Some(format!("{:.3}", self.size_ratio_linear))),
            ("Windows, tokens each", Some(format!("{}, {}", self.windows, self.window))),
            ("Pictures", Some(self.pictures.to_string()).filter(|_| self.pictures > 0)),
        ] {
            text += &value.map_or_else(String::new, |value| format!("{name:<22}: {value}\n"));
        }
        text
    }
}
