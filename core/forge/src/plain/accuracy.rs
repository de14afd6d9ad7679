//! How far an artifact's outputs are from the original's.

use drophammer_sdk::most_likely;
use serde_json::{Value as Json, json};

/// One output, compared over samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Accuracy {
    /// The output's name.
    pub output: String,
    samples: u64,
    dot: f64,
    squares: [f64; 2],
    miss: f64,
    largest: f64,
    rows: u64,
    same: u64,
}

impl Accuracy {
    /// Of an output, before anything is compared.
    pub fn of(output: &str) -> Self {
        let output = output.to_owned();
        Self { output, samples: 0, dot: 0.0, squares: [0.0; 2], miss: 0.0, largest: 0.0, rows: 0, same: 0 }
    }

    /// Takes what both gave for a sample: as many numbers each, in rows of `width`.
    pub fn add(&mut self, found: &[f32], due: &[f32], width: usize) {
        self.samples += 1;
        if found.len() != due.len() {
            self.largest = f64::INFINITY;
        }
        for (found, due) in found.iter().zip(due) {
            let (found, due) = (f64::from(*found), f64::from(*due));
            self.dot += found * due;
            self.squares[0] += found * found;
            self.squares[1] += due * due;
            self.miss += (found - due) * (found - due);
            // Where both are the same infinity nothing differs.
            let difference = if found == due { 0.0 } else { (found - due).abs() };
            self.largest = if difference.is_nan() { f64::INFINITY } else { self.largest.max(difference) };
        }
        if width > 1 {
            for (found, due) in found.chunks_exact(width).zip(due.chunks_exact(width)) {
                self.rows += 1;
                self.same += u64::from(most_likely(found) == most_likely(due));
            }
        }
    }

    /// The cosine of the angle between all numbers of both.
    pub fn cosine(&self) -> f64 {
        let lengths = (self.squares[0] * self.squares[1]).sqrt();
        if lengths == 0.0 { f64::from(u8::from(self.miss == 0.0)) } else { self.dot / lengths }
    }

    /// The largest difference.
    pub fn largest(&self) -> f64 {
        self.largest
    }

    /// Root of the squares of all differences over that of the due ones.
    pub fn relative(&self) -> f64 {
        if self.miss == 0.0 { 0.0 } else { (self.miss / self.squares[1]).sqrt() }
    }

    /// Share of rows whose largest number is at the same place; `None` where rows hold one number.
    pub fn top1(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.same as f64 / self.rows as f64)
    }

    /// In words.
    pub fn told(&self) -> String {
        let top1 = self
            .top1()
            .map(|top1| format!(", the largest of a row at the same place in {:.2}%", top1 * 100.0));
        format!(
            "`{}` against the original over {} samples: cosine {:.6}, relative error {:.2e}, largest difference {:.2e}{}",
            self.output,
            self.samples,
            self.cosine(),
            self.relative(),
            self.largest,
            top1.unwrap_or_default()
        )
    }

    /// For programs. Six digits: the same on machines whose sums run in another order.
    pub fn document(&self) -> Json {
        let digits = |x: f64| format!("{x:.5e}").parse::<f64>().ok().filter(|x| x.is_finite());
        json!({
            "output": self.output,
            "samples": self.samples,
            "cosine": digits(self.cosine()),
            "relative_error": digits(self.relative()),
            "max_error": digits(self.largest),
            "top1": self.top1().and_then(digits),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_perfect_and_the_opposite_is_not() {
        let mut same = Accuracy::of("y");
        same.add(&[1.0, 2.0, -1.0, 0.0], &[1.0, 2.0, -1.0, 0.0], 2);
        assert!((same.cosine() - 1.0).abs() < 1e-12);
        assert_eq!((same.largest(), same.relative(), same.top1()), (0.0, 0.0, Some(1.0)));
        let mut other = Accuracy::of("y");
        other.add(&[-1.0, 1.0], &[1.0, -1.0], 2);
        assert!((other.cosine() + 1.0).abs() < 1e-12);
        assert_eq!((other.largest(), other.relative(), other.top1()), (2.0, 2.0, Some(0.0)));
        other.add(&[f32::NAN, 0.0], &[1.0, 0.0], 2);
        assert!(other.largest().is_infinite() && other.document()["max_error"].is_null());
    }
}
