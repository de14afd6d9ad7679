//! What can be loaded to answer requests: a published artifact, or a source as it was dropped.

use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use drophammer_engine::identify::Identity;

use super::records::source_name;
use super::{Book, Ledger, ModelRecord, choose};
use crate::library::Published;

/// A published artifact, or a source as it was dropped.
#[derive(Debug, Clone, PartialEq)]
pub struct Servable {
    /// Names exactly this content: an artifact's id, or a source with its fingerprint.
    pub id: String,
    /// The `model` value that means it: `model:target`, or `model:source`.
    pub api_name: String,
    /// Its model.
    pub model: String,
    /// What a backend loads.
    pub path: PathBuf,
    /// Such as `gguf`.
    pub format: String,
    /// Its number scheme; of a source, how most of its weights are stored.
    pub scheme: String,
    /// The device it was made for.
    pub device: Option<String>,
    /// The backend that made it, and runs it where it can; none made a source.
    pub backend: Option<String>,
    /// Where tokenizer and chat template may be, the first place first.
    pub vocabulary: Vec<PathBuf>,
    /// What its source is.
    pub identity: Identity,
    /// Size of all its files.
    pub bytes: u64,
    /// When it was published or last written, Unix seconds.
    pub created: f64,
}

impl Servable {
    fn of_artifact(artifact: &Published) -> Self {
        let manifest = &artifact.manifest;
        Self {
            id: manifest.id.clone(),
            api_name: manifest.api_name(),
            model: manifest.model.clone(),
            path: artifact.entry(),
            format: manifest.target.format.clone(),
            scheme: manifest.target.scheme.clone(),
            device: manifest.target.device.clone(),
            backend: Some(manifest.maker.backend.clone()),
            vocabulary: vec![
                artifact.entry(),
                artifact.directory.clone(),
                manifest.source.path.clone().into(),
            ],
            identity: manifest.source.identity.clone(),
            bytes: manifest.bytes(),
            created: manifest.created,
        }
    }

    /// A source that was understood and lies still.
    fn of_source(model: &ModelRecord) -> Option<Self> {
        let (identity, fingerprint) = model.answers()?;
        let written = std::fs::metadata(&model.path).and_then(|found| found.modified()).ok();
        let written = written.and_then(|moment| moment.duration_since(UNIX_EPOCH).ok());
        Some(Self {
            id: format!("{}:{fingerprint:016x}", source_name(&model.name)),
            api_name: source_name(&model.name),
            model: model.name.clone(),
            path: model.path.clone(),
            format: identity.format.clone(),
            scheme: identity.scheme.clone(),
            device: None,
            backend: None,
            vocabulary: vec![model.path.clone()],
            bytes: identity.bytes,
            identity: identity.clone(),
            created: written.map_or(0.0, |since| since.as_secs_f64()),
        })
    }

    /// Whether this is a source, which no backend made.
    pub fn is_source(&self) -> bool {
        self.backend.is_none()
    }
}

impl Ledger {
    /// What a request for `name` reaches. A model's name means its best artifact, and while there is none its source;
    /// `model:target`, `model:source` and ids mean exactly that.
    pub fn servable(&self, name: &str) -> Option<Servable> {
        let book = self.book();
        if let Some(best) = self.best_of(&book, name) {
            return Some(Servable::of_artifact(best));
        }
        let exact = |a: &&Published| a.manifest.api_name() == name || a.manifest.id == name;
        if let Some(artifact) = talking(&book).find(exact) {
            return Some(Servable::of_artifact(artifact));
        }
        let named =
            |source: &Servable| [&source.model, &source.api_name, &source.id].iter().any(|own| *own == name);
        book.models.values().filter_map(Servable::of_source).find(named)
    }

    /// Every name that [`Self::servable`] knows, ids left out, with what it reaches: first models, then each artifact
    /// and source by its own name.
    pub fn servables(&self) -> Vec<(String, Servable)> {
        let book = self.book();
        let sources: Vec<Servable> = book.models.values().filter_map(Servable::of_source).collect();
        let mut found: Vec<(String, Servable)> = Vec::new();
        let mut models: Vec<&String> = talking(&book).map(|a| &a.manifest.model).collect();
        models.sort();
        models.dedup();
        for model in &models {
            found.extend(
                self.best_of(&book, model).map(|best| ((*model).clone(), Servable::of_artifact(best))),
            );
        }
        let alone = sources.iter().filter(|source| !models.contains(&&source.model));
        found.extend(alone.map(|source| (source.model.clone(), source.clone())));
        found.extend(talking(&book).map(|a| (a.manifest.api_name(), Servable::of_artifact(a))));
        found.extend(sources.into_iter().map(|source| (source.api_name.clone(), source)));
        found
    }

    fn best_of<'a>(&self, book: &'a Book, model: &str) -> Option<&'a Published> {
        let of_model: Vec<&Published> =
            talking(book).filter(|artifact| artifact.manifest.model == model).collect();
        choose(&of_model, &self.floor).map(|best| of_model[best])
    }
}

/// Artifacts that tokens go through.
fn talking(book: &Book) -> impl Iterator<Item = &Published> {
    book.artifacts.values().filter(|artifact| !artifact.manifest.source.identity.plain)
}
