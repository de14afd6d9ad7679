//! LoRA adapters (Hu et al., 2021): `W + scale · B · A`, added while rows are read.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use drophammer_formats::{DType, Source, SourceKind, TensorInfo};
use serde_json::Value as Json;

use super::locate::{Located, Piece};
use super::stored::{Plain, Stored, Transposed};
use super::weight::RopeOrder;
use crate::config::{Config, finite};
use crate::error::{Error, Result};
use crate::inventory::WeightShape;
use crate::names::Rows;
use crate::weight::Part;

/// An adapter, ready to be merged.
pub(super) struct Adapter {
    source: Arc<Source>,
    form: Form,
    rank: f64,
    alpha: f64,
    root: bool,
    rank_pattern: Vec<(String, f64)>,
    alpha_pattern: Vec<(String, f64)>,
    used: Mutex<HashSet<String>>,
}

/// Whose adapter it is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    /// Hugging Face's.
    Peft,
    /// mlx-lm's, which has both matrices the other way round and says their scale itself.
    Mlx { scale: f64 },
    /// llama.cpp's, whose tensors are named and ordered as its model's.
    Gguf,
}

/// Where an adapter has what it holds for a weight: beside the tensors that the weight was trained in, which the base model's source
/// may call, cut and order otherwise.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// Names of those tensors, without `.weight`: one, or one for each expert.
    pub(super) modules: Vec<String>,
    /// What follows a module's name.
    pub(super) suffix: &'static str,
    /// Which of their rows.
    pub(super) rows: Rows,
    /// How rotated rows get from the order in which they are read into theirs.
    pub(super) order: Option<RopeOrder>,
    /// Whether they are stored `[inputs, outputs]`.
    pub(super) transposed: bool,
}

impl Target {
    /// Beside the source's own tensors; `None` for what lies nowhere.
    pub(super) fn of(located: &Located, part: Part) -> Option<Self> {
        Some(Self {
            modules: located.modules.clone(),
            suffix: located.place.suffix(part),
            rows: located.pieces.first()?.rows,
            order: None,
            transposed: located.place.transposed,
        })
    }
}

/// What an adapter adds to a weight: one product per module.
#[derive(Debug)]
pub(super) struct Delta {
    source: Arc<Source>,
    products: Vec<Option<Product>>,
    rows: Rows,
    order: Option<RopeOrder>,
}

#[derive(Debug)]
struct Product {
    down: Box<dyn Stored>,
    up: Box<dyn Stored>,
    scale: f32,
}

impl Adapter {
    pub(super) fn new(source: Arc<Source>) -> Result<Self> {
        let empty = Json::Null;
        let config = Config::new(source.config().unwrap_or(&empty));
        let unsupported = |what: &str| Error::Unsupported { family: "adapter".into(), what: what.into() };
        let plain = |form, source, rank, alpha| {
            let (rank_pattern, alpha_pattern, used) = (Vec::new(), Vec::new(), Mutex::default());
            Self { source, form, rank, alpha, root: false, rank_pattern, alpha_pattern, used }
        };
        if source.kind() == SourceKind::Gguf {
            let metadata = source.metadata();
            if metadata.str("general.type") != Some("adapter") || metadata.str("adapter.type") != Some("lora")
            {
                return Err(unsupported("a GGUF file that is no LoRA adapter"));
            }
            // Without one, products are scaled already.
            let alpha = metadata.f64("adapter.lora.alpha").unwrap_or(0.0);
            if !alpha.is_finite() {
                return Err(unsupported("a LoRA adapter whose alpha is no number"));
            }
            return Ok(plain(Form::Gguf, source, 0.0, alpha));
        }
        if let Some(parameters) = config.get("lora_parameters") {
            let kind = config.text("fine_tune_type")?.unwrap_or("lora");
            if kind != "lora" {
                let kind = kind.chars().take(40).collect::<String>();
                return Err(unsupported(&format!("fine-tuning of type `{kind}` (only LoRA is)")));
            }
            let parameters = Config::new(parameters);
            let rank = f64::from(parameters.positive(&["rank"])?);
            let scale = parameters.number_or("scale", 1.0)?;
            return Ok(plain(Form::Mlx { scale }, source, rank, rank));
        }
        let kind = config.text("peft_type")?.unwrap_or("LORA");
        if !kind.eq_ignore_ascii_case("lora") {
            return Err(unsupported(&format!(
                "`{}` (only LoRA is)",
                kind.chars().take(40).collect::<String>()
            )));
        }
        if config.flag("use_dora")? {
            return Err(unsupported("DoRA, whose magnitudes need whole columns of the merged weight"));
        }
        let rank = f64::from(config.positive(&["r"])?);
        let alpha = config.number_or("lora_alpha", rank)?;
        let root = config.flag("use_rslora")?;
        let pattern = |key: &str| -> Result<Vec<(String, f64)>> {
            let entries = config.get(key).and_then(Json::as_object);
            let entries = entries.into_iter().flatten();
            entries.map(|(name, value)| Ok((name.clone(), finite(key, value)?))).collect()
        };
        let (rank_pattern, alpha_pattern) = (pattern("rank_pattern")?, pattern("alpha_pattern")?);
        let used = Mutex::new(HashSet::new());
        Ok(Self { source, form: Form::Peft, rank, alpha, root, rank_pattern, alpha_pattern, used })
    }

    /// Whether it holds anything for one of these modules.
    pub(super) fn has(&self, target: &Target) -> bool {
        target.modules.iter().any(|module| {
            let mut names = self.halves(module).into_iter().chain(Self::wholes(module, target.suffix));
            names.any(|name| self.tensor(&name).is_some())
        })
    }

    /// Adds what the adapter holds for a weight to where it lies.
    pub(super) fn apply(&self, weight: &WeightShape, target: &Target, located: &mut Located) -> Result<()> {
        if let Some(pieces) = self.replacement(located, target)? {
            located.pieces = pieces;
            located.replaced = true;
            located.orders.extend(target.order);
            return Ok(());
        }
        if weight.id.part == Part::Bias || weight.id.is_vector() {
            return Ok(());
        }
        let products = target.modules.iter().map(|module| self.product(module, target, located));
        let products = products.collect::<Result<Vec<_>>>()?;
        if products.iter().any(Option::is_some) {
            let (source, rows, order) = (Arc::clone(&self.source), target.rows, target.order);
            located.deltas.push(Delta { source, products, rows, order });
        }
        Ok(())
    }

    /// Whether its names are those of the published model.
    pub(super) fn is_of_published(&self) -> bool {
        self.form != Form::Gguf
    }

    /// Names of the two halves of a product.
    fn halves(&self, module: &str) -> [String; 2] {
        match self.form {
            Form::Peft => ["A", "B"].map(|half| format!("{module}.lora_{half}.weight")),
            Form::Mlx { .. } => ["a", "b"].map(|half| format!("{module}.lora_{half}")),
            Form::Gguf => ["a", "b"].map(|half| format!("{module}.weight.lora_{half}")),
        }
    }

    /// Names of a weight that was trained as a whole.
    fn wholes(module: &str, suffix: &str) -> [String; 2] {
        [format!("{module}.modules_to_save{suffix}"), format!("{module}{suffix}")]
    }

    /// A weight that was trained as a whole.
    fn replacement(&self, located: &Located, target: &Target) -> Result<Option<Vec<Piece>>> {
        let [module] = target.modules.as_slice() else { return Ok(None) };
        let names = Self::wholes(module, target.suffix);
        let Some((key, tensor)) = names.iter().find_map(|name| self.tensor(name)) else { return Ok(None) };
        let mut plain = Plain::new(tensor, located.columns == 1);
        let stored: Box<dyn Stored> = if target.transposed {
            Box::new(Transposed(Box::new(plain)))
        } else {
            plain.flatten();
            Box::new(plain)
        };
        if stored.extent() != [1, target.rows.total, located.columns] {
            return Err(Error::Shape {
                name: key,
                found: tensor.shape.clone(),
                expected: located.shape.clone(),
            });
        }
        self.note(&key);
        let stored = Arc::new(Replaced { source: Arc::clone(&self.source), stored });
        Ok(Some(vec![Piece { stored, matrix: 0, rows: target.rows }]))
    }

    fn product(&self, module: &str, target: &Target, located: &Located) -> Result<Option<Product>> {
        let [down_name, up_name] = self.halves(module);
        let Some((down_key, down)) = self.tensor(&down_name) else { return Ok(None) };
        let missing =
            || Error::Tensor { name: up_name.clone(), problem: "is missing beside its other half".into() };
        let (up_key, up) = self.tensor(&up_name).ok_or_else(missing)?;
        let stored = |tensor: &TensorInfo| -> Box<dyn Stored> {
            let plain = Box::new(Plain::new(tensor, false));
            if matches!(self.form, Form::Mlx { .. }) { Box::new(Transposed(plain)) } else { plain }
        };
        let (down_plain, up_plain) = (stored(down), stored(up));
        let height = target.rows.total;
        let [stack, rows, columns] = down_plain.extent();
        let [up_stack, up_rows, up_columns] = up_plain.extent();
        let alpha = matching(&self.alpha_pattern, module).unwrap_or(self.alpha);
        let (rank, scale) = match self.form {
            Form::Mlx { scale } => (self.rank, scale),
            Form::Gguf => (rows as f64, if alpha == 0.0 { 1.0 } else { alpha / rows as f64 }),
            Form::Peft => {
                let rank = matching(&self.rank_pattern, module).unwrap_or(self.rank);
                (rank, if self.root { alpha / rank.sqrt() } else { alpha / rank })
            }
        };
        let fits = [stack, up_stack] == [1, 1]
            && rows == up_columns
            && columns == located.columns
            && up_rows == height
            && rows == rank as u64;
        if !fits {
            return Err(Error::Shape {
                name: up_key,
                found: vec![up_rows, up_columns, columns],
                expected: vec![height, rank as u64, located.columns],
            });
        }
        self.note(&down_key);
        self.note(&up_key);
        Ok(Some(Product { down: down_plain, up: up_plain, scale: scale as f32 }))
    }

    /// The adapter's tensor for a name of the base model, and its own name for it.
    fn tensor(&self, name: &str) -> Option<(String, &TensorInfo)> {
        ["base_model.model.", "base_model.", ""].iter().find_map(|prefix| {
            let key = format!("{prefix}{name}");
            let tensor = self.source.tensor(&key)?;
            Some((key, tensor))
        })
    }

    fn note(&self, key: &str) {
        if let Ok(mut used) = self.used.lock() {
            used.insert(key.to_owned());
        }
    }

    /// An adapter's tensor that belongs nowhere would silently be lost.
    pub(super) fn check_all_used(&self) -> Result<()> {
        let used = self.used.lock().map(|used| used.clone()).unwrap_or_default();
        match self.source.tensors().iter().find(|tensor| !used.contains(&tensor.name)) {
            None => Ok(()),
            Some(tensor) => Err(Error::Tensor {
                name: tensor.name.clone(),
                problem: "of the adapter matches no weight of the base model".into(),
            }),
        }
    }
}

/// The value of the longest pattern that a module's name ends with.
fn matching(patterns: &[(String, f64)], module: &str) -> Option<f64> {
    let ends = |pattern: &str| {
        let pattern = pattern.trim_start_matches('^').trim_end_matches('$');
        module == pattern || module.ends_with(&format!(".{pattern}"))
    };
    patterns.iter().filter(|(name, _)| ends(name)).max_by_key(|(name, _)| name.len()).map(|(_, value)| *value)
}

/// What an adapter adds to a matrix: `up · down`.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    /// How thin both are.
    pub rank: usize,
    /// `[rank, columns]`.
    pub down: Vec<f32>,
    /// `[rows, rank]`, scaled.
    pub up: Vec<f32>,
}

impl Delta {
    /// Which product an inner row of the weight belongs to, and its row there.
    fn source_row(&self, located: &Located, row: u64) -> (usize, u64) {
        let ordered = located.orders.iter().chain(&self.order).fold(row, |row, order| order.source(row));
        let height = (located.rows / located.pieces.len().max(1) as u64).max(1);
        let per_product = (located.pieces.len() / self.products.len().max(1)).max(1);
        ((ordered / height) as usize / per_product, self.rows.source(ordered % height))
    }

    /// The product as two matrices; `None` for several.
    pub(super) fn low_rank(&self, located: &Located) -> Result<Option<LowRank>> {
        let ([Some(product)], [_]) = (self.products.as_slice(), located.pieces.as_slice()) else {
            return Ok(None);
        };
        let [_, rank, columns] = product.down.extent();
        let mut down = vec![0.0; (rank * columns) as usize];
        product.down.read(&self.source, 0, 0..rank, &mut down)?;
        let mut up = vec![0.0; (located.rows * rank) as usize];
        for (row, out) in (0..).zip(up.chunks_exact_mut(rank.max(1) as usize)) {
            let (_, source_row) = self.source_row(located, row);
            product.up.read(&self.source, 0, source_row..source_row + 1, out)?;
            for value in out {
                *value *= product.scale;
            }
        }
        Ok(Some(LowRank { rank: rank as usize, down, up }))
    }

    /// Adds the rows' share. `rows` are inner rows of the weight.
    pub(super) fn add(&self, rows: Range<u64>, located: &Located, out: &mut [f32]) -> Result<()> {
        let columns = located.columns as usize;
        let mut down: Option<(usize, Vec<f32>)> = None;
        for (row, out) in rows.zip(out.chunks_exact_mut(columns)) {
            let (number, source_row) = self.source_row(located, row);
            let Some(Some(product)) = self.products.get(number) else { continue };
            let rank = product.down.extent()[1];
            if down.as_ref().is_none_or(|(held, _)| *held != number) {
                let mut matrix = vec![0.0; rank as usize * columns];
                product.down.read(&self.source, 0, 0..rank, &mut matrix)?;
                down = Some((number, matrix));
            }
            let Some((_, matrix)) = &down else { continue };
            let mut up = vec![0.0; rank as usize];
            product.up.read(&self.source, 0, source_row..source_row + 1, &mut up)?;
            for (factor, line) in up.iter().zip(matrix.chunks_exact(columns)) {
                let factor = factor * product.scale;
                out.iter_mut().zip(line).for_each(|(out, value)| *out += factor * value);
            }
        }
        Ok(())
    }
}

/// A weight that lies in the adapter instead of the base model.
#[derive(Debug)]
struct Replaced {
    source: Arc<Source>,
    stored: Box<dyn Stored>,
}

impl Stored for Replaced {
    fn extent(&self) -> [u64; 3] {
        self.stored.extent()
    }

    fn read(&self, _: &Source, matrix: u64, rows: Range<u64>, out: &mut [f32]) -> Result<()> {
        self.stored.read(&self.source, matrix, rows, out)
    }

    fn dtype(&self) -> DType {
        self.stored.dtype()
    }

    fn tensors(&self) -> Vec<&TensorInfo> {
        Vec::new()
    }
}
