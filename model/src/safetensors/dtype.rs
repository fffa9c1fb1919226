//! [`StoredDtype`]: what an element of a file is, computed with or not.

use std::fmt;

/// The element types of safetensors, by the format's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types, missing_docs, reason = "these are the names in the files")]
pub enum StoredDtype {
    BOOL,
    F4,
    F6_E2M3,
    F6_E3M2,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    F8_E8M0,
    F8_E4M3FNUZ,
    F8_E5M2FNUZ,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

/// Each with its bits.
const ALL: [(StoredDtype, usize); 22] = {
    use StoredDtype::*;
    [
        (BOOL, 8),
        (F4, 4),
        (F6_E2M3, 6),
        (F6_E3M2, 6),
        (U8, 8),
        (I8, 8),
        (F8_E5M2, 8),
        (F8_E4M3, 8),
        (F8_E8M0, 8),
        (F8_E4M3FNUZ, 8),
        (F8_E5M2FNUZ, 8),
        (I16, 16),
        (U16, 16),
        (F16, 16),
        (BF16, 16),
        (I32, 32),
        (U32, 32),
        (F32, 32),
        (C64, 64),
        (F64, 64),
        (I64, 64),
        (U64, 64),
    ]
};

impl StoredDtype {
    /// The type of that name.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        ALL.iter().map(|(dtype, _)| *dtype).find(|dtype| dtype.to_string() == name)
    }

    /// Bits of an element.
    pub fn bits(self) -> usize {
        ALL.iter().find(|(dtype, _)| *dtype == self).map_or(0, |(_, bits)| *bits)
    }

    /// Bytes of that many elements; `None` if that is no whole number, or one beyond all memory.
    pub fn bytes_of(self, elements: usize) -> Option<usize> {
        let bits = elements.checked_mul(self.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

impl fmt::Display for StoredDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
