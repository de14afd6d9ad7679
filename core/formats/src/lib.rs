//! Readers and writers of model file formats.

mod dtype;

pub use dtype::DType;
