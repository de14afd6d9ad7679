//! One step of a fixed graph: its inputs from tokens, positions and a cache; its outputs into that cache.

use std::borrow::Cow;

use drophammer_models::export::onnx::Interface;
use drophammer_ort::failed;
use drophammer_sdk::{BackendError, ErrorCode, Result};
use ort::session::{Session, SessionInputValue, SessionOutputs};
use ort::value::TensorRef;

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

/// The values of inputs that depend on positions alone.
struct Made {
    name: String,
    shape: [usize; 4],
    values: Vec<f32>,
}

/// What is made for `count` tokens after `length` others.
fn made(interface: &Interface, shape: &Shape, length: usize, count: usize) -> Vec<Made> {
    let mut all = Vec::new();
    for (number, rotation) in interface.rotations.iter().enumerate() {
        let width = rotation.width as usize;
        let (mut cosines, mut sines) = (vec![0.0; shape.tokens * width], vec![0.0; shape.tokens * width]);
        let rows = cosines.chunks_exact_mut(width.max(1)).zip(sines.chunks_exact_mut(width.max(1)));
        for (token, (cosines, sines)) in rows.enumerate() {
            rotation.row((length + token) as u32, cosines, sines);
        }
        let dimensions = [1, shape.tokens, 1, width];
        all.push(Made { name: format!("cosines.{number}"), shape: dimensions, values: cosines });
        all.push(Made { name: format!("sines.{number}"), shape: dimensions, values: sines });
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
        all.push(Made { name: mask.name.clone(), shape: [1, 1, shape.tokens, places], values });
    }
    all
}

/// Runs tokens that continue a cache, and gives the outputs to `take`.
///
/// # Errors
/// What the library says.
pub(crate) fn look<R>(
    session: &mut Session,
    interface: &Interface,
    shape: &Shape,
    cache: &Cache,
    tokens: &[u32],
    take: impl FnOnce(&SessionOutputs<'_>) -> Result<R>,
) -> Result<R> {
    let refused = |error: ort::Error| failed("a tensor cannot be made", &error);
    let mut ids: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
    ids.resize(shape.tokens, 0);
    let made = made(interface, shape, cache.length, tokens.len());
    let positions: Option<Vec<i32>> = interface.positions.map(|offset| {
        // Places that only fill up the graph stay within the table.
        let last = cache.length + tokens.len().max(1) - 1;
        (0..shape.tokens).map(|token| ((cache.length + token).min(last) + offset as usize) as i32).collect()
    });
    let mut inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::new();
    let row = [1, shape.tokens];
    let ids = TensorRef::from_array_view((row, ids.as_slice())).map_err(refused)?;
    inputs.push(("input_ids".into(), ids.into()));
    if let Some(positions) = &positions {
        let tensor = TensorRef::from_array_view((row, positions.as_slice())).map_err(refused)?;
        inputs.push(("positions".into(), tensor.into()));
    }
    for made in &made {
        let tensor = TensorRef::from_array_view((made.shape, made.values.as_slice())).map_err(refused)?;
        inputs.push((made.name.as_str().into(), tensor.into()));
    }
    for (number, tensor) in cache.tensors.iter().enumerate() {
        let (name, heads, width) = place(interface, number).ok_or_else(lost)?;
        let shape = [1, heads, shape.past, width];
        let tensor = TensorRef::from_array_view((shape, tensor.as_slice())).map_err(refused)?;
        inputs.push((format!("past.{name}").into(), tensor.into()));
    }
    let outputs = session.run(inputs).map_err(|error| failed("the model cannot be run", &error))?;
    take(&outputs)
}

/// [`look`], and keeps the new keys and values: at most as many tokens as the graph takes, and as there are places left.
///
/// # Errors
/// What the library says.
pub(crate) fn run(
    session: &mut Session,
    interface: &Interface,
    shape: &Shape,
    cache: &mut Cache,
    tokens: &[u32],
    take: impl FnOnce(&SessionOutputs<'_>) -> Result<()>,
) -> Result<()> {
    let fresh = look(session, interface, shape, cache, tokens, |outputs| {
        take(outputs)?;
        (0..cache.tensors.len())
            .map(|number| present(interface, shape, outputs, number))
            .collect::<Result<Vec<_>>>()
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

/// The keys or values of a step's own tokens.
fn present(
    interface: &Interface,
    shape: &Shape,
    outputs: &SessionOutputs<'_>,
    number: usize,
) -> Result<Vec<f32>> {
    let (name, heads, width) = place(interface, number).ok_or_else(lost)?;
    let present = outputs.get(format!("present.{name}")).ok_or_else(lost)?;
    let (_, values) =
        present.try_extract_tensor::<f32>().map_err(|error| failed("a cache cannot be read", &error))?;
    if values.len() == heads * shape.tokens * width { Ok(values.to_vec()) } else { Err(lost()) }
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

    fn mask(window: Option<u32>, length: usize) -> Vec<Vec<bool>> {
        let interface =
            Interface { masks: vec![Mask { name: "mask".into(), window }], ..Interface::default() };
        let shape = Shape { tokens: 3, past: 4, unseen: -100.0 };
        let made = made(&interface, &shape, length, 3);
        made[0].values.chunks(7).map(|row| row.iter().map(|x| *x == 0.0).collect()).collect()
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
        let seen = |place: usize| -> Vec<Vec<bool>> {
            made[place].values.chunks(4).map(|row| row.iter().map(|x| *x == 0.0).collect()).collect()
        };
        let [o, x] = [false, true];
        assert_eq!(seen(0), [[x, x, x, o], [x, x, x, o], [x, x, x, o], [x, x, x, x]]);
        assert_eq!(seen(1), [[x, x, o, o], [x, x, x, o], [o, x, x, o], [o, o, x, x]]);
    }

    #[test]
    fn a_window_ends_what_is_seen_in_the_cache_and_within_the_step() {
        let [o, x] = [false, true];
        assert_eq!(mask(Some(2), 3), [[o, o, x, o, x, o, o], [o, o, o, o, x, x, o], [o, o, o, o, o, x, x]]);
    }
}
