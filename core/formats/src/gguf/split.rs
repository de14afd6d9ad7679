//! Models split over several files: `name-00001-of-00003.gguf`.

use std::path::Path;

use super::metadata::Metadata;
use crate::error::Fault;

/// This file's number, from zero.
const NUMBER: &str = "split.no";
/// How many files there are.
const COUNT: &str = "split.count";
/// How many tensors all files hold together.
const TENSORS: &str = "split.tensors.count";

/// The file name of one part of a split model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitName {
    /// What all parts begin with.
    pub stem: String,
    /// This part, from one.
    pub number: u32,
    /// How many parts there are.
    pub count: u32,
}

impl SplitName {
    /// Parses `stem-00002-of-00003.gguf`; `None` for any other name. The extension is given without its dot.
    pub fn parse(path: &Path, extension: &str) -> Option<Self> {
        let name = path.file_name()?.to_str()?.strip_suffix(extension)?.strip_suffix('.')?;
        let (rest, count) = name.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let parse = |digits: &str| -> Option<u32> {
            (digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
        };
        let (number, count) = (parse(number)?, parse(count)?);
        (1..=count).contains(&number).then(|| Self { stem: stem.to_owned(), number, count })
    }

    /// The file name of another part.
    pub fn part(&self, number: u32, extension: &str) -> String {
        format!("{}-{number:05}-of-{:05}.{extension}", self.stem, self.count)
    }
}

/// Sets the keys that part `number` (from zero) of `count` carries.
pub fn split_keys(metadata: &mut Metadata, number: u16, count: u16, tensors: i32) {
    metadata.set(NUMBER, number);
    metadata.set(COUNT, count);
    metadata.set(TENSORS, tensors);
}

/// Checks that a file is part `number` (from zero) of `count`, by its metadata.
///
/// # Errors
/// [`Fault::Split`].
pub fn check_split(metadata: &Metadata, number: u32, count: u32) -> Result<(), Fault> {
    let said = (metadata.u64(NUMBER), metadata.u64(COUNT));
    let whole = count == 1 && said.1.is_none_or(|c| c <= 1);
    if whole || said == (Some(number.into()), Some(count.into())) {
        return Ok(());
    }
    let problem = match said {
        (Some(n), Some(c)) if count == 1 => format!(
            "is part {} of {c} of a model; name the parts NAME-00001-of-{c:05}.gguf so that they are found",
            n.saturating_add(1)
        ),
        (Some(n), Some(c)) => {
            format!(
                "says it is part {} of {c}, but its name says part {} of {count}",
                n.saturating_add(1),
                number + 1
            )
        }
        _ => "is named like part of a split model, but its metadata do not say so".into(),
    };
    Err(Fault::Split { problem })
}

/// Checks the total that the first file announces.
///
/// # Errors
/// [`Fault::Split`].
pub(crate) fn check_total(metadata: &Metadata, tensors: usize) -> Result<(), Fault> {
    match metadata.u64(TENSORS) {
        Some(total) if total != tensors as u64 => {
            Err(Fault::Split { problem: format!("announces {total} tensors, its parts hold {tensors}") })
        }
        _ => Ok(()),
    }
}

/// Removes the keys that tell of a split: a model read from its parts is whole.
pub(crate) fn strip_keys(metadata: &mut Metadata) {
    for key in [NUMBER, COUNT, TENSORS] {
        metadata.remove(key);
    }
}
