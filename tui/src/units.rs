//! Numbers as people read them. Sizes are decimal: 1 GB is 10⁹ bytes.

/// `0 B`, `512 B`, `7.1 MB`, `105 MB`, `1.2 TB`.
pub(crate) fn bytes(value: u64) -> String {
    let (number, unit) = scaled(value as f64);
    match unit {
        "" => format!("{value} B"),
        unit => format!("{number} {unit}B"),
    }
}

/// The same per second: `412 MB/s`.
pub(crate) fn rate(bytes_per_second: f64) -> String {
    format!("{}/s", bytes(bytes_per_second.max(0.0) as u64))
}

/// `134.5 M`, `7.2 B` parameters: billions are B by the field's habit.
pub(crate) fn parameters(count: u64) -> String {
    let (number, unit) = scaled(count as f64);
    let unit = if unit == "G" { "B" } else { unit };
    if unit.is_empty() { count.to_string() } else { format!("{number} {unit}") }
}

/// Three significant digits and a decimal prefix.
fn scaled(mut value: f64) -> (String, &'static str) {
    let mut unit = "";
    for next in ["k", "M", "G", "T", "P"] {
        // 999.5 would round to 1000.
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    let number =
        if value < 99.95 && !unit.is_empty() { format!("{value:.1}") } else { format!("{value:.0}") };
    (number, unit)
}

/// `0.4s`, `9s`, `1m20s`, `2h05m`, `3d04h`.
pub(crate) fn seconds(value: f64) -> String {
    if !value.is_finite() || value < 0.0 {
        return "–".to_owned();
    }
    if value < 9.95 {
        return format!("{value:.1}s");
    }
    let whole = value.round() as u64;
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => format!("{}m{:02}s", whole / 60, whole % 60),
        3600..86400 => format!("{}h{:02}m", whole / 3600, whole / 60 % 60),
        _ => format!("{}d{:02}h", whole / 86400, whole / 3600 % 24),
    }
}

/// `0`, `4.4e-5`, `0.0491`, `0.028`, `1.3`: a divergence with what digits matter.
pub(crate) fn divergence(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if v < 0.0001 => format!("{value:.1e}"),
        v if v < 0.1 => format!("{value:.4}"),
        v if v < 10.0 => format!("{value:.3}"),
        _ => format!("{value:.1}"),
    }
}

/// `8.4`, `71.9`, `1204`: tokens per second.
pub(crate) fn speed(value: f64) -> String {
    if value < 99.95 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// `84.9%` of a fraction.
pub(crate) fn fraction(value: f64) -> String {
    format!("{:.1}%", value * 100.0)
}

/// `14:02:11` on a clock that is `offset` seconds ahead of UTC.
pub(crate) fn clock(unix: f64, offset: i32) -> String {
    let seconds = (unix as i64 + i64::from(offset)).rem_euclid(86400);
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Cuts to `width` columns, the end replaced by `…`.
pub(crate) fn clip(text: &str, width: usize) -> String {
    use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};
    if text.width() <= width {
        return text.to_owned();
    }
    let mut cut = String::new();
    let mut used = 1;
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used > width {
            break;
        }
        cut.push(c);
    }
    if width > 0 {
        cut.push('…');
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_and_a_unit() {
        for (value, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (7_100_000, "7.1 MB"),
            (105_400_000, "105 MB"),
            (999_600_000, "1.0 GB"),
            (u64::MAX, "18447 PB"),
        ] {
            assert_eq!(bytes(value), expected);
        }
        assert_eq!(parameters(134_515_008), "135 M");
        assert_eq!(parameters(7_241_732_096), "7.2 B");
    }

    #[test]
    fn durations_keep_two_units() {
        for (value, expected) in [
            (0.44, "0.4s"),
            (9.96, "10s"),
            (80.0, "1m20s"),
            (7500.0, "2h05m"),
            (273_600.0, "3d04h"),
            (f64::NAN, "–"),
            (-1.0, "–"),
        ] {
            assert_eq!(seconds(value), expected);
        }
    }

    #[test]
    fn text_is_cut_by_columns_not_by_bytes() {
        for (text, width, expected) in
            [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("日本語", 4, "日…"), ("abc", 0, ""), ("é́x", 2, "é́x")]
        {
            assert_eq!(clip(text, width), expected);
        }
    }

    #[test]
    fn the_clock_wraps_at_midnight() {
        assert_eq!(clock(86399.0, 1), "00:00:00");
        assert_eq!(clock(0.0, -3600), "23:00:00");
    }
}
