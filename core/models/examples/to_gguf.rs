//! Writes a model as GGUF: `cargo run --release -p drophammer-models --example to_gguf -- SOURCE SCHEME DIRECTORY [ADAPTER]`.

use std::error::Error;
use std::path::Path;

use drophammer_formats::Source;
use drophammer_formats::digest::Digest;
use drophammer_models::Checkpoint;
use drophammer_models::export::gguf::GgufExport;
use drophammer_quant::{pass, presets};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [source, scheme, directory, adapter @ ..] = arguments.as_slice() else {
        return Err("usage: to_gguf SOURCE SCHEME DIRECTORY [ADAPTER]".into());
    };
    let mut checkpoint = Checkpoint::open(source)?;
    if let [adapter] = adapter {
        checkpoint = checkpoint.with_adapter(Source::open(adapter)?)?;
    }
    let export = GgufExport::new(checkpoint)?;
    let preset = presets::preset(scheme).ok_or_else(|| format!("there is no scheme `{scheme}`"))?;
    let tensors = export.declare(preset, false, &[]);
    let metadata = export.metadata(preset, export.checkpoint().has_tokenizer())?;
    let layout = drophammer_formats::gguf::plan("model", &metadata, &tensors, None)?;
    let items = export.items(&tensors, |_| None)?;
    std::fs::create_dir_all(directory)?;
    let recipe = Digest::of(format!("{source} {scheme}").as_bytes());
    let report = pass::forge(Path::new(directory), layout, &items, recipe, &pass::Options::default(), &())?;
    println!("{} bytes in {directory}/model.gguf", report.written_bytes);
    Ok(())
}
