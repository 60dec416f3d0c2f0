//! Pictures and clips into codes and back, as Emu3 has it, and codes of a picture as tokens of its language model.

use std::collections::HashMap;
use std::sync::Arc;

use super::pixels::{PixelValues, Pixels};
use super::{Picture, Tokenizer, found_codes};
use crate::config::CONFIG_FILE;
use crate::engine::maps::{Canvas, Maps, Shape, Slot};
use crate::family::Model;
use crate::session::SessionError;
use crate::{Error, Result};

/// The picture and clip tokenizer of a language model that takes codes of both.
pub struct Clips {
    model: Arc<Model>,
    pixels: Pixels,
    canvas: Canvas,
}

/// Sizes of a clip, in pixels or in places of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames {
    /// Frames, or grids of codes.
    pub time: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl std::fmt::Debug for Clips {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clips").finish_non_exhaustive()
    }
}

impl Clips {
    /// For `model`.
    ///
    /// # Errors
    /// If the model takes no clips.
    pub fn new(model: &Arc<Model>) -> Result<Self> {
        let (image, _) = model.clip_codes()?;
        let path = model.weights().dir().join(CONFIG_FILE);
        let pixels = Pixels::new(&image.pixels).map_err(|source| Error::Config { path, source })?;
        let canvas = Canvas::new("the picture tokenizer of this model");
        Ok(Self { model: Arc::clone(model), pixels, canvas })
    }

    /// The picture as the encoder takes it.
    ///
    /// # Errors
    /// If it cannot be brought to the encoder's size.
    pub fn values(&mut self, picture: Picture<'_>) -> Result<PixelValues<'_>> {
        Ok(self.pixels.run(picture)?)
    }

    /// The codes of a picture that is ready for the encoder: `codes [rows, columns]`.
    ///
    /// # Errors
    /// If the sizes are not whole places of the grid, there is not enough memory, or a result is not a number.
    pub fn encode_picture(&mut self, picture: PixelValues<'_>, codes: &mut Vec<u16>) -> Result<()> {
        let PixelValues { values: x, width, height } = picture;
        self.codes_of(x, Frames { time: 1, height, width }, codes)
    }

    /// The codes of frames that are ready for the encoder: `codes [grids, rows, columns]`, a grid for each `time_factor` frames.
    ///
    /// Shapes: `values [time, height, width, 3] f32`.
    ///
    /// # Errors
    /// As [`Self::encode_picture`], or if the frames are not whole grids.
    pub fn encode_frames(&mut self, values: &[f32], frames: Frames, codes: &mut Vec<u16>) -> Result<()> {
        let (image, _) = self.model.clip_codes()?;
        let time = frames.time;
        if !time.is_multiple_of(image.movq.time_factor) {
            let expected = time.next_multiple_of(image.movq.time_factor);
            return Err(SessionError::Dimensions { what: "frames of a clip", found: time, expected }.into());
        }
        self.codes_of(values, frames, codes)
    }

    /// One frame stands for a picture, more for a clip.
    fn codes_of(&mut self, x: &[f32], frames: Frames, codes: &mut Vec<u16>) -> Result<()> {
        let Self { model, canvas, .. } = self;
        check_places(model, x.len(), frames)?;
        let frame = Shape::picture((frames.height, frames.width), 3);
        look(model, canvas, frames.time, codes, &|i, m| {
            m.load(Slot::X, frame, &|to| to.copy_from_slice(&x[i * frame.len()..][..frame.len()]))
        })
    }

    /// The picture that codes stand for: `values [rows · patch, columns · patch, 3]`, normalised as what the encoder takes.
    ///
    /// # Errors
    /// If there are not `rows · columns` codes of the model's, there is not enough memory, or a result is not a number.
    pub fn decode_picture(
        &mut self,
        codes: &[u16],
        (rows, columns): (usize, usize),
        values: &mut Vec<f32>,
    ) -> Result<()> {
        self.decode_grids(codes, Frames { time: 1, height: rows, width: columns }, 1, values)
    }

    /// The frames that grids of codes stand for: `values [grids · time_factor, rows · patch, columns · patch, 3]`.
    ///
    /// # Errors
    /// As [`Self::decode_picture`].
    pub fn decode_frames(&mut self, codes: &[u16], grids: Frames, values: &mut Vec<f32>) -> Result<()> {
        self.decode_grids(codes, grids, usize::MAX, values)
    }

    fn decode_grids(
        &mut self,
        codes: &[u16],
        grids: Frames,
        frames: usize,
        values: &mut Vec<f32>,
    ) -> Result<()> {
        let model = Arc::clone(&self.model);
        let (image, movq) = model.clip_codes()?;
        let Frames { time, height, width } = grids;
        if codes.is_empty() || product(grids) != codes.len() as u128 {
            let expected = usize::try_from(product(grids)).unwrap_or(usize::MAX).max(1);
            return Err(
                SessionError::Dimensions { what: "codes of a clip", found: codes.len(), expected }.into()
            );
        }
        let limit = image.movq.codebook_size;
        if let Some(&id) = codes.iter().find(|code| usize::from(**code) >= limit) {
            return Err(SessionError::Token { what: "code of a picture", id: id.into(), limit }.into());
        }
        let codes = (codes, (time, height, width));
        let found = self.canvas.run(model.machine(), &|m| movq.decode(model.weights(), codes, frames, m))?;
        if found.iter().any(|x| !x.is_finite()) {
            return Err(SessionError::NumericFault.into());
        }
        values.clear();
        values.extend_from_slice(found);
        Ok(())
    }

    /// Appends what stands between the begin and the end of a picture in a text: its size in codes, written out, its rows, and their
    /// end.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], or if the text tokenizer refuses the size.
    pub(crate) fn append(&mut self, picture: Picture<'_>, text: &mut Vec<u32>) -> Result<()> {
        let mut ids = Vec::new();
        self.encode(picture, &mut ids)?;
        let (image, _) = self.model.clip_codes()?;
        let rows = ids.iter().filter(|&&id| id == image.row_end).count();
        let columns = ids.len() / rows.max(1) - 1;
        text.extend(self.model.text()?.encode(&format!("{rows}*{columns}"))?);
        text.push(image.wrapper);
        text.append(&mut ids);
        text.push(image.frame_end);
        Ok(())
    }

    /// The tokens of a picture's codes, each row with its end.
    ///
    /// # Errors
    /// If the codes are not whole rows, or not of the model's.
    pub fn tokens(&self, codes: &[u16], columns: usize, ids: &mut Vec<u32>) -> Result<()> {
        let (image, _) = self.model.clip_codes()?;
        if columns == 0 || !codes.len().is_multiple_of(columns) {
            let expected = codes.len().next_multiple_of(columns.max(1));
            return Err(
                SessionError::Dimensions { what: "codes of rows", found: codes.len(), expected }.into()
            );
        }
        ids.clear();
        for row in codes.chunks_exact(columns) {
            for &code in row {
                ids.push(*image.ids.get(usize::from(code)).ok_or(SessionError::Token {
                    what: "code of a picture",
                    id: code.into(),
                    limit: image.ids.len(),
                })?);
            }
            ids.push(image.row_end);
        }
        Ok(())
    }

    /// The codes of a picture's tokens, rows with their ends, and how many columns there are.
    ///
    /// # Errors
    /// If there are no tokens, one is no code, or the rows are not equally long.
    pub fn codes(&self, ids: &[u32], codes: &mut Vec<u16>) -> Result<usize> {
        let (image, _) = self.model.clip_codes()?;
        let known: HashMap<u32, u16> = image.ids.iter().copied().zip(0..=u16::MAX).collect();
        codes.clear();
        let columns = ids.iter().position(|&id| id == image.row_end).unwrap_or(ids.len());
        if columns == 0 {
            let what = "tokens of a row of a picture";
            return Err(SessionError::Dimensions { what, found: 0, expected: 1 }.into());
        }
        for row in ids.chunks(columns + 1) {
            let found = row.iter().position(|&id| id == image.row_end).unwrap_or(row.len());
            if found != columns || row.len() != columns + 1 {
                let what = "tokens of a row of a picture";
                return Err(SessionError::Dimensions { what, found, expected: columns }.into());
            }
            for &id in &row[..columns] {
                let limit = image.ids.len();
                let unknown = SessionError::Token { what: "token of a picture's code", id, limit };
                codes.push(*known.get(&id).ok_or(unknown)?);
            }
        }
        Ok(columns)
    }
}

/// The codes of so many frames, which `load` puts into slot `X`.
fn look(
    model: &Model,
    canvas: &mut Canvas,
    frames: usize,
    codes: &mut Vec<u16>,
    load: &dyn Fn(usize, &mut dyn Maps) -> Result<()>,
) -> Result<()> {
    let (_, movq) = model.clip_codes()?;
    found_codes(canvas.run(model.machine(), &|m| movq.encode(frames, load, m))?, codes)
}

/// Frames times rows times columns.
fn product(Frames { time, height, width }: Frames) -> u128 {
    (time as u128).saturating_mul(height as u128).saturating_mul(width as u128)
}

/// Refuses frames that are not whole places; `len` values are given for all of them.
fn check_places(model: &Model, len: usize, frames: Frames) -> Result<()> {
    let patch = model.clip_codes()?.0.movq.patch();
    let Frames { height, width, .. } = frames;
    if len == 0
        || len as u128 != product(frames).saturating_mul(3)
        || !height.is_multiple_of(patch)
        || !width.is_multiple_of(patch)
    {
        let reason = format!("are not whole places of {patch} × {patch} pixels, or not all there");
        return Err(SessionError::PictureSize { width, height, reason }.into());
    }
    Ok(())
}

impl Tokenizer for Clips {
    type Input<'a> = Picture<'a>;
    type Output = Vec<u8>;
    type Code = u32;

    fn encode(&mut self, picture: Picture<'_>, ids: &mut Vec<u32>) -> Result<()> {
        let Self { model, pixels, canvas } = self;
        let plan = pixels.plan(picture)?;
        let (height, width) = plan.canvas();
        check_places(model, height * width * 3, Frames { time: 1, height, width })?;
        let mut codes = Vec::new();
        look(model, canvas, 1, &mut codes, &|_, m| m.load_picture(Slot::X, plan, picture))?;
        let patch = model.clip_codes()?.0.movq.patch();
        self.tokens(&codes, width / patch, ids)
    }

    /// `rgb [height, width, 3] u8`; the width is the length of a row of tokens times the size of a place.
    fn decode(&mut self, ids: &[u32], rgb: &mut Vec<u8>) -> Result<()> {
        let (mut codes, mut values) = (Vec::new(), Vec::new());
        let columns = self.codes(ids, &mut codes)?;
        self.decode_picture(&codes, (codes.len() / columns, columns), &mut values)?;
        *rgb = self.pixels.config().bytes(&values);
        Ok(())
    }
}
