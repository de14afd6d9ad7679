//! One file per architecture: how its configuration becomes a [`Description`] and what it calls its weights.
//!
//! A family says only what is special about it; what most decoders share is in [`config`](crate::config) and
//! [`names`](crate::names). To add one, follow `core/models/README.md`.

mod llama;

use crate::config::Config;
use crate::description::Description;
use crate::error::{Error, Result};

/// An architecture.
pub struct Family {
    /// Its name here.
    pub name: &'static str,
    /// The values of `model_type` in `config.json` that mean it.
    pub model_types: &'static [&'static str],
    /// Configuration → description.
    pub describe: fn(&Config<'_>) -> Result<Description>,
}

/// All of them.
pub static FAMILIES: &[&Family] = &[&llama::FAMILY];

/// The family of a `model_type`.
///
/// # Errors
/// [`Error::UnknownArchitecture`] names it and what is supported.
pub fn family(model_type: &str) -> Result<&'static Family> {
    FAMILIES.iter().find(|family| family.model_types.contains(&model_type)).copied().ok_or_else(|| {
        Error::UnknownArchitecture {
            name: model_type.chars().take(80).collect(),
            supported: FAMILIES.iter().map(|family| family.name).collect(),
        }
    })
}

/// Describes a model from its `config.json`.
///
/// # Errors
/// [`Error::UnknownArchitecture`], or which key is missing or makes no sense.
pub fn describe(config: &serde_json::Value) -> Result<Description> {
    let config = Config::new(config);
    let description = (family(config.string("model_type")?)?.describe)(&config)?;
    description.check()?;
    Ok(description)
}
