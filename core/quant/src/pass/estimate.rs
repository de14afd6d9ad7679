//! How much memory a pass takes, decided before it starts.

use super::error::PassError;
use super::item::{Item, Work};
use super::run::Options;

/// Floats of one chunk, where rows are not longer than that. Part of the journal's meaning (its digests go chunk by
/// chunk), so it does not depend on the number of threads.
const CHUNK_FLOATS: u64 = 1 << 19;
/// Bytes of one chunk that is copied unchanged.
const CHUNK_BYTES: u64 = 1 << 21;

/// What a pass will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Threads it will use: fewer than asked for where memory does not allow them.
    pub threads: usize,
    /// Most memory its buffers take at any time, in bytes. Mapped source pages in use and the caller's own come
    /// on top.
    pub peak_bytes: u64,
    /// Bytes it will write.
    pub output_bytes: u64,
}

/// Memory, threads and output of a pass over these items.
///
/// # Errors
/// [`PassError::Memory`] when one row of some tensor on one thread needs more than the budget.
pub fn estimate(items: &[Item<'_>], options: &Options) -> Result<Estimate, PassError> {
    let (mut largest_chunk, mut largest_encoder) = (0, 0);
    let mut output_bytes = 0u64;
    for item in items {
        let rows = chunk_rows(item, options.memory_budget)?;
        largest_chunk = largest_chunk.max(item.chunk_memory(rows.min(item.rows)));
        largest_encoder = largest_encoder.max(item.encoder_memory());
        for &output in &item.outputs {
            output_bytes = output_bytes.saturating_add(item.output_bytes(output).unwrap_or(u64::MAX));
        }
    }
    // Every thread may be at work on another tensor.
    let each = largest_chunk.saturating_add(largest_encoder);
    let affordable = options.memory_budget.map_or(u64::MAX, |budget| budget / each.max(1));
    let threads = (options.threads.max(1) as u64).min(affordable.max(1)) as usize;
    Ok(Estimate { threads, peak_bytes: each.saturating_mul(threads as u64), output_bytes })
}

/// Rows of one chunk of an item: as many as make up the usual chunk, or, where the budget is smaller than that,
/// as many as it allows; at least one group of rows.
pub(super) fn chunk_rows(item: &Item<'_>, budget: Option<u64>) -> Result<u64, PassError> {
    let group = item.row_group();
    let usual = match &item.work {
        Work::Copy(_) => CHUNK_BYTES,
        Work::Encode { columns, .. } => CHUNK_FLOATS / (*columns).max(1),
    };
    let usual = (usual / group).max(1).saturating_mul(group);
    let Some(budget) = budget else { return Ok(usual) };
    if item.chunk_memory(usual.min(item.rows)) <= budget {
        return Ok(usual);
    }
    let needed = item.chunk_memory(group);
    if needed > budget {
        return Err(PassError::Memory { tensor: item.name.clone(), needed, budget });
    }
    Ok((budget / needed).max(1).saturating_mul(group).min(usual))
}
