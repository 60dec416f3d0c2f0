//! Pictures into codes and back: the VQ-VAE of the `unimodal` family, with a flat code book.

use std::sync::Arc;

use super::Tokenizer;
use super::resize::Resize;
use crate::conv::{Conv, ConvScratch, Map, upsample_nearest};
use crate::family::{Model, unimodal::ImageNet};
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
    /// The code book turned round, `[code_dim, codebook_size]`, so that distances run over codes.
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
    #[must_use]
    pub fn new(model: &Arc<Model>) -> Self {
        let image = &model.config().image;
        let net = &model.net().image;
        let mut codebook = vec![0.0; image.codebook_size * image.code_dim];
        let mut row = vec![0.0; image.code_dim];
        for code in 0..image.codebook_size {
            net.codebook.read_row(model.weights(), code, &mut row);
            for (d, &v) in row.iter().enumerate() {
                codebook[d * image.codebook_size + code] = v;
            }
        }
        let largest = largest_map(net, image.height, image.width, image.grid);
        Self {
            model: Arc::clone(model),
            resize: Resize::new(image.width, image.height),
            codebook,
            distances: vec![0.0; image.codebook_size],
            maps: [vec![0.0; largest], vec![0.0; largest], vec![0.0; largest]],
            scratch: ConvScratch::new(convs(net).map(Conv::k).max().unwrap_or(1), model.engine()),
        }
    }

    /// Crops the centre to the model's aspect ratio and brings it to the model's size.
    fn resize(&mut self, from: Picture<'_>) -> Result<(), SessionError> {
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
    fn encoder(&mut self) {
        let model = Arc::clone(&self.model);
        let (e, w, net, image) = (model.engine(), model.weights(), &model.net().image, &model.config().image);
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
    }

    /// The nearest code book vector of `z [code_dim]`; of equals, the lowest.
    fn nearest(&mut self, at: usize) -> u16 {
        let image = &self.model.config().image;
        let z = &self.maps[0][at * image.code_dim..][..image.code_dim];
        self.distances.fill(0.0);
        for (&z, row) in z.iter().zip(self.codebook.chunks_exact(image.codebook_size)) {
            for (distance, &e) in self.distances.iter_mut().zip(row) {
                *distance += (z - e) * (z - e);
            }
        }
        let mut best = (f32::INFINITY, 0);
        for (code, &distance) in (0_u16..=u16::MAX).zip(&self.distances) {
            if distance < best.0 {
                best = (distance, code);
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
    fn encode(&mut self, picture: Picture<'_>, codes: &mut Vec<u16>) -> crate::Result<()> {
        self.resize(picture)?;
        self.encoder();
        codes.clear();
        for at in 0..self.model.config().image_codes() {
            let code = self.nearest(at);
            codes.push(code);
        }
        Ok(())
    }

    /// `output [height, width, 3] u8`.
    fn decode(&mut self, codes: &[u16], output: &mut Vec<u8>) -> crate::Result<()> {
        let model = Arc::clone(&self.model);
        let (e, w, net, image) = (model.engine(), model.weights(), &model.net().image, &model.config().image);
        check_codes(codes, &model)?;
        let [x, a, b] = &mut self.maps;
        let s = &mut self.scratch;
        for (z, &code) in x.chunks_exact_mut(image.code_dim).zip(codes) {
            net.codebook.read_row(w, code.into(), z);
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
        output.clear();
        // Saturating by definition: `as u8` clamps, and a NaN becomes 0.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        output.extend(x[..height * width * 3].iter().map(|v| (v * image.std + image.mean).round() as u8));
        Ok(())
    }
}

/// Refuses a wrong number of codes and codes outside the code book.
pub(crate) fn check_codes(codes: &[u16], model: &Model) -> Result<(), SessionError> {
    let config = model.config();
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

fn convs(net: &ImageNet) -> impl Iterator<Item = &Conv> {
    let units = net.encoder_res.iter().chain(&net.decoder_res).flat_map(|unit| [&unit.conv1, &unit.conv2]);
    net.down.iter().chain(&net.up).chain([&net.out, &net.input]).chain(units)
}

/// Values in the largest activation map of either direction.
fn largest_map(net: &ImageNet, height: usize, width: usize, [rows, cols]: [usize; 2]) -> usize {
    let mut largest = height * width * 3;
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
