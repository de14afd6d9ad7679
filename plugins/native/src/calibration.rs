//! What is asked of a loaded model besides its logits: how strongly matrices' inputs are used, and what the model would say if
//! a matrix were stored in fewer bits.
//!
//! The extension answers from any thread, the session runs on its own: what is asked for is left here, and the next forward
//! pass takes it up ([`Calibration::prepare`]).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use drophammer_forge::failure;
use drophammer_formats::DType;
use drophammer_models::export::gguf::GgufExport;
use drophammer_models::weight::{Role, WeightId};
use drophammer_models::{Checkpoint, Error};
use drophammer_sdk::calibration::{Calibrate, Usage};
use drophammer_sdk::{BackendError, ErrorCode, Result};

use crate::memory::Bytes;
use crate::model::execute::Engine;
use crate::model::matrix::Matrix;
use crate::model::record::MatrixRef;
use crate::observer::Observer;

/// The calibration of one session.
pub(crate) struct Calibration {
    checkpoint: Arc<Checkpoint>,
    path: PathBuf,
    adapters: Vec<PathBuf>,
    references: Vec<MatrixRef>,
    /// For each matrix the one that is counted for it.
    inputs: Vec<usize>,
    threads: usize,
    /// Whether the next forward pass has to look at the state: one that has not takes no lock.
    asked: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    observer: Option<Arc<Observer>>,
    /// Matrices that the next forward pass takes up.
    coming: HashMap<usize, Matrix>,
    restore: bool,
    /// Matrices that were replaced, as they were.
    originals: HashMap<usize, Matrix>,
    names: Option<Names>,
}

/// Weights of each GGUF tensor.
type Names = Vec<(String, Vec<WeightId>)>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Calibration {
    pub(crate) fn new(
        checkpoint: &Arc<Checkpoint>,
        path: PathBuf,
        adapters: Vec<PathBuf>,
        (references, inputs): (Vec<MatrixRef>, Vec<usize>),
        threads: usize,
    ) -> Self {
        let (checkpoint, state) = (Arc::clone(checkpoint), Mutex::default());
        let asked = AtomicBool::new(false);
        Self { checkpoint, path, adapters, references, inputs, threads, asked, state }
    }

    /// Takes up what was asked for since the last forward pass.
    pub(crate) fn prepare(&self, engine: &mut Engine) {
        if !self.asked.swap(false, Ordering::Acquire) {
            return;
        }
        let mut state = lock(&self.state);
        engine.observer.clone_from(&state.observer);
        if std::mem::take(&mut state.restore) {
            for (number, original) in state.originals.drain() {
                engine.exchange(number, original);
            }
        }
        for (number, matrix) in std::mem::take(&mut state.coming) {
            let before = engine.exchange(number, matrix);
            state.originals.entry(number).or_insert(before);
        }
    }

    /// Leaves something for the next forward pass.
    fn ask(&self, what: impl FnOnce(&mut State)) {
        what(&mut lock(&self.state));
        self.asked.store(true, Ordering::Release);
    }

    /// Counts from zero; for these matrices the products of columns besides.
    fn observer(&self, products: &[usize]) -> Observer {
        let counted = self.inputs.iter().enumerate().filter(|(number, input)| number == *input);
        Observer::new(counted.map(|(number, _)| (number, self.references[number].columns)), products)
    }

    /// Numbers of the matrices that hold these weights, with the expert they are of.
    fn numbers(&self, ids: &[WeightId]) -> Vec<(usize, MatrixRef)> {
        let tied = self.checkpoint.description().head.is_some_and(|head| head.tied);
        let same = |weight: WeightId| {
            ids.contains(&weight)
                || (tied && weight == Role::Head.global() && ids.contains(&Role::TokenEmbedding.global()))
        };
        self.references.iter().copied().enumerate().filter(|(_, reference)| same(reference.weight)).collect()
    }

    /// The tensors of the model's GGUF file, listed once.
    fn names(&self) -> Result<Names> {
        if let Some(names) = &lock(&self.state).names {
            return Ok(names.clone());
        }
        let of_model = |error: &Error| failure::of_model(&self.path, error);
        let export = GgufExport::new(drophammer_forge::open(&self.path, &self.adapters)?);
        let export = export.map_err(|error| of_model(&error))?;
        let names: Names = export.matrices().map(|(name, _, ids)| (name.to_owned(), ids.to_vec())).collect();
        lock(&self.state).names = Some(names.clone());
        Ok(names)
    }

    /// Number of the matrix that products of a tensor's inputs are summed for; none where experts have their own or the tensor is only looked up.
    fn input(&self, names: &Names, tensor: &str) -> Result<Option<usize>> {
        let found = names.iter().find(|(name, _)| name == tensor).and_then(|(_, ids)| ids.first());
        let first = found.ok_or_else(|| {
            BackendError::new(ErrorCode::InvalidRequest, format!("this model has no matrix {tensor:?}"))
        })?;
        let mut numbers = self.numbers(&[*first]);
        numbers.retain(|(_, reference)| !reference.table && reference.expert.is_none());
        Ok(numbers.first().map(|(number, _)| self.inputs[*number]))
    }

    /// A matrix as it would be if stored as `dtype`.
    fn stored(&self, reference: &MatrixRef, dtype: DType, importance: Option<&[f32]>) -> Result<Matrix> {
        let weight = self.checkpoint.weight(reference.weight);
        let weight = weight.map_err(|error| failure::of_model(&self.path, &error))?;
        let unfit = || {
            let message =
                format!("rows of {} of {} cannot be stored as {dtype}", reference.columns, reference.weight);
            BackendError::new(ErrorCode::InvalidRequest, message)
        };
        let (rows, columns) = (reference.rows, reference.columns);
        let row_bytes = dtype.bytes_for(columns as u64).ok_or_else(unfit)? as usize;
        let first = reference.expert.map_or(0, |(expert, _)| expert * rows);
        let mut bytes = vec![0u8; rows * row_bytes];
        let each = rows.div_ceil(self.threads.max(1)).max(1);
        std::thread::scope(|scope| {
            let parts = bytes.chunks_mut(each * row_bytes).enumerate().map(|(part, out)| {
                let weight = &weight;
                scope.spawn(move || -> Result<()> {
                    let mut row = vec![0.0; columns];
                    for (i, out) in out.chunks_exact_mut(row_bytes).enumerate() {
                        let number = (first + part * each + i) as u64;
                        let read = weight.read(number..number + 1, &mut row);
                        read.map_err(|error| failure::of_model(&self.path, &error))?;
                        drophammer_quant::quantize(dtype, &row, importance, out).map_err(|error| {
                            let message = format!("{}: {error}", reference.weight);
                            BackendError::new(ErrorCode::InvalidRequest, message)
                        })?;
                    }
                    Ok(())
                })
            });
            let parts: Vec<_> = parts.collect();
            parts.into_iter().try_for_each(|part| match part.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        Matrix::new(dtype, rows, columns, Bytes::from(bytes)).ok_or_else(unfit)
    }
}

/// What the extension holds of it.
pub(crate) struct Asked(pub(crate) Arc<Calibration>);

impl Calibrate for Asked {
    fn observe(&self, on: bool) -> Result<()> {
        let observer = on.then(|| Arc::new(self.0.observer(&[])));
        self.0.ask(|state| state.observer = observer);
        Ok(())
    }

    fn observe_products(&self, matrices: &[String]) -> Result<()> {
        let names = self.0.names()?;
        let mut numbers = Vec::new();
        for matrix in matrices {
            numbers.extend(self.0.input(&names, matrix)?);
        }
        let observer = Some(Arc::new(self.0.observer(&numbers)));
        self.0.ask(|state| state.observer = observer);
        Ok(())
    }

    fn products(&self, matrix: &str) -> Result<Vec<f32>> {
        let number = self.0.input(&self.0.names()?, matrix)?;
        let observer = lock(&self.0.state).observer.clone();
        let (Some(number), Some(observer)) = (number, observer) else { return Ok(Vec::new()) };
        Ok(observer.products(number))
    }

    fn usage(&self) -> Result<Vec<Usage>> {
        let names = self.0.names()?;
        let Some(observer) = lock(&self.0.state).observer.clone() else { return Ok(Vec::new()) };
        let mut told = Vec::new();
        for (name, ids) in names {
            // Weights joined in one tensor share their input.
            let Some(&first) = ids.first() else { continue };
            let mut usage = Usage { name, ..Usage::default() };
            let mut numbers = self.0.numbers(&[first]);
            numbers.retain(|(_, reference)| !reference.table);
            numbers.sort_by_key(|(_, reference)| reference.expert);
            for (number, reference) in numbers {
                let (rows, squares) = observer.squares(self.0.inputs[number]);
                usage.counts.push(rows as f32);
                usage.sums.extend(squares);
                usage.sums.resize(usage.counts.len() * reference.columns, 0.0);
            }
            if usage.counts.iter().any(|&count| count > 0.0) {
                told.push(usage);
            }
        }
        Ok(told)
    }

    fn replace(&self, matrix: &str, dtype: &str, importance: &[f32]) -> Result<()> {
        let invalid = |message: String| BackendError::new(ErrorCode::InvalidRequest, message);
        let dtype = DType::from_name(dtype).ok_or_else(|| invalid(format!("there is no type {dtype:?}")))?;
        let names = self.0.names()?;
        let found = names.iter().find(|(name, _)| name == matrix);
        let (_, ids) = found.ok_or_else(|| invalid(format!("this model has no matrix {matrix:?}")))?;
        for (number, reference) in self.0.numbers(ids) {
            let columns = reference.columns;
            let (expert, experts) = reference.expert.unwrap_or((0, 1));
            let importance = if importance.is_empty() {
                None
            } else if importance.len() == columns {
                Some(importance)
            } else if importance.len() == columns * experts {
                Some(&importance[expert * columns..(expert + 1) * columns])
            } else {
                let given = importance.len();
                return Err(invalid(format!("{given} weights for {columns} columns of {matrix}")));
            };
            let stored = self.0.stored(&reference, dtype, importance)?;
            self.0.ask(|state| drop(state.coming.insert(number, stored)));
        }
        Ok(())
    }

    fn restore(&self) -> Result<()> {
        self.0.ask(|state| {
            state.coming.clear();
            state.restore = true;
        });
        Ok(())
    }
}
