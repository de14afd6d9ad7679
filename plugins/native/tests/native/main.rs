//! The plugin through its SDK traits, on real and on tiny random models.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod calibration;
mod embeddings;
mod fixture;
mod fold;
mod forge;
mod kept;
mod reference;
mod sessions;
mod simd;
mod wanted;
