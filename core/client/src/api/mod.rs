//! The documents of the control API. One subject, one file.
//!
//! Field names are stable: scripts read them from `--json` output. An `Option` that is `None` is
//! written as `null` and may be missing when read, so that an older daemon can be read by a newer
//! client. Enumerations are lower-case words, listed by their `ALL`.

mod chat;
mod error;
mod event;
mod hardware;
mod job;
mod log;
mod model;
mod plan;
mod plugin;
mod report;
mod requests;
mod status;

pub use chat::{ChatChunk, ChatMessage, ChatRequest, ChatRole, CompletionRequest, Usage};
pub use error::{ApiError, ErrorReport, Problem};
pub use event::Event;
pub use hardware::{Accelerator, Core, Cpu, Disk, Hardware, Memory, Network, ProcessUse};
pub use job::{Job, JobState, Jobs, SOURCE_TARGET, Stage};
pub use log::{Log, LogLevel, LogLine, LogSource};
pub use model::{
    AddModel, Artifact, ForgeModel, Measurements, ModelEntry, ModelState, Models, Served, ServedModel,
    ServedState, SourceInfo,
};
pub use plan::{PlanReport, PlanRequest, PlanTarget};
pub use plugin::{Device, DeviceKind, Plugin, PluginState, Plugins};
pub use report::{
    BenchArtifact, BenchOperation, BenchReport, BenchRoofline, Devices, EvalPosition, EvalReport, EvalTensor,
    InspectReport, InspectTensor, PluginDevice,
};
pub use requests::{BatchUse, Histogram, LiveRequest, RequestPhase, Requests};
pub use status::{JobCounts, Server, Status, Worker, WorkerRole};

/// Declares an enumeration whose values are lower-case words on the wire and on the screen.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash,
            serde::Serialize, serde::Deserialize, utoipa::ToSchema,
        )]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word used in JSON and on the screen.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}
use words;

#[cfg(test)]
mod tests;
