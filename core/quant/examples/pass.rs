//! Measures a pass: every matrix of a model to one type, everything else to F32.
//!
//! `cargo run --release -p drophammer-quant --example pass -- SOURCE OUT q8_0 [threads]`
//!
//! Prints seconds, source GB/s and peak resident memory. The output has tensors but no architecture's names, so it is
//! good for measuring only; nothing is flushed to compare with tools that do not flush.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use drophammer_formats::digest::Digest;
use drophammer_formats::gguf::{self, Metadata};
use drophammer_formats::{DType, Source, TensorDecl};
use drophammer_quant::pass::{Item, Options, SourceRows, estimate, forge};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [source, out, dtype, rest @ ..] = arguments.as_slice() else {
        bail!("usage: pass SOURCE OUT_DIRECTORY TYPE [THREADS]");
    };
    let dtype = DType::from_name(dtype).with_context(|| format!("no type {dtype}"))?;
    let mut options = Options { durable: false, ..Options::default() };
    if let Some(threads) = rest.first() {
        options.threads = threads.parse()?;
    }
    let source = Source::open(source)?;
    let decls: Vec<TensorDecl> = source
        .tensors()
        .iter()
        .map(|tensor| {
            let dtype = if tensor.shape.len() == 2 { dtype } else { DType::F32 };
            TensorDecl::new(&tensor.name, dtype, tensor.shape.clone())
        })
        .collect();
    let mut items = Vec::new();
    for (index, (tensor, decl)) in source.tensors().iter().zip(&decls).enumerate() {
        items.push(Item::quantize(index, decl, SourceRows::new(&source, tensor)?, None)?);
    }
    println!("{:?}", estimate(&items, &options)?);
    std::fs::create_dir_all(out)?;
    let layout = gguf::plan("model", &Metadata::new(), &decls, None)?;
    let begin = Instant::now();
    forge(Path::new(out), layout, &items, Digest::of(b"measure"), &options, &())?;
    let seconds = begin.elapsed().as_secs_f64();
    let rate = source.tensor_bytes() as f64 / seconds / 1e9;
    println!("{seconds:.2} s, {rate:.2} GB/s of source, peak resident {}", peak_resident());
    Ok(())
}

/// The most memory this process ever had, mapped pages included, as Linux tells it.
fn peak_resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.map_or_else(|| "unknown".into(), |value| value.trim().to_owned())
}
