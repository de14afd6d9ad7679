//! Activation statistics: how strongly each input column of each weight matrix is used.
//!
//! The file is llama.cpp's imatrix in GGUF form: per matrix `NAME.in_sum2`, the sums over tokens of squared activations
//! (columns, times experts for stacked matrices), and `NAME.counts`, how many tokens went into each expert's sums.

use std::collections::BTreeMap;
use std::path::Path;

use drophammer_formats::gguf::{self, Metadata};
use drophammer_formats::{DType, Source, TensorDecl};
use thiserror::Error;

use crate::{compensate, pass};

/// Statistics of one matrix.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Columns {
    /// `Σ a²` per column, expert after expert.
    pub sums: Vec<f32>,
    /// Tokens counted, per expert; one entry for a plain matrix.
    pub counts: Vec<f32>,
}

impl Columns {
    /// Columns of the matrix.
    pub fn width(&self) -> usize {
        if self.counts.is_empty() { 0 } else { self.sums.len() / self.counts.len() }
    }

    /// The mean square activation per column of one expert (0 for a plain matrix). An expert that no token met has all
    /// ones, as in llama.cpp.
    pub fn mean_squares(&self, expert: usize) -> Option<Vec<f32>> {
        let width = self.width();
        let count = *self.counts.get(expert)?;
        let sums = self.sums.get(expert * width..(expert + 1) * width)?;
        Some(sums.iter().map(|sum| if count > 0.0 { sum / count } else { 1.0 }).collect())
    }
}

/// Statistics of a model, by GGUF tensor name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Importance {
    /// The matrices.
    pub matrices: BTreeMap<String, Columns>,
    /// What text was read.
    pub datasets: Vec<String>,
    /// Chunks of text read.
    pub chunks: u32,
    /// Tokens per chunk.
    pub chunk_tokens: u32,
}

/// Why statistics cannot be read, written or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImportanceError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] drophammer_formats::Error),
    /// The file is something else.
    #[error(
        "it is no importance matrix (general.type is {found}, not imatrix); collect one from the model, or convert an old .dat file with llama.cpp's imatrix tool"
    )]
    NotImportance {
        /// What it says it is.
        found: String,
    },
    /// Sums and counts of a matrix do not belong together.
    #[error("statistics of {name} are damaged: {reason}; collect the importance matrix again")]
    Damaged {
        /// The matrix.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The file holds no products of activations.
    #[error("it holds no products of activations, which making up for errors needs")]
    NoProducts,
    /// The statistics are of a model of another shape.
    #[error(
        "importance of {name} has {given} columns where the model has {expected}: it belongs to another model"
    )]
    OtherShape {
        /// The matrix.
        name: String,
        /// Columns (times experts) in the file.
        given: usize,
        /// Columns (times experts) in the model.
        expected: usize,
    },
    /// No matrix of the model is in the statistics.
    #[error(
        "none of the model's matrices are in this importance matrix: it belongs to another model (its first is {first:?})"
    )]
    OtherModel {
        /// A name in the file.
        first: Option<String>,
    },
}

impl Importance {
    /// Reads a GGUF imatrix.
    ///
    /// # Errors
    /// [`ImportanceError`] if the file is unreadable, something else, or holds values that are not finite and
    /// non-negative.
    pub fn read(path: &Path) -> Result<Self, ImportanceError> {
        let source = Source::open(path)?;
        let metadata = source.metadata();
        let found = metadata.str("general.type");
        if found != Some("imatrix") {
            let found = found.unwrap_or("not told").to_owned();
            return Err(ImportanceError::NotImportance { found });
        }
        let datasets = metadata
            .array("imatrix.datasets")
            .and_then(|array| array.as_strings())
            .unwrap_or_default()
            .to_vec();
        let number = |key| metadata.u64(key).and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        let mut importance = Self {
            datasets,
            chunks: number("imatrix.chunk_count"),
            chunk_tokens: number("imatrix.chunk_size"),
            ..Self::default()
        };
        for tensor in source.tensors() {
            let Some(name) = tensor.name.strip_suffix(".in_sum2") else { continue };
            let damaged = |reason| ImportanceError::Damaged { name: name.to_owned(), reason };
            let counts = source
                .tensor(&format!("{name}.counts"))
                .ok_or_else(|| damaged("it has sums but no counts"))?;
            if tensor.dtype != DType::F32 || counts.dtype != DType::F32 {
                return Err(damaged("its numbers are not 32-bit floats"));
            }
            let columns =
                Columns { sums: floats(source.bytes(tensor)), counts: floats(source.bytes(counts)) };
            if columns.counts.is_empty() || !columns.sums.len().is_multiple_of(columns.counts.len()) {
                return Err(damaged("sums and counts are of different shapes"));
            }
            if !columns.sums.iter().chain(&columns.counts).all(|x| x.is_finite() && *x >= 0.0) {
                return Err(damaged("a value is negative, NaN or infinite"));
            }
            importance.matrices.insert(name.to_owned(), columns);
        }
        Ok(importance)
    }

    /// Writes a GGUF imatrix that llama.cpp's tools read.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ImportanceError> {
        self.write_with(path, &[])
    }

    /// Writes it with the [products](crate::compensate) of matrices, little-endian floats.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_with(&self, path: &Path, products: &[(&str, &[u8])]) -> Result<(), ImportanceError> {
        let mut metadata = Metadata::new();
        metadata.set("general.type", "imatrix".to_owned());
        metadata.set("imatrix.datasets", self.datasets.clone());
        metadata.set("imatrix.chunk_count", self.chunks);
        metadata.set("imatrix.chunk_size", self.chunk_tokens);
        let mut data = Vec::with_capacity(self.matrices.len() * 2);
        for (name, columns) in &self.matrices {
            let experts = columns.counts.len() as u64;
            for (suffix, values, shape) in [
                ("in_sum2", &columns.sums, vec![experts, columns.width() as u64]),
                ("counts", &columns.counts, vec![experts, 1]),
            ] {
                let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                data.push((TensorDecl::new(format!("{name}.{suffix}"), DType::F32, shape), bytes));
            }
        }
        let mut tensors: Vec<(TensorDecl, &[u8])> =
            data.iter().map(|(decl, bytes)| (decl.clone(), &bytes[..])).collect();
        tensors.extend(products.iter().map(|&(name, bytes)| {
            let shape = vec![bytes.len() as u64 / 4];
            (TensorDecl::new(format!("{name}{}", compensate::SUFFIX), DType::F32, shape), bytes)
        }));
        Ok(gguf::write(path, &metadata, &tensors)?)
    }

    /// Checks that the statistics belong to a model: `matrices` are the names of its matrices with their columns times
    /// experts.
    ///
    /// # Errors
    /// [`ImportanceError::OtherShape`] for a matrix of another width, [`ImportanceError::OtherModel`] if none is here.
    pub fn check<'a>(
        &self,
        matrices: impl IntoIterator<Item = (&'a str, usize)>,
    ) -> Result<(), ImportanceError> {
        let (mut known, mut asked) = (0, 0);
        for (name, expected) in matrices {
            asked += 1;
            let Some(columns) = self.matrices.get(name) else { continue };
            // The embedding is looked up, not multiplied; files disagree on what they say of it.
            if columns.sums.len() != expected && !name.starts_with("token_embd") {
                let given = columns.sums.len();
                return Err(ImportanceError::OtherShape { name: name.to_owned(), given, expected });
            }
            known += 1;
        }
        if asked > 0 && known == 0 {
            return Err(ImportanceError::OtherModel { first: self.matrices.keys().next().cloned() });
        }
        Ok(())
    }
}

impl Importance {
    /// Weights per column, matrix after matrix for stacked ones, as passes take them: mean squares to the power of ¾. The squares
    /// themselves would be right if columns were independent and the text were all there is; damped a little they lose less on
    /// one of the models tried and about as little on the other (tests/peers/RESULTS.md).
    pub fn weights(&self) -> BTreeMap<String, pass::Importance> {
        let means = |columns: &Columns| {
            let experts = (0..columns.counts.len()).filter_map(|expert| columns.mean_squares(expert));
            pass::Importance(experts.flatten().map(|square| square.sqrt() * square.sqrt().sqrt()).collect())
        };
        self.matrices.iter().map(|(name, columns)| (name.clone(), means(columns))).collect()
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Importance {
        let plain = Columns { sums: vec![2.0, 4.0, 6.0, 8.0], counts: vec![2.0] };
        let experts = Columns { sums: vec![1.0, 2.0, 3.0, 4.0], counts: vec![4.0, 0.0] };
        Importance {
            matrices: [("blk.0.attn_q.weight".into(), plain), ("blk.0.ffn_up_exps.weight".into(), experts)]
                .into(),
            datasets: vec!["calibration.txt".into()],
            chunks: 3,
            chunk_tokens: 512,
        }
    }

    #[test]
    fn a_written_file_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("imatrix.gguf");
        sample().write(&path).unwrap();
        assert_eq!(Importance::read(&path).unwrap(), sample());
    }

    #[test]
    fn experts_without_tokens_weigh_all_columns_alike() {
        let importance = sample();
        let experts = &importance.matrices["blk.0.ffn_up_exps.weight"];
        assert_eq!(experts.mean_squares(0), Some(vec![0.25, 0.5]));
        assert_eq!(experts.mean_squares(1), Some(vec![1.0, 1.0]));
        assert_eq!(experts.mean_squares(2), None);
        let weights = importance.weights();
        let close = |name: &str, squares: [f32; 4]| {
            let due = squares.map(|square| square.powf(0.75));
            weights[name].0.iter().zip(due).all(|(weight, due)| (weight - due).abs() < 1e-6)
        };
        assert!(close("blk.0.ffn_up_exps.weight", [0.25, 0.5, 1.0, 1.0]));
        assert!(close("blk.0.attn_q.weight", [1.0, 2.0, 3.0, 4.0]));
    }

    #[test]
    fn statistics_of_another_model_are_refused_by_shape_and_by_name() {
        let importance = sample();
        assert!(importance.check([("blk.0.attn_q.weight", 4)]).is_ok());
        assert!(importance.check([("blk.0.attn_q.weight", 4), ("blk.9.attn_q.weight", 4)]).is_ok());
        insta::assert_snapshot!(importance.check([("blk.0.attn_q.weight", 8)]).unwrap_err());
        insta::assert_snapshot!(importance.check([("encoder.weight", 8)]).unwrap_err());
    }

    #[test]
    fn other_files_and_damaged_numbers_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", "llama".to_owned());
        gguf::write(&path, &metadata, &[]).unwrap();
        assert!(matches!(Importance::read(&path), Err(ImportanceError::NotImportance { .. })));
        let mut importance = sample();
        importance.matrices.get_mut("blk.0.attn_q.weight").unwrap().sums[1] = f32::NAN;
        importance.write(&path).unwrap();
        assert!(matches!(Importance::read(&path), Err(ImportanceError::Damaged { .. })));
    }
}
