//! Pictures into codes and back: the VQ-VAE of the `unimodal` family, with a flat code book.

use std::sync::Arc;

use super::Tokenizer;
use super::pixels::{check_bytes, check_sides};
use crate::Result;
use crate::config::{ImageConfig, UnimodalConfig};
use crate::engine::maps::Slot::{A, X};
use crate::engine::maps::{Canvas, Maps, Shape};
use crate::family::{Model, unimodal::ImageNet};
use crate::memory;
use crate::picture::{Area, Picture, Place, Plan, Way};
use crate::session::SessionError;

/// What needs memory.
const WHAT: &str = "the image tokenizer of this model";

/// The image tokenizer of a model, with all buffers it needs.
pub struct ImageTokenizer {
    model: Arc<Model>,
    /// How pictures of the last one's size become the model's.
    plan: Plan,
    /// The code book turned round, `[code_dim, codebook_size]`, so that distances run over codes; of unit vectors if the
    /// model says `l2_norm`.
    codebook: Vec<f32>,
    distances: Vec<f32>,
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
        let floats = image.codebook_size * (image.code_dim + 1);
        memory::check(WHAT, 4 * floats as u128)?;
        let level = |byte: u8| (f32::from(byte) - image.mean) / image.std;
        let levels = [std::array::from_fn(|byte| level(u8::try_from(byte).unwrap_or(u8::MAX))); 3];
        let mut plan = Plan::new(Way::Area(Area::default()), [0; 3], levels);
        // The first picture of another size makes the buffers for those of its size.
        let (width, height) = (image.width, image.height);
        let black = vec![0; width * height * 3];
        let nothing = Picture::rgb(&black, width, height);
        prepare(&mut plan, nothing, image)?;
        let mut canvas = Canvas::new(WHAT);
        canvas.reserve(model.machine(), &|m| encode(net, (&plan, nothing), m))?;
        let codes = vec![0; c.image_codes()];
        canvas.reserve(model.machine(), &|m| decode(net, image, (&codes, &[]), m))?;
        Ok(Self {
            model: Arc::clone(model),
            plan,
            codebook: codebook(model)?,
            distances: vec![0.0; image.codebook_size],
            canvas,
        })
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

/// The code of the nearest code book vector of `z [code_dim]`; of equals, the lowest. None if `z` is not finite.
fn nearest(image: &ImageConfig, codebook: &[f32], distances: &mut [f32], z: &mut [f32]) -> Option<u16> {
    if image.l2_norm {
        l2_normalise(z);
    }
    distances.fill(0.0);
    for (&z, row) in z.iter().zip(codebook.chunks_exact(image.codebook_size)) {
        for (distance, &e) in distances.iter_mut().zip(row) {
            *distance += (z - e) * (z - e);
        }
    }
    let mut best = (f32::INFINITY, None);
    for (code, &distance) in (0_u16..=u16::MAX).zip(&*distances) {
        if distance < best.0 {
            best = (distance, Some(code));
        }
    }
    best.1
}

/// The picture into the vectors that are coded, which it gives: `[grid, code_dim]`.
fn encode(net: &ImageNet, (plan, picture): (&Plan, Picture<'_>), m: &mut dyn Maps) -> Result<()> {
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
    m.give(A)
}

/// The picture of some codes, which it gives: `[height, width, 3]`.
fn decode(
    net: &ImageNet,
    image: &ImageConfig,
    (codes, codebook): (&[u16], &[f32]),
    m: &mut dyn Maps,
) -> Result<()> {
    let [rows, columns] = image.grid;
    m.load(X, Shape::picture((rows, columns), image.code_dim), &|x| {
        for (z, &code) in x.chunks_exact_mut(image.code_dim).zip(codes) {
            for (z, row) in z.iter_mut().zip(codebook.chunks_exact(image.codebook_size)) {
                *z = row[usize::from(code)];
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
        let Self { model, plan, codebook, distances, canvas } = self;
        let (c, net) = model.unimodal_net()?;
        let image = &c.image;
        prepare(plan, picture, image)?;
        let latents = canvas.run(model.machine(), &|m| encode(&net.image, (plan, picture), m))?;
        codes.clear();
        for z in latents.chunks_exact_mut(image.code_dim) {
            codes.push(nearest(image, codebook, distances, z).ok_or(SessionError::NumericFault)?);
        }
        Ok(())
    }

    /// `output [height, width, 3] u8`.
    fn decode(&mut self, codes: &[u16], output: &mut Vec<u8>) -> Result<()> {
        let Self { model, codebook, canvas, .. } = self;
        let (c, net) = model.unimodal_net()?;
        let image = &c.image;
        check_codes(codes, c)?;
        let pixels = canvas.run(model.machine(), &|m| decode(&net.image, image, (codes, codebook), m))?;
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

/// The code book of `model`, `[code_dim, codebook_size]`.
fn codebook(model: &Model) -> Result<Vec<f32>> {
    let (c, net) = model.unimodal_net()?;
    let (image, rows) = (&c.image, &net.image.codebook);
    let mut codebook = vec![0.0; image.code_dim * image.codebook_size];
    let mut row = vec![0.0; image.code_dim];
    for code in 0..image.codebook_size {
        rows.read_row(model.weights(), code, &mut row);
        if !row.iter().all(|v| v.is_finite()) {
            let reason =
                format!("tensor `image.codebook.weight`: row {code} is not finite; convert it again");
            return Err(model.weights().refused(reason));
        }
        if image.l2_norm {
            l2_normalise(&mut row);
        }
        for (d, &v) in row.iter().enumerate() {
            codebook[d * image.codebook_size + code] = v;
        }
    }
    Ok(codebook)
}

/// `x / max(‖x‖, 1e-12)`; NaN if the norm is not finite, so that [`nearest`] finds nothing near.
///
/// Source: `F.normalize` in `VectorQuantizer` of LlamaGen and Janus (`vq_model.py`, `codebook_l2_norm`).
fn l2_normalise(x: &mut [f32]) {
    let norm = x.iter().map(|v| v * v).sum::<f32>().sqrt();
    let norm = if norm.is_finite() { norm.max(1e-12) } else { f32::NAN };
    x.iter_mut().for_each(|v| *v /= norm);
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
