//! Affine steps by channel after a convolution, folded into its weight and bias: the graph computes the same, and whole numbers have one
//! step less to be rounded at.

use drophammer_formats::onnx::{Attribute, Node};

use super::draft::Draft;
use super::weight::{Channels, Form, Weight};

/// `factor · x + shift`, per channel.
struct Affine {
    factors: Vec<f32>,
    shifts: Vec<f32>,
}

/// Folds whatever follows convolutions and is read by nobody else; gives how many steps went.
pub(super) fn fold(draft: &mut Draft<'_>) -> usize {
    let mut folded = 0;
    let mut at = 0;
    while at < draft.model.graph.nodes.len() {
        if fold_next(draft, at).is_some() {
            folded += 1;
        } else {
            at += 1;
        }
    }
    folded
}

/// An integer attribute.
pub(super) fn int(node: &Node, name: &str) -> Option<i64> {
    node.attributes.iter().find_map(|(key, value)| match value {
        Attribute::Int(value) if key == name => Some(*value),
        _ => None,
    })
}

/// The axis of a weight that counts the outputs of a convolution.
pub(super) fn output_axis(node: &Node) -> Option<usize> {
    match node.op_type.as_str() {
        _ if !node.domain.is_empty() => None,
        "Conv" => Some(0),
        "ConvTranspose" if int(node, "group").unwrap_or(1) == 1 => Some(1),
        _ => None,
    }
}

fn fold_next(draft: &mut Draft<'_>, at: usize) -> Option<()> {
    let node = &draft.model.graph.nodes[at];
    let axis = output_axis(node)?;
    let (output, weight) = (node.outputs.first()?.clone(), node.inputs.get(1)?.clone());
    let bias = node.inputs.get(2).filter(|name| !name.is_empty()).cloned();
    let readers = draft.readers();
    if readers.get(&output) != Some(&1) || readers.get(&weight) != Some(&1) {
        return None;
    }
    let shape = draft.constant(&weight)?.shape.clone();
    let channels = *shape.get(axis)? as usize;
    let nodes = &draft.model.graph.nodes;
    let next = nodes.iter().position(|node| node.inputs.contains(&output))?;
    let step = step(draft, &nodes[next], &output, channels, shape.len())?;
    let result = nodes[next].outputs.first()?.clone();
    let (of, _, mut factors) = draft.origin(&weight)?;
    draft.floats(&weight)?;
    let mut shifts = match &bias {
        Some(bias) => draft.floats(bias).filter(|bias| bias.len() == channels)?,
        None => vec![0.0; channels],
    };
    factors.resize(channels, 1.0);
    factors.iter_mut().zip(&step.factors).for_each(|(all, factor)| *all *= factor);
    for ((shift, factor), more) in shifts.iter_mut().zip(&step.factors).zip(&step.shifts) {
        *shift = *shift * factor + more;
    }
    if factors.iter().chain(&shifts).any(|x| !x.is_finite()) {
        return None;
    }
    let channels = Channels::along(axis, &shape);
    draft.weights.insert(weight, Weight { of, channels, factors, form: Form::Floats });
    let name = format!("{result}/bias");
    draft.hold_floats(&name, &[shifts.len() as u64], &shifts);
    let node = &mut draft.model.graph.nodes[at];
    node.inputs.resize(3, String::new());
    (node.inputs[2], node.outputs[0]) = (name, result);
    draft.model.graph.nodes.remove(next);
    Some(())
}

/// What a node does to a value's channels, where it does that alone. `rank` is the value's.
fn step(draft: &Draft<'_>, node: &Node, value: &str, channels: usize, rank: usize) -> Option<Affine> {
    if !node.domain.is_empty() {
        return None;
    }
    let first = node.inputs.first()? == value;
    let other = node.inputs.get(usize::from(first))?;
    let (ones, zeros) = (vec![1.0; channels], vec![0.0; channels]);
    let told = || per_channel(draft, other, channels, rank);
    let shifted = |shifts| Affine { factors: ones.clone(), shifts };
    let scaled = |factors| Affine { factors, shifts: zeros.clone() };
    Some(match (node.op_type.as_str(), first) {
        ("Add", _) => shifted(told()?),
        ("Mul", _) => scaled(told()?),
        ("Sub", true) => shifted(told()?.iter().map(|x| -x).collect()),
        ("Div", true) => scaled(told()?.iter().map(|x| 1.0 / x).collect()),
        ("BatchNormalization", true) => norm(draft, node, channels)?,
        _ => return None,
    })
}

fn norm(draft: &Draft<'_>, node: &Node, channels: usize) -> Option<Affine> {
    if int(node, "training_mode").unwrap_or(0) != 0
        || node.outputs.iter().skip(1).any(|name| !name.is_empty())
    {
        return None;
    }
    let told = node.attributes.iter().find_map(|(name, value)| match value {
        Attribute::Float(value) if name == "epsilon" => Some(*value),
        _ => None,
    });
    let epsilon = told.unwrap_or(1e-5);
    let input = |place: usize| draft.floats(node.inputs.get(place)?).filter(|x| x.len() == channels);
    let (scale, bias, mean, variance) = (input(1)?, input(2)?, input(3)?, input(4)?);
    let factors: Vec<f32> =
        scale.iter().zip(&variance).map(|(scale, variance)| scale / (variance + epsilon).sqrt()).collect();
    let shifts =
        bias.iter().zip(&mean).zip(&factors).map(|((bias, mean), factor)| bias - mean * factor).collect();
    Some(Affine { factors, shifts })
}

/// A constant as one number per channel, where that is what it means for a value of this rank.
fn per_channel(draft: &Draft<'_>, name: &str, channels: usize, rank: usize) -> Option<Vec<f32>> {
    let shape = &draft.constant(name)?.shape;
    let floats = draft.floats(name).filter(|_| shape.len() <= rank)?;
    if let [one] = floats.as_slice() {
        return Some(vec![*one; channels]);
    }
    let axis = shape.len().checked_sub(rank - 1)?;
    let others = shape.iter().enumerate().filter(|(index, _)| *index != axis).all(|(_, size)| *size == 1);
    (shape.get(axis) == Some(&(channels as u64)) && others).then_some(floats)
}
