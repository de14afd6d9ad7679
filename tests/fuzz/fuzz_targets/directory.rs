//! A directory whose files the input names: what opens is also complete, and every tensor has its bytes.
//!
//! The input is a list of (which name, length of content as two bytes, content).
#![no_main]

use drophammer_formats::{Source, settle};
use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 12] = [
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "adapter_config.json",
    "adapter_model.safetensors",
    "m.gguf",
    "m-00001-of-00002.gguf",
    "m-00002-of-00002.gguf",
    "m.onnx",
    "m.onnx.data",
];

fuzz_target!(|data: &[u8]| {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let mut rest = data;
    while let [name, low, high, after @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(after.len());
        let path = directory.path().join(NAMES[usize::from(*name) % NAMES.len()]);
        std::fs::write(path, &after[..len]).expect("room in memory");
        rest = &after[len..];
    }
    let complete = settle::completeness(directory.path());
    let Ok(source) = Source::open(directory.path()) else { return };
    assert_eq!(complete.expect("an opened model can be judged"), []);
    for tensor in source.tensors() {
        assert_eq!(source.bytes(tensor).len() as u64, tensor.byte_len());
    }
});
