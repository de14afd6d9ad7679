//! Activations as integers: what integer products multiply by.
//!
//! Every 32 columns of a row get their own scale. Codes have sixteen bits where instructions multiply words (NEON), and
//! eight where they multiply bytes (AVX2, VNNI, `dotprod`). Eight bits would do for the size of a product, not for answers:
//! SmolLM2-135M's normalized rows have outlying channels, and with 8 bits per 32 columns its logits move by up to 2 and "The
//! capital of France is Paris." (0.09 ahead in the exact logits) becomes another answer. The damage is done where an outlier
//! makes the scale of its 31 neighbours coarse. So numbers that are large beside the rest of their row (see `OUTLYING`) are
//! set apart as [`Outlier`]s: they get no code and are multiplied as the floats that they are. About one in a hundred is.
//!
//! Rows come in *panels* of a few tokens, in words that products broadcast, one for each step and token (see [`strides`]). Of
//! sixteen bits the first and the third of every four columns make a word, then the second and the fourth; of eight bits all four.
//!
//! ```text
//! panel: [columns/32][tokens of a panel, steps]   scales: [columns/32][tokens]   sums: [columns/16][tokens]
//! ```
//!
//! Weights that have their scales are multiplied by many tokens without any, as bfloat16 by tiles of AMX, as floats by vectors:
//!
//! ```text
//! panel: [columns/32][16 or 12 tokens][32 columns]
//! ```

mod quantize;

#[cfg(target_arch = "x86_64")]
use quantize::Rounded;
use quantize::Row;
#[cfg(test)]
pub(crate) use quantize::rounded;

use super::isa::{self, Isa, Path};
use super::tile::BLOCK;
use crate::memory::Aligned;

/// At most one number in so many columns is set apart: in rows where more would be, only the largest of them.
const ONE_OUTLIER_IN: usize = 16;

/// Blocks that have one scale for all their codes of thirteen bits.
pub(crate) const WORD_BLOCKS: usize = 2;

/// Tokens of the widest panel of codes on any path.
pub(crate) const WIDEST_PANEL: usize = 6;

/// Tokens of the panels that tiles of AMX take.
pub(crate) const TILED_PANEL: usize = 16;

/// Tokens of the panels that are multiplied as floats.
pub(crate) const FLOAT_PANEL: usize = 12;

/// So many tokens are worth laying weights out with their scales. Fewer, as speculation and parallel sequences have them, get the same
/// numbers as one by one.
pub(crate) const MANY_TOKENS: usize = 64;

const _: () = assert!(FLOAT_PANEL.is_multiple_of(WIDEST_PANEL));

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

/// Tokens of a panel of numbers without scales.
pub(crate) fn scaled_panel_of(path: Path) -> usize {
    if path.has_tiles() { TILED_PANEL } else { FLOAT_PANEL }
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
    blocks: usize,
    number: usize,
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
    /// As [`Panels::number`].
    number: usize,
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
    /// Bytes that a number has room in: 2, of floats 4.
    number: usize,
}

impl Quantized {
    pub(crate) fn new(tokens: usize, columns: usize) -> Self {
        let blocks = tokens.next_multiple_of(WIDEST_PANEL) * columns.div_ceil(BLOCK);
        Self {
            codes: Aligned::zeroed(blocks * BLOCK / 2),
            scales: vec![0.0; blocks],
            sums: vec![0; blocks * 2],
            outliers: vec![Outlier::NONE; blocks * (most_outliers(BLOCK) + 1)],
            blocks,
            number: 2,
        }
    }

    /// For [`Panels::put_scaled`].
    pub(crate) fn scaled(path: Path, tokens: usize, columns: usize) -> Self {
        let number = if path.has_tiles() { 2 } else { 4 };
        let blocks = tokens.next_multiple_of(scaled_panel_of(path)) * columns.div_ceil(BLOCK);
        Self {
            codes: Aligned::zeroed(blocks * BLOCK * number / 4),
            scales: Vec::new(),
            sums: Vec::new(),
            outliers: Vec::new(),
            blocks,
            number,
        }
    }

    /// The room, to be shared.
    pub(crate) fn room(&mut self) -> Room {
        Room {
            codes: self.codes.as_mut_ptr(),
            scales: self.scales.as_mut_ptr(),
            sums: self.sums.as_mut_ptr(),
            outliers: self.outliers.as_mut_ptr(),
            blocks: self.blocks,
            number: self.number,
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
        let Room { codes, scales, sums, outliers, number, .. } = *self;
        Panels { codes, scales, sums, outliers, tokens, panel, columns, number }.behind(first)
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
            codes: self.codes.wrapping_add(rows * columns * self.number / 4),
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

    /// Writes one row into its place without scales, as what the path multiplies many tokens as.
    ///
    /// # Safety
    /// As for [`Panels::quantize`]; the room is for such rows.
    pub(crate) unsafe fn put_scaled(&self, path: Path, row: usize, x: Option<&[f32]>) {
        #[cfg(target_arch = "x86_64")]
        if path.has_tiles() {
            // SAFETY: the caller's promise.
            return unsafe { self.round(row, x) };
        }
        let _ = path;
        let panel = self.at(row / FLOAT_PANEL);
        for block in 0..self.columns / BLOCK {
            let to =
                panel.codes.cast::<f32>().wrapping_add((block * FLOAT_PANEL + row % FLOAT_PANEL) * BLOCK);
            // SAFETY: this token's place in the panel; a row has as many columns.
            unsafe {
                match x {
                    Some(x) => to.copy_from_nonoverlapping(x.as_ptr().add(block * BLOCK), BLOCK),
                    None => to.write_bytes(0, BLOCK),
                }
            }
        }
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
