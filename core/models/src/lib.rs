//! Architectures described once.
