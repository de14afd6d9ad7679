//! How states, errors and things are worded and marked, the same in every view. A mark always goes
//! with its word: colour only underlines what both already say.

use drophammer_client::api::{
    Artifact, ErrorReport, Job, JobState, ModelState, PluginState, SOURCE_TARGET, ServedModel, ServedState,
    SourceInfo, Stage,
};
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use crate::theme::Theme;
use crate::units;
use crate::widgets::wrap::wrap;

pub(crate) fn job_mark(state: JobState) -> &'static str {
    match state {
        JobState::Queued => "·",
        JobState::Running => "▶",
        JobState::Succeeded => "✓",
        JobState::Failed => "✗",
        JobState::Cancelled => "–",
        JobState::Blocked => "‖",
    }
}

pub(crate) fn job_style(state: JobState, theme: &Theme) -> Style {
    match state {
        JobState::Queued | JobState::Cancelled => theme.dim,
        JobState::Running => theme.busy,
        JobState::Succeeded => theme.good,
        JobState::Failed => theme.bad,
        JobState::Blocked => theme.warn,
    }
}

/// Its stage while it runs, its state otherwise.
pub(crate) fn job_word(job: &Job) -> &'static str {
    match job.state {
        JobState::Running => job.stage.as_str(),
        JobState::Succeeded => "done",
        state => state.as_str(),
    }
}

pub(crate) fn model_mark(state: ModelState) -> &'static str {
    match state {
        ModelState::Settling => "↓",
        ModelState::Identifying => "?",
        ModelState::Planned => "·",
        ModelState::Forging => "▶",
        ModelState::Ready => "✓",
        ModelState::Failed => "✗",
        ModelState::Missing => "–",
    }
}

pub(crate) fn model_style(state: ModelState, theme: &Theme) -> Style {
    match state {
        ModelState::Settling | ModelState::Identifying | ModelState::Forging => theme.busy,
        ModelState::Planned | ModelState::Missing => theme.dim,
        ModelState::Ready => theme.good,
        ModelState::Failed => theme.bad,
    }
}

pub(crate) fn plugin_mark(state: PluginState) -> &'static str {
    match state {
        PluginState::Probing => "?",
        PluginState::Ready => "✓",
        PluginState::Degraded => "!",
        PluginState::Unavailable => "‖",
        PluginState::Refused | PluginState::Crashed => "✗",
    }
}

pub(crate) fn plugin_style(state: PluginState, theme: &Theme) -> Style {
    match state {
        PluginState::Probing => theme.busy,
        PluginState::Ready => theme.good,
        PluginState::Degraded | PluginState::Unavailable => theme.warn,
        PluginState::Refused | PluginState::Crashed => theme.bad,
    }
}

pub(crate) fn served_mark(state: ServedState) -> &'static str {
    match state {
        ServedState::Loading => "◌",
        ServedState::Ready => "●",
        ServedState::Draining => "◍",
        ServedState::Failed => "✗",
    }
}

/// Where a served model stands; of one that is ready and stays, that it stays.
pub(crate) fn served_word(served: &ServedModel) -> &'static str {
    if served.pinned && served.state == ServedState::Ready { "pinned" } else { served.state.as_str() }
}

/// Whether a source is measured as it is: nothing is made or published.
fn is_of_source(job: &Job) -> bool {
    job.target.as_deref() == Some(SOURCE_TARGET)
}

/// `gguf q4_k_m`, or what there is of it; a source that is measured as it is, as such.
pub(crate) fn job_target(job: &Job) -> String {
    match (&job.format, &job.scheme, &job.target) {
        (Some(format), Some(scheme), _) if is_of_source(job) => format!("{format} {scheme} (source)"),
        (Some(format), Some(scheme), _) => format!("{format} {scheme}"),
        (_, _, Some(target)) => target.clone(),
        _ => job.stage.to_string(),
    }
}

/// `native`, `openvino CPU`.
pub(crate) fn on_device(backend: &str, device: Option<&str>) -> String {
    match device {
        Some(device) => format!("{backend} {device}"),
        None => backend.to_owned(),
    }
}

/// `105 MB · KL 0.0491 · 71.9 tok/s`.
pub(crate) fn artifact_summary(artifact: &Artifact) -> String {
    let mut parts = vec![units::bytes(artifact.bytes)];
    let measured = &artifact.measurements;
    parts.extend(measured.kl_mean.map(|kl| format!("KL {}", units::divergence(kl))));
    parts.extend(measured.decode_tps.map(|tps| format!("{} tok/s", units::speed(tps))));
    parts.join(" · ")
}

/// `GGUF q4_1 · llama · 134.5 M · 272 tensors · 91 MB`.
pub(crate) fn source_summary(source: &SourceInfo) -> String {
    let mut parts = Vec::new();
    if let Some(format) = &source.format {
        parts.push(match &source.scheme {
            Some(scheme) => format!("{format} {scheme}"),
            None => format.clone(),
        });
    }
    parts.extend(source.architecture.clone());
    parts.extend(source.parameters.map(units::parameters));
    parts.extend(source.tensors.map(|count| format!("{count} tensors")));
    parts.push(units::bytes(source.bytes));
    parts.join(" · ")
}

/// An error in three parts: what, where, what to do.
pub(crate) fn error_lines(error: &ErrorReport, width: u16, theme: &Theme) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    let mut part = |mark: &'static str, text: &str, style: Style, text_style: Style| {
        for (at, piece) in wrap(text, usize::from(width.saturating_sub(2))).into_iter().enumerate() {
            let mark = if at == 0 { mark } else { "  " };
            lines.push(Line::from(vec![Span::styled(mark, style), Span::styled(piece, text_style)]));
        }
    };
    part("✗ ", &error.message, theme.bad, theme.bad);
    if let Some(subject) = &error.subject {
        part("@ ", subject, theme.dim, theme.text);
    }
    if let Some(help) = &error.help {
        part("→ ", help, theme.accent, theme.text);
    }
    lines
}

/// `✓ identify ─ ✓ plan ─ ▶ forge 31% ─ · measure ─ · publish ─ · serve`.
pub(crate) fn pipeline(job: &Job, theme: &Theme, short: bool) -> Line<'static> {
    let mut spans = Vec::new();
    let skipped = |stage: &&Stage| is_of_source(job) && matches!(stage, Stage::Forge | Stage::Publish);
    for stage in Stage::ALL.iter().filter(|stage| !skipped(stage)) {
        if !spans.is_empty() {
            spans.push(Span::styled(if short { " " } else { " ─ " }, theme.border));
        }
        let here = *stage == job.stage;
        let state = match (*stage).cmp(&job.stage) {
            std::cmp::Ordering::Less => JobState::Succeeded,
            std::cmp::Ordering::Equal => job.state,
            std::cmp::Ordering::Greater if job.state == JobState::Succeeded && *stage == Stage::Publish => {
                JobState::Succeeded
            }
            std::cmp::Ordering::Greater => JobState::Queued,
        };
        let style = job_style(state, theme);
        let word = if short && !here { String::new() } else { format!(" {stage}") };
        spans.push(Span::styled(format!("{}{word}", job_mark(state)), style));
        if here && state == JobState::Running && job.progress > 0.0 {
            spans.push(Span::styled(format!(" {:.0}%", (job.progress * 100.0).floor()), style));
        }
    }
    Line::from(spans)
}
