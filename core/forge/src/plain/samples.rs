//! Inputs to run a graph on: given by the user, lying beside the graph, or random and recorded by how they are made.

use std::path::{Path, PathBuf};

use drophammer_formats::DType;
use drophammer_formats::npy::{self, Array};
use drophammer_formats::onnx::ElementType;
use drophammer_sdk::{BackendError, ErrorCode, Goal, Result};
use half::f16;

use super::shapes::sizes;
use super::{Input, PlainGraph};
use crate::failure;

/// Most samples that are kept: as many as ranges need, and then some.
const MOST: usize = 96;
/// Random samples where none are given.
const RANDOM: usize = 8;
/// Every so many-th sample is not calibrated on but compared on.
const HELD_OUT: usize = 4;
/// What lies beside a graph for its calibration.
const BESIDE: [&str; 3] = ["calibration", "calibration.npz", "calibration.npy"];

/// One input's numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// The numbers' type: the input's own.
    pub element: ElementType,
    /// Sizes, outermost first.
    pub shape: Vec<u64>,
    /// The numbers, little-endian.
    pub bytes: Vec<u8>,
}

/// Samples: for each, one tensor per input of the graph, in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples {
    all: Vec<Vec<Tensor>>,
    /// Where they are from, in words.
    pub told: String,
    /// Whether nobody gave them.
    pub random: bool,
}

impl Samples {
    /// Where a goal's samples are: what its option `calibration` names, or what lies beside the graph.
    pub fn place(goal: &Goal, graph: &Path) -> Option<PathBuf> {
        if let Some(named) = goal.options.get("calibration").and_then(|value| value.as_str()) {
            return Some(named.into());
        }
        let directory = graph.parent()?;
        BESIDE.iter().map(|name| directory.join(name)).find(|path| path.exists())
    }

    /// Samples for a graph: a `.npy` or `.npz` file whose first axis counts them, a directory with such a file for each, or random ones.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidRequest`] for files that cannot be read, names that are no inputs, and other shapes or types than the inputs';
    /// where none are given and sizes are open, which the option `shapes` may tell.
    pub fn of(goal: &Goal, graph: &PlainGraph) -> Result<Self> {
        let inputs = graph.inputs();
        match Self::place(goal, graph.file()) {
            Some(place) => Self::read(&place, inputs),
            None => Self::random(&sizes(goal, inputs)?, inputs),
        }
    }

    fn read(place: &Path, inputs: &[Input]) -> Result<Self> {
        let mut files = Vec::new();
        if place.is_dir() {
            let entries = std::fs::read_dir(place).map_err(|error| invalid(place, &error.to_string()))?;
            let entries = entries.filter_map(|entry| Some(entry.ok()?.path()));
            files.extend(
                entries.filter(|path| path.extension().is_some_and(|kind| kind == "npy" || kind == "npz")),
            );
            files.sort();
        } else {
            files.push(place.to_owned());
        }
        let many = place.is_dir();
        let count = files.len();
        let chosen = (0..count.min(MOST)).map(|number| &files[number * count / count.min(MOST)]);
        let mut all = Vec::new();
        for path in chosen {
            let arrays =
                npy::read(path).map_err(|error| invalid(path, &failure::of_source(&error).message))?;
            all.extend(split(path, arrays, inputs, many)?);
        }
        if all.is_empty() {
            return Err(invalid(place, "there are no samples in it"));
        }
        let found = all.len();
        if found > MOST {
            all = (0..MOST).map(|number| all[number * found / MOST].clone()).collect();
        }
        Ok(Self { told: format!("{} samples of {}", all.len(), place.display()), all, random: false })
    }

    /// Numbers that look random and are the same everywhere: floats between -1 and 1, whole numbers 0 or 1.
    fn random(shapes: &[Vec<u64>], inputs: &[Input]) -> Result<Self> {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        let mut all = Vec::new();
        for _ in 0..RANDOM {
            let mut sample = Vec::new();
            for (input, shape) in inputs.iter().zip(shapes) {
                let count = shape.iter().product::<u64>();
                let floats = matches!(input.element.0, 1 | 10 | 11);
                let numbers = (0..count).map(|_| {
                    let x = next();
                    if floats { 2.0 * x - 1.0 } else { x.round() }
                });
                let bytes = numbers.flat_map(f32::to_le_bytes).collect();
                let array = Array { dtype: DType::F32, shape: shape.clone(), bytes };
                sample.push(tensor(&array, input.element, true).ok_or_else(|| {
                    let message = format!("nobody knows random numbers for the input {input}");
                    BackendError::new(ErrorCode::InvalidRequest, message).with_help("Give calibration data.")
                })?);
            }
            all.push(sample);
        }
        let told = format!(
            "{RANDOM} random samples, floats from -1 to 1, whole numbers 0 or 1: real inputs may need other ranges (give some with --calibration)"
        );
        Ok(Self { all, told, random: true })
    }

    /// Those to find ranges on.
    pub fn calibrating(&self) -> impl Iterator<Item = &[Tensor]> {
        let held = self.holds_out();
        self.all
            .iter()
            .enumerate()
            .filter(move |(number, _)| !held || !is_held(*number))
            .map(|(_, s)| s.as_slice())
    }

    /// Those to compare on: none of the others, where there are enough.
    pub fn comparing(&self) -> impl Iterator<Item = &[Tensor]> {
        let held = self.holds_out();
        self.all
            .iter()
            .enumerate()
            .filter(move |(number, _)| !held || is_held(*number))
            .map(|(_, s)| s.as_slice())
    }

    /// Whether some samples are kept for comparing alone.
    pub fn holds_out(&self) -> bool {
        self.all.len() >= HELD_OUT
    }
}

fn is_held(number: usize) -> bool {
    number % HELD_OUT == HELD_OUT - 1
}

fn invalid(path: &Path, problem: &str) -> BackendError {
    let path = path.display().to_string();
    // Reading a file names it already.
    let message = if problem.contains(&path) { problem.to_owned() } else { format!("{path}: {problem}") };
    BackendError::new(ErrorCode::InvalidRequest, format!("calibration data: {message}")).with_help(
        "Give a .npz file with an array per input, its first axis counting the samples, or a directory with a file per sample.",
    )
}

/// The samples in one file's arrays.
fn split(path: &Path, arrays: Vec<(String, Array)>, inputs: &[Input], one: bool) -> Result<Vec<Vec<Tensor>>> {
    if let Some((name, _)) =
        arrays.iter().find(|(name, _)| !name.is_empty() && inputs.iter().all(|input| input.name != *name))
    {
        let names: Vec<String> = inputs.iter().map(|input| format!("`{}`", input.name)).collect();
        return Err(invalid(
            path,
            &format!("`{name}` is no input of the graph, which has {}", names.join(", ")),
        ));
    }
    let mut columns = Vec::new();
    for input in inputs {
        let found =
            arrays.iter().find(|(name, _)| *name == input.name || name.is_empty() && inputs.len() == 1);
        let Some((_, array)) = found else {
            return Err(invalid(path, &format!("there is no array for the input {input}")));
        };
        columns.push(pieces(path, array, input, one)?);
    }
    let count = columns.iter().map(Vec::len).max().unwrap_or(0);
    if let Some((input, column)) =
        inputs.iter().zip(&columns).find(|(_, column)| column.len() != 1 && column.len() != count)
    {
        let problem =
            format!("`{}` has {} samples where another input has {count}", input.name, column.len());
        return Err(invalid(path, &problem));
    }
    let sample = |number: usize| columns.iter().map(|column| column[number % column.len()].clone()).collect();
    Ok((0..count).map(sample).collect())
}

/// One input's tensors in an array, sample by sample.
fn pieces(path: &Path, array: &Array, input: &Input, one: bool) -> Result<Vec<Tensor>> {
    let wrong = || invalid(path, &format!("an array of {} {:?} is no {input}", array.dtype, array.shape));
    let whole = tensor(array, input.element, false).ok_or_else(wrong)?;
    let mut numbers = array.bytes.chunks_exact(array.dtype.block_bytes());
    if numbers.any(|bytes| number(array.dtype, bytes).is_some_and(|(float, _)| float.is_nan())) {
        return Err(invalid(path, &format!("the array for {input} holds what is no number (NaN)")));
    }
    let Some(shape) = &input.shape else { return Ok(vec![whole]) };
    let fits = |sizes: &[u64]| {
        sizes.len() == shape.len()
            && sizes.iter().zip(shape).all(|(size, due)| due.is_none_or(|due| due == *size))
    };
    let stacked = array.shape.len() == shape.len() + 1 && fits(&array.shape[1..]);
    let batch = shape.first().copied().flatten().unwrap_or(1);
    let rows = array.shape.first().copied().unwrap_or(1);
    let (count, shape) = if !one && stacked {
        (rows, array.shape[1..].to_vec())
    } else if !one && !shape.is_empty() && array.shape.len() == shape.len() && rows % batch == 0 {
        let shape: Vec<u64> = [batch].into_iter().chain(array.shape[1..].iter().copied()).collect();
        (rows / batch, shape)
    } else {
        (1, array.shape.clone())
    };
    if !fits(&shape) || count == 0 {
        return Err(wrong());
    }
    let size = whole.bytes.len() / count as usize;
    let piece = |bytes: &[u8]| Tensor { element: whole.element, shape: shape.clone(), bytes: bytes.to_vec() };
    Ok(whole.bytes.chunks(size.max(1)).map(piece).collect())
}

/// An array in an input's type, where that holds all its numbers: floats in floats, whole numbers in both. `made` ones are rounded
/// already.
fn tensor(array: &Array, element: ElementType, made: bool) -> Option<Tensor> {
    let own = ElementType::from_dtype(array.dtype)?;
    let done = |bytes| Some(Tensor { element, shape: array.shape.clone(), bytes });
    if own == element {
        return done(array.bytes.clone());
    }
    let to = element.dtype()?;
    let is_float = |dtype: DType| matches!(dtype, DType::F64 | DType::F32 | DType::F16);
    if is_float(array.dtype) && !is_float(to) && !made {
        return None;
    }
    let numbers = array.bytes.chunks_exact(array.dtype.block_bytes()).map(|bytes| number(array.dtype, bytes));
    let mut out = Vec::new();
    for x in numbers {
        write(to, x?, &mut out)?;
    }
    done(out)
}

/// A number of any type: as a float, and as a whole number where it is one.
fn number(dtype: DType, bytes: &[u8]) -> Option<(f64, i128)> {
    macro_rules! whole {
        ($type:ty) => {{
            let x = <$type>::from_le_bytes(bytes.try_into().ok()?);
            (x as f64, i128::from(x))
        }};
    }
    let float = |x: f64| (x, x as i128);
    Some(match dtype {
        DType::F64 => float(f64::from_le_bytes(bytes.try_into().ok()?)),
        DType::F32 => float(f32::from_le_bytes(bytes.try_into().ok()?).into()),
        DType::F16 => float(f16::from_le_bytes(bytes.try_into().ok()?).into()),
        DType::I64 => whole!(i64),
        DType::I32 => whole!(i32),
        DType::I16 => whole!(i16),
        DType::I8 => whole!(i8),
        DType::U64 => whole!(u64),
        DType::U32 => whole!(u32),
        DType::U16 => whole!(u16),
        DType::U8 | DType::Bool => whole!(u8),
        _ => return None,
    })
}

/// Appends a number as a type; `None` where the type does not hold it.
fn write(dtype: DType, (float, whole): (f64, i128), out: &mut Vec<u8>) -> Option<()> {
    macro_rules! whole {
        ($type:ty) => {
            out.extend(<$type>::try_from(whole).ok()?.to_le_bytes())
        };
    }
    match dtype {
        DType::F64 => out.extend(float.to_le_bytes()),
        DType::F32 => out.extend((float as f32).to_le_bytes()),
        DType::F16 => out.extend(f16::from_f64(float).to_le_bytes()),
        DType::I64 => whole!(i64),
        DType::I32 => whole!(i32),
        DType::I16 => whole!(i16),
        DType::I8 => whole!(i8),
        DType::U64 => whole!(u64),
        DType::U32 => whole!(u32),
        DType::U16 => whole!(u16),
        DType::U8 => whole!(u8),
        DType::Bool => out.push(u8::from(whole != 0)),
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(name: &str, element: i32, shape: &[Option<u64>]) -> Input {
        Input { name: name.into(), element: ElementType(element), shape: Some(shape.to_vec()) }
    }

    fn array(dtype: DType, shape: &[u64]) -> Array {
        let len = shape.iter().product::<u64>() * dtype.block_bytes() as u64;
        Array { dtype, shape: shape.to_vec(), bytes: (0..len).map(|i| (i % 64) as u8).collect() }
    }

    #[test]
    fn samples_are_counted_by_the_first_axis_and_shared_where_there_is_one() {
        let inputs = [input("x", 1, &[None, Some(3), None]), input("rate", 7, &[])];
        let path = Path::new("c.npz");
        for (shape, count, due) in
            [(&[5, 3, 4][..], 5, [1, 3, 4]), (&[2, 6, 3, 4], 2, [6, 3, 4]), (&[1, 3, 4], 1, [1, 3, 4])]
        {
            let arrays =
                vec![("x".to_owned(), array(DType::F32, shape)), ("rate".to_owned(), array(DType::I32, &[]))];
            let samples = split(path, arrays, &inputs, false).unwrap();
            assert_eq!(samples.len(), count);
            assert!(samples.iter().all(|sample| sample[0].shape == due && sample[1].bytes.len() == 8));
        }
        // A file for each sample: its first axis belongs to it.
        let arrays = || vec![(String::new(), array(DType::F32, &[5, 3, 4]))];
        assert_eq!(split(path, arrays(), &inputs[..1], true).unwrap()[0][0].shape, [5, 3, 4]);
        let error = split(path, arrays(), &inputs, true).unwrap_err();
        assert!(error.message.contains("no array for the input `x`"), "{error}");
    }

    #[test]
    fn wrong_data_are_refused_with_both_shapes() {
        let inputs = [input("x", 1, &[None, Some(3), Some(4)])];
        let path = Path::new("c.npz");
        for (name, given, words) in [
            ("x", array(DType::F32, &[2, 4, 3]), "f32 [2, 4, 3] is no `x` (float32 [?, 3, 4])"),
            ("y", array(DType::F32, &[2, 3, 4]), "`y` is no input"),
            ("x", array(DType::F32, &[0, 3, 4]), "f32 [0, 3, 4]"),
        ] {
            let error = split(path, vec![(name.to_owned(), given)], &inputs, false).unwrap_err();
            assert!(error.message.contains(words) && error.code == ErrorCode::InvalidRequest, "{error}");
        }
        let mut nan = array(DType::F32, &[2, 3, 4]);
        nan.bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        let error = split(path, vec![("x".to_owned(), nan)], &inputs, false).unwrap_err();
        assert!(error.message.contains("NaN"), "{error}");
        let whole = [input("x", 7, &[None])];
        let floats = vec![(String::new(), array(DType::F32, &[2]))];
        assert!(split(path, floats, &whole, false).is_err(), "floats are no whole numbers");
    }

    #[test]
    fn random_numbers_are_always_the_same_and_fill_their_ranges() {
        let inputs = [input("x", 1, &[None, Some(3), None])];
        let random = Samples::random(&[vec![1, 3, 8]], &inputs).unwrap();
        assert_eq!(random, Samples::random(&[vec![1, 3, 8]], &inputs).unwrap());
        assert_eq!((random.calibrating().count(), random.comparing().count()), (6, 2));
        let floats = random.all[0][0].bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x));
        assert!(floats.clone().all(|x| (-1.0..=1.0).contains(&x)) && floats.clone().any(|x| x < -0.5));
    }
}
