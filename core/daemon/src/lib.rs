//! The daemon.

pub mod worker;
pub mod workers;
