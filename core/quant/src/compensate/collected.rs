//! Products in files: which matrices are collected together, and where the sums of each are found again.

use std::path::Path;
use std::sync::Arc;

use drophammer_formats::{DType, Source};

use super::{Compensator, Products};
use crate::importance::ImportanceError;

/// A matrix whose products are collected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collecting {
    /// GGUF name.
    pub name: String,
    /// Its columns.
    pub columns: usize,
}

impl Collecting {
    /// How many sums it has.
    pub fn len(&self) -> usize {
        Products::len(self.columns)
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }
}

/// Which matrices' products are collected together: as many as a share of the memory holds, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rounds(Vec<Vec<Collecting>>);

/// Sums that are held at once where memory allows more, bytes.
const MOST_SUMS: u64 = 512 << 20;

impl Rounds {
    /// Divides matrices, by name and columns; `memory` is what the whole work may take in bytes, 0 where nobody says. A quarter of
    /// it may be sums: the model itself is the larger part.
    pub fn plan<'a>(matrices: impl Iterator<Item = (&'a str, usize)>, memory: u64) -> Self {
        let most = if memory == 0 { MOST_SUMS } else { MOST_SUMS.min(memory / 4) };
        let (mut rounds, mut held) = (Vec::<Vec<Collecting>>::new(), 0);
        for (name, columns) in matrices {
            let matrix = Collecting { name: name.to_owned(), columns };
            let bytes = matrix.len() as u64 * 4;
            match rounds.last_mut() {
                Some(round) if held + bytes <= most => round.push(matrix),
                _ => {
                    rounds.push(vec![matrix]);
                    held = 0;
                }
            }
            held += bytes;
        }
        Self(rounds)
    }

    /// How often a text is read.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Round after round.
    pub fn iter(&self) -> impl Iterator<Item = &[Collecting]> {
        self.0.iter().map(Vec::as_slice)
    }

    fn bytes(round: &[Collecting]) -> u64 {
        round.iter().map(|matrix| matrix.len() as u64 * 4).sum()
    }

    /// Bytes of all sums, as a file holds them.
    pub fn file_bytes(&self) -> u64 {
        self.iter().map(Self::bytes).sum()
    }

    /// The most bytes of sums held at once. Matrices with the same inputs may share theirs.
    pub fn memory(&self) -> u64 {
        self.iter().map(Self::bytes).max().unwrap_or(0)
    }
}

impl std::fmt::Display for Rounds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mega = |bytes: u64| bytes as f64 / 1e6;
        write!(
            f,
            "products of {} matrices take {:.1} MB on disk and at most {:.1} MB of memory; the text is read {} time(s)",
            self.iter().flatten().count(),
            mega(self.file_bytes()),
            mega(self.memory()),
            self.count()
        )
    }
}

/// Products that were collected, in a file beside the [importance](crate::importance) of columns: `NAME.in_products` of each
/// matrix.
pub struct Collected(Arc<Source>);

impl Collected {
    /// Opens the file.
    ///
    /// # Errors
    /// [`ImportanceError::File`] for what cannot be read, [`ImportanceError::NoProducts`] where there are none.
    pub fn open(path: &Path) -> Result<Self, ImportanceError> {
        let source = Source::open(path)?;
        if !source.tensors().iter().any(|tensor| tensor.name.ends_with(SUFFIX)) {
            return Err(ImportanceError::NoProducts);
        }
        Ok(Self(Arc::new(source)))
    }

    /// The compensator of a matrix, if its products are here and of as many columns. They are read when work begins.
    pub fn of(&self, matrix: &str, columns: u64) -> Option<Compensator> {
        let name = format!("{matrix}{SUFFIX}");
        let tensor = self.0.tensor(&name).filter(|tensor| tensor.dtype == DType::F32)?;
        let found = Products::columns_of(self.0.bytes(tensor).len() / 4)?;
        let source = Arc::clone(&self.0);
        let load = move || {
            let tensor = source.tensor(&name).ok_or("the products are gone")?;
            let (floats, _) = source.bytes(tensor).as_chunks();
            let sums = floats.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            source.release(tensor, 0..tensor.byte_len());
            let products = Products::new(found, sums);
            products
                .ok_or_else(|| format!("{name} holds a value that is not finite: collect it again").into())
        };
        (found as u64 == columns).then(|| Compensator::new(found, load))
    }
}

/// What is added to a matrix's name.
pub(crate) const SUFFIX: &str = ".in_products";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_matrices_are_collected_at_once_as_a_quarter_of_the_memory_holds() {
        let matrices = || [("a", 256), ("b", 256), ("c", 512), ("d", 256)].into_iter();
        let each = 256 * 256 * 4;
        let names = |memory| {
            let rounds = Rounds::plan(matrices(), memory);
            let names = |round: &[Collecting]| round.iter().map(|m| m.name.as_str()).collect::<String>();
            (rounds.iter().map(names).collect::<Vec<_>>(), rounds.file_bytes() / each, rounds.memory() / each)
        };
        assert_eq!(names(0), (vec!["abcd".to_owned()], 5, 5));
        assert_eq!(names(8 * each), (["ab", "c", "d"].map(str::to_owned).to_vec(), 5, 2));
        assert_eq!(names(1).0.len(), 4, "each at least alone");
        assert!(Rounds::plan(matrices(), 0).to_string().contains("4 matrices take 1.3 MB"));
    }
}
