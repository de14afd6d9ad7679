//! Making mlx-lm directories: what a goal comes to, decided from headers alone, and the one pass that does it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use drophammer_forge::{Recipe, failure};
use drophammer_formats::layout::Layout;
use drophammer_formats::{DType, TensorDecl, safetensors};
use drophammer_infer::tokenizer::Tokenizer;
use drophammer_models::Checkpoint;
use drophammer_models::export::mlx::{self, Choice, MlxExport, Module, Packed, Planned, Scheme};
use drophammer_quant::pass;
use drophammer_sdk::{
    BackendError, ErrorCode, Estimate, ForgeReport, ForgeRequest, Goal, JobContext, Result,
};
use regex::Regex;
use serde_json::{Map, Value as Json};

use crate::mixture;

/// mlx-lm's own limit of a shard, in bytes.
const SHARD_BYTES: u64 = 5 << 30;
/// Resident memory of a worker besides buffers: code, maps, tables.
const WORKER_BYTES: u64 = 64 << 20;

/// A goal, decided.
pub(crate) struct Plan {
    pub(crate) scheme: Scheme,
    pub(crate) layout: Layout,
    /// What stays unpacked and why.
    pub(crate) notes: Vec<String>,
    export: MlxExport,
    planned: Vec<Planned>,
}

/// The scheme that a goal names; where it names none `bf16`, or with a budget the scheme whose widths are mixed.
pub(crate) fn scheme_of(goal: &Goal) -> Result<Scheme> {
    if goal.format != "mlx" {
        let message = format!("this backend makes mlx directories, not {}", goal.format);
        return Err(BackendError::new(ErrorCode::UnsupportedInput, message)
            .with_help("Choose the format mlx, or a target of another backend."));
    }
    let usual = if goal.options.contains_key("budget") { "affine_4_g64" } else { "bf16" };
    let name = if goal.scheme.is_empty() { usual } else { &goal.scheme };
    Scheme::parse(name).map_err(|problem| {
        BackendError::new(ErrorCode::UnsupportedInput, problem)
            .with_help(format!("Choose one of: {}.", mlx::schemes().join(", ")))
    })
}

/// The user's word on some modules.
struct Override {
    pattern: Regex,
    packed: Option<Packed>,
}

/// `overrides`: a list of `PATTERN=SCHEME`, such as `v_proj=affine_6_g64` or `lm_head=plain`; the first that fits decides.
fn overrides_of(goal: &Goal) -> Result<Vec<Override>> {
    let Some(value) = goal.options.get("overrides") else { return Ok(Vec::new()) };
    let invalid = |problem: String| BackendError::new(ErrorCode::InvalidRequest, problem);
    let list = value
        .as_array()
        .ok_or_else(|| invalid("option `overrides` is not a list of PATTERN=SCHEME".into()))?;
    list.iter()
        .map(|item| {
            let text = item.as_str().unwrap_or_default();
            let form = || {
                invalid(format!(
                    "override {text:?} is not of the form PATTERN=SCHEME, such as v_proj=affine_6_g64"
                ))
            };
            let (pattern, name) = text.rsplit_once('=').ok_or_else(form)?;
            let pattern =
                Regex::new(pattern.trim()).map_err(|error| invalid(format!("override {text:?}: {error}")))?;
            let packed = match name.trim() {
                "plain" | "bf16" | "f16" | "f32" => None,
                name => Some(
                    Packed::parse(name)
                        .map_err(|problem| invalid(format!("override {text:?}: {problem}")))?,
                ),
            };
            Ok(Override { pattern, packed })
        })
        .collect()
}

/// What a request comes to.
pub(crate) fn plan(request: &ForgeRequest) -> Result<Plan> {
    let scheme = scheme_of(&request.goal)?;
    let overrides = overrides_of(&request.goal)?;
    if request.imatrix.is_some() {
        return Err(BackendError::new(
            ErrorCode::UnsupportedInput,
            "mlx schemes follow libmlx's own rule, which uses no activation statistics",
        )
        .with_help("Leave the importance matrix out, or choose a gguf scheme."));
    }
    let shard_bytes = drophammer_forge::max_file_bytes(&request.goal)?.unwrap_or(SHARD_BYTES);
    let checkpoint = drophammer_forge::open(&request.source, &request.adapters)?;
    let beside = documents(&checkpoint, request.no_tokenizer)?;
    let export = MlxExport::new(checkpoint, scheme.base())
        .map_err(|error| failure::of_model(&request.source, &error))?;
    let beside_bytes = beside.files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let mixture = mixture::choose(&request.goal, &scheme, &export, beside_bytes)?;
    let planned = export.plan(&scheme, |module| {
        match overrides.iter().find(|own| own.pattern.is_match(&module.path)) {
            Some(own) => Some(own.packed.map_or(Choice::Plain, |packed| packed.fit(module))),
            None => mixture.get(&module.path).map(|packed| packed.fit(module)),
        }
    });
    let tensors: Vec<TensorDecl> = planned.iter().flat_map(|planned| planned.tensors.clone()).collect();
    let mut layout =
        safetensors::plan("model", &tensors, &[("format", "mlx")], Some(shard_bytes)).map_err(|fault| {
            BackendError::new(ErrorCode::UnsupportedInput, format!("{}: {fault}", request.source.display()))
                .with_help(fault.help())
        })?;
    let config = mlx::config(&export, &scheme, &planned, &beside.tokens);
    let index = mlx::index(&export, &tensors, &layout);
    layout.side_files = vec![
        ("config.json".to_owned(), pretty(&config)),
        (safetensors::INDEX_NAME.to_owned(), pretty(&index)),
    ];
    layout.side_files.extend(beside.files);
    let notes = misfits(export.modules(), &planned, export.base());
    Ok(Plan { scheme, layout, notes, export, planned })
}

/// Without a line's end behind it, so that a file that lost its last byte is no document any more.
fn pretty(document: &Json) -> Vec<u8> {
    format!("{document:#}").into_bytes()
}

/// Files that lie beside the weights.
struct Beside {
    files: Vec<(String, Vec<u8>)>,
    /// Ids of tokens with a role, for a configuration that does not name them.
    tokens: Map<String, Json>,
}

/// Tokenizer and generation configuration: copied, or told from a GGUF file's vocabulary.
fn documents(checkpoint: &Checkpoint, no_tokenizer: bool) -> Result<Beside> {
    let source = checkpoint.source();
    let mut beside = Beside { files: Vec::new(), tokens: Map::new() };
    let read = |path: &Path| {
        std::fs::read(path)
            .map_err(|error| BackendError::new(ErrorCode::Failed, format!("{}: {error}", path.display())))
    };
    if !checkpoint.has_tokenizer() {
        if no_tokenizer {
            return Ok(beside);
        }
        let message = format!("{}: has no tokenizer", source.root().display());
        return Err(BackendError::new(ErrorCode::UnsupportedInput, message).with_help(
            "Put the model's tokenizer.json beside its weights, or convert with --no-tokenizer.",
        ));
    }
    if source.metadata().get("tokenizer.ggml.model").is_some() {
        let tokenizer = Tokenizer::from_source(source).map_err(|error| {
            BackendError::new(ErrorCode::UnsupportedInput, error.to_string())
                .with_help("Convert with --no-tokenizer, or from the model's Hugging Face directory.")
        })?;
        let special = tokenizer.special();
        for (key, id) in
            [("bos_token_id", special.bos), ("eos_token_id", special.eos), ("pad_token_id", special.padding)]
        {
            if let Some(id) = id {
                beside.tokens.insert(key.into(), id.into());
            }
        }
        beside.files = tokenizer
            .hugging_face_files(
                source.metadata().str("tokenizer.chat_template"),
                checkpoint.description().context,
            )
            .map_err(|error| BackendError::new(ErrorCode::UnsupportedInput, error.to_string()))?;
        let generation = Json::Object(Map::from_iter([
            ("bos_token_id".to_owned(), special.bos.into()),
            ("eos_token_id".to_owned(), special.end_of_generation.clone().into()),
        ]));
        beside.files.push(("generation_config.json".into(), pretty(&generation)));
        return Ok(beside);
    }
    for (name, path) in source.tokenizer().iter() {
        beside.files.push((name.to_owned(), read(path)?));
    }
    let generation = source.root().join("generation_config.json");
    if source.generation_config().is_some() && generation.is_file() {
        beside.files.push(("generation_config.json".into(), read(&generation)?));
    }
    Ok(beside)
}

/// Which matrices stay unpacked because their rows are no whole groups.
fn misfits(modules: &[Module], planned: &[Planned], base: DType) -> Vec<String> {
    let mut found: BTreeMap<(u64, u32), Vec<&str>> = BTreeMap::new();
    for (module, planned) in modules.iter().zip(planned) {
        if let Choice::Misfit(packed) = planned.choice {
            found.entry((module.columns(), packed.group)).or_default().push(&module.path);
        }
    }
    let say = |((columns, group), paths): (&(u64, u32), &Vec<&str>)| {
        let count = paths.len();
        let named =
            if count <= 4 { paths.join(", ") } else { format!("{}, … {}", paths[0], paths[count - 1]) };
        format!(
            "{count} matrices stay {}, since groups of {group} do not divide rows of {columns}: {named}",
            base.name()
        )
    };
    found.iter().map(say).collect()
}

impl Plan {
    fn report(&self) -> ForgeReport {
        let parameters = self.export.parameters();
        let data: u64 = self.layout.places.iter().map(|place| place.len).sum();
        let mut types: BTreeMap<String, u64> = BTreeMap::new();
        for planned in &self.planned {
            let name = match planned.choice {
                Choice::Packed(packed) => packed.name(),
                _ => self.export.base().name().to_owned(),
            };
            *types.entry(name).or_default() += 1;
        }
        ForgeReport {
            files: vec![PathBuf::from(".")],
            bytes: self.layout.total_bytes(),
            bits_per_weight: data as f64 * 8.0 / parameters.max(1) as f64,
            parameters,
            types,
            notes: self.notes.clone(),
        }
    }
}

/// Makes the directory.
pub(crate) fn forge(request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
    job.check()?;
    let plan = plan(request)?;
    let items = plan.export.items(&plan.planned).map_err(|error| failure::of_pass(&error))?;
    let recipe = Recipe::new("mlx", env!("CARGO_PKG_VERSION"), &plan.scheme.name)
        .with_source(plan.export.checkpoint().source())?
        .with_files(&request.adapters)?;
    drophammer_forge::run(&request.staging, &plan.layout, &items, &recipe, job)?;
    drop(items);
    Ok(plan.report())
}

/// What reaching a goal would take; a goal that cannot be reached says why.
pub(crate) fn estimate(source: &Path, goal: &Goal) -> Result<Estimate> {
    drophammer_forge::estimate(source, goal, plan, fill)
}

fn fill(estimate: &mut Estimate, plan: &Plan) -> Result<()> {
    let items = plan.export.items(&plan.planned).map_err(|error| failure::of_pass(&error))?;
    let work = pass::estimate(&items, &pass::Options::default()).map_err(|error| failure::of_pass(&error))?;
    estimate.scheme = plan.scheme.name.clone();
    estimate.supported = true;
    estimate.reason = (!plan.notes.is_empty()).then(|| plan.notes.join("; "));
    estimate.steps = vec![format!("read each tensor and write it as {} in one pass", plan.scheme.name)];
    estimate.bytes = plan.layout.total_bytes();
    estimate.peak_memory_bytes = work.peak_bytes + WORKER_BYTES;
    // Measured on a 2.6 GHz server core, rounded down.
    let rate = if plan.scheme.is_plain() { 400e6 } else { 250e6 };
    estimate.seconds = 0.2 + plan.export.parameters() as f64 / (rate * work.threads as f64);
    Ok(())
}
