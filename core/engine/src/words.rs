//! Numbers as people read them, for the sentences that verdicts carry.

/// A size in decimal units: `1.2 GB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} bytes");
    }
    let mut value = bytes as f64;
    let mut unit = "";
    for name in UNITS {
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        unit = name;
    }
    if value < 9.95 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_read_like_on_a_box() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (1_000, "1.0 kB"),
            (1_240_000, "1.2 MB"),
            (99_400_000, "99 MB"),
            (999_700_000, "1.0 GB"),
            (u64::MAX, "18447 PB"),
        ] {
            assert_eq!(super::size(bytes), text);
        }
    }
}
