//! Storage types of floats of four bits (E2M1) as tiles: twice a float is an integer, which a table looks up.

use drophammer_quant::gguf::ue4m3_half_to_f32;
use half::f16;

use super::BLOCK;
use super::bits::Four;
use super::formats::{Format, nibbles, word, words};
use crate::kernels::LANES;
use crate::kernels::isa::Isa;

/// Twice what the codes of E2M1 stand for, plus 12.
const E2M1: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

/// MXFP4: 4-bit floats and a power of two. Codes stand for twice their value, scales for half of theirs.
pub(crate) struct Mxfp4;

impl Format for Mxfp4 {
    const COLUMNS: usize = BLOCK;
    const BYTES: usize = 17;
    const SCALE_BYTES: usize = 4 * LANES;
    const ZERO: i32 = 12;
    const TABLE: Option<[u8; 16]> = Some(E2M1);
    type Bits = Four;

    #[inline(always)]
    fn codes(block: &[u8], _part: usize) -> [u32; 8] {
        nibbles(&block[1..])
    }

    fn lay_scales(block: &[u8], row: usize, unit: &mut [u8]) {
        // 2^(e − 128), also where that is subnormal.
        let scale = 2f64.powi(i32::from(block[0]) - 128) as f32;
        unit[4 * row..4 * row + 4].copy_from_slice(&scale.to_le_bytes());
    }

    #[inline(always)]
    unsafe fn scale<I: Isa>(unit: *const u8, _part: usize, _group: usize) -> I::F {
        // SAFETY: the caller's promise.
        unsafe { I::load(unit.cast()) }
    }
}

/// NVFP4: the same codes; every 16 columns have a scale of their own, of eight bits, half of which binary16 holds exactly.
pub(crate) struct Nvfp4;

impl Format for Nvfp4 {
    const COLUMNS: usize = 64;
    const BYTES: usize = 36;
    const SCALE_BYTES: usize = 4 * 2 * LANES;
    const GROUPS: usize = 2;
    const ZERO: i32 = 12;
    const TABLE: Option<[u8; 16]> = Some(E2M1);
    type Bits = Four;

    #[inline(always)]
    fn codes(block: &[u8], part: usize) -> [u32; 8] {
        // Of 16 columns eight are in low nibbles, eight in high ones.
        let codes = &block[4 + 16 * part..];
        words(|c| word(codes, c / 4 * 2 + c % 2) >> (c / 2 % 2 * 4) & 0x0f0f_0f0f)
    }

    fn lay_scales(block: &[u8], row: usize, unit: &mut [u8]) {
        for (group, scale) in block[..4].iter().enumerate() {
            let half = f16::from_f32(ue4m3_half_to_f32(*scale));
            unit[2 * (group * LANES + row)..][..2].copy_from_slice(&half.to_le_bytes());
        }
    }

    #[inline(always)]
    unsafe fn scale<I: Isa>(unit: *const u8, part: usize, group: usize) -> I::F {
        // SAFETY: the caller's promise.
        unsafe { I::load_half(unit.add((2 * part + group) * 2 * LANES).cast()) }
    }
}
