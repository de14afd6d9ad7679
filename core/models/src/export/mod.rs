//! Other ecosystems' files, as plans: which tensors, where their rows come from, which metadata. Writing is the pass's
//! ([`drophammer_quant::pass`]).

pub mod gguf;
pub mod mlx;
pub mod onnx;
