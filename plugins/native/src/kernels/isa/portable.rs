//! Plain Rust over arrays of sixteen, for every processor.

use half::{bf16, f16};

use super::Isa;

/// No instructions beyond the target's baseline.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn map(a: [f32; 16], f: impl Fn(f32) -> f32) -> [f32; 16] {
    std::array::from_fn(|i| f(a[i]))
}

#[inline(always)]
fn zip(a: [f32; 16], b: [f32; 16], f: impl Fn(f32, f32) -> f32) -> [f32; 16] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// Works on 16-bit units.
#[inline(always)]
fn pairs(a: [u8; 64], f: impl Fn(u16) -> u16) -> [u8; 64] {
    let mut out = [0; 64];
    for (out, a) in out.chunks_exact_mut(2).zip(a.chunks_exact(2)) {
        out.copy_from_slice(&f(u16::from_le_bytes([a[0], a[1]])).to_le_bytes());
    }
    out
}

// SAFETY of every block below: the caller promises the elements that the function's name and arguments speak of.
impl Isa for Portable {
    type F = [f32; 16];
    type I = [i32; 16];
    type B = [u8; 64];
    type Codes = [Self::B; 16];

    const BYTES: bool = false;

    const FLOAT_ROWS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe { p.cast::<[f32; 16]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self::F {
        // SAFETY: see the head of this block.
        std::array::from_fn(|i| if i < n { unsafe { p.add(i).read_unaligned() } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        // SAFETY: see the head of this block.
        unsafe { p.cast::<[f32; 16]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, n: usize, x: Self::F) {
        for (i, x) in x.iter().enumerate().take(n) {
            // SAFETY: see the head of this block.
            unsafe { p.add(i).write_unaligned(*x) }
        }
    }
    #[inline(always)]
    unsafe fn load_half(p: *const u16) -> Self::F {
        // SAFETY: see the head of this block.
        std::array::from_fn(|i| f16::from_bits(unsafe { p.add(i).read_unaligned() }).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bfloat(p: *const u16) -> Self::F {
        // SAFETY: see the head of this block.
        std::array::from_fn(|i| bf16::from_bits(unsafe { p.add(i).read_unaligned() }).to_f32())
    }
    #[inline(always)]
    unsafe fn store_half(p: *mut u16, x: Self::F) {
        for (i, x) in x.iter().enumerate() {
            // SAFETY: see the head of this block.
            unsafe { p.add(i).write_unaligned(f16::from_f32(*x).to_bits()) }
        }
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::F {
        // SAFETY: see the head of this block.
        std::array::from_fn(|i| f32::from(unsafe { p.add(i).read() }))
    }
    #[inline(always)]
    unsafe fn load_signed_bytes(p: *const i8) -> Self::F {
        // SAFETY: see the head of this block.
        std::array::from_fn(|i| f32::from(unsafe { p.add(i).read() }))
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // Not `mul_add`: without the instruction that is a library call.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        map(a, f32::abs)
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        // Adding and taking off 1.5 · 2²³ rounds to nearest even where |x| < 2²²; larger numbers are left alone.
        map(a, |x| if x.abs() < 4_194_304.0 { (x + 12_582_912.0) - 12_582_912.0 } else { x })
    }
    #[inline(always)]
    unsafe fn power_of_two(n: Self::F) -> Self::F {
        map(n, |n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn sum(a: Self::F) -> f32 {
        let mut a = a;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                a[i] += a[i + half];
            }
        }
        a[0]
    }
    #[inline(always)]
    unsafe fn largest(a: Self::F) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, |m, x| if x > m { x } else { m })
    }
    #[inline(always)]
    unsafe fn activations(x: [Self::F; 2]) -> [u32; 16] {
        // SAFETY: needs nothing.
        unsafe { Self::words(x) }
    }
    #[inline(always)]
    unsafe fn words(x: [Self::F; 2]) -> [u32; 16] {
        let pair = |low: f32, high: f32| u32::from(low as i16 as u16) | u32::from(high as i16 as u16) << 16;
        let mut words = [0; 16];
        for (words, x) in words.chunks_exact_mut(8).zip(x) {
            for (words, x) in words.chunks_exact_mut(2).zip(x.chunks_exact(4)) {
                words[0] = pair(x[0], x[2]);
                words[1] = pair(x[1], x[3]);
            }
        }
        words
    }

    #[inline(always)]
    unsafe fn zero_i() -> Self::I {
        [0; 16]
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn to_float(x: Self::I) -> Self::F {
        std::array::from_fn(|i| x[i] as f32)
    }

    #[inline(always)]
    unsafe fn load_b(p: *const u8) -> Self::B {
        // SAFETY: see the head of this block.
        unsafe { p.cast::<[u8; 64]>().read() }
    }
    #[inline(always)]
    unsafe fn store_b(p: *mut u8, x: Self::B) {
        // SAFETY: see the head of this block.
        unsafe { p.cast::<[u8; 64]>().write(x) }
    }
    #[inline(always)]
    unsafe fn splat_b(x: u8) -> Self::B {
        [x; 64]
    }
    #[inline(always)]
    unsafe fn and(a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn shift_right<const N: u32>(a: Self::B) -> Self::B {
        pairs(a, |x| x >> N)
    }
    #[inline(always)]
    unsafe fn shift_right_signed<const N: u32>(a: Self::B) -> Self::B {
        pairs(a, |x| (x.cast_signed() >> N).cast_unsigned())
    }
    #[inline(always)]
    unsafe fn shift_left<const N: u32>(a: Self::B) -> Self::B {
        pairs(a, |x| x << N)
    }
    #[inline(always)]
    unsafe fn look_up(table: &[u8; 16], indices: Self::B) -> Self::B {
        std::array::from_fn(|i| table[usize::from(indices[i] & 15)])
    }
    #[inline(always)]
    unsafe fn codes(bytes: [Self::B; 8]) -> Self::Codes {
        let mut wide = [[0; 64]; 16];
        for (wide, w) in wide.chunks_exact_mut(2).zip(bytes) {
            wide[0] = std::array::from_fn(|i| if i % 2 == 0 { w[i] } else { 0 });
            wide[1] = std::array::from_fn(|i| if i % 2 == 0 { w[i + 1] } else { 0 });
        }
        wide
    }
    #[inline(always)]
    unsafe fn codes_of_nibbles(packed: [Self::B; 4]) -> Self::Codes {
        let mut bytes = [[0; 64]; 8];
        for (i, w) in packed.into_iter().enumerate() {
            bytes[i] = w.map(|w| w & 15);
            bytes[4 + i] = w.map(|w| w >> 4);
        }
        // SAFETY: see the head of this block.
        unsafe { Self::codes(bytes) }
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::I, w: Self::B, x: i32) -> Self::I {
        // SAFETY: needs nothing; codes of one byte are words too.
        unsafe { Self::dot_words(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn dot_words(acc: Self::I, w: Self::B, x: i32) -> Self::I {
        let (low, high) = (i32::from(x as i16), x >> 16);
        std::array::from_fn(|i| {
            let w = &w[4 * i..4 * i + 4];
            acc[i]
                + i32::from(i16::from_le_bytes([w[0], w[1]])) * low
                + i32::from(i16::from_le_bytes([w[2], w[3]])) * high
        })
    }
}

/// As bfloat16, one after another.
#[cfg(all(test, target_arch = "x86_64"))]
fn rounded(x: impl Iterator<Item = f32>) -> [u8; 64] {
    let mut out = [0; 64];
    for (out, x) in out.chunks_exact_mut(2).zip(x) {
        out.copy_from_slice(&bf16::from_f32(x).to_le_bytes());
    }
    out
}

// SAFETY of every block below: as above.
#[cfg(all(test, target_arch = "x86_64"))]
impl super::amx::Tiled for Portable {
    unsafe fn bfloat_pairs(first: Self::F, second: Self::F) -> Self::B {
        rounded(first.into_iter().zip(second).flat_map(|(a, b)| [a, b]))
    }
    unsafe fn bfloats([low, high]: [Self::F; 2]) -> Self::B {
        rounded(low.into_iter().chain(high))
    }
    unsafe fn dot_bfloats(acc: Self::F, w: Self::B, x: u32) -> Self::F {
        let of = |bits: u32| f32::from_bits(bits << 16);
        std::array::from_fn(|i| {
            let w = u32::from_le_bytes([w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3]]);
            acc[i] + of(w & 0xffff) * of(x & 0xffff) + of(w >> 16) * of(x >> 16)
        })
    }
}
