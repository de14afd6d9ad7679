//! What sources call weights: Hugging Face (and MLX, which keeps its names) and GGUF.
//!
//! A name is a [`Place`]: a pattern, and which rows of the tensor hold the weight where a source fuses several into one.
//! The same tables serve both directions.

pub mod gguf;
pub mod hugging_face;

use crate::description::{Description, FeedForward, Layer};
use crate::weight::{Part, Role, WeightId};

/// Roles and where a kind of source keeps them. A role may stand several times: the first that fits counts.
pub type Names = &'static [(Role, Place)];

/// Where a source keeps a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The tensor's name with `{l}` for the layer and `{e}` for the expert or head, without `.weight` and `.bias`.
    pub pattern: &'static str,
    /// Which of its rows.
    pub cut: Cut,
    /// Whether the matrix is stored `[inputs, outputs]`.
    pub transposed: bool,
    /// Whether the pattern is the whole name; a bias then ends in `_bias`.
    pub exact: bool,
}

/// Which rows of a tensor belong to one weight of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// All.
    Whole,
    /// The weights lie one after another: queries, keys, values; gate, up; latent, rotated key.
    Stacked,
    /// The weights lie interleaved head by head: each key/value head's queries, its key, its value; each head's plain
    /// key and value; gate and up row by row.
    Grouped,
}

/// A whole tensor.
pub const fn at(pattern: &'static str) -> Place {
    Place { pattern, cut: Cut::Whole, transposed: false, exact: false }
}

impl Place {
    /// One of several weights in the tensor, one after another.
    #[must_use]
    pub const fn stacked(self) -> Self {
        Self { cut: Cut::Stacked, ..self }
    }

    /// One of several weights in the tensor, interleaved.
    #[must_use]
    pub const fn grouped(self) -> Self {
        Self { cut: Cut::Grouped, ..self }
    }

    /// Stored `[inputs, outputs]`.
    #[must_use]
    pub const fn transposed(self) -> Self {
        Self { transposed: true, ..self }
    }

    /// The pattern is the whole name.
    #[must_use]
    pub const fn exact(self) -> Self {
        Self { exact: true, ..self }
    }

    /// Whether each expert (or head) has its own tensor.
    pub fn is_per_expert(&self) -> bool {
        self.pattern.contains("{e}")
    }

    /// The module's name: the tensor's without `.weight`.
    pub fn module(&self, layer: Option<u32>, expert: u64) -> String {
        let name = match layer {
            Some(layer) => self.pattern.replace("{l}", &layer.to_string()),
            None => self.pattern.to_owned(),
        };
        if self.is_per_expert() { name.replace("{e}", &expert.to_string()) } else { name }
    }

    /// What follows the module's name.
    pub fn suffix(&self, part: Part) -> &'static str {
        match (self.exact, part) {
            (false, Part::Weight) => ".weight",
            (false, Part::Bias) => ".bias",
            (true, Part::Weight) => "",
            (true, Part::Bias) => "_bias",
        }
    }
}

/// Rows of one weight in a tensor: of every `stride` rows the `block` from `offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// Rows that lie together.
    pub block: u64,
    /// From one block to the next.
    pub stride: u64,
    /// Where the first begins.
    pub offset: u64,
    /// Rows of the whole tensor (of one matrix of a stack).
    pub total: u64,
}

impl Rows {
    /// All rows.
    pub const fn all(total: u64) -> Self {
        Self { block: total, stride: total, offset: 0, total }
    }

    /// The tensor's row that holds the weight's row `row`.
    pub const fn source(&self, row: u64) -> u64 {
        row / self.block * self.stride + self.offset + row % self.block
    }
}

/// The rows of weight `id`, itself `rows` high, in a tensor cut like `cut`. `None` where such a cut is senseless.
pub fn rows(cut: Cut, id: WeightId, rows: u64, description: &Description) -> Option<Rows> {
    if cut == Cut::Whole {
        return Some(Rows::all(rows));
    }
    let layer = description.layers.get(id.layer? as usize)?;
    let (members, index, groups) = fused(id.role, layer)?;
    let (member, before, sum) =
        (members[index], members[..index].iter().sum::<u64>(), members.iter().sum::<u64>());
    let total = sum * groups;
    Some(match cut {
        Cut::Stacked => Rows { block: member * groups, stride: total, offset: before * groups, total },
        _ => Rows { block: member, stride: sum, offset: before, total },
    })
}

/// Which weights are fused with one of `role`, their rows per group, the role's number among them, how many groups.
fn fused(role: Role, layer: &Layer) -> Option<(Vec<u64>, usize, u64)> {
    let attention = &layer.attention;
    let [heads, kv_heads] = [attention.heads, attention.kv_heads].map(u64::from);
    let [key, value] = [attention.key_width, attention.value_width].map(u64::from);
    let index = |roles: &[Role]| roles.iter().position(|&candidate| candidate == role);
    if let Some(index) = index(&[Role::Query, Role::Key, Role::Value]) {
        return Some((vec![heads / kv_heads * key, key, value], index, kv_heads));
    }
    if let Some(latent) = attention.latent {
        let (rank, plain) = (u64::from(latent.rank), u64::from(latent.plain_width));
        if let Some(index) = index(&[Role::LatentDown, Role::KeyRotary]) {
            return Some((vec![rank, key - plain], index, 1));
        }
        if let Some(index) = index(&[Role::KeyUp, Role::ValueUp]) {
            return Some((vec![plain, value], index, heads));
        }
    }
    let width = match (&layer.feed_forward, role) {
        (FeedForward::Gated { width, .. }, Role::Gate | Role::Up) => *width,
        (FeedForward::Experts(experts), Role::ExpertGate | Role::ExpertUp) => experts.width,
        (FeedForward::Experts(experts), Role::SharedGate | Role::SharedUp) => experts.shared?.width,
        _ => return None,
    };
    let second = matches!(role, Role::Up | Role::ExpertUp | Role::SharedUp);
    Some((vec![1, 1], usize::from(second), u64::from(width)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_a_grouped_weight_is_found_in_its_group() {
        // Two groups of three query rows, one key row, one value row.
        let keys = Rows { block: 1, stride: 5, offset: 3, total: 10 };
        let queries = Rows { block: 3, stride: 5, offset: 0, total: 10 };
        assert_eq!([0, 1].map(|row| keys.source(row)), [3, 8]);
        assert_eq!([0, 2, 3, 5].map(|row| queries.source(row)), [0, 2, 5, 7]);
    }
}
