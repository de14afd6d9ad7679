//! Types of elements.

/// A type of a constant's or a port's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are the explanation
pub enum Element {
    F32,
    F16,
    BF16,
    F8E4M3,
    F8E8M0,
    F4E2M1,
    Nf4,
    I64,
    I32,
    I8,
    U8,
    I4,
    U4,
    Boolean,
    String,
    /// Decided by the runtime, such as that of a truncation setting.
    Dynamic,
}

impl Element {
    /// The name in attributes (`element_type`, `destination_type`).
    pub const fn name(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::BF16 => "bf16",
            Element::F8E4M3 => "f8e4m3",
            Element::F8E8M0 => "f8e8m0",
            Element::F4E2M1 => "f4e2m1",
            Element::Nf4 => "nf4",
            Element::I64 => "i64",
            Element::I32 => "i32",
            Element::I8 => "i8",
            Element::U8 => "u8",
            Element::I4 => "i4",
            Element::U4 => "u4",
            Element::Boolean => "boolean",
            Element::String => "string",
            Element::Dynamic => "dynamic",
        }
    }

    /// The name in a port's `precision`.
    pub const fn precision(self) -> &'static str {
        match self {
            Element::F32 => "FP32",
            Element::F16 => "FP16",
            Element::BF16 => "BF16",
            Element::F8E4M3 => "F8E4M3",
            Element::F8E8M0 => "F8E8M0",
            Element::F4E2M1 => "F4E2M1",
            Element::Nf4 => "NF4",
            Element::I64 => "I64",
            Element::I32 => "I32",
            Element::I8 => "I8",
            Element::U8 => "U8",
            Element::I4 => "I4",
            Element::U4 => "U4",
            Element::Boolean => "BOOL",
            Element::String => "STRING",
            Element::Dynamic => "UNSPECIFIED",
        }
    }

    /// Bits of one element; 0 where a constant cannot hold it.
    pub const fn bits(self) -> u64 {
        match self {
            Element::I64 => 64,
            Element::F32 | Element::I32 => 32,
            Element::F16 | Element::BF16 => 16,
            Element::F8E4M3 | Element::F8E8M0 | Element::I8 | Element::U8 | Element::Boolean => 8,
            Element::F4E2M1 | Element::Nf4 | Element::I4 | Element::U4 => 4,
            Element::String | Element::Dynamic => 0,
        }
    }

    /// Bytes of so many elements, packed; `None` if there are too many.
    pub const fn bytes_for(self, elements: u64) -> Option<u64> {
        match elements.checked_mul(self.bits()) {
            Some(bits) => Some(bits.div_ceil(8)),
            None => None,
        }
    }
}
