//! Pictures into tokens of a language model, as Chameleon has it.

use std::sync::Arc;

use super::pixels::{PixelValues, Pixels};
use super::{Picture, Tokenizer, drawing};
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
    /// `[places, code_dim]`
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
        self.find_latents(values, size)?;
        self.tokens(ids)
    }

    /// The vectors whose nearest code book vectors are the codes, `[places, code_dim] f32`.
    ///
    /// Shapes: `values [height, width, 3] f32`.
    ///
    /// # Errors
    /// If the sizes are not whole places of the grid, or the graph fails.
    pub fn latents_of_values(&mut self, values: &[f32], size: (usize, usize)) -> Result<&[f32]> {
        self.find_latents(values, size)?;
        Ok(&self.latents)
    }

    /// `values [height, width, 3]` into the vectors that are coded.
    fn find_latents(&mut self, values: &[f32], size: (usize, usize)) -> Result<()> {
        let Self { model, by_graph, canvas, latents, .. } = self;
        check(model, size, values.len())?;
        if let Some(graph) = model.graph().filter(|_| *by_graph) {
            return graph.run(values, size, latents);
        }
        let shape = Shape::picture(size, 3);
        look(model, canvas, latents, &|m| m.load(Slot::X, shape, &|x| x.copy_from_slice(values)))
    }

    /// The tokens of the vectors that were found last.
    fn tokens(&mut self, ids: &mut Vec<u32>) -> Result<()> {
        let Self { model, latents, codes, .. } = self;
        let (CodedImage { vq: config, ids: tokens, .. }, encoder) = model.coded_image()?;
        encoder.codes(model.weights(), config, latents, codes)?;
        ids.clear();
        ids.extend(codes.iter().map(|&code| tokens[usize::from(code)]));
        Ok(())
    }
}

/// Refuses so many values of a picture that is not whole places of the grid.
fn check(model: &Model, (height, width): (usize, usize), values: usize) -> Result<()> {
    let patch = model.coded_image()?.0.vq.patch();
    if values != height * width * 3 || !height.is_multiple_of(patch) || !width.is_multiple_of(patch) {
        let reason = format!("are not whole places of {patch} × {patch} pixels");
        return Err(SessionError::PictureSize { width, height, reason }.into());
    }
    Ok(())
}

/// What `load` puts into slot `X` into the vectors that are coded.
fn look(
    model: &Model,
    canvas: &mut Canvas,
    latents: &mut Vec<f32>,
    load: &dyn Fn(&mut dyn Maps) -> Result<()>,
) -> Result<()> {
    let (_, encoder) = model.coded_image()?;
    let found = canvas.run(model.machine(), &|m| {
        load(m)?;
        encoder.latents(m)?;
        m.give(Slot::X)
    })?;
    latents.clear();
    latents.extend_from_slice(found);
    Ok(())
}

impl Tokenizer for CodedImages {
    type Input<'a> = Picture<'a>;
    type Output = Vec<u8>;
    type Code = u32;

    fn encode(&mut self, picture: Picture<'_>, ids: &mut Vec<u32>) -> Result<()> {
        let Self { model, by_graph, pixels, canvas, latents, .. } = self;
        if let Some(graph) = model.graph().filter(|_| *by_graph) {
            let PixelValues { values, height, width } = pixels.run(picture)?;
            check(model, (height, width), values.len())?;
            graph.run(values, (height, width), latents)?;
        } else {
            let plan = pixels.plan(picture)?;
            let (height, width) = plan.canvas();
            check(model, (height, width), height * width * 3)?;
            look(model, canvas, latents, &|m| m.load_picture(Slot::X, plan, picture))?;
        }
        self.tokens(ids)
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
