//! What a file or directory is.

use std::collections::BTreeMap;

use drophammer_client::api::{InspectReport, InspectTensor, Problem};
use drophammer_formats::Source;

use super::answer;
use super::table::{columns, count, size};
use crate::arguments::Inspect;
use crate::failure::Result;

pub(super) fn run(inspect: &Inspect) -> Result<()> {
    let source = Source::open(&inspect.source)?;
    answer(inspect.output.json, &report(&source), text)
}

fn report(source: &Source) -> InspectReport {
    let tensor = |tensor: &drophammer_formats::TensorInfo| InspectTensor {
        name: tensor.name.clone(),
        dtype: tensor.dtype.to_string(),
        shape: tensor.shape.clone(),
    };
    let files = source.all_files();
    let sizes = files.iter().filter_map(|file| std::fs::metadata(file).ok());
    let elements = source.tensors().iter().map(drophammer_formats::TensorInfo::elements);
    InspectReport {
        format: source.kind().name().to_owned(),
        architecture: architecture(source),
        parameters: elements.fold(0, u64::saturating_add),
        bytes: sizes.map(|file| file.len()).fold(0, u64::saturating_add),
        tensors: source.tensors().iter().map(tensor).collect(),
        problems: problems(source),
    }
}

fn architecture(source: &Source) -> Option<String> {
    let configured = source.config().and_then(|config| config.get("model_type")?.as_str());
    configured.or_else(|| source.metadata().str("general.architecture")).map(str::to_owned)
}

/// What is in the way of forging it.
fn problems(source: &Source) -> Vec<Problem> {
    let described = source.config().map(drophammer_models::describe);
    let unknown = described.and_then(Result::err).map(|error| (error.to_string(), error.help()));
    unknown
        .into_iter()
        .map(|(message, help)| Problem { message, help: Some(help).filter(|help| !help.is_empty()) })
        .collect()
}

fn text(report: &InspectReport) -> String {
    let mut types: BTreeMap<&str, u64> = BTreeMap::new();
    for tensor in &report.tensors {
        *types.entry(&tensor.dtype).or_default() += 1;
    }
    let types: Vec<_> = types.iter().map(|(dtype, n)| format!("{n} {dtype}")).collect();
    let mut text = format!(
        "format        {}\narchitecture  {}\nparameters    {} ({})\nsize          {}\ntensors       {} ({})\n",
        report.format,
        report.architecture.as_deref().unwrap_or("unknown"),
        count(report.parameters),
        report.parameters,
        size(report.bytes),
        report.tensors.len(),
        types.join(", ")
    );
    for problem in &report.problems {
        text +=
            &format!("problem       {}; {}\n", problem.message, problem.help.as_deref().unwrap_or_default());
    }
    let row = |tensor: &InspectTensor| {
        vec![tensor.name.clone(), tensor.dtype.clone(), format!("{:?}", tensor.shape)]
    };
    let rows: Vec<_> = report.tensors.iter().map(row).collect();
    text + "\n" + &columns(&["tensor", "type", "shape"], &rows)
}
