//! One-shot `imatrix`, and the choice of types that `quantize --budget` makes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use drophammer_daemon::worker::protocol::{
    CalibrateOrder, Calibrated, IMATRIX_FILE, Outcome, SENSITIVITY_FILE, Work,
};
use drophammer_formats::{Source, digest};
use drophammer_models::Checkpoint;
use drophammer_models::export::gguf::GgufExport;
use drophammer_quant::budget::Plan;
use drophammer_quant::compensate::Rounds;
use drophammer_quant::sensitivity::{Budget, Sensitivity};
use drophammer_sdk::{ForgeReport, LoadRequest};
use serde::{Deserialize, Serialize};

use super::print;
use super::table::size;
use crate::arguments::{Imatrix, Making, Quantize};
use crate::artifact::Staging;
use crate::failure::{Exit, Failure, Result};
use crate::workshop::{Workshop, absolute};

/// The format whose types a plan names.
pub(super) const FORMAT: &str = "gguf";
/// Tokens read for the statistics of a budget.
const TOKENS: usize = 1 << 15;
/// Tokens read for statistics that many artifacts may be made with.
const STATISTICS: usize = 1 << 17;

pub(super) async fn imatrix(arguments: Imatrix) -> Result<()> {
    let shop = Workshop::probed().await?;
    let staging = Staging::beside(&arguments.output)?;
    let usual = if arguments.products { CalibrateOrder::PRODUCTS } else { STATISTICS };
    let order = CalibrateOrder {
        text: arguments.text.as_deref().map(absolute).transpose()?,
        most_tokens: arguments.tokens.unwrap_or(usual),
        ..CalibrateOrder::automatic(&absolute(&arguments.source)?, arguments.products, staging.path())
    };
    let calibrated = calibrate(&shop, order, &arguments.budget).await?;
    let made = ForgeReport { files: vec![PathBuf::from(IMATRIX_FILE)], ..ForgeReport::default() };
    let path = staging.publish(&made)?;
    print(&format!("{}: activation statistics over {} tokens\n", path.display(), calibrated.tokens));
    Ok(())
}

/// Collects into `place` what `--auto-imatrix` asks for; says where it lies.
pub(super) async fn automatic(shop: &Workshop, making: &Making, place: &Path) -> Result<PathBuf> {
    let order = CalibrateOrder::automatic(&absolute(&making.source)?, making.compensate, place);
    // A backend that was asked for makes the artifact; who can run the source is another question.
    let budget = crate::arguments::Budget { backend: None, ..making.budget.clone() };
    calibrate(shop, order, &budget).await?;
    Ok(place.join(IMATRIX_FILE))
}

async fn calibrate(
    shop: &Workshop,
    order: CalibrateOrder,
    budget: &crate::arguments::Budget,
) -> Result<Calibrated> {
    let runner = shop.runner(&order.load.path, budget.backend.as_deref())?;
    let limits = shop.limits(budget);
    if order.products && order.imatrix.is_none() {
        let path = &order.load.path;
        let in_model = |error: drophammer_models::Error| {
            Failure::new(Exit::Unsupported, format!("{}: {error}", path.display()), error.help())
        };
        let export = Checkpoint::open(path).and_then(GgufExport::new).map_err(in_model)?;
        eprintln!("{}", Rounds::plan(export.plain_matrices(), limits.memory_bytes));
    }
    let finished = shop.work(runner, limits, Work::Calibrate(order), budget.verbose).await?;
    match finished.outcome {
        Outcome::Calibrated(calibrated) => Ok(calibrated),
        _ => Err(Failure::new(Exit::Failed, "the worker answered with something else", "report this")),
    }
}

/// A plan with what it was solved from, as it is written beside an artifact and read by `--plan`.
#[derive(Serialize, Deserialize)]
struct PlanFile {
    /// What was asked for.
    budget: Budget,
    /// The mean divergence that is to be expected, nats.
    expected_kl: f64,
    /// Why each tensor is stored as it is.
    explained: Vec<String>,
    plan: Plan,
    sensitivity: Sensitivity,
}

/// Types chosen for a budget.
pub(super) struct Chosen {
    file: PlanFile,
    /// Statistics that were collected on the way, and where they lie until they are saved.
    imatrix: Option<PathBuf>,
    collected: Option<tempfile::TempDir>,
}

/// Solves for the budget: from the plan file at hand, or by weighing the model's tensors.
pub(super) async fn choose(shop: &Workshop, arguments: &Quantize) -> Result<Chosen> {
    let mixture = &arguments.mixture;
    if let Some(path) = &mixture.plan {
        let mut file = read(path)?;
        check_source(&arguments.making.source, path, &file.sensitivity)?;
        if let Some(budget) = mixture.within {
            file = solve(file.sensitivity, budget)?;
        }
        let beside = path.with_extension("").with_extension("imatrix.gguf");
        let imatrix = beside.exists().then_some(beside);
        return Ok(Chosen { file, imatrix, collected: None });
    }
    let Some(budget) = mixture.within else {
        return Err(Failure::new(Exit::Usage, "no budget", "give --budget or --plan"));
    };
    let place = temporary()?;
    let source = absolute(&arguments.making.source)?;
    let order = CalibrateOrder {
        // What is only counted is an average over many tokens, which the small errors of fast kernels leave as it is;
        // divergences of single tensors are as small as those errors.
        load: LoadRequest { path: source.clone(), reference: true, ..LoadRequest::default() },
        most_tokens: TOKENS,
        text: mixture.text.as_deref().map(absolute).transpose()?,
        imatrix: arguments.making.imatrix.as_deref().map(absolute).transpose()?,
        types: Some(mixture.types.clone()),
        ..CalibrateOrder::automatic(&source, arguments.making.compensate, place.path())
    };
    calibrate(shop, order, &arguments.making.budget).await?;
    let weighed = place.path().join(SENSITIVITY_FILE);
    let json = std::fs::read(&weighed).map_err(|error| Failure::io(&weighed, &error))?;
    let sensitivity = serde_json::from_slice(&json).map_err(|error| {
        Failure::new(Exit::Failed, format!("{}: {error}", weighed.display()), "report this")
    })?;
    let file = solve(sensitivity, budget)?;
    Ok(Chosen { file, imatrix: Some(place.path().join(IMATRIX_FILE)), collected: Some(place) })
}

/// A directory for what is needed only while a command runs.
pub(super) fn temporary() -> Result<tempfile::TempDir> {
    tempfile::tempdir().map_err(|error| Failure::io("a temporary directory".as_ref(), &error))
}

fn solve(sensitivity: Sensitivity, budget: Budget) -> Result<PlanFile> {
    let plan = sensitivity.solve(budget).map_err(|error| {
        Failure::new(Exit::Failed, error.to_string(), "allow that much, or name other --types")
    })?;
    let explained = plan.entries.iter().map(drophammer_quant::budget::Entry::explain).collect();
    let expected_kl = sensitivity.measured(plan.cost);
    Ok(PlanFile { budget, expected_kl, explained, plan, sensitivity })
}

fn read(path: &Path) -> Result<PlanFile> {
    let json = std::fs::read(path).map_err(|error| Failure::io(path, &error))?;
    serde_json::from_slice(&json).map_err(|error| {
        let message = format!("{} is not a plan that quantize --budget wrote: {error}", path.display());
        Failure::new(Exit::Unsupported, message, "make one with --budget")
    })
}

fn check_source(source: &Path, plan: &Path, sensitivity: &Sensitivity) -> Result<()> {
    let found = Source::open(source).and_then(|source| digest::source_fingerprint(&source))?;
    if found.to_string() == sensitivity.source {
        return Ok(());
    }
    let message = format!("{} was measured on another model than {}", plan.display(), source.display());
    Err(Failure::new(Exit::Usage, message, "weigh this model's own tensors with --budget"))
}

impl Chosen {
    /// The scheme that tensors outside the plan follow, and that the file says it is nearest to.
    pub(super) fn scheme(&self) -> String {
        let data = self.file.plan.bytes as f64 * 8.0 / self.file.sensitivity.parameters.max(1) as f64;
        let named = [(2.9, "q2_k"), (3.9, "q3_k_m"), (5.1, "q4_k_m"), (6.0, "q5_k_m"), (7.0, "q6_k")];
        named.iter().find(|(below, _)| data < *below).map_or("q8_0", |(_, name)| name).to_owned()
    }

    /// The plan as overrides of tensors.
    pub(super) fn overrides(&self) -> impl Iterator<Item = String> {
        let entries = self.file.plan.entries.iter();
        entries.map(|entry| format!("^{}$={}", entry.name.replace('.', "\\."), entry.chosen.dtype.name()))
    }

    /// What was measured and what is asked for, as options of a goal.
    pub(super) fn measurements(&self) -> [(String, serde_json::Value); 2] {
        let value = |document: serde_json::Result<serde_json::Value>| document.unwrap_or_default();
        [
            ("sensitivity".to_owned(), value(serde_json::to_value(&self.file.sensitivity))),
            ("budget".to_owned(), value(serde_json::to_value(self.file.budget))),
        ]
    }

    /// The statistics to quantize with.
    pub(super) fn imatrix(&self) -> Option<PathBuf> {
        self.imatrix.clone()
    }

    /// Writes the plan, and statistics that were collected for it, beside the artifact.
    pub(super) fn save(&self, artifact: &Path) -> Result<()> {
        let place = artifact.with_extension("plan.json");
        let json = serde_json::to_vec_pretty(&self.file).unwrap_or_default();
        std::fs::write(&place, json).map_err(|error| Failure::io(&place, &error))?;
        if let (Some(_), Some(from)) = (&self.collected, &self.imatrix) {
            let place = artifact.with_extension("imatrix.gguf");
            std::fs::copy(from, &place).map_err(|error| Failure::io(&place, &error))?;
        }
        print(&format!("{}: the plan, tensor by tensor\n", place.display()));
        Ok(())
    }

    /// The plan in a few lines.
    pub(super) fn summary(&self) -> String {
        let mut types: BTreeMap<&str, (u32, u64)> = BTreeMap::new();
        for entry in &self.file.plan.entries {
            let (count, bytes) = types.entry(entry.chosen.dtype.name()).or_default();
            *count += 1;
            *bytes += entry.chosen.bytes;
        }
        let lines = types
            .iter()
            .map(|(name, (count, bytes))| format!("  {count:4} tensors as {name:8} {}\n", size(*bytes)));
        let expected = format!("expected mean KL divergence {:.4} nats\n", self.file.expected_kl);
        lines.chain([expected]).collect()
    }
}
