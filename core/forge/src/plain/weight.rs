//! Weights of a plain graph as they are written: floats as they are or scaled, halves, or codes with a scale per channel.

use std::ops::Range;

use drophammer_formats::onnx::ElementType;
use drophammer_quant::pass::{BoxError, ByteSource, Encoder, RowSource};
use half::f16;

/// The largest code: as long below zero as above it.
const TOP: f32 = 127.0;

pub(super) const UINT8: ElementType = ElementType(2);
pub(super) const INT8: ElementType = ElementType(3);

/// The type of eight-bit codes that ONNX Runtime's kernels multiply exactly, on `every` processor or fastest on this one, and the code
/// that stands for zero.
///
/// On x86 processors without an instruction that sums products of bytes in 32 bits they sum two of unsigned and signed bytes in
/// sixteen, which is too narrow for large ones; those of unsigned bytes alone they widen first.
pub(super) fn exact(every: bool) -> (ElementType, u8) {
    #[cfg(target_arch = "x86_64")]
    if !std::is_x86_feature_detected!("avx512vnni") && !std::is_x86_feature_detected!("avxvnni") {
        return (UINT8, 128);
    }
    if every { (UINT8, 128) } else { (INT8, 0) }
}

/// What is made of a weight's floats.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Form {
    /// Single precision.
    Floats,
    /// Half precision.
    Halves,
    /// Eight bits around a code that stands for zero: 0 for signed codes, 128 for unsigned ones. A scale per channel.
    Codes { scales: Vec<f32>, zero: u8 },
}

/// Which channel a number belongs to, by its place: a weight is so many numbers of each channel in turn, over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Channels {
    pub(super) count: usize,
    pub(super) inner: usize,
}

impl Channels {
    /// Along one axis of a shape.
    pub(super) fn along(axis: usize, shape: &[u64]) -> Self {
        let inner = shape.iter().skip(axis + 1).product::<u64>().max(1) as usize;
        Self { count: shape.get(axis).copied().unwrap_or(1).max(1) as usize, inner }
    }

    pub(super) fn of(self, place: usize) -> usize {
        place / self.inner % self.count
    }
}

/// A weight: an initializer of the graph, what its channels are multiplied with, and what becomes of it.
#[derive(Debug, Clone)]
pub(super) struct Weight {
    /// The initializer, by its index among the original graph's.
    pub(super) of: usize,
    pub(super) channels: Channels,
    /// A factor per channel; none at all where they are kept.
    pub(super) factors: Vec<f32>,
    pub(super) form: Form,
}

impl Weight {
    /// The floats from one on, of the initializer's bytes.
    ///
    /// # Errors
    /// When the bytes end before.
    pub(super) fn read(&self, bytes: &[u8], first: usize, out: &mut [f32]) -> Result<(), BoxError> {
        let range = first * 4..(first + out.len()) * 4;
        let bytes = bytes.get(range).ok_or("numbers outside the weight")?;
        for ((place, out), bytes) in (first..).zip(out.iter_mut()).zip(bytes.as_chunks::<4>().0) {
            *out = f32::from_le_bytes(*bytes);
            if let Some(factor) = self.factors.get(self.channels.of(place)) {
                *out *= factor;
            }
        }
        Ok(())
    }

    /// Writes what becomes of the floats from one on.
    fn write(&self, first: usize, floats: &[f32], out: &mut [u8]) {
        match &self.form {
            Form::Floats => {
                let out = out.as_chunks_mut::<4>().0;
                floats.iter().zip(out).for_each(|(x, out)| *out = x.to_le_bytes());
            }
            Form::Halves => {
                let out = out.as_chunks_mut::<2>().0;
                floats.iter().zip(out).for_each(|(x, out)| *out = f16::from_f32(*x).to_le_bytes());
            }
            Form::Codes { scales, zero } => {
                for ((place, x), out) in (first..).zip(floats).zip(out) {
                    let scale = scales[self.channels.of(place)];
                    let code = (x / scale).round_ties_even().clamp(-TOP, TOP) as i8;
                    *out = (code as u8).wrapping_add(*zero);
                }
            }
        }
    }

    /// Bytes of one number.
    pub(super) fn width(&self) -> u64 {
        match self.form {
            Form::Floats => 4,
            Form::Halves => 2,
            Form::Codes { .. } => 1,
        }
    }

    /// All of it.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub(super) fn made(&self, bytes: &[u8]) -> Result<Vec<u8>, BoxError> {
        let mut floats = vec![0.0; bytes.len() / 4];
        self.read(bytes, 0, &mut floats)?;
        let mut out = vec![0; floats.len() * self.width() as usize];
        self.write(0, &floats, &mut out);
        Ok(out)
    }
}

/// The scale per channel at which no number is cut off, or `None` where there are numbers without one: none, infinite, or not a number.
pub(super) fn scales(floats: &[f32], channels: Channels) -> Option<Vec<f32>> {
    let mut largest = vec![0.0f32; channels.count];
    for (place, x) in floats.iter().enumerate() {
        let largest = &mut largest[channels.of(place)];
        *largest = if x.is_finite() { largest.max(x.abs()) } else { return None };
    }
    Some(largest.into_iter().map(|largest| (largest / TOP).max(1e-12)).collect())
}

/// Rows of a weight, for a pass.
pub(super) struct Rows<'a> {
    pub(super) weight: &'a Weight,
    pub(super) bytes: &'a [u8],
    pub(super) columns: usize,
}

impl RowSource for Rows<'_> {
    fn read(&self, rows: Range<u64>, out: &mut [f32]) -> Result<(), BoxError> {
        self.weight.read(self.bytes, rows.start as usize * self.columns, out)
    }
}

/// The same rows' encoder.
pub(super) struct Made<'a> {
    pub(super) weight: &'a Weight,
    pub(super) columns: usize,
}

impl Encoder for Made<'_> {
    fn encode(&self, first_row: u64, rows: &[f32], outputs: &mut [&mut [u8]]) -> Result<(), BoxError> {
        let [out] = outputs else { return Err("a weight fills one output".into()) };
        self.weight.write(first_row as usize * self.columns, rows, out);
        Ok(())
    }
}

/// Bytes that are kept as they are.
pub(super) struct Kept<'a>(pub(super) &'a [u8]);

impl ByteSource for Kept<'_> {
    fn read(&self, bytes: Range<u64>, out: &mut [u8]) -> Result<(), BoxError> {
        let part = self.0.get(bytes.start as usize..bytes.end as usize);
        out.copy_from_slice(part.ok_or("bytes outside the weight")?);
        Ok(())
    }
}
