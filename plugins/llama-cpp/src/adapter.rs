//! Hugging Face's LoRA adapters (Hu et al., 2021) as GGUF adapters.
//!
//! `W + scale · B · A` stays a product: `A` is copied, `B` is scaled and its rows are put into the order that the GGUF file
//! has them in. A matrix that was trained as a whole becomes the product of its difference and the identity.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use drophammer_forge::failure;
use drophammer_formats::gguf::{self, Metadata};
use drophammer_formats::{DType, Source, SourceKind, TensorDecl, TensorInfo};
use drophammer_models::description::Description;
use drophammer_models::names::hugging_face::RENAMES;
use drophammer_models::names::{self, Cut, Names, Place};
use drophammer_models::rope::RopeLayout;
use drophammer_models::{Checkpoint, Part, Role, WeightId};
use drophammer_sdk::{BackendError, ErrorCode, Result};
use serde_json::Value as Json;

use crate::check::Checked;

/// An adapter that the library can read; a converted one is removed with this.
pub(crate) enum File {
    Given(PathBuf),
    Converted(PathBuf),
}

impl File {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Given(path) | Self::Converted(path) => path,
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if let Self::Converted(path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// An adapter as a GGUF file, checked by our own parsers.
///
/// # Errors
/// For damaged files, variants that GGUF cannot tell, and adapters of other models.
pub(crate) fn as_gguf(path: &Path, model: &Checked, cache: &Path) -> Result<File> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let source = Source::open(path).map_err(|error| failure::of_source(&error))?;
    if source.kind() == SourceKind::Gguf {
        if source.metadata().str("general.type") != Some("adapter") {
            return Err(refused(path, "not an adapter, though a GGUF file"));
        }
        return Ok(File::Given(path.to_owned()));
    }
    let Some(checkpoint) = &model.checkpoint else {
        let what = format!("adapters of {} can only be attached as GGUF files", model.architecture);
        return Err(refused(path, &what));
    };
    std::fs::create_dir_all(cache).map_err(|error| {
        BackendError::new(ErrorCode::Failed, format!("{}: {error}", cache.display()))
            .with_help("Make the home's cache writable.")
    })?;
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let target = cache.join(format!("adapter-{}-{number}.gguf", std::process::id()));
    let file = File::Converted(target.clone());
    let converter = Converter { path, adapter: &source, checkpoint, used: RefCell::default() };
    let tensors = converter.convert()?;
    let mut metadata = Metadata::new();
    metadata.set("general.type", "adapter".to_owned());
    metadata.set("general.architecture", model.architecture.clone());
    metadata.set("adapter.type", "lora".to_owned());
    // The scales are in the matrices: zero tells the library to add none.
    metadata.set("adapter.lora.alpha", 0.0_f32);
    let tensors: Vec<(TensorDecl, &[u8])> =
        tensors.iter().map(|(decl, bytes)| (decl.clone(), bytes.as_slice())).collect();
    gguf::write(&target, &metadata, &tensors).map_err(|error| failure::of_source(&error))?;
    Ok(file)
}

fn refused(path: &Path, what: &str) -> BackendError {
    BackendError::new(ErrorCode::UnsupportedInput, format!("{}: {what}", path.display()))
        .with_help("Choose an adapter of this very model, or merge it when the model is converted.")
}

type Tensors = Vec<(TensorDecl, Vec<u8>)>;

struct Converter<'a> {
    path: &'a Path,
    adapter: &'a Source,
    checkpoint: &'a Checkpoint,
    /// Tensors of the adapter that went into something.
    used: RefCell<HashSet<&'a str>>,
}

/// A matrix of floats, row after row.
struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

impl<'a> Converter<'a> {
    fn convert(&self) -> Result<Tensors> {
        let config = self.adapter.config().cloned().unwrap_or(Json::Null);
        let kind = config.get("peft_type").and_then(Json::as_str).unwrap_or("LORA");
        if !kind.eq_ignore_ascii_case("lora") || config.get("use_dora") == Some(&Json::Bool(true)) {
            return Err(refused(self.path, "only plain LoRA adapters can be attached"));
        }
        let mut tensors = Tensors::new();
        let checkpoint = self.checkpoint;
        let matrices = checkpoint.weights().iter().map(|weight| weight.id);
        for id in matrices.filter(|id| id.part == Part::Weight && !id.is_vector() && !id.role.is_stacked()) {
            self.weight(id, &config, &mut tensors)?;
        }
        let unused =
            self.adapter.tensors().iter().find(|tensor| !self.used.borrow().contains(tensor.name.as_str()));
        match unused {
            None if tensors.is_empty() => Err(refused(self.path, "holds no matrices")),
            None => Ok(tensors),
            Some(tensor) => Err(refused(
                self.path,
                &format!("tensor `{}` belongs to no matrix of this model", tensor.name),
            )),
        }
    }

    /// What the adapter holds for one weight, under the weight's name in the model's file.
    fn weight(&self, id: WeightId, config: &Json, tensors: &mut Tensors) -> Result<()> {
        let description = self.checkpoint.description();
        let Some(place) = self.published(id) else { return Ok(()) };
        let weight = self.checkpoint.weight(id).map_err(|error| failure::of_model(self.path, &error))?;
        let (rows, columns) = (weight.rows() as usize, weight.columns() as usize);
        let Some(name) = self.gguf_name(id) else {
            return Err(refused(
                self.path,
                &format!("{id} lies among others in this file: it cannot have an adapter"),
            ));
        };
        let Some(cut) = names::rows(place.cut, id, rows as u64, description) else { return Ok(()) };
        // Rows of the file, and where the adapter has them.
        let order = |row: usize| cut.source(self.published_row(id, row as u64, description)) as usize;
        let module = place.module(id.layer, 0);
        let (a, b) = if let Some(whole) = self.matrix(&format!("{module}.weight"))? {
            self.check(&whole, [cut.total as usize, columns], &module)?;
            let mut difference = vec![0.0; rows * columns];
            weight
                .read(0..rows as u64, &mut difference)
                .map_err(|error| failure::of_model(self.path, &error))?;
            for (row, line) in difference.chunks_exact_mut(columns).enumerate() {
                let new = &whole.values[order(row) * columns..][..columns];
                line.iter_mut().zip(new).for_each(|(old, new)| *old = new - *old);
            }
            let mut identity = vec![0.0; columns * columns];
            (0..columns).for_each(|at| identity[at * columns + at] = 1.0);
            (
                Matrix { rows: columns, columns, values: identity },
                Matrix { rows, columns, values: difference },
            )
        } else {
            let Some(a) = self.matrix(&format!("{module}.lora_A.weight"))? else { return Ok(()) };
            let Some(b) = self.matrix(&format!("{module}.lora_B.weight"))? else {
                return Err(refused(self.path, &format!("{module} has a lora_A but no lora_B")));
            };
            self.check(&a, [b.columns, columns], &module)?;
            self.check(&b, [cut.total as usize, a.rows], &module)?;
            let scale = scale(config, &module, a.rows);
            let mut values = Vec::with_capacity(rows * b.columns);
            for row in 0..rows {
                values.extend(
                    b.values[order(row) * b.columns..][..b.columns].iter().map(|value| value * scale),
                );
            }
            (a, Matrix { rows, columns: b.columns, values })
        };
        if id.role == Role::TokenEmbedding {
            return Err(refused(self.path, "adapters of the token embedding can only be merged"));
        }
        for (suffix, matrix) in [("lora_a", a), ("lora_b", b)] {
            let shape = vec![matrix.rows as u64, matrix.columns as u64];
            let bytes = matrix.values.iter().flat_map(|value| value.to_le_bytes()).collect();
            tensors.push((TensorDecl::new(format!("{name}.{suffix}"), DType::F32, shape), bytes));
        }
        Ok(())
    }

    /// Where the published checkpoint has a weight, if the adapter holds something for it.
    fn published(&self, id: WeightId) -> Option<Place> {
        let tables = self.checkpoint.family().names;
        let places = tables.iter().flat_map(|table| table.iter()).filter(|(role, _)| *role == id.role);
        places.map(|(_, place)| *place).find(|place| {
            let module = place.module(id.layer, 0);
            !place.is_per_expert()
                && ["lora_A.weight", "weight"]
                    .iter()
                    .any(|part| self.find(&format!("{module}.{part}")).is_some())
        })
    }

    /// The row of the published checkpoint's weight that is the file's row `row`.
    fn published_row(&self, id: WeightId, row: u64, description: &Description) -> u64 {
        let layer = id.layer.and_then(|layer| description.layers.get(layer as usize));
        let rope = layer.and_then(|layer| description.ropes.get(layer.attention.rope?));
        let (Some(layer), Some(rope)) = (layer, rope) else { return row };
        let moved = matches!(id.role, Role::Query | Role::Key)
            && layer.attention.latent.is_none()
            && rope.layout == RopeLayout::Pairs
            && self.checkpoint.published_layout() == Some(RopeLayout::Halves);
        let (width, start) = (u64::from(rope.width), u64::from(rope.start));
        let head = row % u64::from(layer.attention.key_width.max(1));
        match head.checked_sub(start).filter(|&turned| moved && turned < width) {
            Some(turned) => row - turned + turned % 2 * (width / 2) + turned / 2,
            None => row,
        }
    }

    /// The weight's own tensor in the model's file; `None` where it shares one with others.
    fn gguf_name(&self, id: WeightId) -> Option<String> {
        let family = self.checkpoint.family().gguf?;
        let tables: [Names; 2] = [(family.names)(self.checkpoint.description()), names::gguf::NAMES];
        let places = tables.iter().flat_map(|table| table.iter()).filter(|(role, _)| *role == id.role);
        places
            .filter(|(_, place)| place.cut == Cut::Whole)
            .map(|(_, place)| format!("{}{}", place.module(id.layer, 0), place.suffix(id.part)))
            .find(|name| self.checkpoint.source().tensor(name).is_some())
    }

    /// A tensor of the adapter by its name in the published checkpoint.
    fn find(&self, name: &str) -> Option<&'a TensorInfo> {
        RENAMES.iter().find_map(|(old, new)| {
            let renamed = format!("{new}{}", name.strip_prefix(old)?);
            ["base_model.model.", "base_model.", ""]
                .iter()
                .find_map(|prefix| self.adapter.tensor(&format!("{prefix}{renamed}")))
        })
    }

    /// Its values, noted as used.
    fn matrix(&self, name: &str) -> Result<Option<Matrix>> {
        let Some(tensor) = self.find(name) else { return Ok(None) };
        let unreadable = || refused(self.path, &format!("tensor `{}` is no matrix of floats", tensor.name));
        let [rows, columns] = tensor.shape[..] else { return Err(unreadable()) };
        let mut values = vec![0.0; (rows * columns) as usize];
        let codec = drophammer_quant::codec(tensor.dtype).ok_or_else(unreadable)?;
        codec.decode(self.adapter.bytes(tensor), &mut values);
        if drophammer_quant::first_non_finite(&values).is_some() {
            return Err(refused(self.path, &format!("tensor `{}` holds NaN or infinity", tensor.name)));
        }
        self.used.borrow_mut().insert(&tensor.name);
        Ok(Some(Matrix { rows: rows as usize, columns: columns as usize, values }))
    }

    fn check(&self, matrix: &Matrix, [rows, columns]: [usize; 2], module: &str) -> Result<()> {
        if matrix.rows == rows && matrix.columns == columns {
            return Ok(());
        }
        let found = [matrix.rows, matrix.columns];
        Err(refused(self.path, &format!("{module}: {found:?} where this model needs {:?}", [rows, columns])))
    }
}

/// `alpha / rank`, or `alpha / √rank` where the adapter was trained so.
fn scale(config: &Json, module: &str, rank: usize) -> f32 {
    let pattern = |key: &str| {
        let entries = config.get(key)?.as_object()?;
        let fits = |name: &str| module == name || module.ends_with(&format!(".{name}"));
        let longest =
            entries.iter().filter(|(name, _)| fits(name.as_str())).max_by_key(|(name, _)| name.len());
        longest?.1.as_f64()
    };
    let rank = rank as f64;
    let alpha = pattern("alpha_pattern").or_else(|| config.get("lora_alpha")?.as_f64()).unwrap_or(rank);
    let root = config.get("use_rslora") == Some(&Json::Bool(true));
    (if root { alpha / rank.sqrt() } else { alpha / rank }) as f32
}
