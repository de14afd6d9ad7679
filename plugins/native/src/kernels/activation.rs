//! Activations as integers: what integer products multiply by.
//!
//! Every 32 columns of a row get their own scale. Codes have sixteen bits where instructions multiply words (AVX2, NEON), and
//! eight where they multiply bytes (VNNI, `dotprod`). Eight bits would do for the size of a product, not for answers:
//! SmolLM2-135M's normalized rows have outlying channels, and with 8 bits per 32 columns its logits move by up to 2 and "The
//! capital of France is Paris." (0.09 ahead in the exact logits) becomes another answer. The damage is done where an outlier
//! makes the scale of its 31 neighbours coarse. So blocks that are large beside the rest of their row (see [`REFINED`]) are
//! *refined*: what rounding left over gets codes of its own, and is multiplied as well.
//!
//! Rows come in *panels* of a few tokens, with the words that a step multiplies by of each token side by side, as the products
//! broadcast them. Of sixteen bits the first and the third of every four columns make a word, then the second and the fourth;
//! of eight bits all four. Residuals lie after all codes of their panel, since few are read.
//!
//! ```text
//! panel: [columns/32][steps][tokens of a panel]   scales, refined: [columns/32][tokens]   sums: [columns/16][tokens]
//! ```

use super::isa::{self, Isa, Kernel, LANES, Path};
use super::tile::BLOCK;

/// A block is refined if its largest magnitude is more than so many times that of a usual block of its row.
const REFINED: f32 = 2.0;

/// Largest magnitude of a code of thirteen bits.
const WORD_LIMIT: f32 = 4095.0;

/// Steps of a residual's code in one of the code itself: a remainder of half a step becomes the largest byte.
pub(crate) const RESIDUAL: f32 = 254.0;

/// Blocks without a larger magnitude count as zeros: the inverse of their scale would overflow.
const NOTHING: f32 = 1e-30;

/// Tokens of the widest panel on any path.
pub(crate) const WIDEST_PANEL: usize = 12;

/// Tokens of a panel when there are `tokens` in all.
pub(crate) fn panel_of(path: Path, tokens: usize) -> usize {
    match path {
        #[cfg(target_arch = "x86_64")]
        Path::Avx512 => match tokens {
            0 | 1 => 1,
            2 => 2,
            3 | 4 => 4,
            5..=8 => 8,
            _ => 12,
        },
        // As even as it goes: 8 tokens are two panels of 4, not 6 and 2.
        _ if tokens > 1 => tokens.div_ceil(tokens.div_ceil(6)).next_multiple_of(2),
        _ => 1,
    }
}

/// Evaluates an expression with `$M` standing for the width of a panel, of those that [`panel_of`] chooses for more than one token.
macro_rules! with_panel {
    ($I:ident, $panel:expr, $M:ident => $then:expr) => {{
        macro_rules! arm {
            ($width:literal) => {{
                const $M: usize = $width;
                $then
            }};
        }
        let wide = $I::FLOAT_ROWS >= 12;
        match $panel {
            2 => arm!(2),
            4 => arm!(4),
            6 if !wide => arm!(6),
            8 if wide => arm!(8),
            12 if wide => arm!(12),
            other => unreachable!("a panel of {other} tokens"),
        }
    }};
}
pub(crate) use with_panel;

/// Room for quantized rows: enough for a number of tokens and columns, used for any fewer.
pub(crate) struct Quantized {
    codes: Vec<u32>,
    scales: Vec<f32>,
    sums: Vec<i32>,
    refined: Vec<bool>,
}

/// Where the room begins, as threads share it.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    codes: *mut u32,
    scales: *mut f32,
    sums: *mut i32,
    refined: *mut bool,
    /// Rows times blocks of 32 columns.
    blocks: usize,
}

// SAFETY: threads write different rows and read them after a barrier.
unsafe impl Sync for Room {}
// SAFETY: as above.
unsafe impl Send for Room {}

/// Quantized rows of one matrix.
#[derive(Clone, Copy)]
pub(crate) struct Panels {
    pub(crate) codes: *mut u32,
    pub(crate) scales: *mut f32,
    /// Sums of the codes of every 16 columns, then of residuals.
    pub(crate) sums: *mut i32,
    /// Which blocks have residuals.
    pub(crate) refined: *mut bool,
    pub(crate) tokens: usize,
    pub(crate) panel: usize,
    pub(crate) columns: usize,
}

impl Quantized {
    pub(crate) fn new(tokens: usize, columns: usize) -> Self {
        let blocks = tokens.next_multiple_of(WIDEST_PANEL) * columns.div_ceil(BLOCK);
        Self {
            codes: vec![0; blocks * BLOCK / 2],
            scales: vec![0.0; blocks],
            sums: vec![0; blocks * 4],
            refined: vec![false; blocks],
        }
    }

    /// The room, to be shared.
    pub(crate) fn room(&mut self) -> Room {
        Room {
            codes: self.codes.as_mut_ptr(),
            scales: self.scales.as_mut_ptr(),
            sums: self.sums.as_mut_ptr(),
            refined: self.refined.as_mut_ptr(),
            blocks: self.scales.len(),
        }
    }
}

impl Room {
    /// Places for `tokens` rows of `columns` (a multiple of 32).
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn panels(&self, path: Path, tokens: usize, columns: usize) -> Panels {
        let panel = panel_of(path, tokens);
        assert!(
            columns.is_multiple_of(BLOCK)
                && tokens.next_multiple_of(panel) * (columns / BLOCK) <= self.blocks
        );
        let Room { codes, scales, sums, refined, .. } = *self;
        Panels { codes, scales, sums, refined, tokens, panel, columns }
    }
}

impl Panels {
    /// Rows, those that fill the last panel up included.
    pub(crate) fn rows(&self) -> usize {
        self.tokens.next_multiple_of(self.panel)
    }

    /// How many panels there are.
    pub(crate) fn count(&self) -> usize {
        self.tokens.div_ceil(self.panel)
    }

    /// Panel `index` alone.
    pub(crate) fn at(&self, index: usize) -> Self {
        let (panel, columns) = (self.panel, self.columns);
        Self {
            codes: self.codes.wrapping_add(index * panel * columns / 2),
            scales: self.scales.wrapping_add(index * panel * columns / BLOCK),
            sums: self.sums.wrapping_add(index * panel * columns / BLOCK * 4),
            refined: self.refined.wrapping_add(index * panel * columns / BLOCK),
            tokens: self.panel.min(self.tokens - index * panel),
            ..*self
        }
    }

    /// Quantizes one row into its place; rows beyond the tokens, which fill the last panel up, become zero.
    ///
    /// # Safety
    /// `row` is below the panels' rows, no other thread writes it, and `x` has as many columns.
    pub(crate) unsafe fn quantize(&self, path: Path, row: usize, x: Option<&[f32]>) {
        let panel = self.at(row / self.panel);
        let row = Row::<false> { panel, token: row % self.panel, x };
        // SAFETY: the caller's promise.
        unsafe { isa::run(path, row) }
    }

    /// The same to thirteen bits, which products with words of sixteen take: every 32 columns have a scale, and no residuals.
    ///
    /// # Safety
    /// As for [`Panels::quantize`].
    pub(crate) unsafe fn quantize_words(&self, path: Path, row: usize, x: Option<&[f32]>) {
        let panel = self.at(row / self.panel);
        let row = Row::<true> { panel, token: row % self.panel, x };
        // SAFETY: the caller's promise.
        unsafe { isa::run(path, row) }
    }
}

/// A row's place in its panel. `WORDS`: codes of thirteen bits in words of sixteen, whatever the path; otherwise what
/// [`Isa::activations`] makes.
struct Row<'a, const WORDS: bool> {
    panel: Panels,
    token: usize,
    x: Option<&'a [f32]>,
}

impl Kernel for Row<'_, true> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Panels { codes, scales, panel, columns, .. } = self.panel;
        // SAFETY: this token's places inside the panel; `x` holds `columns` floats, a multiple of 32.
        unsafe {
            for block in 0..columns / BLOCK {
                let [low, high] = self.block::<I>(block);
                let largest = I::largest(I::max(I::abs(low), I::abs(high)));
                *scales.add(block * panel + self.token) = largest / WORD_LIMIT;
                let inverse = I::splat(if largest > NOTHING { WORD_LIMIT / largest } else { 0.0 });
                let words = I::words([I::round(I::mul(low, inverse)), I::round(I::mul(high, inverse))]);
                for (step, word) in words.iter().enumerate() {
                    *codes.add((block * words.len() + step) * panel + self.token) = *word;
                }
            }
        }
    }
}

impl Kernel for Row<'_, false> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Panels { scales, refined, panel, columns, .. } = self.panel;
        let blocks = columns / BLOCK;
        // SAFETY: this token's places inside the panel; `x` holds `columns` floats, a multiple of 32.
        unsafe {
            let (scales, refined) = (scales.add(self.token), refined.add(self.token));
            for block in 0..blocks {
                let [low, high] = self.block::<I>(block);
                *scales.add(block * panel) = I::largest(I::max(I::abs(low), I::abs(high)));
            }
            let limit = if I::BYTES {
                REFINED * usual((0..blocks).map(|b| *scales.add(b * panel)))
            } else {
                f32::INFINITY
            };
            for block in 0..blocks {
                let largest = *scales.add(block * panel);
                *scales.add(block * panel) = largest / I::LIMIT;
                let inverse = I::splat(if largest > NOTHING { I::LIMIT / largest } else { 0.0 });
                let mut x = self.block::<I>(block);
                let mut codes = x;
                for (x, code) in x.iter_mut().zip(&mut codes) {
                    *x = I::mul(*x, inverse);
                    *code = I::round(*x);
                }
                self.put::<I>(block, codes);
                *refined.add(block * panel) = largest > limit;
                if largest > limit {
                    for (x, code) in x.iter_mut().zip(codes) {
                        *x = I::round(I::mul(I::sub(*x, code), I::splat(RESIDUAL)));
                    }
                    self.put::<I>(blocks + block, x);
                }
            }
        }
    }
}

impl<const WORDS: bool> Row<'_, WORDS> {
    /// 32 columns; zeros for a row that fills a panel up.
    ///
    /// # Safety
    /// The block is inside the row.
    #[inline(always)]
    unsafe fn block<I: Isa>(&self, block: usize) -> [I::F; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            match self.x {
                Some(x) => {
                    let x = x.as_ptr().add(block * BLOCK);
                    [I::load(x), I::load(x.add(LANES))]
                }
                None => [I::splat(0.0); 2],
            }
        }
    }

    /// Writes the codes of a block, or after all blocks of a residual, and their sums.
    ///
    /// # Safety
    /// The panel has room for it.
    #[inline(always)]
    unsafe fn put<I: Isa>(&self, block: usize, x: [I::F; 2]) {
        let Panels { codes, sums, panel, .. } = self.panel;
        // SAFETY: the caller's promise.
        unsafe {
            for (half, x) in x.into_iter().enumerate() {
                // Sixteen numbers of sixteen bits: floats hold their sum exactly.
                *sums.add((2 * block + half) * panel + self.token) = I::sum(x) as i32;
            }
            for (step, word) in I::activations(x).iter().take(I::STEPS).enumerate() {
                *codes.add((block * I::STEPS + step) * panel + self.token) = *word;
            }
        }
    }
}

/// The largest magnitude of a usual block: the mean, when those above the mean of all are left out.
fn usual(largest: impl Iterator<Item = f32> + Clone) -> f32 {
    let mean = |of: &mut dyn Iterator<Item = f32>| {
        let (sum, count) = of.fold((0.0, 0.0), |(sum, count), x| (sum + x, count + 1.0));
        sum / f32::max(count, 1.0)
    };
    let all = mean(&mut largest.clone());
    mean(&mut largest.filter(|x| *x <= all))
}

/// What codes and residuals of a row stand for.
#[cfg(test)]
pub(crate) fn rounded(path: Path, x: &[f32]) -> Vec<f64> {
    let largest = |x: &[f32]| x.iter().fold(0f32, |m, x| m.max(x.abs()));
    let words = !path.takes_bytes();
    let limit = REFINED * usual(x.chunks(BLOCK).map(largest));
    let block = |x: &[f32]| {
        let (largest, most) = (largest(x), if words { 32767.0 } else { 127.0 });
        let refined = !words && largest > limit;
        let one = move |x: f32| {
            let x = x * (most / largest);
            let code = x.round_ties_even();
            let rest = if refined { ((x - code) * RESIDUAL).round_ties_even() } else { 0.0 };
            (f64::from(code) + f64::from(rest) / f64::from(RESIDUAL)) * f64::from(largest / most)
        };
        x.iter().map(|x| one(*x)).collect::<Vec<_>>()
    };
    x.chunks(BLOCK).flat_map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outlier_costs_its_neighbours_no_precision() {
        let mut x: Vec<f32> = (0..320).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        x[40] = 200.0;
        for path in Path::all() {
            for (x, rounded) in x.iter().zip(rounded(path, &x)) {
                let error = (f64::from(*x) - rounded).abs();
                assert!(error <= 1.0 / 254.0 + 1e-6, "{path:?}: {x} became {rounded}");
            }
        }
    }

    #[test]
    fn outliers_do_not_make_a_block_usual() {
        assert_eq!(usual([1.0, 1.0, 1.0, 1000.0].into_iter()), 1.0);
        assert_eq!(usual([2.0; 5].into_iter()), 2.0);
        assert_eq!(usual(std::iter::empty()), 0.0);
    }
}
