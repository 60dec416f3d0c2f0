//! Tokenizers: each turns one modality into codes and back.

mod bins;
mod chat;
mod clips;
mod coded;
mod drawing;
mod features;
mod image;
pub(crate) mod pixels;
mod reader;
mod text;

pub use bins::Bins;
pub use chat::{Message, Part};
pub use clips::{Clips, Frames};
pub use coded::CodedImages;
pub use drawing::{DrawPrompt, Painted, drawn, painted};
pub use features::Features;
pub use image::ImageTokenizer;
pub(crate) use image::check_codes;
pub use pixels::{Fit, PixelConfig, PixelValues, Pixels, ResizeRule};
pub use reader::PictureReader;
pub use text::TextTokenizer;

pub use crate::picture::{Filter, Picture, PixelFormat};

use crate::Result;
use crate::session::SessionError;

/// The codes that [`Maps::nearest`](crate::engine::maps::Maps::nearest) found.
///
/// # Errors
/// If what was looked for is not a number.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a code book has at most 65,536 vectors"
)]
fn found_codes(found: &[f32], codes: &mut Vec<u16>) -> Result<()> {
    codes.clear();
    if found.iter().any(|code| code.is_nan()) {
        return Err(SessionError::NumericFault.into());
    }
    codes.extend(found.iter().map(|&code| code as u16));
    Ok(())
}

/// One modality into codes and back.
///
/// Codes are local to the modality (`0..codebook_size`, `0..bins`), except for text, whose codes are token ids.
pub trait Tokenizer {
    /// What is encoded.
    type Input<'a>;
    /// What decoding fills.
    type Output;
    /// One code.
    type Code;

    /// Replaces `codes` by the codes of `input`.
    ///
    /// # Errors
    /// If the input does not fit the model.
    fn encode(&mut self, input: Self::Input<'_>, codes: &mut Vec<Self::Code>) -> Result<()>;

    /// Replaces `output` by what `codes` stand for.
    ///
    /// # Errors
    /// If the codes are not of this modality or not of the right number.
    fn decode(&mut self, codes: &[Self::Code], output: &mut Self::Output) -> Result<()>;
}
