//! Files a backend makes, and files it should refuse.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use drophammer_sdk::{Backend, ErrorCode};

use crate::models::trained;
use crate::subject::{Silent, Subject, order, told};

/// Every file below a directory, with its bytes.
fn contents(directory: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(contents(&path)?);
        } else {
            found.insert(path.clone(), std::fs::read(&path)?);
        }
    }
    Ok(found)
}

/// The same, by path below the directory.
fn relative(directory: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let below = |path: PathBuf| path.strip_prefix(directory).unwrap_or(&path).to_owned();
    Ok(contents(directory)?.into_iter().map(|(path, bytes)| (below(path), bytes)).collect())
}

pub(super) fn reproducible(subject: &Subject) -> Result<String> {
    let (first, second) = (tempfile::tempdir()?, tempfile::tempdir()?);
    subject.make(&trained(), first.path()).map_err(told)?;
    subject.make(&trained(), second.path()).map_err(told)?;
    let (first, second) = (relative(first.path())?, relative(second.path())?);
    ensure!(first.keys().eq(second.keys()), "{:?} and {:?}", first.keys(), second.keys());
    for (path, bytes) in &first {
        ensure!(second.get(path) == Some(bytes), "{} differs", path.display());
    }
    Ok(format!("{} files equal", first.len()))
}

pub(super) fn cancelling(subject: &Subject) -> Result<String> {
    let whole = tempfile::tempdir()?;
    let path = subject.make(&trained(), whole.path()).map_err(told)?;
    let mut stopped = 0;
    for questions in [0, 1, 2, 5, 12] {
        let staging = tempfile::tempdir()?;
        let request = subject.request(&trained(), staging.path());
        match subject.plugin.convert(&request, &Silent::cancelled_after(questions)) {
            Err(error) if error.code == ErrorCode::Cancelled => stopped += 1,
            Err(error) => bail!("a cancelled forge ends with {}: {error}", error.code.word()),
            Ok(_) if questions == 0 => bail!("a job cancelled from the beginning is done all the same"),
            Ok(_) => {}
        }
        subject.plugin.convert(&request, &Silent::new()).map_err(told)?;
        ensure!(relative(staging.path())? == relative(whole.path())?, "the resumed artifact differs");
    }
    let Err(error) = subject.plugin.load(&order(&path, 1), Box::new(Silent::cancelled_after(0))) else {
        bail!("a cancelled job loads a model all the same")
    };
    ensure!(error.code == ErrorCode::Cancelled, "a cancelled load ends with {}: {error}", error.code.word());
    Ok(format!("{stopped} forges and a load stopped; forges went on and gave the same bytes"))
}

pub(super) fn bad_input(subject: &Subject) -> Result<String> {
    let staging = tempfile::tempdir()?;
    let path = subject.make(&trained(), staging.path()).map_err(told)?;
    let mut refused = 0;
    let mut refuse = |what: &str, path: &Path| {
        let Err(error) = subject.load(path, 1) else { bail!("{what} is loaded all the same") };
        ensure!(
            matches!(error.code, ErrorCode::InvalidInput | ErrorCode::UnsupportedInput | ErrorCode::Failed),
            "{what} is refused as {}: {error}",
            error.code.word()
        );
        Some(&error.help)
            .filter(|help| !help.is_empty())
            .with_context(|| format!("{what}: no next step ({error})"))?;
        refused += 1;
        Ok(())
    };
    refuse("a path where nothing is", &staging.path().join("nothing-here"))?;
    let empty = tempfile::tempdir()?;
    refuse("an empty directory", empty.path())?;
    let text = empty.path().join("notes.txt");
    std::fs::write(&text, "not a model")?;
    refuse("a file of text", &text)?;
    for (file, bytes) in contents(staging.path())? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut with = |what: String, damaged: &[u8]| -> Result<()> {
            std::fs::write(&file, damaged)?;
            refuse(&what, &path)?;
            Ok(std::fs::write(&file, &bytes)?)
        };
        // Tokenizers are the host's; a session may do without.
        if !name.contains("token") && bytes.len() > 1000 {
            for part in [0, 3, 50, 90, 99] {
                with(format!("{name} cut to {part}%"), &bytes[..bytes.len() * part / 100])?;
            }
            let told = bytes.trim_ascii_end();
            with(format!("{name} without its last byte"), &told[..told.len() - 1])?;
            // Files of nothing but numbers begin with numbers: zeros are as good as others.
            let numbers = file.extension().is_some_and(|kind| kind == "bin" || kind == "data");
            if !numbers {
                with(format!("{name} with its beginning zeroed"), &[&[0; 64], &bytes[64..]].concat())?;
            }
        }
    }
    // Damage anywhere in the beginning, where counts and offsets lie: refused or harmless, but never the process's end.
    let main = if path.is_file() { path.clone() } else { largest(&path)? };
    let bytes = std::fs::read(&main)?;
    for at in (0..bytes.len().min(2048)).step_by(61) {
        for value in [0xff, bytes[at] ^ 0x10] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            std::fs::write(&main, &damaged)?;
            drop(subject.load(&path, 1));
        }
    }
    Ok(format!("{refused} kinds of damage refused"))
}

fn largest(directory: &Path) -> Result<PathBuf> {
    let found = contents(directory)?;
    let largest = found.into_iter().max_by_key(|(_, bytes)| bytes.len());
    Ok(largest.context("the artifact has no files")?.0)
}
