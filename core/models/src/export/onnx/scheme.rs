//! How matrices are stored, and what such ways are called.

use std::fmt;

use drophammer_formats::DType;

/// How one matrix is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Storage {
    /// As floats, turned into float32 when the model is loaded.
    Float(DType),
    /// In blocks of a row with a float32 scale, as `MatMulNBits` and `GatherBlockQuantized` read them.
    Blocks {
        /// Bits of a code: 2, 4 or 8.
        bits: u8,
        /// Weights in a block: a power of two from 16 on.
        block: u32,
        /// Whether zero lies in the middle of the codes, so that blocks need no zero point.
        symmetric: bool,
    },
    /// One float32 scale per row and codes around zero, decoded by `DequantizeLinear`.
    Channels {
        /// Bits of a code: 4 or 8.
        bits: u8,
    },
    /// One scale and one zero point for the whole matrix: tables whose rows become activations.
    Even {
        /// Bits of a code: 8 or 16.
        bits: u8,
    },
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Storage::Float(dtype) => f.write_str(&dtype.name().to_lowercase()),
            Storage::Blocks { bits, block, symmetric } => {
                write!(f, "int{bits}{}_b{block}", if *symmetric { "_sym" } else { "" })
            }
            Storage::Channels { bits } => write!(f, "int{bits}_channels"),
            Storage::Even { bits } => write!(f, "uint{bits}"),
        }
    }
}

/// A scheme: the storage of all matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheme {
    /// What matrices are stored as where their width allows it.
    pub storage: Storage,
}

/// The schemes by name, largest first. `int8`, `int4` and `int2` have blocks of 32 unless a suffix (`_b16` to `_b256`) says otherwise;
/// a table that is no head has 8 bits in all of them.
pub const SCHEMES: &[&str] = &[
    "fp32",
    "fp16",
    "bf16",
    "int8",
    "int8_b128",
    "int4_b16",
    "int4",
    "int4_sym",
    "int4_b64",
    "int4_sym_b64",
    "int4_b128",
    "int4_sym_b128",
    "int2",
];

/// The scheme of a name; `None` for unknown ones.
pub fn scheme(name: &str) -> Option<Scheme> {
    let floats = [("fp32", DType::F32), ("fp16", DType::F16), ("bf16", DType::BF16)];
    if let Some((_, dtype)) = floats.iter().find(|(float, _)| *float == name) {
        return Some(Scheme { storage: Storage::Float(*dtype) });
    }
    let (base, block) = match name.split_once("_b") {
        Some((base, block)) => (base, block.parse().ok()?),
        None => (name, 32),
    };
    if !(16..=256).contains(&block) || !u32::is_power_of_two(block) {
        return None;
    }
    // Eight bits lose nothing that a zero point could give back.
    let (bits, symmetric) = match base {
        "int8" | "int8_sym" => (8, true),
        "int4" => (4, false),
        "int4_sym" => (4, true),
        "int2" => (2, false),
        _ => return None,
    };
    Some(Scheme { storage: Storage::Blocks { bits, block, symmetric } })
}

impl Scheme {
    /// How a matrix of so many columns is stored: in shorter blocks where the scheme's do not divide them, and as half-precision floats where
    /// none does.
    pub(super) fn for_columns(self, columns: u64) -> Storage {
        match self.storage {
            Storage::Blocks { bits, block, symmetric } => {
                let mut fitting = block;
                while fitting >= 16 && !columns.is_multiple_of(fitting.into()) {
                    fitting /= 2;
                }
                if fitting >= 16 {
                    Storage::Blocks { bits, block: fitting, symmetric }
                } else {
                    Storage::Float(DType::F16)
                }
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_scheme_has_its_name() {
        for name in SCHEMES {
            assert!(scheme(name).is_some(), "{name}");
        }
        for name in ["int4_b48", "int4_b8", "int3", "fp64", "int4_b", "int4_b512"] {
            assert_eq!(scheme(name), None, "{name}");
        }
    }

    #[test]
    fn blocks_shrink_until_they_divide_a_row() {
        let scheme = scheme("int4_b128").unwrap();
        assert_eq!(scheme.for_columns(4096).to_string(), "int4_b128");
        assert_eq!(scheme.for_columns(576).to_string(), "int4_b64");
        assert_eq!(scheme.for_columns(24).to_string(), "f16");
    }
}
