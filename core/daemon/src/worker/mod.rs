//! The child's side: `drophammer worker`, a process that loads exactly one plugin and does one job or hosts one model.
//!
//! Threads: the main thread runs the plugin; a reader answers the supervisor (also while the plugin is busy) and ends
//! the process when the supervisor is gone; a watchdog ends it above its memory or disk budget. Standard output and
//! error belong to the plugin and its native libraries; the supervisor captures both.
//!
//! What must not come in: decisions. A worker does what its [`protocol::Assignment`] says and reports.

mod confinement;
mod lending;
pub(crate) mod line;
pub mod protocol;
mod resources;
mod work;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use drophammer_sdk::{BackendError, ErrorCode};

use line::{Line, WorkerJob};
use protocol::{Assignment, Frame, Order, Report};
use resources::Exceeded;

/// Runs the worker to its end. To be called first thing in `main`, while the process has one thread.
pub fn run() -> ExitCode {
    match prepare() {
        Ok((assignment, line, handed)) => serve(assignment, &line, handed),
        Err(error) => {
            eprintln!("drophammer worker: {error}; {}", error.help);
            ExitCode::from(2)
        }
    }
}

fn prepare() -> Result<(Assignment, Line, Vec<OwnedFd>), BackendError> {
    let failed = |error: std::io::Error| BackendError::new(ErrorCode::Failed, error.to_string());
    let (mut socket, handed) = line::take()?;
    confinement::first(c"drophammer-work").map_err(failed)?;
    let first = Frame::read(&mut socket).and_then(|frame| frame.map(|frame| frame.parse()).transpose());
    let Some(Order::Start(assignment)) = first.map_err(failed)? else {
        return Err(BackendError::new(ErrorCode::Failed, "the supervisor left without an assignment"));
    };
    let reader = socket.try_clone().map_err(failed)?;
    let line = Line::new(socket);
    confinement::second(&assignment.limits).map_err(failed)?;
    listen(reader, line.clone()).map_err(failed)?;
    watch(&assignment, line.clone()).map_err(failed)?;
    Ok((*assignment, line, handed))
}

fn serve(assignment: Assignment, line: &Line, handed: Vec<OwnedFd>) -> ExitCode {
    let job = WorkerJob { line: line.clone(), limits: assignment.limits };
    let told = match work::perform(assignment, job, handed) {
        Ok(outcome) => line
            .send(&Report::Done { outcome: Box::new(outcome), peak_memory_bytes: resources::peak_memory() }),
        Err(error) => {
            line.fail(error);
            return ExitCode::FAILURE;
        }
    };
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            line.fail(BackendError::new(ErrorCode::Failed, format!("the result cannot be sent: {error}")));
            ExitCode::FAILURE
        }
    }
}

/// Starts the thread that answers the supervisor.
fn listen(mut socket: UnixStream, line: Line) -> std::io::Result<()> {
    let answer = move || {
        loop {
            let order = Frame::read(&mut socket).and_then(|frame| frame.map(|f| f.parse()).transpose());
            match order {
                Ok(Some(Order::Cancel)) => line.cancel(),
                Ok(Some(Order::Ping)) => drop(line.send(&Report::Pong)),
                // A second assignment, a broken frame or no supervisor any more: nobody can use our result.
                Ok(Some(Order::Start(_)) | None) | Err(_) => confinement::end_group(),
            }
        }
    };
    std::thread::Builder::new().name("control".into()).spawn(answer).map(drop)
}

/// Starts the watchdog, when there is something to watch.
fn watch(assignment: &Assignment, line: Line) -> std::io::Result<()> {
    let limits = assignment.limits;
    if limits.memory_bytes == 0 && limits.disk_bytes == 0 {
        return Ok(());
    }
    let staging = assignment.work.staging().map(std::path::Path::to_path_buf);
    let tell = move |exceeded| {
        let (what, budget, used, help) = match exceeded {
            Exceeded::Memory(used) => {
                ("memory", limits.memory_bytes, used, "raise the memory limit, or use fewer threads")
            }
            Exceeded::Disk(used) => {
                ("disk", limits.disk_bytes, used, "free some disk space, or raise the disk limit")
            }
        };
        let message = format!("the worker exceeded its {what} budget of {budget} bytes (it used {used})");
        line.fail(BackendError::new(ErrorCode::OutOfResources, message).with_help(help));
        confinement::end_group();
    };
    std::thread::Builder::new()
        .name("watchdog".into())
        .spawn(move || resources::watch(limits, staging, tell))
        .map(drop)
}
