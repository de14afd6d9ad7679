//! The OpenAPI document of the control API, made from the handlers themselves.

use axum::Json;
use drophammer_client::{api, routes};
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
        control::plugin_log,
        control::hardware,
        control::serve_artifact,
        control::unserve_artifact,
        control::pin_artifact,
        control::unpin_artifact,
        control::served,
        control::requests,
        control::shutdown,
        events::stream,
        document,
    ),
    components(schemas(api::ApiError, api::Event))
)]
struct Document;

/// The document.
pub fn openapi() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

#[utoipa::path(get, path = routes::OPENAPI, responses((status = 200, description = "This document.")))]
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

    #[test]
    fn the_document_describes_exactly_the_routes_that_clients_know() {
        let document = serde_json::to_value(openapi()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let described = paths.iter().flat_map(|(path, methods)| {
            let methods = methods.as_object().unwrap().keys();
            methods.map(move |method| (method.to_uppercase(), path.clone()))
        });
        let mut described: Vec<_> = described.collect();
        let mut known: Vec<_> =
            routes::ALL.iter().map(|(method, path)| ((*method).to_owned(), (*path).to_owned())).collect();
        described.sort();
        known.sort();
        assert_eq!(described, known);
    }
}
