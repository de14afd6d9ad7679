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
use crate::workers::Installed;

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
        let (mut found, mut fastest) = (Measurements::default(), None);
        for part in [
            self.quality(job, &model, token, &mut found).await,
            self.speed(job, &model, token, &mut found, &mut fastest).await,
        ] {
            match part {
                Ok(()) => {}
                Err(Stop::Failed(Cause::Broken, error)) if error.code != "invalid_input" => {
                    self.journal.job(job.id, LogLevel::Warn, format!("not measured: {error}"));
                }
                Err(stop) => return Err(stop),
            }
        }
        let _ = self.ledger.change_job(job.id, |job| (job.measured, job.runner) = (Some(found), fastest));
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
        let is_source = job.life.kind == Kind::Measure;
        let running = if is_source {
            self.supervisor.start(measuring).await?
        } else if let Some(lender) = self.plugins.runner(model.format(), None).await {
            let lending = self.task(&lender.id(), limits, Work::Lend(load(model.path.clone(), true)))?;
            self.supervisor.start_compared(measuring, lending).await?
        } else {
            let why =
                format!("no plugin runs {}: measured without comparing it with the source", model.format());
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

    /// Tokens per second and memory: by who made it, and by others that may be faster.
    async fn speed(
        &self,
        job: &JobRecord,
        model: &ModelRecord,
        token: &CancellationToken,
        found: &mut Measurements,
        fastest: &mut Option<String>,
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
        let format = job.planned.as_ref().map(|planned| planned.target.format.clone()).unwrap_or_default();
        let mut runners = vec![runner];
        runners.extend(self.rivals(&format, &runners[0]));
        let alone = runners.len() == 1;
        let mut refused = None;
        for runner in runners {
            let measured = match self.bench(job, &runner, order.clone(), token).await {
                Ok(measured) => measured,
                Err(Stop::Failed(cause, error)) if !alone => {
                    self.journal.job(job.id, LogLevel::Warn, format!("{runner} does not run it: {error}"));
                    refused.get_or_insert(Stop::Failed(cause, error));
                    continue;
                }
                Err(stop) => return Err(stop),
            };
            let [prefill, decode] =
                [measured.prefill_tps, measured.decode_tps].map(Option::unwrap_or_default);
            if !alone {
                let told = format!("{runner}: prefill {prefill:.0}, decode {decode:.1} tokens per second");
                self.journal.job(job.id, LogLevel::Info, told);
            }
            if fastest.is_none() || found.decode_tps < Some(decode) {
                (found.prefill_tps, found.decode_tps) = (measured.prefill_tps, measured.decode_tps);
                found.peak_memory_bytes = measured.peak_memory_bytes;
                *fastest = Some(runner);
            }
        }
        refused.filter(|_| fastest.is_none()).map_or(Ok(()), Err)
    }

    /// Other plugins that run the format and may be faster: those with a device that is no processor, or all of them.
    fn rivals(&self, format: &str, runner: &str) -> Vec<String> {
        let catalog = self.plugins.catalog();
        let all = self.config.measure.all_backends;
        let able = catalog.runners(format).into_iter().filter(|plugin| all || plugin.is_accelerated());
        able.map(Installed::id).filter(|id| id != runner).collect()
    }

    async fn bench(
        &self,
        job: &JobRecord,
        runner: &str,
        order: BenchOrder,
        token: &CancellationToken,
    ) -> Result<Measurements, Stop> {
        let task = self.task(runner, self.measuring_limits(job), Work::Bench(order))?;
        let running = self.supervisor.start(task).await?;
        let finished = self.follow(job, runner, WorkerRole::Measure, running, token).await?;
        let Outcome::Benched(benched) = finished.outcome else { return Ok(Measurements::default()) };
        Ok(Measurements {
            prefill_tps: Some(benched.bench.prefill.max_tps),
            decode_tps: Some(benched.bench.decode.max_tps),
            peak_memory_bytes: finished.peak_memory_bytes,
            ..Measurements::default()
        })
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
