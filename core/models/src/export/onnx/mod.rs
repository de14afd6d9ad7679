//! ONNX models from any source: a decoder as onnxruntime-genai takes it, an encoder as transformers' exporters name it.
//!
//! [`OnnxExport`] emits the graph once and knows which rows fill its external data; nothing but norms and biases is held in
//! memory. Matrices are stored as a [`Scheme`] says. Activations and caches are float32.
//!
//! One emitter has two forms. The open one above takes any number of tokens and uses ONNX Runtime's own operators. The fixed one
//! ([`FixedExport`]) is for compilers: standard operators, fixed shapes, caches as plain inputs and outputs, and whole numbers for
//! activations too where ranges are known.

mod emit;
mod experts;
mod fixed;
mod fixed_export;
mod genai;
mod matrices;
mod operations;
mod qdq;
mod scheme;
mod watch;
mod weights;

use drophammer_formats::layout::Layout;
use drophammer_formats::onnx;
use drophammer_quant::pass::{Item, PassError};

use crate::builder::{build_decoder, build_encoder};
use crate::checkpoint::Checkpoint;
use crate::description::ModelKind;
use crate::error::Result;
use emit::Emitter;
pub use fixed::{COMMON, Cache, Halves, Interface, Mask, Rotation, Weights};
pub use fixed_export::{FixedExport, Question, Step, Watched};
pub use qdq::{Encoding, Range, Ranges};
pub use scheme::{SCHEMES, Scheme, Storage, scheme};
pub use watch::{WATCH_HIGH, WATCH_LOW, watch};
use weights::{Alias, Matrix};
pub use weights::{Importances, Inputs};

/// The file that runtimes open.
pub const FILE: &str = "model.onnx";

/// A model on its way into an ONNX file.
#[derive(Debug)]
pub struct OnnxExport {
    checkpoint: Checkpoint,
    scheme: Scheme,
    model: onnx::Model,
    /// Initializers whose data lie in the data file, by their index in the graph.
    external: Vec<usize>,
    matrices: Vec<Matrix>,
    aliases: Vec<Alias>,
    notes: Vec<String>,
    shares_buffers: bool,
}

impl OnnxExport {
    /// Emits the graph and lists its matrices. Reads headers, norms and biases.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) for what no operator expresses; those of reading weights.
    pub fn new(checkpoint: Checkpoint, scheme: Scheme) -> Result<Self> {
        let description = checkpoint.description();
        let mut emitter = Emitter::new(&checkpoint, description, scheme);
        let output = match description.kind {
            ModelKind::Decoder => build_decoder(&mut emitter, description)?,
            ModelKind::Encoder => build_encoder(&mut emitter, description)?,
        };
        let emitted = emitter.finish(output);
        Ok(Self {
            scheme,
            model: emitted.model,
            external: emitted.external,
            matrices: emitted.matrices,
            aliases: emitted.aliases,
            notes: emitted.notes,
            shares_buffers: emitted.shares_buffers,
            checkpoint,
        })
    }

    /// The model.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// What the user should know: matrices stored otherwise than asked for, and why.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Every byte's place, with `genai_config.json` for decoders that write logits.
    ///
    /// # Errors
    /// Sizes that no file holds.
    pub fn layout(&self) -> Result<Layout, drophammer_formats::Fault> {
        let stem = FILE.trim_end_matches(".onnx");
        let first = onnx::plan(stem, &self.model, &self.external)?;
        let mut model = self.model.clone();
        for alias in &self.aliases {
            let (Some(place), Some(tensor)) =
                (first.places.get(alias.of), model.graph.initializers.get_mut(alias.initializer))
            else {
                continue;
            };
            tensor.data = onnx::InitializerData::External {
                location: format!("{FILE}.data"),
                offset: place.offset,
                length: Some(place.len),
            };
        }
        let mut layout = onnx::plan(stem, &model, &self.external)?;
        if let Some(config) = genai::config(&self.checkpoint, self.shares_buffers) {
            layout.side_files.push(("genai_config.json".into(), config));
        }
        Ok(layout)
    }

    /// The graph's file with matrices as inputs: enough to ask which operations somebody would take.
    ///
    /// # Errors
    /// A graph that no file holds.
    pub fn bare(&self) -> Result<Vec<u8>, drophammer_formats::Fault> {
        let mut model = self.model.clone();
        let filled = self.external.iter().copied().chain(self.aliases.iter().map(|alias| alias.initializer));
        let filled: std::collections::HashSet<usize> = filled.collect();
        let mut number = 0;
        let graph = &mut model.graph;
        graph.initializers.retain(|tensor| {
            let keep = !filled.contains(&number);
            if !keep {
                let shape = tensor.shape.iter().map(|size| onnx::Dimension::Fixed(*size as i64));
                graph.inputs.push(onnx::ValueInfo {
                    name: tensor.name.clone(),
                    element_type: Some(tensor.element_type),
                    shape: Some(shape.collect()),
                });
            }
            number += 1;
            keep
        });
        let layout = onnx::plan("model", &model, &[])?;
        Ok(layout.side_files.into_iter().next().map(|(_, bytes)| bytes).unwrap_or_default())
    }

    /// The work of a pass over [`OnnxExport::layout`].
    ///
    /// # Errors
    /// [`PassError`], for importance of another model.
    pub fn items(&self, importances: &Importances) -> Result<Vec<Item<'_>>, PassError> {
        self.matrices.iter().map(|matrix| matrix.item(&self.checkpoint, importances, None)).collect()
    }

    /// How matrices are stored.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// How many matrices are stored in which way.
    pub fn types(&self) -> std::collections::BTreeMap<String, u64> {
        let mut types = std::collections::BTreeMap::new();
        for matrix in &self.matrices {
            *types.entry(matrix.storage.to_string()).or_default() += matrix.count();
        }
        types
    }
}
