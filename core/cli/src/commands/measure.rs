//! One-shot `eval`, `bench` and `logits`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use drophammer_client::api::{BenchArtifact, BenchReport, EvalReport};
use drophammer_daemon::worker::protocol::{BenchOrder, LogitsOrder, MeasureOrder, Outcome, Work};
use drophammer_formats::Source;
use drophammer_sdk::{ForgeReport, LoadRequest};

use super::table::{columns, maybe, size};
use super::{answer, print};
use crate::arguments::{Bench, Eval, Logits};
use crate::artifact::Staging;
use crate::failure::{Exit, Failure, Result};
use crate::workshop::Workshop;

pub(super) async fn eval(arguments: Eval) -> Result<()> {
    let shop = Workshop::probed().await?;
    let artifact = absolute(&arguments.artifact)?;
    let reference = arguments.reference.as_deref().map(absolute).transpose()?;
    let runner = shop.runner(&artifact, arguments.budget.backend.as_deref())?;
    let limits = shop.limits(&arguments.budget);
    let order = MeasureOrder {
        load: LoadRequest { path: artifact.clone(), reference: true, ..LoadRequest::default() },
        vocabulary: [Some(artifact.clone()), reference.clone()].into_iter().flatten().collect(),
        text: arguments.text.as_deref().map(absolute).transpose()?,
        most_tokens: arguments.tokens,
    };
    let task = shop.task(runner, limits, Work::Measure(order));
    let running = match &reference {
        None => shop.supervisor.start(task).await?,
        Some(path) => {
            let lender = shop.runner(path, None)?;
            let load = LoadRequest { path: path.clone(), reference: true, ..LoadRequest::default() };
            shop.supervisor.start_compared(task, shop.task(lender, limits, Work::Lend(load))).await?
        }
    };
    let Outcome::Measured(measured) = shop.follow(running, arguments.budget.verbose).await?.outcome else {
        return Err(unexpected());
    };
    let report = EvalReport {
        artifact: artifact.display().to_string(),
        reference: reference.map(|path| path.display().to_string()),
        backend: runner.id(),
        perplexity: measured.perplexity,
        reference_perplexity: measured.reference_perplexity,
        kl_mean: measured.kl_mean,
        kl_p99: measured.kl_p99,
        top1: measured.top1,
        tokens: measured.tokens,
    };
    answer(arguments.output.json, &report, |report| {
        let mut text =
            format!("perplexity            {:.4}  ({} tokens)\n", report.perplexity, report.tokens);
        if report.reference.is_some() {
            text += &format!("reference perplexity  {}\n", maybe(report.reference_perplexity, 4));
            text += &format!("mean KL divergence    {} nats\n", maybe(report.kl_mean, 6));
            text += &format!("99% KL divergence     {} nats\n", maybe(report.kl_p99, 6));
            text += &format!("top-1 agreement       {}%\n", maybe(report.top1.map(|top1| top1 * 100.0), 2));
        }
        text
    })
}

pub(super) async fn bench(arguments: Bench) -> Result<()> {
    let shop = Workshop::probed().await?;
    let limits = shop.limits(&arguments.budget);
    let mut report = BenchReport::default();
    for path in &arguments.artifacts {
        let path = absolute(path)?;
        let runner = shop.runner(&path, arguments.budget.backend.as_deref())?;
        let context = arguments.prompt.max(arguments.generate);
        let order = BenchOrder {
            load: LoadRequest { path: path.clone(), context: Some(context), ..LoadRequest::default() },
            prompt: arguments.prompt,
            generate: arguments.generate,
            repetitions: arguments.repetitions,
        };
        let finished = shop.work(runner, limits, Work::Bench(order), arguments.budget.verbose).await?;
        let Outcome::Benched(benched) = finished.outcome else { return Err(unexpected()) };
        report.artifacts.push(BenchArtifact {
            backend: runner.id(),
            scheme: scheme(&path).unwrap_or_default(),
            bytes: bytes(&path),
            path: path.display().to_string(),
            threads: benched.threads,
            load_seconds: benched.load_seconds,
            prefill_tps: benched.bench.prefill.median_tps,
            decode_tps: benched.bench.decode.median_tps,
            peak_memory_bytes: finished.peak_memory_bytes.unwrap_or(0),
        });
    }
    answer(arguments.output.json, &report, |report| {
        let row = |artifact: &BenchArtifact| {
            vec![
                artifact.path.clone(),
                artifact.backend.clone(),
                artifact.scheme.clone(),
                size(artifact.bytes),
                artifact.threads.to_string(),
                format!("{:.2}", artifact.load_seconds),
                format!("{:.1}", artifact.prefill_tps),
                format!("{:.1}", artifact.decode_tps),
                size(artifact.peak_memory_bytes),
            ]
        };
        let rows: Vec<_> = report.artifacts.iter().map(row).collect();
        columns(
            &[
                "artifact",
                "backend",
                "scheme",
                "size",
                "threads",
                "load s",
                "prefill t/s",
                "decode t/s",
                "memory",
            ],
            &rows,
        )
    })
}

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

fn unexpected() -> Failure {
    Failure::new(Exit::Failed, "the worker answered with something else than was asked for", "report this")
}

/// How most of an artifact's weights are stored.
fn scheme(path: &Path) -> Option<String> {
    let source = Source::open(path).ok()?;
    let mut weights: BTreeMap<String, u64> = BTreeMap::new();
    for tensor in source.tensors() {
        *weights.entry(tensor.dtype.to_string()).or_default() += tensor.elements();
    }
    weights.into_iter().max_by_key(|(_, count)| *count).map(|(name, _)| name)
}

/// Size of a file, or of all files below a directory.
fn bytes(path: &Path) -> u64 {
    let Ok(meta) = std::fs::metadata(path) else { return 0 };
    if !meta.is_dir() {
        return meta.len();
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| bytes(&entry.path())).fold(0, u64::saturating_add)
}
