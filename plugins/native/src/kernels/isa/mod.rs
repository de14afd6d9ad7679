//! What kernels are written in: sixteen numbers at a time.
//!
//! [`Isa`] is one instruction set seen as operations on 16 floats, 16 integers or 64 bytes, whatever its registers hold:
//! AVX-512 has one register for each, AVX2 two, NEON four, the portable form an array that the compiler vectorizes as the
//! target allows. A kernel is written once over it, as a [`Kernel`], and [`run`] executes the form for a
//! [`Path`]. Only code inlined into `run`'s entry points is compiled with their instructions: kernels and all they
//! call are `#[inline(always)]`.
//!
//! Tests run every path of the processor they find; `cargo xtask arm` runs them on emulated Arm processors.
#![allow(unsafe_code)] // vector intrinsics and raw loads; every entry point has checked the processor

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod path;
mod portable;

pub(crate) use path::{Kernel, Path, run};
#[cfg(target_arch = "x86_64")]
pub(crate) use path::{TileKernel, run_tiles};
pub(crate) use portable::Portable;

/// Rows of weights that a kernel works on at once: lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Sixteen-lane operations of one instruction set.
///
/// # Safety
/// Every function needs the processor to have the instruction set; loads and stores need as many valid elements as
/// they name, at any alignment.
pub(crate) trait Isa: Copy + 'static {
    /// 16 floats.
    type F: Copy;
    /// 16 signed 32-bit integers.
    type I: Copy;
    /// 64 bytes: 4 for each of 16 lanes.
    type B: Copy;
    /// Codes of 16 rows and 32 columns as products take them: [`Isa::STEPS`] vectors.
    type Codes: Copy + AsRef<[Self::B]>;

    /// Whether activations have codes of 8 bits, or of 16.
    const BYTES: bool;
    /// Largest magnitude of such a code.
    const LIMIT: f32 = if Self::BYTES { 127.0 } else { 32767.0 };
    /// Vectors of codes in a block of 32 columns: a step multiplies 4 columns of 8 bits, or 2 of 16.
    const STEPS: usize = if Self::BYTES { 8 } else { 16 };

    /// Rows of activations that fit beside one another in registers when floats are accumulated.
    const FLOAT_ROWS: usize;
    /// Strips that products of integers take at once, 1 or 2: registers hold their sums for a panel of tokens, as integers and as
    /// floats. Two use an activation twice once it is loaded.
    const STRIPS: usize = 1;
    /// The same of codes, whose sums of sixteen bits take registers besides on some paths: see [`Isa::dots_of_one`].
    const STRIPS_OF_CODES: usize = Self::STRIPS;
    /// Whether products of codes are summed in sixteen bits first, two sums to a lane (of the first two of every four columns, and of the
    /// others), in *runs* of as many steps as sixteen bits hold the sum of.
    const SUMS_WORDS: bool = false;
    /// Whether these sums had better begin with what is to be added to them than have it added when they are widened: where an addition
    /// does not read a number for all lanes from memory.
    const BEGINS_WORDS: bool = false;
    /// How many bytes ahead weights are asked for where they are multiplied by panel after panel, 0 for not at all: the nearest cache
    /// holds no two strips of words, and not every processor fetches them from the next one by itself in time.
    const ASKS_AHEAD: usize = 0;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    /// The first `n` ≤ 16, the rest 0.
    unsafe fn load_first(p: *const f32, n: usize) -> Self::F;
    unsafe fn store(p: *mut f32, x: Self::F);
    unsafe fn store_first(p: *mut f32, n: usize, x: Self::F);
    /// 16 binary16 numbers.
    unsafe fn load_half(p: *const u16) -> Self::F;
    /// 16 bfloat16 numbers.
    unsafe fn load_bfloat(p: *const u16) -> Self::F;
    /// To binary16, to nearest even.
    unsafe fn store_half(p: *mut u16, x: Self::F);
    /// 16 unsigned bytes as floats.
    unsafe fn load_bytes(p: *const u8) -> Self::F;
    /// 16 signed bytes as floats.
    unsafe fn load_signed_bytes(p: *const i8) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    unsafe fn abs(a: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    unsafe fn round(a: Self::F) -> Self::F;
    /// 2 to the power of an integer in −126 ..= 127.
    unsafe fn power_of_two(n: Self::F) -> Self::F;
    /// Sum of all lanes.
    unsafe fn sum(a: Self::F) -> f32;
    /// Largest lane.
    unsafe fn largest(a: Self::F) -> f32;
    /// The sum of each one's lanes, whatever the others are.
    #[inline(always)]
    unsafe fn sum_of_four(x: [Self::F; 4]) -> [f32; 4] {
        // SAFETY: the caller's promise.
        unsafe { [Self::sum(x[0]), Self::sum(x[1]), Self::sum(x[2]), Self::sum(x[3])] }
    }
    /// [`Isa::largest`] of each.
    #[inline(always)]
    unsafe fn largest_of_four(x: [Self::F; 4]) -> [f32; 4] {
        // SAFETY: the caller's promise.
        unsafe { [Self::largest(x[0]), Self::largest(x[1]), Self::largest(x[2]), Self::largest(x[3])] }
    }
    /// A bit for each lane whose magnitude is above `limit`.
    #[inline(always)]
    unsafe fn above(x: Self::F, limit: f32) -> u16 {
        let mut lanes = [0.0; LANES];
        // SAFETY: the caller's promise.
        unsafe { Self::store(lanes.as_mut_ptr(), x) };
        lanes.iter().enumerate().fold(0, |bits, (i, x)| bits | u16::from(x.abs() > limit) << i)
    }
    /// `value` in the lanes of the bits.
    #[inline(always)]
    unsafe fn replaced(x: Self::F, bits: u16, value: f32) -> Self::F {
        let mut lanes = [0.0; LANES];
        // SAFETY: the caller's promise.
        unsafe {
            Self::store(lanes.as_mut_ptr(), x);
            for (i, x) in lanes.iter_mut().enumerate() {
                *x = if bits >> i & 1 == 1 { value } else { *x };
            }
            Self::load(lanes.as_ptr())
        }
    }
    /// Sums of the lanes of each, which are integers up to [`Isa::LIMIT`]; in two words where [`Isa::SUMS_WORDS`]: [`halves`] tells.
    #[inline(always)]
    unsafe fn sums(x: [Self::F; 2]) -> [i32; 2] {
        // SAFETY: the caller's promise. (Sixteen numbers of sixteen bits: floats hold their sum exactly.)
        unsafe { [Self::sum(x[0]) as i32, Self::sum(x[1]) as i32] }
    }
    /// Integers, up to [`Isa::LIMIT`], as the words that the steps of a block multiply by; as many as there are steps.
    unsafe fn activations(x: [Self::F; 2]) -> [u32; 16];
    /// Integers of sixteen bits in pairs: of every four columns the first and the third, then the second and the fourth.
    unsafe fn words(x: [Self::F; 2]) -> [u32; 16];

    unsafe fn zero_i() -> Self::I;
    unsafe fn splat_i(x: i32) -> Self::I;
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn to_float(x: Self::I) -> Self::F;

    unsafe fn load_b(p: *const u8) -> Self::B;
    unsafe fn store_b(p: *mut u8, x: Self::B);
    unsafe fn splat_b(x: u8) -> Self::B;
    unsafe fn and(a: Self::B, b: Self::B) -> Self::B;
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B;
    /// Shifts 16-bit units: bits of a neighbour byte come in.
    unsafe fn shift_right<const N: u32>(a: Self::B) -> Self::B;
    /// Shifts 16-bit integers, which keep their sign.
    unsafe fn shift_right_signed<const N: u32>(a: Self::B) -> Self::B;
    /// As [`Isa::shift_right`].
    unsafe fn shift_left<const N: u32>(a: Self::B) -> Self::B;
    /// Each byte, below 16, chooses one of a table.
    unsafe fn look_up(table: &[u8; 16], indices: Self::B) -> Self::B;
    /// Brings codes of one byte, four neighbouring columns to a lane, into the form that [`Isa::dot`] takes.
    unsafe fn codes(bytes: [Self::B; 8]) -> Self::Codes;
    /// The same for codes whose zero is 128. Where products take codes as signed, their zero becomes 0; all others are below 128.
    #[inline(always)]
    unsafe fn codes_about_128(bytes: [Self::B; 8]) -> Self::Codes {
        // SAFETY: the caller's promise.
        unsafe { Self::codes(bytes) }
    }
    /// The same from four bits: the low ones of each byte belong to the first four vectors, the high ones to the last.
    unsafe fn codes_of_nibbles(packed: [Self::B; 4]) -> Self::Codes;
    /// Adds to each lane the products of its codes, as [`Isa::codes`] gives them, with as many signed activations in `x`.
    unsafe fn dot(acc: Self::I, w: Self::B, x: i32) -> Self::I;
    /// Adds to each lane the products of its two signed words with those of `x`.
    unsafe fn dot_words(acc: Self::I, w: Self::B, x: i32) -> Self::I;

    /// Bytes of four neighbouring columns, without a sign, column by column.
    #[inline(always)]
    unsafe fn columns(bytes: Self::B) -> [Self::F; 4] {
        let mut all = [0; 64];
        // SAFETY: the caller's promise.
        unsafe {
            Self::store_b(all.as_mut_ptr(), bytes);
            by_columns::<Self>(|lane, column| f32::from(all[4 * lane + column]))
        }
    }
    /// Words of four neighbouring columns, in the order of [`Isa::words`], column by column.
    #[inline(always)]
    unsafe fn columns_of_words(words: [Self::B; 2]) -> [Self::F; 4] {
        let mut all = [[0; 64]; 2];
        // SAFETY: the caller's promise.
        unsafe {
            Self::store_b(all[0].as_mut_ptr(), words[0]);
            Self::store_b(all[1].as_mut_ptr(), words[1]);
            by_columns::<Self>(|lane, column| {
                let at = 4 * lane + column / 2 * 2;
                f32::from(i16::from_le_bytes([all[column % 2][at], all[column % 2][at + 1]]))
            })
        }
    }

    /// Stores the codes of a block as [`Isa::dots`] takes them.
    #[inline(always)]
    unsafe fn store_codes(p: *mut u8, codes: Self::Codes) {
        for (step, w) in codes.as_ref().iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { Self::store_b(p.add(step * 64), *w) }
        }
    }
    /// Words of one.
    #[inline(always)]
    unsafe fn ones() -> Self::B {
        // SAFETY: the caller's promise.
        unsafe { Self::load_pairs([1; LANES].as_ptr()) }
    }
    /// Sixteen signed bytes as words, each twice in its lane.
    #[inline(always)]
    unsafe fn load_pairs(p: *const i8) -> Self::B {
        let mut words = [[0; 4]; LANES];
        // SAFETY: the caller's promise.
        unsafe {
            for (i, words) in words.iter_mut().enumerate() {
                let [low, high] = i16::from(*p.add(i)).to_le_bytes();
                *words = [low, high, low, high];
            }
            Self::load_b(words.as_ptr().cast())
        }
    }
    /// One vector of those, as [`Isa::dot`] takes it.
    #[inline(always)]
    unsafe fn load_codes(p: *const u8, step: usize) -> Self::B {
        // SAFETY: the caller's promise.
        unsafe { Self::load_b(p.add(step * 64)) }
    }
    /// Adds to each lane the products of vectors of codes with as many words of activations. Sixteen bits hold the sums of `run`
    /// steps; 1 says that codes may reach 128.
    #[inline(always)]
    unsafe fn dots_of_one(acc: Self::I, w: &[Self::B], x: *const i32, run: usize) -> Self::I {
        let _ = run;
        // SAFETY: the caller's promise.
        unsafe { dots_step_by_step::<Self>(acc, w, x) }
    }
    /// Adds to the lanes of `M` tokens (an even number) the products of `steps` vectors (an even number) of stored codes with as many
    /// words of each token, which lie `to_token` and `to_step` apart. `run` as in [`Isa::dots_of_one`].
    #[inline(always)]
    unsafe fn dots<const M: usize>(
        acc: &mut [Self::I; M],
        w: *const u8,
        steps: usize,
        x: *const i32,
        strides: (usize, usize),
        run: usize,
    ) {
        let _ = run;
        // SAFETY: the caller's promise.
        unsafe { dots_one_by_one::<Self, false, 1, M>(std::array::from_mut(acc), [w], steps, x, strides) }
    }
    /// [`Isa::dots`] of `S` strips, at most [`Isa::STRIPS_OF_CODES`].
    #[inline(always)]
    unsafe fn dots_of_strips<const S: usize, const M: usize>(
        acc: &mut [[Self::I; M]; S],
        w: [*const u8; S],
        steps: usize,
        x: *const i32,
        strides: (usize, usize),
        run: usize,
    ) {
        for (acc, w) in acc.iter_mut().zip(w) {
            // SAFETY: the caller's promise.
            unsafe { Self::dots(acc, w, steps, x, strides, run) }
        }
    }
    /// That of the integer products which takes most columns, for limits and runs of steps.
    #[inline(always)]
    unsafe fn densest(acc: Self::I, w: Self::B, x: i32) -> Self::I {
        // SAFETY: the caller's promise.
        unsafe { Self::dot(acc, w, x) }
    }
    /// Of every lane the two sums that [`Isa::densest`] left there as one, each times a word of `by`, where [`Isa::SUMS_WORDS`].
    #[inline(always)]
    unsafe fn widened(sums: Self::I, by: Self::B) -> Self::I {
        let _ = by;
        sums
    }

    /// eˣ, relative error about 2e-7; 0 far below, large but finite far above.
    #[inline(always)]
    unsafe fn exp(x: Self::F) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe {
            let x = Self::max(Self::min(x, Self::splat(88.0)), Self::splat(-87.3));
            let n = Self::round(Self::mul(x, Self::splat(std::f32::consts::LOG2_E)));
            // Two constants for ln 2, the first exact in few bits, keep the remainder exact.
            let r = Self::fma(n, Self::splat(-0.693_359_4), x);
            let r = Self::fma(n, Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.987_569_1e-4);
            for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0] {
                p = Self::fma(p, r, Self::splat(c));
            }
            Self::mul(p, Self::power_of_two(n))
        }
    }

    /// x / (1 + e⁻ˣ).
    #[inline(always)]
    unsafe fn silu(x: Self::F) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe { Self::div(x, Self::add(Self::splat(1.0), Self::exp(Self::sub(Self::splat(0.0), x)))) }
    }

    /// Hyperbolic tangent, absolute error below 3e-7.
    #[inline(always)]
    unsafe fn tanh(x: Self::F) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe {
            let e = Self::exp(Self::mul(
                Self::splat(2.0),
                Self::max(Self::min(x, Self::splat(20.0)), Self::splat(-20.0)),
            ));
            Self::sub(Self::splat(1.0), Self::div(Self::splat(2.0), Self::add(e, Self::splat(1.0))))
        }
    }
}

/// Four vectors, of the number that each lane has in each column.
///
/// # Safety
/// The processor has the instructions.
#[inline(always)]
unsafe fn by_columns<I: Isa>(number: impl Fn(usize, usize) -> f32) -> [I::F; 4] {
    let mut lanes = [[0.0; LANES]; 4];
    for (column, lanes) in lanes.iter_mut().enumerate() {
        for (lane, out) in lanes.iter_mut().enumerate() {
            *out = number(lane, column);
        }
    }
    // SAFETY: the caller's promise.
    unsafe {
        [
            I::load(&raw const lanes[0][0]),
            I::load(&raw const lanes[1][0]),
            I::load(&raw const lanes[2][0]),
            I::load(&raw const lanes[3][0]),
        ]
    }
}

/// [`Isa::dots_of_one`] where an instruction sums in 32 bits.
///
/// # Safety
/// As for that.
#[inline(always)]
unsafe fn dots_step_by_step<I: Isa>(acc: I::I, w: &[I::B], x: *const i32) -> I::I {
    // SAFETY: the caller's promise.
    unsafe {
        // Two chains, so that one need not wait for the other.
        let mut chains = [acc, I::zero_i()];
        for (step, w) in w.iter().enumerate() {
            chains[step % 2] = I::dot(chains[step % 2], *w, *x.add(step));
        }
        I::add_i(chains[0], chains[1])
    }
}

/// The two sums that a sum of [`Isa::sums`] is of: of the first two of every four columns and of the others, where [`Isa::SUMS_WORDS`];
/// elsewhere of all and of none.
#[inline(always)]
pub(crate) fn halves<I: Isa>(sum: i32) -> [i32; 2] {
    if I::SUMS_WORDS { [i32::from(sum as i16), sum >> 16] } else { [sum, 0] }
}

/// [`Isa::dots_of_one`] where [`Isa::SUMS_WORDS`]; sums begin with `sums`, in sixteen bits, and are multiplied by the words of `by`.
///
/// # Safety
/// As for that.
#[inline(always)]
pub(crate) unsafe fn dots_of_one_in_runs<I: Isa>(
    mut acc: I::I,
    mut sums: I::I,
    w: &[I::B],
    x: *const i32,
    run: usize,
    by: I::B,
) -> I::I {
    // SAFETY: the caller's promise.
    unsafe {
        for (few, w) in w.chunks(run).enumerate() {
            let x = x.add(few * run);
            for (step, w) in w.iter().enumerate() {
                sums = I::densest(sums, *w, *x.add(step));
            }
            acc = I::add_i(acc, I::widened(sums, by));
            sums = I::zero_i();
        }
        acc
    }
}

/// [`Isa::dots`] where [`Isa::SUMS_WORDS`]; sums begin with `sums`, in sixteen bits, and are multiplied by the words of `by`.
///
/// # Safety
/// As for that.
#[inline(always)]
pub(crate) unsafe fn dots_in_runs<I: Isa, const M: usize>(
    acc: &mut [I::I; M],
    mut sums: [I::I; M],
    w: *const u8,
    (steps, run): (usize, usize),
    x: *const i32,
    (to_token, to_step): (usize, usize),
    by: I::B,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for first in (0..steps).step_by(run) {
            for step in first..first + run {
                let w = I::load_codes(w, step);
                for (m, sums) in sums.iter_mut().enumerate() {
                    *sums = I::densest(*sums, w, *x.add(m * to_token + step * to_step));
                }
            }
            for (acc, sums) in acc.iter_mut().zip(sums) {
                *acc = I::add_i(*acc, I::widened(sums, by));
            }
            sums = [I::zero_i(); M];
        }
    }
}

/// [`Isa::dots_of_strips`] where an instruction multiplies one token: each activation by all strips once it is loaded. With `WORDS`
/// vectors are words, not codes.
///
/// # Safety
/// As for [`Isa::dots`].
#[inline(always)]
pub(crate) unsafe fn dots_one_by_one<I: Isa, const WORDS: bool, const S: usize, const M: usize>(
    acc: &mut [[I::I; M]; S],
    strips: [*const u8; S],
    steps: usize,
    x: *const i32,
    (to_token, to_step): (usize, usize),
) {
    // SAFETY: the caller's promise.
    unsafe {
        for step in 0..steps {
            let mut w = [I::splat_b(0); S];
            for (w, strip) in w.iter_mut().zip(strips) {
                *w = if WORDS { I::load_b(strip.add(step * 64)) } else { I::load_codes(strip, step) };
                if I::ASKS_AHEAD > 0 && M > 1 {
                    super::prefetch(strip.wrapping_add(step * 64 + I::ASKS_AHEAD));
                }
            }
            for m in 0..M {
                let x = *x.add(m * to_token + step * to_step);
                for (acc, w) in acc.iter_mut().zip(w) {
                    acc[m] = if WORDS { I::dot_words(acc[m], w, x) } else { I::dot(acc[m], w, x) };
                }
            }
        }
    }
}
