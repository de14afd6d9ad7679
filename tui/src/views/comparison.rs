//! Two artifacts side by side.

use drophammer_client::api::Artifact;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use crate::theme::Theme;
use crate::units;

/// Two artifacts side by side, and what the second has more or less.
pub(crate) fn lines(one: &Artifact, other: &Artifact, theme: &Theme, width: u16) -> Vec<Line<'static>> {
    let column = usize::from(width.saturating_sub(9) / 3).clamp(8, 22);
    let row = |label: &str, cells: [String; 3], style: Style| {
        let mut spans = vec![Span::styled(format!("{label:<8} "), theme.dim)];
        for (at, cell) in cells.into_iter().enumerate() {
            let style = if at == 2 { style } else { theme.text };
            spans.push(Span::styled(format!("{:<column$}", units::clip(&cell, column - 1)), style));
        }
        Line::from(spans)
    };
    let name = |it: &Artifact| format!("{} {}", it.format, it.scheme);
    let mut lines = vec![row("", [name(one), name(other), "second ÷ first".to_owned()], theme.dim)];
    lines.push(row("model", [one.model.clone(), other.model.clone(), String::new()], theme.dim));
    let mut number = |label: &str,
                      value: &dyn Fn(&Artifact) -> Option<f64>,
                      show: &dyn Fn(f64) -> String,
                      more_is_better: bool| {
        let (a, b) = (value(one), value(other));
        let shown = |value: Option<f64>| value.map_or("–".to_owned(), show);
        let (factor, style) = match (a, b) {
            (Some(a), Some(b)) if a > 0.0 => {
                let factor = b / a;
                let better = (factor > 1.0) == more_is_better;
                let word = if (factor - 1.0).abs() < 0.005 {
                    "same"
                } else if better {
                    "better"
                } else {
                    "worse"
                };
                let style = match word {
                    "better" => theme.good,
                    "worse" => theme.warn,
                    _ => theme.dim,
                };
                (format!("× {factor:.2} {word}"), style)
            }
            _ => (String::new(), theme.dim),
        };
        lines.push(row(label, [shown(a), shown(b), factor], style));
    };
    number("size", &|it| Some(it.bytes as f64), &|v| units::bytes(v as u64), false);
    number("bits", &|it| it.bits_per_weight, &|v| format!("{v:.2}"), false);
    number("KL", &|it| it.measurements.kl_mean, &units::divergence, false);
    number("KL 99%", &|it| it.measurements.kl_p99, &units::divergence, false);
    number("top-1", &|it| it.measurements.top1, &units::fraction, true);
    number("ppl", &|it| it.measurements.perplexity, &|v| format!("{v:.3}"), false);
    number("prefill", &|it| it.measurements.prefill_tps, &units::speed, true);
    number("tok/s", &|it| it.measurements.decode_tps, &units::speed, true);
    number(
        "memory",
        &|it| it.measurements.peak_memory_bytes.map(|b| b as f64),
        &|v| units::bytes(v as u64),
        false,
    );
    lines
}
