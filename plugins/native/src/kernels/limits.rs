//! What the machine does at most, measured with the instructions that the kernels are made of.

use std::time::Instant;

use drophammer_sdk::profile::MachineLimits;

use super::isa::{self, Isa, Kernel, LANES, Path};
use super::{ask_ahead, fetch_ahead};
use crate::memory::Memory;

/// Bytes that every thread reads: more than caches hold.
const BYTES: usize = 128 << 20;
/// Rounds of products in registers: some tens of milliseconds.
const ROUNDS: usize = 1 << 22;
/// Most sums that do not wait for one another: [`Isa::FLOAT_ROWS`] of them, what registers hold.
const CHAINS: usize = 12;
/// The best of so many counts: others use the machine too.
const TIMES: usize = 5;

/// Measures `threads` threads; `None` if there is no memory to read.
pub(crate) fn measure(path: Path, threads: usize) -> Option<MachineLimits> {
    let threads = threads.max(1);
    let memories: Vec<Memory> = (0..threads).map(|_| Memory::zeroed(BYTES)).collect::<Option<_>>()?;
    for memory in &memories {
        // SAFETY: nobody else uses it. Memory that was never written would be one page of zeros, read over and over.
        unsafe { memory.as_ptr().write_bytes(1, BYTES) };
    }
    let best = |work: &(dyn Fn(usize) + Sync)| {
        let once = || {
            let begun = Instant::now();
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    scope.spawn(move || work(thread));
                }
            });
            begun.elapsed().as_secs_f64()
        };
        (0..TIMES).map(|_| once()).fold(f64::INFINITY, f64::min)
    };
    // SAFETY: each thread reads one memory, written before; the others touch none.
    let read = || {
        best(&|thread| unsafe {
            std::hint::black_box(isa::run(path, Read(&memories[thread])));
        })
    };
    ask_ahead(false);
    let plainly = read();
    ask_ahead(true);
    let reading = plainly.min(read());
    let floats = best(&|_| unsafe {
        std::hint::black_box(isa::run(path, Floats));
    });
    let integers = best(&|_| unsafe {
        std::hint::black_box(isa::run(path, Integers));
    });
    // SAFETY: touches no memory.
    let chains = unsafe { isa::run(path, Chains) };
    // A product and a sum each.
    let products = (2 * threads * ROUNDS * chains * LANES) as f64;
    let integer_operations = products * path.columns_at_once() as f64 / integers;
    Some(MachineLimits {
        read_bytes: (threads * BYTES) as f64 / reading,
        float_operations: products / floats,
        integer_operations: integer_operations.max(tiles(path, threads, best)),
    })
}

/// Operations a second of tiles, if there are.
#[cfg(target_arch = "x86_64")]
fn tiles(path: Path, threads: usize, best: impl Fn(&(dyn Fn(usize) + Sync)) -> f64) -> f64 {
    if !path.has_tiles() {
        return 0.0;
    }
    // SAFETY: there are tiles.
    let seconds = best(&|_| unsafe { isa::run_tiles(Tiles) });
    (2 * threads * ROUNDS / Tiles::STEPS * Tiles::PRODUCTS) as f64 / seconds
}

#[cfg(not(target_arch = "x86_64"))]
fn tiles(_: Path, _: usize, _: impl Fn(&(dyn Fn(usize) + Sync)) -> f64) -> f64 {
    0.0
}

/// Products of tiles from the nearest cache.
#[cfg(target_arch = "x86_64")]
struct Tiles;

#[cfg(target_arch = "x86_64")]
impl Tiles {
    const STEPS: usize = 8;
    /// Of one call: of two tiles with two, each of sixteen tokens, rows and pairs of columns.
    const PRODUCTS: usize = Self::STEPS * 4 * 16 * 16 * 32;
}

#[cfg(target_arch = "x86_64")]
impl isa::TileKernel for Tiles {
    #[inline(always)]
    unsafe fn run<I: isa::amx::Tiled>(self) {
        use isa::amx::{Configured, Multiply, TILE};
        let numbers = crate::memory::Aligned::<u8>::zeroed(2 * Self::STEPS * TILE);
        let mut sums = crate::memory::Aligned::<f32>::zeroed(TILE);
        let at = [numbers.as_ptr(), numbers.as_ptr().wrapping_add(Self::STEPS * TILE)];
        // SAFETY: the room above; the caller's promise.
        unsafe {
            let tiles = Configured::begin();
            for _ in 0..ROUNDS / Self::STEPS {
                tiles.products::<I>(at, at, Self::STEPS, sums.as_mut_ptr());
            }
        }
    }
}

struct Read<'a>(&'a Memory);

impl Kernel for Read<'_> {
    type Output = u8;

    #[inline(always)]
    unsafe fn run<I: Isa>(self) -> u8 {
        let begin = self.0.as_ptr();
        // SAFETY: inside the memory.
        unsafe {
            let mut all = [I::splat_b(0); 4];
            for at in (0..BYTES).step_by(64 * all.len()) {
                fetch_ahead(begin.add(at), 64 * all.len());
                for (i, all) in all.iter_mut().enumerate() {
                    *all = I::or(*all, I::load_b(begin.add(at + 64 * i)));
                }
            }
            let mut bytes = [0; 64];
            I::store_b(bytes.as_mut_ptr(), I::or(I::or(all[0], all[1]), I::or(all[2], all[3])));
            bytes[0]
        }
    }
}

/// How many sums there are.
struct Chains;

impl Kernel for Chains {
    type Output = usize;

    #[inline(always)]
    unsafe fn run<I: Isa>(self) -> usize {
        CHAINS.min(I::FLOAT_ROWS)
    }
}

struct Floats;

impl Kernel for Floats {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<I: Isa>(self) -> f32 {
        // SAFETY: touches no memory.
        unsafe {
            let (a, b) = (std::hint::black_box(0.5), std::hint::black_box(0.25));
            let (a, b) = (I::splat(a), I::splat(b));
            let mut sums = [b; CHAINS];
            for _ in 0..ROUNDS {
                for sum in sums.iter_mut().take(I::FLOAT_ROWS) {
                    *sum = I::fma(*sum, a, b);
                }
            }
            sums.into_iter().map(|sum| I::sum(sum)).sum()
        }
    }
}

struct Integers;

impl Kernel for Integers {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<I: Isa>(self) -> f32 {
        // SAFETY: touches no memory.
        unsafe {
            let codes = I::codes([I::splat_b(std::hint::black_box(3)); 8]);
            let w = codes.as_ref()[0];
            // One and minus one as words, so that sums stay small; for each sum its own, loaded every time, as in a product: the same
            // number, or one known from before, would be multiplied once and for all where products are summed by another instruction.
            let x = [0xffff_0001_u32 as i32; CHAINS];
            let mut sums = [I::zero_i(); CHAINS];
            for _ in 0..ROUNDS {
                let x = std::hint::black_box(&x);
                for (sum, x) in sums.iter_mut().zip(x).take(I::FLOAT_ROWS) {
                    *sum = I::densest(*sum, w, *x);
                }
            }
            sums.into_iter().map(|sum| I::sum(I::to_float(sum))).sum()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_limits() {
        for path in Path::all() {
            let limits = measure(path, 1).unwrap();
            for limit in [limits.read_bytes, limits.float_operations, limits.integer_operations] {
                assert!(limit > 1e6 && limit.is_finite(), "{path:?}: {limits:?}");
            }
        }
    }
}
