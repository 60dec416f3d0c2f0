//! Pictures as bytes, and how they become the input of a network: resized, a part of them or something around them, and every byte a
//! number. What becomes of pictures of one size is a [`Plan`], which the CPU follows here and a card in the kernels of `pixels.cu`.

mod area;
mod axis;
mod plan;
mod resample;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use area::Area;
pub(crate) use plan::{Levels, Place, Plan, Scratch, Way};
pub use resample::Filter;
pub(crate) use resample::{Resample, Window};

/// The longest side of a picture, before and after, in pixels: the longest that JPEG has.
pub(crate) const MAX_SIDE_PX: usize = 65_535;

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
