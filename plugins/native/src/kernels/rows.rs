//! Norms and element-wise functions over rows of activations.

use drophammer_models::graph::{Activation, Gating};

use super::isa::{self, Isa, Kernel, LANES, Path};

/// Applies `f` to every 16 elements of `out`, with the matching elements of two further slices.
macro_rules! elementwise {
    ($I:ident, $n:expr, |$at:ident, $m:ident| $body:expr) => {
        let n = $n;
        let mut $at = 0;
        while $at < n {
            let $m = (n - $at).min(LANES);
            $body;
            $at += LANES;
        }
    };
}

struct NormRow<'a> {
    x: &'a [f32],
    weight: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
    epsilon: f32,
    centred: bool,
    out: *mut f32,
}

impl Kernel for NormRow<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let n = self.x.len();
        let x = self.x.as_ptr();
        // SAFETY: every access stays below n, which the callers checked for all slices.
        unsafe {
            let mut mean = 0.0;
            if self.centred {
                let mut sum = I::splat(0.0);
                elementwise!(I, n, |at, m| sum = I::add(sum, I::load_first(x.add(at), m)));
                mean = I::sum(sum) / n as f32;
            }
            let mut squares = [I::splat(0.0); 2];
            let centre = I::splat(mean);
            let whole = n / LANES * LANES;
            let mut at = 0;
            while at < whole {
                let d = I::sub(I::load(x.add(at)), centre);
                squares[at / LANES % 2] = I::fma(d, d, squares[at / LANES % 2]);
                at += LANES;
            }
            let mut square = I::sum(I::add(squares[0], squares[1]));
            for x in &self.x[whole..] {
                square += (x - mean) * (x - mean);
            }
            let factor = I::splat(1.0 / (square / n as f32 + self.epsilon).sqrt());
            elementwise!(I, n, |at, m| {
                let mut y = I::mul(I::sub(I::load_first(x.add(at), m), centre), factor);
                if let Some(weight) = self.weight {
                    y = I::mul(y, I::load_first(weight.as_ptr().add(at), m));
                }
                if let Some(bias) = self.bias {
                    y = I::add(y, I::load_first(bias.as_ptr().add(at), m));
                }
                I::store_first(self.out.add(at), m, y);
            });
        }
    }
}

/// Normalizes one row (or one head of it). `centred` takes the mean off first (layer norm).
///
/// # Panics
/// If the lengths differ.
pub(crate) fn norm(
    path: Path,
    x: &[f32],
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    epsilon: f32,
    centred: bool,
    out: &mut [f32],
) {
    assert!(
        out.len() == x.len()
            && weight.is_none_or(|w| w.len() == x.len())
            && bias.is_none_or(|b| b.len() == x.len())
    );
    // SAFETY: the lengths were checked.
    unsafe { isa::run(path, NormRow { x, weight, bias, epsilon, centred, out: out.as_mut_ptr() }) }
}

/// What [`binary`] does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Binary {
    Add,
    Mul,
    Gated(Gating),
}

struct BinaryRows {
    a: *const f32,
    b: *const f32,
    out: *mut f32,
    len: usize,
    what: Binary,
}

#[inline(always)]
unsafe fn activate_lanes<I: Isa>(x: I::F, activation: Activation) -> I::F {
    // SAFETY: the caller promises the instructions.
    unsafe {
        let (zero, one) = (I::splat(0.0), I::splat(1.0));
        match activation {
            Activation::Silu => I::silu(x),
            Activation::Gelu => {
                let half = I::mul(x, I::splat(0.5));
                I::fma(half, erf::<I>(I::mul(x, I::splat(std::f32::consts::FRAC_1_SQRT_2))), half)
            }
            Activation::GeluTanh => {
                let cube = I::mul(I::mul(x, x), x);
                let inner = I::mul(I::splat(0.797_884_6), I::fma(I::splat(0.044_715), cube, x));
                let half = I::mul(x, I::splat(0.5));
                I::fma(half, I::tanh(inner), half)
            }
            Activation::Relu => I::max(x, zero),
            Activation::ReluSquared => {
                let x = I::max(x, zero);
                I::mul(x, x)
            }
            Activation::Sigmoid => I::div(one, I::add(one, I::exp(I::sub(zero, x)))),
            Activation::Tanh => I::tanh(x),
        }
    }
}

/// The error function by Abramowitz and Stegun 7.1.26; absolute error below 2e-7.
#[inline(always)]
unsafe fn erf<I: Isa>(x: I::F) -> I::F {
    // SAFETY: the caller promises the instructions.
    unsafe {
        let (one, magnitude) = (I::splat(1.0), I::abs(x));
        let t = I::div(one, I::fma(I::splat(0.327_591_1), magnitude, one));
        let mut p = I::splat(1.061_405_4);
        for c in [-1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
            p = I::fma(p, t, I::splat(c));
        }
        let tail = I::mul(I::mul(p, t), I::exp(I::sub(I::splat(0.0), I::mul(x, x))));
        let erf = I::sub(one, tail);
        // The sign of x: x / |x|, kept finite at 0 where erf is 0 anyway.
        I::mul(erf, I::div(x, I::max(magnitude, I::splat(f32::MIN_POSITIVE))))
    }
}

#[inline(always)]
unsafe fn gate_lanes<I: Isa>(gate: I::F, up: I::F, gating: Gating) -> I::F {
    // SAFETY: the caller promises the instructions.
    unsafe {
        match gating {
            Gating::By(activation) => I::mul(activate_lanes::<I>(gate, activation), up),
            Gating::Clamped { alpha, limit } => {
                let one = I::splat(1.0);
                let gate = I::min(gate, I::splat(limit));
                let up = I::max(I::min(up, I::splat(limit)), I::splat(-limit));
                let sigmoid = I::div(one, I::add(one, I::exp(I::mul(gate, I::splat(-alpha)))));
                I::mul(I::add(up, one), I::mul(gate, sigmoid))
            }
        }
    }
}

impl Kernel for BinaryRows {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        // SAFETY: every access stays below the length that the caller promised.
        unsafe {
            elementwise!(I, self.len, |at, m| {
                let (a, b) = (I::load_first(self.a.add(at), m), I::load_first(self.b.add(at), m));
                let y = match self.what {
                    Binary::Add => I::add(a, b),
                    Binary::Mul => I::mul(a, b),
                    Binary::Gated(gating) => gate_lanes::<I>(a, b, gating),
                };
                I::store_first(self.out.add(at), m, y);
            });
        }
    }
}

/// `out = a ∘ b`. `out` may be `a` or `b`.
///
/// # Safety
/// All three hold `len` floats; no other thread writes them meanwhile, or reads `out`.
pub(crate) unsafe fn binary(
    path: Path,
    what: Binary,
    a: *const f32,
    b: *const f32,
    out: *mut f32,
    len: usize,
) {
    // SAFETY: the caller's promise.
    unsafe { isa::run(path, BinaryRows { a, b, out, len, what }) }
}

/// What [`unary`] does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Unary {
    Activate(Activation),
    Scale(f32),
    Softcap(f32),
}

struct UnaryRows {
    x: *const f32,
    out: *mut f32,
    len: usize,
    what: Unary,
}

impl Kernel for UnaryRows {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        // SAFETY: every access stays below the length that the caller promised.
        unsafe {
            elementwise!(I, self.len, |at, m| {
                let x = I::load_first(self.x.add(at), m);
                let y = match self.what {
                    Unary::Activate(activation) => activate_lanes::<I>(x, activation),
                    Unary::Scale(factor) => I::mul(x, I::splat(factor)),
                    Unary::Softcap(cap) => I::mul(I::splat(cap), I::tanh(I::div(x, I::splat(cap)))),
                };
                I::store_first(self.out.add(at), m, y);
            });
        }
    }
}

/// `out = f(x)`. `out` may be `x`.
///
/// # Safety
/// Both hold `len` floats; no other thread writes them meanwhile, or reads `out`.
pub(crate) unsafe fn unary(path: Path, what: Unary, x: *const f32, out: *mut f32, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { isa::run(path, UnaryRows { x, out, len, what }) }
}

struct AddScaled<'a> {
    x: &'a [f32],
    factor: f32,
    out: *mut f32,
}

impl Kernel for AddScaled<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        // SAFETY: every access stays below the common length, which the caller checked.
        unsafe {
            elementwise!(I, self.x.len(), |at, m| {
                let sum = I::fma(
                    I::load_first(self.x.as_ptr().add(at), m),
                    I::splat(self.factor),
                    I::load_first(self.out.add(at), m),
                );
                I::store_first(self.out.add(at), m, sum);
            });
        }
    }
}

/// `out += factor · x`.
///
/// # Panics
/// If the lengths differ.
pub(crate) fn add_scaled(path: Path, x: &[f32], factor: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    // SAFETY: the lengths were checked.
    unsafe { isa::run(path, AddScaled { x, factor, out: out.as_mut_ptr() }) }
}

struct ScatterHalf<'a> {
    x: &'a [f32],
    out: *mut u16,
    stride: usize,
}

impl Kernel for ScatterHalf<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let mut block = [0u16; LANES];
        // SAFETY: every access stays below the length of `x`; the caller promises as many places.
        unsafe {
            elementwise!(I, self.x.len(), |at, m| {
                I::store_half(block.as_mut_ptr(), I::load_first(self.x.as_ptr().add(at), m));
                for (i, x) in block.iter().enumerate().take(m) {
                    *self.out.add((at + i) * self.stride) = *x;
                }
            });
        }
    }
}

/// Writes `x` as binary16, element `i` at `i · stride`.
///
/// # Safety
/// `out` has room for that, and no other thread uses it meanwhile.
pub(crate) unsafe fn scatter_half(path: Path, x: &[f32], out: *mut u16, stride: usize) {
    // SAFETY: the caller's promise.
    unsafe { isa::run(path, ScatterHalf { x, out, stride }) }
}

/// Writes `x` as signed bytes, element `i` at `i · stride`; gives back what a byte is to be multiplied by.
///
/// # Safety
/// As for [`scatter_half`].
pub(crate) unsafe fn scatter_bytes(x: &[f32], out: *mut i8, stride: usize) -> f32 {
    let largest = largest_magnitude(x);
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    for (i, x) in x.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { *out.add(i * stride) = nearest(x * inverse) as i8 };
    }
    largest / 127.0
}

/// The largest magnitude, 0 of nothing; not a number if one of them is none.
#[inline(always)]
pub(crate) fn largest_magnitude(x: &[f32]) -> f32 {
    // Magnitudes are ordered as their bits are, whose comparison no sum of floats waits for.
    f32::from_bits(x.iter().fold(0, |largest, x| largest.max(x.to_bits() & 0x7fff_ffff)))
}

/// The nearest integer, for magnitudes that sixteen bits hold; ties to even.
#[inline(always)]
pub(crate) fn nearest(x: f32) -> i16 {
    // With 1.5 · 2²³ added, the last bit of the mantissa is worth one and the low bits are the integer.
    (x + 12_582_912.0).to_bits() as i16
}

struct Widen<'a, const BFLOAT: bool> {
    bytes: &'a [u8],
    out: &'a mut [f32],
}

impl<const BFLOAT: bool> Kernel for Widen<'_, BFLOAT> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let whole = self.out.len() / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            // SAFETY: both slices hold 16 more elements from here; the caller checked their lengths.
            unsafe {
                let p = self.bytes.as_ptr().add(2 * at).cast::<u16>();
                let x = if BFLOAT { I::load_bfloat(p) } else { I::load_half(p) };
                I::store(self.out.as_mut_ptr().add(at), x);
            }
        }
        for (x, bytes) in self.out[whole..].iter_mut().zip(self.bytes[2 * whole..].chunks_exact(2)) {
            let bits = u16::from_le_bytes([bytes[0], bytes[1]]);
            *x = if BFLOAT {
                half::bf16::from_bits(bits).to_f32()
            } else {
                half::f16::from_bits(bits).to_f32()
            };
        }
    }
}

/// Little-endian binary16 numbers as floats.
///
/// # Panics
/// If the lengths do not fit.
pub(crate) fn widen_half(path: Path, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), 2 * out.len());
    // SAFETY: the lengths were checked.
    unsafe { isa::run(path, Widen::<false> { bytes, out }) }
}

/// Little-endian bfloat16 numbers as floats.
///
/// # Panics
/// If the lengths do not fit.
pub(crate) fn widen_bfloat(path: Path, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), 2 * out.len());
    // SAFETY: the lengths were checked.
    unsafe { isa::run(path, Widen::<true> { bytes, out }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_the_nearest() {
        for (x, code) in
            [(0.4, 0), (0.6, 1), (1.5, 2), (2.5, 2), (-0.6, -1), (16383.0, 16383), (-16383.0, -16383)]
        {
            assert_eq!(nearest(x), code);
        }
    }

    fn check(what: Unary, exact: impl Fn(f64) -> f64, tolerance: f64) {
        let x: Vec<f32> =
            (-4000..=4000).map(|i| i as f32 * 0.005).chain([-1e30, -100.0, 100.0, 1e30]).collect();
        for path in Path::all() {
            let mut out = vec![f32::NAN; x.len()];
            // SAFETY: both have this length.
            unsafe { unary(path, what, x.as_ptr(), out.as_mut_ptr(), x.len()) };
            for (x, y) in x.iter().zip(out) {
                let exact = exact(f64::from(*x));
                let error = (f64::from(y) - exact).abs() / exact.abs().max(1.0);
                assert!(error < tolerance, "{path:?}: f({x}) = {y}, exactly {exact}");
            }
        }
    }

    #[test]
    fn activations_equal_their_definitions_on_every_path() {
        check(Unary::Activate(Activation::Silu), |x| x / (1.0 + (-x).exp()), 1e-6);
        check(Unary::Activate(Activation::Tanh), f64::tanh, 1e-6);
        check(Unary::Activate(Activation::Sigmoid), |x| 1.0 / (1.0 + (-x).exp()), 1e-6);
        check(Unary::Softcap(30.0), |x| 30.0 * (x / 30.0).tanh(), 5e-6);
        check(
            Unary::Activate(Activation::GeluTanh),
            |x| 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x * x * x)).tanh()),
            1e-6,
        );
        // The error function by its series (and 1 beyond 5, to double precision's surprise).
        let erf = |x: f64| {
            if x.abs() > 5.0 {
                return x.signum();
            }
            let (mut term, mut sum) = (x, x);
            for n in 1..200 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            sum * std::f64::consts::FRAC_2_SQRT_PI
        };
        check(
            Unary::Activate(Activation::Gelu),
            |x| 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
            1e-6,
        );
    }

    #[test]
    fn norms_equal_their_definitions_on_every_path() {
        for path in Path::all() {
            for n in [1usize, 15, 16, 33, 576] {
                let x: Vec<f32> = (0..n).map(|i| ((i * 37 % 19) as f32 - 7.0) * 0.3).collect();
                let (w, b): (Vec<f32>, Vec<f32>) =
                    (0..n).map(|i| (1.0 + i as f32 * 0.01, i as f32 * 0.1)).unzip();
                for centred in [false, true] {
                    let mut out = vec![f32::NAN; n];
                    norm(path, &x, Some(&w), Some(&b), 1e-5, centred, &mut out);
                    let mean =
                        if centred { x.iter().map(|x| f64::from(*x)).sum::<f64>() / n as f64 } else { 0.0 };
                    let square = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n as f64;
                    for i in 0..n {
                        let y = (f64::from(x[i]) - mean) / (square + 1e-5).sqrt() * f64::from(w[i])
                            + f64::from(b[i]);
                        assert!((y - f64::from(out[i])).abs() < 1e-4 * y.abs().max(1.0), "{path:?} {n} {i}");
                    }
                }
            }
        }
    }
}
