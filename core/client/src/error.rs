//! What can go wrong between here and the daemon.

use std::time::Duration;

use crate::Endpoint;
use crate::api::ErrorReport;

/// Why a call failed. Each message says what happened, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no daemon is running at {endpoint}; start it with `drophammer daemon`")]
    NoDaemon {
        /// Where it was looked for.
        endpoint: Endpoint,
        /// What the system said.
        source: std::io::Error,
    },
    /// The socket is somebody else's.
    #[error(
        "the daemon at {endpoint} belongs to another user; run this as that user, or start your own with `drophammer daemon`"
    )]
    Denied {
        /// Where it is.
        endpoint: Endpoint,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text does not name an endpoint.
    #[error("cannot connect to `{endpoint}`: {reason}")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The connection broke.
    #[error(
        "lost the connection to the daemon at {endpoint} ({reason}); see whether it still runs with `drophammer status`"
    )]
    Lost {
        /// Where it is.
        endpoint: Endpoint,
        /// How it broke.
        reason: String,
    },
    /// It accepts connections but does not answer.
    #[error("the daemon at {endpoint} did not answer within {} s; it may be overloaded: try again", after.as_secs())]
    Silent {
        /// Where it is.
        endpoint: Endpoint,
        /// How long it was waited for.
        after: Duration,
    },
    /// The daemon said no.
    #[error("{report}")]
    Api {
        /// HTTP status.
        status: u16,
        /// What it said.
        report: Box<ErrorReport>,
    },
    /// An answer is longer than any honest one.
    #[error(
        "the daemon's answer to {path} is longer than {limit} bytes; is something else listening at {endpoint}?"
    )]
    TooLong {
        /// Where it is.
        endpoint: Endpoint,
        /// What was asked.
        path: String,
        /// The most that is read.
        limit: usize,
    },
    /// An answer is not the document it should be.
    #[error(
        "cannot read the daemon's answer to {path}: {source}; are daemon and client of the same version?"
    )]
    Malformed {
        /// What was asked.
        path: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl ClientError {
    /// Whether the daemon (rather than the way to it) refused, with this status.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Api { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The same in the form in which errors are shown everywhere.
    pub fn report(&self) -> ErrorReport {
        let code = match self {
            Self::Api { report, .. } => return (**report).clone(),
            Self::NoDaemon { .. } => "no_daemon",
            Self::Denied { .. } => "denied",
            Self::Endpoint { .. } => "bad_endpoint",
            Self::Lost { .. } => "connection_lost",
            Self::Silent { .. } => "no_answer",
            Self::TooLong { .. } => "answer_too_long",
            Self::Malformed { .. } => "answer_malformed",
        };
        let text = self.to_string();
        // Every message above puts what to do behind a semicolon.
        match text.split_once("; ") {
            Some((message, help)) => ErrorReport::new(code, message).help(help),
            None => ErrorReport::new(code, text),
        }
    }
}
