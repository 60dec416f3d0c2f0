//! Pictures as bytes, and how they become the input of a network: turned into RGB, resized, a part of them or something around them, and
//! every byte a number. What becomes of pictures of one size is a [`Plan`], which the CPU follows here and a card in the kernels of `pixels.cu`.

mod area;
mod axis;
mod format;
mod plan;
mod resample;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use area::Area;
pub use format::{Picture, PixelFormat};
pub(crate) use plan::{Levels, Place, Plan, Scratch, Way};
pub use resample::Filter;
pub(crate) use resample::{Resample, Window};

/// The longest side of a picture, before and after, in pixels: the longest that JPEG has.
pub(crate) const MAX_SIDE_PX: usize = 65_535;
