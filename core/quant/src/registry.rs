//! Which type has which codec.

use std::marker::PhantomData;

use drophammer_formats::DType;

use crate::codec::{BlockCodec, Codec};
use crate::{gguf, plain};

macro_rules! block_codecs {
    ($dtype:expr; $($format:path),* $(,)?) => {
        $(
            if $dtype == <$format as crate::codec::BlockFormat>::DTYPE {
                return Some(&BlockCodec::<$format>(PhantomData));
            }
        )*
    };
}

/// The codec of a storage type, or `None` for types that weights are not quantized to (integers and truth values).
pub fn codec(dtype: DType) -> Option<&'static dyn Codec> {
    match dtype {
        DType::F64 => return Some(&plain::F64),
        DType::F32 => return Some(&plain::F32),
        DType::F16 => return Some(&plain::F16),
        DType::BF16 => return Some(&plain::BF16),
        DType::F8E4M3 => return Some(&plain::F8E4M3),
        DType::F8E5M2 => return Some(&plain::F8E5M2),
        _ => {}
    }
    block_codecs!(dtype; gguf::Q8_0, gguf::Q4_0, gguf::Q4_1, gguf::Q5_0, gguf::Q5_1, gguf::Q6K, gguf::Q4K, gguf::Q5K, gguf::Q2K, gguf::Q3K, gguf::Iq4Nl, gguf::Iq4Xs, gguf::Mxfp4, gguf::Nvfp4, gguf::Q1_0, gguf::Tq1_0, gguf::Tq2_0, gguf::Iq1M, gguf::Iq1S, gguf::Iq2S, gguf::Iq2Xs, gguf::Iq2Xxs, gguf::Iq3S, gguf::Iq3Xxs);
    None
}
