//! `/metrics`: the figures of the dashboard in Prometheus' text format.

use std::fmt::Write as _;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use drophammer_client::api::{Histogram, Requests, Status};

use super::Shared;

pub(super) async fn metrics(State(daemon): State<Shared>) -> impl IntoResponse {
    let text = write(&daemon.status(), &daemon.serving.requests());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

/// One family: its help, its kind, and lines of labels and values.
fn family(page: &mut String, name: &str, kind: &str, help: &str, lines: &[(String, f64)]) {
    if lines.is_empty() {
        return;
    }
    // Writing to a string does not fail.
    let _ = writeln!(page, "# HELP drophammer_{name} {help}\n# TYPE drophammer_{name} {kind}");
    for (labels, value) in lines {
        let _ = writeln!(page, "drophammer_{name}{labels} {value}");
    }
}

fn label(key: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{{{key}=\"{value}\"}}")
}

fn histogram(page: &mut String, name: &str, help: &str, times: &Histogram) {
    let _ = writeln!(page, "# HELP drophammer_{name} {help}\n# TYPE drophammer_{name} histogram");
    let mut below = 0;
    for (bound, count) in times.bounds_seconds.iter().zip(&times.counts) {
        below += count;
        let _ = writeln!(page, "drophammer_{name}_bucket{{le=\"{bound}\"}} {below}");
    }
    let _ = writeln!(page, "drophammer_{name}_bucket{{le=\"+Inf\"}} {}", times.count());
    let _ = writeln!(page, "drophammer_{name}_sum {}", times.sum_seconds);
    let _ = writeln!(page, "drophammer_{name}_count {}", times.count());
}

fn write(status: &Status, requests: &Requests) -> String {
    let mut page = String::new();
    let one = |value: f64| vec![(String::new(), value)];
    let jobs = &status.jobs;
    let states = [
        ("queued", jobs.queued),
        ("running", jobs.running),
        ("succeeded", jobs.succeeded),
        ("failed", jobs.failed),
        ("cancelled", jobs.cancelled),
        ("blocked", jobs.blocked),
    ];
    let lines = states.map(|(state, count)| (label("state", state), count as f64));
    family(&mut page, "jobs", "gauge", "Forge jobs by state.", &lines);
    family(&mut page, "start_time_seconds", "gauge", "When the daemon started.", &one(status.started));
    family(&mut page, "workers", "gauge", "Worker processes.", &one(status.workers.len() as f64));
    let memory: u64 = status.workers.iter().map(|worker| worker.memory_bytes).sum();
    family(&mut page, "worker_memory_bytes", "gauge", "Resident memory of all workers.", &one(memory as f64));
    let ends = [
        ("succeeded", requests.succeeded),
        ("failed", requests.failed),
        ("cancelled", requests.cancelled),
        ("refused", requests.refused),
    ];
    let lines = ends.map(|(end, count)| (label("outcome", end), count as f64));
    family(&mut page, "requests_total", "counter", "Requests by how they ended.", &lines);
    family(&mut page, "requests_live", "gauge", "Requests in hand.", &one(requests.live.len() as f64));
    let help = "Tokens generated.";
    family(&mut page, "generated_tokens_total", "counter", help, &one(requests.generated_tokens as f64));
    let help = "Prompt tokens read.";
    family(&mut page, "prompt_tokens_total", "counter", help, &one(requests.prompt_tokens as f64));
    let of_models = |value: fn(&drophammer_client::api::BatchUse) -> u32| -> Vec<(String, f64)> {
        requests.batches.iter().map(|batch| (label("model", &batch.model), f64::from(value(batch)))).collect()
    };
    family(&mut page, "batch_running", "gauge", "Sequences in a model's batch.", &of_models(|b| b.running));
    family(&mut page, "batch_queued", "gauge", "Requests waiting for a model.", &of_models(|b| b.queued));
    let help = "From arrival to the first token.";
    histogram(&mut page, "time_to_first_token_seconds", help, &requests.first_token);
    let help = "Time for each generated token after the first, averaged over a request.";
    histogram(&mut page, "time_per_token_seconds", help, &requests.token);
    histogram(&mut page, "request_seconds", "From arrival to the end.", &requests.total);
    page
}

#[cfg(test)]
mod tests {
    use drophammer_client::api::{BatchUse, JobCounts, Server};

    use super::*;

    #[test]
    fn the_page_is_what_prometheus_reads() {
        let status = Status {
            version: String::new(),
            home: String::new(),
            models_dir: String::new(),
            library_dir: String::new(),
            server: Server::default(),
            jobs: JobCounts { running: 2, ..JobCounts::default() },
            workers: Vec::new(),
            pid: 1,
            started: 12.5,
        };
        let batch =
            BatchUse { model: "a \"b\"".into(), running: 3, capacity: 8, queued: 0, queue_capacity: 9 };
        let times = Histogram { bounds_seconds: vec![0.1, 1.0], counts: vec![2, 1, 1], sum_seconds: 4.5 };
        let requests =
            Requests { batches: vec![batch], first_token: times, succeeded: 4, ..Requests::default() };
        insta::assert_snapshot!(write(&status, &requests));
    }
}
