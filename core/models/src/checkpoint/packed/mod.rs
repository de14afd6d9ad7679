//! Weights that Hugging Face and MLX directories store in few bits, each packed in its own way.
//!
//! One file per way. All are read as floats; which one a module uses is seen from the tensors it has and from
//! `quantization_config` (Hugging Face) or `quantization` (MLX).

mod awq;
mod compressed;
mod gptq;
mod mlx;
mod mxfp4;
mod scaled;

use std::sync::Arc;

pub(super) use mlx::Mlx;
pub use mlx::{MlxMode, MlxPacking};

use drophammer_formats::{DType, Source, TensorInfo};
use serde_json::Value as Json;

use super::stored::Stored;
use crate::config::Config;
use crate::error::{Error, Result};

/// What the configuration says about packing.
#[derive(Debug)]
pub(super) struct Packing {
    method: Method,
    bits: u32,
    group: Option<u64>,
    /// GPTQ: stored zero points are one less than meant.
    zero_offset: u32,
    /// FP8: rows and columns that share a scale.
    block: [u64; 2],
    /// MLX: the whole object, for its per-module entries.
    mlx: Option<Json>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    None,
    Gptq,
    Awq,
    Other,
}

/// How one module is packed.
#[derive(Debug)]
pub(super) enum Found {
    Gptq { bits: u32, group: Option<u64>, zero_offset: u32 },
    Awq { bits: u32, group: Option<u64> },
    Mlx(mlx::Parameters),
    Scaled { block: [u64; 2] },
    Compressed { bits: u32 },
    Mxfp4,
}

impl Packing {
    pub(super) fn new(source: &Source, config: &Json) -> Result<Self> {
        let config = Config::new(config);
        let mut packing =
            Self { method: Method::None, bits: 4, group: None, zero_offset: 1, block: [128, 128], mlx: None };
        if let Some(mlx) = config.get("quantization").filter(|value| value.is_object()) {
            packing.mlx = Some(mlx.clone());
            return Ok(packing);
        }
        let Some(quantization) = config.first(&["quantization_config", "compression_config"]) else {
            return Ok(packing);
        };
        let own = Config::new(quantization);
        let method = own.text("quant_method")?.unwrap_or("").to_ascii_lowercase();
        packing.method = match method.as_str() {
            "gptq" => Method::Gptq,
            "awq" => Method::Awq,
            "bitsandbytes" => return Err(refused(source, BITSANDBYTES)),
            _ if own.flag("load_in_4bit")? || own.flag("load_in_8bit")? => {
                return Err(refused(source, BITSANDBYTES));
            }
            "fp8" | "fbgemm_fp8" | "compressed-tensors" | "mxfp4" | "" => Method::Other,
            _ => {
                let name = method.chars().take(40).collect::<String>();
                return Err(refused(source, &format!("weights packed by `{name}`")));
            }
        };
        packing.bits = own.maybe_count("bits")?.or(own.maybe_count("w_bit")?).unwrap_or(4);
        packing.group = match own.first(&["group_size", "q_group_size"]).and_then(Json::as_i64) {
            Some(size) if size > 0 => Some(size.unsigned_abs()),
            _ => None,
        };
        if own.text("checkpoint_format")?.is_some_and(|format| format.eq_ignore_ascii_case("gptq_v2")) {
            packing.zero_offset = 0;
        }
        if let Some([rows, columns]) =
            own.get("weight_block_size").and_then(Json::as_array).map(Vec::as_slice)
        {
            packing.block = [rows, columns].map(|size| size.as_u64().unwrap_or(128).max(1));
        }
        Ok(packing)
    }

    /// How a module is packed; `None` where it has a plain weight or is absent.
    pub(super) fn find(&self, source: &Source, module: &str, exact: bool) -> Option<Found> {
        let has = |suffix: &str| source.tensor(&format!("{module}{suffix}")).is_some();
        if exact {
            return (has("_blocks") && has("_scales")).then_some(Found::Mxfp4);
        }
        if has(".qweight") && has(".scales") {
            let (bits, group) = (self.bits, self.group);
            return match self.method {
                Method::Gptq => Some(Found::Gptq { bits, group, zero_offset: self.zero_offset }),
                Method::Awq => Some(Found::Awq { bits, group }),
                _ => None,
            };
        }
        if has(".weight_packed") && has(".weight_scale") {
            return Some(Found::Compressed { bits: self.bits });
        }
        let weight = source.tensor(&format!("{module}.weight"))?;
        if let Some(mlx) = &self.mlx
            && weight.dtype == DType::U32
            && has(".scales")
        {
            return Some(Found::Mlx(mlx::Parameters::of(mlx, module)));
        }
        let scaled = has(".weight_scale_inv") || has(".weight_scale");
        (scaled && matches!(weight.dtype, DType::F8E4M3 | DType::F8E5M2 | DType::I8))
            .then_some(Found::Scaled { block: self.block })
    }
}

const BITSANDBYTES: &str = "weights packed by bitsandbytes, which lost precision that a new quantization cannot give back \
     (use the original checkpoint)";

fn refused(source: &Source, what: &str) -> Error {
    Error::Unsupported { family: source.root().display().to_string(), what: what.to_owned() }
}

/// Opens a packed module.
pub(super) fn open(source: &Source, found: Found, module: &str) -> Result<Arc<dyn Stored>> {
    Ok(match found {
        Found::Gptq { bits, group, zero_offset } => {
            Arc::new(gptq::Gptq::open(source, module, bits, group, zero_offset)?)
        }
        Found::Awq { bits, group } => Arc::new(awq::Awq::open(source, module, bits, group)?),
        Found::Mlx(parameters) => Arc::new(mlx::Mlx::open(source, module, parameters)?),
        Found::Scaled { block } => Arc::new(scaled::Scaled::open(source, module, block)?),
        Found::Compressed { bits } => Arc::new(compressed::Compressed::open(source, module, bits)?),
        Found::Mxfp4 => Arc::new(mxfp4::Mxfp4::open(source, module)?),
    })
}

/// A tensor that a packed module must have.
fn part(source: &Source, name: String) -> Result<TensorInfo> {
    let missing =
        || Error::Tensor { name: name.clone(), problem: "is missing beside the packed weight".into() };
    source.tensor(&name).cloned().ok_or_else(missing)
}

/// A tensor's last two dimensions, the second to last first.
fn plane(tensor: &TensorInfo) -> Result<[u64; 2]> {
    match tensor.shape.as_slice() {
        [rows, columns] => Ok([*rows, *columns]),
        _ => Err(wrong(tensor, "is not a matrix")),
    }
}

fn wrong(tensor: &TensorInfo, problem: impl Into<String>) -> Error {
    Error::Tensor { name: tensor.name.clone(), problem: problem.into() }
}

/// The 32-bit words of part of a tensor.
fn words(source: &Source, tensor: &TensorInfo, first: u64, count: u64) -> Result<Vec<u32>> {
    let bytes = super::stored::elements(source, tensor, first, count)?;
    Ok(bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect())
}

/// Whether a tensor holds 32-bit words.
fn check_words(tensor: &TensorInfo) -> Result<()> {
    match tensor.dtype {
        DType::I32 | DType::U32 => Ok(()),
        other => Err(wrong(tensor, format!("holds {other} where packed 32-bit words belong"))),
    }
}
