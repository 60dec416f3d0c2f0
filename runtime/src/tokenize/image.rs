//! Pictures into codes and back: the VQ-VAE of the `unimodal` family, with a flat code book.

use std::sync::Arc;

use super::Tokenizer;
use super::resize::Resize;
use crate::Result;
use crate::config::{ImageConfig, UnimodalConfig};
use crate::conv::{Conv, ConvScratch, Map, upsample_nearest};
use crate::family::{Model, unimodal::ImageNet};
use crate::memory;
use crate::session::SessionError;

/// A borrowed picture: `rgb [height, width, 3] u8`.
#[derive(Clone, Copy, Debug)]
pub struct Picture<'a> {
    /// Pixels, row by row.
    pub rgb: &'a [u8],
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// The image tokenizer of a model, with all buffers it needs.
pub struct ImageTokenizer {
    model: Arc<Model>,
    /// Makes, and holds, the model's picture.
    resize: Resize,
    /// The code book turned round, `[code_dim, codebook_size]`, so that distances run over codes; of unit vectors if the
    /// model says `l2_norm`.
    codebook: Vec<f32>,
    distances: Vec<f32>,
    maps: [Vec<f32>; 3],
    scratch: ConvScratch,
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
        let largest = largest_map(net, image.height, image.width, image.grid);
        let max_k = convs(net).map(Conv::k).max().unwrap_or(1);
        let floats = image.codebook_size * (image.code_dim + 1) + 3 * largest;
        memory::check("the image tokenizer of this model", 4 * floats as u128 + ConvScratch::bytes(max_k))?;
        Ok(Self {
            model: Arc::clone(model),
            resize: Resize::new(image.width, image.height),
            codebook: codebook(model)?,
            distances: vec![0.0; image.codebook_size],
            maps: [vec![0.0; largest], vec![0.0; largest], vec![0.0; largest]],
            scratch: ConvScratch::new(max_k, model.engine()),
        })
    }

    /// Crops the centre to the model's aspect ratio and brings it to the model's size.
    fn resize(&mut self, from: Picture<'_>) -> std::result::Result<(), SessionError> {
        let expected = from.width.checked_mul(from.height).and_then(|n| n.checked_mul(3));
        if expected.is_none_or(|expected| expected == 0 || expected != from.rgb.len()) {
            return Err(SessionError::Picture {
                width: from.width,
                height: from.height,
                bytes: from.rgb.len(),
            });
        }
        self.resize.run(from);
        Ok(())
    }

    /// The model's view of the last encoded picture: `[height, width, 3] u8`.
    #[must_use]
    pub fn seen(&self) -> &[u8] {
        self.resize.out()
    }

    /// Runs the encoder on the resized picture; leaves `[grid, code_dim]` in `maps[0]`.
    fn encoder(&mut self) -> Result<()> {
        let model = Arc::clone(&self.model);
        let (e, w, (c, net)) = (model.engine(), model.weights(), model.unimodal_net()?);
        let (net, image) = (&net.image, &c.image);
        let [x, a, b] = &mut self.maps;
        let s = &mut self.scratch;
        for (x, &pixel) in x.iter_mut().zip(self.resize.out()) {
            *x = (f32::from(pixel) - image.mean) / image.std;
        }
        let (mut height, mut width, mut channels) = (image.height, image.width, 3);
        for (i, conv) in net.down.iter().enumerate() {
            let (out_height, out_width) = conv.out_size(height, width);
            let out = &mut a[..out_height * out_width * conv.out_channels()];
            conv.forward(e, w, Map { x: &x[..height * width * channels], height, width }, out, s);
            if i + 1 < net.down.len() {
                e.silu_inplace(out);
            }
            x[..out.len()].copy_from_slice(out);
            (height, width, channels) = (out_height, out_width, conv.out_channels());
        }
        let x = &mut x[..height * width * channels];
        for unit in &net.encoder_res {
            unit.forward((e, w), x, (height, width), (a, b), s);
        }
        e.silu_inplace(x);
        let z = &mut a[..height * width * image.code_dim];
        net.out.forward(e, w, Map { x, height, width }, z, s);
        self.maps.swap(0, 1);
        Ok(())
    }

    /// The nearest code book vector of `z [code_dim]`; of equals, the lowest. None if `z` is not finite.
    fn nearest(&mut self, image: &ImageConfig, at: usize) -> Option<u16> {
        let z = &mut self.maps[0][at * image.code_dim..][..image.code_dim];
        if image.l2_norm {
            l2_normalise(z);
        }
        self.distances.fill(0.0);
        for (&z, row) in z.iter().zip(self.codebook.chunks_exact(image.codebook_size)) {
            for (distance, &e) in self.distances.iter_mut().zip(row) {
                *distance += (z - e) * (z - e);
            }
        }
        let mut best = (f32::INFINITY, None);
        for (code, &distance) in (0_u16..=u16::MAX).zip(&self.distances) {
            if distance < best.0 {
                best = (distance, Some(code));
            }
        }
        best.1
    }
}

impl Tokenizer for ImageTokenizer {
    type Input<'a> = Picture<'a>;
    type Output = Vec<u8>;
    type Code = u16;

    /// `codes [grid]`, row by row.
    fn encode(&mut self, picture: Picture<'_>, codes: &mut Vec<u16>) -> Result<()> {
        self.resize(picture)?;
        self.encoder()?;
        codes.clear();
        let model = Arc::clone(&self.model);
        let c = model.unimodal()?;
        for at in 0..c.image_codes() {
            codes.push(self.nearest(&c.image, at).ok_or(SessionError::NumericFault)?);
        }
        Ok(())
    }

    /// `output [height, width, 3] u8`.
    fn decode(&mut self, codes: &[u16], output: &mut Vec<u8>) -> Result<()> {
        let model = Arc::clone(&self.model);
        let (e, w, (c, net)) = (model.engine(), model.weights(), model.unimodal_net()?);
        let (net, image) = (&net.image, &c.image);
        check_codes(codes, c)?;
        let [x, a, b] = &mut self.maps;
        let s = &mut self.scratch;
        for (z, &code) in x.chunks_exact_mut(image.code_dim).zip(codes) {
            for (z, row) in z.iter_mut().zip(self.codebook.chunks_exact(image.codebook_size)) {
                *z = row[usize::from(code)];
            }
        }
        let [mut height, mut width] = image.grid;
        let mut channels = net.input.out_channels();
        let out = &mut a[..height * width * channels];
        net.input.forward(e, w, Map { x: &x[..codes.len() * image.code_dim], height, width }, out, s);
        x[..out.len()].copy_from_slice(out);
        for unit in &net.decoder_res {
            unit.forward((e, w), &mut x[..height * width * channels], (height, width), (a, b), s);
        }
        for (i, conv) in net.up.iter().enumerate() {
            let large = &mut a[..4 * height * width * channels];
            upsample_nearest(&x[..height * width * channels], (height, width), channels, large);
            (height, width) = (2 * height, 2 * width);
            channels = conv.out_channels();
            let out = &mut x[..height * width * channels];
            conv.forward(e, w, Map { x: large, height, width }, out, s);
            if i + 1 < net.up.len() {
                e.silu_inplace(out);
            }
        }
        let pixels = &x[..height * width * 3];
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

/// `x / max(‖x‖, 1e-12)`; NaN if the norm is not finite, so that [`ImageTokenizer::nearest`] finds nothing near.
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

/// Those that change the size first.
fn convs(net: &ImageNet) -> impl Iterator<Item = &Conv> {
    let units = net.encoder_res.iter().chain(&net.decoder_res).flat_map(|unit| [&unit.conv1, &unit.conv2]);
    net.down.iter().chain(&net.up).chain([&net.out, &net.input]).chain(units)
}

/// Values in the largest activation map of either direction.
fn largest_map(net: &ImageNet, height: usize, width: usize, [rows, cols]: [usize; 2]) -> usize {
    // All but these leave the size as it is, that of the grid.
    let sized = net.down.len() + net.up.len();
    let on_grid = convs(net).skip(sized).map(Conv::out_channels).max().unwrap_or(1);
    let mut largest = (height * width * 3).max(rows * cols * on_grid);
    let (mut h, mut w) = (height, width);
    for conv in &net.down {
        (h, w) = conv.out_size(h, w);
        largest = largest.max(h * w * conv.out_channels());
    }
    let mut channels = net.input.out_channels();
    (h, w) = (rows, cols);
    for conv in &net.up {
        (h, w) = (2 * h, 2 * w);
        largest = largest.max(h * w * channels.max(conv.out_channels()));
        channels = conv.out_channels();
    }
    largest
}
