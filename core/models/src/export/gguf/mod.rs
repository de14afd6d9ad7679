//! GGUF files from any source: tensors as llama.cpp expects them, metadata, tokenizer.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use drophammer_models::{Checkpoint, export::gguf::GgufExport};
//! use drophammer_quant::{pass, presets};
//!
//! let export = GgufExport::new(Checkpoint::open("models/smollm2")?)?;
//! let preset = presets::preset("q4_k_m").ok_or("no such scheme")?;
//! let tensors = export.declare(preset, false, &[]);
//! let metadata = export.metadata(preset, true)?;
//! let layout = drophammer_formats::gguf::plan("model", &metadata, &tensors, None)?;
//! let items = export.items(&tensors, |_| None)?;
//! let recipe = drophammer_formats::digest::Digest::of(b"what the bytes depend on");
//! pass::forge("out".as_ref(), layout, &items, recipe, &pass::Options::default(), &())?;
//! # Ok(())
//! # }
//! ```

mod metadata;
mod pre_tokenizer;
mod rows;
mod tokenizer;
mod told;

use drophammer_formats::gguf::Metadata;
use drophammer_formats::{DType, TensorDecl};
use drophammer_quant::compensate::Compensator;
use drophammer_quant::pass::{Importance, Item, PassError, RowSource};
use drophammer_quant::presets::{self, ModelFacts, Override, Preset, Tensor};

use crate::checkpoint::Checkpoint;
use crate::description::Description;
use crate::error::{Error, Result};
use crate::families::Gguf;
use crate::names::{self, Place};
use crate::rope::RopeScaling;
use crate::weight::{Part, Role, WeightId};
use rows::Content;

/// A model on its way into a GGUF file.
#[derive(Debug)]
pub struct GgufExport {
    checkpoint: Checkpoint,
    gguf: Gguf,
    tensors: Vec<OutputTensor>,
}

/// A tensor of the file.
#[derive(Debug)]
struct OutputTensor {
    name: String,
    /// Outermost dimension first.
    shape: Vec<u64>,
    content: Content,
}

impl GgufExport {
    /// Lists the tensors of the file.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where GGUF or llama.cpp has no place for such a model.
    pub fn new(checkpoint: Checkpoint) -> Result<Self> {
        let family = checkpoint.family();
        let gguf = family.gguf.ok_or_else(|| Error::Unsupported {
            family: family.name.to_owned(),
            what: "writing GGUF, which knows no such architecture,".to_owned(),
        })?;
        let checkpoint = checkpoint.with_layout(gguf.layout);
        let tensors = Lister { checkpoint: &checkpoint, gguf, tensors: Vec::new() }.list()?;
        let export = Self { checkpoint, gguf, tensors };
        told::check(&export, &metadata::metadata(&export.checkpoint, &gguf, 0))?;
        Ok(export)
    }

    /// The model.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// `general.architecture`.
    pub fn architecture(&self) -> &'static str {
        self.gguf.architecture
    }

    /// Name, shape (outermost dimension first) and weights of every tensor that holds whole matrices of the model; a tensor's
    /// columns are its weights'.
    pub fn matrices(&self) -> impl Iterator<Item = (&str, &[u64], &[WeightId])> {
        self.tensors.iter().filter_map(|tensor| {
            let ids = tensor.content.matrices()?;
            (tensor.shape.len() > 1).then_some((tensor.name.as_str(), tensor.shape.as_slice(), ids))
        })
    }

    /// Names and columns of those matrices whose inputs all tokens share: experts are left out.
    pub fn plain_matrices(&self) -> impl Iterator<Item = (&str, usize)> {
        self.matrices().filter_map(|(name, shape, _)| match shape {
            [_, columns] if !presets::stays_unquantized(name, shape) => {
                Some((name, usize::try_from(*columns).ok()?))
            }
            _ => None,
        })
    }

    /// Rows of the tensor with this name, as floats.
    pub fn rows(&self, name: &str) -> Option<impl RowSource> {
        let tensor = self.tensors.iter().find(|tensor| tensor.name == name)?;
        Some(tensor.content.rows(&self.checkpoint))
    }

    /// What presets ask about the model.
    pub fn facts(&self, informed: bool) -> ModelFacts {
        let description = self.checkpoint.description();
        let attention = description.layers.first().map(|layer| &layer.attention);
        ModelFacts {
            architecture: self.gguf.architecture.to_owned(),
            layers: description.layers.len() as u32,
            heads: attention.map_or(0, |attention| attention.heads),
            key_heads: attention.map_or(0, |attention| attention.kv_heads),
            experts: description.experts().map_or(0, |experts| experts.count),
            informed,
        }
    }

    /// The tensors as `preset` stores them; what is never quantized is F32. `informed` tells whether an importance matrix
    /// is at hand.
    pub fn declare(&self, preset: &Preset, informed: bool, overrides: &[Override]) -> Vec<TensorDecl> {
        let tensors: Vec<Tensor<'_>> =
            self.tensors.iter().map(|tensor| Tensor { name: &tensor.name, shape: &tensor.shape }).collect();
        let choices = presets::plan(preset, &self.facts(informed), &tensors, overrides);
        let declare = |(tensor, choice): (&OutputTensor, presets::Choice)| {
            TensorDecl::new(&tensor.name, choice.dtype().unwrap_or(DType::F32), tensor.shape.clone())
        };
        self.tensors.iter().zip(choices).map(declare).collect()
    }

    /// All keys and values. Without a tokenizer (`tokenizer` false) the file says that it has none.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where one is wanted and none is there, or it cannot be told in GGUF.
    pub fn metadata(&self, preset: &Preset, tokenizer: bool) -> Result<Metadata> {
        let mut metadata = metadata::metadata(&self.checkpoint, &self.gguf, preset.file_type);
        if tokenizer {
            tokenizer::write(&self.checkpoint, &mut metadata)?;
        } else {
            metadata.set("tokenizer.ggml.model", "none");
        }
        Ok(metadata)
    }

    /// The work of a pass: `tensors` as [`GgufExport::declare`] gave them, in the same order. Tensors that the source
    /// stores in the very type asked for are copied.
    ///
    /// # Errors
    /// [`PassError`], for types that weights are not written in.
    pub fn items(
        &self,
        tensors: &[TensorDecl],
        importance: impl Fn(&str) -> Option<Importance>,
    ) -> Result<Vec<Item<'_>>, PassError> {
        self.compensated_items(tensors, importance, |_| None)
    }

    /// [`GgufExport::items`], with rounding errors made up for in the tensors for which there is a compensator.
    ///
    /// # Errors
    /// As for [`GgufExport::items`].
    pub fn compensated_items(
        &self,
        tensors: &[TensorDecl],
        importance: impl Fn(&str) -> Option<Importance>,
        compensator: impl Fn(&TensorDecl) -> Option<Compensator>,
    ) -> Result<Vec<Item<'_>>, PassError> {
        let pairs = self.tensors.iter().zip(tensors).enumerate();
        pairs
            .map(|(index, (tensor, decl))| {
                if let Some(bytes) = tensor.content.copy(&self.checkpoint, decl.dtype) {
                    return Item::copy(index, decl, bytes);
                }
                let rows = tensor.content.rows(&self.checkpoint);
                Item::quantize_compensated(index, decl, rows, importance(&decl.name), compensator(decl))
            })
            .collect()
    }
}

/// Goes through a checkpoint's weights and says under which names they are written.
struct Lister<'a> {
    checkpoint: &'a Checkpoint,
    gguf: Gguf,
    tensors: Vec<OutputTensor>,
}

impl Lister<'_> {
    fn list(mut self) -> Result<Vec<OutputTensor>> {
        let description = self.checkpoint.description();
        let tied = description.head.is_some_and(|head| head.tied) && !self.gguf.needs_output;
        for weight in self.checkpoint.weights() {
            let id = weight.id;
            if tied && id == Role::Head.global() {
                continue;
            }
            if let Some(fused) = self.gguf.fused.iter().find(|fused| fused.roles.contains(&id.role)) {
                let ids: Vec<WeightId> = fused.roles.iter().map(|&role| WeightId { role, ..id }).collect();
                if ids.first() == Some(&id) {
                    self.join(fused.place, &ids)?;
                }
            } else if matches!(id.role, Role::LatentDown | Role::KeyRotary) {
                if id.role == Role::LatentDown {
                    let key = WeightId { role: Role::KeyRotary, ..id };
                    self.join(names::at("blk.{l}.attn_kv_a_mqa"), &[id, key])?;
                }
            } else {
                self.single(id, &weight.shape)?;
            }
        }
        self.rope_factors(description);
        Ok(self.tensors)
    }

    /// Several weights, one after another.
    fn join(&mut self, place: Place, ids: &[WeightId]) -> Result<()> {
        let Some(&first) = ids.first() else { return Ok(()) };
        let weights = ids.iter().map(|&id| self.checkpoint.weight(id)).collect::<Result<Vec<_>>>()?;
        let vector = first.part == Part::Bias;
        let height: u64 =
            weights.iter().map(|weight| if vector { weight.columns() } else { weight.rows() }).sum();
        let shape = if vector { vec![height] } else { vec![height, weights[0].columns()] };
        let content = Content::Joined { ids: ids.to_vec(), vector };
        self.push(place, first, shape, content);
        Ok(())
    }

    fn single(&mut self, id: WeightId, shape: &[u64]) -> Result<()> {
        let tables = [(self.gguf.names)(self.checkpoint.description()), names::gguf::NAMES];
        let mut places = tables.iter().flat_map(|table| table.iter()).filter(|(role, _)| *role == id.role);
        let latent = self
            .checkpoint
            .description()
            .layers
            .iter()
            .any(|layer| layer.attention.latent.is_some_and(|latent| latent.query_rank.is_some()));
        // Compressed queries have a name of their own.
        let found = if latent && id.role == Role::Query { places.next_back() } else { places.next() };
        let (_, place) = found.ok_or_else(|| Error::Unsupported {
            family: self.checkpoint.family().name.to_owned(),
            what: format!("writing {id} into GGUF, which has no name for it,"),
        })?;
        let heads = self.heads(id);
        let whole = || Content::Rows { id, skip: 0 };
        let (shape, content) = match (id.role, shape) {
            (Role::PositionEmbedding, [rows, columns]) => {
                let skip = self.checkpoint.description().embedding.positions.map_or(0, |table| table.offset);
                (vec![rows - u64::from(skip), *columns], Content::Rows { id, skip: skip.into() })
            }
            (Role::KeyUp, [rows, columns]) => {
                let plain = rows / heads;
                (vec![heads, *columns, plain], Content::Transposed { id, plain })
            }
            (Role::ValueUp, [rows, columns]) => (vec![heads, rows / heads, *columns], whole()),
            (Role::SharedScore, [1, columns]) => (vec![*columns], whole()),
            _ => (shape.to_vec(), whole()),
        };
        self.push(*place, id, shape, content);
        Ok(())
    }

    fn heads(&self, id: WeightId) -> u64 {
        let layers = &self.checkpoint.description().layers;
        id.layer
            .and_then(|layer| layers.get(layer as usize))
            .map_or(1, |layer| layer.attention.heads.max(1))
            .into()
    }

    fn push(&mut self, place: Place, id: WeightId, shape: Vec<u64>, content: Content) {
        let name = format!("{}{}", place.module(id.layer, 0), place.suffix(id.part));
        self.tensors.push(OutputTensor { name, shape, content });
    }

    /// Stretches of rotated pairs, which llama.cpp reads as tensors.
    fn rope_factors(&mut self, description: &Description) {
        let Some(rope) = description.ropes.first() else { return };
        let mut push = |name: &str, values: Vec<f32>| {
            let shape = vec![values.len() as u64];
            self.tensors.push(OutputTensor { name: name.into(), shape, content: Content::Values(values) });
        };
        match &rope.scaling {
            RopeScaling::Llama3 { .. } | RopeScaling::Factors(_) => {
                let plain = crate::rope::Rope::plain(rope.width, rope.theta).table(0).frequencies;
                let scaled = rope.table(0).frequencies;
                push(
                    "rope_freqs.weight",
                    plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled).collect(),
                );
            }
            RopeScaling::Long { short, long, .. } => {
                push("rope_factors_long.weight", long.clone());
                push("rope_factors_short.weight", short.clone());
            }
            _ => {}
        }
    }
}
