//! Published families on text and pictures of the user's, teacher forced.
//!
//! Text is scored as llama-perplexity does: the tokens of a file are cut into windows that see nothing of each other, the first token of
//! each gives way to the begin token where the model has one, and what the second half of a window says is scored. The rest of a file
//! that fills no window is left out. Each picture is put before the beginning of a text, as the family's processor does, and every token
//! of text behind it is scored; several texts take turns.
//!
//! Codes of pictures are the float model's on both sides and are scored where the model says such (Emu3, Anole), without guidance; features are each model's own
//! (Janus), so that what its eye loses counts. Janus draws, too: the float model draws what the first text begins with, and both say how
//! likely each code was.

mod shown;
mod side;

use std::collections::HashMap;

use saccade::config::ModelConfig;
use saccade::sample::SamplerOptions;
use saccade::session::{self, Session, SessionError, SessionOptions};
use saccade::source::Frame;
use saccade::tokenize::{DrawPrompt, Picture};
use serde::Serialize;

use super::stats::{Positions, Rows};
use super::{Fault, Models};
use crate::error::Result;
use crate::inspect::ratio;
use crate::progress::Progress;
pub(super) use shown::Shown;
use side::{Scored, Side, score};

/// Most tokens of a text that is drawn.
const DRAWN_TOKENS: usize = 64;

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

/// Both models, and what was seen of them.
struct Pair {
    config: ModelConfig,
    base: Side,
    candidate: Side,
    /// Tokens that are codes of pictures, and which.
    code_ids: HashMap<u32, u16>,
    /// Whether it says such.
    draws: bool,
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
        let draws = match &config {
            ModelConfig::Chameleon(c) => c.image.vq.decoder,
            ModelConfig::Emu3(_) => true,
            _ => false,
        };
        Ok(Self {
            code_ids: config.code_ids().iter().copied().zip(0..=u16::MAX).collect(),
            draws,
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
        let picture = frame.picture();
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

        let Self { base, candidate, behind_picture, .. } = self;
        let scored = Scored::Text { ids: &ids, first: before - 1 };
        score(base, candidate, scored, &mut |target, expected, found| {
            add(behind_picture, expected, found, target);
        })?;
        if self.draws { self.image_codes(&ids[..before]) } else { Ok(()) }
    }

    /// Scores the codes of a picture in a text.
    fn image_codes(&mut self, ids: &[u32]) -> std::result::Result<(), Fault> {
        let Self { base, candidate, image, code_ids, .. } = self;
        let codes: Vec<u16> = ids.iter().filter_map(|id| code_ids.get(id)).copied().collect();
        let Some(begin) = ids.iter().position(|id| code_ids.contains_key(id)) else { return Ok(()) };
        // A row ends where something else stands between the codes.
        let columns = ids[begin..].iter().take_while(|id| code_ids.contains_key(id)).count();
        let scored = Scored::Drawing { prompt: &ids[..begin], codes: &codes, columns };
        score(base, candidate, scored, &mut |target, expected, found| add(image, expected, found, target))
    }

    /// The float model's tokens of a picture; counts those of its codes that the bundle has otherwise.
    fn codes(&mut self, placeholder: u32, picture: Picture<'_>) -> std::result::Result<Vec<u32>, Fault> {
        let expected = self.base.codes(placeholder, picture)?;
        let found = self.candidate.codes(placeholder, picture)?;
        let codes = expected.iter().zip(&found).filter(|(expected, _)| self.code_ids.contains_key(expected));
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
        let ids: Vec<u32> = text.iter().take(DRAWN_TOKENS).copied().chain([c.vision.begin]).collect();
        let Self { base, candidate, drawing, .. } = self;
        let mut prompt = DrawPrompt::of_tokens(&base.model, &ids, None)?;
        // The likeliest code each time, so that two runs draw the same.
        prompt.sampling = SamplerOptions::default();
        let options = SessionOptions { max_text_tokens: prompt.tokens(), max_sequences: 2 };
        let (mut guided, mut free) =
            (Session::new(&base.model, &options)?, Session::new(&base.model, &options)?);
        let mut codes = Vec::new();
        session::draw(&mut guided, &mut free, &prompt, &mut codes, &mut |_| true)
            .map_err(|error| Fault::of(base.name, error))?;
        let scored = Scored::Drawing { prompt: &prompt.guided, codes: &codes, columns: prompt.grid[1] };
        score(base, candidate, scored, &mut |target, expected, found| add(drawing, expected, found, target))
    }
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
