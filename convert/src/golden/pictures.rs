//! Pictures in and out.

use std::sync::Arc;

use saccade::config::{ChameleonConfig, WeightDtype};
use saccade::family::Model;
use saccade::sample::SamplerOptions;
use saccade::session::{self, Session, SessionOptions};
use saccade::tokenize::{CodedImages, DrawPrompt, Features, Frames, Picture, PixelValues, drawn};

use super::stored::Stored;
use super::{Line, floats};
use crate::error::{ConvertError, Result};

/// `pixel_values`, channels last as the runtime has them, with their height and width.
fn values(stored: &Stored<'_>) -> Result<(Vec<f32>, (usize, usize))> {
    let (values, Frames { height, width, .. }) = stored.channels_last("pixel_values")?;
    Ok((values, (height, width)))
}

/// Compares what becomes of the picture beside the file, if there is one.
pub(super) fn photo(
    stored: &Stored<'_>,
    (values, size): (&[f32], (usize, usize)),
    lines: &mut Vec<Line>,
    run: impl FnOnce(Picture<'_>, &mut dyn FnMut(PixelValues<'_>)) -> saccade::Result<()>,
) -> Result<()> {
    let path = stored.path.with_file_name("photo.png");
    if !path.exists() {
        return Ok(());
    }
    let image = image::open(&path).map_err(|error| ConvertError::Refused {
        path: path.clone(),
        reason: format!("{error}; put a PNG there"),
    })?;
    let rgb = image.to_rgb8();
    let picture =
        Picture { rgb: rgb.as_raw(), width: image.width() as usize, height: image.height() as usize };
    run(picture, &mut |found| {
        let found_size = (found.height, found.width);
        let found = if found_size == size { found.values } else { &[] };
        lines.push(floats("pixel_values", found, values));
    })?;
    Ok(())
}

/// The text of Chameleon with the tokens of its picture in their places.
pub(super) fn codes(
    model: &Arc<Model>,
    c: &ChameleonConfig,
    stored: &Stored<'_>,
    ids: &[u32],
    lines: &mut Vec<Line>,
) -> Result<Vec<u32>> {
    let mut images = CodedImages::new(model)?;
    let (values, size) = values(stored)?;
    photo(stored, (&values, size), lines, |picture, see| images.values(picture).map(see))?;
    let mut found = Vec::new();
    images.encode_values(&values, size, &mut found)?;
    if stored.has("image_tokens") {
        lines.push(Line::ids("image_tokens", found == stored.ids("image_tokens", model)?));
    }
    shown(stored, ids, c.image.placeholder, found)
}

/// The text with the tokens of a picture in their places.
pub(super) fn shown(
    stored: &Stored<'_>,
    ids: &[u32],
    placeholder: u32,
    tokens: Vec<u32>,
) -> Result<Vec<u32>> {
    let mut tokens = tokens.into_iter();
    let mut shown = ids.to_vec();
    for id in shown.iter_mut().filter(|id| **id == placeholder) {
        *id = tokens
            .next()
            .ok_or_else(|| stored.refuse("`input_ids` has more places than the picture has tokens"))?;
    }
    Ok(shown)
}

/// Shows a session of Janus the features of the picture.
pub(super) fn features(
    model: &Arc<Model>,
    stored: &Stored<'_>,
    session: &mut Session,
    lines: &mut Vec<Line>,
) -> Result<()> {
    if !stored.has("pixel_values") {
        return Ok(());
    }
    let mut eye = Features::new(model)?;
    let (values, size) = values(stored)?;
    photo(stored, (&values, size), lines, |picture, see| eye.values(picture).map(see))?;
    let found = eye.of_values(&values, size)?;
    if stored.has("image_features") {
        let mut line = floats("image_features", found, &stored.floats("image_features")?);
        // Quantised layers are judged by what the model says.
        line.pass |= model.bundle().dtype != WeightDtype::F32;
        lines.push(line);
    }
    session.show(found)?;
    Ok(())
}

/// Draws as the model's makers do but for taking the likeliest code, and turns the golden codes into pixels.
pub(super) fn drawing(
    model: &Arc<Model>,
    stored: &Stored<'_>,
    dtype: WeightDtype,
    lines: &mut Vec<Line>,
) -> Result<()> {
    if !stored.has("draw_input_ids") {
        return Ok(());
    }
    // The picture says how large it is, for families that draw more than one size.
    let [height, width, 3] = stored.shape("drawn_pixels")?[..] else {
        return Err(stored.refuse("`drawn_pixels` is no picture of three channels"));
    };
    let guided = stored.ids("draw_input_ids", model)?;
    let mut prompt = DrawPrompt::of_tokens(model, &guided, Some([height, width]))?;
    if stored.has("draw_free_ids") {
        prompt.free = stored.ids("draw_free_ids", model)?;
    }
    prompt.sampling = SamplerOptions::default();
    let expected = stored.codes("drawn_image_tokens", usize::from(u16::MAX) + 1)?;
    let options = SessionOptions { max_text_tokens: prompt.tokens(), max_sequences: 2 };
    let (mut guided, mut free) = (Session::new(model, &options)?, Session::new(model, &options)?);
    let mut codes = Vec::new();
    session::draw(&mut guided, &mut free, &prompt, &mut codes, &mut |_| true)?;
    let mut line = Line::ids("drawn_image_tokens", codes == expected);
    // A quantised model may choose another code, and then all others differ.
    line.pass |= dtype != WeightDtype::F32;
    lines.push(line);
    let mut picture = Vec::new();
    drawn(model, &expected, prompt.grid, &mut picture)?;
    let mut line = floats("drawn_pixels", &picture, &stored.floats("drawn_pixels")?);
    line.pass |= dtype != WeightDtype::F32;
    lines.push(line);
    Ok(())
}
