//! OpenVINO's intermediate representation, version 11: a graph as XML beside its constants' bytes.
//!
//! A [`Network`] is put together operation by operation and written with [`Network::to_xml`] once the constants' places
//! in the `.bin` file are known. Shapes are left out: the runtime infers them when it reads the file. What an operation
//! means is not known here; the format is documented in OpenVINO's operation sets.

mod element;
mod network;

pub use element::Element;
pub use network::{ALIGNMENT, Data, Network, Port};
