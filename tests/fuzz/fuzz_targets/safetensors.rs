//! Accepted tensors tile the data exactly.
#![no_main]

use drophammer_formats::safetensors;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(header) = safetensors::parse(data) else { return };
    let mut at = safetensors::header_len(data, data.len() as u64).expect("the header was parsed");
    for tensor in header.tensors.iter().filter(|tensor| tensor.byte_len() > 0) {
        assert_eq!(tensor.file_offset(), at);
        assert_eq!(tensor.dtype.bytes_for(tensor.elements()), Some(tensor.byte_len()));
        at += tensor.byte_len();
    }
    assert_eq!(at, data.len() as u64);
});
