//! What this backend can do here, and what a goal would take.

use drophammer_forge::plain::PlainGraph;
use drophammer_sdk::{Device, FormatSupport, Goal, HostInfo, ProbeReport, ProbeRequest, Problem, Result};

use crate::provider::{self, EMULATED};
use crate::scheme::SCHEMES;
use crate::{forge, plain};

/// What is offered where the host names no goal.
const OFFERED: [&str; 2] = ["a16w8", "fp16"];

/// Describes the machine and plans the request's goals. Files are looked for; the libraries are opened where there is a model to ask the
/// compiler about.
///
/// # Errors
/// When the source cannot be read.
pub(crate) fn report(host: &HostInfo, request: &ProbeRequest) -> Result<ProbeReport> {
    let mut report = ProbeReport::default();
    match provider::look(host) {
        Ok(version) => {
            report.runtime_version = Some(version).filter(|version| !version.is_empty());
            let name = if EMULATED {
                "Hexagon NPU, emulated on this processor: its numbers, not its speed"
            } else {
                "Hexagon NPU"
            };
            report.devices.push(Device {
                id: "htp".into(),
                name: name.into(),
                kind: "npu".into(),
                emulated: EMULATED,
                ..Device::default()
            });
        }
        Err(errors) => {
            let problems = errors.into_iter();
            report
                .problems
                .extend(problems.map(|error| Problem { message: error.message, help: error.help }));
        }
    }
    // Contexts are made by the runtime's own compiler: without it nothing is.
    let works = report.problems.is_empty();
    report.formats = vec![FormatSupport {
        format: "qnn".into(),
        schemes: SCHEMES.iter().map(|scheme| scheme.name.to_owned()).collect(),
        make: works,
        run: works,
    }];
    if let Some(source) = &request.source {
        let goals = request.goals_or("qnn", &OFFERED);
        let file = PlainGraph::find(source);
        let estimate = |goal: &Goal| match &file {
            Some(file) => Ok(plain::estimate(host, file, goal)),
            None => forge::estimate(host, source, goal),
        };
        report.estimates = goals.iter().map(estimate).collect::<Result<_>>()?;
    }
    Ok(report)
}
