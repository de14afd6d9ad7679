//! Making OpenVINO directories: what a goal comes to, decided from headers alone, and the one pass that does it.
//!
//! `convert` and `quantize` are the same pass: rows go from the source straight into the constants of the IR.

use std::collections::{BTreeMap, HashSet};

use drophammer_forge::equalize::{Scaling, equalize};
use drophammer_forge::{Recipe, failure};
use drophammer_formats::layout::{FilePlan, Layout, Place};
use drophammer_formats::openvino::{ALIGNMENT, Element};
use drophammer_formats::{DType, TensorDecl};
use drophammer_models::rope::RopeLayout;
use drophammer_models::{Checkpoint, Error, WeightId, inventory};
use drophammer_quant::compensate::Compensator;
use drophammer_quant::equalize::Rounding;
use drophammer_quant::grouped::Format;
use drophammer_quant::pass::{self, Item};
use drophammer_sdk::{Estimate, ForgeReport, ForgeRequest, Goal, JobContext, Result};

use crate::directory;
use crate::encoder::{GroupedEncoder, Rows, reserved};
use crate::graph::{self, Planned, Weights};
use crate::mixture;
use crate::scheme::{Scheme, Storage, say_fallbacks};
use crate::statistics::Statistics;

/// The graph's file; its weights lie in [`WEIGHTS`].
pub(crate) const MODEL: &str = "openvino_model.xml";
pub(crate) const WEIGHTS: &str = "openvino_model.bin";
/// Resident memory of a worker besides buffers: code, maps, the graph.
const WORKER_BYTES: u64 = 64 << 20;

/// A goal, decided.
pub(crate) struct Plan {
    checkpoint: Checkpoint,
    pub(crate) scheme: Scheme,
    statistics: Statistics,
    /// The weights that a ratio leaves to the backup format.
    sensitive: HashSet<WeightId>,
    weights: Vec<Planned>,
    pub(crate) layout: Layout,
    /// Fallbacks, in words.
    pub(crate) notes: Vec<String>,
    /// Whether columns are scaled before they are rounded.
    awq: bool,
    /// Whether later columns make up for the errors of earlier ones.
    compensate: bool,
}

/// What a request comes to.
///
/// # Errors
/// For unknown schemes, for sources that cannot be read, described or told in IR, and as for [`Statistics::read`].
fn plan(request: &ForgeRequest) -> Result<Plan> {
    let scheme = Scheme::of(&request.goal)?;
    let statistics = Statistics::read(request.imatrix.as_deref())?;
    decided(request, scheme, statistics)
}

/// Decides what each weight becomes.
fn decided(request: &ForgeRequest, scheme: Scheme, statistics: Statistics) -> Result<Plan> {
    let checkpoint = open(request)?;
    let weights = inventory(checkpoint.description());
    statistics.check(&weights)?;
    let sensitive = mixture::sensitive(&checkpoint, &scheme, &weights, &statistics)?;
    planned(request, checkpoint, scheme, statistics, sensitive)
}

/// The source as IR wants it.
fn open(request: &ForgeRequest) -> Result<Checkpoint> {
    Ok(drophammer_forge::open(&request.source, &request.adapters)?.with_layout(RopeLayout::Halves))
}

fn planned(
    request: &ForgeRequest,
    checkpoint: Checkpoint,
    scheme: Scheme,
    statistics: Statistics,
    sensitive: HashSet<WeightId>,
) -> Result<Plan> {
    let in_model = |error: &Error| failure::of_model(&request.source, error);
    let [awq, compensate] = ["awq", "compensate"].map(|name| drophammer_forge::flag(&request.goal, name));
    let (awq, compensate) = (awq?, compensate?);
    let description = checkpoint.description();
    let weights = Weights::new(&checkpoint, &scheme, &sensitive);
    let emission = graph::emit(description, weights).map_err(|unsupported| {
        in_model(&Error::Unsupported { family: description.family.to_owned(), what: unsupported.0 })
    })?;
    let mut network = emission.network;
    if let Some(precision) = &scheme.kv_cache {
        network.tell("runtime_options/KV_CACHE_PRECISION", precision);
    }
    if let Some(group) = scheme.dynamic_group {
        network.tell("runtime_options/DYNAMIC_QUANTIZATION_GROUP_SIZE", &group.to_string());
    }
    let header = network.inline_bytes().to_vec();
    let mut end = header.len() as u64;
    let mut places = Vec::new();
    let mut written = Vec::new();
    for weight in &emission.weights {
        for (&len, &bytes) in reserved(weight).iter().zip(&weight.bytes) {
            let offset = end.next_multiple_of(ALIGNMENT);
            places.push(Place { file: 0, offset, len });
            written.push((offset, bytes));
            end = offset + len;
        }
    }
    // Whoever saves the graph anew numbers its operations anew: what is told of them holds beside this very file.
    network.tell("drophammer/weights", &end.to_string());
    let xml = network.to_xml(|tensor| written[tensor]);
    let mut notes = say_fallbacks(&emission.fallbacks);
    if scheme.is_mixed() {
        let by = if statistics.is_empty() { "their own error" } else { "the error that calibration expects" };
        let (count, backup) = (sensitive.len(), &scheme.backup_name);
        notes.push(format!("{count} weights are left to {backup}, because they lose most by {by}"));
    }
    let mut side_files = vec![(MODEL.to_owned(), xml.into_bytes())];
    side_files.extend(directory::files(&checkpoint, request.no_tokenizer, &mut notes)?);
    let layout =
        Layout { files: vec![FilePlan { name: WEIGHTS.to_owned(), header, len: end }], places, side_files };
    let weights = emission.weights;
    Ok(Plan { checkpoint, scheme, statistics, sensitive, weights, layout, notes, awq, compensate })
}

impl Plan {
    /// The work of the pass; `compensator` gives what makes up for the errors of a matrix with so many columns.
    fn items(&self, compensator: impl Fn(WeightId, u64) -> Option<Compensator>) -> Result<Vec<Item<'_>>> {
        self.weights.iter().map(|weight| self.item(weight, &compensator)).collect()
    }

    /// The work as it is estimated, before there are products: only its size is right.
    fn estimated_items(&self) -> Result<Vec<Item<'_>>> {
        self.items(|_, columns| {
            let columns = usize::try_from(columns).ok().filter(|_| self.compensate)?;
            Some(Compensator::new(columns, || Err("this is an estimate".into())))
        })
    }

    /// Matrices by GGUF name, with their columns.
    fn matrices(&self) -> impl Iterator<Item = (String, u64)> {
        self.weights
            .iter()
            .filter_map(|weight| Some((self.checkpoint.gguf_name(weight.id)?, weight.extent[1])))
    }

    /// The same with columns scaled for the formats that weights get, and how they are.
    fn equalized(self, request: &ForgeRequest, job: &dyn JobContext) -> Result<(Self, Scaling)> {
        let formats: BTreeMap<WeightId, Format> = self
            .weights
            .iter()
            .filter_map(|weight| match weight.storage {
                Storage::Grouped(format) => Some((weight.id, format)),
                Storage::Plain(_) => None,
            })
            .collect();
        let rounding = |id| Some(Box::new(*formats.get(&id)?) as Box<dyn Rounding>);
        let Self { checkpoint, scheme, statistics, sensitive, .. } = self;
        let (checkpoint, scaling) = equalize(checkpoint, statistics.by_name(), rounding, job)?;
        let mut plan = planned(request, checkpoint, scheme, statistics.scaled(&scaling), sensitive)?;
        plan.notes.push(scaling.note());
        Ok((plan, scaling))
    }

    fn item(
        &self,
        planned: &Planned,
        compensator: impl Fn(WeightId, u64) -> Option<Compensator>,
    ) -> Result<Item<'_>> {
        let weight = self
            .checkpoint
            .weight(planned.id)
            .map_err(|error| failure::of_model(self.checkpoint.source().root(), &error))?;
        let name = planned.id.to_string();
        match planned.storage {
            Storage::Plain(element) => {
                let decl = TensorDecl::new(&name, dtype(element), planned.extent.to_vec());
                Item::quantize(planned.first, &decl, Rows(weight), None)
                    .map_err(|error| failure::of_pass(&error))
            }
            Storage::Grouped(format) => {
                let statistics = self.statistics.of(planned.id);
                // Experts would need products of their own.
                let plain = statistics.as_ref().is_none_or(|all| all.len() as u64 == planned.extent[1]);
                let compensator = plain.then(|| compensator(planned.id, planned.extent[1])).flatten();
                let encoder =
                    GroupedEncoder::new(format, planned.extent, statistics).compensated(compensator);
                let outputs = encoder.outputs(planned.first);
                Ok(Item::encode(&name, planned.extent, Rows(weight), encoder, outputs))
            }
        }
    }

    fn parameters(&self) -> u64 {
        self.weights.iter().map(|weight| weight.extent[0] * weight.extent[1]).sum()
    }

    fn report(self) -> ForgeReport {
        let parameters = self.parameters();
        let data: u64 = self.weights.iter().flat_map(|weight| &weight.bytes).sum();
        let mut types = BTreeMap::new();
        for weight in &self.weights {
            *types.entry(weight.storage.element().name().to_owned()).or_default() += 1;
        }
        let side = self.layout.side_files.iter().map(|(name, _)| name.into());
        ForgeReport {
            files: side.chain(self.layout.files.iter().map(|file| file.name.as_str().into())).collect(),
            bytes: self.layout.total_bytes(),
            bits_per_weight: data as f64 * 8.0 / parameters.max(1) as f64,
            parameters,
            types,
            notes: self.notes,
        }
    }
}

fn dtype(element: Element) -> DType {
    match element {
        Element::F16 => DType::F16,
        Element::BF16 => DType::BF16,
        _ => DType::F32,
    }
}

/// Makes the artifact.
///
/// # Errors
/// As for [`plan`] and the pass.
pub(crate) fn forge(request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
    job.check()?;
    let mut plan = plan(request)?;
    let collected =
        plan.compensate.then(|| drophammer_forge::gguf::collected(request, plan.matrices())).transpose()?;
    let mut scaling = Scaling::default();
    if plan.awq {
        (plan, scaling) = plan.equalized(request, job)?;
    }
    let yes_or_no = |is: bool| if is { "yes" } else { "no" };
    let recipe = Recipe::new("openvino", env!("CARGO_PKG_VERSION"), &plan.scheme.name)
        .with_option("compensate", yes_or_no(plan.compensate))
        .with_option("awq", yes_or_no(plan.awq))
        .with_source(plan.checkpoint.source())?
        .with_files(request.adapters.iter().chain(&request.imatrix))?;
    let items = plan.items(|id, columns| {
        let name = plan.checkpoint.gguf_name(id)?;
        Some(scaling.compensator(&name, collected.as_ref()?.of(&name, columns)?))
    })?;
    drophammer_forge::run(&request.staging, &plan.layout, &items, &recipe, job)?;
    drop(items);
    Ok(plan.report())
}

/// What reaching a goal would take; a goal that cannot be reached says why.
///
/// # Errors
/// When the source cannot be read.
pub(crate) fn estimate(source: &std::path::Path, goal: &Goal) -> Result<Estimate> {
    // Statistics come with the request to make it: until then sizes are those by the weights alone.
    let plan = |request: &ForgeRequest| {
        let scheme = Scheme::of(&request.goal)?;
        decided(request, scheme, Statistics::default())
    };
    drophammer_forge::estimate(source, goal, plan, fill)
}

fn fill(estimate: &mut Estimate, plan: &Plan) -> Result<()> {
    let work = pass::estimate(&plan.estimated_items()?, &pass::Options::default())
        .map_err(|error| failure::of_pass(&error))?;
    estimate.scheme.clone_from(&plan.scheme.name);
    estimate.supported = true;
    estimate.reason = (!plan.notes.is_empty()).then(|| plan.notes.join("; "));
    estimate.steps = vec![
        format!("read each tensor and write it as {} in one pass", plan.scheme.name),
        "write the graph, the tokenizer's graphs and the configuration".to_owned(),
    ];
    if plan.awq {
        let scaled = "find scales of columns that lose least, and fold them into what comes before";
        estimate.steps.insert(0, scaled.to_owned());
    }
    if plan.compensate {
        estimate.steps.push("choose codes column by column, so that later ones make up for errors".into());
    }
    estimate.bytes = plan.layout.total_bytes();
    estimate.peak_memory_bytes = work.peak_bytes + WORKER_BYTES;
    // Weights that one thread encodes in a second: measured on a 2.6 GHz server core, rounded down.
    let rate = if plan.scheme.quantizes() { 60e6 } else { 400e6 };
    estimate.seconds = 0.5 + plan.parameters() as f64 / (rate * work.threads as f64);
    Ok(())
}
