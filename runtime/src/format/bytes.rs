//! Byte counts that cannot wrap.

use super::{Dtype, FormatError};

/// A number of bytes taken from a file: the only arithmetic it has is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ByteCount(u64);

impl ByteCount {
    pub(super) const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    pub(super) const fn to_u64(self) -> u64 {
        self.0
    }

    pub(super) fn plus(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    pub(super) fn minus(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// Bytes from here to the next multiple of `align`.
    pub(super) fn to_multiple(self, align: u64) -> Option<Self> {
        self.0.checked_next_multiple_of(align).map(|end| Self(end - self.0))
    }

    /// Bytes of a tensor.
    ///
    /// Zero dimensions count as one in the overflow check, so that `[0, u64::MAX, u64::MAX]` is refused too: a later
    /// stride computation would wrap where this product does not.
    pub(super) fn of_tensor(name: &str, dtype: Dtype, shape: &[usize]) -> Result<Self, FormatError> {
        let overflow = || FormatError::SizeOverflow { name: name.into(), dtype, shape: shape.into() };
        let mut bits = dtype.bits();
        for &dim in shape {
            let dim = u64::try_from(dim).map_err(|_| overflow())?;
            bits = bits.checked_mul(dim.max(1)).ok_or_else(overflow)?;
        }
        if shape.contains(&0) {
            return Ok(Self(0));
        }
        if !bits.is_multiple_of(8) {
            return Err(FormatError::PartialByte { name: name.into(), dtype, shape: shape.into(), bits });
        }
        Ok(Self(bits / 8))
    }
}
