//! Why a pass cannot start or go on.

use drophammer_formats::{DType, Error, Fault};

use super::item::BoxError;

/// A failed pass. What was finished stays in the journal, and a new pass continues from there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PassError {
    /// The output cannot be written.
    #[error(transparent)]
    Output(#[from] Error),
    /// The output cannot be laid out.
    #[error(transparent)]
    Layout(#[from] Fault),
    /// A source could not give its rows.
    #[error("tensor `{tensor}`: cannot read rows {begin}..{end}: {source}")]
    Read {
        /// The tensor.
        tensor: String,
        /// The first row asked for.
        begin: u64,
        /// The row after the last.
        end: u64,
        /// The source's reason.
        source: BoxError,
    },
    /// A weight is NaN or infinite.
    #[error(
        "tensor `{tensor}` holds {value} in row {row}, column {column}: only finite weights can be written"
    )]
    NonFinite {
        /// The tensor.
        tensor: String,
        /// The row, counted over all outer dimensions.
        row: u64,
        /// The column.
        column: u64,
        /// The value.
        value: f32,
    },
    /// The encoder refused.
    #[error("tensor `{tensor}`: cannot encode rows from {row}: {source}")]
    Encode {
        /// The tensor.
        tensor: String,
        /// The first row of the chunk.
        row: u64,
        /// The encoder's reason.
        source: BoxError,
    },
    /// There is no codec for the type.
    #[error("tensor `{tensor}`: {dtype} is not a type that weights are written in")]
    Unsupported {
        /// The tensor.
        tensor: String,
        /// The type.
        dtype: DType,
    },
    /// Importance that does not belong to the tensor.
    #[error("tensor `{tensor}`: {problem}")]
    Importance {
        /// The tensor.
        tensor: String,
        /// What does not fit.
        problem: String,
    },
    /// An item and the place planned for its output disagree.
    #[error("tensor `{tensor}`: its rows make {made} bytes, but {planned} are planned for output {output}")]
    Size {
        /// The tensor.
        tensor: String,
        /// Index of the output in the sink.
        output: usize,
        /// Bytes the item makes.
        made: u64,
        /// Bytes the sink expects.
        planned: u64,
    },
    /// Even one row at a time on one thread takes more memory than allowed.
    #[error("tensor `{tensor}` needs {needed} bytes of memory at least, but {budget} are allowed")]
    Memory {
        /// The tensor.
        tensor: String,
        /// Least memory, in bytes.
        needed: u64,
        /// Allowed memory, in bytes.
        budget: u64,
    },
    /// Its owner cancelled it.
    #[error("cancelled")]
    Cancelled,
}

impl PassError {
    /// A short stable name of the kind of failure, for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            PassError::Output(error) => error.code(),
            PassError::Layout(fault) => fault.code(),
            PassError::Read { .. } => "read",
            PassError::NonFinite { .. } => "non_finite",
            PassError::Encode { .. } | PassError::Size { .. } => "encode",
            PassError::Unsupported { .. } => "unsupported",
            PassError::Importance { .. } => "importance",
            PassError::Memory { .. } => "memory",
            PassError::Cancelled => "cancelled",
        }
    }

    /// The tensor it is about.
    pub fn tensor(&self) -> Option<&str> {
        match self {
            PassError::Read { tensor, .. }
            | PassError::NonFinite { tensor, .. }
            | PassError::Encode { tensor, .. }
            | PassError::Unsupported { tensor, .. }
            | PassError::Importance { tensor, .. }
            | PassError::Size { tensor, .. }
            | PassError::Memory { tensor, .. } => Some(tensor),
            PassError::Output(_) | PassError::Layout(_) | PassError::Cancelled => None,
        }
    }

    /// What the user can do next.
    pub fn help(&self) -> String {
        match self {
            PassError::Output(error) => error.help(),
            PassError::Layout(fault) => fault.help().into(),
            PassError::Read { .. } => {
                "Check that the source is still there and unchanged, then retry.".into()
            }
            PassError::NonFinite { .. } => {
                "The source is damaged or overflowed in training: download it again, or ask its publisher."
                    .into()
            }
            PassError::Unsupported { .. } => "Choose another scheme.".into(),
            PassError::Importance { .. } => {
                "Collect the importance matrix again, from this very model.".into()
            }
            PassError::Memory { .. } => "Allow more memory.".into(),
            PassError::Encode { .. } | PassError::Size { .. } => {
                "This is a fault of the backend: report it with the job's log.".into()
            }
            PassError::Cancelled => "Run it again to continue where it stopped.".into(),
        }
    }
}
