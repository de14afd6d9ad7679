//! Size against loss, drawn: one point per artifact, one colour per model.

use std::fmt::Write as _;

/// An artifact's place in the picture.
pub(super) struct Point<'a> {
    pub(super) model: &'a str,
    pub(super) label: String,
    pub(super) bytes: u64,
    /// Mean KL divergence, nats.
    pub(super) kl: f64,
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 520.0;
/// Room around the axes: left, right, top, bottom.
const MARGINS: [f64; 4] = [80.0, 150.0, 50.0, 60.0];
/// Colours that stay apart for most eyes (Okabe and Ito).
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

/// A scale from values to a stretch of the picture.
struct Axis {
    low: f64,
    high: f64,
    begin: f64,
    end: f64,
}

impl Axis {
    /// Covers all values with a little room.
    fn over(values: impl Iterator<Item = f64> + Clone, begin: f64, end: f64) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        let room = if high > low { (high - low) * 0.08 } else { 0.5_f64.max(low.abs() * 0.1) };
        Self { low: low - room, high: high + room, begin, end }
    }

    fn place(&self, value: f64) -> f64 {
        self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)
    }
}

/// The picture as SVG; `None` without a single measured point. The loss has a logarithmic scale; losses of zero lie on its
/// lower edge.
pub(super) fn size_against_kl(points: &[Point<'_>]) -> Option<String> {
    let least = points.iter().map(|point| point.kl).filter(|kl| *kl > 0.0).fold(f64::INFINITY, f64::min);
    let least = if least.is_finite() { least } else { 1e-6 };
    let log = |point: &Point<'_>| point.kl.max(least).log10();
    points.first()?;
    let [left, right, top, bottom] = MARGINS;
    let x = Axis::over(points.iter().map(|p| p.bytes as f64 / 1e6), left, WIDTH - right);
    let y = Axis::over(points.iter().map(log), HEIGHT - bottom, top);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    axes(&mut svg, &x, &y);
    let mut models: Vec<&str> = points.iter().map(|point| point.model).collect();
    models.sort_unstable();
    models.dedup();
    for point in points {
        let number = models.iter().position(|model| *model == point.model).unwrap_or(0);
        let colour = COLOURS[number % COLOURS.len()];
        let (cx, cy) = (x.place(point.bytes as f64 / 1e6), y.place(log(point)));
        let label = escaped(&point.label);
        let _ = writeln!(
            svg,
            "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"4\" fill=\"{colour}\"><title>{label}: {} bytes, KL {:.6}</title></circle>",
            point.bytes, point.kl
        );
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\">{label}</text>", cx + 7.0, cy - 5.0);
    }
    for (number, model) in models.iter().enumerate() {
        let (colour, at) = (COLOURS[number % COLOURS.len()], top + 18.0 * number as f64);
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{at:.1}\" fill=\"{colour}\">{}</text>",
            WIDTH - right + 12.0,
            escaped(model)
        );
    }
    svg += "</svg>\n";
    Some(svg)
}

fn axes(svg: &mut String, x: &Axis, y: &Axis) {
    let _ = writeln!(
        svg,
        "<path d=\"M{0} {1}V{2}H{3}\" fill=\"none\" stroke=\"black\"/>",
        x.begin, y.end, y.begin, x.end
    );
    for step in 0..=5 {
        let megabytes = x.low + (x.high - x.low) * f64::from(step) / 5.0;
        let at = x.place(megabytes);
        let _ = writeln!(
            svg,
            "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{megabytes:.1}</text>",
            y.begin + 18.0
        );
    }
    // Powers of ten, and where there are few of them their doubles and fives.
    let few = y.high - y.low < 2.0;
    for power in y.low.floor() as i32..=y.high.ceil() as i32 {
        for factor in if few { &[1.0, 2.0, 5.0][..] } else { &[1.0] } {
            let loss = factor * 10f64.powi(power);
            if (y.low..=y.high).contains(&loss.log10()) {
                let at = y.place(loss.log10());
                let _ = writeln!(svg, "<path d=\"M{} {at:.1}H{}\" stroke=\"#dddddd\"/>", x.begin, x.end);
                let _ = writeln!(
                    svg,
                    "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{loss}</text>",
                    x.begin - 6.0,
                    at + 4.0
                );
            }
        }
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">size, MB</text>",
        f64::midpoint(x.begin, x.end),
        y.begin + 40.0
    );
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\">mean KL divergence from the source, nats</text>",
        x.begin - 60.0,
        y.end - 16.0
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point<'a>(model: &'a str, label: &str, bytes: u64, kl: f64) -> Point<'a> {
        Point { model, label: label.into(), bytes, kl }
    }

    /// The centre of a labelled point.
    fn centre(svg: &str, label: &str) -> (f64, f64) {
        let line = svg.lines().find(|line| line.contains(&format!("<title>{label}:"))).unwrap();
        let number =
            |name: &str| line.split(&format!("{name}=\"")).nth(1).unwrap().split('"').next().unwrap();
        (number("cx").parse().unwrap(), number("cy").parse().unwrap())
    }

    #[test]
    fn larger_lies_to_the_right_and_lossier_above() {
        let points = [
            point("a<b", "q4_k_m", 100_000_000, 0.05),
            point("a<b", "q8_0", 140_000_000, 0.001),
            point("other", "q2_k", 80_000_000, 0.4),
        ];
        let svg = size_against_kl(&points).unwrap();
        let (small, middle, large) = (centre(&svg, "q2_k"), centre(&svg, "q4_k_m"), centre(&svg, "q8_0"));
        assert!(small.0 < middle.0 && middle.0 < large.0);
        assert!(small.1 < middle.1 && middle.1 < large.1);
        assert!(svg.contains("a&lt;b") && !svg.contains("a<b"));
    }

    #[test]
    fn one_exact_point_is_drawn_and_none_is_not() {
        let svg = size_against_kl(&[point("m", "f16", 5, 0.0)]).unwrap();
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        assert!(size_against_kl(&[]).is_none());
    }
}
