//! Every path of the control API, in one place, for the daemon and for its clients.
//!
//! Constants are the daemon's route patterns (`{name}` is one percent-encoded segment). Functions give
//! a concrete path. Bodies and answers are the types of [`crate::api`]; any answer of status 400 or
//! more carries [`crate::api::ApiError`].
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `GET` [`STATUS`] | | [`Status`](crate::api::Status) |
//! | `GET` [`MODELS`] | | [`Models`](crate::api::Models) |
//! | `POST` [`ADD_MODEL`] | [`AddModel`](crate::api::AddModel) | [`ModelEntry`](crate::api::ModelEntry) |
//! | `GET` [`MODEL`] | | [`ModelEntry`](crate::api::ModelEntry) |
//! | `GET` [`MODEL_PLAN`] | | [`PlanReport`](crate::api::PlanReport) |
//! | `POST` [`FORGE_MODEL`] | [`ForgeModel`](crate::api::ForgeModel) | [`Jobs`](crate::api::Jobs), the new ones |
//! | `POST` [`PLAN`] | [`PlanRequest`](crate::api::PlanRequest) | [`PlanReport`](crate::api::PlanReport) |
//! | `GET` [`JOBS`] | | [`Jobs`](crate::api::Jobs) |
//! | `GET` [`JOB`] | | [`Job`](crate::api::Job) |
//! | `GET` [`JOB_LOG`] | | [`Log`](crate::api::Log) |
//! | `POST` [`CANCEL_JOB`] | | [`Job`](crate::api::Job) |
//! | `POST` [`RETRY_JOB`] | | [`Job`](crate::api::Job) |
//! | `DELETE` [`ARTIFACT`] | | none (204) |
//! | `POST` [`SERVE_ARTIFACT`] | | [`ServedModel`](crate::api::ServedModel) |
//! | `DELETE` [`SERVE_ARTIFACT`] | | none (204): unloads it |
//! | `POST` [`PIN_ARTIFACT`] | | [`ServedModel`](crate::api::ServedModel) |
//! | `DELETE` [`PIN_ARTIFACT`] | | none (204): takes the pin back |
//! | `GET` [`SERVED`] | | [`Served`](crate::api::Served) |
//! | `GET` [`PLUGINS`] | | [`Plugins`](crate::api::Plugins) |
//! | `POST` [`RELOAD_PLUGIN`] | | [`Plugin`](crate::api::Plugin) |
//! | `GET` [`PLUGIN_LOG`] | | [`Log`](crate::api::Log) |
//! | `GET` [`HARDWARE`] | | [`Hardware`](crate::api::Hardware) |
//! | `GET` [`REQUESTS`] | | [`Requests`](crate::api::Requests) |
//! | `GET` [`EVENTS`] | | server-sent events, each `data:` one [`Event`](crate::api::Event) |
//! | `POST` [`SHUTDOWN`] | | none (202) |
//! | `GET` [`OPENAPI`] | | the OpenAPI document |
//!
//! `/v1/…` is the OpenAI-compatible API, offered on the control socket as well as over TCP.

use std::fmt::Write as _;

/// The daemon, its jobs in numbers and its workers.
pub const STATUS: &str = "/api/control/status";
/// Every model and its artifacts.
pub const MODELS: &str = "/api/control/models";
/// Copies or links a model from elsewhere on the daemon's machine into its watched folder.
pub const ADD_MODEL: &str = "/api/control/models/add";
/// One model.
pub const MODEL: &str = "/api/control/models/{name}";
/// What could be forged from a model, and what that would cost.
pub const MODEL_PLAN: &str = "/api/control/models/{name}/plan";
/// Queues jobs for a model.
pub const FORGE_MODEL: &str = "/api/control/models/{name}/forge";
/// What could be forged from a path on the daemon's machine.
pub const PLAN: &str = "/api/control/plan";
/// Every job the daemon remembers.
pub const JOBS: &str = "/api/control/jobs";
/// One job.
pub const JOB: &str = "/api/control/jobs/{id}";
/// A job's log: the daemon's own lines and what the worker printed.
pub const JOB_LOG: &str = "/api/control/jobs/{id}/log";
/// Asks a job to stop; a worker that does not is killed after a grace period.
pub const CANCEL_JOB: &str = "/api/control/jobs/{id}/cancel";
/// Queues a finished job again.
pub const RETRY_JOB: &str = "/api/control/jobs/{id}/retry";
/// One published artifact (`DELETE` removes it from the library).
pub const ARTIFACT: &str = "/api/control/artifacts/{id}";
/// `POST` loads an artifact so that `/v1` answers with it, `DELETE` unloads it.
pub const SERVE_ARTIFACT: &str = "/api/control/artifacts/{id}/serve";
/// `POST` loads an artifact and keeps it loaded whatever else needs memory, `DELETE` takes that back.
pub const PIN_ARTIFACT: &str = "/api/control/artifacts/{id}/pin";
/// The models loaded now.
pub const SERVED: &str = "/api/control/served";
/// Every plugin found, working or not.
pub const PLUGINS: &str = "/api/control/plugins";
/// Probes a plugin again in a new worker.
pub const RELOAD_PLUGIN: &str = "/api/control/plugins/{id}/reload";
/// What a plugin's probe printed.
pub const PLUGIN_LOG: &str = "/api/control/plugins/{id}/log";
/// The newest hardware sample.
pub const HARDWARE: &str = "/api/control/hardware";
/// Live API traffic and latency histograms.
pub const REQUESTS: &str = "/api/control/requests";
/// Server-sent events. A comment line at least every [`EVENTS_KEEPALIVE_SECONDS`] shows that the
/// daemon is alive; the first event is always [`crate::api::Event::Resync`].
pub const EVENTS: &str = "/api/control/events";
/// Stops the daemon after its running requests.
pub const SHUTDOWN: &str = "/api/control/shutdown";
/// The OpenAPI document of all of this.
pub const OPENAPI: &str = "/api/control/openapi.json";
/// OpenAI-compatible chat.
pub const CHAT_COMPLETIONS: &str = "/v1/chat/completions";
/// OpenAI-compatible continuation of a text.
pub const COMPLETIONS: &str = "/v1/completions";

/// Every route of the control API with its method.
pub const ALL: &[(&str, &str)] = &[
    ("GET", STATUS),
    ("GET", MODELS),
    ("POST", ADD_MODEL),
    ("GET", MODEL),
    ("GET", MODEL_PLAN),
    ("POST", FORGE_MODEL),
    ("POST", PLAN),
    ("GET", JOBS),
    ("GET", JOB),
    ("GET", JOB_LOG),
    ("POST", CANCEL_JOB),
    ("POST", RETRY_JOB),
    ("DELETE", ARTIFACT),
    ("POST", SERVE_ARTIFACT),
    ("DELETE", SERVE_ARTIFACT),
    ("POST", PIN_ARTIFACT),
    ("DELETE", PIN_ARTIFACT),
    ("GET", SERVED),
    ("GET", PLUGINS),
    ("POST", RELOAD_PLUGIN),
    ("GET", PLUGIN_LOG),
    ("GET", HARDWARE),
    ("GET", REQUESTS),
    ("GET", EVENTS),
    ("POST", SHUTDOWN),
    ("GET", OPENAPI),
];

/// The longest the daemon stays silent on [`EVENTS`]; clients give up after three times this.
pub const EVENTS_KEEPALIVE_SECONDS: u64 = 15;

/// `GET` one model.
pub fn model(name: &str) -> String {
    fill(MODEL, name)
}

/// `GET` a model's plan.
pub fn model_plan(name: &str) -> String {
    fill(MODEL_PLAN, name)
}

/// `POST` to forge from a model.
pub fn forge_model(name: &str) -> String {
    fill(FORGE_MODEL, name)
}

/// `GET` one job.
pub fn job(id: &str) -> String {
    fill(JOB, id)
}

/// `GET` a job's log.
pub fn job_log(id: &str) -> String {
    fill(JOB_LOG, id)
}

/// `POST` to cancel a job.
pub fn cancel_job(id: &str) -> String {
    fill(CANCEL_JOB, id)
}

/// `POST` to retry a job.
pub fn retry_job(id: &str) -> String {
    fill(RETRY_JOB, id)
}

/// `DELETE` an artifact.
pub fn artifact(id: &str) -> String {
    fill(ARTIFACT, id)
}

/// `POST` to serve an artifact, `DELETE` to unload it.
pub fn serve_artifact(id: &str) -> String {
    fill(SERVE_ARTIFACT, id)
}

/// `POST` to pin an artifact, `DELETE` to take the pin back.
pub fn pin_artifact(id: &str) -> String {
    fill(PIN_ARTIFACT, id)
}

/// `POST` to probe a plugin again.
pub fn reload_plugin(id: &str) -> String {
    fill(RELOAD_PLUGIN, id)
}

/// `GET` what a plugin's probe printed.
pub fn plugin_log(id: &str) -> String {
    fill(PLUGIN_LOG, id)
}

/// Puts one value, percent-encoded, in place of a pattern's only `{…}`.
fn fill(pattern: &str, value: &str) -> String {
    let (before, rest) = pattern.split_once('{').unwrap_or((pattern, ""));
    let after = rest.split_once('}').map_or("", |(_, after)| after);
    let mut path = String::with_capacity(pattern.len() + value.len());
    path.push_str(before);
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~') {
            path.push(char::from(byte));
        } else {
            // A dot is escaped too: a model named `..` must not walk up the path.
            let _ = write!(path, "%{byte:02X}");
        }
    }
    path.push_str(after);
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_segment_whatever_it_holds() {
        for (name, expected) in [
            ("smollm2-135m", "/api/control/models/smollm2-135m/forge"),
            ("a/b", "/api/control/models/a%2Fb/forge"),
            ("..", "/api/control/models/%2E%2E/forge"),
            ("é ?#", "/api/control/models/%C3%A9%20%3F%23/forge"),
            ("{id}", "/api/control/models/%7Bid%7D/forge"),
        ] {
            assert_eq!(forge_model(name), expected);
        }
    }
}
