//! Rows in the forms that matrices are multiplied by.
#![allow(unsafe_code)] // threads write disjoint rows of shared rooms

use std::ops::Range;

use super::matrix::Matrix;
use crate::kernels::Path;
use crate::kernels::activation::{
    MANY_TOKENS, Panels, Quantized, Room, panel_of, scaled_panel_of, word_panel_of,
};
use crate::kernels::tile::Takes;

/// Room for rows in every form that some matrices take.
pub(super) struct Forms {
    codes: Quantized,
    words: Quantized,
    scaled: Quantized,
}

/// Where the rooms begin, as threads share them.
#[derive(Clone, Copy)]
pub(super) struct Rooms {
    codes: Room,
    words: Room,
    scaled: Room,
}

/// Most columns of the matrices that take a form of many rows, or of few; 0 without any.
pub(super) fn widest<'m>(
    path: Path,
    matrices: impl Iterator<Item = &'m Matrix>,
    form: Takes,
    many: bool,
) -> usize {
    let taking = matrices.filter(|matrix| matrix.takes(path, many) == form);
    taking.map(|matrix| matrix.columns).max().unwrap_or(0)
}

impl Forms {
    /// For so many rows at once.
    pub(super) fn new<'m>(
        path: Path,
        rows: usize,
        matrices: impl Iterator<Item = &'m Matrix> + Clone,
    ) -> Self {
        let widest = |form, many| widest(path, matrices.clone(), form, many);
        let scaled = if rows < MANY_TOKENS { 0 } else { widest(Takes::Scaled, true) };
        Self {
            codes: Quantized::new(rows, widest(Takes::Codes, false)),
            words: Quantized::new(rows, widest(Takes::Words, false)),
            scaled: Quantized::scaled(path, rows, scaled),
        }
    }

    /// The rooms, to be shared.
    pub(super) fn rooms(&mut self) -> Rooms {
        Rooms { codes: self.codes.room(), words: self.words.room(), scaled: self.scaled.room() }
    }
}

impl Rooms {
    /// Places for `tokens` rows of `columns`, behind `first` other rows, in each form that matrices take.
    pub(super) fn form(
        &self,
        path: Path,
        first: usize,
        tokens: usize,
        columns: usize,
        takes: impl Fn(Takes) -> bool,
    ) -> Form {
        let panel = if takes(Takes::Codes) { panel_of(tokens) } else { word_panel_of(path, tokens) };
        let places = |form: Takes, room: &Room, panel: usize| {
            takes(form).then(|| room.panels(first, panel, tokens, columns))
        };
        Form {
            codes: places(Takes::Codes, &self.codes, panel),
            words: places(Takes::Words, &self.words, panel),
            scaled: places(Takes::Scaled, &self.scaled, scaled_panel_of(path)),
        }
    }
}

/// Rows as what matrices are multiplied by, beside floats: in each form that any takes.
#[derive(Clone, Copy, Default)]
pub(super) struct Form {
    /// As [`Takes::Codes`].
    pub(super) codes: Option<Panels>,
    /// As [`Takes::Words`].
    pub(super) words: Option<Panels>,
    /// As [`Takes::Scaled`].
    pub(super) scaled: Option<Panels>,
}

impl Form {
    fn all(&self) -> impl Iterator<Item = Panels> {
        [self.codes, self.words, self.scaled].into_iter().flatten()
    }

    /// Rows to put, those that fill last panels up included; none where matrices take floats alone.
    pub(super) fn rows(&self) -> usize {
        self.all().map(|panels| panels.rows()).max().unwrap_or(0)
    }

    /// Tokens of which whole numbers are whole panels of every form.
    pub(super) fn panel(&self) -> usize {
        // Of many tokens panels of codes and words are as wide as they get, which divides those of floats; tiles are alone.
        self.all().map(|panels| panels.panel).max().unwrap_or(1)
    }

    /// The same of some tokens, whole panels but for the last.
    pub(super) fn part(self, tokens: &Range<usize>) -> Self {
        let part = |panels: Panels| panels.part(tokens);
        Self { codes: self.codes.map(part), words: self.words.map(part), scaled: self.scaled.map(part) }
    }

    /// Puts one row in its places.
    ///
    /// # Safety
    /// As for [`Panels::quantize`].
    pub(super) unsafe fn put(&self, path: Path, row: usize, x: Option<&[f32]>) {
        let has = |panels: &Panels| row < panels.rows();
        // SAFETY: the caller's promise.
        unsafe {
            if let Some(codes) = self.codes.filter(has) {
                codes.quantize(path, row, x);
            }
            if let Some(words) = self.words.filter(has) {
                words.quantize_words(path, row, x);
            }
            if let Some(scaled) = self.scaled.filter(has) {
                scaled.put_scaled(path, row, x);
            }
        }
    }
}
