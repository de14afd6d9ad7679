//! Errors in OpenAI's form.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::serving::ServeError;

/// An error answer, or the last event of a stream that broke.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    param: Option<&'static str>,
    retry_after: Option<u64>,
}

impl Refusal {
    /// The request makes no sense.
    pub(super) fn invalid(param: &'static str, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            code: "invalid_value",
            message: message.into(),
            param: Some(param),
            retry_after: None,
        }
    }

    /// No response of this id is kept.
    pub(super) fn no_such_response(id: &str) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            code: "response_not_found",
            message: format!(
                "there is no response `{id}`; only the newest are kept, and none longer than the daemon runs"
            ),
            param: Some("previous_response_id"),
            retry_after: None,
        }
    }

    /// The field at fault.
    #[cfg(test)]
    pub(super) fn param(&self) -> Option<&'static str> {
        self.param
    }

    /// The error document.
    pub(super) fn document(&self) -> Value {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl From<ServeError> for Refusal {
    fn from(error: ServeError) -> Self {
        let message = error.to_string();
        let (status, code, param, retry_after) = match error {
            ServeError::NoSuchModel { .. } => (StatusCode::NOT_FOUND, "model_not_found", Some("model"), None),
            ServeError::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid_value", None, None),
            ServeError::Busy { retry_after_seconds, .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "queue_full", None, Some(retry_after_seconds))
            }
            ServeError::CannotLoad { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "model_unavailable", None, Some(5))
            }
            ServeError::NoRoom { .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, "model_too_large", Some("model"), None)
            }
            ServeError::Broke(_) => (StatusCode::BAD_GATEWAY, "model_failed", None, None),
        };
        Self { status, code, message, param, retry_after }
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        // A body of the right form but with a field of the wrong type is one error more to axum, not to OpenAI's API.
        let status = match rejection.status() {
            StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
            other => other,
        };
        Self { status, code: "invalid_json", message: rejection.body_text(), param: None, retry_after: None }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.document())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
