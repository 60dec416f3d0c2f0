//! `preprocessor_config.json`: how a picture becomes the input of a model.

use saccade::tokenize::{Filter, Fit, PixelConfig, ResizeRule};
use serde::Deserialize;

use super::{Folder, read_json, refuse};
use crate::error::Result;

/// The file, as far as it is used; newer folders have it as `image_processor` inside `processor_config.json`.
#[derive(Deserialize)]
struct Processor {
    image_processor_type: Option<String>,
    size: Size,
    crop_size: Option<Size>,
    resample: Option<u32>,
    rescale_factor: Option<f64>,
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
    min_size: Option<usize>,
}

#[derive(Deserialize)]
struct Newer {
    image_processor: Processor,
}

/// A size by whichever names it has.
#[derive(Deserialize)]
struct Size {
    shortest_edge: Option<usize>,
    height: Option<usize>,
    width: Option<usize>,
}

/// The steps of a folder's image processor.
pub(super) fn config(folder: &Folder<'_>) -> Result<PixelConfig> {
    let (older, newer) =
        (folder.path.join("preprocessor_config.json"), folder.path.join("processor_config.json"));
    let (path, found): (_, Processor) = if older.exists() {
        let found = read_json(&older)?;
        (older, found)
    } else {
        let Newer { image_processor } = read_json(&newer)?;
        (newer, image_processor)
    };
    let kind = found.image_processor_type.as_deref().unwrap_or("none");
    let sides = found.crop_size.as_ref().and_then(|size| Some((size.width?, size.height?)));
    // "…Fast" is another implementation of the same.
    let (resize, fit) = match (kind.trim_end_matches("Fast"), found.size.shortest_edge, sides) {
        ("ChameleonImageProcessor", Some(px), Some((width, height))) => {
            (ResizeRule::ShortestEdge { px }, Fit::CentreCrop { width, height })
        }
        ("JanusImageProcessor", None, None) if found.size.width == found.size.height => {
            let px = found
                .size
                .height
                .ok_or_else(|| refuse(&path, format!("`size` is missing; {}", super::AGAIN)))?;
            // Whatever the file says, transformers takes the mean for the background.
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "rounded down, as there"
            )]
            let background = found.image_mean.unwrap_or([0.5; 3]).map(|mean| (f64::from(mean) * 255.0) as u8);
            (ResizeRule::LongestEdge { px, min_px: found.min_size.unwrap_or(14) }, Fit::Square { background })
        }
        _ => {
            let reason = format!("the image processor `{}` of these sizes is not known", kind.escape_debug());
            return Err(refuse(&path, reason));
        }
    };
    let filter = match found.resample.unwrap_or(1) {
        1 => Filter::Lanczos,
        3 => Filter::Bicubic,
        other => {
            return Err(refuse(
                &path,
                format!("`resample` is {other}; 1 (Lanczos) and 3 (bicubic) are known"),
            ));
        }
    };
    Ok(PixelConfig {
        resize,
        filter,
        fit,
        rescale: found.rescale_factor.unwrap_or(1.0 / 255.0),
        mean: found.image_mean.unwrap_or([0.0; 3]),
        std: found.image_std.unwrap_or([1.0; 3]),
    })
}
