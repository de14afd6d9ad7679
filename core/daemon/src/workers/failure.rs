//! How a worker failed, for programs and for people.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use drophammer_client::api::ErrorReport;
use drophammer_sdk::ErrorCode;

use super::output::printable;
use crate::worker::protocol::{Failure, Progress};

/// A worker that did not do its work.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{}", self.message())]
pub struct WorkerFailure {
    /// How it ended.
    pub ending: Ending,
    /// Id of the plugin it had loaded.
    pub plugin: String,
    /// Where the work was: stage, tensor, units done.
    pub progress: Progress,
    /// The last lines it printed, oldest first.
    pub last_lines: Vec<String>,
}

/// The ways a worker ends without a result.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    /// It reported an error itself.
    Reported {
        /// What kind.
        code: ErrorCode,
        /// What happened, to which file or tensor.
        message: String,
        /// What the user can do next; may be empty.
        help: String,
    },
    /// It could not be started.
    NotStarted(String),
    /// A signal ended it.
    Signal(i32),
    /// It exited without a result.
    Exit(i32),
    /// Its process gave no sign of life for this many seconds.
    Hung(f64),
    /// Its work made no progress for this many seconds.
    Stalled(f64),
    /// It took longer than it may, in seconds.
    TimedOut(f64),
    /// It said something that is not the protocol.
    Garbled(String),
    /// Somebody asked for it to end.
    Cancelled,
}

impl Ending {
    /// How a process ended that nobody stopped.
    pub(super) fn of(status: ExitStatus) -> Self {
        match (status.signal(), status.code()) {
            (Some(signal), _) => Self::Signal(signal),
            (None, code) => Self::Exit(code.unwrap_or(-1)),
        }
    }
}

impl WorkerFailure {
    /// A failure before there was a process.
    pub(crate) fn not_started(plugin: &str, why: impl std::fmt::Display) -> Self {
        Self {
            ending: Ending::NotStarted(why.to_string()),
            plugin: plugin.to_owned(),
            progress: Progress::default(),
            last_lines: Vec::new(),
        }
    }

    /// A plugin whose manifest was refused.
    pub(super) fn refused(directory: &std::path::Path, error: drophammer_sdk::BackendError) -> Self {
        let name = directory.file_name().unwrap_or(directory.as_os_str());
        Self {
            ending: Ending::Reported { code: error.code, message: error.message, help: error.help },
            ..Self::not_started(&name.to_string_lossy(), "")
        }
    }

    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        match &self.ending {
            Ending::Reported { code, .. } => *code,
            Ending::Cancelled => ErrorCode::Cancelled,
            Ending::NotStarted(_) => ErrorCode::Failed,
            _ => ErrorCode::WorkerDied,
        }
    }

    /// What happened, where.
    pub fn message(&self) -> String {
        let plugin = &self.plugin;
        let place = self.place();
        match &self.ending {
            Ending::Reported { message, .. } => message.clone(),
            Ending::NotStarted(why) => format!("the worker for plugin {plugin} could not be started: {why}"),
            Ending::Signal(signal) => {
                format!("the worker for plugin {plugin} was ended by {}{place}", signal_name(*signal))
            }
            Ending::Exit(code) => {
                format!("the worker for plugin {plugin} exited with code {code} without a result{place}")
            }
            Ending::Hung(seconds) => {
                format!("the worker for plugin {plugin} hung: no sign of life for {seconds:.0} s{place}")
            }
            Ending::Stalled(seconds) => {
                format!("the worker for plugin {plugin} was stuck: no progress for {seconds:.0} s{place}")
            }
            Ending::TimedOut(seconds) => {
                format!("the worker for plugin {plugin} took longer than {seconds:.0} s{place}")
            }
            Ending::Garbled(what) => format!("the worker for plugin {plugin} sent nonsense: {what}{place}"),
            Ending::Cancelled => "the job was cancelled".to_owned(),
        }
    }

    /// ` in stage quantize, at tensor blk.3.ffn_up.weight`, as far as it is known.
    fn place(&self) -> String {
        let Progress { stage, tensor, .. } = &self.progress;
        match (stage.is_empty(), tensor.is_empty()) {
            (true, true) => String::new(),
            (false, true) => format!(" in stage {stage}"),
            (true, false) => format!(" at tensor {tensor}"),
            (false, false) => format!(" in stage {stage}, at tensor {tensor}"),
        }
    }

    /// What the user can do next.
    pub fn help(&self) -> String {
        const KILL: i32 = 9;
        match &self.ending {
            Ending::Reported { help, .. } => help.clone(),
            Ending::Signal(KILL) => {
                "something outside killed it, most often the system for lack of memory: free some memory, or lower \
                 the number of jobs at once"
                    .to_owned()
            }
            Ending::Signal(_) | Ending::Exit(_) | Ending::Garbled(_) => format!(
                "this is a defect of the plugin {} or its runtime, nothing else was harmed: see the last lines it \
                 printed, update the plugin or use another backend",
                self.plugin
            ),
            Ending::Hung(_) | Ending::Stalled(_) => format!(
                "retry; if it happens again, update the plugin {} or raise stall_timeout_seconds under [workers]",
                self.plugin
            ),
            Ending::TimedOut(_) => "retry when the machine is less busy, or raise the timeout under [workers]".to_owned(),
            Ending::NotStarted(_) => "see `drophammer doctor`".to_owned(),
            Ending::Cancelled => String::new(),
        }
    }

    /// The error as jobs and `--json` carry it; the last lines become its detail.
    pub fn report(&self) -> ErrorReport {
        let mut report = ErrorReport::new(self.code().word(), self.message());
        report.help = Some(self.help()).filter(|help| !help.is_empty());
        report.subject = Some(self.progress.tensor.clone()).filter(|tensor| !tensor.is_empty());
        if !matches!(self.ending, Ending::Cancelled) {
            report.detail = self.last_lines.clone();
        }
        report
    }
}

impl From<Failure> for Ending {
    fn from(failure: Failure) -> Self {
        let code = ErrorCode::from_word(&failure.code);
        if code == ErrorCode::Cancelled {
            return Self::Cancelled;
        }
        Self::Reported { code, message: printable(&failure.message), help: printable(&failure.help) }
    }
}

/// The signal's name as people know it. Numbers are those that Linux and macOS agree on, or the platform's own.
fn signal_name(signal: i32) -> String {
    let bus = if cfg!(target_os = "linux") { 7 } else { 10 };
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL (an instruction this processor does not have)",
        5 => "SIGTRAP",
        6 => "SIGABRT (it aborted itself)",
        8 => "SIGFPE (a division by zero)",
        9 => "SIGKILL",
        11 => "SIGSEGV (it touched memory that is not its own)",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        other if other == bus => "SIGBUS (a mapped file was truncated, or memory failed)",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(ending: Ending) -> WorkerFailure {
        WorkerFailure {
            ending,
            plugin: "sample".into(),
            progress: Progress { stage: "quantize".into(), tensor: "blk.0".into(), done: 1, total: 2 },
            last_lines: vec!["last words".into()],
        }
    }

    #[test]
    fn every_ending_says_who_where_and_what_next() {
        let endings = [
            Ending::Signal(11),
            Ending::Signal(9),
            Ending::Exit(0),
            Ending::Hung(30.0),
            Ending::Stalled(600.0),
            Ending::TimedOut(30.0),
            Ending::Garbled("frame of unknown kind 9".into()),
        ];
        let text: Vec<_> = endings
            .map(|ending| failure(ending).report())
            .iter()
            .map(|r| format!("{r} {:?}", r.detail))
            .collect();
        insta::assert_snapshot!(text.join("\n"));
    }

    #[test]
    fn a_reported_error_passes_through_and_a_cancelled_job_quotes_nothing() {
        let reported = Failure {
            code: "invalid_input".into(),
            message: "w is not finite".into(),
            help: "retrain".into(),
            progress: Progress::default(),
        };
        let report = failure(reported.into()).report();
        assert_eq!((report.code.as_str(), report.message.as_str()), ("invalid_input", "w is not finite"));
        assert_eq!(report.help.as_deref(), Some("retrain"));
        let cancelled = failure(Ending::Cancelled).report();
        assert_eq!((cancelled.code.as_str(), cancelled.detail.len()), ("cancelled", 0));
    }
}
