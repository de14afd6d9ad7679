//! Activations in eight bits: what integer products multiply by.
//!
//! Every 32 columns of a row get their own scale, the largest magnitude / 127. Rows come in *panels* of a few tokens, with
//! four columns of each token side by side, as the products broadcast them:
//!
//! ```text
//! panel: [columns/4][tokens of a panel][4 bytes]   scales: [columns/32][tokens]   sums: [columns/16][tokens]
//! ```

use super::isa::{self, Isa, Kernel, LANES, Path};
use super::tile::BLOCK;

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
        _ => tokens.clamp(1, 3),
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
        Self { codes: vec![0; blocks * BLOCK / 4], scales: vec![0.0; blocks], sums: vec![0; blocks * 2] }
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
            codes: self.codes.wrapping_add(index * panel * columns / 4),
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
                let mut bytes = [0i8; BLOCK];
                let mut scale = 0.0;
                if let Some(x) = self.x {
                    let x = x.as_ptr().add(block * BLOCK);
                    let (a, b) = (I::load(x), I::load(x.add(LANES)));
                    let largest = I::largest(I::max(I::abs(a), I::abs(b)));
                    scale = largest / 127.0;
                    let inverse = I::splat(if largest > 0.0 { 127.0 / largest } else { 0.0 });
                    I::store_signed_bytes(bytes.as_mut_ptr(), I::mul(a, inverse));
                    I::store_signed_bytes(bytes.as_mut_ptr().add(LANES), I::mul(b, inverse));
                }
                *scales.add(block * panel) = scale;
                for (half, bytes) in bytes.chunks_exact(LANES).enumerate() {
                    let sum: i32 = bytes.iter().map(|b| i32::from(*b)).sum();
                    *sums.add((2 * block + half) * panel) = sum;
                }
                for (c, bytes) in bytes.chunks_exact(4).enumerate() {
                    let word =
                        u32::from_le_bytes([bytes[0] as u8, bytes[1] as u8, bytes[2] as u8, bytes[3] as u8]);
                    *codes.add((8 * block + c) * panel) = word;
                }
            }
        }
    }
}
