//! One-shot `eval`, `bench` and `logits`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use drophammer_client::api::{BenchArtifact, BenchReport, EvalPosition, EvalReport, EvalTensor};
use drophammer_daemon::library::Published;
use drophammer_daemon::worker::protocol::{BenchOrder, LogitsOrder, MeasureOrder, Outcome, Work};
use drophammer_formats::Source;
use drophammer_infer::measure::PositionMean;
use drophammer_models::Checkpoint;
use drophammer_models::rope::RopeLayout;
use drophammer_quant::metrics::ErrorSums;
use drophammer_quant::presets::PRESETS;
use drophammer_sdk::{ForgeReport, LoadRequest};

use super::table::{columns, maybe, size};
use super::{answer, print, roofline};
use crate::arguments::{Bench, Eval, Logits};
use crate::artifact::Staging;
use crate::failure::{Exit, Failure, Result};
use crate::workshop::{Workshop, absolute};

pub(super) async fn eval(arguments: Eval) -> Result<()> {
    let shop = Workshop::probed().await?;
    let artifact = absolute(&arguments.artifact)?;
    let reference = arguments.reference.as_deref().map(absolute).transpose()?;
    let runner = shop.runner(&artifact, arguments.budget.backend.as_deref())?;
    let limits = shop.limits(&arguments.budget);
    let order = MeasureOrder {
        load: LoadRequest { reference: true, ..arguments.extras.load(&artifact)? },
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
    let mut report = EvalReport {
        artifact: artifact.display().to_string(),
        reference: reference.map(|path| path.display().to_string()),
        backend: runner.id(),
        perplexity: measured.perplexity,
        reference_perplexity: measured.reference_perplexity,
        kl_mean: measured.kl_mean,
        kl_p99: measured.kl_p99,
        kl_median: measured.kl_median,
        kl_max: measured.kl_max,
        top1: measured.top1,
        top5: measured.top5,
        tokens: measured.tokens,
        ..EvalReport::default()
    };
    if arguments.details {
        let mean =
            |mean: &PositionMean| EvalPosition { position: mean.position as u64, nll: mean.nll, kl: mean.kl };
        report.positions = measured.by_position.iter().map(mean).collect();
        if let Some(path) = &arguments.reference {
            report.tensors = tensor_errors(&artifact, path)?;
        }
    }
    answer(arguments.output.json, &report, |report| {
        let mut text =
            format!("perplexity            {:.4}  ({} tokens)\n", report.perplexity, report.tokens);
        if report.reference.is_some() {
            text += &format!("reference perplexity  {}\n", maybe(report.reference_perplexity, 4));
            text += &format!("mean KL divergence    {} nats\n", maybe(report.kl_mean, 6));
            text += &format!("median                {} nats\n", maybe(report.kl_median, 6));
            text += &format!("99%                   {} nats\n", maybe(report.kl_p99, 6));
            text += &format!("largest               {} nats\n", maybe(report.kl_max, 6));
            text += &format!("top-1 agreement       {}%\n", maybe(report.top1.map(|top1| top1 * 100.0), 2));
            text += &format!("top-5 agreement       {}%\n", maybe(report.top5.map(|top5| top5 * 100.0), 2));
        }
        text + &details(report)
    })
}

/// Early and late positions, then every tensor from the one that lost most.
fn details(report: &EvalReport) -> String {
    let mut text = String::new();
    if !report.positions.is_empty() {
        // A chunk in eight parts.
        let part = report.positions.len().div_ceil(8);
        let mean = |positions: &[EvalPosition], of: &dyn Fn(&EvalPosition) -> Option<f64>| {
            let values: Option<Vec<f64>> = positions.iter().map(of).collect();
            values.map(|values| values.iter().sum::<f64>() / values.len() as f64)
        };
        let row = |positions: &[EvalPosition]| {
            let (first, last) = (positions[0].position, positions[positions.len() - 1].position);
            vec![
                format!("{first}–{last}"),
                maybe(mean(positions, &|position| Some(position.nll)), 4),
                maybe(mean(positions, &|position| position.kl), 6),
            ]
        };
        let rows: Vec<_> = report.positions.chunks(part).map(row).collect();
        text += &format!("\n{}", columns(&["position", "nll", "KL"], &rows));
    }
    if !report.tensors.is_empty() {
        let mut tensors: Vec<&EvalTensor> = report.tensors.iter().collect();
        tensors.sort_by(|a, b| b.relative.total_cmp(&a.relative));
        let row = |tensor: &&EvalTensor| {
            vec![
                tensor.name.clone(),
                tensor.dtype.clone(),
                format!("{:.3e}", tensor.rmse),
                format!("{:.3e}", tensor.relative),
                format!("{:.3e}", tensor.largest),
            ]
        };
        let rows: Vec<_> = tensors.iter().map(row).collect();
        text += &format!("\n{}", columns(&["tensor", "type", "rmse", "relative", "largest"], &rows));
    }
    text
}

/// Every weight of the artifact beside the reference's, some rows at a time.
fn tensor_errors(artifact: &Path, reference: &Path) -> Result<Vec<EvalTensor>> {
    /// Numbers compared at once.
    const AT_ONCE: u64 = 1 << 20;
    // Both in one order of rotated rows.
    let open = |path: &Path| -> Result<Checkpoint> {
        let opened = Checkpoint::open(path).map_err(|error| {
            let message = format!("{}: {error}", path.display());
            Failure::new(
                Exit::Unsupported,
                message,
                "details of tensors need formats that this program reads",
            )
        })?;
        Ok(opened.with_layout(RopeLayout::Halves))
    };
    let (artifact, reference) = (open(artifact)?, open(reference)?);
    let failed = |error: drophammer_models::Error| {
        Failure::new(Exit::Failed, error.to_string(), "check that both are the same model")
    };
    let mut errors = Vec::new();
    for weight in reference.weights() {
        let (ours, theirs) =
            (artifact.weight(weight.id).map_err(failed)?, reference.weight(weight.id).map_err(failed)?);
        if ours.rows() != theirs.rows() || ours.columns() != theirs.columns() {
            let message = format!("{} has another shape in the reference", weight.id);
            return Err(Failure::new(Exit::Usage, message, "compare an artifact with what it was made from"));
        }
        let (rows, columns) = (ours.rows(), ours.columns());
        let at_once = (AT_ONCE / columns.max(1)).clamp(1, rows.max(1));
        let mut sums = ErrorSums::default();
        let mut buffers = [Vec::new(), Vec::new()];
        let mut row = 0;
        while row < rows {
            let end = (row + at_once).min(rows);
            for (buffer, weight) in buffers.iter_mut().zip([&theirs, &ours]) {
                buffer.resize(((end - row) * columns) as usize, 0.0);
                weight.read(row..end, buffer).map_err(failed)?;
                weight.release_rows(row..end);
            }
            sums = sums + ErrorSums::between(&buffers[0], &buffers[1], None);
            row = end;
        }
        errors.push(EvalTensor {
            name: weight.id.to_string(),
            dtype: ours.dtype().to_string(),
            elements: sums.count,
            rmse: sums.rmse(),
            relative: sums.relative(),
            largest: sums.largest,
        });
    }
    Ok(errors)
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
            load: LoadRequest { context: Some(context), ..arguments.extras.load(&path)? },
            prompt: arguments.prompt,
            generate: arguments.generate,
            repetitions: arguments.repetitions,
        };
        let verbose = arguments.budget.verbose;
        let finished = shop.work(runner, limits, Work::Bench(order.clone()), verbose).await?;
        let Outcome::Benched(benched) = finished.outcome else { return Err(unexpected()) };
        let roofline = if benched.profiles {
            let profiled = shop.work(runner, limits, Work::Profile(order), verbose).await?;
            let Outcome::Profiled(roofline) = profiled.outcome else { return Err(unexpected()) };
            let tokens = (benched.bench.prefill.tokens, benched.bench.decode.tokens);
            roofline.map(|roofline| roofline::of(&roofline, tokens))
        } else {
            None
        };
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
            roofline,
            ..BenchArtifact::default()
        });
    }
    compare(&mut report.artifacts);
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
                times(artifact.prefill_speedup),
                times(artifact.decode_speedup),
            ]
        };
        let rows: Vec<_> = report.artifacts.iter().map(row).collect();
        let rooflines: String =
            report.artifacts.iter().map(|artifact| roofline::text(artifact, arguments.profile)).collect();
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
                "prefill/F16",
                "decode/F16",
            ],
            &rows,
        ) + &rooflines
    })
}

pub(super) async fn logits(arguments: Logits) -> Result<()> {
    let shop = Workshop::probed().await?;
    let source = absolute(&arguments.source)?;
    let runner = shop.runner(&source, arguments.budget.backend.as_deref())?;
    let staging = Staging::beside(&arguments.output)?;
    let order = LogitsOrder {
        load: LoadRequest { reference: true, ..arguments.extras.load(&source)? },
        tokens: absolute(&arguments.tokens)?,
        staging: staging.path().to_path_buf(),
    };
    let limits = shop.limits(&arguments.budget);
    shop.work(runner, limits, Work::Logits(order), arguments.budget.verbose).await?;
    let made = ForgeReport { files: vec![PathBuf::from("logits.safetensors")], ..ForgeReport::default() };
    print(&format!("{}\n", staging.publish(&made)?.display()));
    Ok(())
}

fn unexpected() -> Failure {
    Failure::new(Exit::Failed, "the worker answered with something else than was asked for", "report this")
}

/// Speeds beside those of the artifact at F16 that the same backend ran, if one of them is that.
fn compare(artifacts: &mut [BenchArtifact]) {
    let plain: Vec<BenchArtifact> = artifacts
        .iter()
        .filter(|artifact| matches!(artifact.scheme.as_str(), "f16" | "fp16"))
        .cloned()
        .collect();
    for artifact in artifacts {
        let Some(plain) = plain.iter().find(|plain| plain.backend == artifact.backend) else { continue };
        let ratio = |ours: f64, theirs: f64| (theirs > 0.0).then(|| ours / theirs);
        artifact.prefill_speedup = ratio(artifact.prefill_tps, plain.prefill_tps);
        artifact.decode_speedup = ratio(artifact.decode_tps, plain.decode_tps);
    }
}

/// A multiple, `1.98×`.
fn times(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| maybe(None, 2), |ratio| format!("{ratio:.2}×"))
}

/// An artifact's scheme: what its manifest in the library says, or what a GGUF file says of itself, or how most of its
/// weights are stored.
fn scheme(path: &Path) -> Option<String> {
    let directory = if path.is_dir() { path } else { path.parent()? };
    if let Ok(published) = Published::read(directory.to_owned()) {
        return Some(published.manifest.target.scheme);
    }
    let source = Source::open(path).ok()?;
    let told = source.metadata().u64("general.file_type");
    if let Some(preset) = PRESETS.iter().find(|preset| Some(u64::from(preset.file_type)) == told) {
        return Some(preset.name.to_owned());
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_told_beside_f16_of_the_same_backend_and_only_beside_that() {
        let artifact = |backend: &str, scheme: &str, tps: f64| BenchArtifact {
            backend: backend.into(),
            scheme: scheme.into(),
            prefill_tps: 10.0 * tps,
            decode_tps: tps,
            ..BenchArtifact::default()
        };
        let mut artifacts = [
            artifact("a", "q4_0", 30.0),
            artifact("a", "f16", 10.0),
            artifact("b", "int4", 7.0),
            artifact("b", "fp16", 0.0),
            artifact("c", "f16", 5.0),
        ];
        compare(&mut artifacts);
        let decode: Vec<_> = artifacts.iter().map(|artifact| artifact.decode_speedup).collect();
        assert_eq!(decode, [Some(3.0), Some(1.0), None, None, Some(1.0)]);
        assert_eq!(artifacts[0].prefill_speedup, Some(3.0));
        assert_eq!((times(decode[0]), times(decode[2])), ("3.00×".into(), "–".into()));
    }
}
