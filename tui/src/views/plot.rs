//! Size against divergence: which artifact of a model gives most for its bytes.

use drophammer_client::api::{Artifact, ModelEntry};
use ratatui::layout::Rect;

use crate::canvas::Canvas;
use crate::units;
use crate::widgets::scatter::{Axes, Point, scatter};

/// A symbol per backend, so that none needs a colour.
const SYMBOLS: [&str; 6] = ["○", "◇", "△", "□", "▽", "☆"];

/// Draws a model's measured artifacts. The selected one is `●`; `★` is the best.
pub(crate) fn draw(canvas: &mut Canvas<'_>, area: Rect, model: Option<&ModelEntry>, selected: Option<&str>) {
    let artifacts = model.map_or(&[][..], |model| &model.artifacts);
    let mut backends: Vec<&str> = artifacts.iter().map(|artifact| artifact.backend.as_str()).collect();
    backends.sort_unstable();
    backends.dedup();
    let points: Vec<Point> = artifacts
        .iter()
        .filter_map(|artifact| {
            let kl = artifact.measurements.kl_mean?;
            let backend = backends.binary_search(&artifact.backend.as_str()).unwrap_or(0);
            let chosen = selected == Some(artifact.id.as_str());
            let symbol = match (chosen, artifact.best) {
                (true, _) => "●",
                (_, true) => "★",
                _ => SYMBOLS[backend % SYMBOLS.len()],
            };
            let style = if chosen { canvas.theme.accent } else { canvas.theme.series(backend + 1) };
            let weight = if chosen { 3 } else { 1 + u8::from(artifact.best) };
            // A lossless artifact diverges by nothing, which a logarithm cannot show.
            let y = kl.max(1e-6);
            Some(Point { x: artifact.bytes as f64, y, label: artifact.scheme.clone(), symbol, style, weight })
        })
        .collect();
    if points.is_empty() {
        canvas.empty(area, &["The plot appears once", "an artifact is measured."]);
        return;
    }
    let mut plot = area;
    if backends.len() > 1 && area.height > 8 {
        plot.height -= 1;
        draw_legend(canvas, Rect { y: area.bottom() - 1, height: 1, ..area }, &backends);
    }
    let axes = Axes { x: |x| units::bytes(x as u64), y: significant, y_title: "KL" };
    scatter(canvas, plot, &points, &axes);
}

/// Two digits that matter; one where they come late.
fn significant(value: f64) -> String {
    if value < 1e-3 {
        return format!("{value:.0e}");
    }
    let digits = (1.0 - value.abs().log10().floor()).clamp(0.0, 6.0);
    format!("{value:.*}", digits as usize)
}

fn draw_legend(canvas: &mut Canvas<'_>, area: Rect, backends: &[&str]) {
    let mut x = area.x + 1;
    for (at, backend) in backends.iter().enumerate() {
        let text = format!("{} {backend}", SYMBOLS[at % SYMBOLS.len()]);
        x += canvas.text(x, area.y, area.right().saturating_sub(x), &text, canvas.theme.series(at + 1)) + 2;
        if x >= area.right() {
            return;
        }
    }
}

/// Which of the artifacts no other beats in both size and divergence.
pub(crate) fn is_on_front(artifact: &Artifact, all: &[Artifact]) -> bool {
    let Some(kl) = artifact.measurements.kl_mean else { return false };
    !all.iter().any(|other| {
        other.measurements.kl_mean.is_some_and(|other_kl| {
            other.bytes <= artifact.bytes && other_kl <= kl && (other.bytes < artifact.bytes || other_kl < kl)
        })
    })
}
