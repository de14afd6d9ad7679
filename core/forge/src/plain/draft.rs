//! A graph on its way to an artifact.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use drophammer_formats::layout::Layout;
use drophammer_formats::onnx::{
    self, Attribute, ElementType, Graph, Initializer, InitializerData, Model, Node, ValueInfo,
};
use drophammer_formats::{DType, Fault, TensorDecl};
use drophammer_models::export::onnx::watch;
use drophammer_quant::pass::{Item, Output, PassError};
use drophammer_sdk::Goal;

use super::weight::{Channels, Form, INT8, Kept, Made, Rows, Weight, exact};
use super::{FLOAT, PlainGraph, fold, opset, walk};

/// Bytes of weights that are written into the graph's own file: more lie beside it.
const INSIDE_MOST: u64 = 128 << 20;
/// The least that is worth a place of its own beside the graph.
const BESIDE_LEAST: u64 = 1 << 10;
/// The least numbers whose storage is worth a node.
const LEAST: u64 = 64;
/// Initializers by name are part of a graph alone from this version of the format on.
const LEAST_IR: i64 = 7;
/// ONNX Runtime's own operators.
pub(super) const RUNTIME_DOMAIN: &str = "com.microsoft";

/// A graph being changed. What is not changed stays in the original's files.
#[derive(Debug, Clone)]
pub struct Draft<'g> {
    pub(super) graph: &'g PlainGraph,
    pub(super) model: Model,
    /// What initializers of `model` are made from, where they are made.
    pub(super) weights: HashMap<String, Weight>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// Bytes of weights that may lie in the graph's own file.
    pub(super) inside_most: u64,
    /// Codes are those that every processor multiplies exactly.
    pub(super) every_processor: bool,
}

impl<'g> Draft<'g> {
    /// The graph as it is.
    pub fn new(graph: &'g PlainGraph) -> Self {
        let mut model = graph.model().clone();
        let constants: HashSet<&str> =
            graph.model().graph.initializers.iter().map(|tensor| tensor.name.as_str()).collect();
        model.graph.inputs.retain(|input| !constants.contains(input.name.as_str()));
        // What is inferred again needs not be told, and may not be true for long.
        model.graph.value_infos.clear();
        model.ir_version = model.ir_version.max(LEAST_IR);
        Self {
            graph,
            model,
            weights: HashMap::new(),
            notes: Vec::new(),
            inside_most: INSIDE_MOST,
            every_processor: false,
        }
    }

    /// The same with weights in codes that every processor multiplies exactly, as the goal's option `portable` asks; without it they are
    /// those that are fastest on this one.
    ///
    /// # Errors
    /// For an option that is neither true nor false.
    pub fn for_processors(mut self, goal: &Goal) -> drophammer_sdk::Result<Self> {
        self.every_processor = crate::flag(goal, "portable")?;
        Ok(self)
    }

    /// The type of weights' codes that kernels multiply exactly, and their zero.
    pub(super) fn exact_codes(&self) -> (ElementType, u8) {
        exact(self.every_processor)
    }

    /// What becomes of such codes elsewhere.
    pub(super) fn tell_processors(&mut self) {
        if cfg!(target_arch = "x86_64") && self.exact_codes().0 == INT8 {
            self.notes.push(
                "multiplied exactly and fastest by processors with VNNI, as this one: older x86 processors cut large sums off \
                 (option portable=true makes it for all)"
                    .into(),
            );
        }
    }

    /// The same with batch norms and products and sums by channel folded into the convolutions before them.
    #[must_use]
    pub fn folded(mut self) -> Self {
        let folded = fold::fold(&mut self);
        if folded > 0 {
            self.notes.push(format!(
                "{folded} norms, products and sums are folded into the convolutions before them"
            ));
        }
        self.prune();
        self
    }

    /// The same with weights as halves, which are made single again when they are loaded.
    #[must_use]
    pub fn halves(mut self) -> Self {
        let (mut nodes, mut left) = (Vec::new(), 0);
        for index in 0..self.graph.model().graph.initializers.len() {
            let tensor = &self.graph.model().graph.initializers[index];
            if tensor.element_type != FLOAT || tensor.shape.iter().product::<u64>() < LEAST {
                continue;
            }
            let Some(floats) = self.floats(&tensor.name) else { continue };
            if floats.iter().any(|x| !half::f16::from_f32(*x).is_finite()) {
                left += 1;
                continue;
            }
            let name = format!("{}/half", tensor.name);
            self.make(index, &name, ElementType(10), Channels { count: 1, inner: 1 }, Form::Halves);
            nodes.push(Node {
                name: format!("{name}/single"),
                op_type: "Cast".into(),
                inputs: vec![name],
                outputs: vec![tensor.name.clone()],
                attributes: vec![("to".into(), Attribute::Int(FLOAT.0.into()))],
                ..Node::default()
            });
        }
        let replaced: HashSet<&str> =
            nodes.iter().flat_map(|node| &node.outputs).map(String::as_str).collect();
        self.model.graph.initializers.retain(|tensor| !replaced.contains(tensor.name.as_str()));
        self.notes.push(format!(
            "{} weights are stored as float16 and computed with as float32{}",
            nodes.len(),
            if left > 0 { format!("; {left} hold numbers beyond float16 and stay") } else { String::new() }
        ));
        self.model.graph.nodes.splice(0..0, nodes);
        self
    }

    /// The graph.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The same with every value that a node makes among the outputs, so that a runtime tells their types.
    #[must_use]
    pub fn exposed(mut self) -> Self {
        let graph = &mut self.model.graph;
        let known: HashSet<String> = graph.outputs.iter().map(|output| output.name.clone()).collect();
        let values = graph.nodes.iter().flat_map(|node| &node.outputs);
        let untold = values.filter(|name| !name.is_empty() && !known.contains(*name));
        let untold: Vec<ValueInfo> =
            untold.map(|name| ValueInfo { name: name.clone(), ..ValueInfo::default() }).collect();
        graph.outputs.extend(untold);
        self
    }

    /// The same with outputs that tell the least and the largest number of values, and no others.
    #[must_use]
    pub fn watching(mut self, values: &[String]) -> Self {
        let graph = &mut self.model.graph;
        graph.outputs.clear();
        watch(graph, values);
        self
    }

    /// The graph's initializer of a name.
    pub(super) fn constant(&self, name: &str) -> Option<&Initializer> {
        self.model.graph.initializers.iter().find(|tensor| tensor.name == name)
    }

    /// The floats of an initializer, where it holds single-precision ones.
    pub(super) fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let tensor = self.constant(name).filter(|tensor| tensor.element_type == FLOAT)?;
        let bytes = match self.weights.get(name) {
            None => self.graph.bytes(tensor)?,
            Some(weight) => {
                let bytes = self.graph.bytes(&self.graph.model().graph.initializers[weight.of])?;
                let mut floats = vec![0.0; bytes.len() / 4];
                weight.read(bytes, 0, &mut floats).ok()?;
                return Some(floats);
            }
        };
        Some(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// The original's initializer behind a name, and the factors that its channels have got since.
    pub(super) fn origin(&self, name: &str) -> Option<(usize, Channels, Vec<f32>)> {
        if let Some(weight) = self.weights.get(name) {
            return Some((weight.of, weight.channels, weight.factors.clone()));
        }
        let originals = &self.graph.model().graph.initializers;
        let of = originals.iter().position(|tensor| tensor.name == name)?;
        Some((of, Channels { count: 1, inner: 1 }, Vec::new()))
    }

    /// Adds an initializer made of one of the original's. Factors of folded channels come along.
    pub(super) fn make(
        &mut self,
        of: usize,
        name: &str,
        element: ElementType,
        channels: Channels,
        form: Form,
    ) {
        let original = &self.graph.model().graph.initializers[of];
        let folded = self.weights.get(&original.name).filter(|weight| !weight.factors.is_empty());
        let (channels, factors) =
            folded.map_or((channels, Vec::new()), |weight| (weight.channels, weight.factors.clone()));
        self.weights.insert(name.to_owned(), Weight { of, channels, factors, form });
        self.model.graph.initializers.push(Initializer {
            name: name.to_owned(),
            element_type: element,
            shape: original.shape.clone(),
            data: InitializerData::default(),
        });
    }

    /// Adds an initializer of bytes at hand.
    pub(super) fn hold(&mut self, name: &str, element: ElementType, shape: &[u64], bytes: Vec<u8>) {
        self.model.graph.initializers.push(Initializer {
            name: name.to_owned(),
            element_type: element,
            shape: shape.to_vec(),
            data: InitializerData::Inline(bytes),
        });
    }

    /// Adds an initializer of floats.
    pub(super) fn hold_floats(&mut self, name: &str, shape: &[u64], floats: &[f32]) {
        self.hold(name, FLOAT, shape, floats.iter().flat_map(|x| x.to_le_bytes()).collect());
    }

    /// The graph imports ONNX Runtime's own operators.
    pub(super) fn import_runtime(&mut self) {
        if !self.model.opsets.iter().any(|(domain, _)| domain == RUNTIME_DOMAIN) {
            self.model.opsets.push((RUNTIME_DOMAIN.into(), 1));
        }
    }

    pub(super) fn opset(&self) -> i64 {
        opset(&self.model)
    }

    /// How often each value is read, by nodes, by graphs inside them, and as an output.
    pub(super) fn readers(&self) -> HashMap<String, usize> {
        let mut readers = HashMap::new();
        walk(&self.model.graph, &mut |graph: &Graph| {
            let read = graph.nodes.iter().flat_map(|node| &node.inputs);
            for name in read.chain(graph.outputs.iter().map(|output| &output.name)) {
                *readers.entry(name.clone()).or_default() += 1;
            }
        });
        readers
    }

    /// Drops initializers that nothing reads.
    pub(super) fn prune(&mut self) {
        let readers = self.readers();
        self.model.graph.initializers.retain(|tensor| readers.contains_key(&tensor.name));
        self.weights.retain(|name, _| readers.contains_key(name));
    }

    fn len(&self, tensor: &Initializer) -> Option<u64> {
        match self.weights.get(&tensor.name) {
            Some(weight) => Some(tensor.shape.iter().product::<u64>() * weight.width()),
            None => self.graph.bytes(tensor).map(|bytes| bytes.len() as u64),
        }
    }

    /// Bytes of all its initializers.
    pub fn bytes(&self) -> u64 {
        self.model
            .graph
            .initializers
            .iter()
            .filter_map(|tensor| self.len(tensor))
            .fold(0, u64::saturating_add)
    }

    /// Initializers whose data lie beside the graph.
    fn beside(&self) -> Vec<usize> {
        if self.bytes() <= self.inside_most {
            return Vec::new();
        }
        let large = |tensor: &Initializer| {
            let told = tensor.element_type.byte_len(&tensor.shape);
            told.is_some() && self.len(tensor) == told && told >= Some(BESIDE_LEAST)
        };
        let tensors = self.model.graph.initializers.iter().enumerate();
        tensors.filter(|(_, tensor)| large(tensor)).map(|(index, _)| index).collect()
    }

    /// `{stem}.onnx`, and where weights are large `{stem}.onnx.data`.
    ///
    /// # Errors
    /// For what cannot be written.
    pub fn layout(&self, stem: &str) -> Result<Layout, Fault> {
        let beside: HashSet<usize> = self.beside().into_iter().collect();
        let mut model = self.model.clone();
        for (index, tensor) in model.graph.initializers.iter_mut().enumerate() {
            let bytes = if beside.contains(&index) {
                Vec::new()
            } else {
                self.made(&self.model.graph.initializers[index])?
            };
            tensor.data = InitializerData::Inline(bytes);
        }
        onnx::plan(stem, &model, &self.beside())
    }

    fn made(&self, tensor: &Initializer) -> Result<Vec<u8>, Fault> {
        let lost = || Fault::Unclaimed { begin: 0, end: 0 };
        match self.weights.get(&tensor.name) {
            None => Ok(self.graph.bytes(tensor).ok_or_else(lost)?.to_vec()),
            Some(weight) => {
                let original = &self.graph.model().graph.initializers[weight.of];
                weight.made(self.graph.bytes(original).ok_or_else(lost)?).map_err(|_| lost())
            }
        }
    }

    /// The work of a pass over [`Self::layout`].
    ///
    /// # Errors
    /// For weights of impossible shapes.
    pub fn items(&self) -> Result<Vec<Item<'_>>, PassError> {
        let items = self.beside().into_iter().enumerate().filter_map(|(place, index)| {
            let tensor = &self.model.graph.initializers[index];
            let Some(weight) = self.weights.get(&tensor.name) else {
                let bytes = self.graph.bytes(tensor)?;
                let decl = TensorDecl::new(&tensor.name, DType::U8, vec![bytes.len() as u64]);
                return Some(Item::copy(place, &decl, Kept(bytes)));
            };
            let bytes = self.graph.bytes(&self.graph.model().graph.initializers[weight.of])?;
            let columns = tensor.shape.last().copied().unwrap_or(1).max(1);
            let rows = tensor.shape.iter().product::<u64>() / columns;
            let source = Rows { weight, bytes, columns: columns as usize };
            let encoder = Made { weight, columns: columns as usize };
            let outputs = vec![Output { tensor: place, group_bytes: columns * weight.width() }];
            Some(Ok(Item::encode(&tensor.name, [rows, columns], source, encoder, outputs)))
        });
        items.collect()
    }

    /// How many initializers are stored in which way.
    pub fn types(&self) -> BTreeMap<String, u64> {
        let mut types = BTreeMap::new();
        for tensor in &self.model.graph.initializers {
            let name = tensor.element_type.name().unwrap_or("other").to_owned();
            *types.entry(name).or_default() += 1;
        }
        types
    }

    /// A word about what runs inside of nodes.
    pub(super) fn tell_branches(&mut self) {
        let kinds: BTreeSet<&str> = self.graph.branches();
        if !kinds.is_empty() {
            let kinds = kinds.into_iter().collect::<Vec<_>>().join(", ");
            self.notes.push(format!("what lies inside of {kinds} stays as it was"));
        }
    }
}
