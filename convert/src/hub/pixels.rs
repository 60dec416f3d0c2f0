//! `preprocessor_config.json`: how a picture becomes the input of a model.

use saccade::tokenize::{Filter, Fit, PixelConfig, ResizeRule};
use serde::Deserialize;

use super::{Folder, read_json, refuse};
use crate::error::Result;

/// Mean and deviation of the pictures that CLIP was trained on, which some processors have by default.
const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// The file, as far as it is used; newer folders have it as `image_processor` inside `processor_config.json`.
#[derive(Deserialize)]
struct Processor {
    image_processor_type: Option<String>,
    #[serde(default)]
    size: Size,
    /// Of DeepSeek's own processor.
    image_size: Option<usize>,
    crop_size: Option<Size>,
    resample: Option<u32>,
    rescale_factor: Option<f64>,
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
    min_size: Option<usize>,
    spatial_factor: Option<usize>,
    min_pixels: Option<usize>,
    max_pixels: Option<usize>,
}

#[derive(Deserialize)]
struct Newer {
    image_processor: Processor,
}

/// A size by whichever names it has.
#[derive(Default, Deserialize)]
struct Size {
    shortest_edge: Option<usize>,
    height: Option<usize>,
    width: Option<usize>,
    min_pixels: Option<usize>,
    max_pixels: Option<usize>,
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
    // "…Fast" is another implementation of the same.
    let kind = found.image_processor_type.as_deref().unwrap_or("none").trim_end_matches("Fast");
    let sides = found.crop_size.as_ref().and_then(|size| Some((size.width?, size.height?)));
    let (resize, fit) = match (kind, found.size.shortest_edge, sides) {
        ("ChameleonImageProcessor", Some(px), Some((width, height))) => {
            (ResizeRule::ShortestEdge { px }, Fit::CentreCrop { width, height })
        }
        // DeepSeek's own rounds the shorter side down, where transformers' rounds it to the nearest: a pixel at most.
        ("JanusImageProcessor" | "VLMImageProcessor", None, None)
            if found.size.width == found.size.height =>
        {
            let px = (found.image_size.or(found.size.height))
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
        ("Emu3ImageProcessor", ..) => {
            let rule = ResizeRule::Multiples {
                factor: found.spatial_factor.unwrap_or(8),
                min_pixels: found.min_pixels.or(found.size.min_pixels).unwrap_or(512 * 512),
                max_pixels: found.max_pixels.or(found.size.max_pixels).unwrap_or(1024 * 1024),
            };
            (rule, Fit::Whole)
        }
        _ => {
            let reason = format!("the image processor `{}` of these sizes is not known", kind.escape_debug());
            return Err(refuse(&path, reason));
        }
    };
    // What an older file leaves out is what the processor has without it.
    let (resample, mean, std) = match kind {
        "Emu3ImageProcessor" | "VLMImageProcessor" => (3, CLIP_MEAN, CLIP_STD),
        _ => (1, [0.0; 3], [1.0; 3]),
    };
    let filter = match found.resample.unwrap_or(resample) {
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
        mean: found.image_mean.unwrap_or(mean),
        std: found.image_std.unwrap_or(std),
    })
}
