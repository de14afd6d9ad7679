//! Mixtures by sensitivity: each matrix gets the width that loses least for the whole model within a size.
//!
//! What storing a matrix in fewer bits costs the model was measured before (`drophammer quantize --budget` writes it beside its
//! result): nats, for GGUF's types. Small divergences grow with the squared error of a matrix, so an MLX format costs a measured
//! one times the ratio of their errors, which are taken on a sample of rows.

use std::collections::HashMap;
use std::path::Path;

use drophammer_forge::failure;
use drophammer_formats::DType;
use drophammer_formats::source::read_json;
use drophammer_models::export::mlx::{Choice, MlxExport, Module, Packed, Scheme, WIDTHS};
use drophammer_quant::budget::Item;
use drophammer_quant::grouped::{self, Fit, Format};
use drophammer_quant::sensitivity::{Budget, Sensitivity};
use drophammer_sdk::{BackendError, ErrorCode, Goal, Result};
use serde::Deserialize;
use serde_json::Value as Json;

/// Rows of a matrix whose error is measured.
const SAMPLED_ROWS: u64 = 64;
/// What a module takes in headers, index and configuration, in bytes and rounded up.
const NAMING_BYTES: u64 = 1 << 10;

/// One way to store a module.
struct Way {
    packed: Packed,
    bytes: f64,
    cost: f64,
}

/// What a mixture is held to.
#[derive(Clone, Copy)]
enum Limit {
    /// Bytes of the mixed matrices in all.
    Bytes(f64),
    /// Their costs in all, nats.
    Cost(f64),
}

/// The formats of modules by path, where the goal asks for a mixture: options `sensitivity` (the document, or the path of a file
/// with it) and `budget`. `beside` is the size of the files that are not weights.
///
/// # Errors
/// When the file cannot be read or fits another model, or no mixture is so small or so exact.
pub(crate) fn choose(
    goal: &Goal,
    scheme: &Scheme,
    export: &MlxExport,
    beside: u64,
) -> Result<HashMap<String, Packed>> {
    let invalid = |message: String| BackendError::new(ErrorCode::InvalidRequest, message);
    let (sensitivity, budget) = match (goal.options.get("sensitivity"), goal.options.get("budget")) {
        (None, None) => return Ok(HashMap::new()),
        (Some(document), Some(budget)) => (
            sensitivity(document)?,
            Budget::deserialize(budget).map_err(|error| invalid(format!("option `budget`: {error}")))?,
        ),
        _ => {
            return Err(invalid("a mixture takes both options, `sensitivity` and `budget`".into())
                .with_help("`drophammer quantize --budget` measures the one and passes both."));
        }
    };
    let usual = scheme
        .usual()
        .ok_or_else(|| invalid(format!("{} packs nothing, so there is nothing to mix", scheme.name)))?;
    let measured = measurements(&sensitivity);
    let mut modules: Vec<(&Module, Vec<Way>)> = Vec::new();
    let mut fixed = 0.0;
    for (module, planned) in export.modules().iter().zip(export.plan(scheme, |_| None)) {
        let known: Option<Vec<&(DType, f64)>> =
            export.gguf_names(module).iter().map(|name| measured.get(name.as_str())).collect();
        match (planned.choice, known) {
            (Choice::Packed(_), Some(known)) if !known.is_empty() => {
                modules.push((module, ways(export, module, usual, &known)?));
            }
            _ => {
                let bytes: u64 = planned.tensors.iter().filter_map(|tensor| tensor.byte_len().ok()).sum();
                fixed += bytes as f64;
            }
        }
    }
    if modules.is_empty() {
        return Err(BackendError::new(
            ErrorCode::InvalidInput,
            "the sensitivity says nothing of this model's matrices",
        )
        .with_help("Measure the sensitivity of the same model: `drophammer quantize --budget`."));
    }
    let ways: Vec<&[Way]> = modules.iter().map(|(_, ways)| ways.as_slice()).collect();
    let chosen = match budget {
        Budget::Divergence(most) => {
            within(&ways, Limit::Cost(sensitivity.predicted(most))).map_err(|least| {
                let least = sensitivity.measured(least);
                invalid(format!(
                    "a mean divergence of {most} nats cannot be met: the least possible are {least:.6}"
                ))
                .with_help("Allow that much, or leave the model unpacked: bf16.")
            })
        }
        Budget::BitsPerWeight(bits) => {
            let parameters = export.parameters().max(1) as f64;
            within(&ways, Limit::Bytes(bits * parameters / 8.0 - fixed)).map_err(|least| {
                let least = (least + fixed) * 8.0 / parameters;
                invalid(format!("{bits} bits per weight cannot be met: the least possible are {least:.3}"))
                    .with_help("Allow that much, or choose a larger group.")
            })
        }
        Budget::Bytes(bytes) => {
            let fixed = fixed + (beside + modules.len() as u64 * NAMING_BYTES) as f64;
            within(&ways, Limit::Bytes(bytes as f64 - fixed)).map_err(|least| {
                let least = least + fixed;
                invalid(format!("{bytes} bytes cannot be met: the least possible are about {least:.0}"))
                    .with_help("Allow that much, or choose a larger group.")
            })
        }
    }?;
    Ok(modules
        .iter()
        .zip(chosen)
        .map(|((module, ways), way)| (module.path.clone(), ways[way].packed))
        .collect())
}

fn sensitivity(option: &Json) -> Result<Sensitivity> {
    let read = match option.as_str() {
        Some(path) => Some(read_json(Path::new(path)).map_err(|error| failure::of_source(&error))?),
        None => None,
    };
    let document = read.as_ref().unwrap_or(option);
    // In the file of a plan it is one part.
    let document = document.get("sensitivity").unwrap_or(document);
    Sensitivity::deserialize(document).map_err(|error| {
        BackendError::new(ErrorCode::InvalidInput, format!("option `sensitivity`: {error}"))
            .with_help("`drophammer quantize --budget` measures it.")
    })
}

/// The most revealing measurement of each tensor, by GGUF name: the type that cost most, and how much.
fn measurements(sensitivity: &Sensitivity) -> HashMap<&str, (DType, f64)> {
    let worst = |item: &Item| {
        let costs = item.candidates.iter().map(|candidate| (candidate.dtype, candidate.cost));
        costs.max_by(|a, b| a.1.total_cmp(&b.1)).filter(|(_, cost)| *cost > 0.0)
    };
    sensitivity.tensors.iter().filter_map(|item| Some((item.name.as_str(), worst(item)?))).collect()
}

/// Every width of a module in the usual group, with what it costs.
fn ways(export: &MlxExport, module: &Module, usual: Packed, known: &[&(DType, f64)]) -> Result<Vec<Way>> {
    let (rows, columns) = export
        .sample(module, SAMPLED_ROWS)
        .map_err(|error| failure::of_model(export.checkpoint().source().root(), &error))?;
    let broken =
        |problem: String| BackendError::new(ErrorCode::InvalidInput, format!("{}: {problem}", module.path));
    // Of matrices fused in one module the costs add up; they are measured by the same type in practice.
    let cost: f64 = known.iter().map(|(_, cost)| cost).sum();
    let dtype = known[0].0;
    let mut bytes = vec![0; dtype.bytes_for(rows.len() as u64).unwrap_or(0) as usize];
    let mut back = vec![0.0; rows.len()];
    drophammer_quant::quantize(dtype, &rows, None, &mut bytes)
        .and_then(|()| drophammer_quant::dequantize(dtype, &bytes, &mut back))
        .map_err(|error| broken(error.to_string()))?;
    let reference = squared_error(&rows, &back).max(f64::MIN_POSITIVE);
    let way = |bits: u8| {
        let packed = Packed { bits, mode: drophammer_models::MlxMode::Affine, ..usual };
        let matrix = packed.matrix(export.base());
        let format = Format { levels: matrix.levels, group: Some(packed.group), scale: matrix.scale };
        let encoded = grouped::encode(format, &rows, columns, None, Fit::Owner);
        let back = encoded
            .and_then(|encoded| grouped::decode(format, &encoded, columns))
            .map_err(|error| broken(error.to_string()))?;
        let per_row = matrix.weight_bytes(columns) + 2 * matrix.scale_bytes(columns);
        let bytes = (module.elements() / columns as u64) as f64 * per_row as f64;
        Ok(Way { packed, bytes, cost: cost * squared_error(&rows, &back) / reference })
    };
    WIDTHS.iter().map(|bits| way(*bits)).collect()
}

fn squared_error(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

/// The ways that cost least within so many bytes, or take least within such a cost: at one price of a byte for all.
///
/// # Errors
/// The least possible, where that is above the limit.
fn within(modules: &[&[Way]], limit: Limit) -> std::result::Result<Vec<usize>, f64> {
    let at = |price: f64| -> Vec<usize> {
        let best = |ways: &&[Way]| {
            let cost = |way: &Way| way.cost + price * way.bytes;
            (0..ways.len()).min_by(|a, b| cost(&ways[*a]).total_cmp(&cost(&ways[*b]))).unwrap_or(0)
        };
        modules.iter().map(best).collect()
    };
    let sum = |chosen: &[usize], of: fn(&Way) -> f64| -> f64 {
        modules.iter().zip(chosen).map(|(ways, way)| of(&ways[*way])).sum()
    };
    let bytes: fn(&Way) -> f64 = |way| way.bytes;
    let cost: fn(&Way) -> f64 = |way| way.cost;
    // Whether it fits, the price at which it fits soonest, and that at which it would be best.
    let (of, most, [mut fitting, mut beyond]) = match limit {
        Limit::Bytes(most) => (bytes, most, [1e30f64, 1e-30f64]),
        Limit::Cost(most) => (cost, most, [1e-30, 1e30]),
    };
    let fits = |price: f64| sum(&at(price), of) <= most;
    if !fits(fitting) {
        return Err(sum(&at(fitting), of));
    }
    if fits(beyond) {
        return Ok(at(beyond));
    }
    for _ in 0..200 {
        let middle = (fitting * beyond).sqrt();
        *(if fits(middle) { &mut fitting } else { &mut beyond }) = middle;
    }
    Ok(at(fitting))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_where_they_save_most() {
        let way = |bits: u8, bytes: f64, cost: f64| Way {
            packed: Packed { mode: drophammer_models::MlxMode::Affine, bits, group: 64 },
            bytes,
            cost,
        };
        let dear = [way(2, 2.0, 10.0), way(4, 4.0, 1.0), way(8, 8.0, 0.0)];
        let cheap = [way(2, 2.0, 0.1), way(4, 4.0, 0.01), way(8, 8.0, 0.0)];
        let modules = [dear.as_slice(), cheap.as_slice()];
        let chosen = |limit| within(&modules, limit);
        assert_eq!(chosen(Limit::Bytes(4.0)), Ok(vec![0, 0]));
        assert_eq!(chosen(Limit::Bytes(6.0)), Ok(vec![1, 0]));
        assert_eq!(chosen(Limit::Bytes(100.0)), Ok(vec![2, 2]));
        assert_eq!(chosen(Limit::Bytes(3.0)), Err(4.0));
        assert_eq!(chosen(Limit::Cost(20.0)), Ok(vec![0, 0]));
        assert_eq!(chosen(Limit::Cost(1.2)), Ok(vec![1, 0]));
        assert_eq!(chosen(Limit::Cost(0.0)), Ok(vec![2, 2]));
    }
}
