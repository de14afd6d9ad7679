//! Runtimes that tests run against: installed as a user would install them, into a cache outside the repository.

use std::path::PathBuf;

use anyhow::{Context, Result};
use drophammer_runtimes::{Installation, accepted, runtime};

use crate::fetch;

/// What tests need. Those with a licence that has to be accepted join where `DROPHAMMER_ACCEPTED_LICENCES` names them.
const NEEDED: [&str; 3] = ["openvino", "onnxruntime", "mlx"];

/// The directory that `DROPHAMMER_RUNTIMES` is to name, with every runtime that exists for this system.
///
/// # Errors
/// When one cannot be fetched, or is not the pinned one.
pub(crate) fn provide() -> Result<PathBuf> {
    let licensed = drophammer_runtimes::runtimes().iter().filter(|runtime| accepted(&runtime.name));
    let mut names = NEEDED.to_vec();
    names.extend(licensed.map(|runtime| runtime.name.as_str()));
    provide_these(&names)
}

/// The same for some runtimes.
///
/// # Errors
/// As [`provide`].
pub(crate) fn provide_these(names: &[&str]) -> Result<PathBuf> {
    let place = fetch::cache("runtimes")?;
    for name in names {
        let runtime = runtime(name).with_context(|| format!("config/runtimes.toml has no {name}"))?;
        if !runtime.wheels_here().is_empty() {
            let how = Installation { accept_licence: accepted(name), ..Installation::default() };
            runtime.install(&place, &how, &mut |step| eprintln!("{step}"))?;
        }
    }
    Ok(place)
}
