//! Any graph, run over samples: on the processor for ranges of values, anywhere for what it gives.

use std::borrow::Cow;
use std::path::Path;

use drophammer_forge::plain::{Draft, Samples, Tensor};
use drophammer_forge::{Recipe, failure};
use drophammer_models::export::onnx::{Range, Ranges, WATCH_HIGH, WATCH_LOW};
use drophammer_sdk::{BackendError, ErrorCode, JobContext, Result};
use half::f16;
use ort::environment::Environment;
use ort::memory::Allocator;
use ort::session::builder::SessionBuilder;
use ort::session::{Session, SessionInputValue, SessionOutputs};
use ort::value::{DynTensor, DynValue, TensorElementType, ValueType};

use crate::{failed, provider};

/// What ONNX Runtime calls its own kernels.
const PROCESSOR: &str = "CPUExecutionProvider";

/// A session's settings on the processor.
///
/// # Errors
/// What the library says.
pub fn on_processor(environment: &Environment, threads: usize) -> Result<SessionBuilder> {
    let refused = |error: ort::Error<_>| failed("a session cannot be prepared", &error);
    // Named, since with another provider's library open the runtime would choose for itself.
    let devices = provider::devices(environment, PROCESSOR);
    Session::builder(environment)
        .map_err(|error| failed("a session cannot be prepared", &error))?
        .with_devices(devices, None)
        .map_err(refused)?
        .with_intra_threads(threads)
        .map_err(refused)
}

/// Opens a graph on the processor.
///
/// # Errors
/// What the library has against it.
pub fn open(environment: &Environment, file: &Path, threads: usize) -> Result<Session> {
    on_processor(environment, threads)?.commit_from_file(file).map_err(|error| refusal(file, &error))
}

/// A graph that the library has something against.
pub(crate) fn refusal(file: &Path, error: &ort::Error) -> BackendError {
    let message = format!("{}: ONNX Runtime refuses it: {}", file.display(), error.message());
    BackendError::new(ErrorCode::InvalidInput, message)
        .with_help("Check the graph with onnx.checker, and export it again.")
}

/// Runs a graph on a sample, whose tensors are those of `names` in order.
///
/// # Errors
/// What the library says of the sample: sizes that the graph cannot take.
pub fn run<R>(
    session: &mut Session,
    names: &[&str],
    sample: &[Tensor],
    take: impl FnOnce(&SessionOutputs<'_>) -> Result<R>,
) -> Result<R> {
    let mut inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::new();
    for (name, tensor) in names.iter().zip(sample) {
        inputs.push(((*name).into(), value(tensor)?.into()));
    }
    let outputs = session.run(inputs).map_err(|error| {
        let message = format!("the graph cannot be run on a sample: {}", error.message());
        BackendError::new(ErrorCode::InvalidRequest, message).with_help(
            "Give samples whose sizes the graph takes (--calibration), or name others (--option shapes=…).",
        )
    })?;
    take(&outputs)
}

fn element_type(number: i32) -> Option<TensorElementType> {
    Some(match number {
        1 => TensorElementType::Float32,
        2 => TensorElementType::Uint8,
        3 => TensorElementType::Int8,
        4 => TensorElementType::Uint16,
        5 => TensorElementType::Int16,
        6 => TensorElementType::Int32,
        7 => TensorElementType::Int64,
        9 => TensorElementType::Bool,
        10 => TensorElementType::Float16,
        11 => TensorElementType::Float64,
        12 => TensorElementType::Uint32,
        13 => TensorElementType::Uint64,
        _ => return None,
    })
}

/// A sample's tensor as the library takes it.
#[allow(unsafe_code)] // tensors of any type are filled by bytes
fn value(tensor: &Tensor) -> Result<DynValue> {
    let unknown = || {
        let name = tensor.element.name().unwrap_or("unknown");
        BackendError::new(ErrorCode::UnsupportedInput, format!("an input of {name} cannot be given"))
            .with_help("Export the graph with inputs of usual numbers.")
    };
    let element = element_type(tensor.element.0).ok_or_else(unknown)?;
    let shape: Vec<usize> = tensor.shape.iter().map(|size| *size as usize).collect();
    let mut made = DynTensor::new(&Allocator::default(), element, shape)
        .map_err(|error| failed("an input cannot be made", &error))?;
    if made.size() != Some(tensor.bytes.len()) {
        return Err(BackendError::new(ErrorCode::InvalidRequest, "an input's bytes do not fill its shape"));
    }
    if !tensor.bytes.is_empty() {
        // SAFETY: the tensor was just made in the processor's memory, is as long as the bytes, and nobody else has it.
        unsafe {
            let place = made.data_ptr_mut().cast::<u8>();
            std::ptr::copy_nonoverlapping(tensor.bytes.as_ptr(), place, tensor.bytes.len());
        }
    }
    Ok(made.into_dyn())
}

/// An output's numbers as floats, and the size of its last dimension; `None` for what is no tensor of numbers.
#[allow(unsafe_code)] // the crate `ort` gives no view of halves without its feature
pub(crate) fn numbers(value: &DynValue) -> Option<(Vec<f32>, usize)> {
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else { return None };
    let width = shape.last().copied().and_then(|width| usize::try_from(width).ok()).unwrap_or(1);
    macro_rules! as_floats {
        ($type:ty) => {
            value.try_extract_tensor::<$type>().ok()?.1.iter().map(|x| *x as f32).collect()
        };
    }
    let floats = match ty {
        TensorElementType::Float32 => value.try_extract_tensor::<f32>().ok()?.1.to_vec(),
        TensorElementType::Float64 => as_floats!(f64),
        TensorElementType::Int64 => as_floats!(i64),
        TensorElementType::Int32 => as_floats!(i32),
        TensorElementType::Int8 => as_floats!(i8),
        TensorElementType::Uint8 => as_floats!(u8),
        TensorElementType::Bool => {
            value.try_extract_tensor::<bool>().ok()?.1.iter().map(|x| f32::from(u8::from(*x))).collect()
        }
        TensorElementType::Float16 => {
            let tensor = value.view().downcast::<ort::value::DynTensorValueType>().ok()?;
            let count = tensor.size()? / 2;
            let place = tensor.data_ptr().cast::<u16>();
            if count == 0 || place.is_null() {
                return Some((Vec::new(), width));
            }
            // SAFETY: the tensor lies in the processor's memory, which this session runs on, and holds so many halves.
            let bits = unsafe { std::slice::from_raw_parts(place, count) };
            bits.iter().map(|bits| f16::from_bits(*bits).to_f32()).collect()
        }
        _ => return None,
    };
    Some((floats, width))
}

/// The ranges of a graph's float values over samples. `place` is a directory for graphs in between; it is removed in the end.
///
/// # Errors
/// When the graph cannot be written, opened or run.
pub fn ranges(
    environment: &Environment,
    draft: &Draft<'_>,
    samples: &Samples,
    place: &Path,
    job: &dyn JobContext,
) -> Result<Ranges> {
    let threads = job.budgets().threads.max(1) as usize;
    let io = |error: std::io::Error| {
        BackendError::new(ErrorCode::Failed, format!("{}: {error}", place.display()))
            .with_help("Check free space and permissions.")
    };
    let opened = |draft: &Draft<'_>, stem: &str| {
        write(draft, stem, place, &Recipe::new("calibration", env!("CARGO_PKG_VERSION"), stem), job)?;
        open(environment, &place.join(format!("{stem}.onnx")), threads)
    };
    if place.exists() {
        std::fs::remove_dir_all(place).map_err(io)?;
    }
    std::fs::create_dir_all(place).map_err(io)?;
    // The runtime tells which values are floats.
    let types = opened(&draft.clone().exposed(), "types")?;
    let is_float =
        |kind: &ValueType| matches!(kind, ValueType::Tensor { ty: TensorElementType::Float32, .. });
    let all = types.outputs().iter().chain(types.inputs());
    let values: Vec<String> =
        all.filter(|value| is_float(value.dtype())).map(|value| value.name().to_owned()).collect();
    drop(types);
    let mut session = opened(&draft.clone().watching(&values), "watching")?;
    let names: Vec<String> = session.inputs().iter().map(|input| input.name().to_owned()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut seen = Ranges::new();
    let count = samples.calibrating().count() as u64;
    for (number, sample) in samples.calibrating().enumerate() {
        job.check()?;
        job.progress("calibrating", "", number as u64, count);
        run(&mut session, &names, sample, |outputs| {
            let mut ends = std::collections::HashMap::new();
            for (name, value) in outputs {
                let number = numbers(&value.view()).and_then(|(numbers, _)| numbers.first().copied());
                ends.insert(name.to_owned(), number.unwrap_or(f32::NAN));
            }
            for value in &values {
                let end = |what: &str| ends.get(&format!("{value}{what}")).copied().unwrap_or(f32::NAN);
                let range = Range { low: end(WATCH_LOW), high: end(WATCH_HIGH) };
                let known = seen.entry(value.clone()).or_insert(range);
                // Not by `min` and `max` alone, which would hide what is not a number.
                let odd =
                    [range, *known].iter().any(|range| !range.low.is_finite() || !range.high.is_finite());
                *known = if odd { Range { low: f32::NAN, high: f32::NAN } } else { known.with(range) };
            }
            Ok(())
        })?;
    }
    drop(session);
    std::fs::remove_dir_all(place).map_err(io)?;
    // What overflows, or holds nothing, stays in floats.
    seen.retain(|_, range| range.low.is_finite() && range.high.is_finite());
    Ok(seen)
}

/// Writes a graph into a directory.
///
/// # Errors
/// As for [`drophammer_forge::run`], and for graphs that cannot be written.
pub fn write(
    draft: &Draft<'_>,
    stem: &str,
    place: &Path,
    recipe: &Recipe,
    job: &dyn JobContext,
) -> Result<()> {
    let layout = draft.layout(stem).map_err(|fault| {
        BackendError::new(ErrorCode::UnsupportedInput, fault.to_string()).with_help(fault.help())
    })?;
    let items = draft.items().map_err(|error| failure::of_pass(&error))?;
    drophammer_forge::run(place, &layout, &items, recipe, job)
}
