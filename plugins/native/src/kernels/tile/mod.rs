//! Quantized weights laid out for fast products: *tiles* of sixteen rows.
//!
//! A *strip* is sixteen rows. Its codes come in blocks of 32 columns: four neighbouring columns of one row share a
//! 32-bit lane, sixteen rows a vector, and eight such vectors ([`bits`] packs them tighter) hold a block:
//!
//! ```text
//! vector c:  row 0: k=4c 4c+1 4c+2 4c+3 | row 1: 4c .. 4c+3 | … | row 15
//! ```
//!
//! So one instruction multiplies four columns of sixteen rows by four activations that every lane shares, and a product
//! needs no horizontal sum. Scales of the sixteen rows lie side by side too, before the codes that they are for, so that a
//! strip, and a matrix, is read from its begin to its end: processors fetch ahead what is read so, and from memory one stream
//! comes in two to three times as fast as codes and scales apart. Codes and scales keep their width: a tile takes as many bytes
//! as the file, give or take a few percent; but for those of codebooks, which take 1.3 to 2 times as many.
//!
//! [`formats`], [`lattices`] and [`e2m1`] say how each quantized type becomes tiles, [`multiply`] multiplies activations of many tokens by
//! them, [`one`] those of one token and [`outliers`] those that are set apart; scales that are integers have [`whole`]. [`fixed`] does
//! both for halves, and [`plain`] for plain floats, whose strips have numbers where quantized ones have codes. Where that is faster,
//! many tokens are multiplied by weights that have their scales ([`scaled`]): with AMX by [`tiled`], without VNNI by [`floats`].

pub(crate) mod bits;
mod e2m1;
pub(crate) mod fixed;
pub(crate) mod floats;
pub(crate) mod formats;
mod lattices;
pub(crate) mod multiply;
mod one;
mod outliers;
pub(crate) mod plain;
pub(crate) mod scaled;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tiled;
mod whole;

#[cfg(test)]
use std::sync::Arc;

use drophammer_formats::DType;

#[cfg(test)]
use super::activation::{Panels, Quantized};
#[cfg(test)]
use super::float::Output;
use super::{LANES, LINE, Path};
use crate::memory::Bytes;
#[cfg(test)]
use crate::memory::Memory;
use formats::{Format, with_format};

/// Columns of a block.
pub(crate) const BLOCK: usize = 32;

/// How a matrix of some type and shape is cut into strips.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    dtype: DType,
    rows: usize,
    columns: usize,
    strip_bytes: usize,
}

impl Cut {
    /// `None` if the type has no tiles.
    pub(crate) fn of(dtype: DType, rows: usize, columns: usize) -> Option<Self> {
        if let Some(strip_bytes) = fixed::strip_bytes(dtype, columns) {
            return Some(Self { dtype, rows, columns, strip_bytes });
        }
        if let Some(width) = plain::width(dtype) {
            let strip_bytes = (columns * LANES * width).next_multiple_of(64);
            return Some(Self { dtype, rows, columns, strip_bytes });
        }
        let strip_bytes = with_format!(dtype, F => {
            if !columns.is_multiple_of(F::COLUMNS) {
                return None;
            }
            Place::of::<F>((columns / F::COLUMNS).next_multiple_of(F::TOGETHER)).scales
        }, else return None);
        Some(Self { dtype, rows, columns, strip_bytes })
    }

    /// Bytes of one strip.
    pub(crate) fn strip_bytes(&self) -> usize {
        self.strip_bytes
    }

    /// Bytes of all strips.
    pub(crate) fn bytes(&self) -> usize {
        self.strip_bytes * self.rows.div_ceil(LANES)
    }

    /// What tiles are multiplied by.
    pub(crate) fn takes(&self) -> Takes {
        if fixed::strip_bytes(self.dtype, self.columns).is_some() {
            Takes::Words
        } else if plain::width(self.dtype).is_some() {
            Takes::Floats
        } else {
            Takes::Codes
        }
    }
}

/// The form of activations that products take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    /// As they are.
    Floats,
    /// Integers of the width that the path multiplies codes of quantized weights by.
    Codes,
    /// Integers of thirteen bits in words of sixteen.
    Words,
    /// Numbers without scales, by which weights are multiplied that have theirs: see [`scaled`].
    Scaled,
}

/// A matrix as strips of tiles.
pub(crate) struct Tiles {
    cut: Cut,
    bytes: Bytes,
}

impl Tiles {
    /// Tiles that were laid, now or by an earlier process. Whatever the bytes are, products read nothing else; `None` if they are
    /// not as many as they should be, or do not begin at a cache line.
    pub(crate) fn new(cut: Cut, bytes: Bytes) -> Option<Self> {
        (bytes.len() == cut.bytes() && bytes.as_ptr().addr().is_multiple_of(LINE))
            .then_some(Self { cut, bytes })
    }

    /// Bytes of all strips.
    pub(crate) fn bytes(&self) -> usize {
        self.cut.bytes()
    }

    /// A strip's bytes.
    pub(crate) fn strip(&self, strip: usize) -> &[u8] {
        &self.bytes[strip * self.cut.strip_bytes..][..self.cut.strip_bytes]
    }

    /// How it was stored.
    pub(crate) fn dtype(&self) -> DType {
        self.cut.dtype
    }

    /// What they are multiplied by on a path: by `many` tokens, or by few.
    pub(crate) fn takes(&self, path: Path, many: bool) -> Takes {
        match self.cut.takes() {
            Takes::Codes | Takes::Words if many && self.are_scaled(path) => Takes::Scaled,
            takes => takes,
        }
    }

    /// Whether scales go into weights for many tokens.
    fn are_scaled(&self, path: Path) -> bool {
        path.has_tiles() || path.prefers_floats() && with_format!(self.dtype(), F => F::RUN == 1, else false)
    }

    /// Rows, those that fill the last strip up not counted.
    pub(crate) fn rows(&self) -> usize {
        self.cut.rows
    }

    /// Columns.
    pub(crate) fn columns(&self) -> usize {
        self.cut.columns
    }
}

/// Fills a strip from up to sixteen rows of stored blocks.
///
/// # Panics
/// If the lengths do not fit.
pub(crate) fn lay_strip<'a>(
    dtype: DType,
    columns: usize,
    rows: impl Iterator<Item = &'a [u8]>,
    strip: &mut [u8],
) {
    if fixed::strip_bytes(dtype, columns).is_some() {
        return fixed::lay_strip(dtype, columns, rows, strip);
    }
    if let Some(width) = plain::width(dtype) {
        return plain::lay_strip(width, rows, strip);
    }
    with_format!(dtype, F => lay_strip_as::<F>(columns, rows, strip), else ());
}

/// Where the scales and the codes of a stored block of sixteen rows begin in a strip.
pub(crate) struct Place {
    pub(crate) scales: usize,
    pub(crate) codes: usize,
}

impl Place {
    /// Of the `block`th of a row. Scales that do not fill a cache line lie beside those of the next block, before both's codes.
    #[inline(always)]
    pub(crate) fn of<F: Format>(block: usize) -> Self {
        let codes = F::COLUMNS / BLOCK * F::code_bytes();
        let (group, own) = (block / F::TOGETHER, block % F::TOGETHER);
        let begin = group * F::TOGETHER * (F::SCALE_BYTES + codes);
        Self {
            scales: begin + own * F::SCALE_BYTES,
            codes: begin + F::TOGETHER * F::SCALE_BYTES + own * codes,
        }
    }
}

/// Reads a line of every scale of a unit (and of those beside it) before its codes are read. Scales are used a few at a time:
/// fetched so, they would interrupt the stream of codes, which comes in half as fast then.
///
/// # Safety
/// `scales` are those of the `unit`th unit.
#[inline(always)]
pub(crate) unsafe fn fetch_scales<F: Format>(unit: usize, scales: *const u8) {
    if F::SCALE_BYTES > LINE && unit.is_multiple_of(F::TOGETHER) {
        for at in (0..F::SCALE_BYTES * F::TOGETHER).step_by(LINE) {
            // SAFETY: the caller's promise.
            unsafe { scales.add(at).read_volatile() };
        }
    }
}

fn lay_strip_as<'a, F: Format>(columns: usize, rows: impl Iterator<Item = &'a [u8]>, strip: &mut [u8]) {
    let parts = F::COLUMNS / BLOCK;
    for (r, row) in rows.enumerate() {
        assert_eq!(row.len(), columns / F::COLUMNS * F::BYTES);
        for (number, block) in row.chunks_exact(F::BYTES).enumerate() {
            let place = Place::of::<F>(number);
            F::lay_scales(block, r, &mut strip[place.scales..][..F::SCALE_BYTES]);
            let codes = &mut strip[place.codes..][..parts * F::code_bytes()];
            for (part, out) in codes.chunks_exact_mut(F::code_bytes()).enumerate() {
                F::pack(&F::codes(block, part), |vector, lane| {
                    out[(vector * LANES + r) * 4..][..4].copy_from_slice(&lane.to_le_bytes());
                });
            }
        }
    }
}

/// Tiles of rows as a file stores them.
#[cfg(test)]
pub(crate) fn tiles_of(dtype: DType, columns: usize, rows: &[Vec<u8>]) -> Tiles {
    let cut = Cut::of(dtype, rows.len(), columns).unwrap();
    let mut memory = Memory::zeroed(cut.bytes()).unwrap();
    for (strip, rows) in memory.bytes_mut().chunks_exact_mut(cut.strip_bytes()).zip(rows.chunks(LANES)) {
        lay_strip(dtype, columns, rows.iter().map(Vec::as_slice), strip);
    }
    Tiles::new(cut, Bytes::of(&Arc::new(memory), Memory::bytes)).unwrap()
}

/// All rows of tiles times the rows of `x`, `[tokens][columns]`: panels that `quantize` makes of them in a room for so many, as
/// `multiply` takes them.
#[cfg(test)]
pub(crate) fn product(
    mut quantized: Quantized,
    panel: usize,
    tiles: &Tiles,
    x: &[f32],
    quantize: impl Fn(Panels, usize, Option<&[f32]>),
    multiply: impl FnOnce(Panels, std::ops::Range<usize>, Output),
) -> Vec<f32> {
    let (rows, columns) = (tiles.rows(), tiles.columns());
    let tokens = x.len() / columns;
    let panels = quantized.room().panels(0, panel, tokens, columns);
    for row in 0..panels.rows() {
        quantize(panels, row, x.get(row * columns..(row + 1) * columns));
    }
    let mut out = vec![f32::NAN; tokens * rows];
    let to = Output { begin: out.as_mut_ptr(), stride: rows, accumulate: false };
    multiply(panels, 0..rows.div_ceil(LANES), to);
    out
}

/// Rows of plain numbers as a file stores them.
#[cfg(test)]
pub(crate) fn stored_plainly(dtype: DType, columns: usize, numbers: &[f32]) -> Vec<Vec<u8>> {
    let bytes = |x: &f32| match dtype {
        DType::F16 => half::f16::from_f32(*x).to_le_bytes().to_vec(),
        DType::BF16 => half::bf16::from_f32(*x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    };
    numbers.chunks(columns).map(|row| row.iter().flat_map(bytes).collect()).collect()
}

/// Quantized types that have tiles.
#[cfg(test)]
pub(crate) const TYPES: &[DType] = &[
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::Q2K,
    DType::Q3K,
    DType::Q4K,
    DType::Q5K,
    DType::Q6K,
    DType::Iq4Nl,
    DType::Iq4Xs,
    DType::Mxfp4,
    DType::Nvfp4,
    DType::Q1_0,
    DType::Tq1_0,
    DType::Tq2_0,
    DType::Iq1S,
    DType::Iq1M,
    DType::Iq2Xxs,
    DType::Iq2Xs,
    DType::Iq2S,
    DType::Iq3Xxs,
    DType::Iq3S,
];

/// Random blocks with sane scales: any bytes but exponents that overflow. Some have nothing but the largest codes.
#[cfg(test)]
pub(crate) fn blocks(dtype: DType, count: usize, state: &mut u32) -> Vec<u8> {
    let mut next = || {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*state >> 16) as u8
    };
    let (bytes, size) = (dtype.block_bytes(), dtype.block_elements());
    let halves: &[usize] = match dtype {
        DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
        DType::Q2K => &[80, 82],
        DType::Q3K => &[108],
        DType::Q6K => &[208],
        DType::Tq1_0 => &[52],
        DType::Tq2_0 => &[64],
        DType::Mxfp4 | DType::Nvfp4 | DType::Iq1M => &[],
        _ => &[0],
    };
    let mut all = Vec::new();
    for _ in 0..count / size {
        let same = [0xff, 0x80, 0x7f].get(usize::from(next() % 8));
        let mut block: Vec<u8> = (0..bytes).map(|_| same.copied().unwrap_or_else(&mut next)).collect();
        for &at in halves {
            let half = half::f16::from_f32((f32::from(next()) - 128.0) / 4096.0);
            block[at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
        match dtype {
            DType::Mxfp4 => block[0] = 118 + block[0] % 8,
            // The exponent's upper bits.
            DType::Iq1M => block[55] = block[55] & 0x0f | 0x10,
            _ => {}
        }
        all.extend(block);
    }
    all
}

/// A random number up to a limit, most far below it.
#[cfg(test)]
pub(crate) fn random(state: &mut u32, limit: f32) -> f32 {
    *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    ((*state >> 8) as f32 / 8_388_608.0 - 1.0).powi(3) * limit
}

/// Tiles of random weights, and these row by row.
#[cfg(test)]
pub(crate) fn random_tiles(
    dtype: DType,
    rows: usize,
    columns: usize,
    state: &mut u32,
) -> (Tiles, Vec<Vec<f32>>) {
    let (stored, weights): (Vec<_>, Vec<_>) = if TYPES.contains(&dtype) {
        let codec = drophammer_quant::codec(dtype).unwrap();
        let row = |state: &mut u32| {
            let (row, mut floats) = (blocks(dtype, columns, state), vec![0.0; columns]);
            codec.decode(&row, &mut floats);
            (row, floats)
        };
        (0..rows).map(|_| row(state)).unzip()
    } else {
        let numbers = rows * columns;
        let floats: Vec<f32> =
            (0..numbers).map(|_| half::bf16::from_f32(random(state, 1.0)).to_f32()).collect();
        (stored_plainly(dtype, columns, &floats), floats.chunks(columns).map(<[f32]>::to_vec).collect())
    };
    (tiles_of(dtype, columns, &stored), weights)
}
