//! The measure stage: how good an artifact is beside its source, and how fast. A source that answers as it is goes
//! through it too.

use std::path::PathBuf;

use drophammer_client::api::{LogLevel, Measurements, WorkerRole};
use drophammer_engine::job::{Cause, Kind};
use drophammer_sdk::LoadRequest;
use tokio_util::sync::CancellationToken;

use super::Pipeline;
use super::forge::Stop;
use crate::ledger::{JobRecord, ModelRecord};
use crate::worker::protocol::{BenchOrder, Limits, MeasureOrder, Outcome, Work};

/// Tokens scored at most: enough for a mean that is steady in its second digit.
const MOST_TOKENS: usize = 2 << 10;
/// Tokens of the prompt and of the answer whose speed is measured, unless the context is shorter.
const PROMPT: u32 = 512;
const GENERATE: u32 = 64;

impl Pipeline {
    /// Measures what was forged, as far as somebody here can run it. What cannot be measured is published all the
    /// same, without figures, and the job's log says why.
    pub(super) async fn measure(&self, job: &JobRecord, token: &CancellationToken) -> Result<(), Stop> {
        if !self.config.measure.enabled {
            return Ok(());
        }
        let model = self.source_of(job)?;
        if model.identity.as_ref().is_some_and(|identity| identity.plain) {
            let why = "no tokens go through it: its maker compared it with its source, as the notes say";
            self.journal.job(job.id, LogLevel::Info, why);
            return Ok(());
        }
        let mut found = Measurements::default();
        for part in [
            self.quality(job, &model, token, &mut found).await,
            self.speed(job, &model, token, &mut found).await,
        ] {
            match part {
                Ok(()) => {}
                Err(Stop::Failed(Cause::Broken, error)) if error.code != "invalid_input" => {
                    self.journal.job(job.id, LogLevel::Warn, format!("not measured: {error}"));
                }
                Err(stop) => return Err(stop),
            }
        }
        let _ = self.ledger.change_job(job.id, |job| job.measured = Some(found));
        Ok(())
    }

    /// Perplexity, and the distance from the source where somebody can run that too.
    async fn quality(
        &self,
        job: &JobRecord,
        model: &ModelRecord,
        token: &CancellationToken,
        found: &mut Measurements,
    ) -> Result<(), Stop> {
        let Some((artifact, runner)) = self.measurable(job, model).await? else { return Ok(()) };
        let limits = self.measuring_limits(job);
        let load = |path: PathBuf, reference: bool| LoadRequest { path, reference, ..LoadRequest::default() };
        let order = MeasureOrder {
            // Both in reference mode: what is measured is the weights' loss, on equal terms for every backend.
            load: load(artifact.clone(), true),
            vocabulary: vec![artifact, model.path.clone()],
            text: self.config.measure.text.clone(),
            most_tokens: MOST_TOKENS,
        };
        let measuring = self.task(&runner, limits, Work::Measure(order))?;
        let source = model.identity.as_ref().map(|identity| identity.format.clone()).unwrap_or_default();
        let is_source = job.life.kind == Kind::Measure;
        let running = if is_source {
            self.supervisor.start(measuring).await?
        } else if let Some(lender) = self.plugins.runner(&source, None).await {
            let lending = self.task(&lender.id(), limits, Work::Lend(load(model.path.clone(), true)))?;
            self.supervisor.start_compared(measuring, lending).await?
        } else {
            let why = format!("no plugin runs {source}: measured without comparing it with the source");
            self.journal.job(job.id, LogLevel::Warn, why);
            self.supervisor.start(measuring).await?
        };
        let finished = self.follow(job, &runner, WorkerRole::Measure, running, token).await?;
        let Outcome::Measured(measured) = finished.outcome else { return Ok(()) };
        found.perplexity = Some(measured.perplexity);
        found.reference_perplexity = measured.reference_perplexity;
        (found.kl_mean, found.kl_p99, found.top1) = (measured.kl_mean, measured.kl_p99, measured.top1);
        if is_source {
            // A distribution's divergence from itself.
            found.reference_perplexity = found.perplexity;
            (found.kl_mean, found.kl_p99, found.top1) = (Some(0.0), Some(0.0), Some(1.0));
        }
        Ok(())
    }

    /// Tokens per second and memory.
    async fn speed(
        &self,
        job: &JobRecord,
        model: &ModelRecord,
        token: &CancellationToken,
        found: &mut Measurements,
    ) -> Result<(), Stop> {
        let Some((artifact, runner)) = self.measurable(job, model).await? else { return Ok(()) };
        let context = model.identity.as_ref().and_then(|identity| identity.context_length);
        let most = context.map_or(PROMPT, |most| u32::try_from(most).unwrap_or(PROMPT).min(PROMPT));
        let order = BenchOrder {
            load: LoadRequest { path: artifact, context: Some(most), ..LoadRequest::default() },
            prompt: most,
            generate: GENERATE.min(most),
            repetitions: 2,
        };
        let task = self.task(&runner, self.measuring_limits(job), Work::Bench(order))?;
        let running = self.supervisor.start(task).await?;
        let finished = self.follow(job, &runner, WorkerRole::Measure, running, token).await?;
        let Outcome::Benched(benched) = finished.outcome else { return Ok(()) };
        found.prefill_tps = Some(benched.bench.prefill.max_tps);
        found.decode_tps = Some(benched.bench.decode.max_tps);
        found.peak_memory_bytes = finished.peak_memory_bytes;
        Ok(())
    }

    /// The forged artifact, or the source that answers as it is, and who can run it; `None`, and a word in the log, where
    /// nobody can.
    async fn measurable(
        &self,
        job: &JobRecord,
        model: &ModelRecord,
    ) -> Result<Option<(PathBuf, String)>, Stop> {
        let lost = || Stop::broken("failed", "the forged files are not known any more", "retry the job");
        let planned = job.planned.as_ref().ok_or_else(lost)?;
        let path = if job.life.kind == Kind::Measure {
            model.path.clone()
        } else {
            let entry = job.forged.as_ref().and_then(|report| report.files.first()).ok_or_else(lost)?;
            self.staging(job.id).join("work").join(entry)
        };
        let runner = self.plugins.runner(&planned.target.format, Some(&planned.backend)).await;
        if runner.is_none() {
            let why = format!("no plugin runs {}: it goes without measurements", planned.target.format);
            self.journal.job(job.id, LogLevel::Warn, why);
        }
        Ok(runner.map(|runner| (path, runner.id())))
    }

    pub(super) fn measuring_limits(&self, job: &JobRecord) -> Limits {
        let threads = job.planned.as_ref().map_or(1, |planned| planned.needs.cores);
        Limits { threads, nice: self.config.workers.nice, ..Limits::default() }
    }
}
