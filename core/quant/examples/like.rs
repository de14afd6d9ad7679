//! Quantizes a file to the types of another one, such as llama.cpp's own quantizer made of the same source, and compares both with
//! the source: what does the same mixture take here, and how near is it?
//!
//! ```text
//! cargo run --release -p drophammer-quant --example like -- SOURCE.gguf MADE.gguf OUT [--threads N] [--imatrix FILE] [--compensate]
//! ```
//! Writes OUT/model.gguf with MADE's metadata; prints seconds, and both files' squared errors relative to the signal, weighed by
//! the importance matrix if there is one, over tensors stored in blocks. Nothing is flushed, as llama.cpp does not either.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use drophammer_formats::digest::Digest;
use drophammer_formats::{Source, TensorDecl, gguf};
use drophammer_quant::compensate::Collected;
use drophammer_quant::importance;
use drophammer_quant::metrics::ErrorSums;
use drophammer_quant::pass::{Importance, Item, Options, SourceBytes, SourceRows, forge};

struct Asked {
    source: Source,
    made: Source,
    out: PathBuf,
    options: Options,
    importance: BTreeMap<String, Importance>,
    products: Option<Collected>,
}

fn asked() -> Result<Asked> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| arguments.iter().skip_while(|word| *word != name).nth(1);
    let [source, made, out, ..] = arguments.as_slice() else {
        bail!("usage: like SOURCE MADE OUT [--threads N] [--imatrix FILE] [--compensate]");
    };
    let mut options = Options { durable: false, ..Options::default() };
    if let Some(threads) = value("--threads") {
        options.threads = threads.parse()?;
    }
    let imatrix = value("--imatrix").map(Path::new);
    let importance = imatrix.map(importance::Importance::read).transpose()?;
    let compensate = arguments.iter().any(|word| word == "--compensate");
    let products = imatrix.filter(|_| compensate).map(Collected::open).transpose()?;
    Ok(Asked {
        source: Source::open(source)?,
        made: Source::open(made)?,
        out: out.into(),
        options,
        importance: importance.map(|importance| importance.weights()).unwrap_or_default(),
        products,
    })
}

impl Asked {
    fn items<'a>(&'a self, decls: &[TensorDecl]) -> Result<Vec<Item<'a>>> {
        let item = |(index, decl): (usize, &TensorDecl)| {
            let tensor = self.source.tensor(&decl.name).with_context(|| decl.name.clone())?;
            if tensor.dtype == decl.dtype {
                return Ok(Item::copy(index, decl, SourceBytes::new(&self.source, tensor))?);
            }
            let columns = tensor.row_elements();
            let compensator = self.products.as_ref().and_then(|products| products.of(&decl.name, columns));
            let importance = self.importance.get(&decl.name).cloned();
            let rows = SourceRows::new(&self.source, tensor)?;
            Ok(Item::quantize_compensated(index, decl, rows, importance, compensator)?)
        };
        decls.iter().enumerate().map(item).collect()
    }

    /// Squared error of `file` relative to the signal.
    fn error(&self, file: &Source) -> Result<f64> {
        let mut sums = ErrorSums::default();
        for tensor in file.tensors().iter().filter(|tensor| tensor.dtype.is_block()) {
            let original = self.source.tensor(&tensor.name).with_context(|| tensor.name.clone())?;
            let columns = tensor.row_elements() as usize;
            let row_bytes = |dtype: drophammer_formats::DType| {
                dtype.bytes_for(columns as u64).map(|bytes| bytes as usize).context("whole blocks")
            };
            let (from, to) = (row_bytes(original.dtype)?, row_bytes(tensor.dtype)?);
            let weights = self.importance.get(&tensor.name).filter(|weights| weights.0.len() == columns);
            let (mut x, mut y) = (vec![0.0; columns], vec![0.0; columns]);
            let rows = self.source.bytes(original).chunks_exact(from);
            for (a, b) in rows.zip(file.bytes(tensor).chunks_exact(to)) {
                drophammer_quant::dequantize(original.dtype, a, &mut x)?;
                drophammer_quant::dequantize(tensor.dtype, b, &mut y)?;
                sums = sums + ErrorSums::between(&x, &y, weights.map(|weights| &weights.0[..]));
            }
        }
        Ok(sums.weighted_relative())
    }
}

fn main() -> Result<()> {
    let asked = asked()?;
    let decls: Vec<TensorDecl> = asked
        .made
        .tensors()
        .iter()
        .map(|tensor| TensorDecl::new(&tensor.name, tensor.dtype, tensor.shape.clone()))
        .collect();
    std::fs::create_dir_all(&asked.out)?;
    let layout = gguf::plan("model", asked.made.metadata(), &decls, None)?;
    let begin = Instant::now();
    let items = asked.items(&decls)?;
    forge(&asked.out, layout, &items, Digest::of(b"like"), &asked.options, &())?;
    let seconds = begin.elapsed().as_secs_f64();
    let ours = asked.error(&Source::open(asked.out.join("model.gguf"))?)?;
    let theirs = asked.error(&asked.made)?;
    let types: BTreeSet<&str> = decls.iter().map(|decl| decl.dtype.name()).collect();
    let types: Vec<&str> = types.into_iter().collect();
    println!("{seconds:.3} s, error {ours:.4e} of {theirs:.4e}: {:.3}; {}", ours / theirs, types.join(" "));
    Ok(())
}
