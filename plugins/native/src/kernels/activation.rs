//! Activations in sixteen bits: what integer products multiply by.
//!
//! Every 32 columns of a row get their own scale, the largest magnitude / 32767. Eight bits would do for the size of a
//! product, not for answers: on SmolLM2-135M, whose normalized rows have outlying channels, 8 bits per 32 columns move
//! logits by more than 1 and turn "The capital of France is Paris." (0.09 ahead in the exact logits) into another answer.
//! Sixteen bits move them by thousandths. They cost nothing where products of bytes would have to be widened anyway (AVX2).
//!
//! Rows come in *panels* of a few tokens, with pairs of columns of each token side by side, as the products broadcast
//! them; of every four columns the first and the third make a pair, then the second and the fourth:
//!
//! ```text
//! panel: [columns/2][tokens of a panel][2 × 16 bits]   scales: [columns/32][tokens]   sums: [columns/16][tokens]
//! ```

use super::isa::{self, Isa, Kernel, LANES, Path};
use super::tile::BLOCK;

/// Largest magnitude of a code.
const LIMIT: f32 = 32767.0;

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

/// Room for quantized rows: enough for a number of tokens and columns, used for any fewer.
pub(crate) struct Quantized {
    codes: Vec<u32>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

/// Where the room begins, as threads share it.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    codes: *mut u32,
    scales: *mut f32,
    sums: *mut i32,
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
    pub(crate) tokens: usize,
    pub(crate) panel: usize,
    pub(crate) columns: usize,
}

impl Quantized {
    pub(crate) fn new(tokens: usize, columns: usize) -> Self {
        let blocks = tokens.next_multiple_of(WIDEST_PANEL) * columns.div_ceil(BLOCK);
        Self { codes: vec![0; blocks * BLOCK / 2], scales: vec![0.0; blocks], sums: vec![0; blocks * 2] }
    }

    /// The room, to be shared.
    pub(crate) fn room(&mut self) -> Room {
        Room {
            codes: self.codes.as_mut_ptr(),
            scales: self.scales.as_mut_ptr(),
            sums: self.sums.as_mut_ptr(),
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
        Panels { codes: self.codes, scales: self.scales, sums: self.sums, tokens, panel, columns }
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
            sums: self.sums.wrapping_add(index * panel * columns / BLOCK * 2),
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
        let row = Row { panel, token: row % self.panel, x };
        // SAFETY: the caller's promise.
        unsafe { isa::run(path, row) }
    }
}

struct Row<'a> {
    panel: Panels,
    token: usize,
    x: Option<&'a [f32]>,
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Panels { codes, scales, sums, panel, columns, .. } = self.panel;
        // SAFETY: this token's places inside the panel; `x` holds `columns` floats, a multiple of 32.
        unsafe {
            let (codes, scales, sums) = (codes.add(self.token), scales.add(self.token), sums.add(self.token));
            for block in 0..columns / BLOCK {
                let (mut largest, mut halves) = (0.0, [I::splat(0.0); 2]);
                if let Some(x) = self.x {
                    let x = x.as_ptr().add(block * BLOCK);
                    halves = [I::load(x), I::load(x.add(LANES))];
                    largest = I::largest(I::max(I::abs(halves[0]), I::abs(halves[1])));
                }
                *scales.add(block * panel) = largest / LIMIT;
                let inverse = I::splat(if largest > NOTHING { LIMIT / largest } else { 0.0 });
                for (half, x) in halves.into_iter().enumerate() {
                    let x = I::round(I::mul(x, inverse));
                    // Sixteen numbers of sixteen bits: floats hold their sum exactly.
                    *sums.add((2 * block + half) * panel) = I::sum(x) as i32;
                    let mut pairs = [0u32; LANES / 2];
                    I::store_pairs(pairs.as_mut_ptr(), x);
                    for (c, pair) in pairs.into_iter().enumerate() {
                        *codes.add((16 * block + 8 * half + c) * panel) = pair;
                    }
                }
            }
        }
    }
}
