//! Places where columns of matrices can be scaled without changing what a model computes.
//!
//! Wherever a matrix reads what a norm or another matrix wrote and nothing but linear work (or a gate's other half, or attention's
//! weighted sum) lies between, its columns can be multiplied by any numbers that what was written is divided by. Formats that
//! share a scale among columns then lose less on those that matter (activation-aware scaling: Lin et al., "AWQ", 2024; Xiao et al.,
//! "SmoothQuant", 2023). [`folds`] lists the places, [`Checkpoint::scaled`](crate::Checkpoint::scaled) moves the numbers while rows
//! are read: norms and biases are exact to a rounding of a float32, and to the bit where scales are powers of two.

use crate::description::{Description, FeedForward, Layer, NormRule, Wiring};
use crate::graph::Gating;
use crate::weight::{Role, WeightId};

/// Matrices that read the same columns, and what writes these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fold {
    /// A norm's gain, or a matrix by its rows; and the bias beside it, if there is one. They are divided.
    pub producers: Vec<WeightId>,
    /// Matrices, by their columns. They are multiplied.
    pub consumers: Vec<WeightId>,
    /// Numbers that are written, each with a scale of its own.
    pub width: usize,
    /// Neighbouring numbers that are read together; with more than one reader a consumer has `readers` blocks for each of the
    /// producer's: heads that share keys and values.
    pub block: usize,
    /// See [`Fold::block`].
    pub readers: usize,
}

impl Fold {
    /// The scale's number of a consumer's column.
    pub fn scale_of(&self, column: usize) -> usize {
        column / (self.block * self.readers) * self.block + column % self.block
    }

    /// The scales of a consumer's columns.
    ///
    /// # Panics
    /// If there are not [`Fold::width`] scales.
    pub fn spread(&self, scales: &[f32]) -> Vec<f32> {
        assert_eq!(scales.len(), self.width, "a scale for each number written");
        (0..self.width * self.readers).map(|column| scales[self.scale_of(column)]).collect()
    }
}

/// All such places of a model, in the order in which they are used.
pub fn folds(description: &Description) -> Vec<Fold> {
    let mut folds = Vec::new();
    for (number, layer) in (0..).zip(&description.layers) {
        Folder { folds: &mut folds, description, layer, number }.layer();
    }
    if let (Some(rule), Some(head)) = (description.final_norm, description.head)
        && rule.weight
        && !head.tied
    {
        let producers = with_bias(Role::FinalNorm.global(), rule.bias);
        folds.push(whole(producers, vec![Role::Head.global()], description.hidden));
    }
    folds
}

fn with_bias(id: WeightId, bias: bool) -> Vec<WeightId> {
    if bias { vec![id, id.bias()] } else { vec![id] }
}

fn whole(producers: Vec<WeightId>, consumers: Vec<WeightId>, width: u32) -> Fold {
    Fold { producers, consumers, width: width as usize, block: width as usize, readers: 1 }
}

struct Folder<'a> {
    folds: &'a mut Vec<Fold>,
    description: &'a Description,
    layer: &'a Layer,
    number: u32,
}

impl Folder<'_> {
    fn ids(&self, roles: &[Role]) -> Vec<WeightId> {
        roles.iter().map(|role| role.of(self.number)).collect()
    }

    fn layer(&mut self) {
        let norms = self.layer.norms;
        let (attention, mut feed_forward) = (self.attention_inputs(), self.feed_forward_inputs());
        if self.layer.wiring == Wiring::PostNorm {
            // What norms write is the residual stream, too: only inside of blocks there is room.
            self.values();
            return self.inner();
        }
        let mut first = attention;
        if self.layer.wiring == Wiring::Parallel && norms.feed_forward.is_none() {
            first.append(&mut feed_forward);
        }
        self.norm(Role::AttentionNorm, norms.attention, &first, self.description.hidden);
        self.latent();
        self.values();
        if !feed_forward.is_empty() {
            self.norm(Role::FeedForwardNorm, norms.feed_forward, &feed_forward, self.description.hidden);
        }
        self.inner();
    }

    fn norm(&mut self, role: Role, rule: Option<NormRule>, consumers: &[Role], width: u32) {
        // Where nothing is multiplied nothing can be divided.
        let Some(rule) = rule.filter(|rule| rule.weight) else { return };
        let producers = with_bias(role.of(self.number), rule.bias);
        self.folds.push(whole(producers, self.ids(consumers), width));
    }

    fn attention_inputs(&self) -> Vec<Role> {
        match self.layer.attention.latent {
            None => vec![Role::Query, Role::Key, Role::Value],
            Some(latent) => {
                let query = if latent.query_rank.is_some() { Role::QueryDown } else { Role::Query };
                vec![query, Role::LatentDown, Role::KeyRotary]
            }
        }
    }

    /// The norms inside of latent attention, which always have a gain.
    fn latent(&mut self) {
        let Some(latent) = self.layer.attention.latent else { return };
        let rule = Some(NormRule::rms(0.0));
        if let Some(rank) = latent.query_rank {
            self.norm(Role::QueryDownNorm, rule, &[Role::Query], rank);
        }
        self.norm(Role::LatentNorm, rule, &[Role::KeyUp, Role::ValueUp], latent.rank);
    }

    /// Attention sums values with weights that do not depend on them.
    fn values(&mut self) {
        let attention = &self.layer.attention;
        let (producers, readers) = match attention.latent {
            Some(_) => (vec![Role::ValueUp.of(self.number)], 1),
            None => (
                with_bias(Role::Value.of(self.number), attention.input_bias),
                attention.heads / attention.kv_heads.max(1),
            ),
        };
        let block = attention.value_width as usize;
        let width = block * (attention.heads / readers.max(1)) as usize;
        let consumers = self.ids(&[Role::AttentionOutput]);
        self.folds.push(Fold { producers, consumers, width, block, readers: readers.max(1) as usize });
    }

    fn feed_forward_inputs(&self) -> Vec<Role> {
        match &self.layer.feed_forward {
            FeedForward::Gated { .. } => vec![Role::Gate, Role::Up],
            FeedForward::Plain { .. } => vec![Role::Up],
            FeedForward::Experts(experts) => {
                let mut roles = vec![Role::Router, Role::ExpertGate, Role::ExpertUp];
                if let Some(shared) = experts.shared {
                    roles.extend([Role::SharedGate, Role::SharedUp]);
                    roles.extend(shared.scored.then_some(Role::SharedScore));
                }
                roles
            }
        }
    }

    /// A gate multiplies what the other half wrote; a plain block's activation lies between. Experts' inner columns would need
    /// scales for each expert.
    fn inner(&mut self) {
        let (gating, up, down, bias, width) = match &self.layer.feed_forward {
            FeedForward::Gated { width, gating, bias } => (gating, Role::Up, Role::Down, *bias, *width),
            FeedForward::Experts(experts) => match experts.shared {
                Some(shared) => (&experts.gating, Role::SharedUp, Role::SharedDown, false, shared.width),
                None => return,
            },
            FeedForward::Plain { .. } => return,
        };
        if matches!(gating, Gating::By(_)) {
            let producers = with_bias(up.of(self.number), bias);
            self.folds.push(whole(producers, self.ids(&[down]), width));
        }
    }
}
