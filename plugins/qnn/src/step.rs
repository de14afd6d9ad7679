//! One step of a fixed graph: its inputs from tokens, positions and a cache; its outputs into that cache.

use std::borrow::Cow;

use drophammer_models::export::onnx::Interface;
use drophammer_ort::failed;
use drophammer_sdk::{BackendError, ErrorCode, Result};
use ort::session::{Session, SessionInputValue, SessionOutputs};
use ort::value::TensorRef;

/// An input of a graph.
pub(crate) struct Given<'a> {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) numbers: Numbers<'a>,
}

/// An input's numbers.
pub(crate) enum Numbers<'a> {
    Integers(Vec<i32>),
    Floats(Cow<'a, [f32]>),
}

/// What runs a graph.
pub(crate) trait Runner {
    /// Runs it, and gives the outputs to `take`.
    ///
    /// # Errors
    /// What the runtime says, and those of `take`.
    fn run<R>(&mut self, inputs: Vec<Given<'_>>, take: impl FnOnce(&dyn Outputs) -> Result<R>) -> Result<R>;
}

/// What a graph gives.
pub(crate) trait Outputs {
    /// An output by its name.
    ///
    /// # Errors
    /// When there is none of floats.
    fn floats(&self, name: &str) -> Result<&[f32]>;
}

impl Runner for Session {
    fn run<R>(&mut self, inputs: Vec<Given<'_>>, take: impl FnOnce(&dyn Outputs) -> Result<R>) -> Result<R> {
        let refused = |error: ort::Error| failed("a tensor cannot be made", &error);
        let mut named: Vec<(&str, SessionInputValue<'_>)> = Vec::new();
        for Given { name, shape, numbers } in &inputs {
            let shape = shape.clone();
            let tensor = match numbers {
                Numbers::Integers(numbers) => {
                    TensorRef::from_array_view((shape, numbers.as_slice())).map_err(refused)?.into()
                }
                Numbers::Floats(numbers) => {
                    TensorRef::from_array_view((shape, &**numbers)).map_err(refused)?.into()
                }
            };
            named.push((name, tensor));
        }
        let outputs = Session::run(self, named).map_err(|error| failed("the model cannot be run", &error))?;
        take(&outputs)
    }
}

impl Outputs for SessionOutputs<'_> {
    fn floats(&self, name: &str) -> Result<&[f32]> {
        let value = self.get(name).ok_or_else(|| lacks(name))?;
        let told = value.try_extract_tensor::<f32>();
        Ok(told.map_err(|error| failed("an output cannot be read", &error))?.1)
    }
}

/// An output that a graph should have.
pub(crate) fn lacks(name: &str) -> BackendError {
    BackendError::new(ErrorCode::Failed, format!("the model gives no {name}"))
}

/// A graph of fixed shapes, as it is to be fed.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// Tokens at a time.
    pub(crate) tokens: usize,
    /// Places of cache.
    pub(crate) past: usize,
    /// What a mask adds where a token may not be seen.
    pub(crate) unseen: f32,
}

/// Keys and values of one sequence: per cache of the interface, `[heads, past, width]` each.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cache {
    /// Tokens seen.
    pub(crate) length: usize,
    tensors: Vec<Vec<f32>>,
}

impl Cache {
    /// An empty one.
    pub(crate) fn new(interface: &Interface, past: usize) -> Self {
        let sizes = interface
            .caches
            .iter()
            .flat_map(|cache| [cache.key_width, cache.value_width].map(|w| (cache.heads, w)));
        let tensors = sizes.map(|(heads, width)| vec![0.0; heads as usize * past * width as usize]).collect();
        Self { length: 0, tensors }
    }

    /// Whether it has no memory yet.
    pub(crate) fn is_unmade(&self) -> bool {
        self.tensors.is_empty()
    }
}

/// What is made for `count` tokens after `length` others.
fn made(interface: &Interface, shape: &Shape, length: usize, count: usize) -> Vec<Given<'static>> {
    let floats = |name: String, shape: [usize; 4], numbers: Vec<f32>| Given {
        name,
        shape: shape.into(),
        numbers: Numbers::Floats(numbers.into()),
    };
    let mut all = Vec::new();
    for (number, rotation) in interface.rotations.iter().enumerate() {
        let width = rotation.width as usize;
        let (mut cosines, mut sines) = (vec![0.0; shape.tokens * width], vec![0.0; shape.tokens * width]);
        let rows = cosines.chunks_exact_mut(width.max(1)).zip(sines.chunks_exact_mut(width.max(1)));
        for (token, (cosines, sines)) in rows.enumerate() {
            rotation.row((length + token) as u32, cosines, sines);
        }
        let dimensions = [1, shape.tokens, 1, width];
        all.push(floats(format!("cosines.{number}"), dimensions, cosines));
        all.push(floats(format!("sines.{number}"), dimensions, sines));
    }
    for mask in &interface.masks {
        let places = shape.past + shape.tokens;
        let mut values = vec![shape.unseen; shape.tokens * places];
        for (token, row) in values.chunks_exact_mut(places).enumerate() {
            if interface.encoder {
                let reach = mask.window.map_or(places, |window| window as usize / 2);
                let seen = token.saturating_sub(reach)..(token + reach + 1).min(count);
                row.get_mut(seen).unwrap_or_default().fill(0.0);
                row[token] = 0.0;
                continue;
            }
            let window = mask.window.map_or(usize::MAX, |window| window.max(1) as usize);
            // Tokens beyond the count fill up the graph: each sees at least itself, so that its softmax is one.
            let position = length + token;
            let first = (position + 1).saturating_sub(window);
            row[first.min(length)..length].fill(0.0);
            let own = first.saturating_sub(length).min(token);
            row[shape.past + own..=shape.past + token].fill(0.0);
        }
        all.push(floats(mask.name.clone(), [1, 1, shape.tokens, places], values));
    }
    all
}

/// Runs tokens that continue a cache, and gives the outputs to `take`.
///
/// # Errors
/// What the runtime says, and those of `take`.
pub(crate) fn look<R>(
    runner: &mut impl Runner,
    interface: &Interface,
    shape: &Shape,
    cache: &Cache,
    tokens: &[u32],
    take: impl FnOnce(&dyn Outputs) -> Result<R>,
) -> Result<R> {
    let integers = |name: &str, numbers: Vec<i32>| {
        let shape = vec![1, shape.tokens];
        Given { name: name.into(), shape, numbers: Numbers::Integers(numbers) }
    };
    let mut ids: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
    ids.resize(shape.tokens, 0);
    let mut inputs: Vec<Given<'_>> = vec![integers("input_ids", ids)];
    inputs.extend(interface.positions.map(|offset| {
        // Places that only fill up the graph stay within the table.
        let last = cache.length + tokens.len().max(1) - 1;
        let position = |token: usize| ((cache.length + token).min(last) + offset as usize) as i32;
        integers("positions", (0..shape.tokens).map(position).collect())
    }));
    inputs.extend(made(interface, shape, cache.length, tokens.len()));
    for (number, tensor) in cache.tensors.iter().enumerate() {
        let (name, heads, width) = place(interface, number).ok_or_else(lost)?;
        let shape = vec![1, heads, shape.past, width];
        inputs.push(Given { name: format!("past.{name}"), shape, numbers: Numbers::Floats(tensor.into()) });
    }
    runner.run(inputs, take)
}

/// [`look`], and keeps the new keys and values: at most as many tokens as the graph takes, and as there are places left.
///
/// # Errors
/// Those of [`look`].
pub(crate) fn run(
    runner: &mut impl Runner,
    interface: &Interface,
    shape: &Shape,
    cache: &mut Cache,
    tokens: &[u32],
    take: impl FnOnce(&dyn Outputs) -> Result<()>,
) -> Result<()> {
    let fresh = look(runner, interface, shape, cache, tokens, |outputs| {
        take(outputs)?;
        let present = |number| {
            let (name, heads, width) = place(interface, number).ok_or_else(lost)?;
            let values = outputs.floats(&format!("present.{name}"))?;
            if values.len() == heads * shape.tokens * width { Ok(values.to_vec()) } else { Err(lost()) }
        };
        (0..cache.tensors.len()).map(present).collect::<Result<Vec<_>>>()
    })?;
    for (number, (tensor, fresh)) in cache.tensors.iter_mut().zip(&fresh).enumerate() {
        let (_, _, width) = place(interface, number).ok_or_else(lost)?;
        let heads = tensor.chunks_exact_mut(shape.past * width).zip(fresh.chunks_exact(shape.tokens * width));
        for (kept, fresh) in heads {
            let places = cache.length * width..(cache.length + tokens.len()) * width;
            let kept = kept.get_mut(places).ok_or_else(lost)?;
            kept.copy_from_slice(&fresh[..kept.len()]);
        }
    }
    cache.length += tokens.len();
    Ok(())
}

/// Name, heads and width of a cache's tensor.
fn place(interface: &Interface, number: usize) -> Option<(String, usize, usize)> {
    let cache = interface.caches.get(number / 2)?;
    let (what, width) =
        if number.is_multiple_of(2) { ("key", cache.key_width) } else { ("value", cache.value_width) };
    Some((format!("{}.{what}", cache.layer), cache.heads as usize, width as usize))
}

fn lost() -> BackendError {
    BackendError::new(ErrorCode::Failed, "the model gave back less than it declares")
        .with_help("Make the artifact again; its files belong together.")
}

#[cfg(test)]
mod tests {
    use drophammer_models::export::onnx::Mask;

    use super::*;

    fn seen(mask: &Given<'_>, places: usize) -> Vec<Vec<bool>> {
        let Numbers::Floats(numbers) = &mask.numbers else { panic!("integers") };
        numbers.chunks(places).map(|row| row.iter().map(|x| *x == 0.0).collect()).collect()
    }

    fn mask(window: Option<u32>, length: usize) -> Vec<Vec<bool>> {
        let interface =
            Interface { masks: vec![Mask { name: "mask".into(), window }], ..Interface::default() };
        let shape = Shape { tokens: 3, past: 4, unseen: -100.0 };
        let made = made(&interface, &shape, length, 3);
        seen(&made[0], 7)
    }

    #[test]
    fn tokens_see_the_cache_and_what_comes_before_them() {
        let [o, x] = [false, true];
        assert_eq!(mask(None, 2), [[x, x, o, o, x, o, o], [x, x, o, o, x, x, o], [x, x, o, o, x, x, x]]);
        assert_eq!(mask(None, 0)[0], [o, o, o, o, x, o, o]);
    }

    #[test]
    fn tokens_of_an_encoder_see_each_other_and_none_that_only_fills_up() {
        let masks = [None, Some(2)].map(|window| Mask { name: "mask".into(), window }).into();
        let interface = Interface { masks, encoder: true, ..Interface::default() };
        let shape = Shape { tokens: 4, past: 0, unseen: -100.0 };
        let made = made(&interface, &shape, 0, 3);
        let [o, x] = [false, true];
        assert_eq!(seen(&made[0], 4), [[x, x, x, o], [x, x, x, o], [x, x, x, o], [x, x, x, x]]);
        assert_eq!(seen(&made[1], 4), [[x, x, o, o], [x, x, x, o], [o, x, x, o], [o, o, x, x]]);
    }

    #[test]
    fn a_window_ends_what_is_seen_in_the_cache_and_within_the_step() {
        let [o, x] = [false, true];
        assert_eq!(mask(Some(2), 3), [[o, o, x, o, x, o, o], [o, o, o, o, x, x, o], [o, o, o, o, o, x, x]]);
    }
}
