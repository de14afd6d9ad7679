//! The first two stages: what is this, and what can be made of it here?

use std::path::Path;

use drophammer_client::api::{self, LogLevel};
use drophammer_engine::identify::Identity;
use drophammer_engine::job::{Cause, Event, Kind};
use drophammer_engine::plan::{Planned, Target, as_it_is, plan};
use tokio_util::sync::CancellationToken;

use super::Pipeline;
use crate::facts;
use crate::ledger::JobRecord;

impl Pipeline {
    /// Identifies and plans a model; the intake job then gives way to the jobs it planned.
    pub(super) async fn intake(&self, job: JobRecord, token: CancellationToken) {
        let Some(model) = self.ledger.model(&job.model) else {
            self.ledger.remove_job(job.id);
            return;
        };
        let identified = identify(&model.path).await;
        let known = self.ledger.learn(&job, |model| match &identified {
            Ok(identity) => (model.identity, model.error) = (Some(identity.clone()), None),
            Err(error) => model.error = Some(error.clone()),
        });
        if !known {
            // Its files changed or went while they were looked at; their next settling starts over.
            self.ledger.remove_job(job.id);
            return;
        }
        let identity = match identified {
            Ok(identity) => identity,
            Err(error) => {
                self.fail(job.id, Cause::Broken, error);
                return;
            }
        };
        self.journal.job(job.id, LogLevel::Info, format!("identified: {}", describe(&identity)));
        if self.ledger.happen(job.id, Event::StageDone).is_err() {
            return;
        }
        let targets = self.default_targets(&identity);
        let planned = tokio::select! {
            planned = self.plan(&model.path, &identity, &targets) => self.without_spare(&identity, planned).await,
            () = token.cancelled() => {
                self.ledger.remove_job(job.id);
                return;
            }
        };
        if !self.ledger.learn(&job, |_| ()) {
            // Or while they were planned for.
            self.ledger.remove_job(job.id);
            return;
        }
        for planned in planned {
            if !self.has_job(&job.model, job.fingerprint, &planned.target.name) {
                self.add_forge_job(&job.model, job.fingerprint, planned);
            }
        }
        self.ledger.remove_job(job.id);
    }

    /// What each target of a source would take.
    pub(crate) async fn plan(&self, path: &Path, source: &Identity, targets: &[Target]) -> Vec<Planned> {
        let offers = self.plugins.offers(self, path, targets).await;
        let machine = self.machine();
        targets.iter().zip(&offers).map(|(target, offers)| plan(source, target, offers, &machine)).collect()
    }

    /// What a dropped model gets: where targets gain nothing over its source, that is measured in their place.
    pub(super) async fn without_spare(&self, source: &Identity, planned: Vec<Planned>) -> Vec<Planned> {
        let (spare, mut planned): (Vec<_>, Vec<_>) = planned.into_iter().partition(|planned| planned.spare);
        if !spare.is_empty() {
            let runner = self.plugins.runner(&source.format, None).await;
            let runner = runner.map(|plugin| plugin.id()).unwrap_or_default();
            planned.push(as_it_is(source, api::SOURCE_TARGET, runner, &spare, &self.machine()));
        }
        planned
    }

    /// The targets that a dropped model gets, by what it is.
    pub(crate) fn default_targets(&self, identity: &Identity) -> Vec<Target> {
        let named = &self.config.targets.default;
        let wanted = |target: &&Target| {
            if named.is_empty() { target.default } else { named.contains(&target.name) }
        };
        let fitting = self.targets.iter().filter(|target| target.plain == identity.plain);
        fitting.filter(wanted).cloned().collect()
    }

    /// Whether a target of these very files is in hand or done: an intake may be repeated after an interruption.
    fn has_job(&self, model: &str, fingerprint: u64, target: &str) -> bool {
        let published = |id: &String| self.ledger.artifact(id).is_some();
        let stands = || self.ledger.model(model).is_some_and(|model| model.standing.is_some());
        let same = |job: &JobRecord| {
            let in_hand = !job.life.state.is_finished();
            job.model == model
                && job.fingerprint == fingerprint
                && job.planned.as_ref().is_some_and(|planned| planned.target.name == target)
                && (in_hand
                    || job.artifact.as_ref().is_some_and(published)
                    || target == api::SOURCE_TARGET && stands())
        };
        self.ledger.jobs_where(|job| job.planned.is_some()).iter().any(same)
    }

    /// Queues a planned job; one that cannot be done here is blocked from the start, with its reason.
    pub(super) fn add_forge_job(&self, model: &str, fingerprint: u64, planned: Planned) -> u64 {
        let kind = if planned.target.name == api::SOURCE_TARGET { Kind::Measure } else { Kind::Forge };
        let id = self.ledger.add_job(model, kind, |job| {
            job.fingerprint = fingerprint;
            if !planned.supported
                && let Ok(life) = job.life.after(Event::Block)
            {
                job.life = life;
                job.error = Some(cannot(&planned));
            }
            job.planned = Some(planned.clone());
        });
        for reason in &planned.reasons {
            let level = if planned.supported { LogLevel::Info } else { LogLevel::Warn };
            self.journal.job(id, level, reason.clone());
        }
        self.wake();
        id
    }
}

/// Why a plan cannot be carried out.
pub(super) fn cannot(planned: &Planned) -> api::ErrorReport {
    let reason = planned.reasons.first().cloned().unwrap_or_else(|| "it cannot be made here".to_owned());
    api::ErrorReport {
        code: "unsupported_target".to_owned(),
        message: reason,
        subject: Some(planned.target.name.clone()),
        help: planned.help.clone(),
        detail: planned.reasons.iter().skip(1).cloned().collect(),
    }
}

/// Identifies a path, off the async threads.
///
/// # Errors
/// Precisely why nothing can be made of it.
pub(crate) async fn identify(path: &Path) -> Result<Identity, api::ErrorReport> {
    let path = path.to_owned();
    let task = tokio::task::spawn_blocking(move || facts::identify(&path));
    task.await.unwrap_or_else(|_| {
        Err(api::ErrorReport::new("panic", "the program made a mistake while it looked at the files")
            .help("please report it, with the file"))
    })
}

fn describe(identity: &Identity) -> String {
    format!(
        "{} of architecture {}, {} weights in {} tensors, mostly {}",
        identity.format, identity.architecture, identity.parameters, identity.tensors, identity.scheme
    )
}
