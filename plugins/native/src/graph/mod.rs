//! Graphs in float32: an ONNX graph of fixed shapes on this engine's kernels, node by node, and every value shown.
//!
//! A session joins an architecture's steps and works in place. What an accelerator's compiler is given has more values than that leaves: a
//! rotation's halves, scores under their mask, what a gate is multiplied with. Whoever has to know how far each of them reaches runs
//! that very graph here. [`tensor`] holds values, [`operations`] and [`products`] are what nodes do, [`extent`] is how far values reach. There are those
//! operations that fixed graphs are made of. Weights stay in the mapped file.

mod extent;
mod operations;
mod products;
mod tensor;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::path::Path as FilePath;
use std::sync::Arc;

use drophammer_formats::DType;
use drophammer_formats::mapped::MappedFile;
use drophammer_formats::onnx::{self, Initializer, InitializerData, Node};
use drophammer_sdk::{BackendError, ErrorCode, Result};

pub use self::extent::Extent;
use self::operations::Call;
use self::tensor::Fault;
pub use self::tensor::Tensor;
use crate::kernels::Path;
use crate::memory::Bytes;
use crate::model::matrix::Matrix;
use crate::observer::Observer;
use crate::threads::Pool;

/// What a node reads.
enum Constant {
    Small(Tensor),
    /// A matrix in a file beside the graph.
    Weights(Matrix),
}

/// A graph, ready to run.
pub struct Evaluator {
    nodes: Vec<Node>,
    constants: HashMap<String, Constant>,
    outputs: Vec<String>,
    /// Values that no node after the one of this number reads.
    spent: Vec<Vec<String>>,
    pool: Pool,
    path: Path,
    /// Values whose products are summed, by their number for the observer.
    counted: HashMap<String, usize>,
    observer: Observer,
}

impl Evaluator {
    /// Opens a graph; what its weights lie in is mapped.
    ///
    /// # Errors
    /// When it cannot be read, or its constants are none that nodes here take.
    pub fn open(file: &FilePath, threads: usize) -> Result<Self> {
        let fault = |problem: String| {
            BackendError::new(ErrorCode::InvalidInput, format!("{}: {problem}", file.display())).with_help(
                "The graph was written for this run: check the disk's space and health, and try again.",
            )
        };
        let unread = |error: drophammer_formats::Error| fault(error.to_string());
        let bytes = MappedFile::open(file).map_err(unread)?;
        let model = onnx::parse(bytes.bytes()).map_err(|error| fault(error.to_string()))?;
        let mut graph = model.graph;
        graph.hold(bytes.bytes());
        let mut files: HashMap<String, Bytes> = HashMap::new();
        let mut constants = HashMap::new();
        for tensor in &graph.initializers {
            let constant = match &tensor.data {
                InitializerData::External { location, offset, length } => {
                    if !files.contains_key(location) {
                        onnx::check_external_path(location).map_err(|error| fault(error.to_string()))?;
                        let beside = file.with_file_name(location);
                        let map = Arc::new(MappedFile::open(&beside).map_err(unread)?);
                        files.insert(location.clone(), Bytes::of(&map, |map| map.bytes()));
                    }
                    let weights = weights(tensor, &files[location], *offset, *length);
                    weights.map(Constant::Weights)
                }
                InitializerData::Inline(bytes) => small(tensor, bytes).map(Constant::Small),
                InitializerData::InFile(_) => None,
            };
            let refused = || fault(format!("{} is no constant that the native engine reads", tensor.name));
            constants.insert(tensor.name.clone(), constant.ok_or_else(refused)?);
        }
        let outputs: Vec<String> = graph.outputs.into_iter().map(|output| output.name).collect();
        let mut last = HashMap::new();
        for (number, node) in graph.nodes.iter().enumerate() {
            last.extend(node.inputs.iter().chain(&node.outputs).map(|value| (value.clone(), number)));
        }
        last.retain(|value: &String, _| !outputs.contains(value));
        let mut spent = vec![Vec::new(); graph.nodes.len()];
        for (value, number) in last {
            spent[number].push(value);
        }
        let pool = Pool::new(threads).map_err(|error| fault(format!("no threads: {error}")))?;
        let (nodes, path) = (graph.nodes, Path::chosen());
        let (counted, observer) = (HashMap::new(), Observer::new(std::iter::empty(), &[]));
        Ok(Self { nodes, constants, outputs, spent, pool, path, counted, observer })
    }

    /// Sums products over the rows of these values, so many columns wide each, from now on ([`Evaluator::products`]).
    pub fn count(&mut self, values: &[(String, usize)]) {
        let numbers: Vec<usize> = (0..values.len()).collect();
        self.counted = values.iter().map(|(value, _)| value.clone()).zip(0..).collect();
        self.observer = Observer::new(values.iter().map(|(_, columns)| *columns).enumerate(), &numbers);
    }

    /// The sums over all rows `x` of a counted value of `x·xᵀ`, as `drophammer_quant::compensate::Products` has them; empty for
    /// others.
    pub fn products(&self, value: &str) -> Vec<f32> {
        self.counted.get(value).map_or_else(Vec::new, |number| self.observer.products(*number))
    }

    /// Runs the graph. `see` is shown every value of floats by its name, inputs first; the outputs come back.
    ///
    /// # Errors
    /// For inputs that the graph does not take, and operations that are not known here.
    pub fn run(
        &mut self,
        inputs: impl IntoIterator<Item = (String, Tensor)>,
        mut see: impl FnMut(&str, &[f32]),
    ) -> Result<BTreeMap<String, Tensor>> {
        let Self { nodes, constants, outputs, spent, pool, path, counted, observer } = self;
        let mut show = |name: &str, tensor: &Tensor, pool: &mut Pool| {
            let Some(numbers) = tensor.as_floats() else { return };
            if let Some(number) = counted.get(name) {
                pool.run(numbers.len() * tensor.width(), &|member| {
                    observer.count(*path, *number, numbers, member, &mut Vec::new());
                });
            }
            see(name, numbers);
        };
        let mut values: HashMap<&str, Tensor> = HashMap::new();
        let inputs: Vec<(String, Tensor)> = inputs.into_iter().collect();
        for (name, tensor) in &inputs {
            show(name, tensor, pool);
            values.insert(name, tensor.clone());
        }
        for (node, spent) in nodes.iter().zip(spent) {
            let refused = |fault: Fault| {
                let message = format!("{} ({}): {fault}", node.name, node.op_type);
                BackendError::new(ErrorCode::UnsupportedInput, message)
                    .with_help("The graph is not one that the native engine runs: please report it.")
            };
            let made = outputs_of(node, constants, &values, pool, *path).map_err(refused)?;
            for (name, tensor) in node.outputs.iter().zip(made) {
                show(name, &tensor, pool);
                values.insert(name, tensor);
            }
            for value in spent.iter() {
                values.remove(value.as_str());
            }
        }
        let given = outputs.iter().map(|output| {
            let lost = || {
                BackendError::new(ErrorCode::Failed, format!("the graph does not give {output}"))
                    .with_help("The graph is not one that the native engine runs: please report it.")
            };
            Ok((output.clone(), values.remove(output.as_str()).ok_or_else(lost)?))
        });
        given.collect()
    }
}

/// What a node makes of what it reads.
fn outputs_of(
    node: &Node,
    constants: &HashMap<String, Constant>,
    values: &HashMap<&str, Tensor>,
    pool: &mut Pool,
    path: Path,
) -> std::result::Result<Vec<Tensor>, Fault> {
    let weights = |place: usize| match node.inputs.get(place).and_then(|name| constants.get(name)) {
        Some(Constant::Weights(matrix)) => Some(matrix),
        _ => None,
    };
    let operand = |name: &String| {
        if name.is_empty() {
            return Ok(None);
        }
        match (values.get(name.as_str()), constants.get(name)) {
            (Some(value), _) | (None, Some(Constant::Small(value))) => Ok(Some(value)),
            (None, Some(Constant::Weights(_))) => Ok(None),
            (None, None) => Err(format!("nothing gives {name}")),
        }
    };
    let operands = node.inputs.iter().map(operand).collect::<std::result::Result<Vec<_>, _>>()?;
    let call = Call { node, operands, path };
    let made = match (node.op_type.as_str(), weights(0), weights(1)) {
        ("Gather", Some(table), None) if call.int("axis", 0) == 0 => gather(table, call.at(1)?, path)?,
        ("Gemm", None, Some(matrix)) if call.is_transposed() => {
            products::by_weights(pool, path, call.at(0)?, matrix)?
        }
        ("Gemm", None, None) if call.is_transposed() => {
            let turned = call.at(1)?.turned(&[1, 0])?;
            products::of_values(pool, path, call.at(0)?, &turned)?
        }
        ("MatMul", None, None) => products::of_values(pool, path, call.at(0)?, call.at(1)?)?,
        _ => return call.outputs(),
    };
    Ok(vec![made])
}

/// Rows of a table.
fn gather(table: &Matrix, places: &Tensor, path: Path) -> std::result::Result<Tensor, Fault> {
    let (mut shape, numbers) = (places.shape().to_vec(), places.need_integers()?);
    let mut out = vec![0.0; numbers.len() * table.columns];
    for (place, out) in numbers.iter().zip(out.chunks_exact_mut(table.columns)) {
        let row = usize::try_from(*place).ok().filter(|row| *row < table.rows);
        table.decode_row(path, row.ok_or_else(|| format!("row {place} of {}", table.rows))?, out);
    }
    shape.push(table.columns);
    Tensor::made(shape, out)
}

/// A matrix of floats in a file.
fn weights(tensor: &Initializer, file: &Bytes, offset: u64, length: Option<u64>) -> Option<Matrix> {
    let [rows, columns] = tensor.shape[..] else { return None };
    let begin = usize::try_from(offset).ok()?;
    let length = length.map_or_else(|| file.len().checked_sub(begin), |length| usize::try_from(length).ok());
    let dtype =
        tensor.element_type.dtype().filter(|dtype| matches!(dtype, DType::F32 | DType::F16 | DType::BF16));
    let (rows, columns) = (usize::try_from(rows).ok()?, usize::try_from(columns).ok()?);
    Matrix::new(dtype?, rows, columns, file.part(begin, length?)?).filter(|_| columns > 0)
}

/// A constant in the graph itself: floats, or integers of 64 bits.
fn small(tensor: &Initializer, bytes: &[u8]) -> Option<Tensor> {
    let shape = tensor.shape.iter().map(|&size| usize::try_from(size).ok()).collect::<Option<Vec<_>>>()?;
    shape.iter().try_fold(1usize, |all, &size| all.checked_mul(size))?;
    match tensor.element_type.0 {
        1 => {
            let (all, rest) = bytes.as_chunks::<4>();
            let numbers = all.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            Tensor::floats(shape, numbers).filter(|_| rest.is_empty())
        }
        7 => {
            let (all, rest) = bytes.as_chunks::<8>();
            let numbers = all.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect();
            Tensor::integers(shape, numbers).filter(|_| rest.is_empty())
        }
        _ => None,
    }
}
