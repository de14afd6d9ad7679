//! The OpenVINO backend: directories it makes, and what the runtime computes with them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fixture;
mod forge;
mod genai;
mod reference;
mod sessions;
