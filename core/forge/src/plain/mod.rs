//! Plain ONNX graphs (vision, audio, anything that is no language model of ours): read, checked, and made smaller.
//!
//! - [`PlainGraph`] opens a graph and refuses what could not be written again or run; [`PlainGraph::fixed`] gives it fixed sizes.
//! - [`Samples`] are inputs to run it on: the user's own, or recorded random ones.
//! - [`Draft`] is the graph on its way to an artifact: affine steps folded into convolutions, then weights as halves, or products and
//!   convolutions in whole numbers, with ranges found while running ([`Draft::static_int`]) or as they come ([`Draft::dynamic_int`]).
//! - [`Accuracy`] tells how far an artifact's outputs are from the original's.
//!
//! Nothing here runs a graph: whoever has a runtime does, and gives back [`Ranges`](drophammer_models::export::onnx::Ranges).

mod accuracy;
mod draft;
mod dynamic_int;
mod fold;
mod pick;
mod samples;
mod saturate;
mod shapes;
mod static_int;
mod weight;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use drophammer_formats::mapped::MappedFile;
use drophammer_formats::onnx::{
    self, Attribute, Dimension, ElementType, Graph, Initializer, InitializerData, Model, Node, ValueInfo,
};
use drophammer_sdk::{BackendError, ErrorCode, Result};

pub use accuracy::Accuracy;
pub use draft::Draft;
pub use pick::Pick;
pub use samples::{Samples, Tensor};
pub use static_int::Reach;

use crate::failure;

/// Single-precision floats, by their number in the format.
pub(crate) const FLOAT: ElementType = ElementType(1);
/// Whose operators ONNX Runtime knows, besides ONNX's own.
const DOMAINS: [&str; 4] = ["", "ai.onnx", "ai.onnx.ml", "com.microsoft"];
/// Operator sets that are read: older ones mean other things by the same names, newer ones no runtime knows yet.
const OPSETS: std::ops::RangeInclusive<i64> = 7..=28;
/// Where protobuf ends.
const LARGEST_FILE: u64 = i32::MAX as u64;

/// An input of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Its name.
    pub name: String,
    /// The elements' type.
    pub element: ElementType,
    /// Its sizes, `None` for those that may be any; `None` in all where not even their number is told.
    pub shape: Option<Vec<Option<u64>>>,
}

impl std::fmt::Display for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, element, shape } = self;
        write!(f, "`{name}` ({}", element.name().unwrap_or("of an unknown type"))?;
        let size = |size: &Option<u64>| size.map_or_else(|| "?".to_owned(), |size| size.to_string());
        if let Some(shape) = shape {
            write!(f, " [{}]", shape.iter().map(size).collect::<Vec<_>>().join(", "))?;
        }
        f.write_str(")")
    }
}

/// A graph and the files it lies in. What `Constant` nodes hold is among its initializers.
#[derive(Debug)]
pub struct PlainGraph {
    model: Model,
    /// The graph's own, then those with external data.
    files: Vec<MappedFile>,
    locations: HashMap<String, usize>,
    inputs: Vec<Input>,
}

impl PlainGraph {
    /// The file of a plain graph: an ONNX file, or the only one of a directory that is not a language model's.
    pub fn find(source: &Path) -> Option<PathBuf> {
        let is_onnx = |path: &Path| path.extension().is_some_and(|extension| extension == "onnx");
        if source.is_file() {
            return is_onnx(source).then(|| source.to_owned());
        }
        if ["config.json", "genai_config.json"].iter().any(|name| source.join(name).exists()) {
            return None;
        }
        let mut files = std::fs::read_dir(source).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        let first = files.find(|path| is_onnx(path))?;
        files.all(|path| !is_onnx(&path)).then_some(first)
    }

    /// Opens a graph, with the files that hold its external data. Reads all of the graph, and maps the weights.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidInput`] for what is no ONNX or lacks files; [`ErrorCode::UnsupportedInput`] for operators of others than
    /// ONNX and ONNX Runtime, operator sets that are not read, functions, and inputs that are no tensors.
    pub fn open(file: &Path) -> Result<Self> {
        let map = MappedFile::open(file).map_err(|error| failure::of_source(&error))?;
        if map.len() > LARGEST_FILE {
            let message = format!("{}: {} bytes, more than protobuf can tell", file.display(), map.len());
            return Err(BackendError::new(ErrorCode::InvalidInput, message).with_help(
                "Save it with external data (onnx.save_model with save_as_external_data), and drop that directory.",
            ));
        }
        let malformed = |error: drophammer_formats::Error| failure::of_source(&error);
        let mut model = onnx::parse(map.bytes())
            .map_err(|fault| malformed(drophammer_formats::Error::malformed(file)(fault)))?;
        check(&model).map_err(|(problem, help)| {
            BackendError::new(ErrorCode::UnsupportedInput, format!("{}: {problem}", file.display()))
                .with_help(help)
        })?;
        hold_inner(&mut model.graph, map.bytes());
        lift_constants(&mut model.graph);
        let inputs = inputs(&model.graph);
        let mut graph = Self { model, files: vec![map], locations: HashMap::new(), inputs };
        graph.open_external(file)?;
        Ok(graph)
    }

    /// Opens every file with external data, and checks that the data lie in it.
    fn open_external(&mut self, file: &Path) -> Result<()> {
        let directory = file.parent().unwrap_or(Path::new("."));
        for tensor in &self.model.graph.initializers {
            let InitializerData::External { location, .. } = &tensor.data else { continue };
            if self.locations.contains_key(location) {
                continue;
            }
            let path = directory.join(location);
            let map = MappedFile::open(&path).map_err(|error| {
                let message = format!("{}: its external data are missing: {error}", file.display());
                BackendError::new(ErrorCode::InvalidInput, message)
                    .with_help(format!("Put {location} beside the graph."))
            })?;
            self.locations.insert(location.clone(), self.files.len());
            self.files.push(map);
        }
        for tensor in &self.model.graph.initializers {
            if self.bytes(tensor).is_none() {
                let message =
                    format!("{}: the data of `{}` lie outside of their file", file.display(), tensor.name);
                return Err(BackendError::new(ErrorCode::InvalidInput, message)
                    .with_help("The file is incomplete: finish or repeat the download."));
            }
        }
        Ok(())
    }

    /// The data of one of its tensors.
    pub(crate) fn bytes<'a>(&'a self, tensor: &'a Initializer) -> Option<&'a [u8]> {
        match &tensor.data {
            InitializerData::Inline(bytes) => Some(bytes),
            InitializerData::InFile(range) => {
                self.files[0].slice(range.start, range.end.checked_sub(range.start)?)
            }
            InitializerData::External { location, offset, length } => {
                let file = &self.files[*self.locations.get(location)?];
                let length = length.or_else(|| tensor.element_type.byte_len(&tensor.shape));
                file.slice(*offset, length.or_else(|| file.len().checked_sub(*offset))?)
            }
        }
    }

    /// The graph.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// What has to be given to run it.
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// Bytes of all its files.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(MappedFile::len).fold(0, u64::saturating_add)
    }

    /// The graph's own file.
    pub fn file(&self) -> &Path {
        self.files[0].path()
    }

    /// Its files: the graph's own first.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(MappedFile::path)
    }

    /// Numbers in all its float constants.
    pub fn parameters(&self) -> u64 {
        let floats = self.model.graph.initializers.iter().filter(|tensor| is_float(tensor.element_type));
        floats.map(|tensor| tensor.shape.iter().product::<u64>()).fold(0, u64::saturating_add)
    }

    /// Kinds of nodes with graphs inside them: what runs there is left as it is.
    pub fn branches(&self) -> BTreeSet<&str> {
        let holds_graph =
            |node: &&Node| node.attributes.iter().any(|(_, value)| matches!(value, Attribute::Graph(_)));
        self.model.graph.nodes.iter().filter(holds_graph).map(|node| node.op_type.as_str()).collect()
    }
}

fn is_float(element: ElementType) -> bool {
    matches!(element.0, 1 | 10 | 11 | 16)
}

fn opset(model: &Model) -> i64 {
    let own = model.opsets.iter().filter(|(domain, _)| domain.is_empty() || domain == "ai.onnx");
    own.map(|(_, version)| *version).max().unwrap_or(1)
}

/// What keeps a graph from being written again or run, and what to do about it.
fn check(model: &Model) -> std::result::Result<(), (String, String)> {
    let version = opset(model);
    if !OPSETS.contains(&version) {
        let (first, last) = OPSETS.into_inner();
        return Err((
            format!("it is written in operator set {version}; {first} to {last} are read"),
            "Export it again for one of these, or convert it with onnx.version_converter.".into(),
        ));
    }
    if model.functions > 0 {
        return Err((
            format!("it defines {} functions of its own", model.functions),
            "Inline them with onnx.inliner.inline_local_functions.".into(),
        ));
    }
    let mut foreign = BTreeSet::new();
    let mut unwritable = BTreeSet::new();
    let mut sparse = 0;
    walk(&model.graph, &mut |graph| {
        sparse += graph.sparse;
        for node in &graph.nodes {
            if !DOMAINS.contains(&node.domain.as_str()) {
                foreign.insert(format!("{}::{}", node.domain, node.op_type));
            }
            if node.attributes.iter().any(|(_, value)| matches!(value, Attribute::Other(_))) {
                unwritable.insert(node.op_type.clone());
            }
        }
    });
    let list = |names: BTreeSet<String>| names.into_iter().collect::<Vec<_>>().join(", ");
    if !foreign.is_empty() {
        return Err((
            format!("it uses custom operators, which no runtime here knows: {}", list(foreign)),
            "Export it without them, or run it with the library that brings them.".into(),
        ));
    }
    if sparse > 0 || !unwritable.is_empty() {
        let what = if sparse > 0 { "sparse constants".to_owned() } else { list(unwritable) };
        return Err((
            format!("it holds what is not written again: {what}"),
            "Export it with dense tensors as constants.".into(),
        ));
    }
    if let Some(input) = model.graph.inputs.iter().find(|input| input.element_type.is_none()) {
        return Err((
            format!("its input `{}` is no tensor", input.name),
            "Export it with tensors as inputs.".into(),
        ));
    }
    Ok(())
}

/// Calls for a graph and all graphs inside it.
fn walk<'g>(graph: &'g Graph, each: &mut impl FnMut(&'g Graph)) {
    each(graph);
    for (_, value) in graph.nodes.iter().flat_map(|node| &node.attributes) {
        if let Attribute::Graph(inner) = value {
            walk(inner, each);
        }
    }
}

/// Takes data of inner graphs and of attributes into memory: what is written names no place in the old file. They are small, or the file
/// itself holds them anyway.
fn hold_inner(graph: &mut Graph, file: &[u8]) {
    for node in &mut graph.nodes {
        // Constants of the outer graph are lifted: their data stay where they are.
        for (_, value) in &mut node.attributes {
            match value {
                Attribute::Tensor(tensor) if node.op_type != "Constant" => tensor.hold(file),
                Attribute::Graph(inner) => inner.hold(file),
                _ => {}
            }
        }
    }
}

/// Makes initializers of what `Constant` nodes hold, so that every weight is found in one place.
fn lift_constants(graph: &mut Graph) {
    let mut lifted = Vec::new();
    graph.nodes.retain_mut(|node| {
        let [output] = node.outputs.as_slice() else { return true };
        if node.op_type != "Constant" || !node.domain.is_empty() {
            return true;
        }
        let bytes = |element: i32, shape: Vec<u64>, bytes: Vec<u8>| Initializer {
            name: output.clone(),
            element_type: ElementType(element),
            shape,
            data: InitializerData::Inline(bytes),
        };
        let [(_, value)] = node.attributes.as_slice() else { return true };
        lifted.push(match value {
            Attribute::Tensor(tensor) => Initializer { name: output.clone(), ..tensor.as_ref().clone() },
            Attribute::Float(x) => bytes(1, vec![], x.to_le_bytes().to_vec()),
            Attribute::Int(x) => bytes(7, vec![], x.to_le_bytes().to_vec()),
            Attribute::Floats(all) => {
                bytes(1, vec![all.len() as u64], all.iter().flat_map(|x| x.to_le_bytes()).collect())
            }
            Attribute::Ints(all) => {
                bytes(7, vec![all.len() as u64], all.iter().flat_map(|x| x.to_le_bytes()).collect())
            }
            _ => return true,
        });
        false
    });
    graph.initializers.extend(lifted);
}

/// Inputs that are not constants by default.
fn inputs(graph: &Graph) -> Vec<Input> {
    let constant = |input: &&ValueInfo| graph.initializers.iter().all(|tensor| tensor.name != input.name);
    let size = |size: &Dimension| match size {
        Dimension::Fixed(size) => u64::try_from(*size).ok().filter(|size| *size > 0),
        Dimension::Named(_) => None,
    };
    let input = |input: &ValueInfo| Input {
        name: input.name.clone(),
        element: input.element_type.unwrap_or_default(),
        shape: input.shape.as_ref().map(|shape| shape.iter().map(size).collect()),
    };
    graph.inputs.iter().filter(constant).map(input).collect()
}

#[cfg(test)]
mod tests;
