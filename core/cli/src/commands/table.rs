//! Text for people: columns and units.

/// Rows as aligned columns under their titles.
pub(super) fn columns(titles: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([titles[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, width) in cells.zip(&widths) {
            line += &format!("{cell:width$}  ");
        }
        format!("{}\n", line.trim_end())
    };
    let mut text = line(&mut titles.iter().copied());
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

/// Bytes as people read them.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A count as people read it: `135M`, `1.1B`.
pub(super) fn count(number: u64) -> String {
    for (limit, divisor, unit) in [(1_000_000_000, 1e9, "B"), (1_000_000, 1e6, "M"), (1000, 1e3, "K")] {
        if number >= limit {
            return format!("{:.1}{unit}", number as f64 / divisor);
        }
    }
    number.to_string()
}

/// A value that may be missing, with so many decimals.
pub(super) fn maybe(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.decimals$}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_units_fit() {
        let rows = vec![vec!["a".into(), "12".into()], vec!["longer".into(), "3".into()]];
        assert_eq!(columns(&["name", "n"], &rows), "name    n\na       12\nlonger  3\n");
        for (bytes, expected) in
            [(0, "0 B"), (999, "999 B"), (4_527_328, "4.5 MB"), (u64::MAX, "18446744.1 TB")]
        {
            assert_eq!(size(bytes), expected);
        }
        assert_eq!(
            (count(999), count(4_200_000), count(1_100_000_000)),
            ("999".into(), "4.2M".into(), "1.1B".into())
        );
        assert_eq!((maybe(None, 2), maybe(Some(1.005), 1)), ("–".into(), "1.0".into()));
    }
}
