//! How near an artifact of a plain graph comes to its original: both are run over samples, and the artifact says it in a file.

use std::path::{Path, PathBuf};

use drophammer_forge::plain::{Accuracy, PlainGraph, Samples};
use drophammer_sdk::{BackendError, ErrorCode, JobContext, Result};
use ort::session::{Session, SessionOutputs};
use serde_json::json;

use crate::graph::{numbers, run};

/// The file that says it.
pub const FILE: &str = "accuracy.json";

/// Compares the outputs of an artifact with the original's over samples, and writes [`FILE`] into `folder`. Gives the notes for the user.
///
/// # Errors
/// When one of both cannot be run, or the file not be written.
pub fn report(
    [original, artifact]: [&mut Session; 2],
    plain: &PlainGraph,
    samples: &Samples,
    folder: &Path,
    job: &dyn JobContext,
) -> Result<Vec<String>> {
    let names: Vec<&str> = plain.inputs().iter().map(|input| input.name.as_str()).collect();
    let compared = compare([original, artifact], &names, samples, job)?;
    let mut notes: Vec<String> = compared.iter().map(Accuracy::told).collect();
    if samples.random {
        notes.push(format!("compared on {}", samples.told));
    } else if !samples.holds_out() {
        notes.push("too few samples to keep some for comparing: the same were calibrated on".into());
    }
    let document = json!({
        "samples": samples.told,
        "random": samples.random,
        "held_out": samples.holds_out(),
        "outputs": compared.iter().map(Accuracy::document).collect::<Vec<_>>(),
    });
    let path: PathBuf = folder.join(FILE);
    std::fs::write(&path, format!("{document:#}\n")).map_err(|error| {
        BackendError::new(ErrorCode::Failed, format!("{}: {error}", path.display()))
            .with_help("Check free space and permissions.")
    })?;
    Ok(notes)
}

/// What an artifact's outputs are beside the original's, over samples.
fn compare(
    [original, artifact]: [&mut Session; 2],
    names: &[&str],
    samples: &Samples,
    job: &dyn JobContext,
) -> Result<Vec<Accuracy>> {
    let mut all: Vec<Accuracy> =
        original.outputs().iter().map(|output| Accuracy::of(output.name())).collect();
    let count = samples.comparing().count() as u64;
    for (number, sample) in samples.comparing().enumerate() {
        job.check()?;
        job.progress("comparing", "", number as u64, count);
        let collect = |outputs: &SessionOutputs<'_>| {
            let of = |accuracy: &Accuracy| numbers(outputs.get(&accuracy.output)?);
            Ok(all.iter().map(of).collect::<Vec<_>>())
        };
        let due = run(original, names, sample, collect)?;
        let found = run(artifact, names, sample, collect)?;
        for ((accuracy, due), found) in all.iter_mut().zip(due).zip(found) {
            if let (Some((due, width)), Some((found, _))) = (due, found) {
                accuracy.add(&found, &due, width);
            }
        }
    }
    Ok(all)
}
