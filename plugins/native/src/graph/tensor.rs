//! Values of a graph, and how they are cut, turned and put together.

use std::sync::Arc;

/// What is wrong with an operation's operands, in words.
pub(super) type Fault = String;

/// Numbers of a shape, the last dimension's side by side. Cloning is cheap.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    numbers: Numbers,
}

/// Integers stand for truth as well: 0 and 1.
#[derive(Debug, Clone, PartialEq)]
enum Numbers {
    Floats(Arc<Vec<f32>>),
    Integers(Arc<Vec<i64>>),
}

/// Numbers of a shape.
fn count(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Numbers before, in and behind a dimension.
fn around(shape: &[usize], axis: usize) -> [usize; 3] {
    [count(&shape[..axis]), shape[axis], count(&shape[axis + 1..])]
}

impl Tensor {
    /// Of floats; `None` where they are not as many as the shape says.
    pub fn floats(shape: Vec<usize>, numbers: Vec<f32>) -> Option<Self> {
        (count(&shape) == numbers.len()).then(|| Self { shape, numbers: Numbers::Floats(numbers.into()) })
    }

    /// Of integers; `None` where they are not as many as the shape says.
    pub fn integers(shape: Vec<usize>, numbers: Vec<i64>) -> Option<Self> {
        (count(&shape) == numbers.len()).then(|| Self { shape, numbers: Numbers::Integers(numbers.into()) })
    }

    /// Its dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its numbers, if they are floats.
    pub fn as_floats(&self) -> Option<&[f32]> {
        match &self.numbers {
            Numbers::Floats(numbers) => Some(numbers),
            Numbers::Integers(_) => None,
        }
    }

    /// Its numbers as floats.
    pub(super) fn need_floats(&self) -> Result<&[f32], Fault> {
        self.as_floats().ok_or_else(|| "integers where floats are expected".into())
    }

    /// Its numbers as integers.
    pub(super) fn need_integers(&self) -> Result<&[i64], Fault> {
        match &self.numbers {
            Numbers::Integers(numbers) => Ok(numbers),
            Numbers::Floats(_) => Err("floats where integers are expected".into()),
        }
    }

    /// New floats of a shape.
    pub(super) fn made(shape: Vec<usize>, numbers: Vec<f32>) -> Result<Self, Fault> {
        let told = format!("{} numbers for {shape:?}", numbers.len());
        Self::floats(shape, numbers).ok_or(told)
    }

    /// Other floats of the same shape.
    pub(super) fn with(&self, numbers: Vec<f32>) -> Result<Self, Fault> {
        Self::made(self.shape.clone(), numbers)
    }

    /// A dimension by its number, from the end where it is below zero.
    pub(super) fn axis(&self, axis: i64) -> Result<usize, Fault> {
        let from = if axis < 0 { axis + self.shape.len() as i64 } else { axis };
        let found = usize::try_from(from).ok().filter(|axis| *axis < self.shape.len());
        found.ok_or_else(|| format!("dimension {axis} of {:?}", self.shape))
    }

    /// The size of the last dimension, at least 1.
    pub(super) fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1).max(1)
    }

    /// The same numbers in another shape: 0 keeps a dimension, -1 takes what is left.
    pub(super) fn reshaped(&self, wanted: &[i64]) -> Result<Self, Fault> {
        let refused = || format!("{:?} as {wanted:?}", self.shape);
        let mut shape = Vec::with_capacity(wanted.len());
        for (place, &size) in wanted.iter().enumerate() {
            shape.push(match size {
                0 => self.shape.get(place).copied().ok_or_else(refused)?,
                -1 => 1,
                size => usize::try_from(size).map_err(|_| refused())?,
            });
        }
        let all = count(&self.shape);
        if let Some(open) = wanted.iter().position(|&size| size == -1) {
            shape[open] = all.checked_div(count(&shape)).unwrap_or(0);
        }
        if count(&shape) != all {
            return Err(refused());
        }
        Ok(Self { shape, numbers: self.numbers.clone() })
    }

    /// Numbers chosen by their places.
    fn picked(&self, shape: Vec<usize>, places: impl Iterator<Item = usize>) -> Self {
        let numbers = match &self.numbers {
            Numbers::Floats(all) => Numbers::Floats(Arc::new(places.map(|place| all[place]).collect())),
            Numbers::Integers(all) => Numbers::Integers(Arc::new(places.map(|place| all[place]).collect())),
        };
        Self { shape, numbers }
    }

    /// With its dimensions in another order.
    pub(super) fn turned(&self, order: &[i64]) -> Result<Self, Fault> {
        let refused = || format!("{:?} in the order {order:?}", self.shape);
        let order = order.iter().map(|&axis| self.axis(axis)).collect::<Result<Vec<_>, _>>()?;
        let mut sorted = order.clone();
        sorted.sort_unstable();
        if sorted.iter().copied().ne(0..self.shape.len()) {
            return Err(refused());
        }
        let steps: Vec<usize> = order.iter().map(|&axis| around(&self.shape, axis)[2]).collect();
        let shape: Vec<usize> = order.iter().map(|&axis| self.shape[axis]).collect();
        let places = places(&shape, &steps);
        Ok(self.picked(shape, places))
    }

    /// Repeated along dimensions of size 1, and new ones before, until it has the shape.
    pub(super) fn spread(&self, shape: &[usize]) -> Result<Self, Fault> {
        if self.shape == shape {
            return Ok(self.clone());
        }
        let refused = || format!("{:?} where {shape:?} is expected", self.shape);
        let new = shape.len().checked_sub(self.shape.len()).ok_or_else(refused)?;
        let mut steps = vec![0; new];
        for (axis, &size) in self.shape.iter().enumerate() {
            steps.push(match size {
                same if same == shape[new + axis] => around(&self.shape, axis)[2],
                1 => 0,
                _ => return Err(refused()),
            });
        }
        let places = places(shape, &steps);
        Ok(self.picked(shape.to_vec(), places))
    }

    /// Places `begin..end` of a dimension.
    pub(super) fn cut(&self, axis: usize, begin: usize, end: usize) -> Result<Self, Fault> {
        let [before, size, behind] = around(&self.shape, axis);
        if begin > end || end > size {
            return Err(format!("places {begin} to {end} of dimension {axis} of {:?}", self.shape));
        }
        let mut shape = self.shape.clone();
        shape[axis] = end - begin;
        let runs = (0..before).map(|outer| (outer * size + begin) * behind);
        let places = runs.flat_map(|first| first..first + (end - begin) * behind);
        Ok(self.picked(shape, places))
    }

    /// Several, one behind the other along a dimension.
    pub(super) fn joined(parts: &[&Self], axis: usize) -> Result<Self, Fault> {
        let first = *parts.first().ok_or("nothing to join")?;
        let mut shape = first.shape.clone();
        let mut runs = Vec::new();
        shape[axis] = 0;
        for part in parts {
            let fits = part.shape.len() == shape.len()
                && (0..shape.len()).all(|other| other == axis || part.shape[other] == shape[other]);
            if !fits {
                return Err(format!("{:?} beside {:?}", part.shape, first.shape));
            }
            shape[axis] += part.shape[axis];
            runs.push((part.need_floats()?, count(&part.shape[axis..])));
        }
        let mut numbers = Vec::with_capacity(count(&shape));
        for outer in 0..count(&shape[..axis]) {
            for (part, run) in &runs {
                numbers.extend_from_slice(&part[outer * run..(outer + 1) * run]);
            }
        }
        Self::made(shape, numbers)
    }
}

/// Places of numbers of a shape, in order, where a step along each dimension leads so far.
fn places(shape: &[usize], steps: &[usize]) -> impl Iterator<Item = usize> + use<> {
    let (inner, last) = match (shape.split_last(), steps.last()) {
        (Some((&size, _)), Some(&step)) => (size, step),
        _ => (1, 0),
    };
    let outer = shape[..shape.len().saturating_sub(1)].to_vec();
    let steps = steps[..outer.len()].to_vec();
    (0..count(&outer)).flat_map(move |mut number| {
        let mut first = 0;
        for (&size, &step) in outer.iter().zip(&steps).rev() {
            first += number % size * step;
            number /= size;
        }
        (0..inner).map(move |place| first + place * last)
    })
}

/// The shape that both spread to.
pub(super) fn common(a: &[usize], b: &[usize]) -> Result<Vec<usize>, Fault> {
    let rank = a.len().max(b.len());
    let size =
        |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |at| shape[at]);
    let both = (0..rank).map(|axis| match (size(a, axis), size(b, axis)) {
        (one, other) if one == other || other == 1 => Ok(one),
        (1, other) => Ok(other),
        _ => Err(format!("{a:?} with {b:?}")),
    });
    both.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(shape: &[usize]) -> Tensor {
        Tensor::floats(shape.to_vec(), (0..count(shape)).map(|x| x as f32).collect()).unwrap()
    }

    fn numbers(tensor: &Tensor) -> Vec<i32> {
        tensor.as_floats().unwrap().iter().map(|x| *x as i32).collect()
    }

    #[test]
    fn numbers_keep_their_order_in_every_cut() {
        let x = counted(&[2, 3, 2]);
        assert_eq!(x.reshaped(&[0, -1]).unwrap().shape(), [2, 6]);
        assert_eq!(numbers(&x.turned(&[1, 0, 2]).unwrap()), [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
        assert_eq!(numbers(&x.turned(&[0, 2, 1]).unwrap()), [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        let [low, high] = [x.cut(1, 0, 1).unwrap(), x.cut(1, 1, 3).unwrap()];
        assert_eq!((numbers(&low), low.shape()), (vec![0, 1, 6, 7], &[2, 1, 2][..]));
        assert_eq!(Tensor::joined(&[&low, &high], 1).unwrap(), x);
        assert_eq!(numbers(&low.spread(&[2, 2, 2]).unwrap()), [0, 1, 0, 1, 6, 7, 6, 7]);
        assert_eq!(numbers(&counted(&[2]).spread(&[2, 2]).unwrap()), [0, 1, 0, 1]);
        assert_eq!(common(&[2, 1, 4], &[3, 1]).unwrap(), [2, 3, 4]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let x = counted(&[2, 3]);
        assert!(
            x.reshaped(&[4]).is_err() && x.reshaped(&[4, -1]).is_err() && x.reshaped(&[0, 0, 0]).is_err()
        );
        assert!(x.turned(&[0, 0]).is_err() && x.turned(&[0]).is_err() && x.turned(&[0, 2]).is_err());
        assert!(x.cut(1, 2, 4).is_err() && x.spread(&[3]).is_err() && x.spread(&[2, 4]).is_err());
        assert!(Tensor::joined(&[&x, &counted(&[2, 2])], 0).is_err() && Tensor::joined(&[], 0).is_err());
        assert!(common(&[2], &[3]).is_err() && x.axis(2).is_err() && x.axis(-3).is_err());
        assert!(Tensor::floats(vec![2], vec![0.0]).is_none() && Tensor::integers(vec![], vec![]).is_none());
    }
}
