//! The control API's handlers, one per route of [`drophammer_client::routes`].

use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use drophammer_client::api::{
    AddModel, ErrorReport, ForgeModel, Hardware, Job, Jobs, Log, ModelEntry, Models, PlanReport, PlanRequest,
    Plugin, Plugins, Requests, Served, ServedModel, Status,
};
use drophammer_client::routes;

use super::answer::{Answer, Refusal};
use super::{Shared, events, metrics, ollama, openai, openapi};

/// Everything, for the control socket.
pub(super) fn router(daemon: Shared) -> Router {
    let control = Router::new()
        .route(routes::STATUS, get(status))
        .route(routes::MODELS, get(models))
        .route(routes::ADD_MODEL, post(add_model))
        .route(routes::MODEL, get(model))
        .route(routes::MODEL_PLAN, get(model_plan))
        .route(routes::FORGE_MODEL, post(forge_model))
        .route(routes::PLAN, post(plan))
        .route(routes::JOBS, get(jobs))
        .route(routes::JOB, get(job))
        .route(routes::JOB_LOG, get(job_log))
        .route(routes::CANCEL_JOB, post(cancel_job))
        .route(routes::RETRY_JOB, post(retry_job))
        .route(routes::ARTIFACT, delete(delete_artifact))
        .route(routes::SERVE_ARTIFACT, post(serve_artifact).delete(unserve_artifact))
        .route(routes::PIN_ARTIFACT, post(pin_artifact).delete(unpin_artifact))
        .route(routes::SERVED, get(served))
        .route(routes::PLUGINS, get(plugins))
        .route(routes::RELOAD_PLUGIN, post(reload_plugin))
        .route(routes::PLUGIN_LOG, get(plugin_log))
        .route(routes::HARDWARE, get(hardware))
        .route(routes::REQUESTS, get(requests))
        .route(routes::EVENTS, get(events::stream))
        .route(routes::SHUTDOWN, post(shutdown))
        .with_state(daemon.clone());
    public_router(daemon).merge(control)
}

/// What is offered over TCP as well.
pub(super) fn public_router(daemon: Shared) -> Router {
    let largest = daemon.pipeline.config.serve.body_limit_bytes;
    Router::new()
        .route(routes::OPENAPI, get(openapi::document))
        .route("/health", get(|| async { StatusCode::NO_CONTENT }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics::metrics))
        .merge(openai::router())
        .merge(ollama::router())
        .layer(DefaultBodyLimit::max(largest))
        .with_state(daemon)
}

/// Whether new requests are taken: not while the daemon ends.
async fn ready(State(daemon): State<Shared>) -> StatusCode {
    if daemon.stop.is_cancelled() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::NO_CONTENT }
}

#[utoipa::path(get, path = routes::STATUS, responses((status = 200, body = Status)))]
pub(super) async fn status(State(daemon): State<Shared>) -> Json<Status> {
    Json(daemon.status())
}

#[utoipa::path(get, path = routes::MODELS, responses((status = 200, body = Models)))]
pub(super) async fn models(State(daemon): State<Shared>) -> Json<Models> {
    Json(Models { models: daemon.pipeline.ledger.model_documents() })
}

#[utoipa::path(post, path = routes::ADD_MODEL, request_body = AddModel, responses((status = 200, body = ModelEntry)))]
pub(super) async fn add_model(State(daemon): State<Shared>, Json(add): Json<AddModel>) -> Answer<ModelEntry> {
    Ok(Json(daemon.pipeline.add_model(&add)?))
}

#[utoipa::path(get, path = routes::MODEL, params(("name" = String, Path)), responses((status = 200, body = ModelEntry)))]
pub(super) async fn model(State(daemon): State<Shared>, Path(name): Path<String>) -> Answer<ModelEntry> {
    let model = daemon.pipeline.ledger.model_document(&name);
    model.map(Json).ok_or_else(|| Refusal::absent("model", &name))
}

#[utoipa::path(get, path = routes::MODEL_PLAN, params(("name" = String, Path)), responses((status = 200, body = PlanReport)))]
pub(super) async fn model_plan(State(daemon): State<Shared>, Path(name): Path<String>) -> Answer<PlanReport> {
    Ok(Json(daemon.pipeline.plan_model(&name).await?))
}

#[utoipa::path(post, path = routes::FORGE_MODEL, params(("name" = String, Path)), request_body = ForgeModel,
    responses((status = 200, body = Jobs)))]
pub(super) async fn forge_model(
    State(daemon): State<Shared>,
    Path(name): Path<String>,
    Json(forge): Json<ForgeModel>,
) -> Answer<Jobs> {
    Ok(Json(Jobs { jobs: daemon.pipeline.forge_model(&name, &forge.targets).await? }))
}

#[utoipa::path(post, path = routes::PLAN, request_body = PlanRequest, responses((status = 200, body = PlanReport)))]
pub(super) async fn plan(
    State(daemon): State<Shared>,
    Json(request): Json<PlanRequest>,
) -> Answer<PlanReport> {
    let path = std::path::Path::new(&request.path);
    Ok(Json(daemon.pipeline.plan_path(path, &request.targets).await?))
}

#[utoipa::path(get, path = routes::JOBS, responses((status = 200, body = Jobs)))]
pub(super) async fn jobs(State(daemon): State<Shared>) -> Json<Jobs> {
    Json(Jobs { jobs: daemon.pipeline.ledger.jobs() })
}

/// A job's number; what is no number names no job.
fn number(id: &str) -> Result<u64, Refusal> {
    id.parse().map_err(|_| Refusal::absent("job", id))
}

#[utoipa::path(get, path = routes::JOB, params(("id" = String, Path)), responses((status = 200, body = Job)))]
pub(super) async fn job(State(daemon): State<Shared>, Path(id): Path<String>) -> Answer<Job> {
    let job = daemon.pipeline.ledger.job(number(&id)?);
    job.map(|job| Json(job.document())).ok_or_else(|| Refusal::absent("job", &id))
}

#[utoipa::path(get, path = routes::JOB_LOG, params(("id" = String, Path)), responses((status = 200, body = Log)))]
pub(super) async fn job_log(State(daemon): State<Shared>, Path(id): Path<String>) -> Answer<Log> {
    let job = number(&id)?;
    daemon.pipeline.ledger.job(job).ok_or_else(|| Refusal::absent("job", &id))?;
    let log = daemon.job_log(job).await;
    log.map(Json).map_err(|error| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorReport::new("database", error.to_string()))
    })
}

#[utoipa::path(post, path = routes::CANCEL_JOB, params(("id" = String, Path)), responses((status = 200, body = Job)))]
pub(super) async fn cancel_job(State(daemon): State<Shared>, Path(id): Path<String>) -> Answer<Job> {
    Ok(Json(daemon.pipeline.cancel(number(&id)?)?))
}

#[utoipa::path(post, path = routes::RETRY_JOB, params(("id" = String, Path)), responses((status = 200, body = Job)))]
pub(super) async fn retry_job(State(daemon): State<Shared>, Path(id): Path<String>) -> Answer<Job> {
    Ok(Json(daemon.pipeline.retry(number(&id)?)?))
}

#[utoipa::path(delete, path = routes::ARTIFACT, params(("id" = String, Path)), responses((status = 204)))]
pub(super) async fn delete_artifact(
    State(daemon): State<Shared>,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    daemon.pipeline.delete_artifact(&id)?;
    daemon.serving.unload(&id);
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(post, path = routes::SERVE_ARTIFACT, params(("id" = String, Path)), responses((status = 200, body = ServedModel)))]
pub(super) async fn serve_artifact(
    State(daemon): State<Shared>,
    Path(id): Path<String>,
) -> Answer<ServedModel> {
    Ok(Json(daemon.serving.serve(&id)?))
}

#[utoipa::path(delete, path = routes::SERVE_ARTIFACT, params(("id" = String, Path)), responses((status = 204)))]
pub(super) async fn unserve_artifact(
    State(daemon): State<Shared>,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    if daemon.serving.unload(&id) {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Refusal::absent("served model", &id))
    }
}

#[utoipa::path(post, path = routes::PIN_ARTIFACT, params(("id" = String, Path)), responses((status = 200, body = ServedModel)))]
pub(super) async fn pin_artifact(
    State(daemon): State<Shared>,
    Path(id): Path<String>,
) -> Answer<ServedModel> {
    Ok(Json(daemon.serving.pin(&id)?))
}

#[utoipa::path(delete, path = routes::PIN_ARTIFACT, params(("id" = String, Path)), responses((status = 204)))]
pub(super) async fn unpin_artifact(
    State(daemon): State<Shared>,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    if daemon.serving.unpin(&id)? {
        return Ok(StatusCode::NO_CONTENT);
    }
    let error = ErrorReport::new("pinned_by_configuration", format!("the configuration pins {id}"));
    Err(Refusal::new(StatusCode::CONFLICT, error.help("take it out of `serve.pinned`")))
}

#[utoipa::path(get, path = routes::SERVED, responses((status = 200, body = Served)))]
pub(super) async fn served(State(daemon): State<Shared>) -> Json<Served> {
    Json(daemon.serving.documents())
}

#[utoipa::path(get, path = routes::PLUGINS, responses((status = 200, body = Plugins)))]
pub(super) async fn plugins(State(daemon): State<Shared>) -> Json<Plugins> {
    Json(Plugins { plugins: daemon.pipeline.plugins.documents() })
}

#[utoipa::path(post, path = routes::RELOAD_PLUGIN, params(("id" = String, Path)), responses((status = 200, body = Plugin)))]
pub(super) async fn reload_plugin(State(daemon): State<Shared>, Path(id): Path<String>) -> Answer<Plugin> {
    daemon.pipeline.plugins.probe(&daemon.pipeline).await;
    let plugin = daemon.pipeline.plugins.documents().into_iter().find(|plugin| plugin.id == id);
    plugin.map(Json).ok_or_else(|| Refusal::absent("plugin", &id))
}

#[utoipa::path(get, path = routes::PLUGIN_LOG, params(("id" = String, Path)), responses((status = 200, body = Log)))]
pub(super) async fn plugin_log(State(daemon): State<Shared>, Path(id): Path<String>) -> Answer<Log> {
    daemon.pipeline.plugins.log(&id).map(Json).ok_or_else(|| Refusal::absent("plugin", &id))
}

#[utoipa::path(get, path = routes::HARDWARE, responses((status = 200, body = Hardware)))]
pub(super) async fn hardware(State(daemon): State<Shared>) -> Json<Hardware> {
    Json(daemon.sample().await)
}

#[utoipa::path(get, path = routes::REQUESTS, responses((status = 200, body = Requests)))]
pub(super) async fn requests(State(daemon): State<Shared>) -> Json<Requests> {
    Json(daemon.serving.requests())
}

#[utoipa::path(post, path = routes::SHUTDOWN, responses((status = 202)))]
pub(super) async fn shutdown(State(daemon): State<Shared>) -> StatusCode {
    daemon.stop.cancel();
    StatusCode::ACCEPTED
}
