//! A source seen through a description: every canonical weight as rows of floats, or as the source's own blocks.
//!
//! Whatever a source calls its tensors, fuses, cuts, transposes, packs or permutes is undone here, while rows are read: no
//! weight is ever held whole. A new way of storing weights is one more [`Stored`](stored::Stored).

mod adapter;
mod locate;
mod packed;
mod stored;
mod weight;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use drophammer_formats::source::read_json;
use drophammer_formats::{Source, SourceKind};
use serde_json::Value as Json;

use adapter::{Adapter, Target};

pub use adapter::LowRank;
pub use packed::{MlxMode, MlxPacking};
pub use weight::{Blocks, MlxRows, Weight};

use crate::config::Config;
use crate::description::Description;
use crate::error::{Error, Result};
use crate::families::{Family, model_config};
use crate::fold::Fold;
use crate::graph::Pooling;
use crate::hadamard;
use crate::inventory::{WeightShape, inventory};
use crate::names::hugging_face::RENAMES;
use crate::names::{self, Names};
use crate::rope::RopeLayout;
use crate::weight::{Role, WeightId};
use locate::{Located, Locator};
use weight::RopeOrder;

/// A source, its description, and where each weight lies.
#[derive(Debug)]
pub struct Checkpoint {
    source: Arc<Source>,
    family: &'static Family,
    description: Description,
    published_layout: Option<RopeLayout>,
    /// The order of rotated rows in the source.
    stored_layout: Option<RopeLayout>,
    weights: Vec<WeightShape>,
    located: HashMap<WeightId, Located>,
    config: Json,
}

impl Checkpoint {
    /// Opens what lies at `path` and locates all its weights. Reads headers only.
    ///
    /// # Errors
    /// Every [`Error`]: no model, an unsupported one, a missing tensor, a wrong shape.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(Arc::new(Source::open(path)?))
    }

    /// Locates all weights of a source.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn new(source: Arc<Source>) -> Result<Self> {
        let finished =
            [(SourceKind::OpenVino, "an OpenVINO model"), (SourceKind::Qnn, "compiled QNN contexts")];
        if let Some((kind, what)) = finished.into_iter().find(|(kind, _)| *kind == source.kind()) {
            let what = format!("converting {what}, already converted,");
            return Err(Error::Unsupported { family: kind.name().to_owned(), what });
        }
        let (document, family, layout) = model_config(&source)?;
        let published = Config::new(&document);
        let config = Config::new(&document).with_layout(layout);
        let gguf = family.gguf.filter(|_| source.kind() == SourceKind::Gguf);
        let config = match gguf {
            Some(_) => config, // whose keys say everything
            None => config.with_defaults(family.defaults(config.text("model_type")?.unwrap_or_default())),
        };
        let mut description = family.describe_config(&config)?;
        let published = match gguf {
            Some(_) => published,
            None => {
                published.with_defaults(family.defaults(published.text("model_type")?.unwrap_or_default()))
            }
        };
        let published_layout = family.describe_config(&published)?.ropes.first().map(|rope| rope.layout);
        let tables: Vec<Names> = match gguf {
            Some(gguf) => vec![(gguf.names)(&description), names::gguf::NAMES],
            None => family.names.iter().copied().chain([crate::export::mlx::names(family.name)]).collect(),
        };
        let norm_offset = if gguf.is_some() { 0.0 } else { family.norm_offset };
        let locator = Locator::new(&source, &tables, config.json(), norm_offset)?;
        if let Some(head) = &mut description.head
            && config.get("tie_word_embeddings").is_none()
        {
            head.tied = !locator.exists(Role::Head.global());
        }
        if let Some(pooling) = sentence_pooling(&source) {
            // A decoder that is pooled gives embeddings, no logits.
            description.pooling = Some(pooling);
            description.head = None;
        }
        let weights = inventory(&description);
        let mut located = HashMap::with_capacity(weights.len());
        for weight in &weights {
            let mut id = weight.id;
            if id == Role::Head.global() && description.head.is_some_and(|head| head.tied) {
                id = Role::TokenEmbedding.global();
            }
            located.insert(weight.id, locator.locate(id, &weight.shape, &description)?);
        }
        let stored_layout = description.ropes.first().map(|rope| rope.layout);
        Ok(Self {
            source,
            family,
            description,
            published_layout,
            stored_layout,
            weights,
            located,
            config: document,
        })
    }

    /// The source.
    pub fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// The configuration as Hugging Face writes it; for GGUF files made of their metadata.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn hugging_face_config(&self) -> Result<Json> {
        match self.source.config() {
            Some(config) => Ok(config.clone()),
            None => Ok(model_config(&self.source)?.0),
        }
    }

    /// Whether the source holds anything a tokenizer can be built from.
    pub fn has_tokenizer(&self) -> bool {
        self.source.tokenizer().is_complete() || self.source.metadata().get("tokenizer.ggml.model").is_some()
    }

    /// Its family.
    pub fn family(&self) -> &'static Family {
        self.family
    }

    /// Its configuration as Hugging Face writes it, whatever the source; of models that also see or hear, the language
    /// model's part.
    pub fn config(&self) -> &Json {
        &self.config
    }

    /// What it computes. Rotations have the layout that rows are read in.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The order of rotated rows in checkpoints as this family's authors publish them, which adapters follow. `None` where
    /// nothing is rotated.
    pub fn published_layout(&self) -> Option<RopeLayout> {
        self.published_layout
    }

    /// All weights, in the order in which they are used.
    pub fn weights(&self) -> &[WeightShape] {
        &self.weights
    }

    /// How many numbers the weights are; a matrix that is table and head counts once.
    pub fn parameters(&self) -> u64 {
        let tied = self.description.head.is_some_and(|head| head.tied);
        let own = self.weights.iter().filter(|weight| !(tied && weight.id == Role::Head.global()));
        own.map(|weight| weight.shape.iter().product::<u64>()).sum()
    }

    /// One weight.
    ///
    /// # Errors
    /// [`Error::Weight`] where the description has no such weight.
    pub fn weight(&self, id: WeightId) -> Result<Weight<'_>> {
        let located = self.located.get(&id);
        let located =
            located.ok_or_else(|| Error::Weight { id, problem: "this model has no such weight".into() })?;
        Ok(Weight { source: &self.source, id, located, bare: false })
    }

    /// The same model with rotated rows of queries and keys in another order. Rows move as wholes, so [`Blocks`] stay
    /// available, row by row.
    #[must_use]
    pub fn with_layout(mut self, layout: RopeLayout) -> Self {
        for (id, order) in self.orders(|now| (now != layout).then_some(layout)) {
            if let Some(located) = self.located.get_mut(&id) {
                located.reorder(order);
            }
        }
        for rope in &mut self.description.ropes {
            rope.layout = layout;
        }
        self
    }

    /// The orders of all weights with rotated rows; `to` says which, of those that are in some order now.
    fn orders(&self, to: impl Fn(RopeLayout) -> Option<RopeLayout>) -> Vec<(WeightId, RopeOrder)> {
        let mut all = Vec::new();
        for (number, layer) in (0..).zip(&self.description.layers) {
            let attention = &layer.attention;
            let rope = attention.rope.and_then(|index| self.description.ropes.get(index));
            let Some((rope, to)) = rope.and_then(|rope| Some((rope, to(rope.layout)?))) else { continue };
            let whole = RopeOrder { head: attention.key_width, start: rope.start, width: rope.width, to };
            let bare = RopeOrder { head: rope.width, start: 0, width: rope.width, to };
            let (keys, other) =
                if attention.latent.is_some() { (bare, Role::KeyRotary) } else { (whole, Role::Key) };
            let orders =
                [(Role::Query, whole), (Role::QueryNorm, whole), (other, keys), (Role::KeyNorm, keys)];
            all.extend(
                orders.into_iter().flat_map(|(role, order)| {
                    [role.of(number), role.of(number).bias()].map(|id| (id, order))
                }),
            );
        }
        all
    }

    /// The same model with `scales` (one for each number that the fold's producers write) moved from there into the columns of
    /// its consumers, while rows are read.
    ///
    /// # Errors
    /// [`Error::Weight`] for a fold of another model, and for scales that are too few or no positive numbers.
    pub fn scaled(mut self, fold: &Fold, scales: &[f32]) -> Result<Self> {
        let problem = |id, problem: &str| Err(Error::Weight { id, problem: problem.into() });
        let first = fold.producers.first().or(fold.consumers.first()).copied();
        let Some(first) = first else { return Ok(self) };
        if scales.len() != fold.width || !scales.iter().all(|scale| scale.is_finite() && *scale > 0.0) {
            return problem(first, "its scales are not one positive number for each that is written");
        }
        let inverse: Vec<f32> = scales.iter().map(|scale| 1.0 / scale).collect();
        let spread = fold.spread(scales);
        let producers = fold.producers.iter().map(|id| (id, &inverse, false));
        for (id, factors, columns) in producers.chain(fold.consumers.iter().map(|id| (id, &spread, true))) {
            let Some(located) = self.located.get_mut(id) else {
                return problem(*id, "this model has no such weight");
            };
            let (len, place) = if columns {
                (located.columns, &mut located.column_factors)
            } else {
                (located.rows, &mut located.row_factors)
            };
            if len != factors.len() as u64 || (!columns && !located.orders.is_empty()) {
                return problem(*id, "cannot be scaled so");
            }
            match place {
                Some(before) => before.iter_mut().zip(factors).for_each(|(before, more)| *before *= more),
                None => *place = Some(factors.clone()),
            }
        }
        Ok(self)
    }

    /// The same model with its residual stream in another basis (see `hadamard.rs`), in which a format with one scale for all of it
    /// loses less: norms have no gains then, and the head is no longer the embedding. A model without such a form stays as it is.
    ///
    /// # Errors
    /// Gains that cannot be read.
    pub fn spread(mut self) -> Result<Self> {
        let block = hadamard::block(self.description.hidden as usize);
        let Some(stream) = hadamard::stream(&self.description).filter(|_| block > 1) else {
            return Ok(self);
        };
        for (norm, readers) in &stream.read {
            let gains = self.weight(*norm)?.to_vec()?;
            for id in readers {
                let located = self.located_mut(*id)?;
                match &mut located.column_factors {
                    Some(before) => before.iter_mut().zip(&gains).for_each(|(before, gain)| *before *= gain),
                    none => *none = Some(gains.clone()),
                }
                located.mixed_columns = block;
            }
        }
        for id in &stream.tables {
            self.located_mut(*id)?.mixed_columns = block;
        }
        for id in &stream.written {
            self.located_mut(*id)?.mixed_rows = block;
        }
        self.weights = inventory(&stream.description);
        self.description = stream.description;
        Ok(self)
    }

    /// The same model with a head from whose every row `common` is subtracted. For a hidden state `h` all logits are less by `h·common`
    /// then, which changes no probability: a common part of them takes no bits of what tells them apart.
    ///
    /// # Errors
    /// [`Error::Weight`] for a model without a head, one whose logits are bounded, and a vector of another length.
    pub fn without_common(mut self, common: Vec<f32>) -> Result<Self> {
        let id = Role::Head.global();
        let problem = |problem: &str| Error::Weight { id, problem: problem.into() };
        let hidden = self.description.hidden as usize;
        let head = self.description.head.as_mut().ok_or_else(|| problem("this model has none"))?;
        if head.softcap.is_some() || common.len() != hidden {
            return Err(problem("its rows have nothing in common that could be added later"));
        }
        head.tied = false;
        self.located_mut(id)?.common = Some(common.into());
        self.weights = inventory(&self.description);
        Ok(self)
    }

    /// What [`Checkpoint::without_common`] subtracts.
    pub fn common(&self) -> Option<&[f32]> {
        self.located.get(&Role::Head.global())?.common.as_deref()
    }

    fn located_mut(&mut self, id: WeightId) -> Result<&mut Located> {
        let missing = || Error::Weight { id, problem: "this model has no such weight".into() };
        self.located.get_mut(&id).ok_or_else(missing)
    }

    /// The name that GGUF files and their statistics have for a matrix, alone or with those it is fused with.
    pub fn gguf_name(&self, id: WeightId) -> Option<String> {
        let gguf = self.family.gguf?;
        let tables = [(gguf.names)(&self.description), names::gguf::NAMES];
        let latent = self.description.layers.iter().find_map(|layer| layer.attention.latent);
        let compressed = id.role == Role::Query && latent.is_some_and(|latent| latent.query_rank.is_some());
        let fused = gguf.fused.iter().find(|fused| fused.roles.contains(&id.role)).map(|fused| &fused.place);
        let places = tables.iter().flat_map(|table| table.iter());
        let mut places = places.filter(|(role, _)| *role == id.role).map(|(_, place)| place);
        // Compressed queries have a name of their own.
        let place = fused.or(if compressed { places.next_back() } else { places.next() })?;
        Some(format!("{}{}", place.module(id.layer, 0), place.suffix(id.part)))
    }

    /// The same model with a LoRA adapter added while rows are read. It holds what belongs to a model as its authors publish it,
    /// also where this is a GGUF file of that.
    ///
    /// # Errors
    /// Adapters of other models and variants that cannot be merged.
    pub fn with_adapter(mut self, adapter: Source) -> Result<Self> {
        let adapter = Adapter::new(Arc::new(adapter))?;
        let orders =
            self.orders(|_| self.stored_layout.filter(|_| self.published_layout != self.stored_layout));
        let orders: HashMap<_, _> = orders.into_iter().collect();
        for weight in &self.weights {
            let Some(located) = self.located.get(&weight.id) else { continue };
            let target = if self.source.kind() == SourceKind::Gguf && adapter.is_of_published() {
                self.published(weight, located, &adapter, orders.get(&weight.id).copied())
            } else {
                Target::of(located, weight.id.part)
            };
            if let Some(target) = target
                && let Some(located) = self.located.get_mut(&weight.id)
            {
                adapter.apply(weight, &target, located)?;
            }
        }
        adapter.check_all_used()?;
        Ok(self)
    }

    /// Where an adapter of the published model has something for a weight of a GGUF file.
    fn published(
        &self,
        weight: &WeightShape,
        located: &Located,
        adapter: &Adapter,
        order: Option<RopeOrder>,
    ) -> Option<Target> {
        let tables = self.family.names.iter().copied().chain([crate::export::mlx::names(self.family.name)]);
        let places = tables.flat_map(|table| table.iter()).filter(|(role, _)| *role == weight.id.role);
        let mut targets = places.flat_map(|(_, place)| RENAMES.iter().map(move |rename| (place, rename)));
        targets.find_map(|(place, (old, new))| {
            let count = if place.is_per_expert() { *weight.shape.first()? } else { 1 };
            let module = |expert| {
                let module = place.module(weight.id.layer, expert);
                Some(format!("{new}{}", module.strip_prefix(old)?))
            };
            let target = Target {
                modules: (0..count).map(module).collect::<Option<_>>()?,
                suffix: place.suffix(weight.id.part),
                rows: names::rows(place.cut, weight.id, located.rows / count.max(1), &self.description)?,
                order,
                transposed: place.transposed,
            };
            adapter.has(&target).then_some(target)
        })
    }
}

/// How sentence-transformers pools, which it says beside the model; `<architecture>.pooling_type` in GGUF files.
fn sentence_pooling(source: &Source) -> Option<Pooling> {
    if let Some(architecture) = source.metadata().str("general.architecture") {
        return Pooling::from_gguf(source.metadata().u64(&format!("{architecture}.pooling_type"))?);
    }
    let modes = read_json(&source.root().join("1_Pooling").join("config.json")).ok()?;
    let named = modes.get("pooling_mode").and_then(Json::as_str);
    let is = |mode: &str, name: &str| {
        modes.get(format!("pooling_mode_{mode}")).and_then(Json::as_bool) == Some(true) || named == Some(name)
    };
    let modes = [
        ("mean_tokens", "mean", Pooling::Mean),
        ("cls_token", "cls", Pooling::First),
        ("lasttoken", "lasttoken", Pooling::Last),
    ];
    modes.into_iter().find(|(mode, name, _)| is(mode, name)).map(|(.., pooling)| pooling)
}
