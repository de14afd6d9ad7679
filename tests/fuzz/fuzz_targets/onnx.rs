//! Accepted initializers lie inside the file, or beside it.
#![no_main]

use drophammer_formats::onnx::{self, InitializerData};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(model) = onnx::parse(data) else { return };
    for tensor in &model.graph.initializers {
        match &tensor.data {
            InitializerData::Inline(bytes) => assert!(bytes.len() <= data.len() * 8),
            InitializerData::InFile(range) => assert!(range.start <= range.end && range.end <= data.len() as u64),
            InitializerData::External { location, .. } => {
                assert!(!location.starts_with('/') && location.split('/').all(|part| part != ".."));
            }
        }
    }
});
