//! Finding where a weight lies, and checking that it fits.

use std::sync::Arc;

use drophammer_formats::{DType, Source, TensorInfo};
use serde_json::Value as Json;

use super::adapter::Delta;
use super::packed::{self, Packing};
use super::stored::{Plain, Stored, Transposed};
use super::weight::RopeOrder;
use crate::description::Description;
use crate::error::{Error, Result};
use crate::names::hugging_face::RENAMES;
use crate::names::{Cut, Names, Place, Rows, rows};
use crate::weight::{Part, Role, WeightId};

/// Where a weight lies. Inside, vectors have one number per row, so that cuts and orders work on them too.
#[derive(Debug)]
pub(super) struct Located {
    /// Canonical dimensions.
    pub(super) shape: Vec<u64>,
    /// Inner rows, over all pieces.
    pub(super) rows: u64,
    /// Inner columns.
    pub(super) columns: u64,
    /// Equal parts, end to end: one, or one per expert or matrix.
    pub(super) pieces: Vec<Piece>,
    /// Orders of rotated rows, the last wanted first.
    pub(super) orders: Vec<RopeOrder>,
    /// Added to every number: 1 where a norm stores its gain minus one.
    pub(super) offset: f32,
    /// Adapters.
    pub(super) deltas: Vec<Delta>,
    /// Whether the pieces are an adapter's.
    pub(super) replaced: bool,
    /// What every row (of vectors, every number) is multiplied by, in the order wanted.
    pub(super) row_factors: Option<Vec<f32>>,
    /// What every column is multiplied by.
    pub(super) column_factors: Option<Vec<f32>>,
    /// How many neighbouring rows are mixed with each other, after factors; 1 for none.
    pub(super) mixed_rows: usize,
    /// The same for columns.
    pub(super) mixed_columns: usize,
    /// Subtracted from every row, last of all.
    pub(super) common: Option<Arc<[f32]>>,
    /// The source's names for it, one per piece where pieces have their own; for adapters and messages.
    pub(super) modules: Vec<String>,
    /// Which part of the tensor it is.
    pub(super) place: Place,
}

/// A part of a weight: rows of one matrix.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) stored: Arc<dyn Stored>,
    pub(super) matrix: u64,
    pub(super) rows: Rows,
}

/// Looks weights up in a source.
pub(super) struct Locator<'a> {
    source: &'a Source,
    tables: &'a [Names],
    rename: (&'static str, &'static str),
    packing: Packing,
    norm_offset: f32,
}

impl<'a> Locator<'a> {
    pub(super) fn new(
        source: &'a Source,
        tables: &'a [Names],
        config: &'a Json,
        norm_offset: f32,
    ) -> Result<Self> {
        let packing = Packing::new(source, config)?;
        let mut locator = Self { source, tables, rename: ("", ""), packing, norm_offset };
        let embedding = Role::TokenEmbedding.global();
        let found = RENAMES.iter().find(|&&rename| {
            locator.rename = rename;
            locator.exists(embedding)
        });
        locator.rename = found.copied().unwrap_or_default();
        Ok(locator)
    }

    /// Whether the source has it under any name.
    pub(super) fn exists(&self, id: WeightId) -> bool {
        self.places(id).any(|place| self.has(place, id))
    }

    fn places(&self, id: WeightId) -> impl Iterator<Item = &'a Place> {
        self.tables
            .iter()
            .flat_map(|table| table.iter())
            .filter(move |(role, _)| *role == id.role)
            .map(|(_, place)| place)
    }

    fn module(&self, place: &Place, layer: Option<u32>, expert: u64) -> String {
        let name = place.module(layer, expert);
        let (old, new) = self.rename;
        match name.strip_prefix(old) {
            Some(rest) => format!("{new}{rest}"),
            None => name,
        }
    }

    /// The tensor's name. BERT's first releases call a norm's gain and bias otherwise.
    fn tensor_name(&self, module: &str, place: &Place, part: Part) -> String {
        let old = match part {
            Part::Weight => ".gamma",
            Part::Bias => ".beta",
        };
        let name = format!("{module}{}", place.suffix(part));
        let old = format!("{module}{old}");
        if self.source.tensor(&name).is_none() && self.source.tensor(&old).is_some() { old } else { name }
    }

    fn has(&self, place: &Place, id: WeightId) -> bool {
        let module = self.module(place, id.layer, 0);
        self.source.tensor(&self.tensor_name(&module, place, id.part)).is_some()
            || (id.part == Part::Weight && self.packing.find(self.source, &module, place.exact).is_some())
    }

    /// Where weight `id` of canonical `shape` lies.
    pub(super) fn locate(&self, id: WeightId, shape: &[u64], description: &Description) -> Result<Located> {
        let mut misfit = None;
        for place in self.places(id).filter(|place| self.has(place, id)) {
            match self.try_place(id, place, shape, description) {
                Ok(located) => return Ok(located),
                Err(error) => misfit = misfit.or(Some(error)),
            }
        }
        Err(misfit.unwrap_or_else(|| {
            let name = self.places(id).next().map_or_else(
                || id.to_string(),
                |place| self.tensor_name(&self.module(place, id.layer, 0), place, id.part),
            );
            Error::MissingTensor { id, name }
        }))
    }

    fn try_place(
        &self,
        id: WeightId,
        place: &Place,
        shape: &[u64],
        description: &Description,
    ) -> Result<Located> {
        let (rows_all, columns) = if id.is_vector() {
            (shape.iter().product(), 1)
        } else {
            shape.split_last().map_or((1, 1), |(columns, outer)| (outer.iter().product(), *columns))
        };
        let count = if place.is_per_expert() { shape.first().copied().unwrap_or(1) } else { 1 };
        let modules: Vec<String> = (0..count).map(|expert| self.module(place, id.layer, expert)).collect();
        let mut pieces = Vec::with_capacity(modules.len());
        for module in &modules {
            let stored = self.stored(id, place, module)?;
            let [matrices, height, width] = stored.extent();
            let parts = count * matrices;
            // A cut weight's rows are counted per matrix where a tensor stacks several.
            let per_piece = if parts > 0 && rows_all % parts == 0 { rows_all / parts } else { rows_all };
            let cut = rows(place.cut, id, per_piece, description);
            let fits =
                |cut: &Rows| parts > 0 && rows_all % parts == 0 && cut.total == height && width == columns;
            let Some(cut) = cut.filter(fits) else {
                return Err(self.misfit(id, place, module, shape, cut));
            };
            pieces.extend((0..matrices).map(|matrix| Piece {
                stored: Arc::clone(&stored),
                matrix,
                rows: cut,
            }));
        }
        let offset = if is_residual_norm(id) { self.norm_offset } else { 0.0 };
        Ok(Located {
            shape: shape.to_vec(),
            rows: rows_all,
            columns,
            pieces,
            orders: Vec::new(),
            offset,
            deltas: Vec::new(),
            replaced: false,
            row_factors: None,
            column_factors: None,
            mixed_rows: 1,
            mixed_columns: 1,
            common: None,
            modules,
            place: *place,
        })
    }

    fn stored(&self, id: WeightId, place: &Place, module: &str) -> Result<Arc<dyn Stored>> {
        if id.part == Part::Weight
            && !id.is_vector()
            && let Some(found) = self.packing.find(self.source, module, place.exact)
        {
            return packed::open(self.source, found, module);
        }
        let name = self.tensor_name(module, place, id.part);
        let tensor =
            self.source.tensor(&name).ok_or_else(|| Error::MissingTensor { id, name: name.clone() })?;
        if drophammer_quant::codec(tensor.dtype).is_none() {
            return Err(Error::Tensor { problem: undecodable(tensor), name });
        }
        if id.is_vector() && tensor.dtype.block_elements() != 1 {
            return Err(Error::Tensor {
                name,
                problem: format!("is stored as {}, but it is a vector", tensor.dtype),
            });
        }
        let mut plain = Plain::new(tensor, id.is_vector());
        if place.transposed && !id.is_vector() {
            return Ok(Arc::new(Transposed(Box::new(plain))));
        }
        if place.cut == Cut::Whole {
            plain.flatten();
        }
        Ok(Arc::new(plain))
    }

    fn misfit(&self, id: WeightId, place: &Place, module: &str, shape: &[u64], cut: Option<Rows>) -> Error {
        let name = format!("{module}{}", place.suffix(id.part));
        let found = self.source.tensor(&name).map(|tensor| tensor.shape.clone()).unwrap_or_default();
        let mut expected = shape.to_vec();
        if place.is_per_expert() {
            expected.remove(0);
        }
        if let Some(cut) = cut
            && place.cut != Cut::Whole
        {
            let rows = expected.len().saturating_sub(if id.is_vector() { 1 } else { 2 });
            if let Some(height) = expected.get_mut(rows) {
                *height = cut.total;
            }
        }
        if place.transposed && !id.is_vector() {
            expected.reverse();
        }
        Error::Shape { name, found, expected }
    }
}

/// Norms of the residual stream and of heads: those whose gain some families store minus one.
fn is_residual_norm(id: WeightId) -> bool {
    id.part == Part::Weight
        && id.is_vector()
        && !matches!(id.role, Role::AttentionSinks | Role::RouterCorrection)
}

fn undecodable(tensor: &TensorInfo) -> String {
    match tensor.dtype {
        DType::U8 | DType::I8 | DType::I32 | DType::U32 => {
            format!("holds {} numbers without the scales that would give them a meaning", tensor.dtype)
        }
        _ => format!("is stored as {}, which weights are not read from", tensor.dtype),
    }
}
