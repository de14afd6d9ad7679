//! Whether a file tells all that a model computes.
//!
//! GGUF has keys for what llama.cpp computes, and no others. Before anything is written the description is read back from the
//! metadata and tensors planned; where it comes out different, the file would silently be another model.

use drophammer_formats::gguf::Metadata;
use serde_json::Value as Json;

use super::{Content, GgufExport, OutputTensor};
use crate::config::Config;
use crate::description::Description;
use crate::error::{Error, Result};
use crate::families::gguf_family;
use crate::gguf_config::{self, TensorFacts};

/// Numbers are stored in single precision.
const TOLERANCE: f64 = 1e-5;

/// Refuses metadata from which another model would be read.
pub(super) fn check(export: &GgufExport, metadata: &Metadata) -> Result<()> {
    let family = gguf_family(metadata)?;
    let config = gguf_config::config(metadata, &Planned(&export.tensors), family)?;
    let mut read = family.describe_config(&Config::new(&config).with_layout(export.gguf.layout))?;
    let meant = export.checkpoint.description();
    if meant.head.is_none() {
        read.head = None; // told by the way of pooling
    }
    match difference(meant, &read) {
        None => Ok(()),
        Some(place) => Err(Error::Unsupported {
            family: meant.family.to_owned(),
            what: format!("writing GGUF, which has no key for {place} of this model,"),
        }),
    }
}

/// Tensors about to be written.
struct Planned<'a>(&'a [OutputTensor]);

impl Planned<'_> {
    fn find(&self, name: &str) -> Option<&OutputTensor> {
        self.0.iter().find(|tensor| tensor.name == name)
    }
}

impl TensorFacts for Planned<'_> {
    fn rows(&self, name: &str) -> Option<u64> {
        self.find(name)?.shape.split_last().map(|(_, outer)| outer.iter().product())
    }

    fn values(&self, name: &str) -> Option<Vec<f32>> {
        if let Content::Values(values) = &self.find(name)?.content { Some(values.clone()) } else { None }
    }
}

/// The first place where two descriptions compute something else.
fn difference(meant: &Description, read: &Description) -> Option<String> {
    for (number, (meant, read)) in meant.layers.iter().zip(&read.layers).enumerate() {
        let [meant, read] = [meant, read].map(|layer| serde_json::to_value(layer).unwrap_or_default());
        if let Some(place) = differs(&meant, &read) {
            return Some(format!("layer {number}'s{place}"));
        }
    }
    let rest = |description: &Description| {
        let mut embedding = description.embedding.clone();
        embedding.positions = None; // only rows that are used are written
        let head = description.head.map(|head| (head.bias, head.scale, head.softcap));
        let norms = (description.final_norm, embedding, head);
        serde_json::to_value((description.layers.len(), description.hidden, norms)).unwrap_or_default()
    };
    if differs(&rest(meant), &rest(read)).is_some() {
        return Some("the embedding, the last norm or the head".to_owned());
    }
    // Scaling may be told in another form; the angles count.
    let same = |(meant, read): (&crate::rope::Rope, &crate::rope::Rope)| {
        [1, meant.threshold().unwrap_or(0).saturating_add(1)].into_iter().all(|length| {
            let (meant, read) = (meant.table(length), read.table(length));
            let close = |a: f32, b: f32| f64::from((a - b).abs()) <= TOLERANCE * f64::from(a.abs());
            close(meant.magnitude, read.magnitude)
                && meant.frequencies.len() == read.frequencies.len()
                && meant.frequencies.iter().zip(&read.frequencies).all(|(&a, &b)| close(a, b))
        })
    };
    let ropes = meant.ropes.iter().zip(&read.ropes).all(same) && meant.ropes.len() == read.ropes.len();
    (!ropes).then(|| "the rotation".to_owned())
}

/// Where two documents differ by more than rounding.
fn differs(meant: &Json, read: &Json) -> Option<String> {
    match (meant, read) {
        (Json::Number(a), Json::Number(b)) => {
            let (a, b) = (a.as_f64()?, b.as_f64()?);
            ((a - b).abs() > TOLERANCE * a.abs().max(1e-9)).then(String::new)
        }
        (Json::Object(a), Json::Object(b)) => a.iter().find_map(|(key, a)| {
            let place = differs(a, b.get(key).unwrap_or(&Json::Null))?;
            Some(format!(" {key}{place}"))
        }),
        (Json::Array(a), Json::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).find_map(|(a, b)| differs(a, b))
        }
        (a, b) => (a != b).then(String::new),
    }
}
