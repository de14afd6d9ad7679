//! Activations as integers: what integer products multiply by.
//!
//! Every 32 columns of a row get their own scale. Codes have sixteen bits where instructions multiply words (NEON), and
//! eight where they multiply bytes (AVX2, VNNI, `dotprod`). Eight bits would do for the size of a product, not for answers:
//! SmolLM2-135M's normalized rows have outlying channels, and with 8 bits per 32 columns its logits move by up to 2 and "The
//! capital of France is Paris." (0.09 ahead in the exact logits) becomes another answer. The damage is done where an outlier
//! makes the scale of its 31 neighbours coarse. So numbers that are large beside the rest of their row (see [`OUTLYING`]) are
//! set apart as [`Outlier`]s: they get no code and are multiplied as the floats that they are. About one in a hundred is.
//!
//! Rows come in *panels* of a few tokens, in words that products broadcast, one for each step and token (see [`strides`]). Of
//! sixteen bits the first and the third of every four columns make a word, then the second and the fourth; of eight bits all four.
//!
//! ```text
//! panel: [columns/32][tokens of a panel, steps]   scales: [columns/32][tokens]   sums: [columns/16][tokens]
//! ```
//!
//! Tiles of AMX multiply many tokens as bfloat16, without scales:
//!
//! ```text
//! panel: [columns/32][16 tokens][32 columns]
//! ```

use super::isa::{self, Isa, Kernel, LANES, Path};
use super::tile::BLOCK;
use crate::memory::Aligned;

/// A number is set apart if its magnitude is more than so many times the largest of a usual block of its row.
const OUTLYING: f32 = 1.5;

/// At most one number in so many columns is: in rows where more would be, only the largest of them.
const ONE_OUTLIER_IN: usize = 16;

/// Largest magnitude of a code of thirteen bits.
const WORD_LIMIT: f32 = 4095.0;

/// Blocks that have one scale for all their codes of thirteen bits.
pub(crate) const WORD_BLOCKS: usize = 2;

/// Blocks without a larger magnitude count as zeros: the inverse of their scale would overflow.
const NOTHING: f32 = 1e-30;

/// Tokens of the widest panel of codes on any path.
pub(crate) const WIDEST_PANEL: usize = 6;

/// Tokens of the panels that tiles of AMX take.
pub(crate) const TILED_PANEL: usize = 16;

/// So many tokens are worth laying weights out as tiles. Fewer, as speculation and parallel sequences have them, get the same
/// numbers as one by one.
pub(crate) const TILED_TOKENS: usize = 64;

/// Tokens of a panel that only words of weights are multiplied by, where registers hold so many sums of one strip.
pub(crate) const WIDE_PANEL: usize = 8;

/// Tokens of a panel of codes of thirteen bits alone, when there are `tokens` in all.
pub(crate) fn word_panel_of(path: Path, tokens: usize) -> usize {
    match tokens {
        // Weights come from memory, not unpacked from the nearest cache: they are read once, not for each of two panels.
        7..=WIDE_PANEL if path.has_wide_panels() => WIDE_PANEL,
        _ => panel_of(tokens),
    }
}

/// Tokens of a panel when there are `tokens` in all.
pub(crate) fn panel_of(tokens: usize) -> usize {
    if tokens <= 1 {
        return 1;
    }
    // As even as it goes: 8 tokens are two panels of 4, not 6 and 2.
    tokens.div_ceil(tokens.div_ceil(WIDEST_PANEL)).next_multiple_of(2)
}

/// Evaluates an expression with `$M` standing for the width of a panel, of those that [`panel_of`] chooses for more than one token.
macro_rules! with_panel {
    ($panel:expr, $M:ident => $then:expr) => {{
        macro_rules! arm {
            ($width:literal) => {{
                const $M: usize = $width;
                $then
            }};
        }
        match $panel {
            2 => arm!(2),
            4 => arm!(4),
            6 => arm!(6),
            other => unreachable!("a panel of {other} tokens"),
        }
    }};
}
pub(crate) use with_panel;

/// A number that stands out of its row.
#[derive(Clone, Copy)]
pub(crate) struct Outlier {
    pub(crate) column: u32,
    pub(crate) value: f32,
}

impl Outlier {
    /// What follows the last of a row.
    const NONE: Self = Self { column: u32::MAX, value: 0.0 };

    /// The block that its column is in; none of a matrix for what follows the last.
    pub(crate) fn block(self) -> usize {
        self.column as usize / BLOCK
    }
}

/// How far apart the words of a block are in a panel: from token to token and from step to step.
///
/// A token's lie together where that is one vector to write. Elsewhere a step's do: paths that need two words in a cycle would
/// find those of two tokens in one bank of the cache.
#[inline(always)]
pub(crate) fn strides<I: Isa>(steps: usize, panel: usize) -> (usize, usize) {
    if I::BYTES { (steps, 1) } else { (1, panel) }
}

/// How many of so many columns can be outliers.
pub(crate) fn most_outliers(columns: usize) -> usize {
    columns / ONE_OUTLIER_IN
}

/// Room for quantized rows: enough for a number of tokens and columns, used for any fewer.
pub(crate) struct Quantized {
    codes: Aligned<u32>,
    scales: Vec<f32>,
    sums: Vec<i32>,
    outliers: Vec<Outlier>,
}

/// Where the room begins, as threads share it.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    codes: *mut u32,
    scales: *mut f32,
    sums: *mut i32,
    outliers: *mut Outlier,
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
    /// Sums of the codes of every 16 columns.
    pub(crate) sums: *mut i32,
    outliers: *mut Outlier,
    pub(crate) tokens: usize,
    pub(crate) panel: usize,
    pub(crate) columns: usize,
}

impl Quantized {
    pub(crate) fn new(tokens: usize, columns: usize) -> Self {
        let rows = tokens.next_multiple_of(WIDEST_PANEL).max(tokens.next_multiple_of(TILED_PANEL));
        let blocks = rows * columns.div_ceil(BLOCK);
        Self {
            codes: Aligned::zeroed(blocks * BLOCK / 2),
            scales: vec![0.0; blocks],
            sums: vec![0; blocks * 2],
            outliers: vec![Outlier::NONE; blocks * (most_outliers(BLOCK) + 1)],
        }
    }

    /// The room, to be shared.
    pub(crate) fn room(&mut self) -> Room {
        Room {
            codes: self.codes.as_mut_ptr(),
            scales: self.scales.as_mut_ptr(),
            sums: self.sums.as_mut_ptr(),
            outliers: self.outliers.as_mut_ptr(),
            blocks: self.scales.len(),
        }
    }
}

impl Room {
    /// Places for `tokens` rows of `columns` (a multiple of 32) in panels of `panel`, behind `first` other rows.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn panels(&self, first: usize, panel: usize, tokens: usize, columns: usize) -> Panels {
        assert!(
            columns.is_multiple_of(BLOCK)
                && (first + tokens.next_multiple_of(panel)) * (columns / BLOCK) <= self.blocks
        );
        let Room { codes, scales, sums, outliers, .. } = *self;
        Panels { codes, scales, sums, outliers, tokens, panel, columns }.behind(first)
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
    #[inline(always)]
    pub(crate) fn at(&self, index: usize) -> Self {
        let first = index * self.panel;
        Self { tokens: self.panel.min(self.tokens.saturating_sub(first)), ..self.behind(first) }
    }

    /// The same behind `rows` rows.
    #[inline(always)]
    fn behind(&self, rows: usize) -> Self {
        let columns = self.columns;
        Self {
            codes: self.codes.wrapping_add(rows * columns / 2),
            scales: self.scales.wrapping_add(rows * columns / BLOCK),
            sums: self.sums.wrapping_add(rows * columns / BLOCK * 2),
            outliers: self.outliers.wrapping_add(rows * (most_outliers(columns) + 1)),
            ..*self
        }
    }

    /// Some tokens alone: whole panels but for the last.
    pub(crate) fn part(&self, tokens: &std::ops::Range<usize>) -> Self {
        Self { tokens: tokens.len(), ..self.at(tokens.start / self.panel) }
    }

    /// The outliers of a token of the first panel, in the order of their columns; behind the last is one of no block.
    pub(crate) fn outliers(&self, token: usize) -> *mut Outlier {
        self.outliers.wrapping_add(token * (most_outliers(self.columns) + 1))
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

    /// The same to thirteen bits, which products with words of sixteen take: every 64 columns have a scale, and nothing is set apart.
    ///
    /// # Safety
    /// As for [`Panels::quantize`].
    pub(crate) unsafe fn quantize_words(&self, path: Path, row: usize, x: Option<&[f32]>) {
        let panel = self.at(row / self.panel);
        let row = Row::<true> { panel, token: row % self.panel, x };
        // SAFETY: the caller's promise.
        unsafe { isa::run(path, row) }
    }

    /// Rounds one row to bfloat16 into its place in a panel for tiles.
    ///
    /// # Safety
    /// As for [`Panels::quantize`]; the processor has tiles.
    #[cfg(target_arch = "x86_64")]
    pub(crate) unsafe fn round(&self, row: usize, x: Option<&[f32]>) {
        let panel = self.at(row / TILED_PANEL);
        // SAFETY: the caller's promise.
        unsafe { isa::run_tiles(Rounded(Row::<false> { panel, token: row % TILED_PANEL, x })) }
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
        let Panels { scales, panel, columns, .. } = self.panel;
        // SAFETY: this token's places inside the panel; `x` holds `columns` floats, a multiple of 32.
        unsafe {
            let blocks = columns / BLOCK;
            for first in (0..blocks).step_by(WORD_BLOCKS) {
                let together = first..(first + WORD_BLOCKS).min(blocks);
                let mut most = 0f32;
                for block in together.clone() {
                    most = most.max(largest::<I>(self.block::<I>(block)));
                }
                let inverse = I::splat(if most > NOTHING { WORD_LIMIT / most } else { 0.0 });
                for block in together {
                    *scales.add(block * panel + self.token) = most / WORD_LIMIT;
                    let [low, high] = self.block::<I>(block);
                    let x = [I::round(I::mul(low, inverse)), I::round(I::mul(high, inverse))];
                    self.put::<I>(block, &I::words(x));
                }
            }
        }
    }
}

/// A row's place in a panel for tiles.
#[cfg(target_arch = "x86_64")]
struct Rounded<'a>(Row<'a, false>);

#[cfg(target_arch = "x86_64")]
impl isa::TileKernel for Rounded<'_> {
    #[inline(always)]
    unsafe fn run<I: isa::amx::Tiled>(self) {
        let Self(row) = self;
        // SAFETY: this token's places inside the panel; `x` holds `columns` floats, a multiple of 32.
        unsafe {
            let to = row.panel.codes.cast::<u8>().add(row.token * isa::amx::ROW);
            for block in 0..row.panel.columns / BLOCK {
                I::store_b(to.add(block * isa::amx::TILE), I::bfloats(row.block::<I>(block)));
            }
        }
    }
}

impl Kernel for Row<'_, false> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Panels { scales, panel, columns, .. } = self.panel;
        let blocks = columns / BLOCK;
        // SAFETY: this token's places inside the panel; `x` holds `columns` floats, a multiple of 32.
        unsafe {
            let scales = scales.add(self.token);
            let mut limit = None;
            loop {
                for block in 0..blocks {
                    *scales.add(block * panel) = largest::<I>(self.block::<I>(block));
                }
                let limit =
                    limit.get_or_insert_with(|| outlying::<I>((0..blocks).map(|b| *scales.add(b * panel))));
                if self.codes::<I>(*limit) {
                    break;
                }
                *limit *= 2.0;
            }
        }
    }
}

/// Numbers of larger magnitude are set apart, by the largest magnitudes of a row's blocks.
#[inline(always)]
fn outlying<I: Isa>(largest: impl Iterator<Item = f32> + Clone) -> f32 {
    if !I::BYTES {
        return f32::INFINITY;
    }
    // Even if hardly anything is usual, doubling comes to an end.
    let top = largest.clone().fold(0.0, |top, x| if x > top { x } else { top });
    let least = (top / 65536.0).max(NOTHING);
    (OUTLYING * usual(largest)).max(least)
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

    /// Writes the words of a block, one for each step.
    ///
    /// # Safety
    /// The block is inside the row.
    #[inline(always)]
    unsafe fn put<I: Isa>(&self, block: usize, words: &[u32]) {
        let (to_token, to_step) = strides::<I>(words.len(), self.panel.panel);
        // SAFETY: the caller's promise.
        unsafe {
            let to = self.panel.codes.add(block * self.panel.panel * words.len() + self.token * to_token);
            for (step, word) in words.iter().enumerate() {
                *to.add(step * to_step) = *word;
            }
        }
    }

    /// Sets numbers above `limit` apart and quantizes the others; where scales will be, there are the largest magnitudes of
    /// blocks. False if too many would be set apart.
    ///
    /// # Safety
    /// This token's places are inside the panel, and the row has as many columns.
    #[inline(always)]
    unsafe fn codes<I: Isa>(&self, limit: f32) -> bool {
        let Panels { scales, sums, panel, columns, .. } = self.panel;
        // SAFETY: the caller's promise.
        unsafe {
            let mut outliers = self.panel.outliers(self.token);
            let full = outliers.add(most_outliers(columns));
            for block in 0..columns / BLOCK {
                let at = block * panel + self.token;
                let mut x = self.block::<I>(block);
                let mut most = *scales.add(at);
                if most > limit {
                    for (half, x) in x.iter_mut().enumerate() {
                        let above = I::above(*x, limit);
                        let mut bits = above;
                        while bits != 0 {
                            if outliers == full {
                                return false;
                            }
                            let column = block * BLOCK + half * LANES + bits.trailing_zeros() as usize;
                            let value = self.x.map_or(0.0, |x| *x.get_unchecked(column));
                            *outliers = Outlier { column: column as u32, value };
                            outliers = outliers.add(1);
                            bits &= bits - 1;
                        }
                        *x = I::replaced(*x, above, 0.0);
                    }
                    most = largest::<I>(x);
                }
                *scales.add(at) = most / I::LIMIT;
                let inverse = I::splat(if most > NOTHING { I::LIMIT / most } else { 0.0 });
                // (Closures that arrays are mapped by are not compiled for the instruction set: they are called, through memory.)
                let x = [I::round(I::mul(x[0], inverse)), I::round(I::mul(x[1], inverse))];
                for (half, sum) in I::sums(x).into_iter().enumerate() {
                    *sums.add((2 * block + half) * panel + self.token) = sum;
                }
                self.put::<I>(block, &I::activations(x)[..I::STEPS]);
            }
            *outliers = Outlier::NONE;
            true
        }
    }
}

/// The largest magnitude of 32 numbers.
///
/// # Safety
/// The processor has the instructions.
#[inline(always)]
unsafe fn largest<I: Isa>([low, high]: [I::F; 2]) -> f32 {
    // SAFETY: the caller's promise.
    unsafe { I::largest(I::max(I::abs(low), I::abs(high))) }
}

/// The largest magnitude of a usual block: the mean, when those above the mean of all are left out.
#[inline(always)]
fn usual(largest: impl Iterator<Item = f32> + Clone) -> f32 {
    let mean = mean_up_to(largest.clone(), f32::INFINITY);
    mean_up_to(largest, mean)
}

/// The mean of those that are not above `limit`. Nothing branches on them: about half are, in no order.
#[inline(always)]
fn mean_up_to(numbers: impl Iterator<Item = f32>, limit: f32) -> f32 {
    let (mut sum, mut count) = (0.0, 0u32);
    for x in numbers {
        sum += if x <= limit { x } else { 0.0 };
        count += u32::from(x <= limit);
    }
    sum / count.max(1) as f32
}

/// What codes and outliers of a row stand for.
#[cfg(test)]
pub(crate) fn rounded(path: Path, x: &[f32]) -> Vec<f64> {
    let largest = |x: &[f32]| x.iter().fold(0f32, |m, x| m.max(x.abs()));
    let mut limit = f32::INFINITY;
    if path.takes_bytes() {
        limit = (OUTLYING * usual(x.chunks(BLOCK).map(largest))).max(largest(x) / 65536.0).max(NOTHING);
        while x.iter().filter(|x| x.abs() > limit).count() > most_outliers(x.len()) {
            limit *= 2.0;
        }
    }
    let block = |x: &[f32]| {
        let most = if path.takes_bytes() { 127.0 } else { 32767.0 };
        let kept: Vec<f32> = x.iter().copied().filter(|x| x.abs() <= limit).collect();
        let largest = largest(&kept).max(NOTHING);
        let one = move |x: f32| {
            let code = (x * (most / largest)).round_ties_even();
            if x.abs() > limit { f64::from(x) } else { f64::from(code) * f64::from(largest / most) }
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
