//! Quantized artifacts, by the engine of the user's choice: ours, straight from the source, or llama.cpp's own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use drophammer_forge::{failure, gguf};
use drophammer_formats::{DType, Source, SourceKind};
use drophammer_quant::importance::Importance;
use drophammer_sdk::{
    BackendError, ErrorCode, ForgeReport, ForgeRequest, Goal, JobContext, LogLevel, Result,
};
use serde_json::Value;

use crate::ffi::log;
use crate::ffi::quantize::{Order, quantize as upstream_quantize};

/// How often a running quantizer's job is asked whether it goes on.
const PATIENCE: Duration = Duration::from_millis(100);

/// Who quantizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Drophammer,
    Upstream,
}

/// Makes a GGUF file. Options: `engine` (`drophammer`, the default, or `upstream`), `overrides` (a list of PATTERN=TYPE),
/// `dry_run` (report only, nothing is written).
///
/// # Errors
/// As for [`gguf::quantize`]; for `upstream` also the library's own words.
pub(crate) fn quantize(request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
    job.check()?;
    let engine = match request.goal.options.get("engine").map(Value::as_str) {
        None | Some(Some("drophammer")) => Engine::Drophammer,
        Some(Some("upstream")) => Engine::Upstream,
        Some(_) => {
            let message = format!("option `engine` is {}", request.goal.options["engine"]);
            return Err(BackendError::new(ErrorCode::InvalidRequest, message)
                .with_help("Choose one of: drophammer, upstream."));
        }
    };
    let dry_run = request.goal.options.get("dry_run").and_then(Value::as_bool) == Some(true);
    match engine {
        Engine::Drophammer if dry_run => Ok(gguf::plan(request)?.report()),
        Engine::Drophammer => gguf::quantize(request, job),
        Engine::Upstream => upstream(request, dry_run, job),
    }
}

fn upstream(request: &ForgeRequest, dry_run: bool, job: &dyn JobContext) -> Result<ForgeReport> {
    let preset = gguf::preset_of(&request.goal)?;
    let order = Order {
        file_type: preset.file_type,
        threads: job.budgets().threads.max(1),
        importance: importance(request)?,
        overrides: overrides(&request.goal)?,
        dry_run,
    };
    let (input, mut notes, made) = input(request, job)?;
    let output = request.staging.join(format!("{}.gguf", request.name));
    let lines = run(input, output.clone(), order, job)?;
    if let Some(directory) = made {
        std::fs::remove_dir_all(&directory).map_err(|error| {
            BackendError::new(ErrorCode::Failed, format!("{}: {error}", directory.display()))
        })?;
    }
    notes.extend(lines);
    if dry_run {
        // The library told its plan line by line; sizes are those of our own plan, which is the same.
        let plan = gguf::plan(request)?;
        let mut report = plan.report();
        report.notes.extend(notes);
        return Ok(report);
    }
    let made = Source::open(&output).map_err(|error| failure::of_source(&error))?;
    Ok(report(&made, &output, notes))
}

/// What the library is given: the source itself where it is one GGUF file, else one at the source's own precision, in a
/// directory to be removed afterwards.
fn input(request: &ForgeRequest, job: &dyn JobContext) -> Result<(PathBuf, Vec<String>, Option<PathBuf>)> {
    let source = Source::open(&request.source).map_err(|error| failure::of_source(&error))?;
    let matrices = || source.tensors().iter().filter(|tensor| tensor.shape.len() > 1);
    if source.kind() == SourceKind::Gguf && request.adapters.is_empty() {
        crate::check::model(&request.source)?;
        let first = source.files().next().unwrap_or(&request.source).to_owned();
        let quantized = matrices().filter(|tensor| tensor.dtype.is_block()).count();
        let note = format!("{quantized} tensors were quantized before: they are quantized a second time");
        return Ok((first, if quantized > 0 { vec![note] } else { Vec::new() }, None));
    }
    let scheme = if matrices().all(|tensor| tensor.dtype == DType::BF16) {
        "bf16"
    } else if matrices().all(|tensor| tensor.dtype == DType::F16) {
        "f16"
    } else {
        "f32"
    };
    let directory = request.staging.join("intermediate");
    std::fs::create_dir_all(&directory)
        .map_err(|error| BackendError::new(ErrorCode::Failed, format!("{}: {error}", directory.display())))?;
    let plain = ForgeRequest {
        goal: Goal { format: "gguf".into(), scheme: scheme.into(), ..Goal::default() },
        staging: directory.clone(),
        imatrix: None,
        ..request.clone()
    };
    let report = gguf::convert(&plain, job)?;
    let file = report.files.first().map(|file| directory.join(file)).unwrap_or_default();
    Ok((file, vec![format!("llama.cpp quantized it from an intermediate file in {scheme}")], Some(directory)))
}

/// Runs the quantizer on a thread of its own, while this one hears of it and may leave. A cancelled quantizer works on until
/// its process ends, which a worker's does right away: the library offers no other way. Gives its warnings.
fn run(input: PathBuf, output: PathBuf, order: Order, job: &dyn JobContext) -> Result<Vec<String>> {
    let (tell, hear) = channel::<(LogLevel, String)>();
    log::listen(Arc::new(move |level, line| drop(tell.send((level, line.to_owned())))));
    let (done, end) = channel();
    let work = move || drop(done.send(upstream_quantize(&input, &output, &order)));
    std::thread::Builder::new().name("quantize".into()).spawn(work).map_err(|error| {
        BackendError::new(ErrorCode::OutOfResources, format!("a thread cannot be started: {error}"))
            .with_help("Close other programs.")
    })?;
    let mut warnings = Vec::new();
    let mut note = |(level, line): (LogLevel, String)| {
        if let Some((tensor, number, of)) = progress(&line) {
            job.progress("quantizing", tensor, number, of);
        }
        if level == LogLevel::Warning {
            warnings.push(line.clone());
        }
        job.log(level, &line);
    };
    let result = loop {
        match hear.recv_timeout(PATIENCE) {
            Ok(line) => note(line),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        if let Ok(result) = end.try_recv() {
            break result;
        }
        job.check()?;
    };
    hear.try_iter().for_each(note);
    log::listen(Arc::new(|_, _| {}));
    result.map(|()| warnings)
}

/// Reads `[   3/ 272] blk.0.attn_k.weight - …`.
fn progress(line: &str) -> Option<(&str, u64, u64)> {
    let (numbers, rest) = line.trim_start().strip_prefix('[')?.split_once(']')?;
    let (number, of) = numbers.split_once('/')?;
    let tensor = rest.split_whitespace().next()?;
    Some((tensor, number.trim().parse().ok()?, of.trim().parse().ok()?))
}

/// Mean squares per tensor, expert after expert.
fn importance(request: &ForgeRequest) -> Result<Vec<(String, Vec<f32>)>> {
    let Some(path) = &request.imatrix else { return Ok(Vec::new()) };
    let read = Importance::read(path).map_err(|error| {
        BackendError::new(ErrorCode::InvalidInput, error.to_string())
            .with_help("Use an importance matrix of this very model, in GGUF form.")
    })?;
    let matrix = |(name, columns): (String, drophammer_quant::importance::Columns)| {
        let experts = (0..columns.counts.len()).filter_map(|expert| columns.mean_squares(expert));
        (name, experts.flatten().collect())
    };
    Ok(read.matrices.into_iter().map(matrix).collect())
}

/// `overrides`: a list of `PATTERN=TYPE`, the types by ggml's numbers.
fn overrides(goal: &Goal) -> Result<Vec<(String, u32)>> {
    let invalid = |what: &str| {
        BackendError::new(
            ErrorCode::InvalidRequest,
            format!("override {what:?} is not of the form PATTERN=TYPE"),
        )
        .with_help("Write overrides like attn_v=q8_0.")
    };
    let list = goal.options.get("overrides").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    list.iter()
        .map(|item| {
            let text = item.as_str().unwrap_or_default();
            let (pattern, dtype) = text.rsplit_once('=').ok_or_else(|| invalid(text))?;
            let dtype = DType::from_name(&dtype.trim().to_lowercase()).and_then(DType::ggml_id);
            Ok((pattern.trim().to_owned(), dtype.ok_or_else(|| invalid(text))?))
        })
        .collect()
}

/// What lies in the finished file.
fn report(made: &Source, output: &Path, notes: Vec<String>) -> ForgeReport {
    let parameters: u64 = made.tensors().iter().map(drophammer_formats::TensorInfo::elements).sum();
    let mut report = ForgeReport {
        files: vec![output.file_name().unwrap_or_default().into()],
        bytes: std::fs::metadata(output).map_or(0, |metadata| metadata.len()),
        bits_per_weight: made.tensor_bytes() as f64 * 8.0 / parameters.max(1) as f64,
        parameters,
        notes,
        ..ForgeReport::default()
    };
    for tensor in made.tensors() {
        *report.types.entry(tensor.dtype.name().to_owned()).or_default() += 1;
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_the_quantizers_lines() {
        let line =
            "[   3/ 272]               blk.0.attn_k.weight - [  576,   192,     1,     1], type =    f16, ";
        assert_eq!(progress(line), Some(("blk.0.attn_k.weight", 3, 272)));
        assert_eq!(progress("llama_model_quantize_impl: model size = 1.0 MiB"), None);
    }
}
