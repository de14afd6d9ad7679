//! Raw output rows for given token ids, written as they come.

use std::fs::File;

use drophammer_formats::placed::PlacedFiles;
use drophammer_formats::{DType, Source, TensorDecl, safetensors};
use drophammer_sdk::host::Plugin;
use drophammer_sdk::{BackendError, Batch, ErrorCode, JobContext, LoadRequest, OutputKind, Result, Session};

use super::{format, load};
use crate::worker::line::WorkerJob;
use crate::worker::protocol::LogitsOrder;

/// Floats computed before they are written.
const AT_ONCE: usize = 4 << 20;

/// Token ids `[sequences, length]`, row by row.
struct Tokens {
    ids: Vec<u32>,
    sequences: usize,
    length: usize,
}

/// Runs every sequence of the order's tokens from an empty cache and writes all rows.
pub(super) fn write(plugin: &Plugin, order: &LogitsOrder, job: &WorkerJob) -> Result<()> {
    let tokens = read(order)?;
    let length = Some(tokens.length as u32);
    let request = LoadRequest { context: length, max_batch: length, max_sequences: 1, ..order.load.clone() };
    let mut session = load(plugin, &request, job)?;
    let limits = session.limits();
    if tokens.length > limits.context as usize {
        return Err(unsuited(
            order,
            &format!("{} tokens, the model takes {}", tokens.length, limits.context),
        ));
    }
    let name = match limits.output_kind {
        OutputKind::Logits => "logits",
        OutputKind::Hidden => "hidden",
    };
    let shape = [tokens.sequences as u64, tokens.length as u64, u64::from(limits.output_width)];
    let decl = TensorDecl::new(name, DType::F32, shape);
    let layout = safetensors::plan("logits", &[decl], &[], None)
        .map_err(drophammer_formats::Error::malformed(&order.staging))
        .map_err(format)?;
    let files = PlacedFiles::create(&order.staging, layout).map_err(format)?;
    rows(session.as_mut(), &tokens, job, &mut |offset, bytes| {
        files.write_at(0, offset, bytes).map_err(format)
    })?;
    files.finish().map_err(format)
}

fn rows(
    session: &mut dyn Session,
    tokens: &Tokens,
    job: &WorkerJob,
    put: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let limits = session.limits();
    let width = limits.output_width as usize;
    // An encoder sees its whole text at once.
    let most = match limits.output_kind {
        OutputKind::Logits => (AT_ONCE / width.max(1)).clamp(1, limits.max_batch.max(1) as usize),
        OutputKind::Hidden => tokens.length,
    };
    let mut offset = 0;
    for (number, sequence) in tokens.ids.chunks(tokens.length).enumerate() {
        session.remove(0, 0, u32::MAX)?;
        for (start, piece) in sequence.chunks(most).enumerate() {
            job.check()?;
            let done = number * tokens.length + start * most;
            job.progress("logits", "", done as u64, tokens.ids.len() as u64);
            let first = (start * most) as u32;
            let positions: Vec<u32> = (first..first + piece.len() as u32).collect();
            let outputs: Vec<u32> = (0..piece.len() as u32).collect();
            let sequences = vec![0; piece.len()];
            let batch =
                Batch { tokens: piece, positions: &positions, sequences: &sequences, outputs: &outputs };
            let mut row = vec![0.0f32; piece.len() * width];
            session.forward(batch, &mut row)?;
            let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
            put(offset, &bytes)?;
            offset += bytes.len() as u64;
        }
    }
    Ok(())
}

/// `tokens` of the order's file: `[B, T]` or `[T]`, 64-bit integers.
fn read(order: &LogitsOrder) -> Result<Tokens> {
    File::open(&order.tokens).map_err(|error| super::io(&order.tokens, &error))?;
    let source = Source::open(&order.tokens).map_err(format)?;
    let tensor = source.tensor("tokens").ok_or_else(|| unsuited(order, "no tensor named `tokens`"))?;
    if tensor.dtype != DType::I64 {
        return Err(unsuited(order, &format!("`tokens` of type {}, not i64", tensor.dtype)));
    }
    let (sequences, length) = match tensor.shape.as_slice() {
        [length] => (1, *length as usize),
        [sequences, length] => (*sequences as usize, *length as usize),
        other => return Err(unsuited(order, &format!("`tokens` of shape {other:?}, not [B, T]"))),
    };
    let id = |bytes: &[u8]| {
        let id = i64::from_le_bytes(bytes.try_into().unwrap_or_default());
        u32::try_from(id).map_err(|_| unsuited(order, &format!("the token id {id}")))
    };
    let ids = source.bytes(tensor).chunks_exact(8).map(id).collect::<Result<Vec<u32>>>()?;
    if ids.is_empty() {
        return Err(unsuited(order, "no tokens"));
    }
    Ok(Tokens { ids, sequences, length })
}

fn unsuited(order: &LogitsOrder, has: &str) -> BackendError {
    BackendError::new(ErrorCode::InvalidInput, format!("{} has {has}", order.tokens.display())).with_help(
        "give a safetensors file with `tokens`, 64-bit token ids of shape [B, T] within the model's context",
    )
}
