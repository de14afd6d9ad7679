//! The contract of a number format: rows of floats to blocks of bytes and back.

use drophammer_formats::DType;
use thiserror::Error;

use crate::simd::{self, Kernel, Level};
use crate::weights::Weights;

/// Encodes and decodes one storage type.
///
/// `encode` is deterministic: its bytes depend on its arguments alone, not on the processor or on how rows are spread over
/// calls or threads.
pub trait Codec: Send + Sync {
    /// The storage type.
    fn dtype(&self) -> DType;

    /// Encodes whole rows.
    ///
    /// `rows` holds one or more rows end to end, each a multiple of the block. `importance`, if given, is one
    /// non-negative weight per column (such as the mean square of the activation that meets it) and is used for every
    /// row; its length divides that of `rows`. Values must be finite: see [`first_non_finite`]. `out` is exactly
    /// the size [`DType::bytes_for`] gives.
    ///
    /// # Panics
    /// If the lengths do not fit together. [`quantize`] checks them and the values first.
    fn encode(&self, rows: &[f32], importance: Option<&[f32]>, out: &mut [u8]);

    /// Decodes blocks into as many floats as they hold. Any bytes decode to something (perhaps NaN), as in the
    /// format owner's own decoder, bit for bit.
    ///
    /// # Panics
    /// If the lengths do not fit together. [`dequantize`] checks them first.
    fn decode(&self, blocks: &[u8], out: &mut [f32]);

    /// The largest code of a type whose weights are `low + step · code`, low and step being those of its block; 0 for other types.
    fn top_code(&self) -> u8 {
        0
    }

    /// Replaces the codes of encoded blocks (one per weight, at most [`Codec::top_code`]); scales and offsets stay. Types without
    /// such codes stay as they are.
    fn recode(&self, blocks: &mut [u8], codes: &[u8]) {
        let _ = (blocks, codes);
    }

    /// [`Codec::encode`] with the instructions of a given level; the bytes are the same at every level.
    fn encode_at(&self, level: Level, rows: &[f32], importance: Option<&[f32]>, out: &mut [u8]);

    /// [`Codec::decode`] with the instructions of a given level; the floats are the same at every level.
    fn decode_at(&self, level: Level, blocks: &[u8], out: &mut [f32]);
}

/// Why values cannot be encoded or decoded.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum CodecError {
    /// There is no codec for the type.
    #[error(
        "{0} is not a type that weights are quantized to; choose one of the schemes that `drophammer inspect` lists"
    )]
    Unsupported(DType),
    /// A value is NaN or infinite.
    #[error(
        "value {index} is {value}: only finite weights can be quantized; the source is damaged or overflowed in training"
    )]
    NonFinite {
        /// Position in the values given.
        index: usize,
        /// The value.
        value: f32,
    },
    /// An importance weight is negative, NaN or infinite.
    #[error(
        "importance of column {index} is {value}: it must be finite and not negative; collect the importance matrix again"
    )]
    BadImportance {
        /// The column.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The values do not fill whole blocks.
    #[error(
        "{elements} values do not fill whole blocks of {block} as {dtype} needs; choose a type with a smaller block"
    )]
    PartialBlock {
        /// The storage type.
        dtype: DType,
        /// How many values there are.
        elements: usize,
        /// The type's block.
        block: usize,
    },
    /// The importance belongs to rows of another width.
    #[error(
        "importance has {columns} columns but {elements} values are not rows of that width; it is of another model"
    )]
    ImportanceWidth {
        /// Columns of the importance.
        columns: usize,
        /// How many values there are.
        elements: usize,
    },
    /// The bytes do not hold the values.
    #[error("{bytes} bytes given where {elements} values of {dtype} take {expected}")]
    ByteCount {
        /// The storage type.
        dtype: DType,
        /// How many values there are.
        elements: usize,
        /// Bytes given.
        bytes: usize,
        /// Bytes needed.
        expected: usize,
    },
}

/// The index of the first value that is NaN or infinite.
pub fn first_non_finite(values: &[f32]) -> Option<usize> {
    // Whole chunks are tested without a branch; only a bad chunk is searched.
    const CHUNK: usize = 1024;
    const EXPONENT: u32 = 0x7f80_0000;
    for (i, chunk) in values.chunks(CHUNK).enumerate() {
        let bad = chunk.iter().fold(0, |bad, x| bad | u32::from(x.to_bits() & EXPONENT == EXPONENT));
        if bad != 0 {
            return chunk.iter().position(|x| !x.is_finite()).map(|j| i * CHUNK + j);
        }
    }
    None
}

/// Checks everything and encodes rows as `dtype`. See [`Codec::encode`].
///
/// # Errors
/// [`CodecError`], before a byte is written, if lengths do not fit together or a value is not finite.
pub fn quantize(
    dtype: DType,
    rows: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<(), CodecError> {
    let codec = crate::codec(dtype).ok_or(CodecError::Unsupported(dtype))?;
    check_bytes(dtype, rows.len(), out.len())?;
    if let Some(index) = first_non_finite(rows) {
        return Err(CodecError::NonFinite { index, value: rows[index] });
    }
    if let Some(importance) = importance {
        if importance.is_empty()
            || !rows.len().is_multiple_of(importance.len())
            || !importance.len().is_multiple_of(dtype.block_elements())
        {
            return Err(CodecError::ImportanceWidth { columns: importance.len(), elements: rows.len() });
        }
        if let Some(index) = importance.iter().position(|x| !x.is_finite() || *x < 0.0) {
            return Err(CodecError::BadImportance { index, value: importance[index] });
        }
    }
    codec.encode(rows, importance, out);
    Ok(())
}

/// Checks lengths and decodes `blocks` of `dtype`. See [`Codec::decode`].
///
/// # Errors
/// [`CodecError`] if the type has no codec or the lengths do not fit together.
pub fn dequantize(dtype: DType, blocks: &[u8], out: &mut [f32]) -> Result<(), CodecError> {
    let codec = crate::codec(dtype).ok_or(CodecError::Unsupported(dtype))?;
    check_bytes(dtype, out.len(), blocks.len())?;
    codec.decode(blocks, out);
    Ok(())
}

fn check_bytes(dtype: DType, elements: usize, bytes: usize) -> Result<(), CodecError> {
    let block = dtype.block_elements();
    let expected = dtype
        .bytes_for(elements as u64)
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or(CodecError::PartialBlock { dtype, elements, block })?;
    if bytes != expected {
        return Err(CodecError::ByteCount { dtype, elements, bytes, expected });
    }
    Ok(())
}

/// What a format's file implements; [`BlockCodec`] turns it into a [`Codec`].
pub(crate) trait BlockFormat: Send + Sync + 'static {
    /// The storage type.
    const DTYPE: DType;
    /// Its block: plain bytes of alignment 1.
    type Block: bytemuck::Pod;

    /// See [`Codec::top_code`].
    const TOP: u8 = 0;

    /// Replaces the codes of a block.
    fn recode(block: &mut Self::Block, codes: &[u8]) {
        let _ = (block, codes);
    }

    /// Encodes `rows`, as many blocks as `out` holds, with the instructions of `level`.
    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [Self::Block]);

    /// Decodes one block into as many floats as it holds.
    fn decode(block: &Self::Block, out: &mut [f32]);
}

/// The [`Codec`] of a [`BlockFormat`].
pub(crate) struct BlockCodec<F>(pub(crate) std::marker::PhantomData<F>);

struct Decode<'a, F: BlockFormat> {
    blocks: &'a [F::Block],
    out: &'a mut [f32],
}

impl<F: BlockFormat> Kernel for Decode<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: crate::lanes::Lanes>(self) {
        for (block, out) in self.blocks.iter().zip(self.out.chunks_exact_mut(F::DTYPE.block_elements())) {
            F::decode(block, out);
        }
    }
}

impl<F: BlockFormat> Codec for BlockCodec<F> {
    fn dtype(&self) -> DType {
        F::DTYPE
    }

    fn encode(&self, rows: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
        self.encode_at(simd::level(), rows, importance, out);
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        self.decode_at(simd::level(), blocks, out);
    }

    fn top_code(&self) -> u8 {
        F::TOP
    }

    fn recode(&self, blocks: &mut [u8], codes: &[u8]) {
        let blocks: &mut [F::Block] = bytemuck::cast_slice_mut(blocks);
        for (block, codes) in blocks.iter_mut().zip(codes.chunks_exact(F::DTYPE.block_elements())) {
            F::recode(block, codes);
        }
    }

    fn encode_at(&self, level: Level, rows: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
        assert_eq!(
            F::DTYPE.bytes_for(rows.len() as u64),
            Some(out.len() as u64),
            "{} rows and bytes",
            F::DTYPE
        );
        let weights = Weights::new(importance);
        assert!(weights.fit(rows.len()), "importance of {:?} columns", importance.map(<[f32]>::len));
        F::encode(level, rows, weights, bytemuck::cast_slice_mut(out));
    }

    fn decode_at(&self, level: Level, blocks: &[u8], out: &mut [f32]) {
        assert_eq!(
            F::DTYPE.bytes_for(out.len() as u64),
            Some(blocks.len() as u64),
            "{} rows and bytes",
            F::DTYPE
        );
        simd::run(level, Decode::<F> { blocks: bytemuck::cast_slice(blocks), out });
    }
}
