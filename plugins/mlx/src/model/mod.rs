//! An architecture on libmlx.
//!
//! - [`weights`] brings a checkpoint's weights into arrays: packed ones as they are packed, the rest as floats.
//! - [`step`] is the `Graph`: every operation becomes lazy arrays, evaluated once at the end of a step.
//! - [`cache`] holds keys and values of each sequence; [`attention`] and [`experts`] are the two operations with a life of
//!   their own.

mod attention;
pub(crate) mod cache;
mod experts;
mod rotation;
pub(crate) mod step;
pub(crate) mod weights;
