//! One-shot `logits`.

use std::path::{Path, PathBuf};

use drophammer_daemon::worker::protocol::{LogitsOrder, Work};
use drophammer_sdk::{ForgeReport, LoadRequest};

use super::print;
use crate::arguments::Logits;
use crate::artifact::Staging;
use crate::failure::{Failure, Result};
use crate::workshop::Workshop;

pub(super) async fn logits(arguments: Logits) -> Result<()> {
    let shop = Workshop::probed().await?;
    let source = absolute(&arguments.source)?;
    let runner = shop.runner(&source, arguments.budget.backend.as_deref())?;
    let staging = Staging::beside(&arguments.output)?;
    let order = LogitsOrder {
        load: LoadRequest { path: source, reference: true, ..LoadRequest::default() },
        tokens: absolute(&arguments.tokens)?,
        staging: staging.path().to_path_buf(),
    };
    let limits = shop.limits(&arguments.budget);
    shop.work(runner, limits, Work::Logits(order), arguments.budget.verbose).await?;
    let made = ForgeReport { files: vec![PathBuf::from("logits.safetensors")], ..ForgeReport::default() };
    print(&format!("{}\n", staging.publish(&made)?.display()));
    Ok(())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path).map_err(|error| Failure::io(path, &error))
}
