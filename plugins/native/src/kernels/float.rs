//! Matrix products in float32.
//!
//! Sixteen rows of a weight are laid side by side in a *strip*, `[columns][16]`: one vector holds a column of all sixteen
//! rows, and an output is a chain of `acc += x[k] · strip[k]` without any horizontal sum. The chain's order is the same
//! for any number of tokens, so one token at a time gives the same numbers as many.

use super::isa::{self, Isa, Kernel, LANES, Path};

/// Rows of floats, `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) begin: *const f32,
    pub(crate) stride: usize,
}

/// Where products go: first token's output of row 0, tokens `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    pub(crate) begin: *mut f32,
    pub(crate) stride: usize,
    /// Whether products are added to what is there.
    pub(crate) accumulate: bool,
}

impl Output {
    /// The same from another row on. (Where the first one would be there need be no room, if it is not written.)
    #[inline(always)]
    pub(crate) fn at_row(self, row: usize) -> Self {
        Self { begin: self.begin.wrapping_add(row), ..self }
    }

    /// Has the caches fetch where the outputs of some tokens go, while these are being computed: what comes before is seldom near.
    #[inline(always)]
    pub(crate) fn fetch(self, tokens: std::ops::Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        for token in tokens {
            use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
            // SAFETY: a hint, which may name any address.
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(self.begin.wrapping_add(token * self.stride).cast()) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = tokens;
    }

    /// Writes the first `rows` ≤ 16 outputs of a token.
    ///
    /// # Safety
    /// There is room for them, and the processor has the instructions.
    #[inline(always)]
    pub(crate) unsafe fn put<I: Isa>(self, token: usize, rows: usize, sum: I::F) {
        // SAFETY: the caller's promise.
        unsafe {
            let out = self.begin.add(token * self.stride);
            if rows == LANES {
                I::store(out, if self.accumulate { I::add(I::load(out), sum) } else { sum });
            } else {
                let before = if self.accumulate { I::load_first(out, rows) } else { I::splat(0.0) };
                I::store_first(out, rows, I::add(before, sum));
            }
        }
    }
}

/// `out[t][r] = Σₖ x[t][k] · strip[k][r]` for sixteen rows `r` (only the first `rows` are written).
#[allow(clippy::struct_field_names)] // the strip among other operands
struct Strip<'a> {
    strip: &'a [f32],
    x: Rows,
    out: Output,
    tokens: usize,
    rows: usize,
}

impl Strip<'_> {
    #[inline(always)]
    unsafe fn block<I: Isa, const M: usize>(&self, t: usize) {
        // SAFETY: the caller promises tokens t..t+M; see `multiply_strip`.
        unsafe {
            let x = self.x.begin.add(t * self.x.stride);
            let mut acc = [I::splat(0.0); M];
            for (k, w) in self.strip.chunks_exact(LANES).enumerate() {
                let w = I::load(w.as_ptr());
                for (m, acc) in acc.iter_mut().enumerate() {
                    *acc = I::fma(I::splat(*x.add(m * self.x.stride + k)), w, *acc);
                }
            }
            for (m, acc) in acc.into_iter().enumerate() {
                self.out.put::<I>(t + m, self.rows, acc);
            }
        }
    }
}

impl Kernel for Strip<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let mut t = 0;
        // SAFETY: each call stays below `tokens`.
        unsafe {
            while I::FLOAT_ROWS >= 12 && t + 12 <= self.tokens {
                self.block::<I, 12>(t);
                t += 12;
            }
            while I::FLOAT_ROWS >= 6 && t + 6 <= self.tokens {
                self.block::<I, 6>(t);
                t += 6;
            }
            while t + 2 <= self.tokens {
                self.block::<I, 2>(t);
                t += 2;
            }
            if t < self.tokens {
                self.block::<I, 1>(t);
            }
        }
    }
}

/// Multiplies `tokens` rows of `x` by a strip of up to sixteen weight rows.
///
/// # Safety
/// `x` holds `tokens` rows of `strip.len() / 16` floats; `out` has room for `rows` ≤ 16 floats of each token, which no
/// other thread uses meanwhile.
pub(crate) unsafe fn multiply_strip(
    path: Path,
    strip: &[f32],
    x: Rows,
    out: Output,
    tokens: usize,
    rows: usize,
) {
    // SAFETY: the caller's promise.
    unsafe { isa::run(path, Strip { strip, x, out, tokens, rows }) }
}

/// Lays rows side by side: `strip[k][r] = rows[r][k]`; rows beyond the given ones are zero.
pub(crate) fn lay_strip(rows: &[f32], columns: usize, strip: &mut [f32]) {
    assert!(strip.len() == columns * LANES && rows.len() <= strip.len(), "a strip of {columns} columns");
    let count = rows.len() / columns.max(1);
    // Eight columns at a time: each source row is read a cache line's half at once.
    for (block, out) in strip.chunks_mut(8 * LANES).enumerate() {
        let width = out.len() / LANES;
        for r in 0..LANES {
            if r < count {
                let row = &rows[r * columns + block * 8..][..width];
                for (k, x) in row.iter().enumerate() {
                    out[k * LANES + r] = *x;
                }
            } else {
                for k in 0..width {
                    out[k * LANES + r] = 0.0;
                }
            }
        }
    }
}

struct Dot<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl Kernel for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<I: Isa>(self) -> f32 {
        let n = self.a.len().min(self.b.len());
        let (a, b) = (self.a.as_ptr(), self.b.as_ptr());
        // SAFETY: every load stays below n.
        unsafe {
            let mut acc = [I::splat(0.0); 4];
            let mut k = 0;
            while k + 4 * LANES <= n {
                for (j, acc) in acc.iter_mut().enumerate() {
                    let at = k + j * LANES;
                    *acc = I::fma(I::load(a.add(at)), I::load(b.add(at)), *acc);
                }
                k += 4 * LANES;
            }
            while k < n {
                let m = (n - k).min(LANES);
                acc[0] = I::fma(I::load_first(a.add(k), m), I::load_first(b.add(k), m), acc[0]);
                k += LANES;
            }
            I::sum(I::add(I::add(acc[0], acc[1]), I::add(acc[2], acc[3])))
        }
    }
}

/// Σ aᵢ·bᵢ.
pub(crate) fn dot(path: Path, a: &[f32], b: &[f32]) -> f32 {
    // SAFETY: `Dot` asks nothing of its arguments.
    unsafe { isa::run(path, Dot { a, b }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        })
        .take(n)
        .collect()
    }

    #[test]
    fn strips_and_dots_equal_the_sum_in_double_precision_on_every_path() {
        for path in Path::all() {
            for (tokens, rows, columns) in [(1, 16, 64), (2, 16, 33), (5, 3, 7), (12, 16, 100), (31, 16, 576)]
            {
                let (x, w) = (numbers(tokens * columns, 1), numbers(rows * columns, 2));
                let mut strip = vec![f32::NAN; columns * LANES];
                lay_strip(&w, columns, &mut strip);
                let mut out = vec![f32::NAN; tokens * rows];
                // SAFETY: the sizes above.
                unsafe {
                    let to = Output { begin: out.as_mut_ptr(), stride: rows, accumulate: false };
                    multiply_strip(
                        path,
                        &strip,
                        Rows { begin: x.as_ptr(), stride: columns },
                        to,
                        tokens,
                        rows,
                    );
                }
                for t in 0..tokens {
                    for r in 0..rows {
                        let (x, w) = (&x[t * columns..][..columns], &w[r * columns..][..columns]);
                        let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                        assert!((f64::from(out[t * rows + r]) - exact).abs() < 1e-4, "{path:?} {t} {r}");
                        assert!((f64::from(dot(path, x, w)) - exact).abs() < 1e-4, "{path:?} {t} {r}");
                    }
                }
            }
        }
    }
}
