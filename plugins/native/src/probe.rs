//! What this backend can do here, and what a goal would take.

use std::path::Path as FilePath;

use drophammer_formats::{DType, SourceKind};
use drophammer_quant::pass;
use drophammer_sdk::{
    Device, ErrorCode, Estimate, ForgeRequest, FormatSupport, Goal, ProbeReport, ProbeRequest, Result,
};

use crate::forge::{self, Plan};
use crate::kernels::Path;

/// What is offered where the host names no goal.
const OFFERED: [&str; 3] = ["q8_0", "q4_k_m", "f16"];
/// Resident memory of a worker besides buffers: code, maps, tables.
const WORKER_BYTES: u64 = 48 << 20;

/// Describes the machine and plans the request's goals.
///
/// # Errors
/// When the source cannot be read.
pub(crate) fn report(request: &ProbeRequest) -> Result<ProbeReport> {
    let mut report = ProbeReport {
        runtime_version: Some(env!("CARGO_PKG_VERSION").into()),
        devices: vec![Device {
            id: "cpu".into(),
            name: format!("{} with {} kernels", std::env::consts::ARCH, Path::chosen().name()),
            kind: "cpu".into(),
            ..Device::default()
        }],
        formats: vec![
            FormatSupport {
                format: "gguf".into(),
                schemes: forge::schemes().map(str::to_owned).collect(),
                make: true,
                run: true,
            },
            runs(SourceKind::HuggingFace),
            runs(SourceKind::Safetensors),
            runs(SourceKind::Mlx),
        ],
        ..ProbeReport::default()
    };
    if let Some(source) = &request.source {
        let offered: Vec<Goal> = OFFERED
            .iter()
            .map(|scheme| Goal { format: "gguf".into(), scheme: (*scheme).into(), ..Goal::default() })
            .collect();
        let goals = if request.goals.is_empty() { &offered } else { &request.goals };
        report.estimates = goals.iter().map(|goal| estimate(source, goal)).collect::<Result<_>>()?;
    }
    Ok(report)
}

/// A kind of source that is run as it lies, in reference mode above all.
fn runs(kind: SourceKind) -> FormatSupport {
    FormatSupport { format: kind.name().into(), schemes: Vec::new(), make: false, run: true }
}

fn estimate(source: &FilePath, goal: &Goal) -> Result<Estimate> {
    let mut estimate =
        Estimate { format: goal.format.clone(), scheme: goal.scheme.clone(), ..Estimate::default() };
    let request = ForgeRequest {
        source: source.to_owned(),
        goal: goal.clone(),
        name: "model".into(),
        no_tokenizer: goal.options.get("no_tokenizer").and_then(serde_json::Value::as_bool).unwrap_or(false),
        ..ForgeRequest::default()
    };
    match forge::plan(&request) {
        Ok(plan) => fill(&mut estimate, &plan)?,
        Err(error) if error.code == ErrorCode::Failed => return Err(error),
        Err(error) => {
            estimate.reason = Some(error.message);
            estimate.help = Some(error.help).filter(|help| !help.is_empty());
        }
    }
    Ok(estimate)
}

fn fill(estimate: &mut Estimate, plan: &Plan) -> Result<()> {
    let items = plan.items(&std::collections::BTreeMap::new())?;
    let options = pass::Options::default();
    let work = pass::estimate(&items, &options).map_err(|error| crate::failure::of_pass(&error))?;
    let mut notes = plan.notes.clone();
    if plan.preset.wants_importance {
        notes.push("this scheme gives poor results without an importance matrix".into());
    }
    estimate.supported = true;
    estimate.reason = (!notes.is_empty()).then(|| notes.join("; "));
    estimate.steps = vec![if plan.preset.base.is_block() {
        format!("read each tensor and write it as {} in one pass", plan.preset.name)
    } else {
        format!("read each tensor and write it in {} in one pass", plan.preset.name)
    }];
    estimate.bytes = plan.layout.total_bytes();
    estimate.peak_memory_bytes = work.peak_bytes + WORKER_BYTES;
    let rate = weights_per_second(plan.preset.base) * work.threads as f64;
    estimate.seconds = 0.2 + plan.parameters() as f64 / rate;
    Ok(())
}

/// Weights that one thread encodes in a second: measured on a 2.6 GHz server core, rounded down.
fn weights_per_second(dtype: DType) -> f64 {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => 400e6,
        DType::Q8_0 => 250e6,
        DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 => 150e6,
        DType::Q2K | DType::Q3K | DType::Q4K | DType::Q5K | DType::Q6K => 40e6,
        _ => 6e6,
    }
}
