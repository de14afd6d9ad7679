//! Weights as the executor holds them: matrices in place in the mapped file, and beside it as tiles.

use std::sync::Arc;

use drophammer_formats::DType;
use drophammer_models::{Checkpoint, WeightId};
use drophammer_quant::Codec;

use crate::kernels::tile::{self, Cut, Takes, Tiles, fixed};
use crate::kernels::{LANES, Path, rows};
use crate::memory::Bytes;

/// A weight `[rows, columns]`.
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    form: Form,
    tiles: Option<Tiles>,
}

/// How a matrix is held.
enum Form {
    /// Rows of blocks, end to end, as a file stores them.
    Stored { dtype: DType, codec: &'static dyn Codec, bytes: Bytes, row_bytes: usize },
    /// Something that only the checkpoint can decode.
    Decoded { checkpoint: Arc<Checkpoint>, id: WeightId, first_row: usize },
}

impl Matrix {
    /// `None` if the bytes are not those of the shape, or nothing decodes the type.
    pub(crate) fn new(dtype: DType, rows: usize, columns: usize, bytes: Bytes) -> Option<Self> {
        let row_bytes = usize::try_from(dtype.bytes_for(columns as u64)?).ok()?;
        let codec = drophammer_quant::codec(dtype)?;
        if row_bytes.checked_mul(rows)? != bytes.len() {
            return None;
        }
        Some(Self { rows, columns, form: Form::Stored { dtype, codec, bytes, row_bytes }, tiles: None })
    }

    /// Rows `first_row..first_row + rows` of a weight, decoded by its checkpoint whenever they are needed.
    pub(crate) fn decoded(
        checkpoint: Arc<Checkpoint>,
        id: WeightId,
        first_row: usize,
        rows: usize,
        columns: usize,
    ) -> Self {
        Self { rows, columns, form: Form::Decoded { checkpoint, id, first_row }, tiles: None }
    }

    /// How the matrix would be laid out in tiles, where there are such. Those of what only the checkpoint can decode have fourteen bits:
    /// decoding it anew for every token would take far longer than reading so much.
    pub(crate) fn cut(&self) -> Option<Cut> {
        match &self.form {
            Form::Stored { dtype, .. } => Cut::of(*dtype, self.rows, self.columns),
            Form::Decoded { .. } => {
                Cut::of(DType::F16, self.rows, self.columns).filter(|cut| cut.takes() == Takes::Words)
            }
        }
    }

    /// Writes strips of tiles, from the one of this number on, into zeros.
    pub(crate) fn lay(&self, first: usize, strips: &mut [u8]) {
        let Some(cut) = self.cut() else { return };
        let strips = strips.chunks_exact_mut(cut.strip_bytes());
        match &self.form {
            Form::Stored { dtype, bytes, row_bytes, .. } => {
                let stored = &bytes[(first * LANES * row_bytes).min(bytes.len())..];
                for (strip, rows) in strips.zip(stored.chunks(LANES * row_bytes)) {
                    tile::lay_strip(*dtype, self.columns, rows.chunks_exact(*row_bytes), strip);
                }
            }
            Form::Decoded { .. } => {
                let path = Path::chosen();
                for (number, strip) in (first..).zip(strips) {
                    let rows = number * LANES..((number + 1) * LANES).min(self.rows);
                    fixed::lay_floats(self.columns, rows, |row, out| self.decode_row(path, row, out), strip);
                }
            }
        }
    }

    /// Multiplies by what [`Matrix::lay`] wrote from now on.
    pub(crate) fn take_up(&mut self, tiles: Bytes) {
        self.tiles = self.cut().and_then(|cut| Tiles::new(cut, tiles));
    }

    /// The matrix as tiles, where it was laid out so.
    pub(crate) fn tiles(&self) -> Option<&Tiles> {
        self.tiles.as_ref()
    }

    /// Bytes that a product reads. What only the checkpoint can decode counts nothing: how it is packed is its own affair.
    pub(crate) fn bytes(&self) -> usize {
        match (&self.tiles, &self.form) {
            (Some(tiles), _) => tiles.bytes(),
            (None, Form::Stored { bytes, .. }) => bytes.len(),
            (None, Form::Decoded { .. }) => 0,
        }
    }

    /// What the matrix is multiplied by on a path: by `many` tokens, or by few.
    pub(crate) fn takes(&self, path: Path, many: bool) -> Takes {
        self.tiles().map_or(Takes::Floats, |tiles| tiles.takes(path, many))
    }

    /// A row as floats.
    ///
    /// # Panics
    /// If `out` is not as long as a row.
    pub(crate) fn decode_row(&self, path: Path, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.columns);
        match &self.form {
            Form::Stored { dtype, codec, bytes, row_bytes } => {
                let bytes = &bytes[row * row_bytes..][..*row_bytes];
                match dtype {
                    DType::F16 => rows::widen_half(path, bytes, out),
                    DType::BF16 => rows::widen_bfloat(path, bytes, out),
                    _ => codec.decode(bytes, out),
                }
            }
            Form::Decoded { checkpoint, id, first_row } => {
                let row = (first_row + row) as u64;
                let read = checkpoint.weight(*id).and_then(|weight| weight.read(row..row + 1, out));
                if read.is_err() {
                    // Shapes were checked at load: what is left is bytes that decode to nothing.
                    out.fill(f32::NAN);
                }
            }
        }
    }
}
