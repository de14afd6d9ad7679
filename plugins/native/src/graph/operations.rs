//! What nodes compute, but for products. ONNX's definitions (opset 23), for the operands that fixed graphs give them.
#![allow(unsafe_code)] // one call of a kernel, whose reason stands at it

use drophammer_formats::onnx::{Attribute, Node};
use drophammer_models::graph::Activation;

use super::tensor::{Fault, Tensor, common};
use crate::kernels::Path;
use crate::kernels::rows::{self, Unary};

/// A node with its operands; `None` for those that are left out.
pub(super) struct Call<'a> {
    pub(super) node: &'a Node,
    pub(super) operands: Vec<Option<&'a Tensor>>,
    pub(super) path: Path,
}

impl<'a> Call<'a> {
    /// The outputs, in order.
    pub(super) fn outputs(&self) -> Result<Vec<Tensor>, Fault> {
        match self.node.op_type.as_str() {
            "Split" => self.split(),
            "TopK" => self.largest(),
            _ => Ok(vec![self.output()?]),
        }
    }

    fn output(&self) -> Result<Tensor, Fault> {
        match self.node.op_type.as_str() {
            "Add" => self.binary(|a, b| a + b),
            "Sub" => self.binary(|a, b| a - b),
            "Mul" => self.binary(|a, b| a * b),
            "Div" => self.binary(|a, b| a / b),
            "Min" => self.binary(f32::min),
            "Max" => self.binary(f32::max),
            "Neg" => self.unary(Unary::Scale(-1.0)),
            "Sigmoid" => self.unary(Unary::Activate(Activation::Sigmoid)),
            "Tanh" => self.unary(Unary::Activate(Activation::Tanh)),
            "Relu" => self.unary(Unary::Activate(Activation::Relu)),
            "Gelu" => {
                let tanh = self.text("approximate") == Some(b"tanh");
                self.unary(Unary::Activate(if tanh { Activation::GeluTanh } else { Activation::Gelu }))
            }
            "Clip" => self.clipped(),
            "Softmax" => self.rows(|_, row| softmax(row)),
            "RMSNormalization" => self.norm(false),
            "LayerNormalization" => self.norm(true),
            "ReduceSum" => self.sums(),
            "Reshape" => self.at(0)?.reshaped(self.integers(1)?),
            "Unsqueeze" => self.unsqueezed(),
            "Transpose" => self.at(0)?.turned(self.ints("perm").ok_or("a transposition without an order")?),
            "Expand" => self.expanded(),
            "Tile" => self.tiled(),
            "Slice" => self.sliced(),
            "Concat" => self.joined(),
            "GatherElements" => self.gathered(),
            "ScatterElements" => self.scattered(),
            "Where" => self.chosen(),
            "Cast" => self.cast(),
            "Shape" => {
                let shape = self.at(0)?.shape();
                Tensor::integers(vec![shape.len()], shape.iter().map(|&size| size as i64).collect())
                    .ok_or_else(|| "a shape".into())
            }
            other => Err(format!("the native engine has no {other} in graphs")),
        }
    }

    pub(super) fn at(&self, place: usize) -> Result<&'a Tensor, Fault> {
        let given = self.operands.get(place).copied().flatten();
        given.ok_or_else(|| format!("operand {place} is missing"))
    }

    fn floats(&self, place: usize) -> Result<&'a [f32], Fault> {
        self.at(place)?.need_floats()
    }

    fn integers(&self, place: usize) -> Result<&'a [i64], Fault> {
        self.at(place)?.need_integers()
    }

    fn attribute(&self, name: &str) -> Option<&'a Attribute> {
        self.node.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// A whole number among the attributes.
    pub(super) fn int(&self, name: &str, otherwise: i64) -> i64 {
        match self.attribute(name) {
            Some(Attribute::Int(value)) => *value,
            _ => otherwise,
        }
    }

    /// Whether the second factor of a product lies as `[columns, depth]`, and nothing is added or scaled.
    pub(super) fn is_transposed(&self) -> bool {
        self.int("transB", 0) == 1
            && self.int("transA", 0) == 0
            && self.operands.len() == 2
            && self.attribute("alpha").is_none()
    }

    fn ints(&self, name: &str) -> Option<&'a [i64]> {
        match self.attribute(name) {
            Some(Attribute::Ints(values)) => Some(values),
            _ => None,
        }
    }

    fn text(&self, name: &str) -> Option<&'a [u8]> {
        match self.attribute(name) {
            Some(Attribute::String(value)) => Some(value),
            _ => None,
        }
    }

    fn unary(&self, what: Unary) -> Result<Tensor, Fault> {
        let x = self.floats(0)?;
        let mut out = vec![0.0; x.len()];
        // SAFETY: both have so many numbers.
        unsafe { rows::unary(self.path, what, x.as_ptr(), out.as_mut_ptr(), x.len()) };
        self.at(0)?.with(out)
    }

    fn binary(&self, what: impl Fn(f32, f32) -> f32) -> Result<Tensor, Fault> {
        let (a, b) = (self.at(0)?, self.at(1)?);
        let shape = common(a.shape(), b.shape())?;
        let (a, b) = (a.spread(&shape)?, b.spread(&shape)?);
        let pairs = a.need_floats()?.iter().zip(b.need_floats()?);
        let numbers = pairs.map(|(a, b)| what(*a, *b)).collect();
        Tensor::made(shape, numbers)
    }

    /// Every row of the last dimension, changed in place, with its number.
    fn rows(&self, change: impl Fn(usize, &mut [f32])) -> Result<Tensor, Fault> {
        let x = self.at(0)?;
        if x.axis(self.int("axis", -1))? + 1 != x.shape().len() {
            return Err("rows of another dimension than the last".into());
        }
        let mut out = x.need_floats()?.to_vec();
        out.chunks_exact_mut(x.width()).enumerate().for_each(|(number, row)| change(number, row));
        x.with(out)
    }

    fn clipped(&self) -> Result<Tensor, Fault> {
        let bound = |place| Ok::<_, Fault>(self.floats(place)?.first().copied().ok_or("an empty bound")?);
        let (least, most) = (bound(1)?, bound(2)?);
        let numbers = self.floats(0)?.iter().map(|x| x.max(least).min(most)).collect();
        self.at(0)?.with(numbers)
    }

    fn norm(&self, centred: bool) -> Result<Tensor, Fault> {
        let x = self.floats(0)?;
        let (width, gain) = (self.at(0)?.width(), self.floats(1)?);
        let bias = if self.operands.len() > 2 { Some(self.floats(2)?) } else { None };
        if gain.len() != width || bias.is_some_and(|bias| bias.len() != width) {
            return Err(format!("a norm of {} on rows of {width}", gain.len()));
        }
        let epsilon = match self.attribute("epsilon") {
            Some(Attribute::Float(epsilon)) => *epsilon,
            _ => 1e-5,
        };
        self.rows(|number, out| {
            let x = &x[number * width..][..width];
            rows::norm(self.path, x, Some(gain), bias, epsilon, centred, out);
        })
    }

    /// Of the last dimension.
    fn sums(&self) -> Result<Tensor, Fault> {
        let x = self.at(0)?;
        let last = match self.integers(1)? {
            [axis] => x.axis(*axis)? + 1 == x.shape().len(),
            _ => false,
        };
        if !last {
            return Err("sums of other dimensions than the last".into());
        }
        let sums = x.need_floats()?.chunks_exact(x.width()).map(|row| row.iter().sum()).collect();
        let mut shape = x.shape()[..x.shape().len() - 1].to_vec();
        if self.int("keepdims", 1) != 0 {
            shape.push(1);
        }
        Tensor::made(shape, sums)
    }

    fn unsqueezed(&self) -> Result<Tensor, Fault> {
        let (x, axes) = (self.at(0)?, self.integers(1)?);
        let mut shape: Vec<i64> = x.shape().iter().map(|&size| size as i64).collect();
        let rank = (x.shape().len() + axes.len()) as i64;
        let place = |&axis: &i64| usize::try_from(if axis < 0 { axis + rank } else { axis }).ok();
        let mut places: Vec<usize> = axes.iter().filter_map(place).collect();
        places.sort_unstable();
        for place in places {
            if place > shape.len() {
                return Err(format!("new dimensions {axes:?} of {:?}", x.shape()));
            }
            shape.insert(place, 1);
        }
        x.reshaped(&shape)
    }

    fn expanded(&self) -> Result<Tensor, Fault> {
        let (x, wanted) = (self.at(0)?, self.sizes(1)?);
        x.spread(&common(x.shape(), &wanted)?)
    }

    fn sizes(&self, place: usize) -> Result<Vec<usize>, Fault> {
        let size = |&size: &i64| usize::try_from(size).map_err(|_| format!("a size of {size}"));
        self.integers(place)?.iter().map(size).collect()
    }

    fn tiled(&self) -> Result<Tensor, Fault> {
        let (mut x, times) = (self.at(0)?.clone(), self.sizes(1)?);
        if times.len() != x.shape().len() {
            return Err(format!("{times:?} repetitions of {:?}", x.shape()));
        }
        for (axis, times) in times.into_iter().enumerate() {
            x = Tensor::joined(&vec![&x; times], axis)?;
        }
        Ok(x)
    }

    fn sliced(&self) -> Result<Tensor, Fault> {
        let mut x = self.at(0)?.clone();
        if self.operands.len() > 4 {
            return Err("a slice with steps".into());
        }
        let bounds = self.integers(1)?.iter().zip(self.integers(2)?);
        for ((&begin, &end), &axis) in bounds.zip(self.integers(3)?) {
            let axis = x.axis(axis)?;
            let size = x.shape()[axis] as i64;
            let place = |at: i64| (if at < 0 { at + size } else { at }).clamp(0, size);
            x = x.cut(axis, place(begin) as usize, place(end).max(place(begin)) as usize)?;
        }
        Ok(x)
    }

    fn split(&self) -> Result<Vec<Tensor>, Fault> {
        let x = self.at(0)?;
        let axis = x.axis(self.int("axis", 0))?;
        let (count, whole) = (self.node.outputs.len(), x.shape()[axis]);
        let sizes = if self.operands.len() > 1 {
            self.sizes(1)?
        } else {
            let each = whole.div_ceil(count.max(1));
            (0..count).map(|part| each.min(whole - (part * each).min(whole))).collect()
        };
        if sizes.len() != count || sizes.iter().sum::<usize>() != whole {
            return Err(format!("{whole} places as {sizes:?}"));
        }
        let mut begin = 0;
        let part = |size: usize| {
            begin += size;
            x.cut(axis, begin - size, begin)
        };
        sizes.into_iter().map(part).collect()
    }

    fn joined(&self) -> Result<Tensor, Fault> {
        let parts = (0..self.operands.len()).map(|place| self.at(place)).collect::<Result<Vec<_>, _>>()?;
        let axis = self.at(0)?.axis(self.int("axis", 0))?;
        Tensor::joined(&parts, axis)
    }

    /// Values and places of the largest of each row; of equal ones the first.
    fn largest(&self) -> Result<Vec<Tensor>, Fault> {
        let (x, count) = (self.at(0)?, self.sizes(1)?);
        let last = x.axis(self.int("axis", -1))? + 1 == x.shape().len();
        let count =
            *count.first().filter(|&&count| last && count <= x.width()).ok_or("the largest of too few")?;
        let (mut values, mut places) = (Vec::new(), Vec::new());
        for row in x.need_floats()?.chunks_exact(x.width()) {
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            order.truncate(count);
            values.extend(order.iter().map(|&place| row[place]));
            places.extend(order.iter().map(|&place| place as i64));
        }
        let mut shape = x.shape().to_vec();
        shape.pop();
        shape.push(count);
        let places = Tensor::integers(shape.clone(), places).ok_or("places of another shape")?;
        Ok(vec![Tensor::made(shape, values)?, places])
    }

    /// Rows of operand 0 with those of `places`: so wide each.
    fn with_places(&self, places: usize) -> Result<impl Iterator<Item = (&'a [f32], Vec<usize>)>, Fault> {
        let (x, places) = (self.at(0)?, self.at(places)?);
        let (width, each) = (x.width(), places.width());
        let last = x.axis(self.int("axis", 0))? + 1 == x.shape().len();
        let rows = |tensor: &Tensor| tensor.shape().iter().rev().skip(1).product::<usize>();
        let own = |&place: &i64| {
            let place = if place < 0 { place + width as i64 } else { place };
            usize::try_from(place).ok().filter(|place| *place < width)
        };
        let found: Option<Vec<usize>> = places.need_integers()?.iter().map(own).collect();
        let found = found.filter(|_| last && rows(x) == rows(places)).ok_or("places outside of rows")?;
        let all: Vec<Vec<usize>> = found.chunks_exact(each).map(<[usize]>::to_vec).collect();
        Ok(x.need_floats()?.chunks_exact(width).zip(all))
    }

    fn gathered(&self) -> Result<Tensor, Fault> {
        let rows = self.with_places(1)?;
        let numbers = rows.flat_map(|(row, places)| places.into_iter().map(|place| row[place])).collect();
        self.at(1)?.with(numbers)
    }

    fn scattered(&self) -> Result<Tensor, Fault> {
        let updates = self.floats(2)?;
        if self.at(2)?.shape() != self.at(1)?.shape() {
            return Err("as many places as numbers are expected".into());
        }
        let mut out = Vec::new();
        let mut updates = updates.iter();
        for (row, places) in self.with_places(1)? {
            let mut row = row.to_vec();
            places.into_iter().zip(&mut updates).for_each(|(place, update)| row[place] = *update);
            out.extend(row);
        }
        self.at(0)?.with(out)
    }

    fn chosen(&self) -> Result<Tensor, Fault> {
        let [flags, a, b] = [self.at(0)?, self.at(1)?, self.at(2)?];
        let shape = common(flags.shape(), &common(a.shape(), b.shape())?)?;
        let [flags, a, b] = [flags.spread(&shape)?, a.spread(&shape)?, b.spread(&shape)?];
        let pairs = a.need_floats()?.iter().zip(b.need_floats()?);
        let all = flags.need_integers()?.iter().zip(pairs);
        Tensor::made(shape, all.map(|(flag, (a, b))| if *flag == 0 { *b } else { *a }).collect())
    }

    fn cast(&self) -> Result<Tensor, Fault> {
        let x = self.at(0)?;
        let integers = |numbers: Vec<i64>| {
            Tensor::integers(x.shape().to_vec(), numbers).ok_or_else(|| "numbers of another shape".to_owned())
        };
        match (self.int("to", 0), x.as_floats()) {
            (1, Some(_)) | (6 | 7, None) => Ok(x.clone()),
            (1, None) => x.with(x.need_integers()?.iter().map(|x| *x as f32).collect()),
            (6 | 7, Some(numbers)) => integers(numbers.iter().map(|x| *x as i64).collect()),
            (9, Some(numbers)) => integers(numbers.iter().map(|x| i64::from(*x != 0.0)).collect()),
            (9, None) => integers(x.need_integers()?.iter().map(|x| i64::from(*x != 0)).collect()),
            (other, _) => Err(format!("numbers of type {other}")),
        }
    }
}

fn softmax(row: &mut [f32]) {
    let largest = row.iter().fold(f32::MIN, |largest, x| largest.max(*x));
    let mut sum = 0.0;
    for x in row.iter_mut() {
        *x = (*x - largest).exp();
        sum += *x;
    }
    for x in row {
        *x /= sum;
    }
}
