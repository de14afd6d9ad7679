//! Answers of the control API: documents, and errors that say what to do next.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use drophammer_client::api::{ApiError, ErrorReport};

use crate::pipeline::OrderError;
use crate::serving::ServeError;

/// An error answer.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    error: Box<ErrorReport>,
}

/// What a handler gives.
pub(super) type Answer<T> = Result<Json<T>, Refusal>;

impl Refusal {
    pub(super) fn new(status: StatusCode, error: ErrorReport) -> Self {
        Self { status, error: Box::new(error) }
    }

    /// Something of this kind and name is not there.
    pub(super) fn absent(kind: &str, name: &str) -> Self {
        let error = ErrorReport::new(
            format!("no_such_{}", kind.replace(' ', "_")),
            format!("there is no {kind} `{name}`"),
        );
        Self::new(
            StatusCode::NOT_FOUND,
            error.about(name.to_owned()).help("`drophammer models`, `jobs` and `plugins` list what is there"),
        )
    }
}

impl From<ServeError> for Refusal {
    fn from(error: ServeError) -> Self {
        let message = error.to_string();
        let (status, code, help) = match error {
            ServeError::NoSuchModel { name, .. } => return Self::absent("artifact", &name),
            ServeError::NoRoom { .. } => (
                StatusCode::CONFLICT,
                "no_room",
                "raise `serve.memory_bytes`, unpin another model or serve a smaller artifact",
            ),
            ServeError::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid", "ask for something else"),
            ServeError::Busy { .. } => (StatusCode::TOO_MANY_REQUESTS, "busy", "try again later"),
            ServeError::CannotLoad { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "cannot_load", "see `drophammer doctor`")
            }
            ServeError::Broke(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "failed", "the daemon's log may tell more")
            }
        };
        Self::new(status, ErrorReport::new(code, message).help(help))
    }
}

impl From<OrderError> for Refusal {
    fn from(error: OrderError) -> Self {
        match error {
            OrderError::NotFound(error) => Self::new(StatusCode::NOT_FOUND, error),
            OrderError::Conflict(error) => Self::new(StatusCode::CONFLICT, error),
            OrderError::Invalid(error) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, error),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(ApiError { error: *self.error })).into_response()
    }
}
