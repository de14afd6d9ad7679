//! What the daemon tells its listeners as it happens.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Hardware, Job, LogLine, ModelEntry, Plugin, Requests, Served, Status};

/// One change. Each carries the whole new document, so applying it twice does no harm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", content = "data", rename_all = "snake_case")]
pub enum Event {
    /// Everything may have changed (first event, or the listener fell behind): read it all again.
    Resync,
    /// The daemon's summary changed.
    Status(Box<Status>),
    /// A job is new or changed.
    Job(Box<Job>),
    /// A job was forgotten; the value is its id.
    JobRemoved(String),
    /// A model or one of its artifacts is new or changed.
    Model(Box<ModelEntry>),
    /// A model is gone; the value is its name.
    ModelRemoved(String),
    /// A plugin was found, probed or reloaded.
    Plugin(Box<Plugin>),
    /// A plugin is gone; the value is its id.
    PluginRemoved(String),
    /// A model was loaded or unloaded.
    Served(Served),
    /// A line was logged.
    Log(LogLine),
    /// A hardware sample, about once a second while somebody listens.
    Hardware(Box<Hardware>),
    /// API traffic, at most once a second and only while there is some.
    Requests(Box<Requests>),
}
