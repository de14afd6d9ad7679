//! Plain graphs (vision, audio): of fixed sizes, in halves or whole numbers, compiled like a model, and compared with the original.

use std::path::{Path, PathBuf};

use drophammer_forge::Recipe;
use drophammer_forge::plain::{Draft, Pick, PlainGraph, Reach, Samples};
use drophammer_models::export::onnx::{Range, Ranges, Weights};
use drophammer_ort::{accuracy, graph, placement};
use drophammer_sdk::{
    BackendError, ErrorCode, Estimate, ForgeReport, ForgeRequest, Goal, HostInfo, JobContext, LogLevel,
    Result,
};
use ort::environment::Environment;
use serde::Serialize;

use crate::artifact::{Compiled, Target};
use crate::scheme::{self, Scheme};
use crate::soc::{self, Soc};
use crate::{compile, forge, provider};

/// What lies in the folder of a compiled graph, and what it takes.
pub(crate) const FILE: &str = "qnn_graph.json";
/// The version of its form.
const VERSION: u32 = 1;
/// The compiled graph's file, without its extension.
const STEM: &str = "model";
/// Where half precision ends.
const LARGEST_HALF: f32 = 65504.0;
/// Resident memory of a worker with the compiler in it and values of a network for images, besides graphs.
const WORKER_BYTES: u64 = 600 << 20;

/// A compiled graph, as its folder describes it.
#[derive(Serialize)]
struct Description<'a> {
    version: u32,
    target: &'a Target,
    inputs: Vec<Input<'a>>,
    graph: &'a Compiled,
}

/// What has to be given to run it.
#[derive(Serialize)]
struct Input<'a> {
    name: &'a str,
    element: &'static str,
    shape: Vec<u64>,
}

/// A goal, decided.
struct Plan {
    plain: PlainGraph,
    scheme: Scheme,
    /// Bits of a value, where values become whole numbers.
    bits: Option<u8>,
    pick: Pick,
    soc: &'static Soc,
}

impl Plan {
    fn of(file: &Path, goal: &Goal) -> Result<Self> {
        let scheme = scheme::of(goal)?;
        let bits = match scheme.weights {
            Weights::Floats => None,
            Weights::Whole { bits: 8, activations } => Some(activations),
            Weights::Whole { .. } => {
                let message = format!("weights of plain graphs have 8 bits, not those of {}", scheme.name);
                return Err(BackendError::new(ErrorCode::UnsupportedInput, message)
                    .with_help("Choose one of: fp16, a16w8, a8w8."));
            }
        };
        let plain = PlainGraph::open(file)?.fixed(goal)?;
        let pick = Pick::of(goal, &plain.model().graph)?;
        Ok(Self { plain, scheme, bits, pick, soc: soc::of(goal)? })
    }
}

/// What reaching a goal would take; a goal that cannot be reached says why.
pub(crate) fn estimate(host: &HostInfo, file: &Path, goal: &Goal) -> Estimate {
    drophammer_forge::estimate_with(goal, |estimate| fill(host, file, goal, estimate))
}

fn fill(host: &HostInfo, file: &Path, goal: &Goal, estimate: &mut Estimate) -> Result<()> {
    let plan = Plan::of(file, goal)?;
    provider::look(host).map_err(forge::first)?;
    let mut reason = forge::told_of(plan.soc);
    let draft = Draft::new(&plan.plain).folded();
    let layout = draft.layout(STEM).map_err(|fault| {
        BackendError::new(ErrorCode::UnsupportedInput, fault.to_string()).with_help(fault.help())
    })?;
    let placed = compile::ask(provider::open(host)?, &layout, plan.soc)?.unwrap_or_default();
    let in_floats = |(_, placement): &(String, placement::Placement)| {
        format!("in floats {}", placement::told(placement, provider::NAME, "the NPU"))
    };
    reason.extend(placed.iter().map(in_floats));
    if plan.bits.is_some() {
        let samples = Samples::place(goal, file).map(|place| format!("the samples of {}", place.display()));
        if samples.is_none() {
            reason.push(Samples::of(goal, &plan.plain)?.told);
        }
        let samples = samples.unwrap_or_else(|| "random samples".into());
        estimate.steps.push(format!("run the graph on {samples} for the ranges of values"));
    }
    estimate.steps.push(format!("fold norms, and write the graph as {}", plan.scheme.name));
    estimate.steps.push(format!("compile it for {}; say what goes to its NPU", plan.soc.name));
    estimate.steps.push("compare its outputs with the original's".into());
    estimate.supported = true;
    estimate.reason = Some(reason.join("; "));
    let weights = plan.plain.parameters();
    estimate.bytes = weights * if plan.bits.is_some() { 1 } else { 2 };
    estimate.peak_memory_bytes = WORKER_BYTES + 8 * plan.plain.file_bytes();
    estimate.seconds = 20.0 + weights as f64 / 1e6;
    Ok(())
}

/// Makes a folder: the compiled graph, and how near it comes to the original.
///
/// # Errors
/// For unknown goals, open sizes, graphs and calibration data that cannot be read, a missing runtime, and graphs that the compiler
/// refuses.
pub(crate) fn forge(
    host: &HostInfo,
    file: &Path,
    request: &ForgeRequest,
    job: &dyn JobContext,
) -> Result<ForgeReport> {
    job.check()?;
    let plan = Plan::of(file, &request.goal)?;
    let samples = Samples::of(&request.goal, &plan.plain)?;
    let compiler = provider::look(host).map_err(forge::first)?;
    let environment = provider::open(host)?;
    let staging = &request.staging;
    let mut notes = Vec::new();
    let mut draft = Draft::new(&plan.plain).folded();
    let ranges = graph::ranges(environment, &draft, &samples, &staging.join(".calibration"), job)?;
    if let Some(bits) = plan.bits {
        notes.push(format!("ranges of values are those of {}", samples.told));
        draft = draft.static_int(bits, &ranges, &plan.pick, Reach::Everything);
    } else if let Some(beyond) = beyond_halves(&ranges) {
        job.log(LogLevel::Warning, &beyond);
        notes.push(beyond);
    }
    notes.splice(0..0, draft.notes.iter().cloned());
    let compiled = compiled(environment, &draft, &plan, request, job)?;
    let told = placement::told(&compiled.placement, provider::NAME, "the NPU");
    job.log(LogLevel::Info, &told);
    notes.push(told);
    notes.extend(forge::told_of(plan.soc));
    let target = Target::new(plan.scheme.name, plan.soc, &compiler);
    let threads = job.budgets().threads.max(1) as usize;
    let mut original = graph::open(environment, file, threads)?;
    let mut artifact = provider::open_context(environment, &target, &staging.join(&compiled.model))?;
    notes.extend(accuracy::report([&mut original, &mut artifact], &plan.plain, &samples, staging, job)?);
    drop((original, artifact));
    let description =
        Description { version: VERSION, target: &target, inputs: inputs(&plan.plain), graph: &compiled };
    forge::describe(staging, FILE, &description)?;
    let mut files: Vec<PathBuf> = [FILE, accuracy::FILE].map(PathBuf::from).into();
    files.extend(compiled.files.iter().map(|(name, _)| PathBuf::from(name)));
    let parameters = plan.plain.parameters();
    // Floats are written in single precision and compiled in half.
    let bytes = if plan.bits.is_some() { draft.bytes() } else { draft.bytes() / 2 };
    Ok(ForgeReport {
        bytes: forge::bytes_of(staging, &files)?,
        files,
        bits_per_weight: bytes as f64 * 8.0 / parameters.max(1) as f64,
        parameters,
        notes,
        types: draft.types(),
    })
}

/// Writes a draft, and compiles it into the request's staging directory.
fn compiled(
    environment: &Environment,
    draft: &Draft<'_>,
    plan: &Plan,
    request: &ForgeRequest,
    job: &dyn JobContext,
) -> Result<Compiled> {
    let mut recipe = Recipe::new("qnn plain", env!("CARGO_PKG_VERSION"), plan.scheme.name);
    for (name, value) in &request.goal.options {
        recipe = recipe.with_option(name, &value.to_string());
    }
    let place = request.staging.join("graphs");
    let io = |error: std::io::Error| forge::unwritten(&place, &error);
    std::fs::create_dir_all(&place).map_err(io)?;
    graph::write(draft, STEM, &place, &recipe, job)?;
    job.check()?;
    job.progress("compiling", STEM, 0, 1);
    let graph = place.join(format!("{STEM}.onnx"));
    let compiled = compile::compile(environment, &graph, &request.staging, STEM, plan.soc)?;
    std::fs::remove_dir_all(&place).map_err(io)?;
    Ok(compiled)
}

/// A word about values that half precision does not hold, where samples show any.
fn beyond_halves(ranges: &Ranges) -> Option<String> {
    let reach = |range: &Range| range.high.max(-range.low);
    let beyond = ranges.iter().filter(|(_, range)| reach(range) > LARGEST_HALF);
    let (name, range) = beyond.clone().max_by(|(_, a), (_, b)| reach(a).total_cmp(&reach(b)))?;
    let count = beyond.count();
    Some(format!(
        "{count} values go beyond half precision ({name} reaches {:.1e}), which takes them for infinite: choose a16w8 where the comparison is bad",
        reach(range)
    ))
}

fn inputs(plain: &PlainGraph) -> Vec<Input<'_>> {
    let sizes = |shape: &Option<Vec<Option<u64>>>| shape.iter().flatten().flatten().copied().collect();
    let inputs = plain.inputs().iter();
    inputs
        .map(|input| Input {
            name: &input.name,
            element: input.element.name().unwrap_or("unknown"),
            shape: sizes(&input.shape),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_half_precision_does_not_hold_are_told() {
        let range = |low, high| Range { low, high };
        let mut ranges: Ranges = [("a".to_owned(), range(-65504.0, 1.0))].into();
        assert_eq!(beyond_halves(&ranges), None);
        ranges.insert("b".into(), range(-2e5, 1.0));
        ranges.insert("c".into(), range(0.0, 1e5));
        assert!(
            beyond_halves(&ranges)
                .unwrap()
                .starts_with("2 values go beyond half precision (b reaches 2.0e5)")
        );
    }
}
