//! Fast mode beside reference mode: `fidelity MODEL TOKENS [CHUNK] [KV_TYPE]`, where TOKENS is a text file of token ids
//! and fast mode keeps keys and values as KV_TYPE.
//!
//! Prints both perplexities, the mean divergence of fast mode from reference mode, and how often both prefer the same token.

use std::path::Path;

use drophammer_native::Native;
use drophammer_sdk::{Backend, Batch, HostInfo, LoadRequest, Session, Unwatched, most_likely};

type Error = Box<dyn std::error::Error>;

fn load(
    path: &Path,
    reference: bool,
    context: u32,
    kv_type: Option<&str>,
) -> Result<Box<dyn Session>, Error> {
    let mut request =
        LoadRequest { path: path.to_owned(), reference, context: Some(context), ..LoadRequest::default() };
    if let Some(kind) = kv_type {
        request.options.insert("kv_type".into(), kind.into());
    }
    Ok(Native::open(HostInfo::default())?.load(&request, Box::new(Unwatched { threads: 2 }))?)
}

/// Logits after every token of a chunk.
fn logits(session: &mut dyn Session, tokens: &[u32]) -> Result<Vec<f32>, Error> {
    session.remove(0, 0, u32::MAX)?;
    let positions: Vec<u32> = (0..tokens.len() as u32).collect();
    let mut out = vec![0.0; tokens.len() * session.limits().output_width as usize];
    let sequences = vec![0; tokens.len()];
    session.forward(
        Batch { tokens, positions: &positions, sequences: &sequences, outputs: &positions },
        &mut out,
    )?;
    Ok(out)
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = row.iter().map(|x| f64::from(x - top).exp()).sum();
    row.iter().map(|x| f64::from(x - top) - total.ln()).collect()
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, tokens, rest @ ..] = arguments.as_slice() else {
        return Err("usage: fidelity MODEL TOKENS [CHUNK] [KV_TYPE]".into());
    };
    let chunk: usize = rest.first().map_or(Ok(256), |word| word.parse())?;
    let ids = std::fs::read_to_string(tokens)?;
    let ids: Vec<u32> = ids.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let mut reference = load(Path::new(model), true, chunk as u32, None)?;
    let mut fast = load(Path::new(model), false, chunk as u32, rest.get(1).map(String::as_str))?;
    let width = fast.limits().output_width as usize;
    let (mut count, mut same, mut kl, mut losses) = (0.0, 0.0, 0.0, [0.0, 0.0]);
    for ids in ids.chunks_exact(chunk) {
        let (exact, quick) = (logits(reference.as_mut(), ids)?, logits(fast.as_mut(), ids)?);
        for ((exact, quick), &next) in exact.chunks(width).zip(quick.chunks(width)).zip(&ids[1..]) {
            let (p, q) = (log_softmax(exact), log_softmax(quick));
            kl += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            losses[0] -= p[next as usize];
            losses[1] -= q[next as usize];
            same += f64::from(u8::from(most_likely(exact) == most_likely(quick)));
            count += 1.0;
        }
    }
    let [exact, quick] = losses.map(|loss: f64| (loss / count).exp());
    println!(
        "{count} tokens: perplexity {exact:.4} and {quick:.4} ({:+.3}%), KL {:.6}, top-1 {:.2}%",
        (quick / exact - 1.0) * 100.0,
        kl / count,
        same / count * 100.0
    );
    Ok(())
}
