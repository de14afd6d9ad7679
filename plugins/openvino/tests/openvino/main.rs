//! The OpenVINO backend: directories it makes, and what the runtime computes with them.

mod fixture;
mod forge;
mod reference;
mod sessions;
