//! A model ready to run.
//!
//! [`record`] turns an architecture into [`step`]s once, [`fuse`] joins them; [`load`] does that for a
//! checkpoint; [`matrix`] holds its weights; [`execute`] runs the steps on
//! all threads, [`experts`] those of a mixture.

pub(crate) mod execute;
mod experts;
mod fuse;
pub(crate) mod load;
pub(crate) mod matrix;
pub(crate) mod record;
pub(crate) mod step;
