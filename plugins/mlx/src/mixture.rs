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
use drophammer_quant::grouped::{self, Fit, Format};
use drophammer_sdk::{BackendError, ErrorCode, Goal, Result};
use serde_json::Value as Json;

/// Rows of a matrix whose error is measured.
const SAMPLED_ROWS: u64 = 64;

/// One way to store a module.
struct Way {
    packed: Packed,
    bytes: f64,
    cost: f64,
}

/// The formats of modules by path, where the goal asks for a mixture: options `sensitivity` (a file) and `bits_per_weight`.
///
/// # Errors
/// When the file cannot be read or fits another model, or no mixture is so small.
pub(crate) fn choose(goal: &Goal, scheme: &Scheme, export: &MlxExport) -> Result<HashMap<String, Packed>> {
    let invalid = |message: String| BackendError::new(ErrorCode::InvalidRequest, message);
    let (file, bits) = match (goal.options.get("sensitivity"), goal.options.get("bits_per_weight")) {
        (None, None) => return Ok(HashMap::new()),
        (Some(file), Some(bits)) => (
            file.as_str().ok_or_else(|| invalid("option `sensitivity` is not the path of a file".into()))?,
            bits.as_f64()
                .filter(|bits| *bits > 0.0)
                .ok_or_else(|| invalid("option `bits_per_weight` is not a number".into()))?,
        ),
        _ => {
            return Err(invalid("a mixture takes both options, `sensitivity` and `bits_per_weight`".into())
                .with_help(
                    "`drophammer quantize --budget` measures sensitivity and writes it beside its result.",
                ));
        }
    };
    let usual = scheme
        .usual()
        .ok_or_else(|| invalid(format!("{} packs nothing, so there is nothing to mix", scheme.name)))?;
    let measured = measurements(file.as_ref())?;
    let mut modules: Vec<(&Module, Vec<Way>)> = Vec::new();
    let mut fixed = 0.0;
    for (module, planned) in export.modules().iter().zip(export.plan(scheme, |_| None)) {
        let known: Option<Vec<&(DType, f64)>> =
            export.gguf_names(module).iter().map(|name| measured.get(name)).collect();
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
        let message = format!("{file}: says nothing of this model's matrices");
        return Err(BackendError::new(ErrorCode::InvalidInput, message)
            .with_help("Measure the sensitivity of the same model: `drophammer quantize --budget`."));
    }
    let allowed = bits * export.parameters() as f64 / 8.0 - fixed;
    let least: f64 =
        modules.iter().map(|(_, ways)| ways.iter().map(|way| way.bytes).fold(f64::INFINITY, f64::min)).sum();
    if least > allowed {
        let message = format!(
            "{bits} bits per weight cannot be met: the least possible are {:.3}",
            (least + fixed) * 8.0 / export.parameters().max(1) as f64
        );
        return Err(invalid(message).with_help("Allow that much, or choose a larger group."));
    }
    let chosen = within(&modules.iter().map(|(_, ways)| ways.as_slice()).collect::<Vec<_>>(), allowed);
    Ok(modules
        .iter()
        .zip(chosen)
        .map(|((module, ways), way)| (module.path.clone(), ways[way].packed))
        .collect())
}

/// The most revealing measurement of each tensor, by GGUF name: the type that cost most, and how much.
fn measurements(path: &Path) -> Result<HashMap<String, (DType, f64)>> {
    let document = read_json(path).map_err(|error| failure::of_source(&error))?;
    let document = document.get("sensitivity").unwrap_or(&document);
    let mut measured = HashMap::new();
    for tensor in document.get("tensors").and_then(Json::as_array).into_iter().flatten() {
        let candidates = tensor.get("candidates").and_then(Json::as_array).into_iter().flatten();
        let costs = candidates.filter_map(|candidate| {
            let dtype = DType::from_name(candidate.get("dtype")?.as_str()?)?;
            Some((dtype, candidate.get("cost")?.as_f64()?))
        });
        let worst = costs.max_by(|a, b| a.1.total_cmp(&b.1)).filter(|(_, cost)| *cost > 0.0);
        if let (Some(name), Some(worst)) = (tensor.get("name").and_then(Json::as_str), worst) {
            measured.insert(name.to_owned(), worst);
        }
    }
    Ok(measured)
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

/// The ways whose costs sum to least within so many bytes: at one price of a byte for all, which is as low as fits.
fn within(modules: &[&[Way]], allowed: f64) -> Vec<usize> {
    let at = |price: f64| -> Vec<usize> {
        let best = |ways: &&[Way]| {
            let cost = |way: &Way| way.cost + price * way.bytes;
            (0..ways.len()).min_by(|a, b| cost(&ways[*a]).total_cmp(&cost(&ways[*b]))).unwrap_or(0)
        };
        modules.iter().map(best).collect()
    };
    let fits = |chosen: &[usize]| {
        modules.iter().zip(chosen).map(|(ways, way)| ways[*way].bytes).sum::<f64>() <= allowed
    };
    let (mut low, mut high) = (1e-30f64, 1e30f64);
    if fits(&at(low)) {
        return at(low);
    }
    for _ in 0..200 {
        let middle = (low * high).sqrt();
        *(if fits(&at(middle)) { &mut high } else { &mut low }) = middle;
    }
    at(high)
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
        assert_eq!(within(&modules, 4.0), [0, 0]);
        assert_eq!(within(&modules, 6.0), [1, 0]);
        assert_eq!(within(&modules, 100.0), [2, 2]);
    }
}
