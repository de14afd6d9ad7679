//! MLX directories from any source: tensors as mlx-lm names them, packed as libmlx packs them, and `config.json`.
//!
//! A *module* is a matrix with what belongs to it: `<path>.weight`, and packed also `<path>.scales` and `<path>.biases`.

mod config;
mod names;
mod rows;
mod scheme;

use drophammer_formats::{DType, TensorDecl};
use drophammer_quant::pass::{Item, Output, PassError, RowSource as _};

pub use config::{config, index};
pub(crate) use names::names;
pub use scheme::{Choice, GROUPS, Packed, Scheme, WIDTHS, schemes};

use crate::checkpoint::Checkpoint;
use crate::description::Layer;
use crate::error::{Error, Result};
use crate::names::{Cut, Names, Place, Rows};
use crate::weight::{Part, Role, WeightId};
use rows::{Floats, PackEncoder, PlainEncoder};

/// A model on its way into an MLX directory.
#[derive(Debug)]
pub struct MlxExport {
    checkpoint: Checkpoint,
    modules: Vec<Module>,
    base: DType,
}

/// A tensor of the model before packing.
#[derive(Debug)]
pub struct Module {
    /// Its name without `.weight`.
    pub path: String,
    suffix: &'static str,
    shape: Vec<u64>,
    packable: bool,
    /// The first of its weights.
    id: WeightId,
    members: Vec<Member>,
}

/// A weight in a module's rows, from one of its own rows on.
#[derive(Debug)]
struct Member {
    id: WeightId,
    rows: Rows,
    first: u64,
}

impl Module {
    /// Weights in a row.
    pub fn columns(&self) -> u64 {
        if self.is_vector() { 1 } else { self.shape.last().copied().unwrap_or(1) }
    }

    /// What it is for.
    pub fn role(&self) -> Role {
        self.id.role
    }

    /// Whether it is a matrix that may be packed.
    pub fn is_packable(&self) -> bool {
        self.packable
    }

    fn is_vector(&self) -> bool {
        self.id.is_vector()
    }

    /// Rows and columns as the pass sees them: a vector is one row.
    fn extent(&self) -> [u64; 2] {
        let elements = self.elements();
        if self.is_vector() { [1, elements] } else { [elements / self.columns().max(1), self.columns()] }
    }

    /// Weights in all.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// A module's share of the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// What becomes of it.
    pub choice: Choice,
    /// Its tensors: one, or codes, scales and (affine) biases.
    pub tensors: Vec<TensorDecl>,
}

impl MlxExport {
    /// Lists the modules. `base` is the type of what is not packed; by default the source's own, where MLX has it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there is no name for a weight.
    pub fn new(checkpoint: Checkpoint, base: Option<DType>) -> Result<Self> {
        let layout = layout(&checkpoint);
        let checkpoint = checkpoint.with_layout(layout);
        let base = base.unwrap_or_else(|| usual_base(&checkpoint));
        let modules = list(&checkpoint)?;
        Ok(Self { checkpoint, modules, base })
    }

    /// The model.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The type of what is not packed.
    pub fn base(&self) -> DType {
        self.base
    }

    /// The modules, in the order in which they are used.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// Elements of all modules.
    pub fn parameters(&self) -> u64 {
        self.modules.iter().map(Module::elements).sum()
    }

    /// What GGUF files call a module's weights.
    pub fn gguf_names(&self, module: &Module) -> Vec<String> {
        let tables = [
            self.checkpoint
                .family()
                .gguf
                .map_or(&[] as Names, |gguf| (gguf.names)(self.checkpoint.description())),
            crate::names::gguf::NAMES,
        ];
        let name = |member: &Member| {
            let mut all = tables.iter().flat_map(|table| table.iter());
            let (_, place) = all.find(|(role, _)| *role == member.id.role)?;
            Some(format!("{}{}", place.module(member.id.layer, 0), place.suffix(member.id.part)))
        };
        module.members.iter().filter_map(name).collect()
    }

    /// Some rows of a module, spread evenly over it, and how wide they are.
    ///
    /// # Errors
    /// Rows that cannot be read.
    pub fn sample(&self, module: &Module, most: u64) -> Result<(Vec<f32>, usize)> {
        let [rows, columns] = module.extent();
        let count = most.clamp(1, rows.max(1));
        let source = Floats::new(&self.checkpoint, module);
        let mut sample = vec![0.0; (count * columns) as usize];
        for (i, row) in (0..).zip(sample.chunks_exact_mut(columns.max(1) as usize)) {
            let at = i * rows / count;
            source
                .read(at..at + 1, row)
                .map_err(|error| Error::Tensor { name: module.path.clone(), problem: error.to_string() })?;
        }
        Ok((sample, columns as usize))
    }

    /// What becomes of each module under a scheme; `own` may decide otherwise.
    pub fn plan(&self, scheme: &Scheme, own: impl Fn(&Module) -> Option<Choice>) -> Vec<Planned> {
        let description = self.checkpoint.description();
        let layers = description.layers.len() as u32;
        let planned = |module: &Module| {
            let own = own(module).filter(|_| module.packable);
            let choice = own.unwrap_or_else(|| scheme.choose(module, self.checkpoint.family().name, layers));
            Planned { choice, tensors: self.declare(module, choice) }
        };
        self.modules.iter().map(planned).collect()
    }

    fn declare(&self, module: &Module, choice: Choice) -> Vec<TensorDecl> {
        let Choice::Packed(packed) = choice else {
            let name = format!("{}{}", module.path, module.suffix);
            return vec![TensorDecl::new(name, self.base, module.shape.clone())];
        };
        let narrowed = |columns: u64| {
            let mut shape = module.shape.clone();
            if let Some(last) = shape.last_mut() {
                *last = columns;
            }
            shape
        };
        let columns = module.columns();
        let groups = narrowed(columns / u64::from(packed.group));
        let words = narrowed(columns * u64::from(packed.bits) / 32);
        let matrix = packed.matrix(self.base);
        let scale = if matrix.levels.has_offset() { self.base } else { DType::U8 };
        let tensor =
            |part: &str, dtype, shape| TensorDecl::new(format!("{}.{part}", module.path), dtype, shape);
        let mut tensors = vec![tensor("weight", DType::U32, words), tensor("scales", scale, groups.clone())];
        if matrix.levels.has_offset() {
            tensors.push(tensor("biases", scale, groups));
        }
        tensors
    }

    /// The work of a pass: `plan` as [`MlxExport::plan`] gave it, its tensors numbered one after another.
    ///
    /// # Errors
    /// [`PassError::Layout`] for impossible shapes.
    pub fn items<'a>(&'a self, plan: &[Planned]) -> std::result::Result<Vec<Item<'a>>, PassError> {
        let mut tensor = 0;
        let mut items = Vec::with_capacity(plan.len());
        for (module, planned) in self.modules.iter().zip(plan) {
            let [rows, columns] = module.extent();
            let bytes = planned.tensors.iter().map(TensorDecl::byte_len).collect::<Result<Vec<_>, _>>()?;
            let outputs = (tensor..)
                .zip(&bytes)
                .map(|(tensor, bytes)| Output { tensor, group_bytes: bytes / rows.max(1) })
                .collect();
            tensor += bytes.len();
            let source = Floats::new(&self.checkpoint, module);
            let name = &planned.tensors[0].name;
            items.push(match planned.choice {
                Choice::Packed(packed) => {
                    let encoder = PackEncoder { matrix: packed.matrix(self.base), base: self.base };
                    Item::encode(name, [rows, columns], source, encoder, outputs)
                }
                _ => Item::encode(name, [rows, columns], source, PlainEncoder(self.base), outputs),
            });
        }
        Ok(items)
    }
}

/// The order of rotated rows that Hugging Face's names promise.
fn layout(checkpoint: &Checkpoint) -> crate::rope::RopeLayout {
    let family = checkpoint.family();
    let config = crate::config::Config::new(checkpoint.config());
    let own = family.describe_config(&config).ok();
    own.and_then(|own| own.ropes.first().map(|rope| rope.layout)).unwrap_or(crate::rope::RopeLayout::Halves)
}

/// The source's float type; bfloat16 for sources that store numbers in few bits.
fn usual_base(checkpoint: &Checkpoint) -> DType {
    let config = checkpoint.config();
    let named = ["torch_dtype", "dtype"].iter().find_map(|key| config.get(key)?.as_str());
    match named {
        Some("float16") => return DType::F16,
        Some("bfloat16") => return DType::BF16,
        Some("float32") => return DType::F32,
        _ => {}
    }
    let embedding = checkpoint.weight(Role::TokenEmbedding.global());
    match embedding {
        Ok(weight) if matches!(weight.dtype(), DType::F16 | DType::F32) => weight.dtype(),
        _ => DType::BF16,
    }
}

fn list(checkpoint: &Checkpoint) -> Result<Vec<Module>> {
    let family = checkpoint.family();
    let description = checkpoint.description();
    let direct = |layer: &Layer| layer.attention.latent.is_some_and(|latent| latent.query_rank.is_none());
    let queries = if description.layers.iter().any(direct) { names::DIRECT_QUERIES } else { &[] };
    let mut tables = vec![queries, names(family.name)];
    tables.extend_from_slice(family.names);
    let tied = description.head.is_some_and(|head| head.tied);
    let mut modules: Vec<Module> = Vec::new();
    for weight in checkpoint.weights() {
        let id = weight.id;
        if tied && id == Role::Head.global() {
            continue;
        }
        let place = names::place(&tables, id).ok_or_else(|| Error::Unsupported {
            family: family.name.to_owned(),
            what: format!("writing {id} into an MLX directory, which has no name for it,"),
        })?;
        let shape = &weight.shape;
        let (rows, columns) = match (id.is_vector(), shape.split_last()) {
            (false, Some((columns, outer))) => (outer.iter().product(), Some(*columns)),
            _ => (shape.iter().product::<u64>(), None),
        };
        // Cuts count rows of one matrix of a stack.
        let cut = crate::names::rows(place.cut, id, rows, description).ok_or_else(|| Error::Unsupported {
            family: family.name.to_owned(),
            what: format!("writing {id} in one tensor with others"),
        })?;
        let suffix = place.suffix(id.part);
        if let (true, [heads, width]) = (place.is_per_expert(), shape.as_slice()) {
            modules.extend((0..*heads).map(|head| Module {
                packable: false,
                path: place.module(id.layer, head),
                suffix,
                shape: vec![*width],
                id,
                members: vec![Member { id, rows: Rows::all(*width), first: head * width }],
            }));
            continue;
        }
        let path = place.module(id.layer, 0);
        let member = Member { id, rows: cut, first: 0 };
        if place.cut != Cut::Whole
            && let Some(module) = modules
                .iter_mut()
                .rev()
                .take(16)
                .find(|module| module.path == path && module.suffix == suffix)
        {
            module.members.push(member);
            continue;
        }
        let shape = match (place.cut, columns) {
            (Cut::Whole, _) => shape.clone(),
            (_, Some(columns)) => vec![cut.total, columns],
            (_, None) => vec![cut.total],
        };
        modules.push(Module {
            packable: packable(family.name, id, &place),
            path,
            suffix,
            shape,
            id,
            members: vec![member],
        });
    }
    Ok(modules)
}

/// Whether mlx-lm keeps it in a layer that can be packed.
fn packable(family: &str, id: WeightId, place: &Place) -> bool {
    let raw_router = id.role == Role::Router && family.starts_with("deepseek");
    id.part == Part::Weight && !id.is_vector() && !place.exact && !raw_router
}
