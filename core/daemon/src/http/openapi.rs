//! The OpenAPI document of the control API, made from the handlers themselves.

use axum::Json;
use drophammer_client::api;
use utoipa::OpenApi;

use super::{control, events};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Drophammer control API",
        description = "Models, jobs, artifacts, plugins and the machine."
    ),
    paths(
        control::status,
        control::models,
        control::add_model,
        control::model,
        control::model_plan,
        control::forge_model,
        control::plan,
        control::jobs,
        control::job,
        control::job_log,
        control::cancel_job,
        control::retry_job,
        control::delete_artifact,
        control::plugins,
        control::reload_plugin,
        control::hardware,
        control::serve_artifact,
        control::unserve_artifact,
        control::served,
        control::requests,
        control::shutdown,
        events::stream,
    ),
    components(schemas(api::ApiError, api::Event))
)]
struct Document;

/// The document.
pub fn openapi() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(openapi())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schema_that_is_referred_to_is_defined() {
        let text = serde_json::to_string(&openapi()).unwrap();
        let defined: serde_json::Value = serde_json::from_str(&text).unwrap();
        let schemas = defined["components"]["schemas"].as_object().unwrap();
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{name} is not defined");
        }
        assert!(schemas.contains_key("Job") && schemas.contains_key("Hardware"));
    }
}
