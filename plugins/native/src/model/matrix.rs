//! Weights as the executor holds them: matrices in place in the mapped file, vectors as floats.
#![allow(unsafe_code)] // views into a mapping that the view itself keeps alive

use std::any::Any;
use std::sync::Arc;

use drophammer_formats::DType;
use drophammer_models::{Checkpoint, WeightId};
use drophammer_quant::Codec;

use crate::kernels::tile::{self, Cut, Takes, Tiles};
use crate::kernels::{LANES, Path, rows};
use crate::memory::Arena;

/// Bytes that live as long as what they were borrowed from.
#[derive(Clone)]
pub(crate) struct Bytes {
    begin: *const u8,
    len: usize,
    #[allow(dead_code)] // held, not read
    owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: read-only bytes whose owner, itself `Send` and `Sync`, is held.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// What `bytes` chooses from `owner`.
    pub(crate) fn of<T: Any + Send + Sync>(owner: &Arc<T>, bytes: impl FnOnce(&T) -> &[u8]) -> Self {
        let slice = bytes(owner);
        Self {
            begin: slice.as_ptr(),
            len: slice.len(),
            owner: Arc::clone(owner) as Arc<dyn Any + Send + Sync>,
        }
    }

    /// `len` bytes from `begin`, or `None` where there are not so many.
    pub(crate) fn part(&self, begin: usize, len: usize) -> Option<Self> {
        (begin <= self.len && len <= self.len - begin).then(|| Self {
            begin: self.begin.wrapping_add(begin),
            len,
            owner: Arc::clone(&self.owner),
        })
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::of(&Arc::new(bytes), |bytes| bytes)
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: made from a slice of the owner, which is alive and whose bytes do not move or change.
        unsafe { std::slice::from_raw_parts(self.begin, self.len) }
    }
}

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

    /// How the matrix would be laid out in tiles, where its type has them.
    pub(crate) fn cut(&self) -> Option<Cut> {
        match &self.form {
            Form::Stored { dtype, .. } => Cut::of(*dtype, self.rows, self.columns),
            Form::Decoded { .. } => None,
        }
    }

    /// Lays the matrix out in tiles, on several threads; `false` where it cannot be.
    pub(crate) fn tile(&mut self, arena: &mut Arena, threads: usize) -> bool {
        let Some(cut) = self.cut() else { return false };
        let Form::Stored { dtype, bytes, row_bytes, .. } = &self.form else { return false };
        let Some(mut tiles) = Tiles::new(cut, arena) else { return false };
        let (strip_bytes, columns) = (tiles.strip_bytes(), self.columns);
        let strips = self.rows.div_ceil(LANES);
        let each = strips.div_ceil(threads.max(1)).max(1);
        std::thread::scope(|scope| {
            for (i, part) in tiles.bytes_mut().chunks_mut(each * strip_bytes).enumerate() {
                let stored = &bytes[(i * each * LANES * row_bytes).min(bytes.len())..];
                scope.spawn(move || {
                    let strips = part.chunks_exact_mut(strip_bytes).zip(stored.chunks(LANES * row_bytes));
                    for (strip, rows) in strips {
                        tile::lay_strip(*dtype, columns, rows.chunks_exact(*row_bytes), strip);
                    }
                });
            }
        });
        self.tiles = Some(tiles);
        true
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

    /// What the matrix is multiplied by.
    pub(crate) fn takes(&self) -> Takes {
        self.tiles().map_or(Takes::Floats, Tiles::takes)
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
