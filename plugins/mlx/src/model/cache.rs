//! Keys and values of each sequence: one array per layer that grows by steps, and the positions its slots hold.
//!
//! Copying a sequence copies references; libmlx copies an array when one of its two owners writes to it.

use drophammer_models::graph::AttentionSpec;
use drophammer_sdk::Result;

use crate::runtime::{Array, Arrays, Quantized, Type};

/// By how many positions arrays grow, as mlx-lm's do.
const STEP: i32 = 256;

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// In the type of the computation.
    Plain,
    /// Packed in so many bits.
    Packed(i32),
}

/// Keys or values of one layer, `[1, heads, slots, width]`.
#[derive(Clone)]
pub(crate) enum Store {
    Plain(Array),
    Packed(Quantized),
}

#[derive(Clone)]
struct Layer {
    keys: Store,
    values: Store,
    slots: i32,
}

/// One sequence.
#[derive(Clone, Default)]
pub(crate) struct Sequence {
    /// What the slots in use hold.
    positions: Vec<u32>,
    layers: Vec<Option<Layer>>,
}

/// The largest of MLX's groups that divides a head.
pub(crate) fn group_of(width: u32) -> Option<i32> {
    [64, 32].into_iter().find(|group| width.is_multiple_of(*group as u32))
}

impl Store {
    fn each(&self, f: impl Fn(&Array) -> Result<Array>) -> Result<Self> {
        Ok(match self {
            Store::Plain(array) => Store::Plain(f(array)?),
            Store::Packed(packed) => Store::Packed(packed.each(f)?),
        })
    }

    fn of(array: &Array, kept: Kept, width: u32) -> Result<Self> {
        Ok(match (kept, group_of(width)) {
            (Kept::Packed(bits), Some(group)) => Store::Packed(array.quantize(group, bits)?),
            _ => Store::Plain(array.clone()),
        })
    }

    /// `self` with `part` from slot `begin` on.
    fn write(self, part: &Store, begin: i32) -> Result<Self> {
        Ok(match (self, part) {
            (Store::Plain(array), Store::Plain(part)) => Store::Plain(array.write(part, 2, begin)?),
            (Store::Packed(all), Store::Packed(part)) => Store::Packed(Quantized {
                codes: all.codes.write(&part.codes, 2, begin)?,
                scales: all.scales.write(&part.scales, 2, begin)?,
                biases: match (all.biases, &part.biases) {
                    (Some(all), Some(part)) => Some(all.write(part, 2, begin)?),
                    (all, _) => all,
                },
                packing: all.packing,
            }),
            (other, _) => other,
        })
    }

    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        let (plain, packed) = match self {
            Store::Plain(array) => (Some(array), None),
            Store::Packed(packed) => (None, Some(packed)),
        };
        let parts = packed.into_iter().flat_map(|packed| {
            [Some(&packed.codes), Some(&packed.scales), packed.biases.as_ref()].into_iter().flatten()
        });
        plain.into_iter().chain(parts)
    }
}

impl Sequence {
    /// What its slots hold.
    pub(crate) fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// Makes room for positions to come: what is held of them already is forgotten.
    pub(crate) fn expect(&mut self, arrays: Arrays, first: u32, last: u32) -> Result<()> {
        if self.positions.iter().any(|position| (first..=last).contains(position)) {
            self.remove(arrays, first, last + 1)?;
        }
        Ok(())
    }

    /// Counts positions whose keys and values every layer has taken in.
    pub(crate) fn commit(&mut self, positions: &[u32]) {
        self.positions.extend_from_slice(positions);
    }

    /// Takes the next keys and values of a layer in; gives all it holds then.
    pub(crate) fn append(
        &mut self,
        arrays: Arrays,
        spec: &AttentionSpec,
        (k, v): (&Array, &Array),
        (kept, kind): (Kept, Type),
    ) -> Result<(Store, Store)> {
        let (used, count) = (self.positions.len() as i32, k.dims().get(2).copied().unwrap_or(0));
        let number = spec.layer as usize;
        if self.layers.len() <= number {
            self.layers.resize(number + 1, None);
        }
        let new = [Store::of(k, kept, spec.key_width)?, Store::of(v, kept, spec.value_width)?];
        let slots = (used + count + STEP - 1) / STEP * STEP;
        let layer = match self.layers[number].take() {
            Some(layer) if layer.slots >= used + count => layer,
            held => {
                let grow = |held: Option<Store>, new: &Store| -> Result<Store> {
                    let from = if held.is_some() { used } else { 0 };
                    let empty = new.each(|part| {
                        let mut dims = part.dims();
                        dims[2] = slots - from;
                        arrays.zeros(&dims, type_of(new, part, kind))
                    })?;
                    match held {
                        Some(held) if used > 0 => {
                            join(arrays, &held.each(|part| part.slice(2, 0, used))?, &empty)
                        }
                        _ => Ok(empty),
                    }
                };
                let (keys, values) = match held {
                    Some(Layer { keys, values, .. }) => (Some(keys), Some(values)),
                    None => (None, None),
                };
                Layer { keys: grow(keys, &new[0])?, values: grow(values, &new[1])?, slots }
            }
        };
        let layer = Layer {
            keys: layer.keys.write(&new[0], used)?,
            values: layer.values.write(&new[1], used)?,
            slots: layer.slots,
        };
        let held = |store: &Store| {
            if layer.slots == used + count {
                Ok(store.clone())
            } else {
                store.each(|part| part.slice(2, 0, used + count))
            }
        };
        let all = (held(&layer.keys)?, held(&layer.values)?);
        self.layers[number] = Some(layer);
        Ok(all)
    }

    /// Its arrays, to be computed.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers.iter().flatten().flat_map(|layer| layer.keys.arrays().chain(layer.values.arrays()))
    }

    /// Forgets the positions of `from..to`.
    pub(crate) fn remove(&mut self, arrays: Arrays, from: u32, to: u32) -> Result<()> {
        self.retain(arrays, |position| !(from..to).contains(&position))
    }

    /// Forgets everything outside `from..to`.
    pub(crate) fn keep(&mut self, arrays: Arrays, from: u32, to: u32) -> Result<()> {
        self.retain(arrays, |position| (from..to).contains(&position))
    }

    fn retain(&mut self, arrays: Arrays, stays: impl Fn(u32) -> bool) -> Result<()> {
        let slots: Vec<i32> = (0..)
            .zip(&self.positions)
            .filter(|(_, position)| stays(**position))
            .map(|(slot, _)| slot)
            .collect();
        if slots.is_empty() {
            *self = Self::default();
            return Ok(());
        }
        // What stays usually lies at the begin: then only the count changes.
        if slots.last().is_some_and(|last| *last as usize >= slots.len()) {
            let chosen = arrays.integers(&slots, &[slots.len() as i32])?;
            for layer in self.layers.iter_mut().flatten() {
                layer.keys = layer.keys.each(|part| part.take(&chosen, 2))?;
                layer.values = layer.values.each(|part| part.take(&chosen, 2))?;
                layer.slots = slots.len() as i32;
            }
            arrays.eval(self.arrays())?;
        }
        self.positions = slots.iter().map(|slot| self.positions[*slot as usize]).collect();
        Ok(())
    }
}

/// The type of one part of a store: codes are words, the rest numbers.
fn type_of(store: &Store, part: &Array, kind: Type) -> Type {
    match store {
        Store::Packed(packed) if packed.codes.is(part) => Type::U32,
        _ => kind,
    }
}

fn join(arrays: Arrays, a: &Store, b: &Store) -> Result<Store> {
    Ok(match (a, b) {
        (Store::Plain(a), Store::Plain(b)) => Store::Plain(arrays.concatenate(&[a.clone(), b.clone()], 2)?),
        (Store::Packed(a), Store::Packed(b)) => {
            let both = |a: &Array, b: &Array| arrays.concatenate(&[a.clone(), b.clone()], 2);
            Store::Packed(Quantized {
                codes: both(&a.codes, &b.codes)?,
                scales: both(&a.scales, &b.scales)?,
                biases: match (&a.biases, &b.biases) {
                    (Some(a), Some(b)) => Some(both(a, b)?),
                    _ => None,
                },
                packing: a.packing,
            })
        }
        _ => a.clone(),
    })
}

/// Bytes that a layer's cache takes per position.
pub(crate) fn bytes_per_position(kv_heads: u32, widths: [u32; 2], kept: Kept, kind: Type) -> u64 {
    let of = |width: u32| match (kept, group_of(width)) {
        (Kept::Packed(bits), Some(group)) => {
            u64::from(width) * bits as u64 / 8 + 2 * u64::from(width) / group as u64 * kind.bytes() as u64
        }
        _ => u64::from(width) * kind.bytes() as u64,
    };
    u64::from(kv_heads) * widths.into_iter().map(of).sum::<u64>()
}
