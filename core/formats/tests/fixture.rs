//! The shipped model opens as what it is, and survives being written in every container.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use drophammer_formats::gguf::{self, Metadata};
use drophammer_formats::placed::PlacedFiles;
use drophammer_formats::{DType, Source, SourceKind, TensorDecl, TensorInfo, digest, safetensors};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/shakespeare-llama")
}

fn decls(source: &Source) -> Vec<TensorDecl> {
    source.tensors().iter().map(TensorInfo::decl).collect()
}

/// The same tensors, whatever their order and container.
fn assert_same_tensors(a: &Source, b: &Source) {
    assert_eq!(a.tensors().len(), b.tensors().len());
    for tensor in a.tensors() {
        let other = b.tensor(&tensor.name).unwrap();
        assert_eq!(tensor.decl(), other.decl());
        assert!(a.bytes(tensor) == b.bytes(other), "{}", tensor.name);
    }
}

#[test]
fn a_hugging_face_directory_opens_with_its_configuration_tokenizer_and_tensors() {
    let source = Source::open(fixture()).unwrap();
    assert_eq!(source.kind(), SourceKind::HuggingFace);
    assert_eq!(source.config().unwrap()["num_hidden_layers"], 4);
    assert!(source.generation_config().is_some());
    assert!(source.tokenizer().is_complete());
    assert!(source.tokenizer().tokenizer_config.is_some());
    let embedding = source.tensor("model.embed_tokens.weight").unwrap();
    assert_eq!((embedding.dtype, &embedding.shape[..]), (DType::BF16, &[2048, 256][..]));
    assert_eq!((embedding.rows(), embedding.row_elements()), (2048, 256));
    assert_eq!(source.bytes(embedding).len(), 2048 * 256 * 2);
    assert_eq!(source.tensor_bytes(), 2 * source.tensors().iter().map(TensorInfo::elements).sum::<u64>());
    assert!(source.tensor("no.such.tensor").is_none());
}

#[test]
fn written_safetensors_shards_and_their_index_read_back_the_same() {
    let source = Source::open(fixture()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let layout = safetensors::plan("model", &decls(&source), &[("format", "pt")], Some(2 << 20)).unwrap();
    assert!(layout.files.len() > 2);
    let total = layout.total_bytes();
    let files = PlacedFiles::create(dir.path(), layout).unwrap();
    // Any order: the last tensor first.
    for (i, tensor) in source.tensors().iter().enumerate().rev() {
        files.write_at(i, 0, source.bytes(tensor)).unwrap();
    }
    files.finish().unwrap();
    let size = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().metadata().unwrap().len();
    assert_eq!(total, std::fs::read_dir(dir.path()).unwrap().map(size).sum::<u64>());
    std::fs::copy(fixture().join("config.json"), dir.path().join("config.json")).unwrap();
    assert_same_tensors(&source, &Source::open(dir.path()).unwrap());
}

#[test]
fn written_gguf_files_whole_and_split_read_back_the_same() {
    let source = Source::open(fixture()).unwrap();
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama");
    metadata.set("tokenizer.ggml.tokens", vec!["a".to_owned(), "ä".to_owned()]);
    for max_bytes in [None, Some(3 << 20)] {
        let dir = tempfile::tempdir().unwrap();
        let layout = gguf::plan("model", &metadata, &decls(&source), max_bytes).unwrap();
        let names: Vec<String> = layout.files.iter().map(|file| file.name.clone()).collect();
        let files = PlacedFiles::create(dir.path(), layout).unwrap();
        for (i, tensor) in source.tensors().iter().enumerate() {
            files.write_at(i, 0, source.bytes(tensor)).unwrap();
        }
        files.finish().unwrap();
        // Any part, and the directory, open as the whole model.
        for path in names.iter().map(|name| dir.path().join(name)).chain([dir.path().to_owned()]) {
            let read = Source::open(&path).unwrap();
            assert_eq!(read.kind(), SourceKind::Gguf);
            assert_eq!(read.metadata(), &metadata);
            assert_same_tensors(&source, &read);
        }
    }
}

#[test]
fn opening_headers_only_tells_the_same_without_data() {
    let whole = Source::open(fixture()).unwrap();
    let headers = Source::open_headers(fixture()).unwrap();
    assert_eq!(headers.tensors(), whole.tensors());
    assert_eq!(headers.config(), whole.config());
    assert!(headers.bytes(&headers.tensors()[0]).is_empty());
    let fingerprints = [&whole, &headers].map(|source| digest::source_fingerprint(source).unwrap());
    assert_eq!(fingerprints[0], fingerprints[1]);

    let dir = tempfile::tempdir().unwrap();
    let mut metadata = Metadata::new();
    // A header longer than the first piece that is read of it.
    metadata.set("tokens", (0..300_000).map(|i| format!("token {i}")).collect::<Vec<_>>());
    let path = dir.path().join("m.gguf");
    gguf::write(&path, &metadata, &[(TensorDecl::new("t", DType::F32, [2]), &[0; 8])]).unwrap();
    let headers = Source::open_headers(&path).unwrap();
    assert_eq!(headers.metadata(), &metadata);
    assert_eq!(headers.tensors(), Source::open(&path).unwrap().tensors());
}
