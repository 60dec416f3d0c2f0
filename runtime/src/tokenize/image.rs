//! Pictures into codes and back: the VQ-VAE of the `unimodal` family, with a flat code book.

use std::sync::Arc;

use super::pixels::{check_bytes, check_sides};
use super::{Tokenizer, found_codes};
use crate::Result;
use crate::config::{ImageConfig, UnimodalConfig};
use crate::engine::maps::Slot::{A, X};
use crate::engine::maps::{Canvas, CodeBook, Maps, Shape, l2_normalise};
use crate::family::{Model, unimodal::ImageNet};
use crate::picture::{Area, Picture, Place, Plan, Way};
use crate::session::SessionError;
use crate::weights::{LinearRef, Weights};

/// What needs memory.
const WHAT: &str = "the image tokenizer of this model";

/// The image tokenizer of a model, with all buffers it needs.
pub struct ImageTokenizer {
    model: Arc<Model>,
    /// How pictures of the last one's size become the model's.
    plan: Plan,
    canvas: Canvas,
}

impl std::fmt::Debug for ImageTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageTokenizer").finish_non_exhaustive()
    }
}

impl ImageTokenizer {
    /// Allocates every buffer for `model`.
    ///
    /// # Errors
    /// If the model takes no pictures, there is not enough memory, or a vector of the code book is not finite.
    pub fn new(model: &Arc<Model>) -> Result<Self> {
        let (c, net) = model.unimodal_net()?;
        let (image, net) = (&c.image, &net.image);
        check_codebook(model.weights(), &net.codebook)?;
        let level = |byte: u8| (f32::from(byte) - image.mean) / image.std;
        let levels = [std::array::from_fn(|byte| level(u8::try_from(byte).unwrap_or(u8::MAX))); 3];
        let mut plan = Plan::new(Way::Area(Area::default()), [0; 3], levels);
        // The first picture of another size makes the buffers for those of its size.
        let (width, height) = (image.width, image.height);
        let black = vec![0; width * height * 3];
        let nothing = Picture::rgb(&black, width, height);
        prepare(&mut plan, nothing, image)?;
        let mut canvas = Canvas::new(WHAT);
        canvas.reserve(model.machine(), &|m| encode(net, image, (&plan, nothing), m))?;
        let codes = vec![0; c.image_codes()];
        canvas.reserve(model.machine(), &|m| decode(net, image, (&codes, model.weights()), m))?;
        Ok(Self { model: Arc::clone(model), plan, canvas })
    }
}

/// Makes the plan for pictures as `picture`: the centre of the model's aspect ratio, brought to the model's size.
fn prepare(plan: &mut Plan, picture: Picture<'_>, image: &ImageConfig) -> Result<()> {
    let size = (picture.width, picture.height);
    check_sides(size.0, size.1)?;
    check_bytes(picture)?;
    if !plan.is_for(size) {
        let places = [image.width, image.height].map(|side| Place::on(side, side));
        plan.make(size, places.into(), 0).expect("there is one pass");
    }
    Ok(())
}

/// The picture into codes, which it gives: `[grid]`.
fn encode(
    net: &ImageNet,
    image: &ImageConfig,
    (plan, picture): (&Plan, Picture<'_>),
    m: &mut dyn Maps,
) -> Result<()> {
    m.load_picture(X, plan, picture)?;
    for (i, conv) in net.down.iter().enumerate() {
        m.convolve(conv, X, A)?;
        m.swap(X, A);
        if i + 1 < net.down.len() {
            m.silu(X, X)?;
        }
    }
    for unit in &net.encoder_res {
        unit.forward(m)?;
    }
    m.silu(X, X)?;
    m.convolve(&net.out, X, A)?;
    m.nearest(CodeBook { vectors: &net.codebook, unit: image.l2_norm }, A, X)?;
    m.give(X)
}

/// The picture of some codes, which it gives: `[height, width, 3]`.
fn decode(
    net: &ImageNet,
    image: &ImageConfig,
    (codes, w): (&[u16], &Weights),
    m: &mut dyn Maps,
) -> Result<()> {
    let [rows, columns] = image.grid;
    m.load(X, Shape::picture((rows, columns), image.code_dim), &|x| {
        for (z, &code) in x.chunks_exact_mut(image.code_dim).zip(codes) {
            net.codebook.read_row(w, code.into(), z);
            if image.l2_norm {
                l2_normalise(z);
            }
        }
    })?;
    m.convolve(&net.input, X, A)?;
    m.swap(X, A);
    for unit in &net.decoder_res {
        unit.forward(m)?;
    }
    for (i, conv) in net.up.iter().enumerate() {
        m.enlarge(X, A)?;
        m.convolve(conv, A, X)?;
        if i + 1 < net.up.len() {
            m.silu(X, X)?;
        }
    }
    m.give(X)
}

impl Tokenizer for ImageTokenizer {
    type Input<'a> = Picture<'a>;
    type Output = Vec<u8>;
    type Code = u16;

    /// `codes [grid]`, row by row.
    fn encode(&mut self, picture: Picture<'_>, codes: &mut Vec<u16>) -> Result<()> {
        let Self { model, plan, canvas } = self;
        let (c, net) = model.unimodal_net()?;
        let image = &c.image;
        prepare(plan, picture, image)?;
        let found = canvas.run(model.machine(), &|m| encode(&net.image, image, (plan, picture), m))?;
        found_codes(found, codes)
    }

    /// `output [height, width, 3] u8`.
    fn decode(&mut self, codes: &[u16], output: &mut Vec<u8>) -> Result<()> {
        let Self { model, canvas, .. } = self;
        let (c, net) = model.unimodal_net()?;
        let image = &c.image;
        check_codes(codes, c)?;
        let pixels =
            canvas.run(model.machine(), &|m| decode(&net.image, image, (codes, model.weights()), m))?;
        if !pixels.iter().all(|v| v.is_finite()) {
            return Err(SessionError::NumericFault.into());
        }
        output.clear();
        // Saturating by definition: `as u8` clamps.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        output.extend(pixels.iter().map(|v| (v * image.std + image.mean).round() as u8));
        Ok(())
    }
}

/// Refuses a code book with a vector that is not finite.
fn check_codebook(w: &Weights, codebook: &LinearRef) -> Result<()> {
    let mut row = vec![0.0; codebook.k];
    for code in 0..codebook.n {
        codebook.read_row(w, code, &mut row);
        if !row.iter().all(|v| v.is_finite()) {
            let reason =
                format!("tensor `image.codebook.weight`: row {code} is not finite; convert it again");
            return Err(w.refused(reason));
        }
    }
    Ok(())
}

/// Refuses a wrong number of codes and codes outside the code book.
pub(crate) fn check_codes(codes: &[u16], config: &UnimodalConfig) -> std::result::Result<(), SessionError> {
    if codes.len() != config.image_codes() {
        return Err(SessionError::Dimensions {
            what: "image",
            found: codes.len(),
            expected: config.image_codes(),
        });
    }
    match codes.iter().find(|&&code| usize::from(code) >= config.image.codebook_size) {
        Some(&code) => Err(SessionError::Token {
            what: "image code",
            id: code.into(),
            limit: config.image.codebook_size,
        }),
        None => Ok(()),
    }
}
