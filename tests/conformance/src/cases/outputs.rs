//! What a session computes, against float32 implementations of others.

use anyhow::{Context, Result, bail, ensure};
use drophammer_sdk::{ErrorCode, LoadRequest, most_likely};

use crate::models::{Reference, architectures as fixtures, difference, trained};
use crate::subject::{Subject, forward, order, root, told};

pub(super) fn trained_model(subject: &Subject) -> Result<String> {
    let staging = tempfile::tempdir()?;
    let path = subject.make(&trained(), staging.path()).map_err(told)?;
    let reference = Reference::read(&trained())?;
    let mut session = subject.load(&path, 1).map_err(told)?;
    let found = difference(&forward(session.as_mut(), &reference.batch())?, &reference.due);
    let tolerance = subject.exceptions.tolerance_of("shakespeare-llama");
    ensure!(found <= tolerance, "largest difference {found}, more than {tolerance}");
    Ok(format!("largest difference {found:.1e}"))
}

/// How one fixture went.
enum Fixture {
    /// Largest difference, and the share of rows with the same largest output.
    Equal(f32, f32),
    Unsupported(String),
    Wrong(String),
}

impl std::fmt::Display for Fixture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Equal(largest, top1) => {
                write!(f, "equal, largest difference {largest:.1e}, top-1 {:.1}%", top1 * 100.0)
            }
            Self::Unsupported(why) => write!(f, "unsupported: {why}"),
            Self::Wrong(why) => f.write_str(why),
        }
    }
}

pub(super) fn architectures(subject: &Subject) -> Result<String> {
    let (mut equal, mut worst, mut problems) = (0, (0.0, String::new()), Vec::new());
    for (name, directory) in fixtures()? {
        let excepted = subject.exceptions.models.get(&name);
        let fixture = one(subject, &name, &directory)?;
        eprintln!("{name:<28} {fixture}");
        match (fixture, excepted) {
            (Fixture::Equal(found, _), None) => {
                equal += 1;
                if found > worst.0 {
                    worst = (found, name);
                }
            }
            (Fixture::Equal(..), Some(_)) => problems.push(format!("{name}: works, so it is no exception")),
            (Fixture::Unsupported(why) | Fixture::Wrong(why), None) => {
                problems.push(format!("{name}: {why}"));
            }
            (Fixture::Unsupported(_) | Fixture::Wrong(_), Some(_)) => {}
        }
    }
    ensure!(problems.is_empty(), "{equal} equal; {}", problems.join("\n"));
    ensure!(equal > 0, "no fixture of tests/fixtures/arch was run");
    Ok(format!("{equal} equal, largest difference {:.1e} ({})", worst.0, worst.1))
}

fn one(subject: &Subject, name: &str, directory: &std::path::Path) -> Result<Fixture> {
    let staging = tempfile::tempdir()?;
    let reference = Reference::read(directory)?;
    let path = match subject.make(directory, staging.path()) {
        Ok(path) => path,
        Err(error) if error.code == ErrorCode::UnsupportedInput => {
            return Ok(Fixture::Unsupported(error.message));
        }
        Err(error) => return Ok(Fixture::Wrong(format!("cannot be made: {}", told(error)))),
    };
    let mut session = match subject.load(&path, reference.rows.len() as u32) {
        Ok(session) => session,
        Err(error) if error.code == ErrorCode::UnsupportedInput => {
            return Ok(Fixture::Unsupported(error.message));
        }
        Err(error) => return Ok(Fixture::Wrong(format!("cannot be loaded: {}", told(error)))),
    };
    let rows = match forward(session.as_mut(), &reference.batch()) {
        Ok(rows) => rows,
        Err(error) => return Ok(Fixture::Wrong(format!("cannot be run: {error}"))),
    };
    let found = difference(&rows, &reference.due);
    let tolerance = subject.exceptions.tolerance_of(name);
    Ok(if found <= tolerance {
        Fixture::Equal(found, same_best(&rows, &reference.due))
    } else {
        let same = same_best(&rows, &reference.due) * 100.0;
        Fixture::Wrong(format!("largest difference {found}, more than {tolerance}; top-1 {same:.1}%"))
    })
}

/// The share of rows whose largest value is at the same place.
fn same_best(found: &[Vec<f32>], due: &[Vec<f32>]) -> f32 {
    let same = found.iter().zip(due).filter(|(found, due)| most_likely(found) == most_likely(due)).count();
    same as f32 / due.len().max(1) as f32
}

pub(super) fn adapters(subject: &Subject) -> Result<String> {
    let base = root().join("tests/fixtures/packed/lora");
    let adapter = base.join("adapter");
    let staging = tempfile::tempdir()?;
    let path = subject.make(&base, staging.path()).map_err(told)?;
    let reference = Reference::read(&base)?;
    let request =
        LoadRequest { adapters: vec![adapter.clone()], ..order(&path, reference.rows.len() as u32) };
    let mut session = subject.load_as(&request).map_err(told)?;
    let found = difference(&forward(session.as_mut(), &reference.batch())?, &reference.due);
    let tolerance = subject.exceptions.tolerance_of("packed/lora");
    ensure!(found <= tolerance, "largest difference from the merged model {found}");
    drop(session);
    let mut plain = subject.load(&path, reference.rows.len() as u32).map_err(told)?;
    let without = difference(&forward(plain.as_mut(), &reference.batch())?, &reference.due);
    ensure!(without > 10.0 * tolerance, "the adapter makes no difference ({without}): the test says nothing");
    let elsewhere = tempfile::tempdir()?;
    let other = subject.make(&trained(), elsewhere.path()).map_err(told)?;
    let request = LoadRequest { adapters: vec![adapter], ..order(&other, 1) };
    let Err(refusal) = subject.load_as(&request) else { bail!("an adapter of another model was attached") };
    ensure!(
        matches!(refusal.code, ErrorCode::InvalidInput | ErrorCode::UnsupportedInput),
        "an adapter of another model is refused as {}",
        refusal.code.word()
    );
    Some(refusal.help)
        .filter(|help| !help.is_empty())
        .context("the refusal of the adapter has no next step")?;
    Ok(format!("largest difference {found:.1e}, without the adapter {without:.1e}"))
}
