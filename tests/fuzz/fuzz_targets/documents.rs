//! Shard names stay inside their directory; JSON never panics.
#![no_main]

use drophammer_formats::{safetensors, source};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = source::parse_json(data);
    let Ok(index) = safetensors::parse_index(data) else { return };
    for shard in index.shards() {
        assert!(!shard.contains('/') && !shard.starts_with('.'));
    }
});
