//! Pictures into the numbers that published models take: resized, cropped or padded, and normalised.
//!
//! A [`PixelConfig`] says how, in the steps of Hugging Face's image processors with the Pillow backend, and [`Pixels`]
//! does it with the same roundings: the bytes are equal, and so are the numbers made of them.

#[cfg(test)]
pub(crate) mod tests;

use serde::{Deserialize, Serialize};

use crate::config::ConfigError;
use crate::picture::{Filter, Levels, MAX_SIDE_PX, Picture, Place, Plan, Resample, Scratch, Way};
use crate::session::SessionError;

/// Most pixels of a result: twice as many along each side as the largest published preprocessing here makes.
const MAX_RESULT_PIXELS: usize = 1 << 22;
/// Most pixels between the two passes of a resize, 48 MiB.
const MAX_BETWEEN_PIXELS: usize = 1 << 24;
/// How many times longer than wide a picture for [`ResizeRule::Multiples`] may be. Source: `smart_resize` of Emu3.
const MAX_ASPECT: usize = 200;

/// To what size a picture is resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ResizeRule {
    /// The shorter side to `px` pixels, the other in proportion, rounded down.
    ShortestEdge {
        /// The shorter side.
        px: usize,
    },
    /// The longer side to `px` pixels, the other in proportion, rounded, and at least `min_px`.
    LongestEdge {
        /// The longer side.
        px: usize,
        /// The least of the shorter side, which then loses its proportion.
        min_px: usize,
    },
    /// Both sides to multiples of `factor` pixels near their own size, about in proportion.
    ///
    /// If they have more than `max_pixels` or fewer than `min_pixels`, both shrink or grow alike first. A side is never
    /// less than one `factor`, so that long narrow pictures can end above `max_pixels`.
    Multiples {
        /// What sides are multiples of, in pixels.
        factor: usize,
        /// Fewest pixels, width times height.
        min_pixels: usize,
        /// Most pixels, width times height.
        max_pixels: usize,
    },
}

/// What is shown of the resized picture, on what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Fit {
    /// All of it, on nothing.
    Whole,
    /// Its centre; what it is too small for stays black.
    CentreCrop {
        /// Columns of the result.
        width: usize,
        /// Rows of the result.
        height: usize,
    },
    /// All of it, in the middle of a square as large as its longer side.
    Square {
        /// Colour of the rest of the square, red, green, blue.
        background: [u8; 3],
    },
}

/// How a picture becomes the input of a model: resized, fitted, and every byte `v` of channel `c` made
/// `(v * rescale - mean[c]) / std[c]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PixelConfig {
    /// To what size.
    pub resize: ResizeRule,
    /// With what weights.
    pub filter: Filter,
    /// What is shown of it.
    pub fit: Fit,
    /// What a byte is multiplied by. In double precision, as the product is: it is rounded afterwards.
    pub rescale: f64,
    /// What is then taken away, per channel.
    pub mean: [f32; 3],
    /// What is then divided by, per channel.
    pub std: [f32; 3],
}

impl PixelConfig {
    /// Whether the steps make sense for some picture.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with the field and the reason.
    pub fn check(&self) -> Result<(), ConfigError> {
        let invalid = |field, reason: String| Err(ConfigError::Invalid { field, reason });
        let sides = 1..=MAX_SIDE_PX;
        let result = 1..=MAX_RESULT_PIXELS;
        let resize = match self.resize {
            ResizeRule::ShortestEdge { px } => sides.contains(&px),
            ResizeRule::LongestEdge { px, min_px } => sides.contains(&px) && (1..=px).contains(&min_px),
            ResizeRule::Multiples { factor, min_pixels, max_pixels } => {
                sides.contains(&factor)
                    && result.contains(&max_pixels)
                    && (1..=max_pixels).contains(&min_pixels)
            }
        };
        if !resize {
            let reason = format!(
                "{:?} does not say a size of 1 to {MAX_SIDE_PX} pixels a side and at most {MAX_RESULT_PIXELS} in all",
                self.resize
            );
            return invalid("pixels.resize", reason);
        }
        if let Fit::CentreCrop { width, height } = self.fit
            && !(sides.contains(&width) && sides.contains(&height) && result.contains(&(width * height)))
        {
            return invalid(
                "pixels.fit",
                format!("{width} × {height} is not between 1 and {MAX_RESULT_PIXELS} pixels"),
            );
        }
        if !(self.rescale.is_finite() && self.std.iter().all(|&std| std > 0.0)) {
            return invalid("pixels.std", "the scale is not finite, or a deviation is not above 0".into());
        }
        if !self.values().as_flattened().iter().all(|value| value.is_finite()) {
            return invalid("pixels.mean", "a byte becomes a number that is not finite".into());
        }
        Ok(())
    }

    /// What every byte becomes: `[channel, byte]`.
    // Rounded to single precision after the product, as the processors do.
    #[allow(clippy::cast_possible_truncation)]
    fn values(&self) -> Levels {
        let mut values = [[0.0; 256]; 3];
        for ((values, mean), std) in values.iter_mut().zip(self.mean).zip(self.std) {
            for (value, byte) in values.iter_mut().zip(0_u8..=u8::MAX) {
                *value = ((f64::from(byte) * self.rescale) as f32 - mean) / std;
            }
        }
        values
    }

    /// Values back into bytes: `rgb8`.
    // Cut off, not rounded, as the processors do; `as` keeps them in range.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(crate) fn bytes(&self, values: &[f32]) -> Vec<u8> {
        let byte = |((x, mean), std): ((&f32, f32), f32)| (f64::from(x * std + mean) / self.rescale) as u8;
        values
            .as_chunks::<3>()
            .0
            .iter()
            .flat_map(|pixel| pixel.iter().zip(self.mean).zip(self.std).map(byte))
            .collect()
    }

    /// Columns and rows of what a picture of `width` × `height` pixels becomes.
    ///
    /// # Errors
    /// [`SessionError::PictureSize`] if the picture is empty, too large or too narrow, or the result too large.
    pub fn size(&self, width: usize, height: usize) -> Result<(usize, usize), SessionError> {
        let (columns, rows) = self.places(width, height)?;
        Ok((columns.canvas, rows.canvas))
    }

    /// Where columns and rows go; the configuration was checked.
    fn places(&self, width: usize, height: usize) -> Result<(Place, Place), SessionError> {
        check_sides(width, height)?;
        let refuse = |reason| Err(SessionError::PictureSize { width, height, reason });
        if matches!(self.resize, ResizeRule::Multiples { .. })
            && width.max(height) > MAX_ASPECT * width.min(height)
        {
            return refuse(format!(
                "is too narrow; a side may be at most {MAX_ASPECT} times the other, so crop it"
            ));
        }
        let (resized_width, resized_height) = self.resize.apply(width, height);
        let square = resized_width.max(resized_height);
        let (columns, rows) = match self.fit {
            Fit::Whole => {
                (Place::on(resized_width, resized_width), Place::on(resized_height, resized_height))
            }
            Fit::CentreCrop { width, height } => {
                (Place::cropped(resized_width, width), Place::cropped(resized_height, height))
            }
            Fit::Square { .. } => (Place::on(resized_width, square), Place::on(resized_height, square)),
        };
        let (w, h) = (columns.canvas, rows.canvas);
        if w.max(h) > MAX_SIDE_PX || w * h > MAX_RESULT_PIXELS {
            return refuse(format!(
                "would become {w} × {h} for the model; at most {MAX_SIDE_PX} a side and {MAX_RESULT_PIXELS} in all are accepted, so crop it"
            ));
        }
        Ok((columns, rows))
    }
}

impl ResizeRule {
    /// Columns and rows of a resized picture, for sides of 1 to [`MAX_SIDE_PX`]. All roundings are those of Python.
    // All numbers are far below 2⁵³, exact in f64, and positive.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn apply(self, width: usize, height: usize) -> (usize, usize) {
        let (w, h) = (width as f64, height as f64);
        match self {
            Self::ShortestEdge { px } if width <= height => (px, px * height / width),
            Self::ShortestEdge { px } => (px * width / height, px),
            Self::LongestEdge { px, min_px } => {
                let scale = px as f64 / w.max(h);
                let side = |side: f64| ((side * scale).round_ties_even() as usize).max(min_px);
                (side(w), side(h))
            }
            Self::Multiples { factor, min_pixels, max_pixels } => {
                let f = factor as f64;
                let near = |side: f64| (side / f).round_ties_even() as usize * factor;
                let pixels = near(w) * near(h);
                if pixels > max_pixels {
                    let shrink = (w * h / max_pixels as f64).sqrt();
                    let side = |side: f64| ((side / shrink / f).floor() as usize * factor).max(factor);
                    (side(w), side(h))
                } else if pixels < min_pixels {
                    let grow = (min_pixels as f64 / (w * h)).sqrt();
                    let side = |side: f64| (side * grow / f).ceil() as usize * factor;
                    (side(w), side(h))
                } else {
                    (near(w), near(h))
                }
            }
        }
    }
}

/// A picture as a model takes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PixelValues<'a> {
    /// `[height, width, 3] f32`
    pub values: &'a [f32],
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// Refuses a picture of sizes that no model takes.
pub(super) fn check_sides(width: usize, height: usize) -> Result<(), SessionError> {
    let refuse = |reason| Err(SessionError::PictureSize { width, height, reason });
    if width == 0 || height == 0 {
        return refuse("has nothing to show".into());
    }
    if width.max(height) > MAX_SIDE_PX {
        return refuse(format!("is too large; a side may have at most {MAX_SIDE_PX}"));
    }
    Ok(())
}

/// Refuses a picture whose bytes do not fit its sizes, which were checked.
pub(super) fn check_bytes(picture: Picture<'_>) -> Result<(), SessionError> {
    let Picture { bytes, format, width, height, stride } = picture;
    let (least, most) = picture.sizes();
    if !(least..=most).contains(&bytes.len()) {
        return Err(SessionError::Picture { width, height, bytes: bytes.len(), format, stride });
    }
    Ok(())
}

/// Turns pictures into a model's input, and holds the buffers for it: pictures of the last one's size allocate nothing.
pub struct Pixels {
    config: PixelConfig,
    plan: Plan,
    scratch: Scratch,
    /// The last result, `[height, width, 3] f32`.
    values: Vec<f32>,
}

impl std::fmt::Debug for Pixels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pixels").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Pixels {
    /// For pictures that become what `config` says.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] as of [`PixelConfig::check`].
    pub fn new(config: &PixelConfig) -> Result<Self, ConfigError> {
        config.check()?;
        let background = match config.fit {
            Fit::Square { background } => background,
            Fit::Whole | Fit::CentreCrop { .. } => [0; 3],
        };
        let way = Way::Filter(Resample::new(config.filter));
        let plan = Plan::new(way, background, config.values());
        Ok(Self { config: *config, plan, scratch: Scratch::default(), values: Vec::new() })
    }

    /// What is done with pictures.
    #[must_use]
    pub const fn config(&self) -> &PixelConfig {
        &self.config
    }

    /// `picture` as the model takes it.
    ///
    /// # Errors
    /// [`SessionError::Picture`] if the bytes do not fit the sizes, [`SessionError::PictureSize`] if the sizes are
    /// refused. A result that was given before is then gone.
    pub fn run(&mut self, picture: Picture<'_>) -> Result<PixelValues<'_>, SessionError> {
        self.plan(picture)?;
        let Self { plan, scratch, values, .. } = self;
        let (height, width) = plan.canvas();
        values.resize(height * width * 3, 0.0);
        plan.run(picture, scratch, values);
        Ok(PixelValues { values, width, height })
    }

    /// How pictures as `picture` become the model's input; made anew when their size changes.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(crate) fn plan(&mut self, picture: Picture<'_>) -> Result<&Plan, SessionError> {
        let Picture { width, height, .. } = picture;
        if !self.plan.is_for((width, height)) {
            let places = self.config.places(width, height)?;
            self.plan.make((width, height), places, MAX_BETWEEN_PIXELS).map_err(|between| {
                let times = between / MAX_BETWEEN_PIXELS + 1;
                let reason = format!("is too large for the model to resize it; make it smaller by {times}");
                SessionError::PictureSize { width, height, reason }
            })?;
        }
        check_bytes(picture)?;
        Ok(&self.plan)
    }
}
