//! The safetensors format: eight bytes of header length, a JSON header, tensor data.
//!
//! Specification: <https://github.com/huggingface/safetensors#format>. Reading is strict, as the format's owner is:
//! tensors must claim every byte of the data exactly once.

mod index;
mod reader;
mod writer;

pub use index::{INDEX_NAME, ShardIndex, check_file_name, parse_index};
pub use reader::{Header, MAX_HEADER, header_len, parse, parse_header};
pub use writer::{plan, write};

use crate::DType;

/// The names the format gives to storage types.
const DTYPES: &[(&str, DType)] = &[
    ("BOOL", DType::Bool),
    ("U8", DType::U8),
    ("I8", DType::I8),
    ("F8_E5M2", DType::F8E5M2),
    ("F8_E4M3", DType::F8E4M3),
    ("F8_E8M0", DType::F8E8M0),
    ("I16", DType::I16),
    ("U16", DType::U16),
    ("F16", DType::F16),
    ("BF16", DType::BF16),
    ("I32", DType::I32),
    ("U32", DType::U32),
    ("F32", DType::F32),
    ("F64", DType::F64),
    ("I64", DType::I64),
    ("U64", DType::U64),
];

/// The storage type of this safetensors name.
pub fn dtype_from_name(name: &str) -> Option<DType> {
    DTYPES.iter().find(|(candidate, _)| *candidate == name).map(|&(_, dtype)| dtype)
}

/// The safetensors name of a storage type; `None` for block types, which the format does not have.
pub fn dtype_name(dtype: DType) -> Option<&'static str> {
    DTYPES.iter().find(|(_, candidate)| *candidate == dtype).map(|&(name, _)| name)
}
