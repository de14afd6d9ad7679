//! Storage types of one to three bits as tiles: signs and trits, and those whose codes are points of a codebook.
//!
//! A point is a tuple of magnitudes. Looking one up for each eight columns of each row would be all that a product does, so a tile
//! has the numbers that points stand for: of three bits where the file has about two, of four where it has three. Products read more
//! so, and take a fraction of the time. Scales of scales are floats, so that an eighth of one is exact.

use drophammer_quant::gguf::even_signs;
use drophammer_quant::gguf::iq_grids::{IQ1, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS};
use half::f16;

use super::BLOCK;
use super::bits::{Four, One, Three, Two};
use super::formats::{Format, copy_half, mask_bytes, word, words};
use crate::kernels::LANES;
use crate::kernels::isa::Isa;

/// Columns of a block of all these types but one.
const COLUMNS: usize = 256;

/// Signs with one scale, which is also what is taken off: a code of 1 stands for two of them.
pub(crate) struct Q1_0;

impl Format for Q1_0 {
    const COLUMNS: usize = 128;
    const BYTES: usize = 18;
    const SCALE_BYTES: usize = 2 * LANES;
    const ZERO: i32 = 0;
    const MINIMUMS: bool = true;
    type Bits = One;

    #[inline(always)]
    fn codes(block: &[u8], part: usize) -> [u32; 8] {
        let mask = word(&block[2..], part);
        words(|c| mask_bytes(mask, c))
    }

    fn lay_scales(block: &[u8], row: usize, unit: &mut [u8]) {
        copy_half(block, 0, row, unit);
    }

    #[inline(always)]
    unsafe fn scale<I: Isa>(unit: *const u8, _part: usize, _group: usize) -> I::F {
        // SAFETY: the caller's promise.
        unsafe {
            let scale = I::load_half(unit.cast());
            I::add(scale, scale)
        }
    }

    #[inline(always)]
    unsafe fn minimum<I: Isa>(unit: *const u8, _part: usize, _group: usize) -> I::F {
        // SAFETY: the caller's promise.
        unsafe { I::load_half(unit.cast()) }
    }
}

/// Trits with one scale: their codes are one more than they.
macro_rules! trits {
    ($name:ident, $bytes:literal, |$block:ident, $part:ident| $codes:expr) => {
        pub(crate) struct $name;

        impl Format for $name {
            const COLUMNS: usize = COLUMNS;
            const BYTES: usize = $bytes;
            const SCALE_BYTES: usize = 2 * LANES;
            const ZERO: i32 = 1;
            type Bits = Two;

            #[inline(always)]
            fn codes($block: &[u8], $part: usize) -> [u32; 8] {
                $codes
            }

            fn lay_scales(block: &[u8], row: usize, unit: &mut [u8]) {
                copy_half(block, Self::BYTES - 2, row, unit);
            }

            #[inline(always)]
            unsafe fn scale<I: Isa>(unit: *const u8, _part: usize, _group: usize) -> I::F {
                // SAFETY: the caller's promise.
                unsafe { I::load_half(unit.cast()) }
            }
        }
    };
}

trits!(Tq1_0, 54, |block, part| {
    // A byte is a fraction whose digits multiplying by 3 brings out; 52 of them hold the columns in three runs.
    let trit = |column: usize| {
        let (byte, digit) = match column {
            0..160 => (column % 32, column / 32),
            160..240 => (32 + column % 16, (column - 160) / 16),
            _ => (48 + column % 4, (column - 240) / 4),
        };
        let fraction = block[byte].wrapping_mul([1, 3, 9, 27, 81][digit]);
        (u32::from(fraction) * 3) >> 8
    };
    words(|c| (0..4).map(|k| trit(32 * part + 4 * c + k) << (8 * k)).sum())
});
trits!(Tq2_0, 66, |block, part| {
    let codes = &block[part / 4 * 32..];
    words(|c| word(codes, c) >> (part % 4 * 2) & 0x0303_0303)
});

/// Blocks of 256 columns: a float, `$unit`, that `$scale`, a byte for each group, is to be multiplied with.
macro_rules! points {
    ($name:ident, $bytes:literal, $bits:ty, groups $groups:literal, zero $zero:literal, table $table:expr,
     |$block:ident, $part:ident| $codes:expr, scale |$sblock:ident, $group:ident| ($unit:expr, $scale:expr)) => {
        pub(crate) struct $name;

        impl Format for $name {
            const COLUMNS: usize = COLUMNS;
            const BYTES: usize = $bytes;
            const SCALE_BYTES: usize = 4 * LANES + 8 * $groups * LANES;
            const GROUPS: usize = $groups;
            const ZERO: i32 = $zero;
            const TABLE: Option<[u8; 16]> = Some($table);
            const WHOLE: bool = true;
            type Bits = $bits;

            #[inline(always)]
            fn codes($block: &[u8], $part: usize) -> [u32; 8] {
                $codes
            }

            fn lay_scales($sblock: &[u8], row: usize, unit: &mut [u8]) {
                let all: f32 = $unit;
                unit[4 * row..][..4].copy_from_slice(&all.to_le_bytes());
                for $group in 0..8 * $groups {
                    unit[(4 + $group) * LANES + row] = $scale;
                }
            }

            #[inline(always)]
            fn whole(part: usize, group: usize) -> usize {
                (4 + part * $groups + group) * LANES
            }

            #[inline(always)]
            unsafe fn common<I: Isa>(unit: *const u8) -> I::F {
                // SAFETY: the caller's promise.
                unsafe { I::load(unit.cast()) }
            }
        }
    };
}

/// The binary16 number at the begin of a block.
fn half(block: &[u8]) -> f32 {
    f16::from_le_bytes([block[0], block[1]]).to_f32()
}

/// A magnitude's number in two or three bits, its sign above.
const fn signed<const N: usize>(zero: u8, magnitudes: [u8; N], signs_at: usize) -> [u8; 16] {
    let (mut table, mut i) = ([zero; 16], 0);
    while i < N {
        table[i] = zero + magnitudes[i];
        table[i + signs_at] = zero - magnitudes[i];
        i += 1;
    }
    table
}

/// Digits of a point, `BITS` wide, from the `first` on, as the low bits of four bytes; the sign of each above.
#[inline(always)]
fn digits<const BITS: u32>(point: u16, first: u32, signs: u8) -> u32 {
    (0..4)
        .map(|k| {
            let digit = u32::from(point) >> (BITS * (first + k)) & ((1 << BITS) - 1);
            (digit | (u32::from(signs) >> (first + k) & 1) << BITS) << (8 * k)
        })
        .sum()
}

/// Eight magnitudes to a point, four points to 32 columns.
#[inline(always)]
fn of_eight(point: impl Fn(usize) -> (u16, u8)) -> [u32; 8] {
    words(|c| {
        let (point, signs) = point(c / 2);
        digits::<2>(point, c as u32 % 2 * 4, signs)
    })
}

/// Four magnitudes to a point, eight points to 32 columns.
#[inline(always)]
fn of_four(point: impl Fn(usize) -> (u16, u8)) -> [u32; 8] {
    words(|c| {
        let (point, signs) = point(c);
        digits::<3>(point, 0, signs)
    })
}

/// A scale's nibble `s` stands for `1 + 2 · s`.
#[inline(always)]
fn odd(bytes: &[u8], nibble: usize) -> u8 {
    1 + 2 * (bytes[nibble / 2] >> (nibble % 2 * 4) & 15)
}

const IQ2: [u8; 16] = signed(43, [8, 25, 43], 4);

points!(Iq2Xxs, 66, Three, groups 1, zero 43, table IQ2, |block, part| {
    let points = &block[2 + 8 * part..];
    let signs = word(points, 1);
    of_eight(|p| (IQ2_XXS[usize::from(points[p])], even_signs((signs >> (7 * p)) as u8)))
}, scale |block, group| (half(block) / 8.0, 1 + 2 * (block[2 + 8 * group + 7] >> 4)));

points!(Iq2Xs, 74, Three, groups 2, zero 43, table IQ2, |block, part| {
    of_eight(|p| {
        let at = 2 + 2 * (4 * part + p);
        let point = u16::from_le_bytes([block[at], block[at + 1]]);
        (IQ2_XS[usize::from(point & 511)], even_signs((point >> 9) as u8))
    })
}, scale |block, group| (half(block) / 8.0, odd(&block[66..], group)));

points!(Iq2S, 82, Three, groups 2, zero 43, table IQ2, |block, part| {
    of_eight(|p| {
        let at = 4 * part + p;
        let top = u16::from(block[66 + part] >> (2 * p) & 3);
        (IQ2_S[usize::from(u16::from(block[2 + at]) | top << 8)], block[34 + at])
    })
}, scale |block, group| (half(block) / 8.0, odd(&block[74..], group)));

points!(Iq3Xxs, 98, Four, groups 1, zero 62, table signed(62, [4, 12, 20, 28, 36, 44, 52, 62], 8), |block, part| {
    let (points, signs) = (&block[2 + 8 * part..], word(&block[66..], part));
    of_four(|p| {
        let signs = even_signs((signs >> (7 * (p / 2))) as u8) >> (4 * (p % 2));
        (IQ3_XXS[usize::from(points[p])], signs)
    })
}, scale |block, group| (half(block) / 4.0, 1 + 2 * (block[66 + 4 * group + 3] >> 4)));

points!(Iq3S, 110, Four, groups 1, zero 15, table signed(15, [1, 3, 5, 7, 9, 11, 13, 15], 8), |block, part| {
    of_four(|p| {
        let ninth = u16::from(block[66 + part] >> p & 1);
        let point = u16::from(block[2 + 8 * part + p]) | ninth << 8;
        (IQ3_S[usize::from(point)], block[74 + 4 * part + p / 2] >> (4 * (p % 2)))
    })
}, scale |block, group| (half(block), odd(&block[106..], group)));

/// Eighths of trits that are shifted up by one, or down, which the bit above them says.
const SHIFTED: [u8; 16] = [2, 10, 18, 0, 0, 8, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0];

points!(Iq1M, 56, Three, groups 2, zero 9, table SHIFTED, |block, part| {
    of_eight(|p| {
        let high = block[32 + 2 * part + p / 2] >> (4 * (p % 2));
        let point = u16::from(block[4 * part + p]) | u16::from(high & 7) << 8;
        (IQ1[usize::from(point)], if high & 8 != 0 { u8::MAX } else { 0 })
    })
}, scale |block, group| (
    {
        // Each word of scales has four bits of the scale of scales, lowest first.
        let bits = (0..4).map(|i| u16::from(block[49 + 2 * i] >> 4) << (4 * i)).sum();
        f16::from_bits(bits).to_f32() / 8.0
    },
    {
        let at = 48 + group / 4 * 2;
        let scales = u16::from_le_bytes([block[at], block[at + 1]]);
        1 + 2 * (scales >> (3 * (group % 4)) & 7) as u8
    }
));

/// Trits of one shift for each scale: what is taken off tells it, so that their codes need two bits alone.
pub(crate) struct Iq1S;

impl Format for Iq1S {
    const COLUMNS: usize = COLUMNS;
    const BYTES: usize = 50;
    const SCALE_BYTES: usize = 4 * LANES + 8 * 2 * LANES;
    const ZERO: i32 = 0;
    const MINIMUMS: bool = true;
    const WHOLE: bool = true;
    type Bits = Two;

    #[inline(always)]
    fn codes(block: &[u8], part: usize) -> [u32; 8] {
        let high = u16::from_le_bytes([block[34 + 2 * part], block[35 + 2 * part]]);
        of_eight(|p| {
            let point = u16::from(block[2 + 4 * part + p]) | (high >> (3 * p) & 7) << 8;
            (IQ1[usize::from(point)], 0)
        })
    }

    fn lay_scales(block: &[u8], row: usize, unit: &mut [u8]) {
        unit[4 * row..][..4].copy_from_slice(&(half(block) / 8.0).to_le_bytes());
        for part in 0..COLUMNS / BLOCK {
            let high = block[35 + 2 * part];
            let scale = 1 + 2 * (high >> 4 & 7);
            // In eighths; a trit's code is one more than it.
            unit[(4 + 2 * part) * LANES + row] = 8 * scale;
            unit[(5 + 2 * part) * LANES + row] = scale * if high >> 7 == 1 { 9 } else { 7 };
        }
    }

    #[inline(always)]
    fn whole(part: usize, _group: usize) -> usize {
        (4 + 2 * part) * LANES
    }

    #[inline(always)]
    unsafe fn common<I: Isa>(unit: *const u8) -> I::F {
        // SAFETY: the caller's promise.
        unsafe { I::load(unit.cast()) }
    }

    #[inline(always)]
    unsafe fn minimum<I: Isa>(unit: *const u8, part: usize, _group: usize) -> I::F {
        // SAFETY: the caller's promise.
        unsafe { I::mul(I::load(unit.cast()), I::load_bytes(unit.add((5 + 2 * part) * LANES))) }
    }
}
