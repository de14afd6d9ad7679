//! Which weights a description asks for, found by building it: what the builder uses is what exists.

use std::collections::HashSet;
use std::convert::Infallible;

use crate::builder::{build_decoder, build_encoder};
use crate::description::{Description, ModelKind};
use crate::graph::{
    Activation, AttentionSpec, ExpertSpec, Gating, Graph, Index, Linear, Norm, Pooling, RopeSpec, Table,
};
use crate::weight::WeightId;

/// A weight and its shape, outermost dimension first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightShape {
    /// Which weight.
    pub id: WeightId,
    /// `[n]`, `[rows, columns]` or `[experts, rows, columns]`.
    pub shape: Vec<u64>,
}

/// Every weight of a model, in the order in which it is used, each once.
pub fn inventory(description: &Description) -> Vec<WeightShape> {
    let mut inventory = Inventory { weights: Vec::new(), seen: HashSet::new() };
    let built = match description.kind {
        ModelKind::Decoder => build_decoder(&mut inventory, description),
        ModelKind::Encoder => build_encoder(&mut inventory, description),
    };
    match built {
        Ok(()) => inventory.weights,
    }
}

/// A graph that only notes which weights pass by.
struct Inventory {
    weights: Vec<WeightShape>,
    seen: HashSet<WeightId>,
}

type Noted = Result<(), Infallible>;

impl Inventory {
    fn note(&mut self, id: WeightId, shape: &[u32]) {
        if self.seen.insert(id) {
            self.weights.push(WeightShape { id, shape: shape.iter().copied().map(u64::from).collect() });
        }
    }

    fn note_stack(&mut self, experts: u32, linear: &Linear) {
        self.note(linear.weight, &[experts, linear.outputs, linear.inputs]);
        if let Some(bias) = linear.bias {
            self.note(bias, &[experts, linear.outputs]);
        }
    }
}

impl Graph for Inventory {
    type Value = ();
    type Error = Infallible;

    fn embedding(&mut self, table: &Table, _: Index) -> Noted {
        self.note(table.weight, &[table.rows, table.width]);
        Ok(())
    }

    fn linear(&mut self, (): &(), linear: &Linear) -> Noted {
        self.note(linear.weight, &[linear.outputs, linear.inputs]);
        if let Some(bias) = linear.bias {
            self.note(bias, &[linear.outputs]);
        }
        Ok(())
    }

    fn norm(&mut self, (): &(), norm: &Norm) -> Noted {
        for id in [norm.weight, norm.bias].into_iter().flatten() {
            if norm.per_group {
                self.note(id, &[norm.groups, norm.width]);
            } else {
                self.note(id, &[norm.width]);
            }
        }
        Ok(())
    }

    fn rope(&mut self, (): &(), _: &RopeSpec<'_>) -> Noted {
        Ok(())
    }

    fn attention(&mut self, (): &(), (): &(), (): &(), spec: &AttentionSpec) -> Noted {
        if let Some(sinks) = spec.sinks {
            self.note(sinks, &[spec.heads]);
        }
        Ok(())
    }

    fn join_heads(&mut self, (): &(), (): &(), _: u32) -> Noted {
        Ok(())
    }

    fn activate(&mut self, (): &(), _: Activation) -> Noted {
        Ok(())
    }

    fn gated(&mut self, (): &(), (): &(), _: Gating) -> Noted {
        Ok(())
    }

    fn experts(&mut self, (): &(), spec: &ExpertSpec) -> Noted {
        self.linear(&(), &spec.router)?;
        if let Some(correction) = spec.routing.correction {
            self.note(correction, &[spec.routing.experts]);
        }
        for linear in [&spec.gate, &spec.up, &spec.down] {
            self.note_stack(spec.routing.experts, linear);
        }
        Ok(())
    }

    fn add(&mut self, (): &(), (): &()) -> Noted {
        Ok(())
    }

    fn mul(&mut self, (): &(), (): &()) -> Noted {
        Ok(())
    }

    fn scale(&mut self, (): &(), _: f32) -> Noted {
        Ok(())
    }

    fn softcap(&mut self, (): &(), _: f32) -> Noted {
        Ok(())
    }

    fn pool(&mut self, (): &(), _: Pooling) -> Noted {
        Ok(())
    }
}
