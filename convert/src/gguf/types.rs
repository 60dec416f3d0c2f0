//! The types of values and of tensors, as their numbers in the file.

/// The type of a metadata value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    /// In the order of their numbers.
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// The type with this number.
    #[must_use]
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    /// Bytes of a value, or the fewest that one takes: a length, or a type and a count.
    #[must_use]
    pub fn least_bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }
}

/// The type of a tensor's elements, under the format's own name. What only ever lives in memory (Q8_1, Q8_K) and what was
/// withdrawn is unknown here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, non_camel_case_types, reason = "the format's own names")]
pub enum GgmlType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    I8 = 24,
    I16 = 25,
    I32 = 26,
    I64 = 27,
    F64 = 28,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    NVFP4 = 40,
    Q1_0 = 41,
}

impl GgmlType {
    /// Each type with the elements of a block and its bytes.
    const ALL: [(Self, u64, u64); 32] = [
        (Self::F32, 1, 4),
        (Self::F16, 1, 2),
        (Self::Q4_0, 32, 18),
        (Self::Q4_1, 32, 20),
        (Self::Q5_0, 32, 22),
        (Self::Q5_1, 32, 24),
        (Self::Q8_0, 32, 34),
        (Self::Q2_K, 256, 84),
        (Self::Q3_K, 256, 110),
        (Self::Q4_K, 256, 144),
        (Self::Q5_K, 256, 176),
        (Self::Q6_K, 256, 210),
        (Self::IQ2_XXS, 256, 66),
        (Self::IQ2_XS, 256, 74),
        (Self::IQ3_XXS, 256, 98),
        (Self::IQ1_S, 256, 50),
        (Self::IQ4_NL, 32, 18),
        (Self::IQ3_S, 256, 110),
        (Self::IQ2_S, 256, 82),
        (Self::IQ4_XS, 256, 136),
        (Self::I8, 1, 1),
        (Self::I16, 1, 2),
        (Self::I32, 1, 4),
        (Self::I64, 1, 8),
        (Self::F64, 1, 8),
        (Self::IQ1_M, 256, 56),
        (Self::BF16, 1, 2),
        (Self::TQ1_0, 256, 54),
        (Self::TQ2_0, 256, 66),
        (Self::MXFP4, 32, 17),
        (Self::NVFP4, 64, 36),
        (Self::Q1_0, 128, 18),
    ];

    /// The type with this number.
    #[must_use]
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.iter().map(|row| row.0).find(|&ty| ty as u32 == id)
    }

    /// Elements of a block, and its bytes.
    #[must_use]
    pub fn block(self) -> (u64, u64) {
        let row = Self::ALL.iter().find(|row| row.0 == self);
        row.map_or((1, 1), |&(_, elements, bytes)| (elements, bytes))
    }

    /// Bytes of a tensor whose rows are whole blocks; `None` when they, or its elements, do not fit 64 bits.
    #[must_use]
    pub fn bytes(self, elements: impl IntoIterator<Item = u64>) -> Option<u64> {
        let (block, bytes) = self.block();
        elements.into_iter().try_fold(1u64, u64::checked_mul).map(|n| n / block)?.checked_mul(bytes)
    }
}
