//! Schemes of MLX directories: which module is stored in how many bits.

use drophammer_formats::DType;
use drophammer_quant::grouped::mlx::Matrix;
use drophammer_quant::grouped::{Levels, ScaleType};
use serde_json::{Value as Json, json};

use super::Module;
use crate::checkpoint::MlxMode;
use crate::weight::Role;

/// Groups of the affine mode.
pub const GROUPS: [u32; 3] = [32, 64, 128];
/// Widths of the affine mode.
pub const WIDTHS: [u8; 6] = [2, 3, 4, 5, 6, 8];
/// Where a name says none.
const USUAL_GROUP: u32 = 64;

/// How a matrix is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// What codes and scales mean.
    pub mode: MlxMode,
    /// Bits per weight, without scales.
    pub bits: u8,
    /// Weights per scale.
    pub group: u32,
}

impl Packed {
    const fn affine(bits: u8, group: u32) -> Self {
        Self { mode: MlxMode::Affine, bits, group }
    }

    /// `affine_4_g64`, `affine_4`, `mxfp4`, `nvfp4`, `mxfp8`.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(name: &str) -> Result<Self, String> {
        match name {
            "mxfp4" => return Ok(Self { mode: MlxMode::Mxfp4, bits: 4, group: 32 }),
            "nvfp4" => return Ok(Self { mode: MlxMode::Nvfp4, bits: 4, group: 16 }),
            "mxfp8" => return Ok(Self { mode: MlxMode::Mxfp8, bits: 8, group: 32 }),
            _ => {}
        }
        let (head, group) = with_group(name)?;
        let bits = head.strip_prefix("affine_").and_then(|bits| bits.parse().ok());
        let bits = bits.ok_or_else(|| format!("there is no mlx scheme {name:?}"))?;
        if !WIDTHS.contains(&bits) {
            return Err(format!("{name}: MLX packs 2, 3, 4, 5, 6 or 8 bits, not {bits}"));
        }
        Ok(Self::affine(bits, group))
    }

    /// Its name as a scheme.
    pub fn name(self) -> String {
        match self.mode {
            MlxMode::Affine => format!("affine_{}_g{}", self.bits, self.group),
            mode => mode.name().to_owned(),
        }
    }

    /// As `config.json` says it.
    pub fn document(self) -> Json {
        json!({ "group_size": self.group, "bits": self.bits, "mode": self.mode.name() })
    }

    /// As it is encoded.
    pub fn matrix(self, base: DType) -> Matrix {
        let base = match base {
            DType::F32 => ScaleType::F32,
            DType::F16 => ScaleType::F16,
            _ => ScaleType::BF16,
        };
        let (levels, scale) = match self.mode {
            MlxMode::Affine => (Levels::Affine { bits: self.bits }, base),
            MlxMode::Mxfp4 => (Levels::E2m1, ScaleType::E8M0),
            MlxMode::Nvfp4 => (Levels::E2m1, ScaleType::E4M3),
            MlxMode::Mxfp8 => (Levels::E4m3, ScaleType::E8M0),
        };
        Matrix { levels, group: self.group as usize, scale, base }
    }
}

/// A name without its `_g64`, and the group.
fn with_group(name: &str) -> Result<(&str, u32), String> {
    let Some((head, group)) = name.rsplit_once("_g") else { return Ok((name, USUAL_GROUP)) };
    let group = group.parse().ok().filter(|group| GROUPS.contains(group));
    Ok((head, group.ok_or_else(|| format!("{name}: MLX's groups are 32, 64 or 128"))?))
}

/// What a module becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Plain numbers.
    Plain,
    /// Packed.
    Packed(Packed),
    /// Plain, since rows of this width are no whole groups.
    Misfit(Packed),
}

/// A scheme.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheme {
    /// Its name.
    pub name: String,
    rule: Rule,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Plain(DType),
    Uniform(Packed),
    /// More bits where mlx-lm's recipes give more.
    Mixed {
        low: Packed,
        high: Packed,
    },
}

/// mlx-lm's recipes: bits of most matrices, and of sensitive ones.
const RECIPES: [(u8, u8); 4] = [(2, 6), (3, 4), (3, 6), (4, 6)];

/// Names of all schemes, largest first.
pub fn schemes() -> Vec<String> {
    let mut names = vec!["f32".to_owned(), "bf16".into(), "f16".into()];
    for bits in WIDTHS.iter().rev() {
        names.extend(GROUPS.map(|group| Packed::affine(*bits, group).name()));
    }
    names.extend(["mxfp8", "nvfp4", "mxfp4"].map(str::to_owned));
    names.extend(RECIPES.iter().rev().map(|(low, high)| format!("mixed_{low}_{high}")));
    names
}

impl Scheme {
    /// Reads a name.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(name: &str) -> Result<Self, String> {
        let rule = match name {
            "f32" => Rule::Plain(DType::F32),
            "bf16" => Rule::Plain(DType::BF16),
            "f16" => Rule::Plain(DType::F16),
            _ if name.starts_with("mixed_") => {
                let (head, group) = with_group(name)?;
                let known = RECIPES.iter().find(|(low, high)| head == format!("mixed_{low}_{high}"));
                let &(low, high) = known.ok_or_else(|| format!("there is no mlx recipe {name:?}"))?;
                Rule::Mixed { low: Packed::affine(low, group), high: Packed::affine(high, group) }
            }
            _ => Rule::Uniform(Packed::parse(name)?),
        };
        Ok(Self { name: name.to_owned(), rule })
    }

    /// Whether nothing is packed.
    pub fn is_plain(&self) -> bool {
        matches!(self.rule, Rule::Plain(_))
    }

    /// The float type that the name itself gives.
    pub fn base(&self) -> Option<DType> {
        match self.rule {
            Rule::Plain(dtype) => Some(dtype),
            _ => None,
        }
    }

    /// What most modules are packed as.
    pub fn usual(&self) -> Option<Packed> {
        match self.rule {
            Rule::Plain(_) => None,
            Rule::Uniform(packed) | Rule::Mixed { low: packed, .. } => Some(packed),
        }
    }

    /// What a module becomes in a model of so many layers.
    pub(super) fn choose(&self, module: &Module, family: &str, layers: u32) -> Choice {
        if !module.packable {
            return Choice::Plain;
        }
        let packed = match self.rule {
            Rule::Plain(_) => return Choice::Plain,
            Rule::Uniform(packed) => exception(module, family).unwrap_or(packed),
            Rule::Mixed { low, high } => {
                let index = module.id.layer.unwrap_or(0);
                let often = index < layers / 8
                    || index >= 7 * layers / 8
                    || (i64::from(index) - i64::from(layers / 8)).rem_euclid(3) == 2;
                let sensitive = ["v_proj", "v_a_proj", "v_b_proj", "down_proj"];
                let more = often && sensitive.iter().any(|part| module.path.contains(part));
                if more || module.path.contains("lm_head") { high } else { low }
            }
        };
        packed.fit(module)
    }
}

impl Packed {
    /// Packed if rows are whole groups.
    pub fn fit(self, module: &Module) -> Choice {
        let whole = module.columns().is_multiple_of(u64::from(self.group));
        if whole { Choice::Packed(self) } else { Choice::Misfit(self) }
    }
}

/// Modules that mlx-lm keeps at eight bits whatever is asked for (`quant_predicate` of its models).
fn exception(module: &Module, family: &str) -> Option<Packed> {
    let kept = match family {
        "qwen3_moe" | "gpt_oss" => module.id.role == Role::Router,
        "granite" => matches!(module.id.role, Role::AttentionOutput | Role::Down | Role::Head),
        _ => false,
    };
    kept.then_some(Packed::affine(8, 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_scheme_reads_back_and_others_are_refused_with_the_reason() {
        for name in schemes() {
            assert_eq!(Scheme::parse(&name).unwrap().name, name);
        }
        for (name, reason) in [
            ("affine_7_g64", "2, 3, 4, 5, 6 or 8"),
            ("affine_4_g48", "32, 64 or 128"),
            ("mixed_1_9", "no mlx recipe"),
            ("q4_k_m", "no mlx scheme"),
        ] {
            assert!(Scheme::parse(name).unwrap_err().contains(reason), "{name}");
        }
    }
}
