//! Which vector instructions this process uses.
//!
//! The choice is made once, from what the processor offers; the environment variable `DROPHAMMER_SIMD`
//! (`portable`, `avx2`, `avxvnni`, `avx512`, `amx`, `neon`, `dotprod`, `i8mm`) lowers it, never raises it above what the processor has. Kernels elsewhere (the
//! native plugin's) ask the same question here, so that one variable governs all of them.
//!
//! [`run`] executes a [`Kernel`] compiled for a [`Level`]. A kernel is written once over [`Lanes`]; every level
//! performs the same IEEE operations in the same order, so the bytes it produces do not depend on the processor.
#![allow(unsafe_code)] // calling functions compiled for instruction sets that were detected at run time

use std::sync::OnceLock;

use crate::lanes::{Lanes, Portable};

/// A set of vector instructions, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Level {
    /// What the compiler's baseline for this processor family gives.
    Portable,
    /// 64-bit Arm's 128-bit vectors.
    Neon,
    /// The same with dot products of bytes.
    Dotprod,
    /// The same with products of matrices of bytes besides.
    I8mm,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// The same with AVX-VNNI, products of bytes. Here the same as [`Level::Avx2`]; kernels of products differ.
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, DQ and VL besides.
    Avx512,
    /// x86-64 with AVX-512, bfloat16 and tiles of it (AMX). Here the same as [`Level::Avx512`]; kernels of products differ.
    Amx,
}

impl Level {
    /// All levels, weakest first.
    pub const ALL: &'static [Level] = &[
        Level::Portable,
        Level::Neon,
        Level::Dotprod,
        Level::I8mm,
        Level::Avx2,
        Level::AvxVnni,
        Level::Avx512,
        Level::Amx,
    ];

    /// The name `DROPHAMMER_SIMD` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Neon => "neon",
            Level::Dotprod => "dotprod",
            Level::I8mm => "i8mm",
            Level::Avx2 => "avx2",
            Level::AvxVnni => "avxvnni",
            Level::Avx512 => "avx512",
            Level::Amx => "amx",
        }
    }

    /// Whether this processor can run code of this level.
    pub fn is_supported(self) -> bool {
        match self {
            Level::Portable => true,
            #[cfg(target_arch = "aarch64")]
            Level::Neon => true,
            #[cfg(target_arch = "aarch64")]
            Level::Dotprod => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Level::I8mm => Level::Dotprod.is_supported() && std::arch::is_aarch64_feature_detected!("i8mm"),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                std::is_x86_feature_detected!("avx2")
                    && std::is_x86_feature_detected!("fma")
                    && std::is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni => Level::Avx2.is_supported() && std::is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                Level::Avx2.is_supported()
                    && std::is_x86_feature_detected!("avx512f")
                    && std::is_x86_feature_detected!("avx512bw")
                    && std::is_x86_feature_detected!("avx512dq")
                    && std::is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Amx => {
                Level::Avx512.is_supported() && std::is_x86_feature_detected!("avx512bf16") && has_tiles()
            }
            #[allow(unreachable_patterns)] // levels of other processor families
            _ => false,
        }
    }

    /// The levels this processor can run, weakest first.
    pub fn supported() -> impl Iterator<Item = Level> {
        Self::ALL.iter().copied().filter(|level| level.is_supported())
    }
}

/// Whether the processor has AMX with products of bfloat16. (The system may still refuse them.)
#[cfg(target_arch = "x86_64")]
fn has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    /// Bits of leaf 7: AMX-TILE, AMX-BF16.
    const TILES: u32 = 1 << 24 | 1 << 22;
    // In virtual machines the question takes microseconds.
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & TILES == TILES)
}

/// The level this process uses: the best supported, or a lower one named by `DROPHAMMER_SIMD`.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| choose(std::env::var("DROPHAMMER_SIMD").ok().as_deref()))
}

/// The level for a wish: unknown or unsupported wishes leave the best one.
fn choose(wish: Option<&str>) -> Level {
    let best = Level::supported().last().unwrap_or(Level::Portable);
    wish.and_then(|wish| Level::supported().find(|level| level.name().eq_ignore_ascii_case(wish)))
        .unwrap_or(best)
}

/// Work written once over [`Lanes`].
///
/// Implementations mark [`Kernel::run`] and all it calls `#[inline(always)]`: only code inlined into the level's
/// entry point is compiled with the level's instructions.
pub trait Kernel {
    /// What the work gives back.
    type Output;

    /// Does the work with vectors of type `L`.
    fn run<L: Lanes>(self) -> Self::Output;
}

/// Runs `kernel` with the instructions of `level`, or with portable ones where the processor lacks them.
pub fn run<K: Kernel>(level: Level, kernel: K) -> K::Output {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Amx if level.is_supported() => {
            // SAFETY: the processor has every feature that `run_avx512` enables.
            unsafe { run_avx512(kernel) }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::AvxVnni if level.is_supported() => {
            // SAFETY: the processor has every feature that `run_avx2` enables.
            unsafe { run_avx2(kernel) }
        }
        #[cfg(target_arch = "aarch64")]
        Level::Neon | Level::Dotprod | Level::I8mm => kernel.run::<crate::lanes::Neon>(),
        _ => run_portable(kernel),
    }
}

// Kept apart from their callers, so that a kernel is compiled once for each level.

#[inline(never)]
fn run_portable<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Portable>()
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<crate::lanes::Avx512>()
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<crate::lanes::Avx2>()
}

#[cfg(test)]
mod tests {
    use super::{Level, choose};

    #[test]
    fn the_best_supported_level_is_chosen_unless_a_lower_one_is_wished() {
        assert_eq!(choose(None), Level::supported().last().unwrap());
        assert_eq!(choose(Some("portable")), Level::Portable);
        assert_eq!(choose(Some("PORTABLE")), Level::Portable);
        assert_eq!(choose(Some("abacus")), choose(None));
    }

    #[test]
    fn a_level_of_another_processor_family_is_never_chosen() {
        let foreign = if cfg!(target_arch = "aarch64") { Level::Avx512 } else { Level::Neon };
        assert!(!foreign.is_supported());
        assert_ne!(choose(Some(foreign.name())), foreign);
    }
}
