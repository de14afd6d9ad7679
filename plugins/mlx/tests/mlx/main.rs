//! The plugin through its SDK traits. What runs models needs libmlx, which `cargo xtask test` installs and names by
//! `DROPHAMMER_RUNTIMES`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod adapters;
mod fixture;
mod forge;
mod reference;
mod refusals;
mod sessions;
