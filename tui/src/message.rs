//! What comes in and what goes out. [`crate::app::App`] turns messages into state and effects; only
//! [`run`](fn@crate::run) carries effects out, so that everything else can be tested without a terminal.

use crossterm::event::{KeyEvent, MouseEvent};
use drophammer_client::api::{
    ChatChunk, ChatRequest, ErrorReport, Event, Hardware, Job, Log, ModelEntry, PlanReport, Plugin, Requests,
    ServedModel, Status,
};

/// Something happened.
#[derive(Debug)]
pub enum Message {
    /// A key was pressed.
    Key(KeyEvent),
    /// The mouse did something.
    Mouse(MouseEvent),
    /// Text was pasted.
    Paste(String),
    /// The terminal has another size.
    Resized,
    /// The clock: Unix seconds.
    Tick(f64),
    /// Events arrive from now on.
    Connected,
    /// The daemon is away.
    Disconnected {
        /// Why.
        error: ErrorReport,
        /// Seconds until the next attempt.
        retry_in: f64,
    },
    /// The daemon told something.
    Event(Box<Event>),
    /// Everything was read anew.
    Loaded(Box<Loaded>),
    /// Everything should have been read anew.
    LoadFailed(ErrorReport),
    /// A job's log was read.
    JobLog(String, Result<Log, ErrorReport>),
    /// A plugin's log was read.
    PluginLog(String, Result<Log, ErrorReport>),
    /// What could be forged from a model.
    Plan(String, Result<PlanReport, ErrorReport>),
    /// Something asked for was done (the sentence says what) or refused.
    Done(Result<String, ErrorReport>),
    /// A piece of an answer in a chat column.
    Chat {
        /// 0 or 1.
        column: usize,
        /// Which question of that column it answers.
        turn: u64,
        /// Seconds since the question was sent.
        seconds: f64,
        /// The piece.
        piece: ChatPiece,
    },
}

/// A piece of an answer.
#[derive(Debug)]
pub enum ChatPiece {
    /// From the model.
    Chunk(ChatChunk),
    /// The stream broke or was refused.
    Failed(ErrorReport),
    /// The stream ended.
    Ended,
}

/// Everything the daemon knows.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// In brief.
    pub status: Option<Status>,
    /// Every job.
    pub jobs: Vec<Job>,
    /// Every model.
    pub models: Vec<ModelEntry>,
    /// Every plugin.
    pub plugins: Vec<Plugin>,
    /// What is loaded.
    pub served: Vec<ServedModel>,
    /// The newest sample.
    pub hardware: Option<Hardware>,
    /// API traffic; `None` when this daemon does not count requests.
    pub requests: Option<Requests>,
}

/// Something to be done outside.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Leave.
    Quit,
    /// Read everything anew.
    Load,
    /// Read a job's log.
    JobLog(String),
    /// Read a plugin's log.
    PluginLog(String),
    /// Ask what could be forged from a model.
    Plan(String),
    /// Forge targets from a model.
    Forge(String, Vec<String>),
    /// Bring a path into the watched folder.
    Add(String),
    /// Stop a job.
    Cancel(String),
    /// Queue a job again.
    Retry(String),
    /// Load an artifact.
    Serve(String),
    /// Unload an artifact.
    Unserve(String),
    /// Load an artifact and keep it loaded.
    Pin(String),
    /// Let an artifact be unloaded again.
    Unpin(String),
    /// Remove an artifact.
    Delete(String),
    /// Probe a plugin again.
    Reload(String),
    /// Ask a model.
    Chat {
        /// 0 or 1.
        column: usize,
        /// Which question of that column this is.
        turn: u64,
        /// The question.
        request: Box<ChatRequest>,
    },
    /// Stop the answer in a column.
    StopChat(usize),
    /// Take or release the mouse.
    Mouse(bool),
    /// Put text on the clipboard.
    Copy(String),
    /// Draw everything anew.
    Redraw,
}
