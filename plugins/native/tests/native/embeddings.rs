//! A real sentence encoder: its hidden states, pooled as it says, are its own embeddings.

use std::path::PathBuf;

use drophammer_formats::Source;
use drophammer_models::Checkpoint;
use drophammer_models::graph::Pooling;

use crate::fixture::{fixture, forward, load};

fn floats(source: &Source, name: &str) -> Vec<f32> {
    let bytes = source.bytes(source.tensor(name).unwrap());
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn a_sentence_encoder_gives_its_own_embeddings() {
    let Some(directory) = std::env::var_os("DROPHAMMER_MINILM").map(PathBuf::from) else {
        eprintln!(
            "not run: `cargo xtask test` fetches all-MiniLM-L6-v2 and names its directory in DROPHAMMER_MINILM"
        );
        return;
    };
    assert_eq!(Checkpoint::open(&directory).unwrap().description().pooling, Some(Pooling::Mean));
    let reference = Source::open(fixture("minilm-reference.safetensors")).unwrap();
    for exact in [true, false] {
        let mut session = load(&directory, exact, 1);
        let width = session.limits().output_width as usize;
        for sentence in 0..3 {
            let ids = reference.bytes(reference.tensor(&format!("tokens.{sentence}")).unwrap());
            let ids = ids.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32);
            let row: Vec<u32> = ids.collect();
            let hidden = forward(session.as_mut(), std::slice::from_ref(&row));
            let mut pooled = vec![0.0; width];
            for token in hidden.chunks_exact(width) {
                pooled.iter_mut().zip(token).for_each(|(sum, x)| *sum += x / row.len() as f32);
            }
            let cosine = cosine(&pooled, &floats(&reference, &format!("embedding.{sentence}")));
            println!("sentence {sentence}, reference mode {exact}: cosine {cosine:.8}");
            assert!(cosine >= 0.9999, "{cosine}");
        }
    }
}
