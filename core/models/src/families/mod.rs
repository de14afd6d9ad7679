//! One file per architecture: how its configuration becomes a [`Description`] and what it calls its weights.
//!
//! A family says only what is special about it; what most decoders share is in [`config`](crate::config) and
//! [`names`](crate::names). To add one, follow `core/models/README.md`.

mod arcee;
mod bert;
mod cohere;
mod cohere2;
mod deepseek;
mod distilbert;
mod ernie4_5;
mod exaone4;
mod falcon;
mod gemma;
mod gemma2;
mod gemma3;
mod glm;
mod glm4;
mod glm4_moe;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod granite_moe;
mod hunyuan;
mod llama;
mod mistral;
mod mixtral;
mod modernbert;
mod nemotron;
mod nomic_bert;
mod olmo;
mod olmo2;
mod olmo3;
mod olmoe;
mod phi;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod roberta;
mod seed_oss;
mod smollm3;
mod stablelm;
mod starcoder2;

use drophammer_formats::Source;
use drophammer_formats::gguf::Metadata;
use serde_json::{Map, Value as Json};
use std::sync::LazyLock;

use crate::config::Config;
use crate::description::Description;
use crate::error::{Error, Result};
use crate::gguf_config;
use crate::names::Names;
use crate::names::gguf::Fused;
use crate::rope::RopeLayout;

/// An architecture.
#[derive(Debug)]
pub struct Family {
    /// Its name here.
    pub name: &'static str,
    /// The values of `model_type` in `config.json` that mean it.
    pub model_types: &'static [&'static str],
    /// Configuration → description.
    pub describe: fn(&Config<'_>) -> Result<Description>,
    /// What Hugging Face calls its weights; the first table that knows a role counts.
    pub names: &'static [Names],
    /// What Hugging Face's norms store less than they mean: 1 where `x · (1 + w)` is computed.
    pub norm_offset: f32,
    /// How it lies in GGUF files; `None` where nobody has said.
    pub gguf: Option<Gguf>,
}

/// How a family lies in GGUF files.
#[derive(Debug, Clone, Copy)]
pub struct Gguf {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// The order of rotated rows.
    pub layout: RopeLayout,
    /// Whether this family is meant, where several share an architecture.
    pub is: fn(&Metadata) -> bool,
    /// Names that differ from [`names::gguf`](crate::names::gguf).
    pub names: fn(&Description) -> Names,
    /// Whether llama.cpp wants an output matrix even where it is the token embedding.
    pub needs_output: bool,
    /// Matrices that llama.cpp wants in one tensor.
    pub fused: &'static [Fused],
    /// Adds what the family's configuration needs beyond the usual keys.
    pub config: fn(&GgufKeys<'_>, &mut Map<String, Json>),
    /// Adds what llama.cpp needs beyond the usual keys.
    pub metadata: fn(&Description, &mut GgufWriter<'_>),
}

impl Gguf {
    /// An architecture like most: rotated halves, usual names and keys.
    pub const fn new(architecture: &'static str) -> Self {
        Self {
            architecture,
            layout: RopeLayout::Halves,
            is: |_| true,
            names: |_| &[],
            needs_output: false,
            fused: &[],
            config: |_, _| {},
            metadata: |_, _| {},
        }
    }
}

pub use gguf_config::{GgufKeys, GgufWriter};

/// All of them.
pub static FAMILIES: &[&Family] = &[
    &mixtral::FAMILY,
    &llama::FAMILY,
    &mistral::FAMILY,
    &qwen2::FAMILY,
    &qwen2_moe::FAMILY,
    &qwen3::FAMILY,
    &qwen3_moe::FAMILY,
    &phi::FAMILY,
    &phi3::FAMILY,
    &gemma::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &smollm3::FAMILY,
    &olmo::FAMILY,
    &olmo3::FAMILY,
    &olmo2::FAMILY,
    &olmoe::FAMILY,
    &granite::FAMILY,
    &granite_moe::FAMILY,
    &nemotron::FAMILY,
    &arcee::FAMILY,
    &seed_oss::FAMILY,
    &ernie4_5::FAMILY,
    &hunyuan::FAMILY,
    &exaone4::FAMILY,
    &glm::FAMILY,
    &glm4::FAMILY,
    &glm4_moe::FAMILY,
    &starcoder2::FAMILY,
    &gpt2::FAMILY,
    &gpt_neox::FAMILY,
    &stablelm::FAMILY,
    &falcon::FAMILY,
    &cohere::FAMILY,
    &cohere2::FAMILY,
    &gpt_oss::FAMILY,
    &deepseek::V2,
    &deepseek::V3,
    &bert::FAMILY,
    &roberta::FAMILY,
    &modernbert::FAMILY,
    &distilbert::FAMILY,
    &nomic_bert::FAMILY,
];

/// An [`Error::Unsupported`].
fn unsupported(family: &str, what: &str) -> Error {
    Error::Unsupported { family: family.to_owned(), what: what.to_owned() }
}

/// The names of all families.
pub fn supported() -> Vec<&'static str> {
    FAMILIES.iter().map(|family| family.name).collect()
}

/// The family of a `model_type`.
///
/// # Errors
/// [`Error::UnknownArchitecture`] names it and what is supported.
pub fn family(model_type: &str) -> Result<&'static Family> {
    FAMILIES
        .iter()
        .find(|family| family.model_types.contains(&model_type))
        .copied()
        .ok_or_else(|| unknown(model_type))
}

/// The family of a GGUF file.
///
/// # Errors
/// [`Error::UnknownArchitecture`] names it and what is supported.
pub fn gguf_family(metadata: &Metadata) -> Result<&'static Family> {
    let architecture = metadata.str("general.architecture").unwrap_or("(none)");
    let is = |family: &&Family| {
        family.gguf.is_some_and(|gguf| gguf.architecture == architecture && (gguf.is)(metadata))
    };
    FAMILIES.iter().copied().find(|family| is(family)).ok_or_else(|| unknown(architecture))
}

fn unknown(name: &str) -> Error {
    Error::UnknownArchitecture { name: name.chars().take(80).collect(), supported: supported() }
}

impl Family {
    /// Describes a model of this family.
    ///
    /// # Errors
    /// Which key is missing or makes no sense.
    pub fn describe_config(&self, config: &Config<'_>) -> Result<Description> {
        let description = (self.describe)(config)?;
        description.check()?;
        Ok(description)
    }
}

/// What transformers' configuration classes assume where a `config.json` is silent, by `model_type`. Made by
/// `tests/fixtures/arch/make_defaults.py`.
static DEFAULTS: LazyLock<Json> =
    LazyLock::new(|| serde_json::from_str(include_str!("defaults.json")).unwrap_or_default());

impl Family {
    /// What a configuration of this family and `model_type` means by silence.
    pub(crate) fn defaults(&self, model_type: &str) -> &'static Json {
        let mut names = std::iter::once(model_type).chain(self.model_types.iter().copied());
        names.find_map(|name| DEFAULTS.get(name)).unwrap_or(&Json::Null)
    }
}

/// Describes a model from its `config.json`.
///
/// # Errors
/// [`Error::UnknownArchitecture`], or which key is missing or makes no sense.
pub fn describe(config: &Json) -> Result<Description> {
    let config = Config::new(text_config(config));
    let model_type = config.string("model_type")?;
    let family = family(model_type)?;
    family.describe_config(&config.with_defaults(family.defaults(model_type)))
}

/// A source's configuration as Hugging Face writes it, its family, and the order in which its rotated rows lie.
pub(crate) fn model_config(source: &Source) -> Result<(Json, &'static Family, RopeLayout)> {
    if source.config().is_none() && source.metadata().get("general.architecture").is_some() {
        let family = gguf_family(source.metadata())?;
        let layout = family.gguf.map_or(RopeLayout::Halves, |gguf| gguf.layout);
        return Ok((gguf_config::config(source.metadata(), source, family)?, family, layout));
    }
    let no_config = || Error::NoConfig { path: source.root().display().to_string() };
    let whole = source.config().ok_or_else(no_config)?;
    let mut config = text_config(whole).clone();
    if let (Some(config), Some(whole)) = (config.as_object_mut(), whole.as_object()) {
        for key in ["quantization", "quantization_config", "compression_config", "tie_word_embeddings"] {
            // Wrappers say `tie_word_embeddings: false` of models that are tied; only `true` counts.
            let value = whole.get(key).filter(|value| value.as_bool() != Some(false));
            if let (None, Some(value)) = (config.get(key), value) {
                config.insert(key.to_owned(), value.clone());
            }
        }
    }
    let family = family(Config::new(&config).string("model_type")?)?;
    Ok((config, family, RopeLayout::Halves))
}

/// The language model's part of a configuration of a model that also sees or hears.
fn text_config(config: &Json) -> &Json {
    let known = |config: &Json| {
        config.get("model_type").and_then(Json::as_str).is_some_and(|name| family(name).is_ok())
    };
    let parts = ["text_config", "llm_config", "language_config"];
    parts.iter().filter_map(|part| config.get(part)).find(|text| known(text)).unwrap_or(config)
}
