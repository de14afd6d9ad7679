//! Starts waiting jobs as far as they fit.

use std::sync::Arc;
use std::time::Duration;

use drophammer_client::api::LogLevel;
use drophammer_engine::admission::{Resources, Waiting, admit};
use drophammer_engine::job::{Event, Kind, State};
use tokio_util::sync::CancellationToken;

use super::{Held, Pipeline, report};
use crate::ledger::JobRecord;

/// While jobs wait, the queue is looked at again after this time: other programs may have freed memory or disk.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

impl Pipeline {
    /// Looks at the queue whenever something changed.
    pub(super) async fn schedule(self: Arc<Self>) {
        loop {
            let waiting = self.start_what_fits();
            let woken = self.wake.notified();
            if waiting {
                let _ = tokio::time::timeout(LOOK_AGAIN, woken).await;
            } else {
                woken.await;
            }
        }
    }

    /// Starts every job that may start; true when some still wait.
    fn start_what_fits(self: &Arc<Self>) -> bool {
        let queued = self.ledger.jobs_where(|job| job.life.state == State::Queued);
        if queued.is_empty() {
            return false;
        }
        let running = self.ledger.jobs_where(|job| job.life.state == State::Running);
        let capacity = Resources { disk: self.free_disk(), ..self.capacity };
        let taken = running.iter().map(needs).fold(Resources::default(), |sum, needs| Resources {
            memory: sum.memory.saturating_add(needs.memory),
            cores: sum.cores.saturating_add(needs.cores),
            disk: sum.disk.saturating_add(needs.disk),
        });
        let queue: Vec<Waiting> = queued
            .iter()
            .map(|job| Waiting { id: job.id, needs: needs(job), overtaken: job.live.overtaken })
            .collect();
        let admission = admit(&queue, &capacity, &capacity.without(&taken));
        for id in admission.overtaken {
            self.ledger.live(id, |live| live.overtaken += 1);
        }
        for (id, why) in admission.waits {
            self.ledger.live(id, |live| live.activity = Some(why));
        }
        for (id, obstacle) in admission.never {
            let error = report(obstacle);
            self.journal.job(id, LogLevel::Error, error.to_string());
            let blocked = self.ledger.happen_with(id, Event::Block, |job| job.error = Some(error));
            tracing::debug!(job = id, ok = blocked.is_ok(), "a job is too large");
        }
        for id in admission.start {
            self.start(id);
        }
        !self.ledger.jobs_where(|job| job.life.state == State::Queued).is_empty()
    }

    fn start(self: &Arc<Self>, id: u64) {
        let Ok(job) = self.ledger.happen(id, Event::Start) else { return };
        let token = CancellationToken::new();
        self.held().insert(id, Held { token: token.clone(), why: None });
        let pipeline = self.clone();
        tokio::spawn(async move {
            match job.life.kind {
                Kind::Intake => pipeline.intake(job, token).await,
                Kind::Forge | Kind::Measure => pipeline.forge(job, token).await,
            }
            pipeline.held().remove(&id);
            pipeline.wake();
        });
    }
}

/// What a job takes while it runs. Looking at headers takes nothing worth counting.
fn needs(job: &JobRecord) -> Resources {
    job.planned.as_ref().map(|planned| planned.needs).unwrap_or_default()
}
