//! Who asks what, and how quickly it is answered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use drophammer_client::api::{self, RequestPhase};
use tokio::sync::mpsc;

use super::{Said, ServeError, Usage};

/// Upper bounds of the histograms' buckets, seconds.
const BOUNDS: [f64; 14] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0];

/// Figures since the daemon started.
#[derive(Debug, Default)]
pub struct Traffic {
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    next: u64,
    changed: bool,
    live: BTreeMap<u64, Entry>,
    ended: Ended,
    generated: u64,
    prompt: u64,
    first_token: Buckets,
    token: Buckets,
    total: Buckets,
}

#[derive(Debug, Default, Clone, Copy)]
struct Ended {
    succeeded: u64,
    failed: u64,
    cancelled: u64,
    refused: u64,
}

#[derive(Debug)]
struct Entry {
    id: String,
    model: String,
    route: &'static str,
    phase: RequestPhase,
    generated: u64,
    arrived: Instant,
    first: Option<Instant>,
}

#[derive(Debug, Default)]
struct Buckets {
    counts: [u64; BOUNDS.len() + 1],
    sum: f64,
}

impl Buckets {
    fn count(&mut self, seconds: f64) {
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.counts[bucket] += 1;
        self.sum += seconds;
    }

    fn document(&self) -> api::Histogram {
        api::Histogram {
            bounds_seconds: BOUNDS.to_vec(),
            counts: self.counts.to_vec(),
            sum_seconds: self.sum,
        }
    }
}

/// One request, from its arrival to its end.
#[derive(Debug)]
pub struct Visit {
    traffic: Arc<Traffic>,
    number: u64,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Succeeded,
    Failed,
    Refused,
    Cancelled,
}

impl Traffic {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request has arrived.
    pub fn arrive(self: &Arc<Self>, id: &str, model: &str, route: &'static str) -> Visit {
        let mut book = self.book();
        let number = book.next;
        book.next += 1;
        book.changed = true;
        let entry = Entry {
            id: id.to_owned(),
            model: model.to_owned(),
            route,
            phase: RequestPhase::Loading,
            generated: 0,
            arrived: Instant::now(),
            first: None,
        };
        book.live.insert(number, entry);
        Visit { traffic: self.clone(), number }
    }

    /// The figures, if they changed since they were last asked for this way.
    pub fn news(&self, batches: Vec<api::BatchUse>) -> Option<api::Requests> {
        let mut book = self.book();
        let changed = std::mem::take(&mut book.changed) || !book.live.is_empty();
        changed.then(|| book.document(batches))
    }

    /// The figures.
    pub fn document(&self, batches: Vec<api::BatchUse>) -> api::Requests {
        self.book().document(batches)
    }
}

impl Book {
    fn document(&self, batches: Vec<api::BatchUse>) -> api::Requests {
        let live = self.live.values().map(|entry| {
            let decoding =
                entry.first.map(|first| first.elapsed().as_secs_f64()).filter(|seconds| *seconds > 0.0);
            api::LiveRequest {
                id: entry.id.clone(),
                model: entry.model.clone(),
                route: entry.route.to_owned(),
                phase: entry.phase,
                prompt_tokens: 0,
                generated_tokens: entry.generated,
                seconds: entry.arrived.elapsed().as_secs_f64(),
                first_token_seconds: entry.first.map(|first| (first - entry.arrived).as_secs_f64()),
                tps: decoding.map(|seconds| entry.generated.saturating_sub(1) as f64 / seconds),
            }
        });
        api::Requests {
            live: live.collect(),
            batches,
            succeeded: self.ended.succeeded,
            failed: self.ended.failed,
            cancelled: self.ended.cancelled,
            refused: self.ended.refused,
            generated_tokens: self.generated,
            prompt_tokens: self.prompt,
            first_token: self.first_token.document(),
            token: self.token.document(),
            total: self.total.document(),
        }
    }
}

impl Visit {
    /// The request has moved on.
    pub fn phase(&self, phase: RequestPhase) {
        if let Some(entry) = self.traffic.book().live.get_mut(&self.number) {
            entry.phase = phase;
        }
    }

    /// The request was not taken, because too many wait or for any other reason.
    pub fn not_taken(self, busy: bool) {
        self.end(if busy { End::Refused } else { End::Failed });
    }

    /// It was answered with embeddings of so many tokens.
    pub fn embedded(self, tokens: u64) {
        self.counted(&Usage { prompt_tokens: tokens, cached_tokens: 0, completion_tokens: 0 });
        self.end(End::Succeeded);
    }

    fn token(&self) {
        let mut book = self.traffic.book();
        let Some(entry) = book.live.get_mut(&self.number) else { return };
        entry.generated += 1;
        entry.phase = RequestPhase::Decode;
        if entry.first.is_none() {
            entry.first = Some(Instant::now());
            let waited = entry.arrived.elapsed().as_secs_f64();
            book.first_token.count(waited);
        }
    }

    fn counted(&self, usage: &Usage) {
        let mut book = self.traffic.book();
        book.generated += usage.completion_tokens;
        book.prompt += usage.prompt_tokens;
    }

    fn end(&self, end: End) {
        let mut book = self.traffic.book();
        // Only the first end counts.
        let Some(entry) = book.live.remove(&self.number) else { return };
        book.changed = true;
        let count = match end {
            End::Succeeded => &mut book.ended.succeeded,
            End::Failed => &mut book.ended.failed,
            End::Refused => &mut book.ended.refused,
            End::Cancelled => &mut book.ended.cancelled,
        };
        *count += 1;
        if end == End::Succeeded {
            book.total.count(entry.arrived.elapsed().as_secs_f64());
            if let Some(first) = entry.first.filter(|_| entry.generated > 1) {
                book.token.count(first.elapsed().as_secs_f64() / (entry.generated - 1) as f64);
            }
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.end(End::Cancelled);
    }
}

/// What a model says to one request, counted as it is read.
#[derive(Debug)]
pub struct Answers {
    said: mpsc::UnboundedReceiver<Said>,
    visit: Visit,
    open: u32,
}

impl Answers {
    /// The answers to a request for so many choices.
    pub fn new(said: mpsc::UnboundedReceiver<Said>, visit: Visit, choices: u32) -> Self {
        Self { said, visit, open: choices.max(1) }
    }

    /// The next thing it says. Not to be asked any more after all choices have finished, or after a failure.
    pub async fn next(&mut self) -> Said {
        let Some(said) = self.said.recv().await else { return Said::Failed(ServeError::lost()) };
        match &said {
            Said::Started => self.visit.phase(RequestPhase::Prefill),
            Said::Token { .. } => self.visit.token(),
            Said::Finished { usage, .. } => {
                self.visit.counted(usage);
                self.open = self.open.saturating_sub(1);
                if self.open == 0 {
                    self.visit.end(End::Succeeded);
                }
            }
            Said::Call { .. } | Said::Embedded(_) => {}
            Said::Failed(_) => self.visit.end(End::Failed),
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(traffic: &Arc<Traffic>, events: Vec<Said>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        for event in events {
            sender.send(event).unwrap();
        }
        drop(sender);
        let mut answers = Answers::new(receiver, traffic.arrive("x", "m", "/v1/completions"), 1);
        while !matches!(answers.next().await, Said::Finished { .. } | Said::Failed(_)) {}
    }

    #[tokio::test]
    async fn every_request_is_counted_once_under_how_it_ended() {
        let traffic = Arc::new(Traffic::default());
        let token = || Said::Token { choice: 0, text: "a".into(), logprobs: None };
        let usage = Usage { prompt_tokens: 3, cached_tokens: 0, completion_tokens: 2 };
        let finished = Said::Finished { choice: 0, text: String::new(), reason: "stop".into(), usage };
        read(&traffic, vec![Said::Started, token(), token(), finished]).await;
        read(&traffic, vec![token(), Said::Failed(ServeError::Broke("died".into()))]).await;
        read(&traffic, vec![token()]).await;
        traffic.arrive("y", "m", "/v1/completions").not_taken(true);
        let waiting = traffic.arrive("z", "m", "/v1/completions");
        let found = traffic.document(Vec::new());
        assert_eq!((found.succeeded, found.failed, found.cancelled, found.refused), (1, 1, 1, 1));
        assert_eq!((found.prompt_tokens, found.generated_tokens, found.live.len()), (3, 2, 1));
        assert_eq!((found.first_token.count(), found.token.count(), found.total.count()), (3, 1, 1));
        assert!(traffic.news(Vec::new()).is_some());
        drop(waiting);
        assert!(traffic.news(Vec::new()).is_some());
        assert!(traffic.news(Vec::new()).is_none(), "nothing new");
    }
}
