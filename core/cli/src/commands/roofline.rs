//! What `bench` tells of where time goes, beside what the machine would allow.

use drophammer_client::api::{BenchArtifact, BenchOperation, BenchRoofline};
use drophammer_infer::measure::Roofline;
use drophammer_sdk::profile::{MachineLimits, Operation};

use super::table::columns;

/// A measured roofline, of so many tokens of prompt and of output.
pub(super) fn of(roofline: &Roofline, (prompt, generated): (u32, u32)) -> BenchRoofline {
    let Roofline { limits, prefill, decode } = roofline;
    BenchRoofline {
        read_bytes_limit: limits.read_bytes,
        float_operations_limit: limits.float_operations,
        integer_operations_limit: limits.integer_operations,
        prefill: prefill.iter().map(|operation| per_token(operation, limits, prompt)).collect(),
        decode: decode.iter().map(|operation| per_token(operation, limits, generated)).collect(),
    }
}

fn per_token(operation: &Operation, limits: &MachineLimits, tokens: u32) -> BenchOperation {
    let each = |amount: f64| amount / f64::from(tokens.max(1));
    BenchOperation {
        name: operation.name.clone(),
        seconds: each(operation.seconds),
        bytes: each(operation.bytes as f64),
        operations: each(operation.operations as f64),
        reached: share(limits.least_seconds(operation), operation.seconds),
    }
}

fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// All operations as one.
fn total(name: &str, operations: &[BenchOperation]) -> BenchOperation {
    let sum = |amount: fn(&BenchOperation) -> f64| operations.iter().map(amount).sum::<f64>();
    let seconds = sum(|o| o.seconds);
    BenchOperation {
        name: name.to_owned(),
        seconds,
        bytes: sum(|o| o.bytes),
        operations: sum(|o| o.operations),
        reached: share(sum(|o| o.reached * o.seconds), seconds),
    }
}

/// The artifact's roofline: both phases, and with `profile` every kind of operation in them. Empty where nothing is known.
pub(super) fn text(artifact: &BenchArtifact, profile: bool) -> String {
    let Some(roofline) = &artifact.roofline else { return String::new() };
    let mut rows = Vec::new();
    for (name, operations) in [("prefill", &roofline.prefill), ("decode", &roofline.decode)] {
        let whole = total(name, operations);
        if whole.seconds == 0.0 {
            continue;
        }
        rows.push(row(&whole, whole.seconds));
        if profile {
            // What takes no time worth a line is in the sum.
            let told = operations.iter().filter(|operation| operation.seconds > whole.seconds * 1e-3);
            rows.extend(told.map(|operation| {
                let indented = BenchOperation { name: format!("  {}", operation.name), ..operation.clone() };
                row(&indented, whole.seconds)
            }));
        }
    }
    format!(
        "\n{}: {} thread(s) of this machine read {:.1} GB/s, multiply and add {:.0} G floats/s or {:.0} G integers/s\n{}",
        artifact.path,
        artifact.threads,
        roofline.read_bytes_limit * 1e-9,
        roofline.float_operations_limit * 1e-9,
        roofline.integer_operations_limit * 1e-9,
        columns(&["per token", "ms", "share", "MB", "GB/s", "Mop", "Gop/s", "of the limit"], &rows)
    )
}

fn row(operation: &BenchOperation, all: f64) -> Vec<String> {
    let rate = |amount: f64| share(amount, operation.seconds) * 1e-9;
    vec![
        operation.name.clone(),
        format!("{:.3}", operation.seconds * 1e3),
        format!("{:.0}%", share(operation.seconds, all) * 100.0),
        format!("{:.2}", operation.bytes * 1e-6),
        format!("{:.1}", rate(operation.bytes)),
        format!("{:.1}", operation.operations * 1e-6),
        format!("{:.1}", rate(operation.operations)),
        format!("{:.0}%", operation.reached * 100.0),
    ]
}

#[cfg(test)]
mod tests {
    use drophammer_sdk::profile::Arithmetic;

    use super::*;

    #[test]
    fn amounts_are_per_token_and_a_phase_reaches_the_mean_of_its_operations_by_time() {
        let limits = MachineLimits { read_bytes: 1e9, float_operations: 1e9, integer_operations: 4e9 };
        let operation = |name: &str, seconds, bytes, operations, arithmetic| Operation {
            name: name.into(),
            calls: 1,
            seconds,
            bytes,
            operations,
            arithmetic,
        };
        let decode = vec![
            operation("gate, up", 3.0, 2_400_000_000, 1_000, Arithmetic::Integer),
            operation("attention", 1.0, 0, 600_000_000, Arithmetic::Float),
            operation("norm", 0.001, 0, 0, Arithmetic::Float),
        ];
        let artifact = BenchArtifact {
            path: "m.gguf".into(),
            threads: 2,
            roofline: Some(of(&Roofline { limits, prefill: Vec::new(), decode }, (0, 1000))),
            ..BenchArtifact::default()
        };
        insta::assert_snapshot!(text(&artifact, true), @"

        m.gguf: 2 thread(s) of this machine read 1.0 GB/s, multiply and add 1 G floats/s or 4 G integers/s
        per token    ms     share  MB    GB/s  Mop  Gop/s  of the limit
        decode       4.001  100%   2.40  0.6   0.6  0.1    75%
          gate, up   3.000  75%    2.40  0.8   0.0  0.0    80%
          attention  1.000  25%    0.00  0.0   0.6  0.6    60%
        ");
        assert_eq!(text(&artifact, false).lines().count(), 4);
        assert_eq!(text(&BenchArtifact::default(), true), "");
    }
}
