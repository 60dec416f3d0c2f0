//! Pictures in and out.

use std::sync::Arc;

use saccade::config::{ChameleonConfig, WeightDtype};
use saccade::family::Model;
use saccade::sample::SamplerOptions;
use saccade::session::{self, Session, SessionOptions};
use saccade::tokenize::{CodedImages, DrawPrompt, Features, Frames, Picture, PixelValues, drawn};

use super::stored::Stored;
use super::{Beside, Line, Report, floats};
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
    let picture = Picture::rgb(rgb.as_raw(), image.width() as usize, image.height() as usize);
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
    report: &mut Report,
) -> Result<Vec<u32>> {
    let mut images = CodedImages::new(model)?;
    let (values, size) = values(stored)?;
    photo(stored, (&values, size), &mut report.tensors, |picture, see| images.values(picture).map(see))?;
    let mut found = Vec::new();
    images.encode_values(&values, size, &mut found)?;
    if stored.has("image_tokens") {
        report.tensors.push(Line::ids("image_tokens", found == stored.ids("image_tokens", model)?));
    }
    if model.bundle().front_end.is_some() {
        let mut kernels = CodedImages::on_kernels(model)?;
        let mut ours = Vec::new();
        kernels.encode_values(&values, size, &mut ours)?;
        let same = found.iter().zip(&ours).filter(|(graph, ours)| graph == ours).count();
        #[allow(clippy::cast_precision_loss, reason = "a share of the places of a picture")]
        let same = same as f64 / ours.len() as f64;
        let (graph, ours) =
            (images.latents_of_values(&values, size)?, kernels.latents_of_values(&values, size)?);
        report.graph = Some(beside(model, floats("latents", graph, ours), Some(same)));
    }
    shown(stored, ids, c.image.placeholder, found)
}

/// What the graph gives beside what our kernels give.
fn beside(model: &Model, line: Line, same_codes: Option<f64>) -> Beside {
    let near = line.pass && same_codes.is_none_or(|same| same >= 1.0);
    // The kernels' weights of quantised bundles are in half precision here, the graph's are not.
    let pass = near || model.bundle().dtype != WeightDtype::F32;
    Beside { max_rel: line.max_rel.unwrap_or(f64::INFINITY), same_codes, pass }
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
    report: &mut Report,
) -> Result<()> {
    if !stored.has("pixel_values") {
        return Ok(());
    }
    let mut eye = Features::new(model)?;
    let (values, size) = values(stored)?;
    photo(stored, (&values, size), &mut report.tensors, |picture, see| eye.values(picture).map(see))?;
    let found = eye.of_values(&values, size)?;
    if stored.has("image_features") {
        let mut line = floats("image_features", found, &stored.floats("image_features")?);
        // Quantised layers are judged by what the model says.
        line.pass |= model.bundle().dtype != WeightDtype::F32;
        report.tensors.push(line);
    }
    if model.bundle().front_end.is_some() {
        let mut kernels = Features::on_kernels(model)?;
        let line = floats("image_features", found, kernels.of_values(&values, size)?);
        report.graph = Some(beside(model, line, None));
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
