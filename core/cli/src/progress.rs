//! Long work as it goes: a bar on a terminal, plain lines otherwise, both on standard error.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use drophammer_daemon::worker::protocol::Progress;
use drophammer_daemon::workers::WorkerEvent;
use drophammer_sdk::LogLevel;
use indicatif::{ProgressBar, ProgressStyle};

/// How often a plain line is written within one stage.
const LINE_PERIOD: Duration = Duration::from_secs(5);

/// Shows what one worker tells.
pub(crate) struct Display {
    bar: Option<ProgressBar>,
    verbose: bool,
    stage: String,
    said: Instant,
}

impl Display {
    pub(crate) fn new(verbose: bool) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(
                "{prefix} {bar:30} {percent:>3}% {bytes}/{total_bytes} {bytes_per_sec} eta {eta} {wide_msg}",
            );
            let bar = ProgressBar::no_length();
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        Self { bar, verbose, stage: String::new(), said: Instant::now() }
    }

    /// Shows one event.
    pub(crate) fn show(&mut self, event: WorkerEvent) {
        match event {
            WorkerEvent::Progress(progress) => self.progress(&progress),
            WorkerEvent::Log(level, message) if self.verbose || level <= LogLevel::Warning => {
                self.line(&message);
            }
            WorkerEvent::Output(_, line) if self.verbose => self.line(&line),
            WorkerEvent::Log(..) | WorkerEvent::Output(..) => {}
        }
    }

    fn progress(&mut self, progress: &Progress) {
        if let Some(bar) = &self.bar {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
            bar.set_prefix(progress.stage.clone());
            bar.set_message(progress.tensor.clone());
            return;
        }
        if self.stage != progress.stage || self.said.elapsed() >= LINE_PERIOD {
            self.stage.clone_from(&progress.stage);
            self.said = Instant::now();
            let percent = (progress.total > 0).then(|| progress.done as f64 / progress.total as f64 * 100.0);
            let percent = percent.map(|percent| format!(" {percent:.0}%")).unwrap_or_default();
            eprintln!("{}", format!("{}{percent} {}", progress.stage, progress.tensor).trim_end());
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
