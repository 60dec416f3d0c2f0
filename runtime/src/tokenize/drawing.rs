//! A description into what a model draws from, and the codes that it draws into a picture.

use std::sync::Arc;

use super::{Clips, Fit, Message};
use crate::Result;
use crate::config::{ChameleonConfig, ClipCodes, CodedImage, Emu3Config, JanusConfig, ModelConfig, VqConfig};
use crate::engine::maps::{Canvas, Slot};
use crate::family::Model;
use crate::sample::SamplerOptions;
use crate::session::SessionError;
use crate::vq::VqDecoder;

/// What Emu3 was shown to be kept away from. Source: `image_generation.py` of baaivision/Emu3.
const EMU3_AVOID: &str = "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst \
                          quality, low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry.";
/// Pixels of a picture of Emu3's. Source: the default of transformers' `Emu3Processor`.
const EMU3_PIXELS: f64 = 518_400.0;

/// What a model draws from.
#[derive(Clone, Debug, PartialEq)]
pub struct DrawPrompt {
    /// The description, up to where the codes begin.
    pub guided: Vec<u32>,
    /// What stands there in the sequence that is not to know the description.
    pub free: Vec<u32>,
    /// Rows and columns of codes.
    pub grid: [usize; 2],
    /// Tokens of a row, its end included.
    row: usize,
    /// How much the description counts: 1 is the model alone. At first, what its makers draw with.
    pub guidance: f32,
    /// How codes are picked. At first, as its makers do.
    pub sampling: SamplerOptions,
}

impl DrawPrompt {
    /// For a picture of `words`, `size_px` high and wide if that is given; `avoid` says what shall not be seen, for models that are told.
    ///
    /// # Errors
    /// If the model does not draw, or not of this size, or the text tokenizer refuses.
    pub fn new(model: &Model, words: &str, avoid: Option<&str>, size_px: Option<[usize; 2]>) -> Result<Self> {
        let mut prompt = Self::heading(model, size_px)?;
        let text = model.text()?;
        match model.config() {
            ModelConfig::Emu3(c) => {
                let heading = std::mem::take(&mut prompt.guided);
                let told = |words: &str| -> Result<Vec<u32>> {
                    let words = text.encode(words)?;
                    Ok(c.language.bos.into_iter().chain(words).chain(heading.iter().copied()).collect())
                };
                prompt.guided = told(words)?;
                prompt.free = told(avoid.unwrap_or(EMU3_AVOID))?;
            }
            _ if avoid.is_some_and(|avoid| !avoid.is_empty()) => return Err(SessionError::Avoid.into()),
            config => {
                let mut guided = text.encode_chat(&[Message::text("user", words)])?;
                guided.append(&mut prompt.guided);
                prompt.free = unguided(config, &guided);
                prompt.guided = guided;
            }
        }
        let (tokens, room) = (prompt.tokens(), model.config().language().map_or(0, |c| c.max_positions));
        if tokens > room { Err(SessionError::Drawing { tokens, room }.into()) } else { Ok(prompt) }
    }

    /// For a description that is tokens already.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_tokens(model: &Model, guided: &[u32], size_px: Option<[usize; 2]>) -> Result<Self> {
        let prompt = Self::heading(model, size_px)?;
        Ok(Self { guided: guided.to_vec(), free: unguided(model.config(), guided), ..prompt })
    }

    /// Text tokens that a session needs for it.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.guided.len().max(self.free.len()).saturating_add(self.grid[0].saturating_mul(self.row))
    }

    /// All but the description: what stands between it and the codes is `guided`.
    fn heading(model: &Model, size_px: Option<[usize; 2]>) -> Result<Self> {
        let sampling = SamplerOptions { temperature: 1.0, ..Default::default() };
        let (fixed, guidance, sampling, begin) = match model.config() {
            // Source: Chen et al. 2025 (arXiv:2501.17811), `generation_inference.py`.
            ModelConfig::Janus(c) => (c.drawing.grid, 5.0, sampling, c.vision.begin),
            // Source: `Options.Image` of Meta's and Anole's `chameleon.py`.
            ModelConfig::Chameleon(c) => {
                let sampling = SamplerOptions { temperature: 0.7, top_p: 0.9, ..sampling };
                (grid_of(&c.image)?, 3.0, sampling, c.image.begin)
            }
            // Source: `image_generation.py` of baaivision/Emu3.
            ModelConfig::Emu3(c) => {
                let grid = emu3_grid(&c.image, size_px)?;
                let mut guided = vec![c.image.begin];
                guided.extend(model.text()?.encode(&format!("{}*{}", grid[0], grid[1]))?);
                guided.push(c.image.wrapper);
                let sampling = SamplerOptions { top_k: 2048, ..sampling };
                let row = grid[1] + 1;
                return Ok(Self { guided, free: Vec::new(), grid, row, guidance: 3.0, sampling });
            }
            config => return Err(SessionError::Family { family: config.family() }.into()),
        };
        let patch = vq_decoder(model)?.0.patch();
        let drawn = fixed.map(|places| places.saturating_mul(patch));
        if let Some([height, width]) = size_px.filter(|size| *size != drawn) {
            let reason = format!("cannot be drawn: this model draws {} × {} alone", drawn[1], drawn[0]);
            return Err(SessionError::PictureSize { width, height, reason }.into());
        }
        Ok(Self { guided: vec![begin], free: Vec::new(), grid: fixed, row: fixed[1], guidance, sampling })
    }
}

/// What the other sequence has where one has `guided`: Janus pads all but the begin of text and picture, Chameleon leaves it out.
fn unguided(config: &ModelConfig, guided: &[u32]) -> Vec<u32> {
    let keeps = |ids: [Option<u32>; 2]| move |id: &u32| ids.contains(&Some(*id));
    match config {
        ModelConfig::Janus(JanusConfig { language, vision, drawing }) => {
            let keeps = keeps([language.bos, Some(vision.begin)]);
            guided.iter().map(|id| if keeps(id) { *id } else { drawing.pad }).collect()
        }
        ModelConfig::Chameleon(ChameleonConfig { language, image }) => {
            // The template writes the first token where the configuration does not name it.
            let bos = language.bos.or(guided.first().copied());
            guided.iter().copied().filter(keeps([bos, Some(image.begin)])).collect()
        }
        ModelConfig::Emu3(Emu3Config { language, image }) => {
            let heading = guided.iter().rposition(|&id| id == image.begin).unwrap_or(guided.len());
            language.bos.into_iter().chain(guided[heading..].iter().copied()).collect()
        }
        _ => guided.to_vec(),
    }
}

/// Rows and columns of Chameleon's pictures, which are all of the size that its encoder takes.
pub(super) fn grid_of(image: &CodedImage) -> Result<[usize; 2]> {
    let patch = image.vq.patch();
    let [height, width] = match image.pixels.fit {
        Fit::CentreCrop { width, height } => [height, width],
        Fit::Whole | Fit::Square { .. } => [0; 2],
    };
    if height < patch || width < patch || !height.is_multiple_of(patch) || !width.is_multiple_of(patch) {
        let reason = format!("are not whole places of {patch} × {patch} pixels, or the size of no picture");
        return Err(SessionError::PictureSize { width, height, reason }.into());
    }
    Ok([height / patch, width / patch])
}

/// Rows and columns of a picture of Emu3's: a square of the usual size if none is given.
fn emu3_grid(image: &ClipCodes, size_px: Option<[usize; 2]>) -> Result<[usize; 2]> {
    let patch = image.movq.patch();
    let Some([height, width]) = size_px else {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "some hundred places"
        )]
        let side = (EMU3_PIXELS.sqrt() / patch as f64).round() as usize;
        return Ok([side.max(1); 2]);
    };
    if height == 0 || width == 0 || !height.is_multiple_of(patch) || !width.is_multiple_of(patch) {
        let reason = format!("cannot be drawn: both sides must be multiples of {patch}");
        return Err(SessionError::PictureSize { width, height, reason }.into());
    }
    Ok([height / patch, width / patch])
}

/// The way from codes back to pixels of a model whose codes are of one picture.
///
/// # Errors
/// If it has none.
fn vq_decoder(model: &Model) -> Result<(&VqConfig, &VqDecoder)> {
    model.vq_decoder().ok_or_else(|| SessionError::NoDecoder.into())
}

/// The picture of some codes, as the model's decoder gives it: `picture [height, width, 3] f32`, normalised as what its encoder takes;
/// returns its height and width.
///
/// # Errors
/// If the model has no decoder, the codes are not those of a picture, there is not enough memory, or a result is not a number.
pub fn drawn(
    model: &Arc<Model>,
    codes: &[u16],
    grid: [usize; 2],
    picture: &mut Vec<f32>,
) -> Result<(usize, usize)> {
    let [rows, columns] = grid;
    if let ModelConfig::Emu3(c) = model.config() {
        Clips::new(model)?.decode_picture(codes, (rows, columns), picture)?;
        let patch = c.image.movq.patch();
        return Ok((rows * patch, columns * patch));
    }
    let (config, decoder) = vq_decoder(model)?;
    if codes.is_empty() || Some(codes.len()) != rows.checked_mul(columns) {
        let (found, expected) = (codes.len(), rows.saturating_mul(columns).max(1));
        return Err(SessionError::Dimensions { what: "image", found, expected }.into());
    }
    if let Some(&code) = codes.iter().find(|&&code| usize::from(code) >= config.codebook_size) {
        let limit = config.codebook_size;
        return Err(SessionError::Token { what: "image code", id: code.into(), limit }.into());
    }
    let mut canvas = Canvas::new("the picture tokenizer of this model");
    let found = canvas.run(model.machine(), &|m| {
        decoder.decode(model.weights(), config, (codes, (rows, columns)), m)?;
        m.give(Slot::X)
    })?;
    if !found.iter().all(|x| x.is_finite()) {
        return Err(SessionError::NumericFault.into());
    }
    picture.clear();
    picture.extend_from_slice(found);
    let patch = config.patch();
    Ok((rows * patch, columns * patch))
}

/// A picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Painted {
    /// `[height, width, 3] u8`
    pub rgb: Vec<u8>,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// The picture of some codes, to be looked at.
///
/// # Errors
/// As [`drawn`].
pub fn painted(model: &Arc<Model>, codes: &[u16], grid: [usize; 2]) -> Result<Painted> {
    let mut values = Vec::new();
    let (height, width) = drawn(model, codes, grid, &mut values)?;
    let rgb = match model.config() {
        ModelConfig::Chameleon(c) => c.image.pixels.bytes(&values),
        ModelConfig::Emu3(c) => c.image.pixels.bytes(&values),
        // What Janus draws is normalised otherwise than what it reads: about −1 to 1. `as` keeps bytes in range.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        _ => values.iter().map(|x| ((x + 1.0) * 127.5).round_ties_even() as u8).collect(),
    };
    Ok(Painted { rgb, width, height })
}
