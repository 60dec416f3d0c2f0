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
    fn encode(&mut self, input: Self::Input<'_>, codes: &mut Vec<Self::Code>) -> crate::Result<()>;

    /// Replaces `output` by what `codes` stand for.
    ///
    /// # Errors
    /// If the codes are not of this modality or not of the right number.
    fn decode(&mut self, codes: &[Self::Code], output: &mut Self::Output) -> crate::Result<()>;
}
