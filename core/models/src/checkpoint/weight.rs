//! One canonical weight, read by rows.

use std::ops::Range;

use drophammer_formats::{DType, Source, TensorInfo};

use super::adapter::LowRank;
use super::locate::{Located, Piece};
use super::packed::MlxPacking;
use crate::error::{Error, Result};
use crate::hadamard;
use crate::rope::RopeLayout;
use crate::weight::WeightId;

/// A weight of a [`Checkpoint`](super::Checkpoint). Rows are all dimensions but the innermost; a vector is one row.
#[derive(Debug, Clone, Copy)]
pub struct Weight<'a> {
    pub(super) source: &'a Source,
    pub(super) id: WeightId,
    pub(super) located: &'a Located,
    /// Without adapters.
    pub(super) bare: bool,
}

/// The order of rotated rows in heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RopeOrder {
    /// Rows of a head.
    pub(super) head: u32,
    /// Its first rotated row.
    pub(super) start: u32,
    /// How many are rotated.
    pub(super) width: u32,
    /// The order wanted; the other one is there.
    pub(super) to: RopeLayout,
}

impl RopeOrder {
    /// The row in the other order that is `row` in this one.
    pub(super) fn source(self, row: u64) -> u64 {
        let [head, start, width] = [self.head, self.start, self.width].map(u64::from);
        let Some(turned) = (row % head).checked_sub(start).filter(|&turned| turned < width) else {
            return row;
        };
        let from = match self.to {
            RopeLayout::Pairs => turned % 2 * (width / 2) + turned / 2,
            RopeLayout::Halves => turned % (width / 2) * 2 + turned / (width / 2),
        };
        row - turned + from
    }
}

impl Located {
    /// Which piece holds an inner row, and where in the piece's matrix.
    pub(super) fn source_row(&self, row: u64) -> (usize, u64) {
        let row = self.orders.iter().fold(row, |row, order| order.source(row));
        let height = self.rows / self.pieces.len() as u64;
        let piece = (row / height) as usize;
        (piece, self.pieces[piece].rows.source(row % height))
    }

    fn shift(by: f32, out: &mut [f32]) {
        if by != 0.0 {
            for value in out {
                *value += by;
            }
        }
    }

    /// Multiplies rows and columns by their factors, mixes columns, and takes away what rows have in common.
    fn scale(&self, rows: Range<u64>, out: &mut [f32]) {
        let columns = self.columns as usize;
        if let Some(factors) = &self.column_factors {
            for row in out.chunks_exact_mut(columns) {
                row.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
            }
        }
        if self.mixed_columns > 1 {
            hadamard::mix_columns(out, self.mixed_columns);
        }
        if let Some(factors) = &self.row_factors {
            let factors = &factors[rows.start as usize..rows.end as usize];
            for (row, factor) in out.chunks_exact_mut(columns).zip(factors) {
                for value in row {
                    *value *= factor;
                }
            }
        }
        if let Some(common) = &self.common {
            for row in out.chunks_exact_mut(columns) {
                row.iter_mut().zip(common.iter()).for_each(|(value, common)| *value -= common);
            }
        }
    }

    /// Whether its numbers are no longer the source's.
    fn is_changed(&self) -> bool {
        self.row_factors.is_some()
            || self.column_factors.is_some()
            || self.common.is_some()
            || self.mixed_rows.max(self.mixed_columns) > 1
    }

    pub(super) fn reorder(&mut self, order: RopeOrder) {
        // The order applied last is the one a reader asks first.
        self.orders.insert(0, order);
    }
}

impl<'a> Weight<'a> {
    /// Which one it is.
    pub fn id(&self) -> WeightId {
        self.id
    }

    /// Its dimensions, outermost first.
    pub fn shape(&self) -> &'a [u64] {
        &self.located.shape
    }

    /// The product of all dimensions but the innermost.
    pub fn rows(&self) -> u64 {
        self.located.shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }

    /// The innermost dimension.
    pub fn columns(&self) -> u64 {
        self.located.shape.last().copied().unwrap_or(1)
    }

    /// The type that best says how precisely the source stores it.
    pub fn dtype(&self) -> DType {
        self.located.pieces.first().map_or(DType::F32, |piece| piece.stored.dtype())
    }

    /// Reads `rows` as floats; `out` holds exactly these rows.
    ///
    /// # Errors
    /// Rows that do not exist, bytes that cannot be decoded.
    pub fn read(&self, rows: Range<u64>, out: &mut [f32]) -> Result<()> {
        let problem = |problem: String| Error::Weight { id: self.id, problem };
        if rows.end > self.rows() || rows.start > rows.end {
            return Err(problem(format!("rows {rows:?} of {}", self.rows())));
        }
        if out.len() as u64 != (rows.end - rows.start) * self.columns() {
            return Err(problem(format!(
                "room for {} numbers for rows {rows:?} of {}",
                out.len(),
                self.columns()
            )));
        }
        let block = self.located.mixed_rows as u64;
        if block > 1 {
            return self.read_mixed(&rows, block, out);
        }
        self.read_unmixed(rows, out)
    }

    /// Rows of a weight whose rows are mixed: all that are mixed with them are read.
    fn read_mixed(&self, rows: &Range<u64>, block: u64, out: &mut [f32]) -> Result<()> {
        let (inner, unit) = (self.inner(rows), self.columns() / self.located.columns.max(1));
        let (first, end) = (inner.start / block * block, inner.end.next_multiple_of(block));
        let columns = self.located.columns as usize;
        let mut whole = vec![0.0; (end - first) as usize * columns];
        self.read_unmixed(first / unit..end / unit, &mut whole)?;
        hadamard::mix_rows(&mut whole, columns, block as usize);
        out.copy_from_slice(&whole[(inner.start - first) as usize * columns..][..out.len()]);
        Ok(())
    }

    fn read_unmixed(&self, rows: Range<u64>, out: &mut [f32]) -> Result<()> {
        self.read_plain(rows.clone(), out)?;
        Located::shift(self.located.offset, out);
        self.located.scale(self.inner(&rows), out);
        Ok(())
    }

    /// Whether its columns are mixed with each other: what is known of single ones says nothing then.
    pub(crate) fn mixes_columns(&self) -> bool {
        self.located.mixed_columns > 1
    }

    /// [`Weight::read`] without [`Weight::offset`]; `out` must hold exactly these rows.
    pub(crate) fn read_stored(&self, rows: Range<u64>, out: &mut [f32]) -> Result<()> {
        if self.located.row_factors.is_some() || self.located.mixed_rows > 1 {
            self.read(rows, out)?;
            Located::shift(-self.located.offset, out);
            return Ok(());
        }
        self.read_plain(rows.clone(), out)?;
        self.located.scale(self.inner(&rows), out);
        Ok(())
    }

    /// Inside, vectors have one number per row.
    fn inner(&self, rows: &Range<u64>) -> Range<u64> {
        let unit = self.columns() / self.located.columns.max(1);
        rows.start * unit..rows.end * unit
    }

    /// What the source and adapters say.
    fn read_plain(&self, rows: Range<u64>, out: &mut [f32]) -> Result<()> {
        let inner = self.inner(&rows);
        self.read_inner(inner.clone(), out)?;
        if !self.bare {
            for delta in &self.located.deltas {
                delta.add(inner.clone(), self.located, out)?;
            }
        }
        Ok(())
    }

    /// The same weight without what adapters add to it.
    #[must_use]
    pub fn bare(self) -> Self {
        Self { bare: true, ..self }
    }

    /// Whether it is not the source's own but an adapter's, trained as a whole.
    pub fn is_replaced(&self) -> bool {
        self.located.replaced
    }

    /// What adapters add to it, as products of two thin matrices; `None` where one of them has no such form (stacks of
    /// matrices with an adapter each).
    ///
    /// # Errors
    /// Bytes that cannot be decoded.
    pub fn low_ranks(&self) -> Result<Option<Vec<LowRank>>> {
        self.located.deltas.iter().map(|delta| delta.low_rank(self.located)).collect()
    }

    /// What was added to the stored numbers: 1 where a norm stores its gain minus one.
    pub fn offset(&self) -> f32 {
        self.located.offset
    }

    /// The rows as MLX packs them, where the source stores all of them so, in one way. Adapters are left out.
    pub fn mlx(&self) -> Option<MlxRows<'a>> {
        let located = self.located;
        if located.is_changed() {
            return None;
        }
        let packing = located.pieces.first()?.stored.mlx()?.packing();
        let same = |piece: &Piece| piece.stored.mlx().is_some_and(|mlx| mlx.packing() == packing);
        located.pieces.iter().all(same).then_some(MlxRows { source: self.source, located, packing })
    }

    /// All of it as floats: for vectors.
    ///
    /// # Errors
    /// As [`Weight::read`].
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        let mut values = vec![0.0; (self.rows() * self.columns()) as usize];
        self.read(0..self.rows(), &mut values)?;
        Ok(values)
    }

    fn read_inner(&self, rows: Range<u64>, out: &mut [f32]) -> Result<()> {
        let columns = self.located.columns as usize;
        let (mut row, mut out) = (rows.start, out);
        while row < rows.end {
            let (piece, first) = self.located.source_row(row);
            let stored = &self.located.pieces[piece];
            let count = if stored.stored.is_column_major() {
                let (now, rest) = self.read_covering(stored, piece, row..rows.end, out)?;
                out = rest;
                now
            } else {
                let together = |&next: &u64| self.located.source_row(row + next) == (piece, first + next);
                let count = (1..rows.end - row).take_while(together).count() as u64 + 1;
                let (now, rest) = out.split_at_mut(count as usize * columns);
                stored.stored.read(self.source, stored.matrix, first..first + count, now)?;
                out = rest;
                count
            };
            row += count;
        }
        Ok(())
    }

    /// Reads the rows of one piece that `rows` begins with by reading everything between the first and the last of them:
    /// in a column-major matrix neighbours cost next to nothing. Gives how many, and what is left to fill.
    fn read_covering<'o>(
        &self,
        piece: &Piece,
        number: usize,
        rows: Range<u64>,
        out: &'o mut [f32],
    ) -> Result<(u64, &'o mut [f32])> {
        const MOST: usize = 4096;
        let columns = self.located.columns as usize;
        let located = rows.take(MOST).map(|row| self.located.source_row(row));
        let mut sources: Vec<u64> =
            located.take_while(|&(piece, _)| piece == number).map(|(_, row)| row).collect();
        let cover = loop {
            let first = sources.iter().copied().min().unwrap_or(0);
            let end = sources.iter().copied().max().unwrap_or(0) + 1;
            // Rows far apart (a cut through a fused matrix) are read in shorter stretches.
            if end - first <= 4 * sources.len() as u64 + 64 {
                break first..end;
            }
            sources.truncate(sources.len() / 2);
        };
        let mut covered = vec![0.0; (cover.end - cover.start) as usize * columns];
        piece.stored.read(self.source, piece.matrix, cover.clone(), &mut covered)?;
        let (now, rest) = out.split_at_mut(sources.len() * columns);
        for (source, row) in sources.iter().zip(now.chunks_exact_mut(columns)) {
            row.copy_from_slice(&covered[(source - cover.start) as usize * columns..][..columns]);
        }
        Ok((sources.len() as u64, rest))
    }

    /// The source's own bytes of these rows, where it stores them unchanged (perhaps in another order).
    pub fn blocks(&self) -> Option<Blocks<'a>> {
        let located = self.located;
        if located.offset != 0.0 || located.is_changed() || !(self.bare || located.deltas.is_empty()) {
            return None;
        }
        let dtype = self.dtype();
        let plain = |piece: &Piece| piece.stored.plain().is_some_and(|tensor| tensor.dtype == dtype);
        if !located.pieces.iter().all(plain) {
            return None;
        }
        let row_bytes = usize::try_from(dtype.bytes_for(located.columns)?).ok()?;
        Some(Blocks { source: self.source, located, dtype, row_bytes })
    }

    /// Gives the memory pages that reading these rows has mapped back to the system. What lies between them goes too: orders
    /// move rows within a head, and pages that are needed again are mapped again.
    pub fn release_rows(&self, rows: Range<u64>) {
        let unit = self.columns() / self.located.columns.max(1);
        let mut covers: Vec<Option<Range<u64>>> = vec![None; self.located.pieces.len()];
        for row in rows.start * unit..rows.end * unit {
            let (piece, at) = self.located.source_row(row);
            let cover = covers[piece].get_or_insert(at..at + 1);
            *cover = cover.start.min(at)..cover.end.max(at + 1);
        }
        for (piece, cover) in self.located.pieces.iter().zip(covers) {
            let Some(cover) = cover else { continue };
            let plain = piece.stored.plain().filter(|_| !piece.stored.is_column_major());
            let row_bytes = plain.and_then(|tensor| tensor.dtype.bytes_for(self.located.columns));
            if let (Some(tensor), Some(row_bytes)) = (plain, row_bytes) {
                let first = piece.matrix * piece.stored.extent()[1];
                let bytes = (first + cover.start) * row_bytes..(first + cover.end) * row_bytes;
                self.source.release(tensor, bytes);
            } else {
                // Rows of other forms are spread over all of their tensors.
                for tensor in piece.stored.tensors() {
                    self.source.release(tensor, 0..tensor.byte_len());
                }
            }
        }
    }

    /// Tells the system that all of it will be read soon. What is small and lies here and there is read together so, without what
    /// lies around it.
    pub fn prefetch(&self) {
        for piece in &self.located.pieces {
            for tensor in piece.stored.tensors() {
                self.source.prefetch(tensor, 0..tensor.byte_len());
            }
        }
    }

    /// Gives the memory pages that reading the whole weight has mapped back to the system.
    pub fn release(&self) {
        for piece in &self.located.pieces {
            for tensor in piece.stored.tensors() {
                self.source.release(tensor, 0..tensor.byte_len());
            }
        }
    }
}

/// A weight's rows as the source's bytes. For vectors, a row is one number.
#[derive(Debug, Clone, Copy)]
pub struct Blocks<'a> {
    source: &'a Source,
    located: &'a Located,
    dtype: DType,
    row_bytes: usize,
}

impl<'a> Blocks<'a> {
    /// How they are stored.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The bytes of one row; `None` beyond the last.
    pub fn row(&self, row: u64) -> Option<&'a [u8]> {
        if row >= self.located.rows {
            return None;
        }
        let (piece, source_row) = self.located.source_row(row);
        let (bytes, first) = self.piece_bytes(piece)?;
        let begin = usize::try_from(first + source_row).ok()?.checked_mul(self.row_bytes)?;
        bytes.get(begin..begin.checked_add(self.row_bytes)?)
    }

    /// The bytes of all rows, where they lie end to end in the source.
    pub fn contiguous(&self) -> Option<&'a [u8]> {
        self.contiguous_rows(0..self.located.rows)
    }

    /// The bytes of some rows, where they lie end to end in the source.
    pub fn contiguous_rows(&self, rows: Range<u64>) -> Option<&'a [u8]> {
        if !self.located.orders.is_empty() || rows.is_empty() || rows.end > self.located.rows {
            return None;
        }
        let (piece, source_row) = self.located.source_row(rows.start);
        // Without orders a piece's rows ascend, so that nothing lies between rows as far apart as they are many.
        let count = rows.end - rows.start;
        if self.located.source_row(rows.end - 1) != (piece, source_row + (count - 1)) {
            return None;
        }
        let (bytes, first) = self.piece_bytes(piece)?;
        let begin = usize::try_from(first + source_row).ok()?.checked_mul(self.row_bytes)?;
        let len = usize::try_from(count).ok()?.checked_mul(self.row_bytes)?;
        bytes.get(begin..begin.checked_add(len)?)
    }

    /// A piece's tensor's bytes and the row in it where the piece's matrix begins.
    fn piece_bytes(&self, piece: usize) -> Option<(&'a [u8], u64)> {
        let piece = self.located.pieces.get(piece)?;
        let tensor: &TensorInfo = piece.stored.plain()?;
        Some((self.source.bytes(tensor), piece.matrix * piece.stored.extent()[1]))
    }
}

/// A weight's rows as MLX packs them.
#[derive(Debug, Clone, Copy)]
pub struct MlxRows<'a> {
    source: &'a Source,
    located: &'a Located,
    packing: MlxPacking,
}

impl<'a> MlxRows<'a> {
    /// How they are packed.
    pub fn packing(&self) -> MlxPacking {
        self.packing
    }

    /// The bytes of a row's codes, scales and biases (empty where there are none).
    ///
    /// # Errors
    /// Rows that do not exist.
    pub fn row(&self, row: u64) -> Result<[&'a [u8]; 3]> {
        let (piece, source_row) = self.located.source_row(row.min(self.located.rows.saturating_sub(1)));
        let piece = &self.located.pieces[piece];
        match piece.stored.mlx() {
            Some(mlx) => mlx.parts(self.source, piece.matrix, source_row),
            None => Ok([&[]; 3]),
        }
    }
}
