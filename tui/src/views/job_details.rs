//! What there is to know about the selected model or job, above its log.

use drophammer_client::api::{Job, ModelEntry};
use ratatui::text::{Line, Span};

use super::vocabulary::{artifact_summary, error_lines, pipeline, source_summary};
use crate::mirror::Mirror;
use crate::theme::Theme;
use crate::units;
use crate::widgets::wrap::wrap;

/// A job: its way, its source and plan, the plan's reasons, its error.
pub(crate) fn job(job: &Job, mirror: &Mirror, theme: &Theme, width: u16) -> Vec<Line<'static>> {
    let mut lines = vec![pipeline(job, theme, width < 74)];
    if let Some(error) = &job.error {
        lines.extend(error_lines(error, width, theme));
    } else if let Some(activity) = &job.activity {
        push(&mut lines, "now", activity, theme, width);
    }
    let mut plan = Vec::new();
    if let Some(model) = mirror.models.get(&job.model) {
        push(&mut lines, "source", &source_summary(&model.source), theme, width);
    }
    plan.extend(job.planned_bytes.map(units::bytes));
    plan.extend(job.planned_memory_bytes.map(|bytes| format!("peak memory {}", units::bytes(bytes))));
    if !plan.is_empty() {
        push(&mut lines, "plan", &plan.join(" · "), theme, width);
    }
    if !job.reasons.is_empty() {
        push(&mut lines, "why", &job.reasons.join("; "), theme, width);
    }
    if let Some(artifact) = job.artifact.as_deref().and_then(|id| mirror.artifact(id)) {
        push(&mut lines, "result", &artifact_summary(artifact), theme, width);
        push(&mut lines, "path", &artifact.path, theme, width);
    }
    if job.attempt > 1 {
        push(&mut lines, "try", &format!("number {}", job.attempt), theme, width);
    }
    lines
}

/// A model: its source, what it waits for, its error.
pub(crate) fn model(model: &ModelEntry, theme: &Theme, width: u16) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    push(&mut lines, "state", model.state.as_str(), theme, width);
    if let Some(error) = &model.error {
        lines.extend(error_lines(error, width, theme));
    }
    if let Some(waits_for) = &model.waits_for {
        push(&mut lines, "waits", waits_for, theme, width);
    }
    push(&mut lines, "source", &source_summary(&model.source), theme, width);
    push(&mut lines, "path", &model.source.path, theme, width);
    for artifact in &model.artifacts {
        let mark = if artifact.best { "best " } else { "" };
        let text = format!("{mark}{} {} · {}", artifact.format, artifact.scheme, artifact_summary(artifact));
        let label = if model.is_source(artifact) { "kept" } else { "made" };
        push(&mut lines, label, &text, theme, width);
    }
    lines
}

/// `why     because …`, wrapped under itself.
pub(crate) fn push(lines: &mut Vec<Line<'static>>, label: &str, text: &str, theme: &Theme, width: u16) {
    for (at, piece) in wrap(text, usize::from(width.saturating_sub(8)).max(8)).into_iter().enumerate() {
        let label = if at == 0 { format!("{label:<8}") } else { " ".repeat(8) };
        lines.push(Line::from(vec![Span::styled(label, theme.dim), Span::styled(piece, theme.text)]));
    }
}
