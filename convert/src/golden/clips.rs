//! Pictures and clips of Emu3.

use std::sync::Arc;

use saccade::config::{Emu3Config, WeightDtype};
use saccade::family::Model;
use saccade::tokenize::{Clips, Frames, PixelValues};

use super::stored::Stored;
use super::{Line, MAX_REL, floats, pictures};
use crate::error::Result;

/// Largest relative error of pictures made of codes by a net in F16, whose weights are rounded by up to 4.9e-4. Measured on the tiny Emu3:
/// 5.0e-4 of a picture, 7.4e-4 of a clip.
const MAX_REL_HALF: f64 = 2e-3;

/// Compares codes of pictures and clips, and what they become; returns the text with the tokens of its picture in their places.
pub(super) fn codes(
    model: &Arc<Model>,
    c: &Emu3Config,
    stored: &Stored<'_>,
    ids: &[u32],
    lines: &mut Vec<Line>,
) -> Result<Vec<u32>> {
    let most = if model.bundle().dtype == WeightDtype::F32 { MAX_REL } else { MAX_REL_HALF };
    let mut clips = Compared { images: Clips::new(model)?, c, stored, most };
    let tokens = clips.picture(model, lines)?;
    clips.clip(lines)?;
    pictures::shown(stored, ids, c.image.placeholder, tokens)
}

/// What is compared.
struct Compared<'a> {
    images: Clips,
    c: &'a Emu3Config,
    stored: &'a Stored<'a>,
    /// The largest relative error of what codes become.
    most: f64,
}

impl Compared<'_> {
    /// Values, codes and tokens of the picture, and what its codes become; returns the tokens.
    fn picture(&mut self, model: &Arc<Model>, lines: &mut Vec<Line>) -> Result<Vec<u32>> {
        let Self { images, stored, .. } = self;
        let (values, Frames { height, width, .. }) = stored.channels_last("pixel_values")?;
        let size = (&values[..], (height, width));
        pictures::photo(stored, size, lines, |picture, see| images.values(picture).map(see))?;
        let mut codes = Vec::new();
        images.encode_picture(PixelValues { values: &values, width, height }, &mut codes)?;
        let golden = self.compare("image_codes", &codes, lines)?;
        let patch = self.c.image.movq.patch();
        let (rows, columns) = (height / patch, width / patch);
        let mut tokens = Vec::new();
        self.images.tokens(&codes, columns, &mut tokens)?;
        if self.stored.has("image_tokens") {
            lines.push(Line::ids("image_tokens", tokens == self.stored.ids("image_tokens", model)?));
        }
        if let (Some(golden), true) = (golden, self.stored.has("image_decoded")) {
            let mut found = Vec::new();
            self.images.decode_picture(&golden, (rows, columns), &mut found)?;
            self.decoded("image_decoded", &found, lines)?;
        }
        Ok(tokens)
    }

    /// Codes of the clip, and what they become.
    fn clip(&mut self, lines: &mut Vec<Line>) -> Result<()> {
        if !self.stored.has("video_frames") {
            return Ok(());
        }
        let (values, frames) = self.stored.channels_last("video_frames")?;
        let mut codes = Vec::new();
        self.images.encode_frames(&values, frames, &mut codes)?;
        let golden = self.compare("video_codes", &codes, lines)?;
        if let (Some(golden), true) = (golden, self.stored.has("video_decoded")) {
            let [time, height, width] = self.stored.shape("video_codes")?[..] else {
                return Err(self.stored.refuse("`video_codes` is not grids of codes"));
            };
            let mut found = Vec::new();
            self.images.decode_frames(&golden, Frames { time, height, width }, &mut found)?;
            self.decoded("video_decoded", &found, lines)?;
        }
        Ok(())
    }

    /// Compares codes; returns the golden ones, which decoding starts from so that one that differs is not counted twice.
    fn compare(&self, name: &str, found: &[u16], lines: &mut Vec<Line>) -> Result<Option<Vec<u16>>> {
        if !self.stored.has(name) {
            return Ok(None);
        }
        let expected = self.stored.codes(name, self.c.image.movq.codebook_size)?;
        lines.push(Line::ids(name, found == expected));
        Ok(Some(expected))
    }

    fn decoded(&self, name: &str, found: &[f32], lines: &mut Vec<Line>) -> Result<()> {
        let (expected, _) = self.stored.channels_last(name)?;
        let mut line = floats(name, found, &expected);
        line.pass = line.max_rel.is_some_and(|off| off <= self.most);
        lines.push(line);
        Ok(())
    }
}
