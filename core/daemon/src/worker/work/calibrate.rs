//! What a model does on a calibration text: which of its inputs are strong, and what storing a tensor in fewer bits costs it.

use std::collections::BTreeMap;
use std::path::Path;

use drophammer_formats::{DType, digest};
use drophammer_infer::measure::{
    CALIBRATION_TEXT, LogitSource, MeasureError, Protocol, SessionSource, measure,
};
use drophammer_models::Checkpoint;
use drophammer_models::export::gguf::GgufExport;
use drophammer_quant::importance::{Columns, Importance};
use drophammer_quant::pass::RowSource;
use drophammer_quant::presets;
use drophammer_quant::sensitivity::{self, Budget, Check, Sensitivity};
use drophammer_sdk::calibration::{self, Calibrate};
use drophammer_sdk::host::Plugin;
use drophammer_sdk::{BackendError, Batch, ErrorCode, JobContext, LoadRequest, OutputKind, Result, Session};

use super::measure::{failed, text, tokenizer};
use super::products::Products;
use super::{format, load};
use crate::worker::line::WorkerJob;
use crate::worker::protocol::{CalibrateOrder, Calibrated, IMATRIX_FILE, SENSITIVITY_FILE};

/// Tokens of a chunk of calibration text.
const CHUNK: usize = 256;
/// Chunks that go through the model together, each as a sequence of its own: weights are unpacked once for all.
const TOGETHER: usize = 4;
/// Of so many tokens one is asked for its logits. The head's inputs are counted for those alone: its statistics need no more rows,
/// and it is as wide as the vocabulary.
const LOGITS_OF: usize = 4;
/// Tokens that probes read, together: enough to rank tensors, few enough to try each.
const PROBE_TOKENS: std::ops::RangeInclusive<u64> = 64..=512;
/// Tokens times parameters that one probe may cost.
const PROBE_WORK: u64 = 8_600_000_000;
/// Logits kept to compare probes with, bytes.
const KEPT_LOGITS: u64 = 256 << 20;

/// Collects statistics (or reads those at hand) and, where the order names types, weighs every tensor.
pub(super) fn calibrate(plugin: &Plugin, order: &CalibrateOrder, job: &WorkerJob) -> Result<Calibrated> {
    job.progress("load", "", 0, 0);
    let tokenizer = tokenizer(&order.vocabulary)?;
    let text = text(order.text.as_deref(), CALIBRATION_TEXT)?;
    let mut tokens = tokenizer.encode(&text, false).map_err(|error| failed(&error.into()))?;
    tokens.truncate(order.most_tokens);
    // Nothing longer than a chunk is read, so nothing longer need be remembered.
    let place = &order.load.path;
    let most = Checkpoint::open(place).map_err(|error| invalid(place, &error))?.description().context;
    let context = Some(order.load.context.unwrap_or(most).min(most).min(CHUNK as u32));
    let request = LoadRequest { context, max_sequences: TOGETHER as u32, ..order.load.clone() };
    let mut session = load(plugin, &request, job)?;
    let bench = calibration::of(session.as_ref()).ok_or_else(|| {
        BackendError::new(ErrorCode::UnsupportedInput, "this backend's sessions do not calibrate")
            .with_help("Use a backend that does, such as the native one: --backend native.")
    })?;
    let limits = session.limits();
    let chunk = CHUNK.min(limits.context.min(limits.max_batch) as usize);
    let chunks = Protocol { chunk, most_tokens: order.most_tokens }.chunks(&tokens);
    let chunks = chunks.map_err(|error| failed(&error))?.len();
    let place = order.staging.join(IMATRIX_FILE);
    let importance = if let Some(path) = &order.imatrix {
        let importance = Importance::read(path).map_err(|error| invalid(path, &error))?;
        importance.write(&place).map_err(|error| invalid(&place, &error))?;
        importance
    } else {
        let dataset = order.text.as_deref().map_or_else(
            || "drophammer's calibration text".to_owned(),
            |path| path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        );
        let mut reading = Reading { session: session.as_mut(), text: &tokens[..chunks * chunk], chunk, job };
        let products = order.products.then(|| Products::plan(order, job)).transpose()?;
        let matrices = match &products {
            Some(products) => products.collect(&bench, &mut reading)?,
            None => observe(&bench, &mut reading)?,
        };
        let (chunks, chunk_tokens) = (chunks as u32, chunk as u32);
        let importance = Importance { matrices, datasets: vec![dataset], chunks, chunk_tokens };
        match products {
            Some(products) => products.write(&importance, &place)?,
            None => importance.write(&place).map_err(|error| invalid(&place, &error))?,
        }
        importance
    };
    let weighed = match &order.types {
        None => None,
        Some(types) => {
            let mut weigher = Weigher::new(order, session.as_mut(), &bench, importance, &tokens, job)?;
            let sensitivity = weigher.weigh(&types_of(types)?)?;
            let json = serde_json::to_vec_pretty(&sensitivity).unwrap_or_default();
            let place = order.staging.join(SENSITIVITY_FILE);
            std::fs::write(&place, json).map_err(|error| super::io(&place, &error))?;
            Some(sensitivity.tensors.len())
        }
    };
    Ok(Calibrated { tokens: (chunks * chunk) as u64, weighed })
}

fn types_of(names: &[String]) -> Result<Vec<DType>> {
    if names.is_empty() {
        return Ok(sensitivity::USUAL_TYPES.to_vec());
    }
    let known = |name: &String| {
        let found = DType::from_name(&name.to_ascii_lowercase());
        found.filter(|dtype| drophammer_quant::codec(*dtype).is_some()).ok_or_else(|| {
            let message = format!("{name:?} is not a type that weights are stored as");
            BackendError::new(ErrorCode::InvalidRequest, message)
                .with_help("Types are written like q4_k, iq4_xs, f16.")
        })
    };
    names.iter().map(known).collect()
}

/// A calibration text and who reads it.
pub(super) struct Reading<'a> {
    session: &'a mut dyn Session,
    text: &'a [u32],
    chunk: usize,
    job: &'a WorkerJob,
}

impl Reading<'_> {
    /// Runs the text through the session: this round, counted from 0, of so many.
    pub(super) fn read(&mut self, round: usize, rounds: usize) -> Result<()> {
        let (session, chunk) = (&mut *self.session, self.chunk);
        let limits = session.limits();
        let width = limits.output_width as usize;
        // An encoder gives all it has computed.
        let every = if limits.output_kind == OutputKind::Hidden { 1 } else { LOGITS_OF };
        let at_once = (limits.max_batch as usize / chunk).min(limits.max_sequences as usize).max(1) * chunk;
        let whole = (self.text.len() * rounds) as u64;
        let mut rows = Vec::new();
        for (number, tokens) in self.text.chunks(at_once).enumerate() {
            self.job.check()?;
            self.job.progress("observe", "", (round * self.text.len() + number * at_once) as u64, whole);
            let count = tokens.len() as u32;
            let (positions, sequences): (Vec<u32>, Vec<u32>) =
                (0..count).map(|i| (i % chunk as u32, i / chunk as u32)).unzip();
            let outputs: Vec<u32> = (0..count).skip(every - 1).step_by(every).collect();
            for sequence in 0..limits.max_sequences {
                session.remove(sequence, 0, u32::MAX)?;
            }
            rows.resize(outputs.len() * width, 0.0);
            let batch = Batch { tokens, positions: &positions, sequences: &sequences, outputs: &outputs };
            session.forward(batch, &mut rows)?;
        }
        Ok(())
    }
}

/// Counts while the text is read.
fn observe(bench: &dyn Calibrate, reading: &mut Reading<'_>) -> Result<BTreeMap<String, Columns>> {
    bench.observe(true)?;
    reading.read(0, 1)?;
    let usage = usage(bench)?;
    bench.observe(false)?;
    Ok(usage)
}

/// What was counted.
pub(super) fn usage(bench: &dyn Calibrate) -> Result<BTreeMap<String, Columns>> {
    let columns =
        |usage: calibration::Usage| (usage.name, Columns { sums: usage.sums, counts: usage.counts });
    Ok(bench.usage()?.into_iter().map(columns).collect())
}

/// The logits that probes are compared with, chunk after chunk.
struct Kept {
    rows: Vec<f32>,
    width: usize,
    next: usize,
}

impl LogitSource for Kept {
    fn width(&self) -> usize {
        self.width
    }

    fn begin(&mut self, _: &[u32]) -> std::result::Result<(), MeasureError> {
        self.next %= self.rows.len();
        Ok(())
    }

    fn next_rows(&mut self, rows: &mut [f32]) -> std::result::Result<(), MeasureError> {
        let end = self.next + rows.len();
        let kept = self.rows.get(self.next..end);
        let found = self.rows.len().saturating_sub(self.next);
        rows.copy_from_slice(kept.ok_or(MeasureError::OutOfStep { found, expected: rows.len() })?);
        self.next = end;
        Ok(())
    }
}

/// Stores one tensor after another in fewer bits and hears what the model says.
struct Weigher<'a> {
    session: &'a mut dyn Session,
    bench: &'a dyn Calibrate,
    job: &'a WorkerJob,
    export: GgufExport,
    importance: BTreeMap<String, drophammer_quant::pass::Importance>,
    tokens: &'a [u32],
    protocol: Protocol,
    kept: Kept,
}

impl<'a> Weigher<'a> {
    fn new(
        order: &CalibrateOrder,
        session: &'a mut dyn Session,
        bench: &'a dyn Calibrate,
        importance: Importance,
        tokens: &'a [u32],
        job: &'a WorkerJob,
    ) -> Result<Self> {
        let place = &order.load.path;
        let checkpoint = Checkpoint::open(place).map_err(|error| invalid(place, &error))?;
        let export = GgufExport::new(checkpoint).map_err(|error| invalid(place, &error))?;
        let matrices: Vec<(&str, usize)> =
            export.matrices().map(|(name, shape, _)| (name, columns(shape))).collect();
        importance.check(matrices).map_err(|error| invalid(place, &error))?;
        let parameters = parameters(&export);
        let width = session.limits().output_width as usize;
        let fit = (KEPT_LOGITS / (4 * width as u64)).max(2);
        let wanted =
            (PROBE_WORK / parameters.max(1)).clamp(*PROBE_TOKENS.start(), *PROBE_TOKENS.end()).min(fit);
        let wanted = (wanted as usize).min(tokens.len());
        // Several chunks hear more of a text than one.
        let chunk = (wanted / 2).clamp(2, CHUNK.min(session.limits().context as usize));
        let protocol = Protocol { chunk, most_tokens: wanted };
        let chunks = protocol.chunks(tokens).map_err(|error| failed(&error))?;
        let mut rows = vec![0.0; chunks.len() * (chunk - 1) * width];
        let mut source = SessionSource::new(session).map_err(|error| failed(&error))?;
        for (chunk, rows) in chunks.zip(rows.chunks_exact_mut((protocol.chunk - 1) * width)) {
            source.begin(chunk).and_then(|()| source.next_rows(rows)).map_err(|error| failed(&error))?;
        }
        let kept = Kept { rows, width, next: 0 };
        let importance = importance.weights();
        Ok(Self { session, bench, job, export, importance, tokens, protocol, kept })
    }

    /// The model's divergence with what was replaced since the last time; all is as it was afterwards.
    fn divergence(&mut self) -> Result<f64> {
        self.job.check()?;
        let mut source = SessionSource::new(self.session).map_err(|error| failed(&error))?;
        let kept = Some(&mut self.kept as &mut dyn LogitSource);
        let found = measure(&mut source, kept, self.tokens, &self.protocol, &mut |_| true);
        self.bench.restore()?;
        found.map(|found| found.kl_mean.unwrap_or(0.0)).map_err(|error| failed(&error))
    }

    fn replace(&self, name: &str, dtype: DType) -> Result<()> {
        let importance = self.importance.get(name).map_or(&[][..], |importance| &importance.0);
        self.bench.replace(name, dtype.name(), importance)
    }

    fn weigh(&mut self, types: &[DType]) -> Result<Sensitivity> {
        let source = self.export.checkpoint().source().clone();
        let digest = digest::source_fingerprint(&source).map_err(format)?;
        let tensors: Vec<(String, [u64; 2])> = self
            .export
            .matrices()
            .filter(|(name, shape, _)| !presets::stays_unquantized(name, shape))
            .map(|(name, shape, _)| (name.to_owned(), rows_and_columns(shape)))
            .collect();
        let mut items = Vec::with_capacity(tensors.len());
        for (number, (name, shape)) in tensors.iter().enumerate() {
            self.job.progress("weigh", name, number as u64, tensors.len() as u64);
            let Some(rows) = self.export.rows(name) else { continue };
            let probe = sensitivity::probe_type(shape[1]);
            let mut measured = types.to_vec();
            if !measured.contains(&probe) {
                measured.push(probe);
            }
            let weights = self.importance.get(name).map_or(&[][..], |importance| &importance.0);
            let errors = sensitivity::errors(&rows as &dyn RowSource, *shape, weights, &measured);
            let errors = errors.map_err(|error| {
                BackendError::new(ErrorCode::InvalidInput, format!("tensor `{name}`: {error}"))
            })?;
            drop(rows);
            if errors.is_empty() {
                continue; // rows that no block fits stay as they are
            }
            let divergence = if errors.iter().any(|(dtype, _)| *dtype == probe) {
                self.replace(name, probe)?;
                self.divergence()?
            } else {
                0.0
            };
            let mut item = sensitivity::item(name, *shape, &errors, divergence);
            item.candidates.retain(|candidate| types.contains(&candidate.dtype));
            items.push(item);
        }
        let parameters = parameters(&self.export);
        let fixed_bytes = self.fixed_bytes(&items)?;
        let tokens = self.kept.rows.len() as u64 / self.kept.width as u64;
        let source = digest.to_string();
        let mut sensitivity =
            Sensitivity { source, parameters, fixed_bytes, tokens, tensors: items, checks: Vec::new() };
        for bits in [3.0, 4.0, 5.0, 6.0] {
            if let Some(check) = self.check(&sensitivity, bits)? {
                sensitivity.checks.push(check);
            }
        }
        sensitivity.checks.sort_by(|a, b| a.predicted.total_cmp(&b.predicted));
        Ok(sensitivity)
    }

    /// Measures a whole plan of about so many bits per weight.
    fn check(&mut self, sensitivity: &Sensitivity, bits: f64) -> Result<Option<Check>> {
        let Ok(plan) = sensitivity.solve(Budget::BitsPerWeight(bits)) else { return Ok(None) };
        self.job.progress("check", "", 0, 0);
        for entry in &plan.entries {
            self.replace(&entry.name, entry.chosen.dtype)?;
        }
        let measured = self.divergence()?;
        Ok(Some(Check { predicted: plan.cost, measured }))
    }

    /// Bytes of the file that no choice changes, padding of tensors included.
    fn fixed_bytes(&self, items: &[drophammer_quant::budget::Item]) -> Result<u64> {
        let preset = presets::preset("f32")
            .ok_or_else(|| BackendError::new(ErrorCode::Failed, "the f32 preset is gone"))?;
        let tensors = self.export.declare(preset, true, &[]);
        let place = self.export.checkpoint().source().root().to_owned();
        let tokenizer = self.export.checkpoint().has_tokenizer();
        let metadata = self.export.metadata(preset, tokenizer).map_err(|error| invalid(&place, &error))?;
        let layout = drophammer_formats::gguf::plan("model", &metadata, &tensors, None)
            .map_err(|fault| invalid(&place, &fault))?;
        let chosen: u64 = tensors
            .iter()
            .zip(&layout.places)
            .filter(|(tensor, _)| items.iter().any(|item| item.name == tensor.name))
            .map(|(_, place)| place.len)
            .sum();
        Ok(layout.total_bytes() - chosen + 32 * items.len() as u64)
    }
}

fn parameters(export: &GgufExport) -> u64 {
    export.matrices().map(|(_, shape, _)| shape.iter().product::<u64>()).sum()
}

fn rows_and_columns(shape: &[u64]) -> [u64; 2] {
    let (columns, outer) = shape.split_last().map_or((1, &[][..]), |(columns, outer)| (*columns, outer));
    [outer.iter().product(), columns]
}

/// Columns times experts.
fn columns(shape: &[u64]) -> usize {
    let stacked: u64 = shape.iter().rev().skip(2).product();
    usize::try_from(shape.last().map_or(1, |columns| columns * stacked)).unwrap_or(usize::MAX)
}

pub(super) fn invalid(path: &Path, error: &impl std::fmt::Display) -> BackendError {
    BackendError::new(ErrorCode::InvalidInput, format!("{}: {error}", path.display()))
}
