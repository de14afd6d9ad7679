//! What can be done on this machine, and what each goal would take. Cheap: only headers are read.

use drophammer_formats::Source;
use drophammer_sdk::{Device, Estimate, FormatSupport, Goal, ProbeReport, ProbeRequest, Result};

use crate::convert::{Ends, Numbers};
use crate::{ID, failed};

/// Answers a probe.
pub(crate) fn report(request: &ProbeRequest) -> Result<ProbeReport> {
    let estimates = match &request.source {
        None => Vec::new(),
        Some(path) => {
            let source = Source::open(path).map_err(failed)?;
            request.goals.iter().map(|goal| estimate(&source, goal)).collect()
        }
    };
    Ok(ProbeReport {
        devices: vec![Device {
            id: "cpu".into(),
            name: "any processor".into(),
            kind: "cpu".into(),
            ..Device::default()
        }],
        formats: vec![FormatSupport {
            format: ID.into(),
            schemes: Numbers::ALL.iter().map(|numbers| numbers.name().to_owned()).collect(),
            make: true,
            run: true,
        }],
        // A missing runtime belongs into `problems`, with the command that installs it.
        estimates,
        ..ProbeReport::default()
    })
}

fn estimate(source: &Source, goal: &Goal) -> Estimate {
    let refused = |reason: String, help: &str| Estimate {
        format: goal.format.clone(),
        scheme: goal.scheme.clone(),
        reason: Some(reason),
        help: Some(help.to_owned()),
        ..Estimate::default()
    };
    let Some(numbers) = Numbers::named(&goal.scheme) else {
        return refused(format!("there is no scheme {}", goal.scheme), "ask for f32 or int8");
    };
    match Ends::of(source) {
        Err(error) => refused(error.message, &error.help),
        Ok(ends) => Estimate {
            format: goal.format.clone(),
            scheme: numbers.name().to_owned(),
            supported: true,
            steps: vec![format!("copy two matrices as {}", numbers.name())],
            bytes: ends.bytes(numbers),
            peak_memory_bytes: 16 << 20,
            seconds: ends.bytes(numbers) as f64 / 200e6,
            ..Estimate::default()
        },
    }
}
