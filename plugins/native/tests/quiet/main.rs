//! A token costs no allocation, on any thread. A program of its own: it counts what the whole process allocates.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(unsafe_code)] // an allocator that counts cannot be written without

#[path = "../native/fixture.rs"]
#[allow(dead_code)] // shared with the tests beside, which need more of it
mod fixture;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use drophammer_models::Checkpoint;
use drophammer_models::description::ModelKind;
use drophammer_sdk::{Batch, Options, Session};

/// The system's allocator, counted.
struct Counted;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, begin: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(begin, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, begin: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(begin, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// Fixtures with matrices that only their source can decode (transposed, packed in a way of its own): it needs room for every row,
/// as long as they are not converted.
const DECODED_ROW_BY_ROW: [&str; 2] = ["gpt2", "gpt_oss"];

/// Allocations while tokens of two sequences are generated one by one, over the ends of several pages of the cache.
fn allocations(session: &mut dyn Session) -> usize {
    let limits = session.limits();
    let width = limits.output_width as usize;
    let mut out = vec![0.0; 2 * width];
    let mut step = |position: u32| {
        let (tokens, positions) = ([position % 50 + 1; 2], [position; 2]);
        let batch = Batch { tokens: &tokens, positions: &positions, sequences: &[0, 1], outputs: &[0, 1] };
        session.forward(batch, &mut out).unwrap();
    };
    // What is made once, at first use, is made.
    (0..4).for_each(&mut step);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    (4..limits.context.min(200)).for_each(step);
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

fn decodes(directory: &Path) -> bool {
    Checkpoint::open(directory).unwrap().description().kind == ModelKind::Decoder
}

#[test]
fn a_token_costs_no_allocation() {
    let mut checked = Vec::new();
    let mut check = |path: &Path, reference: bool, options: Options| {
        let mut session = fixture::try_load(path, reference, 2, options).unwrap();
        checked.push((path.display().to_string(), reference, allocations(session.as_mut())));
    };
    for scheme in ["q4_0", "q4_k_m", "q8_0", "f16", "f32"] {
        for kept in ["f32", "f16", "q8_0"] {
            let options = Options::from_iter([("kv_type".to_owned(), kept.into())]);
            check(fixture::quantized(scheme), false, options);
        }
        check(fixture::mixture(2, scheme), false, Options::new());
    }
    for entry in std::fs::read_dir(fixture::fixture("arch")).unwrap() {
        let directory = entry.unwrap().path();
        let decoded = DECODED_ROW_BY_ROW.iter().any(|name| directory.ends_with(name));
        if directory.join("reference.safetensors").exists() && decodes(&directory) && !decoded {
            check(&directory, false, Options::new());
            check(&directory, true, Options::new());
        }
    }
    let noisy: Vec<_> = checked.iter().filter(|(.., allocations)| *allocations > 0).collect();
    assert!(noisy.is_empty(), "{noisy:#?}");
    assert!(checked.len() > 15, "no fixtures in tests/fixtures/arch");
}
