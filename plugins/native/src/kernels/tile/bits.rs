//! How codes of 1 to 8 bits share bytes: each form packs eight vectors of codes into fewer and unpacks them.
//!
//! ```text
//! four bits   vector i:  code of vector i | code of vector i+4 << 4           i < 4
//! one bit     one vector, bit c: that of vector c
//! two bits    vector i, bits 2j: code of vector 4i+j                          i < 2, j < 4
//! ```
//! 3 = two + one, 5 = four + one, 6 = four + two.

use crate::kernels::isa::Isa;

/// A way to pack the eight code vectors of a block.
pub(crate) trait Bits {
    /// Bits of a code: it takes as many vectors of 64 bytes.
    const VECTORS: usize;

    /// Packs the lanes of one row: `put(vector, lane)`.
    fn pack(codes: &[u32; 8], put: impl FnMut(usize, u32));

    /// # Safety
    /// `p` holds [`Bits::VECTORS`] vectors.
    unsafe fn unpack<I: Isa>(p: *const u8) -> [I::B; 8];

    /// The same in the form that products take.
    ///
    /// # Safety
    /// As for [`Bits::unpack`].
    #[inline(always)]
    unsafe fn codes<I: Isa>(p: *const u8) -> I::Codes {
        // SAFETY: the caller's promise.
        unsafe { I::codes(Self::unpack::<I>(p)) }
    }

    /// One of those vectors alone, where products take codes as bytes.
    ///
    /// # Safety
    /// As for [`Bits::unpack`]; there are eight.
    #[inline(always)]
    unsafe fn step<I: Isa>(p: *const u8, step: usize) -> I::B {
        // SAFETY: the caller's promise.
        unsafe { *Self::codes::<I>(p).as_ref().get_unchecked(step) }
    }
}

pub(crate) struct One;
pub(crate) struct Two;
pub(crate) struct Three;
pub(crate) struct Four;
pub(crate) struct Five;
pub(crate) struct Six;
pub(crate) struct Eight;

#[inline(always)]
fn pack_one(codes: &[u32; 8], bit: u32) -> u32 {
    (0..8).map(|c| (codes[c] >> bit & 0x0101_0101) << c).sum()
}

#[inline(always)]
fn pack_two(codes: &[u32; 8], bit: u32, i: usize) -> u32 {
    (0..4).map(|j| (codes[4 * i + j] >> bit & 0x0303_0303) << (2 * j)).sum()
}

#[inline(always)]
fn pack_four(codes: &[u32; 8], i: usize) -> u32 {
    (codes[i] & 0x0f0f_0f0f) | (codes[i + 4] & 0x0f0f_0f0f) << 4
}

/// Bit `c` of each byte, moved to `1 << TO`.
macro_rules! one {
    ($I:ident, $x:expr, $mask:expr, $($c:literal => $shift:ident $n:literal),*) => {
        [$($I::and($I::$shift::<$n>($x), $mask)),*]
    };
}

#[inline(always)]
unsafe fn four<I: Isa>(p: *const u8) -> [I::B; 8] {
    // SAFETY: the caller promises four vectors.
    unsafe {
        let mask = I::splat_b(0x0f);
        let x: [I::B; 4] = [I::load_b(p), I::load_b(p.add(64)), I::load_b(p.add(128)), I::load_b(p.add(192))];
        let high = |x| I::and(I::shift_right::<4>(x), mask);
        [
            I::and(x[0], mask),
            I::and(x[1], mask),
            I::and(x[2], mask),
            I::and(x[3], mask),
            high(x[0]),
            high(x[1]),
            high(x[2]),
            high(x[3]),
        ]
    }
}

/// The eight one-bit vectors in `x`, as bit 4.
#[inline(always)]
unsafe fn fifth_bits<I: Isa>(x: I::B) -> [I::B; 8] {
    // SAFETY: the caller promises the instructions.
    unsafe {
        let mask = I::splat_b(0x10);
        one!(I, x, mask, 0 => shift_left 4, 1 => shift_left 3, 2 => shift_left 2, 3 => shift_left 1,
             4 => shift_right 0, 5 => shift_right 1, 6 => shift_right 2, 7 => shift_right 3)
    }
}

/// The eight one-bit vectors in `x`.
#[inline(always)]
unsafe fn first_bits<I: Isa>(x: I::B) -> [I::B; 8] {
    // SAFETY: the caller promises the instructions.
    unsafe {
        let mask = I::splat_b(0x01);
        one!(I, x, mask, 0 => shift_right 0, 1 => shift_right 1, 2 => shift_right 2, 3 => shift_right 3,
             4 => shift_right 4, 5 => shift_right 5, 6 => shift_right 6, 7 => shift_right 7)
    }
}

/// The eight one-bit vectors in `x`, as bit 2.
#[inline(always)]
unsafe fn third_bits<I: Isa>(x: I::B) -> [I::B; 8] {
    // SAFETY: the caller promises the instructions.
    unsafe {
        let mask = I::splat_b(0x04);
        one!(I, x, mask, 0 => shift_left 2, 1 => shift_left 1, 2 => shift_right 0, 3 => shift_right 1,
             4 => shift_right 2, 5 => shift_right 3, 6 => shift_right 4, 7 => shift_right 5)
    }
}

/// The eight two-bit vectors in two, as bits 0 and 1.
#[inline(always)]
unsafe fn two<I: Isa>(p: *const u8) -> [I::B; 8] {
    // SAFETY: the caller promises two vectors.
    unsafe {
        let mask = I::splat_b(3);
        let (a, b) = (I::load_b(p), I::load_b(p.add(64)));
        let [a0, a1, a2, a3] =
            one!(I, a, mask, 0 => shift_right 0, 1 => shift_right 2, 2 => shift_right 4, 3 => shift_right 6);
        let [b0, b1, b2, b3] =
            one!(I, b, mask, 0 => shift_right 0, 1 => shift_right 2, 2 => shift_right 4, 3 => shift_right 6);
        [a0, a1, a2, a3, b0, b1, b2, b3]
    }
}

/// The eight two-bit vectors in two, as bits 4 and 5.
#[inline(always)]
unsafe fn fifth_and_sixth_bits<I: Isa>(p: *const u8) -> [I::B; 8] {
    // SAFETY: the caller promises two vectors.
    unsafe {
        let mask = I::splat_b(0x30);
        let (a, b) = (I::load_b(p), I::load_b(p.add(64)));
        let [a0, a1, a2, a3] =
            one!(I, a, mask, 0 => shift_left 4, 1 => shift_left 2, 2 => shift_right 0, 3 => shift_right 2);
        let [b0, b1, b2, b3] =
            one!(I, b, mask, 0 => shift_left 4, 1 => shift_left 2, 2 => shift_right 0, 3 => shift_right 2);
        [a0, a1, a2, a3, b0, b1, b2, b3]
    }
}

#[inline(always)]
unsafe fn or_all<I: Isa>(mut a: [I::B; 8], b: [I::B; 8]) -> [I::B; 8] {
    for (a, b) in a.iter_mut().zip(b) {
        // SAFETY: the caller promises the instructions.
        *a = unsafe { I::or(*a, b) };
    }
    a
}

impl Bits for One {
    const VECTORS: usize = 1;

    #[inline(always)]
    fn pack(codes: &[u32; 8], mut put: impl FnMut(usize, u32)) {
        put(0, pack_one(codes, 0));
    }

    #[inline(always)]
    unsafe fn unpack<I: Isa>(p: *const u8) -> [I::B; 8] {
        // SAFETY: the caller's promise.
        unsafe { first_bits::<I>(I::load_b(p)) }
    }
}

impl Bits for Two {
    const VECTORS: usize = 2;

    #[inline(always)]
    fn pack(codes: &[u32; 8], mut put: impl FnMut(usize, u32)) {
        (0..2).for_each(|i| put(i, pack_two(codes, 0, i)));
    }

    #[inline(always)]
    unsafe fn unpack<I: Isa>(p: *const u8) -> [I::B; 8] {
        // SAFETY: the caller's promise.
        unsafe { two::<I>(p) }
    }
}

impl Bits for Three {
    const VECTORS: usize = 3;

    #[inline(always)]
    fn pack(codes: &[u32; 8], mut put: impl FnMut(usize, u32)) {
        (0..2).for_each(|i| put(i, pack_two(codes, 0, i)));
        put(2, pack_one(codes, 2));
    }

    #[inline(always)]
    unsafe fn unpack<I: Isa>(p: *const u8) -> [I::B; 8] {
        // SAFETY: the caller's promise.
        unsafe { or_all::<I>(two::<I>(p), third_bits::<I>(I::load_b(p.add(128)))) }
    }
}

impl Bits for Four {
    const VECTORS: usize = 4;

    #[inline(always)]
    fn pack(codes: &[u32; 8], mut put: impl FnMut(usize, u32)) {
        (0..4).for_each(|i| put(i, pack_four(codes, i)));
    }

    #[inline(always)]
    unsafe fn unpack<I: Isa>(p: *const u8) -> [I::B; 8] {
        // SAFETY: the caller's promise.
        unsafe { four::<I>(p) }
    }

    #[inline(always)]
    unsafe fn codes<I: Isa>(p: *const u8) -> I::Codes {
        // SAFETY: the caller promises four vectors.
        unsafe {
            I::codes_of_nibbles([
                I::load_b(p),
                I::load_b(p.add(64)),
                I::load_b(p.add(128)),
                I::load_b(p.add(192)),
            ])
        }
    }

    #[inline(always)]
    unsafe fn step<I: Isa>(p: *const u8, step: usize) -> I::B {
        // SAFETY: the caller promises four vectors, and that products take codes as bytes, in eight.
        unsafe {
            let packed = I::load_b(p.add(step % 4 * 64));
            let packed = if step < 4 { packed } else { I::shift_right::<4>(packed) };
            I::and(packed, I::splat_b(0x0f))
        }
    }
}

impl Bits for Five {
    const VECTORS: usize = 5;

    #[inline(always)]
    fn pack(codes: &[u32; 8], mut put: impl FnMut(usize, u32)) {
        (0..4).for_each(|i| put(i, pack_four(codes, i)));
        put(4, pack_one(codes, 4));
    }

    #[inline(always)]
    unsafe fn unpack<I: Isa>(p: *const u8) -> [I::B; 8] {
        // SAFETY: the caller's promise.
        unsafe { or_all::<I>(four::<I>(p), fifth_bits::<I>(I::load_b(p.add(256)))) }
    }
}

impl Bits for Six {
    const VECTORS: usize = 6;

    #[inline(always)]
    fn pack(codes: &[u32; 8], mut put: impl FnMut(usize, u32)) {
        (0..4).for_each(|i| put(i, pack_four(codes, i)));
        (0..2).for_each(|i| put(4 + i, pack_two(codes, 4, i)));
    }

    #[inline(always)]
    unsafe fn unpack<I: Isa>(p: *const u8) -> [I::B; 8] {
        // SAFETY: the caller's promise.
        unsafe { or_all::<I>(four::<I>(p), fifth_and_sixth_bits::<I>(p.add(256))) }
    }
}

impl Bits for Eight {
    const VECTORS: usize = 8;

    #[inline(always)]
    fn pack(codes: &[u32; 8], mut put: impl FnMut(usize, u32)) {
        codes.iter().enumerate().for_each(|(i, code)| put(i, *code));
    }

    #[inline(always)]
    unsafe fn unpack<I: Isa>(p: *const u8) -> [I::B; 8] {
        // SAFETY: the caller promises eight vectors.
        unsafe {
            [
                I::load_b(p),
                I::load_b(p.add(64)),
                I::load_b(p.add(128)),
                I::load_b(p.add(192)),
                I::load_b(p.add(256)),
                I::load_b(p.add(320)),
                I::load_b(p.add(384)),
                I::load_b(p.add(448)),
            ]
        }
    }
}
