//! The engine's arithmetic: functions over plain slices and pointers, no model, no threads.
//!
//! - [`isa`] is what everything here is written in, once for all instruction sets.
//! - [`float`] multiplies by weights in float32: the reference, and what plain types use.
//! - [`tile`] multiplies by quantized weights in integers, [`activation`] prepares what they are multiplied by.
//! - [`rows`] holds norms and everything that goes element by element, [`rotate`] turns heads by their position.
//! - [`outer`] sums products of activations, for statistics of them.
//! - [`limits`] measures what the machine does at most with these instructions.
//! - [`attention`] attends over pages of the key/value cache without ever holding all scores.
#![allow(unsafe_code)] // kernels; every block says why it is sound
#![allow(clippy::cast_ptr_alignment)] // bytes become numbers through loads and stores that need no alignment

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod float;
pub(crate) mod isa;
pub(crate) mod limits;
pub(crate) mod outer;
pub(crate) mod rotate;
pub(crate) mod rows;
pub(crate) mod tile;

#[cfg(target_arch = "x86_64")]
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

pub(crate) use isa::{LANES, Path};

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// How far ahead of a read the caches are asked for what follows. Of 1 to 16 KiB, two to four did best on Zen 5.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 4096;

/// Whether they are asked at all.
#[cfg(target_arch = "x86_64")]
static ASKED: AtomicBool = AtomicBool::new(true);

/// Says whether [`fetch_ahead`] does anything from now on, in all threads.
pub(crate) fn ask_ahead(ask: bool) {
    #[cfg(target_arch = "x86_64")]
    ASKED.store(ask, Relaxed);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = ask;
}

/// Asks for a line before it is read; any address will do.
#[inline(always)]
pub(crate) fn prefetch(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which may name any address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Asks for as many `bytes` as are read next, [`AHEAD`] of them: for whoever reads a long stream of memory, which some processors' own
/// prefetching interrupts at every page.
#[inline(always)]
pub(crate) fn fetch_ahead(next: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    if ASKED.load(Relaxed) {
        for at in (AHEAD..AHEAD + bytes).step_by(LINE) {
            prefetch(next.wrapping_add(at));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (next, bytes);
}
