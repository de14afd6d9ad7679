//! LoRA adapters (Hu et al., 2021) of published models as GGUF adapters.
//!
//! `W + scale · B · A` stays a product: `A` is copied, `B` is scaled and its rows are put into the order that the GGUF file
//! has them in. A matrix that was trained as a whole becomes the product of its difference and the identity.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use drophammer_forge::failure;
use drophammer_formats::gguf::{self, Metadata};
use drophammer_formats::{DType, Source, SourceKind, TensorDecl};
use drophammer_models::names::{self, Cut, Names};
use drophammer_models::{Checkpoint, LowRank, Role, WeightId};
use drophammer_sdk::{BackendError, ErrorCode, Result};

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
    let tensors = convert(path, source, checkpoint)?;
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

/// What the adapter holds for each weight, under the weight's name in the model's file.
fn convert(path: &Path, adapter: Source, base: &Checkpoint) -> Result<Tensors> {
    let in_model = |error| failure::of_model(path, &error);
    let adapted = Checkpoint::new(Arc::clone(base.source())).and_then(|base| base.with_adapter(adapter));
    let adapted = adapted.map_err(in_model)?;
    let mut tensors = Tensors::new();
    for weight in adapted.weights() {
        let id = weight.id;
        let weight = adapted.weight(id).map_err(in_model)?;
        let products = if weight.is_replaced() {
            if id.is_vector() {
                return Err(refused(path, &format!("{id} was trained as a whole, which can only be merged")));
            }
            let (mut after, before) =
                (weight.to_vec().map_err(in_model)?, base.weight(id).and_then(|w| w.to_vec()));
            after.iter_mut().zip(before.map_err(in_model)?).for_each(|(after, before)| *after -= before);
            let columns = weight.columns() as usize;
            let mut identity = vec![0.0; columns * columns];
            (0..columns).for_each(|at| identity[at * columns + at] = 1.0);
            vec![LowRank { rank: columns, down: identity, up: after }]
        } else {
            let products = weight.low_ranks().map_err(in_model)?;
            products.ok_or_else(|| refused(path, &format!("adapters of {id} can only be merged")))?
        };
        for LowRank { rank, down, up } in products {
            if id.role == Role::TokenEmbedding {
                return Err(refused(path, "adapters of the token embedding can only be merged"));
            }
            let name = gguf_name(base, id).ok_or_else(|| {
                refused(path, &format!("{id} lies among others in this file: it cannot have an adapter"))
            })?;
            let rank = rank as u64;
            for (half, numbers, shape) in
                [("a", down, [rank, weight.columns()]), ("b", up, [weight.rows(), rank])]
            {
                if drophammer_quant::first_non_finite(&numbers).is_some() {
                    return Err(refused(path, &format!("its matrices for {id} hold NaN or infinity")));
                }
                let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
                tensors.push((TensorDecl::new(format!("{name}.lora_{half}"), DType::F32, shape), bytes));
            }
        }
    }
    if tensors.is_empty() {
        return Err(refused(path, "holds no matrices"));
    }
    Ok(tensors)
}

/// The weight's own tensor in the model's file; `None` where it shares one with others.
fn gguf_name(checkpoint: &Checkpoint, id: WeightId) -> Option<String> {
    let family = checkpoint.family().gguf?;
    let tables: [Names; 2] = [(family.names)(checkpoint.description()), names::gguf::NAMES];
    let places = tables.iter().flat_map(|table| table.iter()).filter(|(role, _)| *role == id.role);
    places
        .filter(|(_, place)| place.cut == Cut::Whole)
        .map(|(_, place)| format!("{}{}", place.module(id.layer, 0), place.suffix(id.part)))
        .find(|name| checkpoint.source().tensor(name).is_some())
}
