//! What storing each tensor in fewer bits costs the whole model: the measured input of [`budget`](crate::budget).
//!
//! One probe per tensor says how far the model's answers move (mean KL divergence, nats) when that tensor alone is stored as its
//! [`probe_type`]. Small divergences grow with the squared error of what the tensor computes, so every other type costs the
//! probe's divergence times the ratio of the two importance-weighted errors, which are measured on a sample of rows.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use drophammer_formats::DType;

use crate::budget::{self, BudgetError, Candidate, Item, Limit, Plan};
use crate::metrics::ErrorSums;
use crate::pass::{BoxError, RowSource};

/// Types that weights of a budget are stored as, where nobody says which. Ternary and one-bit types are for models trained so.
pub const USUAL_TYPES: [DType; 17] = [
    DType::Iq2Xxs,
    DType::Iq2Xs,
    DType::Iq2S,
    DType::Q2K,
    DType::Iq3Xxs,
    DType::Iq3S,
    DType::Q3K,
    DType::Iq4Xs,
    DType::Iq4Nl,
    DType::Q4K,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5K,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q6K,
    DType::Q8_0,
];

/// Rows of a tensor whose error is measured.
const SAMPLED_ROWS: u64 = 96;

/// Ways to store a model's tensors and what each costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sensitivity {
    /// Fingerprint of the source.
    pub source: String,
    /// Parameters of the model.
    pub parameters: u64,
    /// Bytes of the file besides the tensors below: header, tokenizer, norms.
    pub fixed_bytes: u64,
    /// Tokens that each probe read.
    pub tokens: u64,
    /// The tensors; costs are in nats.
    pub tensors: Vec<Item>,
    /// How the sum of costs compares with what whole plans were measured to cost, from small to large.
    pub checks: Vec<Check>,
}

/// A plan that was measured as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Sum of its tensors' costs.
    pub predicted: f64,
    /// Mean divergence of the model with all of them.
    pub measured: f64,
}

/// What a user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// A file of at most so many bytes.
    Bytes(u64),
    /// At most so many bits per weight, averaged over all parameters.
    BitsPerWeight(f64),
    /// A mean divergence of at most so many nats.
    Divergence(f64),
}

/// A text that says no budget.
#[derive(Debug, Error, PartialEq)]
#[error(
    "{0:?} is no budget: write a size like 3.2GB or 900MiB, bits per weight like 4.5bpw, or a loss like kl:0.05"
)]
pub struct BudgetForm(String);

impl std::str::FromStr for Budget {
    type Err = BudgetForm;

    /// Reads `3.2GB`, `900MiB`, `4.5bpw` or `kl:0.05`. Decimal units are powers of 1000, binary ones of 1024.
    fn from_str(text: &str) -> Result<Self, BudgetForm> {
        let form = || BudgetForm(text.to_owned());
        let lower = text.trim().to_ascii_lowercase();
        let number = |text: &str| {
            text.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0).ok_or_else(form)
        };
        if let Some(loss) = lower.strip_prefix("kl:") {
            return number(loss).map(Budget::Divergence);
        }
        if let Some(bits) = lower.strip_suffix("bpw") {
            return number(bits).map(Budget::BitsPerWeight);
        }
        let digits = lower.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(lower.len());
        let (count, unit) = lower.split_at(digits);
        let factor: f64 = match unit.trim() {
            "" | "b" => 1.0,
            "k" | "kb" => 1e3,
            "m" | "mb" => 1e6,
            "g" | "gb" => 1e9,
            "t" | "tb" => 1e12,
            "kib" => 1024.0,
            "mib" => 1048576.0,
            "gib" => 1073741824.0,
            "tib" => 1099511627776.0,
            _ => return Err(form()),
        };
        number(count).map(|count| Budget::Bytes((count * factor) as u64))
    }
}

impl Sensitivity {
    /// The mixture for a budget.
    ///
    /// # Errors
    /// [`BudgetError`], which says the least possible in the budget's own terms.
    pub fn solve(&self, budget: Budget) -> Result<Plan, BudgetError> {
        match budget {
            Budget::Bytes(bytes) => self.within(bytes),
            Budget::BitsPerWeight(bits) => {
                self.within(self.fixed_bytes + (bits * self.parameters as f64 / 8.0) as u64)
            }
            Budget::Divergence(measured) => {
                let plan = budget::solve(&self.tensors, Limit::Cost(self.predicted(measured)));
                plan.map_err(|error| match error {
                    BudgetError::TooExact { least, .. } => {
                        BudgetError::TooExact { given: measured, least: self.measured(least) }
                    }
                    other => other,
                })
            }
        }
    }

    fn within(&self, bytes: u64) -> Result<Plan, BudgetError> {
        let fixed = self.fixed_bytes;
        let room = Limit::Bytes(bytes.saturating_sub(fixed));
        budget::solve(&self.tensors, room).map_err(|error| match error {
            BudgetError::TooSmall { least, .. } => {
                BudgetError::TooSmall { given: bytes, least: least + fixed }
            }
            other => other,
        })
    }

    /// What a plan whose costs sum up to `predicted` will measure, by the nearest checks.
    pub fn measured(&self, predicted: f64) -> f64 {
        interpolate(self.checks.iter().map(|check| (check.predicted, check.measured)), predicted)
    }

    /// What the costs of a plan may sum up to so that it will measure `measured`.
    pub fn predicted(&self, measured: f64) -> f64 {
        interpolate(self.checks.iter().map(|check| (check.measured, check.predicted)), measured)
    }
}

/// A power law between neighbouring points, and their ratio beyond the last ones.
fn interpolate(points: impl Iterator<Item = (f64, f64)>, x: f64) -> f64 {
    let mut points: Vec<(f64, f64)> = points.filter(|(x, y)| *x > 0.0 && *y > 0.0).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let above = points.partition_point(|point| point.0 < x);
    match (above.checked_sub(1).map(|i| points[i]), points.get(above)) {
        (Some((x0, y0)), Some(&(x1, y1))) if x1 > x0 => {
            let t = (x / x0).ln() / (x1 / x0).ln();
            y0 * (y1 / y0).powf(t)
        }
        (Some((x0, y0)), _) => x * y0 / x0,
        (None, Some(&(x1, y1))) => x * y1 / x1,
        (None, None) => x,
    }
}

/// The type whose loss is measured for rows of this width: coarse enough to be heard, fine enough not to break the model.
pub fn probe_type(width: u64) -> DType {
    if width.is_multiple_of(256) { DType::Q3K } else { DType::Q4_0 }
}

/// Weighted squared error of a tensor of `rows` × `columns` in each type, relative to its signal, on a sample of its rows.
/// `importance` has a weight per column, matrix after matrix for stacked ones, or is empty. Types that do not fit the
/// columns are left out.
///
/// # Errors
/// The source's.
pub fn errors(
    source: &dyn RowSource,
    [rows, columns]: [u64; 2],
    importance: &[f32],
    types: &[DType],
) -> Result<Vec<(DType, f64)>, BoxError> {
    let fitting = |dtype: &&DType| columns.is_multiple_of(dtype.block_elements() as u64);
    let types: Vec<DType> = types.iter().filter(fitting).copied().collect();
    let mut sums = vec![ErrorSums::default(); types.len()];
    let count = SAMPLED_ROWS.min(rows);
    let width = columns as usize;
    let matrices = (importance.len() / width.max(1)).max(1) as u64;
    let rows_per_matrix = (rows / matrices).max(1);
    let (mut row, mut back) = (vec![0.0f32; width], vec![0.0f32; width]);
    for sample in 0..count {
        let number = sample * rows / count;
        source.read(number..number + 1, &mut row)?;
        let matrix = (number / rows_per_matrix) as usize;
        let weights = importance.get(matrix * width..(matrix + 1) * width);
        for (&dtype, sums) in types.iter().zip(&mut sums) {
            let mut bytes = vec![0u8; dtype.bytes_for(columns).unwrap_or(0) as usize];
            crate::quantize(dtype, &row, weights, &mut bytes)?;
            crate::dequantize(dtype, &bytes, &mut back)?;
            *sums = *sums + ErrorSums::between(&row, &back, weights);
        }
    }
    Ok(types.into_iter().zip(sums.iter().map(ErrorSums::weighted_relative)).collect())
}

/// The item of a tensor whose probe moved the model by `divergence`.
pub fn item(name: &str, [rows, columns]: [u64; 2], errors: &[(DType, f64)], divergence: f64) -> Item {
    let probe = errors.iter().find(|(dtype, _)| *dtype == probe_type(columns)).map_or(0.0, |(_, e)| *e);
    let candidate = |&(dtype, error): &(DType, f64)| {
        let bytes = dtype.bytes_for(columns)?.checked_mul(rows)?;
        let cost = if error == 0.0 { 0.0 } else { divergence * error / probe };
        Some(Candidate { dtype, bytes, cost })
    };
    Item { name: name.to_owned(), candidates: errors.iter().filter_map(candidate).collect() }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    #[test]
    fn budgets_are_read_as_people_write_them() {
        for (text, expected) in [
            ("3.2GB", Budget::Bytes(3_200_000_000)),
            ("1 MiB", Budget::Bytes(1 << 20)),
            ("500", Budget::Bytes(500)),
            ("4.5bpw", Budget::BitsPerWeight(4.5)),
            ("kl:0.05", Budget::Divergence(0.05)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["", "GB", "-3GB", "kl:", "kl:nan", "0bpw", "3 apples", "infGB"] {
            assert_eq!(text.parse::<Budget>(), Err(BudgetForm(text.into())));
        }
    }

    // The form of a callback, which may fail.
    #[allow(clippy::unnecessary_wraps)]
    fn rows(_: Range<u64>, out: &mut [f32]) -> Result<(), BoxError> {
        for (i, x) in out.iter_mut().enumerate() {
            *x = ((i * 37 % 101) as f32 - 50.0) / 50.0;
        }
        Ok(())
    }

    fn sensitivity() -> Sensitivity {
        let errors = errors(&rows, [8, 512], &[], &USUAL_TYPES).unwrap();
        Sensitivity {
            source: String::new(),
            parameters: 8192,
            fixed_bytes: 100,
            tokens: 64,
            tensors: vec![item("a", [8, 512], &errors, 0.1), item("b", [8, 512], &errors, 0.001)],
            checks: vec![Check { predicted: 0.01, measured: 0.02 }],
        }
    }

    #[test]
    fn errors_fall_with_bits_and_types_that_do_not_fit_are_left_out() {
        let errors = errors(&rows, [3, 288], &[], &USUAL_TYPES).unwrap();
        let of = |dtype| errors.iter().find(|(other, _)| *other == dtype).map(|(_, error)| *error);
        assert!(of(DType::Q4_0) > of(DType::Q5_0) && of(DType::Q5_0) > of(DType::Q8_0));
        assert_eq!(of(DType::Q4K), None);
    }

    #[test]
    fn the_sensitive_tensor_gets_the_bits_and_the_probe_costs_what_was_measured() {
        let sensitivity = sensitivity();
        let probe = sensitivity.tensors[0].candidates.iter().find(|c| c.dtype == DType::Q3K).unwrap();
        assert!((probe.cost - 0.1).abs() < 1e-12);
        let plan = sensitivity.solve(Budget::BitsPerWeight(4.0)).unwrap();
        assert!(plan.bytes + 100 <= 100 + 4096);
        assert!(plan.entries[0].chosen.bytes > plan.entries[1].chosen.bytes);
    }

    #[test]
    fn budgets_that_cannot_be_met_say_the_least_possible_as_it_was_asked() {
        let sensitivity = sensitivity();
        let least = 100 + 2 * 8 * 2 * 66;
        let error = sensitivity.solve(Budget::Bytes(1000)).unwrap_err();
        assert_eq!(error, BudgetError::TooSmall { given: 1000, least });
        assert!(sensitivity.solve(Budget::Bytes(least)).is_ok());
        match sensitivity.solve(Budget::Divergence(1e-9)).unwrap_err() {
            BudgetError::TooExact { given, least } => assert!(given == 1e-9 && least > 1e-9),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn predictions_are_corrected_by_what_was_measured() {
        let checks = [Check { predicted: 0.01, measured: 0.02 }, Check { predicted: 0.1, measured: 0.1 }];
        let sensitivity = Sensitivity { checks: checks.to_vec(), ..sensitivity() };
        assert!((sensitivity.measured(0.01) - 0.02).abs() < 1e-12);
        assert!((sensitivity.measured(0.001) - 0.002).abs() < 1e-12);
        assert!((sensitivity.measured(1.0) - 1.0).abs() < 1e-12);
        let between = sensitivity.measured(0.03);
        assert!(between > 0.02 && between < 0.1);
        assert!((sensitivity.predicted(between) - 0.03).abs() < 1e-9);
    }
}
