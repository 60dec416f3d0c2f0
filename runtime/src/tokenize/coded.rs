//! Pictures into tokens of a language model, as Chameleon has it.

use std::sync::Arc;

use super::pixels::{PixelValues, Pixels};
use super::{Picture, Tokenizer, drawing, found_codes};
use crate::config::{CONFIG_FILE, CodedImage};
use crate::engine::maps::{Canvas, Maps, Shape, Slot};
use crate::family::Model;
use crate::session::SessionError;
use crate::{Error, Result};

/// The picture tokenizer of a language model that takes codes.
pub struct CodedImages {
    model: Arc<Model>,
    /// Whether the bundle's graph encodes, where it has one.
    by_graph: bool,
    pixels: Pixels,
    canvas: Canvas,
    /// `[places, code_dim]`: what a graph finds, or what was asked for.
    latents: Vec<f32>,
    codes: Vec<u16>,
}

impl std::fmt::Debug for CodedImages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CodedImages").finish_non_exhaustive()
    }
}

impl CodedImages {
    /// For `model`: by its graph if the bundle has one, by our kernels otherwise.
    ///
    /// # Errors
    /// If the model takes no pictures that way.
    pub fn new(model: &Arc<Model>) -> Result<Self> {
        Ok(Self { by_graph: true, ..Self::on_kernels(model)? })
    }

    /// The same by our kernels, whatever the bundle has: to compare.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn on_kernels(model: &Arc<Model>) -> Result<Self> {
        let (image, _) = model.coded_image()?;
        let path = model.weights().dir().join(CONFIG_FILE);
        let pixels = Pixels::new(&image.pixels).map_err(|source| Error::Config { path, source })?;
        let canvas = Canvas::new("the picture tokenizer of this model");
        let (latents, codes) = (Vec::new(), Vec::new());
        Ok(Self { model: Arc::clone(model), by_graph: false, pixels, canvas, latents, codes })
    }

    /// The picture as the encoder takes it.
    ///
    /// # Errors
    /// If it cannot be brought to the encoder's size.
    pub fn values(&mut self, picture: Picture<'_>) -> Result<PixelValues<'_>> {
        Ok(self.pixels.run(picture)?)
    }

    /// The tokens of values that are ready for the encoder, row by row of the grid.
    ///
    /// Shapes: `values [height, width, 3] f32`.
    ///
    /// # Errors
    /// If the sizes are not whole places of the grid, or a result is not a number.
    pub fn encode_values(&mut self, values: &[f32], size: (usize, usize), ids: &mut Vec<u32>) -> Result<()> {
        check(&self.model, size, values.len())?;
        let Self { model, by_graph, canvas, latents, codes, .. } = self;
        if let Some(graph) = model.graph().filter(|_| *by_graph) {
            graph.run(values, size, latents)?;
            return find_tokens(model, canvas, &|m| put_latents(model, latents, m), (codes, ids));
        }
        find_tokens(model, canvas, &|m| see(model, values, size, m), (codes, ids))
    }

    /// The vectors whose nearest code book vectors are the codes, `[places, code_dim] f32`.
    ///
    /// Shapes: `values [height, width, 3] f32`.
    ///
    /// # Errors
    /// If the sizes are not whole places of the grid, or the graph fails.
    pub fn latents_of_values(&mut self, values: &[f32], size: (usize, usize)) -> Result<&[f32]> {
        check(&self.model, size, values.len())?;
        let Self { model, by_graph, canvas, latents, .. } = self;
        if let Some(graph) = model.graph().filter(|_| *by_graph) {
            graph.run(values, size, latents)?;
        } else {
            let found = canvas.run(model.machine(), &|m| {
                see(model, values, size, m)?;
                m.give(Slot::X)
            })?;
            latents.clear();
            latents.extend_from_slice(found);
        }
        Ok(latents)
    }
}

/// Refuses so many values of a picture that is not whole places of the grid.
fn check(model: &Model, (height, width): (usize, usize), values: usize) -> Result<()> {
    let patch = model.coded_image()?.0.vq.patch();
    if values == 0
        || values != height * width * 3
        || !height.is_multiple_of(patch)
        || !width.is_multiple_of(patch)
    {
        let reason = format!("are not whole places of {patch} × {patch} pixels");
        return Err(SessionError::PictureSize { width, height, reason }.into());
    }
    Ok(())
}

/// `values [height, width, 3]` into the vectors that are coded, in slot `X`.
fn see(model: &Model, values: &[f32], size: (usize, usize), m: &mut dyn Maps) -> Result<()> {
    m.load(Slot::X, Shape::picture(size, 3), &|x| x.copy_from_slice(values))?;
    model.coded_image()?.1.latents(m)
}

/// Vectors that a graph made into slot `X`.
fn put_latents(model: &Model, latents: &[f32], m: &mut dyn Maps) -> Result<()> {
    let dim = model.coded_image()?.0.vq.code_dim;
    m.load(Slot::X, Shape::picture((latents.len() / dim, 1), dim), &|x| x.copy_from_slice(latents))
}

/// The codes and tokens of the vectors that `find` leaves in slot `X`.
fn find_tokens(
    model: &Model,
    canvas: &mut Canvas,
    find: &dyn Fn(&mut dyn Maps) -> Result<()>,
    (codes, ids): (&mut Vec<u16>, &mut Vec<u32>),
) -> Result<()> {
    let (CodedImage { vq: config, ids: tokens, .. }, encoder) = model.coded_image()?;
    let found = canvas.run(model.machine(), &|m| {
        find(m)?;
        encoder.codes(config, m)
    })?;
    found_codes(found, codes)?;
    ids.clear();
    ids.extend(codes.iter().map(|&code| tokens[usize::from(code)]));
    Ok(())
}

impl Tokenizer for CodedImages {
    type Input<'a> = Picture<'a>;
    type Output = Vec<u8>;
    type Code = u32;

    fn encode(&mut self, picture: Picture<'_>, ids: &mut Vec<u32>) -> Result<()> {
        let Self { model, by_graph, pixels, canvas, latents, codes } = self;
        if let Some(graph) = model.graph().filter(|_| *by_graph) {
            let PixelValues { values, height, width } = pixels.run(picture)?;
            check(model, (height, width), values.len())?;
            graph.run(values, (height, width), latents)?;
            return find_tokens(model, canvas, &|m| put_latents(model, latents, m), (codes, ids));
        }
        let plan = pixels.plan(picture)?;
        let (height, width) = plan.canvas();
        check(model, (height, width), height * width * 3)?;
        let find = |m: &mut dyn Maps| {
            m.load_picture(Slot::X, plan, picture)?;
            model.coded_image()?.1.latents(m)
        };
        find_tokens(model, canvas, &find, (codes, ids))
    }

    /// `rgb [height, width, 3] u8`, of the size that the encoder takes.
    fn decode(&mut self, ids: &[u32], rgb: &mut Vec<u8>) -> Result<()> {
        let (image, _) = self.model.coded_image()?;
        let limit = image.ids.len();
        let code = |id: &u32| {
            let unknown = SessionError::Token { what: "token of a picture's code", id: *id, limit };
            let code = image.ids.iter().position(|known| known == id);
            Ok(code.and_then(|code| u16::try_from(code).ok()).ok_or(unknown)?)
        };
        let codes = ids.iter().map(code).collect::<Result<Vec<_>>>()?;
        let grid = drawing::grid_of(image)?;
        *rgb = drawing::painted(&self.model, &codes, grid)?.rgb;
        Ok(())
    }
}
