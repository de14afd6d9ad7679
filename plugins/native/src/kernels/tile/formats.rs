//! How each storage type becomes tiles: its codes, their zero, and where scales and minimums of sixteen rows lie.
//!
//! Bytes of blocks are those of the GGUF specification (see `drophammer-quant`, whose decoders the tests compare with). Types whose
//! codes are points of a codebook are in [`lattices`](super::lattices), those of floats of four bits in [`e2m1`](super::e2m1).

use half::f16;

use super::BLOCK;
use super::bits::{Bits, Eight, Five, Four, Six, Three, Two};
pub(crate) use super::e2m1::{Mxfp4, Nvfp4};
pub(crate) use super::lattices::{Iq1M, Iq1S, Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs, Q1_0, Tq1_0, Tq2_0};
use crate::kernels::LANES;
use crate::kernels::isa::{Isa, Path};

/// A storage type as tiles. A weight is `scale · (code − zero) − minimum`.
pub(crate) trait Format {
    /// Columns of a stored block; scales of sixteen rows' such blocks make a *unit*.
    const COLUMNS: usize;
    /// Bytes of a stored block.
    const BYTES: usize;
    /// Bytes of a unit of scales.
    const SCALE_BYTES: usize;
    /// Units that fill cache lines together.
    const TOGETHER: usize = if Self::SCALE_BYTES.is_multiple_of(64) { 1 } else { 2 };
    /// Scales per 32 columns: 1 or 2.
    const GROUPS: usize = 1;
    /// The code that means nothing. 128 if codes reach 128.
    const ZERO: i32;
    /// Whether there are minimums.
    const MINIMUMS: bool = false;
    /// What codes of up to four bits stand for, plus [`Format::ZERO`].
    const TABLE: Option<[u8; 16]> = None;
    /// How codes are packed.
    type Bits: Bits;
    /// Of how many steps sixteen bits hold the sum of two columns' products with activations of eight bits. A power of two, so
    /// that it divides a scale's steps; 1 if codes reach 128: products that take them as signed have room for that.
    const RUN: usize = if Self::ZERO == 128 {
        1
    } else {
        let steps = i16::MAX as usize / (2 * 127 * Self::LARGEST);
        let all = 8 / Self::GROUPS;
        if steps >= all { all } else { 1 << steps.ilog2() }
    };
    /// The largest code.
    const LARGEST: usize = match &Self::TABLE {
        Some(table) => largest(table),
        None => (1 << Self::Bits::VECTORS) - 1,
    };
    /// Whether scales are integers of seven bits and a sign, times what a unit's have in common.
    const WHOLE: bool = false;

    /// Bytes of a block of packed codes.
    fn code_bytes() -> usize {
        Self::Bits::VECTORS * 64
    }

    /// Codes of 32 columns of a stored block, four to a word.
    fn codes(block: &[u8], part: usize) -> [u32; 8];

    /// Packs the codes of one row.
    #[inline(always)]
    fn pack(codes: &[u32; 8], put: impl FnMut(usize, u32)) {
        Self::Bits::pack(codes, put);
    }

    /// Writes one row's scales of a stored block into a unit.
    fn lay_scales(block: &[u8], row: usize, unit: &mut [u8]);

    /// The code that means nothing among those that [`Format::unpack`] gives.
    fn zero(path: Path) -> i32 {
        if Self::ZERO == 128 && path.signs_codes() { 0 } else { Self::ZERO }
    }

    /// The codes of a block as products take them.
    ///
    /// # Safety
    /// `p` holds a block of packed codes.
    #[inline(always)]
    unsafe fn unpack<I: Isa>(p: *const u8) -> I::Codes {
        // SAFETY: the caller's promise.
        unsafe {
            if Self::ZERO != 128 && Self::TABLE.is_none() {
                return Self::Bits::codes::<I>(p);
            }
            let codes = Self::bytes::<I>(p);
            if Self::ZERO == 128 { I::codes_about_128(codes) } else { I::codes(codes) }
        }
    }

    /// The codes of a block as bytes.
    ///
    /// # Safety
    /// As for [`Format::unpack`].
    #[inline(always)]
    unsafe fn bytes<I: Isa>(p: *const u8) -> [I::B; 8] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut codes = Self::Bits::unpack::<I>(p);
            if let Some(table) = &Self::TABLE {
                for code in &mut codes {
                    *code = I::look_up(table, *code);
                }
            }
            codes
        }
    }

    /// One of those vectors alone, where products take codes as bytes.
    ///
    /// # Safety
    /// As for [`Format::unpack`]; there are eight.
    #[inline(always)]
    unsafe fn unpack_step<I: Isa>(p: *const u8, step: usize) -> I::B {
        // SAFETY: the caller's promise.
        unsafe {
            if Self::ZERO == 128 || Self::TABLE.is_some() {
                return *Self::unpack::<I>(p).as_ref().get_unchecked(step);
            }
            Self::Bits::step::<I>(p, step)
        }
    }

    /// Scales of a group of columns.
    ///
    /// # Safety
    /// `unit` holds a unit; `part` and `group` are inside a stored block.
    #[inline(always)]
    unsafe fn scale<I: Isa>(unit: *const u8, part: usize, group: usize) -> I::F {
        // SAFETY: the caller's promise.
        unsafe {
            let whole = I::load_signed_bytes(unit.add(Self::whole(part, group)).cast());
            I::mul(Self::common::<I>(unit), whole)
        }
    }

    /// Where the sixteen bytes of a group's [`Format::WHOLE`] scales begin in a unit.
    #[inline(always)]
    fn whole(part: usize, group: usize) -> usize {
        unreachable!("scales that are no integers: {part}, {group}")
    }

    /// What a unit's [`Format::WHOLE`] scales have in common.
    ///
    /// # Safety
    /// As for [`Format::scale`].
    #[inline(always)]
    unsafe fn common<I: Isa>(unit: *const u8) -> I::F {
        // SAFETY: the caller's promise.
        unsafe { I::load_half(unit.cast()) }
    }

    /// Minimums of a group of columns.
    ///
    /// # Safety
    /// As for [`Format::scale`].
    #[inline(always)]
    unsafe fn minimum<I: Isa>(unit: *const u8, part: usize, group: usize) -> I::F {
        let _ = (unit, part, group);
        // SAFETY: needs nothing.
        unsafe { I::splat(0.0) }
    }
}

/// The largest of a table's codes.
const fn largest(table: &[u8; 16]) -> usize {
    let (mut most, mut i) = (1, 0);
    while i < table.len() {
        if table[i] as usize > most {
            most = table[i] as usize;
        }
        i += 1;
    }
    most
}

/// The eight words of a block's codes. (`std::array::from_fn` calls its closure through a wrapper that is not inlined.)
#[inline(always)]
pub(super) fn words(word: impl Fn(usize) -> u32) -> [u32; 8] {
    let mut words = [0; 8];
    for (c, out) in words.iter_mut().enumerate() {
        *out = word(c);
    }
    words
}

#[inline(always)]
pub(super) fn word(bytes: &[u8], index: usize) -> u32 {
    u32::from_le_bytes([bytes[4 * index], bytes[4 * index + 1], bytes[4 * index + 2], bytes[4 * index + 3]])
}

pub(super) fn copy_half(block: &[u8], at: usize, row: usize, unit: &mut [u8]) {
    unit[2 * row..2 * row + 2].copy_from_slice(&block[at..at + 2]);
}

/// Sixteen bytes: columns 0–15 in low nibbles, 16–31 in high ones.
#[inline(always)]
pub(super) fn nibbles(bytes: &[u8]) -> [u32; 8] {
    words(|c| word(bytes, c % 4) >> (c / 4 * 4) & 0x0f0f_0f0f)
}

/// Bits of a 32-bit mask, one per column, as four bytes of 0 or 1 for columns 4c..4c+4.
#[inline(always)]
pub(super) fn mask_bytes(mask: u32, c: usize) -> u32 {
    let bits = mask >> (4 * c);
    (bits & 1) | (bits & 2) << 7 | (bits & 4) << 14 | (bits & 8) << 21
}

/// 32-column blocks with one binary16 scale: the scale first, codes from byte `$at`.
macro_rules! simple {
    ($name:ident, $bytes:literal, $bits:ty, zero $zero:literal, table $table:expr, |$block:ident| $codes:expr) => {
        pub(crate) struct $name;

        impl Format for $name {
            const COLUMNS: usize = BLOCK;
            const BYTES: usize = $bytes;
            const SCALE_BYTES: usize = 2 * LANES;
            const ZERO: i32 = $zero;
            const TABLE: Option<[u8; 16]> = $table;
            type Bits = $bits;

            #[inline(always)]
            fn codes($block: &[u8], _part: usize) -> [u32; 8] {
                $codes
            }

            fn lay_scales(block: &[u8], row: usize, unit: &mut [u8]) {
                copy_half(block, 0, row, unit);
            }

            #[inline(always)]
            unsafe fn scale<I: Isa>(unit: *const u8, _part: usize, _group: usize) -> I::F {
                // SAFETY: the caller's promise.
                unsafe { I::load_half(unit.cast()) }
            }
        }
    };
}

/// What the codes of IQ4_NL and IQ4_XS stand for, plus 128.
const NON_LINEAR: [u8; 16] = [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];

simple!(Q4_0, 18, Four, zero 8, table None, |block| nibbles(&block[2..]));
simple!(Q5_0, 22, Five, zero 16, table None, |block| {
    let (mask, low) = (word(&block[2..], 0), nibbles(&block[6..]));
    words(|c| low[c] | mask_bytes(mask, c) << 4)
});
simple!(Q8_0, 34, Eight, zero 128, table None, |block| {
    words(|c| word(&block[2..], c) ^ 0x8080_8080)
});
simple!(Iq4Nl, 18, Four, zero 128, table Some(NON_LINEAR), |block| nibbles(&block[2..]));

/// 32-column blocks with a binary16 scale and minimum.
macro_rules! with_minimum {
    ($name:ident, $bytes:literal, $bits:ty, |$block:ident| $codes:expr) => {
        pub(crate) struct $name;

        impl Format for $name {
            const COLUMNS: usize = BLOCK;
            const BYTES: usize = $bytes;
            const SCALE_BYTES: usize = 4 * LANES;
            const ZERO: i32 = 0;
            const MINIMUMS: bool = true;
            type Bits = $bits;

            #[inline(always)]
            fn codes($block: &[u8], _part: usize) -> [u32; 8] {
                $codes
            }

            fn lay_scales(block: &[u8], row: usize, unit: &mut [u8]) {
                copy_half(block, 0, row, unit);
                // Stored as what is added; a tile keeps what is taken off.
                let minimum = f16::from_le_bytes([block[2], block[3]]).to_bits() ^ 0x8000;
                unit[2 * (LANES + row)..][..2].copy_from_slice(&minimum.to_le_bytes());
            }

            #[inline(always)]
            unsafe fn scale<I: Isa>(unit: *const u8, _part: usize, _group: usize) -> I::F {
                // SAFETY: the caller's promise.
                unsafe { I::load_half(unit.cast()) }
            }

            #[inline(always)]
            unsafe fn minimum<I: Isa>(unit: *const u8, _part: usize, _group: usize) -> I::F {
                // SAFETY: the caller's promise.
                unsafe { I::load_half(unit.add(2 * LANES).cast()) }
            }
        }
    };
}

with_minimum!(Q4_1, 20, Four, |block| nibbles(&block[4..]));
with_minimum!(Q5_1, 24, Five, |block| {
    let (mask, low) = (word(&block[4..], 0), nibbles(&block[8..]));
    words(|c| low[c] | mask_bytes(mask, c) << 4)
});

/// The six-bit scale and minimum of part `j` of a Q4_K or Q5_K block, from its twelve bytes.
fn scale_and_minimum(bytes: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (bytes[j] & 63, bytes[j + 4] & 63)
    } else {
        (bytes[j + 4] & 15 | bytes[j - 4] >> 6 << 4, bytes[j + 4] >> 4 | bytes[j] >> 6 << 4)
    }
}

/// 256-column blocks: binary16 scales of scales and of minimums, then bytes for each of 8 parts.
macro_rules! super_block_with_minimum {
    ($name:ident, $bytes:literal, $bits:ty, |$block:ident, $part:ident| $codes:expr) => {
        pub(crate) struct $name;

        impl Format for $name {
            const COLUMNS: usize = 256;
            const BYTES: usize = $bytes;
            const SCALE_BYTES: usize = 4 * LANES + 8 * 2 * LANES;
            const ZERO: i32 = 0;
            const MINIMUMS: bool = true;
            const WHOLE: bool = true;
            type Bits = $bits;

            #[inline(always)]
            fn codes($block: &[u8], $part: usize) -> [u32; 8] {
                $codes
            }

            fn lay_scales(block: &[u8], row: usize, unit: &mut [u8]) {
                copy_half(block, 0, row, unit);
                copy_half(block, 2, row, &mut unit[2 * LANES..]);
                for part in 0..8 {
                    let (scale, minimum) = scale_and_minimum(&block[4..16], part);
                    unit[(4 + 2 * part) * LANES + row] = scale;
                    unit[(5 + 2 * part) * LANES + row] = minimum;
                }
            }

            #[inline(always)]
            fn whole(part: usize, _group: usize) -> usize {
                (4 + 2 * part) * LANES
            }

            #[inline(always)]
            unsafe fn minimum<I: Isa>(unit: *const u8, part: usize, _group: usize) -> I::F {
                // SAFETY: the caller's promise.
                unsafe {
                    let scale = I::load_half(unit.add(2 * LANES).cast());
                    I::mul(scale, I::load_bytes(unit.add((5 + 2 * part) * LANES)))
                }
            }
        }
    };
}

super_block_with_minimum!(Q4K, 144, Four, |block, part| {
    let codes = &block[16 + part / 2 * 32..];
    words(|c| word(codes, c) >> (part % 2 * 4) & 0x0f0f_0f0f)
});
super_block_with_minimum!(Q5K, 176, Five, |block, part| {
    let (high, low) = (&block[16..48], &block[48 + part / 2 * 32..]);
    words(|c| (word(low, c) >> (part % 2 * 4) & 0x0f0f_0f0f) | (word(high, c) >> part & 0x0101_0101) << 4)
});

/// 256-column blocks: a binary16 scale of scales, then a signed byte for each group.
macro_rules! super_block_signed {
    ($name:ident, $bytes:literal, $bits:ty, groups $groups:literal, zero $zero:literal, table $table:expr,
     |$block:ident, $part:ident| $codes:expr, scale at $at:literal, |$sblock:ident, $group:ident| $scale:expr) => {
        pub(crate) struct $name;

        impl Format for $name {
            const COLUMNS: usize = 256;
            const BYTES: usize = $bytes;
            const SCALE_BYTES: usize = 2 * LANES + 8 * $groups * LANES;
            const GROUPS: usize = $groups;
            const ZERO: i32 = $zero;
            const TABLE: Option<[u8; 16]> = $table;
            const WHOLE: bool = true;
            type Bits = $bits;

            #[inline(always)]
            fn codes($block: &[u8], $part: usize) -> [u32; 8] {
                $codes
            }

            fn lay_scales($sblock: &[u8], row: usize, unit: &mut [u8]) {
                copy_half($sblock, $at, row, unit);
                for $group in 0..8 * $groups {
                    let scale: i8 = $scale;
                    unit[(2 + $group) * LANES + row] = scale as u8;
                }
            }

            #[inline(always)]
            fn whole(part: usize, group: usize) -> usize {
                (2 + part * $groups + group) * LANES
            }
        }
    };
}

super_block_signed!(Q6K, 210, Six, groups 2, zero 32, table None, |block, part| {
    let (half, quarter) = (part / 4, part % 4);
    let low = &block[64 * half + 32 * (quarter % 2)..];
    let high = &block[128 + 32 * half..];
    words(|c| {
        (word(low, c) >> (quarter / 2 * 4) & 0x0f0f_0f0f) | (word(high, c) >> (2 * quarter) & 0x0303_0303) << 4
    })
}, scale at 208, |block, group| block[192 + group] as i8);

super_block_signed!(Q3K, 110, Three, groups 2, zero 4, table None, |block, part| {
    let (half, quarter) = (part / 4, part % 4);
    let low = &block[32 + 32 * half..];
    words(|c| {
        (word(low, c) >> (2 * quarter) & 0x0303_0303) | (word(block, c) >> part & 0x0101_0101) << 2
    })
}, scale at 108, |block, group| {
    // Twelve bytes: low nibbles of scales 0–7 and 8–15 in the first eight, upper bits of all in the last four.
    let bytes = &block[96..108];
    let low = bytes[group % 8] >> (group / 8 * 4) & 15;
    let high = bytes[8 + group % 4] >> (group / 4 * 2) & 3;
    (low | high << 4) as i8 - 32
});

super_block_signed!(Iq4Xs, 136, Four, groups 1, zero 128, table Some(NON_LINEAR), |block, part| {
    nibbles(&block[8 + 16 * part..])
}, scale at 0, |block, group| {
    let low = block[4 + group / 2] >> (group % 2 * 4) & 15;
    let high = u16::from_le_bytes([block[2], block[3]]) >> (2 * group) & 3;
    (low | (high as u8) << 4) as i8 - 32
});

/// 2-bit codes; 4-bit scale and minimum for every 16 columns share a byte.
pub(crate) struct Q2K;

impl Format for Q2K {
    const COLUMNS: usize = 256;
    const BYTES: usize = 84;
    const SCALE_BYTES: usize = 4 * LANES + 16 * 2 * LANES;
    const GROUPS: usize = 2;
    const ZERO: i32 = 0;
    const MINIMUMS: bool = true;
    const WHOLE: bool = true;
    type Bits = Two;

    #[inline(always)]
    fn codes(block: &[u8], part: usize) -> [u32; 8] {
        let codes = &block[16 + part / 4 * 32..];
        words(|c| word(codes, c) >> (part % 4 * 2) & 0x0303_0303)
    }

    fn lay_scales(block: &[u8], row: usize, unit: &mut [u8]) {
        copy_half(block, 80, row, unit);
        copy_half(block, 82, row, &mut unit[2 * LANES..]);
        for group in 0..16 {
            unit[(4 + 2 * group) * LANES + row] = block[group] & 15;
            unit[(5 + 2 * group) * LANES + row] = block[group] >> 4;
        }
    }

    #[inline(always)]
    fn whole(part: usize, group: usize) -> usize {
        (4 + 2 * (2 * part + group)) * LANES
    }

    #[inline(always)]
    unsafe fn minimum<I: Isa>(unit: *const u8, part: usize, group: usize) -> I::F {
        // SAFETY: the caller's promise.
        unsafe {
            let scale = I::load_half(unit.add(2 * LANES).cast());
            I::mul(scale, I::load_bytes(unit.add((5 + 2 * (2 * part + group)) * LANES)))
        }
    }
}

/// Evaluates an expression with `$F` standing for the format of a storage type.
macro_rules! with_format {
    ($dtype:expr, $F:ident => $then:expr, else $else:expr) => {{
        use drophammer_formats::DType;
        use $crate::kernels::tile::formats;
        macro_rules! arm {
            ($format:ident) => {{
                type $F = formats::$format;
                $then
            }};
        }
        match $dtype {
            DType::Q4_0 => arm!(Q4_0),
            DType::Q4_1 => arm!(Q4_1),
            DType::Q5_0 => arm!(Q5_0),
            DType::Q5_1 => arm!(Q5_1),
            DType::Q8_0 => arm!(Q8_0),
            DType::Q2K => arm!(Q2K),
            DType::Q3K => arm!(Q3K),
            DType::Q4K => arm!(Q4K),
            DType::Q5K => arm!(Q5K),
            DType::Q6K => arm!(Q6K),
            DType::Iq4Nl => arm!(Iq4Nl),
            DType::Iq4Xs => arm!(Iq4Xs),
            DType::Mxfp4 => arm!(Mxfp4),
            DType::Nvfp4 => arm!(Nvfp4),
            DType::Q1_0 => arm!(Q1_0),
            DType::Tq1_0 => arm!(Tq1_0),
            DType::Tq2_0 => arm!(Tq2_0),
            DType::Iq1S => arm!(Iq1S),
            DType::Iq1M => arm!(Iq1M),
            DType::Iq2Xxs => arm!(Iq2Xxs),
            DType::Iq2Xs => arm!(Iq2Xs),
            DType::Iq2S => arm!(Iq2S),
            DType::Iq3Xxs => arm!(Iq3Xxs),
            DType::Iq3S => arm!(Iq3S),
            _ => $else,
        }
    }};
}
pub(crate) use with_format;
