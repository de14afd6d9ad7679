//! Every storage type a tensor can have in a file we read or write, with its block geometry.
//!
//! A type is a *container fact*: how many elements share a block and how many bytes that block takes. What the
//! bits mean is the business of `drophammer-quant`.

use serde::{Deserialize, Serialize};

macro_rules! dtypes {
    ($($(#[$doc:meta])* $variant:ident, $name:literal, $block:literal, $bytes:literal, $ggml:expr;)*) => {
        /// A tensor's storage type.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum DType {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
        }

        impl DType {
            /// All types, in declaration order.
            pub const ALL: &'static [DType] = &[$(DType::$variant),*];

            /// The lower-case name used in scheme names, reports and `--json` output.
            pub const fn name(self) -> &'static str {
                match self { $(DType::$variant => $name,)* }
            }

            /// Elements per block: 1 for plain types.
            pub const fn block_elements(self) -> usize {
                match self { $(DType::$variant => $block,)* }
            }

            /// Bytes per block of [`Self::block_elements`] elements.
            pub const fn block_bytes(self) -> usize {
                match self { $(DType::$variant => $bytes,)* }
            }

            /// The `ggml_type` number in GGUF files, where the type exists there.
            pub const fn ggml_id(self) -> Option<u32> {
                match self { $(DType::$variant => $ggml,)* }
            }
        }
    };
}

dtypes! {
    /// IEEE binary64.
    F64, "f64", 1, 8, Some(28);
    /// IEEE binary32.
    F32, "f32", 1, 4, Some(0);
    /// IEEE binary16.
    F16, "f16", 1, 2, Some(1);
    /// bfloat16: the upper half of a binary32.
    BF16, "bf16", 1, 2, Some(30);
    /// OCP FP8 E4M3 (finite, NaN, no infinity).
    F8E4M3, "f8_e4m3", 1, 1, None;
    /// OCP FP8 E5M2.
    F8E5M2, "f8_e5m2", 1, 1, None;
    /// Power-of-two scale, 8 exponent bits (OCP MX).
    F8E8M0, "f8_e8m0", 1, 1, None;
    /// Signed 64-bit integer.
    I64, "i64", 1, 8, Some(27);
    /// Signed 32-bit integer.
    I32, "i32", 1, 4, Some(26);
    /// Signed 16-bit integer.
    I16, "i16", 1, 2, Some(25);
    /// Signed 8-bit integer.
    I8, "i8", 1, 1, Some(24);
    /// Unsigned 64-bit integer.
    U64, "u64", 1, 8, None;
    /// Unsigned 32-bit integer.
    U32, "u32", 1, 4, None;
    /// Unsigned 16-bit integer.
    U16, "u16", 1, 2, None;
    /// Unsigned 8-bit integer.
    U8, "u8", 1, 1, None;
    /// One byte per truth value.
    Bool, "bool", 1, 1, None;
    /// 4 bits, one scale.
    Q4_0, "q4_0", 32, 18, Some(2);
    /// 4 bits, scale and minimum.
    Q4_1, "q4_1", 32, 20, Some(3);
    /// 5 bits, one scale.
    Q5_0, "q5_0", 32, 22, Some(6);
    /// 5 bits, scale and minimum.
    Q5_1, "q5_1", 32, 24, Some(7);
    /// 8 bits, one scale.
    Q8_0, "q8_0", 32, 34, Some(8);
    /// K-quant, 2.625 bits per weight.
    Q2K, "q2_k", 256, 84, Some(10);
    /// K-quant, 3.4375 bits per weight.
    Q3K, "q3_k", 256, 110, Some(11);
    /// K-quant, 4.5 bits per weight.
    Q4K, "q4_k", 256, 144, Some(12);
    /// K-quant, 5.5 bits per weight.
    Q5K, "q5_k", 256, 176, Some(13);
    /// K-quant, 6.5625 bits per weight.
    Q6K, "q6_k", 256, 210, Some(14);
    /// Lattice codebook, 2.0625 bits per weight.
    Iq2Xxs, "iq2_xxs", 256, 66, Some(16);
    /// Lattice codebook, 2.3125 bits per weight.
    Iq2Xs, "iq2_xs", 256, 74, Some(17);
    /// Lattice codebook, 3.0625 bits per weight.
    Iq3Xxs, "iq3_xxs", 256, 98, Some(18);
    /// Lattice codebook, 1.5625 bits per weight.
    Iq1S, "iq1_s", 256, 50, Some(19);
    /// Non-linear 4-bit table.
    Iq4Nl, "iq4_nl", 32, 18, Some(20);
    /// Lattice codebook, 3.4375 bits per weight.
    Iq3S, "iq3_s", 256, 110, Some(21);
    /// Lattice codebook, 2.5625 bits per weight.
    Iq2S, "iq2_s", 256, 82, Some(22);
    /// Non-linear 4-bit table in super-blocks.
    Iq4Xs, "iq4_xs", 256, 136, Some(23);
    /// Lattice codebook, 1.75 bits per weight.
    Iq1M, "iq1_m", 256, 56, Some(29);
    /// Ternary, 1.6875 bits per weight.
    Tq1_0, "tq1_0", 256, 54, Some(34);
    /// Ternary, 2.0625 bits per weight.
    Tq2_0, "tq2_0", 256, 66, Some(35);
    /// OCP MXFP4: E2M1 elements, one E8M0 scale.
    Mxfp4, "mxfp4", 32, 17, Some(39);
    /// NVFP4: E2M1 elements, four UE4M3 scales.
    Nvfp4, "nvfp4", 64, 36, Some(40);
    /// Binary, 1.125 bits per weight.
    Q1_0, "q1_0", 128, 18, Some(41);
}

impl DType {
    /// The type with this GGUF number.
    pub fn from_ggml_id(id: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|dtype| dtype.ggml_id() == Some(id))
    }

    /// The type with this lower-case name, as [`Self::name`] gives it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|dtype| dtype.name() == name)
    }

    /// Whether values of this type are stored in blocks of more than one element.
    pub const fn is_block(self) -> bool {
        self.block_elements() > 1
    }

    /// Bytes of `elements` elements, or `None` if they do not fill whole blocks or the size overflows.
    pub fn bytes_for(self, elements: u64) -> Option<u64> {
        let block = self.block_elements() as u64;
        if !elements.is_multiple_of(block) {
            return None;
        }
        (elements / block).checked_mul(self.block_bytes() as u64)
    }

    /// Average storage bits per element.
    pub fn bits_per_element(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_elements() as f64
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::DType;

    #[test]
    fn names_and_ggml_numbers_are_unique() {
        for (i, a) in DType::ALL.iter().enumerate() {
            for b in &DType::ALL[i + 1..] {
                assert_ne!(a.name(), b.name());
                assert!(a.ggml_id().is_none() || a.ggml_id() != b.ggml_id(), "{a} and {b}");
            }
        }
    }

    #[test]
    fn sizes_refuse_partial_blocks_and_overflow() {
        assert_eq!(DType::Q4_0.bytes_for(64), Some(36));
        assert_eq!(DType::Q4_0.bytes_for(33), None);
        assert_eq!(DType::F64.bytes_for(u64::MAX), None);
    }
}
