//! Accepted tensors lie inside the file, and the header survives being written again.
#![no_main]

use drophammer_formats::gguf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(read) = gguf::parse(data, data.len() as u64) else { return };
    for tensor in &read.tensors {
        assert!(tensor.file_offset() + tensor.byte_len() <= data.len() as u64);
        assert_eq!(tensor.rows() * tensor.row_elements(), tensor.elements());
    }
    let decls: Vec<_> = read.tensors.iter().map(|tensor| tensor.decl()).collect();
    // Only an alignment that the writer does not allow may keep it from being written.
    let Ok(layout) = gguf::plan("again", &read.metadata, &decls, None) else { return };
    let file = &layout.files[0];
    let again = gguf::parse(&file.header, file.len).expect("what was written reads");
    let values = |gguf: &gguf::Gguf| format!("{:?}", gguf.metadata.iter().collect::<Vec<_>>()); // NaN ≠ NaN
    assert_eq!(values(&again), values(&read));
    assert!(again.tensors.iter().map(|tensor| tensor.decl()).eq(decls));
});
