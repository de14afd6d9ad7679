//! A model ready to run.
//!
//! [`record`] turns an architecture into [`step`]s once, [`narrow`] leaves out rows that nobody reads and [`fuse`] joins them; [`load`] does that for a checkpoint, whose
//! weights [`matrix`] holds and, laid out, [`shelf`] keeps. [`execute`] runs the steps on all threads; [`products`], [`attend`] and [`experts`] are the
//! larger ones, and [`runs`] are rows that these work on together; [`cost`] says what each has to read and to
//! compute.

mod attend;
pub(crate) mod cost;
pub(crate) mod execute;
mod experts;
mod forms;
mod fuse;
pub(crate) mod load;
pub(crate) mod matrix;
mod narrow;
mod products;
pub(crate) mod record;
mod runs;
pub(crate) mod shelf;
pub(crate) mod step;
