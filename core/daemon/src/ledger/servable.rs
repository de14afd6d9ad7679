//! What can be loaded to answer requests: a published artifact, or a source as it was dropped.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use drophammer_client::api;
use drophammer_engine::choice::{Floor, Measured, best};
use drophammer_engine::identify::Identity;

use super::records::{Standing, source_name};
use super::{Book, Ledger, ModelRecord};
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
    /// The backend that runs it, where it can; none is preferred for a source that was not measured.
    pub backend: Option<String>,
    /// Whether it is a source, which no backend made.
    pub is_source: bool,
    /// Where tokenizer and chat template may be, the first place first.
    pub vocabulary: Vec<PathBuf>,
    /// What its source is.
    pub identity: Identity,
    /// Size of all its files.
    pub bytes: u64,
    /// The most memory a worker took while it was measured, where it was.
    pub peak_memory: Option<u64>,
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
            backend: Some(manifest.runner().to_owned()),
            is_source: false,
            vocabulary: vec![
                artifact.entry(),
                artifact.directory.clone(),
                manifest.source.path.clone().into(),
            ],
            identity: manifest.source.identity.clone(),
            bytes: manifest.bytes(),
            peak_memory: manifest.measurements.peak_memory_bytes,
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
            backend: model.standing.as_ref().map(|standing| standing.backend.clone()),
            is_source: true,
            vocabulary: vec![model.path.clone()],
            bytes: identity.bytes,
            peak_memory: model.standing.as_ref().and_then(|it| it.measurements.peak_memory_bytes),
            identity: identity.clone(),
            created: written.map_or(0.0, |since| since.as_secs_f64()),
        })
    }

    /// A source as the control API shows it among its model's artifacts.
    fn document(self, standing: &Standing, best: bool) -> api::Artifact {
        let weights = self.identity.parameters;
        api::Artifact {
            id: self.id,
            model: self.model,
            target: api::SOURCE_TARGET.to_owned(),
            api_name: self.api_name,
            path: self.path.display().to_string(),
            backend: standing.backend.clone(),
            device: None,
            format: self.format,
            scheme: self.scheme,
            bytes: self.bytes,
            bits_per_weight: (weights > 0).then(|| self.bytes as f64 * 8.0 / weights as f64),
            measurements: standing.measurements,
            best,
            created: self.created,
        }
    }
}

/// What may answer for its model's bare name: an artifact, or a source that was measured as it is.
#[derive(Debug, Clone, Copy)]
enum Candidate<'a> {
    Artifact(&'a Published),
    Source(&'a ModelRecord, &'a Standing),
}

impl Candidate<'_> {
    fn measured(&self) -> Measured {
        let (measurements, bytes) = match self {
            Self::Artifact(artifact) => (&artifact.manifest.measurements, artifact.manifest.bytes()),
            Self::Source(model, standing) => (&standing.measurements, model.bytes),
        };
        Measured {
            kl_mean: measurements.kl_mean,
            top1: measurements.top1,
            decode_tps: measurements.decode_tps,
            bytes,
        }
    }

    fn servable(&self) -> Option<Servable> {
        match self {
            Self::Artifact(artifact) => Some(Servable::of_artifact(artifact)),
            Self::Source(model, _) => Servable::of_source(model),
        }
    }

    fn document(&self, best: bool) -> Option<api::Artifact> {
        match self {
            Self::Artifact(artifact) => Some(artifact.document(best)),
            Self::Source(model, standing) => Some(Servable::of_source(model)?.document(standing, best)),
        }
    }
}

/// The index of the candidate that answers.
fn choose(candidates: &[Candidate<'_>], floor: &Floor) -> Option<usize> {
    let measured: Vec<Measured> = candidates.iter().map(Candidate::measured).collect();
    best(&measured, floor)
}

impl Book {
    /// Everything of a model that was published or measured as it is.
    fn candidates<'a>(&'a self, model: &str) -> Vec<Candidate<'a>> {
        let made = self.artifacts.values().filter(|artifact| artifact.manifest.model == model);
        let source = self.models.get(model).filter(|model| model.answers().is_some());
        let source = source.and_then(|model| Some(Candidate::Source(model, model.standing.as_ref()?)));
        made.map(Candidate::Artifact).chain(source).collect()
    }

    /// The same as the control API shows it, largest first.
    pub(super) fn artifact_documents(&self, model: &str, floor: &Floor) -> Vec<api::Artifact> {
        let candidates = self.candidates(model);
        let best = choose(&candidates, floor);
        let shown = |(at, candidate): (usize, &Candidate<'_>)| candidate.document(best == Some(at));
        let mut documents: Vec<api::Artifact> = candidates.iter().enumerate().filter_map(shown).collect();
        documents.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.id.cmp(&b.id)));
        documents
    }
}

impl Ledger {
    /// What a request for `name` reaches. A model's name means its best artifact, and while there is none its source;
    /// `model:target`, `model:source` and ids mean exactly that.
    pub fn servable(&self, name: &str) -> Option<Servable> {
        let book = self.book();
        if let Some(best) = self.best_of(&book, name) {
            return Some(best);
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
        let models: BTreeSet<&String> =
            talking(&book).map(|a| &a.manifest.model).chain(book.models.keys()).collect();
        for model in models {
            let source = || sources.iter().find(|source| source.model == *model).cloned();
            found.extend(self.best_of(&book, model).or_else(source).map(|best| (model.clone(), best)));
        }
        found.extend(talking(&book).map(|a| (a.manifest.api_name(), Servable::of_artifact(a))));
        found.extend(sources.into_iter().map(|source| (source.api_name.clone(), source)));
        found
    }

    fn best_of(&self, book: &Book, model: &str) -> Option<Servable> {
        let mut candidates = book.candidates(model);
        candidates.retain(|it| !matches!(it, Candidate::Artifact(artifact) if !talks(artifact)));
        choose(&candidates, &self.floor).and_then(|best| candidates[best].servable())
    }
}

/// Artifacts that tokens go through.
fn talking(book: &Book) -> impl Iterator<Item = &Published> {
    book.artifacts.values().filter(|artifact| talks(artifact))
}

fn talks(artifact: &Published) -> bool {
    !artifact.manifest.source.identity.plain
}
