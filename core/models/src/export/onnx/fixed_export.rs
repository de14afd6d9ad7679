//! A model as graphs of fixed shapes over the same weights: of a decoder one for a chunk of a prompt and one for a single token, of an
//! encoder one for each length.

use drophammer_formats::layout::Layout;
use drophammer_formats::onnx::{self, InitializerData, Model};
use drophammer_quant::pass::{Item, PassError};

use super::emit::{Emitted, Emitter};
use super::fixed::{Fixed, Halves, Interface, Weights};
use super::qdq::{self, Range, Ranges};
use super::scheme::{Scheme, Storage};
use super::watch;
use super::weights::{Importances, Inputs, Matrix, Part};
use crate::builder::{build_decoder, build_encoder};
use crate::checkpoint::Checkpoint;
use crate::description::{Description, ModelKind};
use crate::error::{Error, Result};
use crate::weight::Role;

/// A vocabulary that is enough to ask about.
const FEW_TOKENS: u32 = 256;

/// The file with the graphs' weights.
const DATA: &str = "weights";

/// How many tokens go through which graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The graph's file, without `.onnx`.
    pub stem: &'static str,
    /// Tokens at a time.
    pub tokens: u32,
}

/// What is to be seen of a graph's values while it runs.
#[derive(Debug, Default)]
pub struct Watched {
    /// Values whose ranges and mean squares are needed.
    pub values: Vec<String>,
    /// Those of them that are sums and only computed with: neither moved nor given away.
    pub sums: Vec<String>,
    /// What whole matrices, and none of a stack, are multiplied with.
    pub factors: Vec<String>,
    /// Values whose rows' products are needed, and how many numbers a row has.
    pub multiplied: Vec<(String, usize)>,
}

/// Graphs to ask a compiler about.
#[derive(Debug)]
pub struct Question {
    /// A graph for each step, and how large their file of weights is.
    pub layout: Layout,
    /// How many of the model's layers they have.
    pub layers: usize,
    /// How many there are.
    pub of: usize,
}

/// A model's fixed graphs.
#[derive(Debug)]
pub struct FixedExport<'a> {
    checkpoint: &'a Checkpoint,
    weights: Weights,
    graphs: Vec<(Step, Emitted)>,
}

impl<'a> FixedExport<'a> {
    /// Emits one graph for each step, a decoder's each with `past` places of cache. `halves` stay floats, and so do matrices that they are
    /// multiplied with. Reads headers, norms and biases; where tables become whole numbers, tables.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for what the form does not express; those of reading weights.
    pub fn new(
        checkpoint: &'a Checkpoint,
        steps: &[Step],
        past: u32,
        weights: Weights,
        halves: &Halves,
    ) -> Result<Self> {
        Self::of(checkpoint, checkpoint.description(), steps, past, (weights, halves), None)
    }

    fn of(
        checkpoint: &'a Checkpoint,
        description: &Description,
        steps: &[Step],
        past: u32,
        (weights, halves): (Weights, &Halves),
        assumed: Option<Range>,
    ) -> Result<Self> {
        let unsupported = |what: &str| {
            Err(Error::Unsupported { family: checkpoint.family().name.to_owned(), what: what.to_owned() })
        };
        let encoder = description.kind == ModelKind::Encoder;
        if !encoder && description.head.is_none() {
            return unsupported("a decoder without logits in graphs of fixed shapes");
        }
        let past = if encoder { 0 } else { past };
        let longest = steps.iter().map(|step| step.tokens).max().unwrap_or(1).saturating_add(past);
        if let Some(threshold) = description.ropes.iter().filter_map(crate::rope::Rope::threshold).min() {
            // A table is chosen when the graph is made: it must be the right one for every length.
            if longest > threshold && past >= threshold {
                return unsupported(&format!(
                    "a context of {past} tokens, where rotations change beyond {threshold}, in graphs of fixed shapes"
                ));
            }
        }
        let scheme = Scheme { storage: Storage::Float(drophammer_formats::DType::F32) };
        let emit = |step: &Step| -> Result<(Step, Emitted)> {
            let fixed = Fixed { assumed, ..Fixed::new(step.tokens, past, weights, halves) };
            let mut emitter = Emitter::new(checkpoint, description, scheme).fix(fixed);
            let output = if encoder {
                build_encoder(&mut emitter, description)?
            } else {
                build_decoder(&mut emitter, description)?
            };
            Ok((*step, emitter.finish(output)))
        };
        let graphs = steps.iter().map(emit).collect::<Result<_>>()?;
        Ok(Self { checkpoint, weights, graphs })
    }

    /// Graphs of which a compiler can be asked what it takes before there is an artifact: of the first layers, up to one of each kind,
    /// with few tokens in the vocabulary, and with ranges that nobody measured. Their weights are in nobody's file: any bytes will do.
    ///
    /// # Errors
    /// As for [`FixedExport::new`]; sizes that no file holds.
    pub fn question(
        checkpoint: &'a Checkpoint,
        steps: &[Step],
        past: u32,
        weights: Weights,
    ) -> Result<Question> {
        let mut description = checkpoint.description().clone();
        let of = description.layers.len();
        let is_new = |number: &usize| {
            let (before, layer) = (&description.layers[..*number], &description.layers[*number]);
            !before.contains(layer)
        };
        let layers = (0..of).filter(is_new).max().map_or(0, |last| last + 1);
        description.layers.truncate(layers);
        description.vocabulary = description.vocabulary.min(FEW_TOKENS);
        let range = Range { low: -1.0, high: 1.0 };
        let export = Self::of(checkpoint, &description, steps, past, (weights, &Halves::new()), Some(range))?;
        let values = export
            .graphs
            .iter()
            .flat_map(|(_, emitted)| watch::coded(&emitted.model.graph, &emitted.hints.floats));
        let ranges: Ranges = values.map(|value| (value, range)).collect();
        let layout = export.layout(Some(&ranges)).map_err(|fault| Error::Unsupported {
            family: checkpoint.family().name.to_owned(),
            what: fault.to_string(),
        })?;
        Ok(Question { layout, layers, of })
    }

    /// What the graphs take and give.
    pub fn interface(&self) -> Interface {
        self.graphs.first().map(|(_, emitted)| emitted.interface.clone()).unwrap_or_default()
    }

    /// What is to be seen of the first graph's values, so that activations become whole numbers and rounded matrices, where `weights`
    /// has any, make up for their errors.
    pub fn watched(&self, weights: Weights) -> Watched {
        let Some((_, emitted)) = self.graphs.first() else { return Watched::default() };
        let mut multiplied: Vec<(String, usize)> = Vec::new();
        for matrix in emitted.matrices.iter().filter(|matrix| weights.rounds(matrix.id.role)) {
            let Some(value) = emitted.read_by(matrix) else { continue };
            if multiplied.iter().all(|(known, _)| known != value) {
                multiplied.push((value.clone(), matrix.columns as usize));
            }
        }
        let elsewhere = emitted.matrices.iter().filter(|matrix| !matches!(matrix.part, Part::Whole));
        let elsewhere: Vec<&String> = elsewhere.filter_map(|matrix| emitted.read_by(matrix)).collect();
        let factors = multiplied.iter().map(|(value, _)| value).filter(|value| !elsewhere.contains(value));
        Watched {
            values: watch::coded(&emitted.model.graph, &emitted.hints.floats),
            sums: watch::sums(&emitted.model.graph),
            factors: factors.cloned().collect(),
            multiplied,
        }
    }

    /// The name of the last hidden states in the first graph: what the head is multiplied with.
    pub fn last_hidden(&self) -> Option<&str> {
        let (_, emitted) = self.graphs.first()?;
        emitted.reads.get(&(Role::Head.global(), Part::Whole)).map(String::as_str)
    }

    /// Every byte's place: a file of weights, and a graph for each step. With `ranges` activations become whole numbers as well.
    ///
    /// # Errors
    /// Sizes that no file holds; a value whose range `ranges` does not tell.
    pub fn layout(&self, ranges: Option<&Ranges>) -> Result<Layout, drophammer_formats::Fault> {
        let mut layout: Option<Layout> = None;
        for (step, emitted) in &self.graphs {
            let quantized = match (self.weights, ranges) {
                (Weights::Whole { activations, .. }, Some(ranges)) => {
                    let model = qdq::quantized(&emitted.model, activations, ranges, &emitted.hints);
                    Some(model.map_err(|value| drophammer_formats::Fault::Metadata {
                        key: value,
                        problem: "its range is not known".into(),
                    })?)
                }
                _ => None,
            };
            let mut model = quantized.unwrap_or_else(|| emitted.model.clone());
            if let Some(whole) = &mut layout {
                refer(&mut model, &emitted.external, whole);
                let side = onnx::plan(step.stem, &model, &[])?;
                whole.side_files.extend(side.side_files);
            } else {
                let mut first = onnx::plan(DATA, &model, &emitted.external)?;
                name(&mut first, step.stem);
                layout = Some(first);
            }
        }
        Ok(layout.unwrap_or_default())
    }

    /// The work of a pass over [`FixedExport::layout`]. Rounded matrices whose inputs are known make up for their errors.
    ///
    /// # Errors
    /// [`PassError`], for importance of another model.
    pub fn items(&self, importances: &Importances, inputs: &Inputs) -> Result<Vec<Item<'a>>, PassError> {
        let Some((_, emitted)) = self.graphs.first() else { return Ok(Vec::new()) };
        let products = |matrix: &Matrix| {
            let rounded = self.weights.rounds(matrix.id.role);
            inputs.get(emitted.read_by(matrix).filter(|_| rounded)?).cloned()
        };
        let matrices = emitted.matrices.iter();
        matrices.map(|matrix| matrix.item(self.checkpoint, importances, products(matrix))).collect()
    }

    /// How many matrices are stored in which way.
    pub fn types(&self) -> std::collections::BTreeMap<String, u64> {
        let mut types = std::collections::BTreeMap::new();
        for matrix in self.graphs.first().iter().flat_map(|(_, emitted)| &emitted.matrices) {
            *types.entry(matrix.storage.to_string()).or_default() += matrix.count();
        }
        types
    }
}

/// Gives the graph of a layout its own name; the file of weights keeps its.
fn name(layout: &mut Layout, stem: &str) {
    if let Some((file, _)) = layout.side_files.first_mut() {
        *file = format!("{stem}.onnx");
    }
}

/// Points a further graph to the weights of the first.
fn refer(model: &mut Model, external: &[usize], first: &Layout) {
    for (index, place) in external.iter().zip(&first.places) {
        let file = first.files.get(place.file).map(|file| file.name.clone());
        if let (Some(tensor), Some(location)) = (model.graph.initializers.get_mut(*index), file) {
            tensor.data =
                InitializerData::External { location, offset: place.offset, length: Some(place.len) };
        }
    }
}
