//! Architectures described once.
//!
//! - A [`Description`] is an architecture as data; [`families`] make one from a configuration, one file each.
//! - [`build_decoder`] and [`build_encoder`] turn a description into operations of a [`Graph`], which a backend implements
//!   once to get every architecture.
//! - Weights are named by [`WeightId`]: their role, not what some file calls them. A [`Checkpoint`] gives their rows, whatever the
//!   source calls, fuses, packs or permutes.
//!
//! - [`fold`] says which columns may be scaled, `hadamard` what the residual stream in another basis asks of weights.
//! - [`export`] plans files of other ecosystems.
//!
//! Nothing here knows a backend, a clock, a network or a process.

pub mod builder;
pub mod checkpoint;
pub mod config;
pub mod description;
mod error;
pub mod export;
pub mod families;
pub mod fold;
mod gguf_config;
pub mod graph;
mod hadamard;
mod inventory;
pub mod names;
pub mod rope;
pub mod weight;

pub use builder::{build_decoder, build_encoder};
pub use checkpoint::{Blocks, Checkpoint, LowRank, MlxMode, MlxPacking, MlxRows, Weight};
pub use description::Description;
pub use error::{Error, Result};
pub use families::describe;
pub use graph::Graph;
pub use inventory::{WeightShape, inventory};
pub use weight::{Part, Role, WeightId};
