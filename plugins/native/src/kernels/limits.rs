//! What the machine does at most, measured with the instructions that the kernels are made of.

use std::time::Instant;

use drophammer_sdk::profile::MachineLimits;

use super::fetch_ahead;
use super::isa::{self, Isa, Kernel, LANES, Path};
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
    let reading = best(&|thread| unsafe {
        std::hint::black_box(isa::run(path, Read(&memories[thread])));
    });
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
    Some(MachineLimits {
        read_bytes: (threads * BYTES) as f64 / reading,
        float_operations: products / floats,
        integer_operations: products * path.columns_at_once() as f64 / integers,
    })
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
            // One and minus one as words, so that sums stay small.
            let (w, x) = (std::hint::black_box(3), std::hint::black_box(0xffff_0001_u32 as i32));
            let codes = I::codes([I::splat_b(w); 8]);
            let w = codes.as_ref()[0];
            let mut sums = [I::zero_i(); CHAINS];
            for _ in 0..ROUNDS {
                for sum in sums.iter_mut().take(I::FLOAT_ROWS) {
                    *sum = I::densest(*sum, w, x);
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
