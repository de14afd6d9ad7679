//! Sizes of a graph's inputs: what the option `shapes` tells, and graphs in which all are fixed, as compilers for accelerators want them.

use drophammer_formats::onnx::Dimension;
use drophammer_sdk::{BackendError, ErrorCode, Goal, Result};

use super::{Input, PlainGraph};

fn refused(message: String, help: impl Into<String>) -> BackendError {
    BackendError::new(ErrorCode::InvalidRequest, message).with_help(help.into())
}

/// What the option `shapes` tells, as in `x=1x3x224x224,rate=1`: for each input its sizes, where it is named.
fn told(goal: &Goal, inputs: &[Input]) -> Result<Vec<Option<Vec<u64>>>> {
    let text = goal.options.get("shapes").and_then(|value| value.as_str()).unwrap_or_default();
    let mut all = vec![None; inputs.len()];
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let read = part.rsplit_once('=').and_then(|(name, sizes)| {
            let sizes: Option<Vec<u64>> =
                sizes.split('x').map(|size| size.parse().ok().filter(|size| *size > 0)).collect();
            Some((inputs.iter().position(|input| input.name == name)?, sizes?))
        });
        let Some((place, sizes)) = read else {
            let message = format!("option `shapes`: `{part}` is no input and its sizes");
            return Err(refused(message, "Write NAME=1x3x224x224."));
        };
        let fits = inputs[place].shape.as_ref().is_none_or(|shape| {
            let mut pairs = shape.iter().zip(&sizes);
            shape.len() == sizes.len() && pairs.all(|(due, size)| due.is_none_or(|due| due == *size))
        });
        if !fits {
            let message = format!("option `shapes`: `{part}` does not fit the input {}", inputs[place]);
            return Err(refused(message, "Name as many sizes, and those that are fixed as they are."));
        }
        all[place] = Some(sizes);
    }
    Ok(all)
}

/// Sizes of all inputs where nobody gives samples: those told, one for an open first size.
///
/// # Errors
/// [`ErrorCode::InvalidRequest`] where others are open, or the option cannot be read or does not fit.
pub(super) fn sizes(goal: &Goal, inputs: &[Input]) -> Result<Vec<Vec<u64>>> {
    let told = told(goal, inputs)?;
    let size = |(input, told): (&Input, Option<Vec<u64>>)| {
        let batch = |(axis, size): (usize, &Option<u64>)| size.or((axis == 0).then_some(1));
        let usual = || input.shape.as_ref()?.iter().enumerate().map(batch).collect();
        told.or_else(usual).ok_or_else(|| {
            let help = format!("Give calibration data, or say sizes with --option shapes={}=….", input.name);
            refused(format!("the input {input} has open sizes"), help)
        })
    };
    inputs.iter().zip(told).map(size).collect()
}

impl PlainGraph {
    /// The same with all sizes of its inputs fixed: its own, and those that the option `shapes` tells.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidRequest`] naming the inputs whose sizes are open and not told;
    /// [`ErrorCode::UnsupportedInput`] for control flow, whose sizes nobody knows beforehand.
    pub fn fixed(mut self, goal: &Goal) -> Result<Self> {
        let branches = self.branches();
        if !branches.is_empty() {
            let kinds = branches.into_iter().collect::<Vec<_>>().join(", ");
            let message = format!("{}: it decides while it runs ({kinds})", self.file().display());
            return Err(BackendError::new(ErrorCode::UnsupportedInput, message).with_help(
                "Compiled graphs do the same every time: export it without control flow, or make it for ONNX Runtime.",
            ));
        }
        let told = told(goal, &self.inputs)?;
        let open = |input: &Input| input.shape.as_ref().is_none_or(|shape| shape.contains(&None));
        let untold: Vec<&Input> = self
            .inputs
            .iter()
            .zip(&told)
            .filter(|(input, told)| told.is_none() && open(input))
            .map(|(input, _)| input)
            .collect();
        if !untold.is_empty() {
            let list = untold.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let message = format!("{}: sizes of its inputs are open: {list}", self.file().display());
            let example = untold.iter().map(|input| example(input)).collect::<Vec<_>>().join(",");
            let help = format!("Compiled graphs have fixed sizes: say them with --option shapes={example}.");
            return Err(refused(message, help));
        }
        for (input, told) in self.inputs.iter_mut().zip(told) {
            let Some(sizes) = told else { continue };
            let own = self.model.graph.inputs.iter_mut().find(|own| own.name == input.name);
            if let Some(own) = own {
                own.shape = Some(sizes.iter().map(|size| Dimension::Fixed(*size as i64)).collect());
            }
            input.shape = Some(sizes.into_iter().map(Some).collect());
        }
        // What they were for open sizes is inferred anew.
        self.model.graph.outputs.iter_mut().for_each(|output| output.shape = None);
        Ok(self)
    }
}

/// How an input's sizes could be told: one where they are open.
fn example(input: &Input) -> String {
    let size = |size: &Option<u64>| size.unwrap_or(1).to_string();
    let shape = input.shape.as_ref().map(|shape| shape.iter().map(size).collect::<Vec<_>>().join("x"));
    format!("{}={}", input.name, shape.unwrap_or_else(|| "1x…".into()))
}

#[cfg(test)]
mod tests {
    use drophammer_formats::onnx::ElementType;

    use super::*;

    fn input(name: &str, shape: Option<&[Option<u64>]>) -> Input {
        Input { name: name.into(), element: ElementType(1), shape: shape.map(<[Option<u64>]>::to_vec) }
    }

    fn goal(text: &str) -> Goal {
        Goal { options: [("shapes".to_owned(), text.into())].into_iter().collect(), ..Goal::default() }
    }

    #[test]
    fn open_sizes_are_asked_for() {
        let inputs = [input("x", Some(&[None, Some(3), None])), input("a=b", None)];
        let first = &inputs[..1];
        assert!(sizes(&Goal::default(), first).unwrap_err().help.contains("shapes=x="));
        assert_eq!(sizes(&goal("x=2x3x8"), first).unwrap(), [[2, 3, 8]]);
        assert_eq!(sizes(&goal("a=b=7, x=2x3x8"), &inputs).unwrap(), [vec![2, 3, 8], vec![7]]);
        assert!(sizes(&goal("x=2x3x8"), &inputs).is_err(), "nothing is known of the other");
        for wrong in ["x=2x4x8", "x=2x3", "y=1", "x=0x3x8", "x"] {
            assert!(sizes(&goal(wrong), first).is_err(), "{wrong}");
        }
    }
}
