//! What people ask for: cancel, retry, forge more, bring a model in, take an artifact out.

use std::path::{Path, PathBuf};

use drophammer_client::api::{self, ErrorReport, LogLevel};
use drophammer_engine::job::{Event, Kind, State};
use drophammer_engine::plan::{Planned, Target};

use super::{Pipeline, intake};
use crate::ledger::{LedgerError, Servable};
use crate::planning;

/// Why an order cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// It names something that is not there.
    #[error("{0}")]
    NotFound(ErrorReport),
    /// It makes no sense now.
    #[error("{0}")]
    Conflict(ErrorReport),
    /// It makes no sense at all.
    #[error("{0}")]
    Invalid(ErrorReport),
}

impl From<LedgerError> for OrderError {
    fn from(error: LedgerError) -> Self {
        match &error {
            LedgerError::NoSuchJob(id) => Self::NotFound(
                ErrorReport::new("no_such_job", error.to_string())
                    .about(id.to_string())
                    .help("`drophammer jobs` lists them"),
            ),
            LedgerError::Refused(refused) => {
                let state = format!("{:?}", refused.state).to_lowercase();
                let event = format!("{:?}", refused.event).to_lowercase();
                Self::Conflict(
                    ErrorReport::new(
                        "wrong_state",
                        format!("the job is {state}: there is nothing to {event}"),
                    )
                    .help("only unfinished jobs can be cancelled, and only unsuccessful ones tried again"),
                )
            }
        }
    }
}

impl Pipeline {
    /// Asks a job to stop.
    ///
    /// # Errors
    /// When there is none, or it has ended.
    pub fn cancel(&self, id: u64) -> Result<api::Job, OrderError> {
        let job = self.ledger.happen(id, Event::Cancel)?;
        if let Some(token) = self.token(id) {
            token.cancel();
        }
        if job.life.state == State::Cancelled {
            let _ = std::fs::remove_dir_all(self.staging(id));
            self.journal.job(id, LogLevel::Warn, "cancelled");
        }
        self.wake();
        Ok(job.document())
    }

    /// Queues an unsuccessful job again.
    ///
    /// # Errors
    /// When there is none, it is not unsuccessful, or its model is another one now.
    pub fn retry(&self, id: u64) -> Result<api::Job, OrderError> {
        let job = self.ledger.job(id).ok_or(LedgerError::NoSuchJob(id))?;
        let model = self.ledger.model(&job.model).filter(|model| !model.missing);
        let Some(fingerprint) = model.and_then(|model| model.fingerprint) else {
            let message = format!("the model {} is not in the models folder any more", job.model);
            return Err(OrderError::Conflict(
                ErrorReport::new("source_removed", message).help("put it back: it is then forged anew"),
            ));
        };
        if job.life.kind != Kind::Intake && job.fingerprint != fingerprint {
            let message = format!("the files of {} changed since", job.model);
            let help = format!("use its newer jobs, or `drophammer forge {}`", job.model);
            return Err(OrderError::Conflict(ErrorReport::new("source_changed", message).help(help)));
        }
        let resumable = self.staging(id).exists();
        let job = self.ledger.happen_with(id, Event::Retry, |job| {
            job.fingerprint = fingerprint;
            if !resumable {
                job.life = job.life.from_the_start();
            }
        })?;
        self.journal.job(id, LogLevel::Info, "tried again");
        self.wake();
        Ok(job.document())
    }

    /// The targets of these names; none named means the default ones.
    ///
    /// # Errors
    /// Naming the one that is unknown, and those that are known.
    pub fn targets_named(&self, names: &[String], otherwise: Vec<Target>) -> Result<Vec<Target>, OrderError> {
        if names.is_empty() {
            return Ok(otherwise);
        }
        let find = |name: &String| {
            self.targets.iter().find(|target| target.name == *name).cloned().ok_or_else(|| {
                let known: Vec<&str> = self.targets.iter().map(|target| target.name.as_str()).collect();
                OrderError::Invalid(
                    ErrorReport::new("no_such_target", format!("there is no target `{name}`"))
                        .about(name.clone())
                        .help(format!("known are: {}", known.join(", "))),
                )
            })
        };
        names.iter().map(find).collect()
    }

    /// Queues jobs for a model.
    ///
    /// # Errors
    /// When there is no such model or target, or it is not understood (yet).
    pub async fn forge_model(&self, name: &str, names: &[String]) -> Result<Vec<api::Job>, OrderError> {
        let model = self.known_model(name)?;
        let targets =
            self.targets_named(names, self.default_targets(&model.identity.clone().unwrap_or_default()))?;
        let (Some(fingerprint), Some(identity)) = (model.fingerprint, &model.identity) else {
            return Err(OrderError::Conflict(model.error.unwrap_or_else(|| {
                ErrorReport::new("not_ready", format!("{name} is not identified yet"))
                    .help("try again in a moment")
            })));
        };
        let in_hand = |target: &str| {
            let same = |job: &crate::ledger::JobRecord| {
                job.model == name
                    && !job.life.state.is_finished()
                    && job.planned.as_ref().is_some_and(|planned| planned.target.name == target)
            };
            self.ledger.jobs_where(same).first().map(|job| job.id)
        };
        let mut planned = self.plan(&model.path, identity, &targets).await;
        if names.is_empty() {
            planned = self.without_spare(identity, planned).await;
        }
        let queued = |planned: Planned| {
            in_hand(&planned.target.name).unwrap_or_else(|| self.add_forge_job(name, fingerprint, planned))
        };
        let ids: Vec<u64> = planned.into_iter().map(queued).collect();
        Ok(ids.into_iter().filter_map(|id| self.ledger.job(id)).map(|job| job.document()).collect())
    }

    fn known_model(&self, name: &str) -> Result<crate::ledger::ModelRecord, OrderError> {
        self.ledger.model(name).filter(|model| !model.missing).ok_or_else(|| {
            OrderError::NotFound(
                ErrorReport::new("no_such_model", format!("there is no model `{name}` in the models folder"))
                    .about(name.to_owned())
                    .help("`drophammer models` lists them"),
            )
        })
    }

    /// What could be forged from a model that is in the folder.
    ///
    /// # Errors
    /// When there is none, or nothing can be made of it.
    pub async fn plan_model(&self, name: &str) -> Result<api::PlanReport, OrderError> {
        let path = self.known_model(name)?.path;
        self.plan_path(&path, &[]).await
    }

    /// What could be forged from a path.
    ///
    /// # Errors
    /// When nothing can be made of it, or a target is unknown.
    pub async fn plan_path(&self, path: &Path, names: &[String]) -> Result<api::PlanReport, OrderError> {
        let targets = self.targets_named(names, self.targets.clone())?;
        let identity = intake::identify(path).await.map_err(OrderError::Invalid)?;
        let planned = self.plan(path, &identity, &targets).await;
        Ok(api::PlanReport {
            source: crate::ledger::source_info(path.display().to_string(), Some(&identity), identity.bytes),
            targets: planned.into_iter().map(planning::document).collect(),
        })
    }

    /// Brings a model into the watched folder by a link: its files stay where they are.
    ///
    /// # Errors
    /// When it is not there, or the name is taken.
    pub fn add_model(&self, add: &api::AddModel) -> Result<api::ModelEntry, OrderError> {
        let invalid = |message: String, help: &str| {
            OrderError::Invalid(ErrorReport::new("bad_path", message).about(add.path.clone()).help(help))
        };
        let path = Path::new(&add.path).canonicalize().map_err(|error| {
            invalid(format!("{}: {error}", add.path), "name a file or directory of the daemon's machine")
        })?;
        let own = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let name = add.name.clone().unwrap_or(own);
        let plain = Path::new(&name).file_name().is_some_and(|last| last == name.as_str());
        if !plain || name.starts_with('.') {
            return Err(invalid(format!("`{name}` cannot be a model's name"), "give a plain file name"));
        }
        let link: PathBuf = self.home.models.join(&name);
        if path.starts_with(&self.home.models) {
            return Err(invalid("it is in the models folder already".to_owned(), "there is nothing to do"));
        }
        match std::os::unix::fs::symlink(&path, &link) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(OrderError::Conflict(
                    ErrorReport::new("name_taken", format!("there is a model `{name}` already"))
                        .about(name)
                        .help("give another name"),
                ));
            }
            Err(error) => {
                return Err(invalid(format!("{}: {error}", link.display()), "check the models folder"));
            }
        }
        let model = self.ledger.name_for(&link);
        self.ledger.change_model(&model, &link, |_| ());
        self.ledger
            .model_document(&model)
            .ok_or_else(|| invalid("it went away at once".to_owned(), "try again"))
    }

    /// Removes an artifact from the library.
    ///
    /// # Errors
    /// When there is none, or the file system refuses.
    pub fn delete_artifact(&self, id: &str) -> Result<(), OrderError> {
        let artifact = self.ledger.remove_artifact(id).ok_or_else(|| match self.ledger.servable(id) {
            Some(source) if source.is_source => its_source(&source),
            _ => no_such_artifact(id),
        })?;
        artifact.delete(&self.home.staging).map_err(|error| {
            OrderError::Conflict(
                ErrorReport::new("io", error.to_string()).help("check the library's permissions"),
            )
        })
    }
}

/// The user's files are never deleted.
fn its_source(source: &Servable) -> OrderError {
    OrderError::Conflict(
        ErrorReport::new("is_a_source", format!("{} is what was dropped, as it is", source.api_name))
            .about(source.path.display().to_string())
            .help("take it out of the models folder to be rid of it"),
    )
}

/// Nothing of this id is in the library.
pub(crate) fn no_such_artifact(id: &str) -> OrderError {
    OrderError::NotFound(
        ErrorReport::new("no_such_artifact", format!("there is no artifact `{id}`"))
            .about(id.to_owned())
            .help("`drophammer models` lists them"),
    )
}
