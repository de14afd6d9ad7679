//! Which instructions kernels run with: what the processor and `DROPHAMMER_SIMD` allow, and the entry points compiled for each.

use std::sync::OnceLock;

use drophammer_quant::simd::Level;

#[cfg(target_arch = "aarch64")]
use super::neon;
use super::{Isa, Portable};
#[cfg(target_arch = "x86_64")]
use super::{amx, avx2, avx512};

/// A set of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    /// Plain Rust.
    Portable,
    /// AVX2, FMA, F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// The same with AVX-VNNI.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// AVX-512.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The same with VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// The same, and tiles for products of many tokens.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// NEON, whose instructions multiply words.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// NEON with the dot product instructions, which multiply bytes.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
    /// The same with `i8mm`, which multiplies two tokens by two rows at once.
    #[cfg(target_arch = "aarch64")]
    NeonMatrix,
}

impl Path {
    /// What `DROPHAMMER_SIMD` and the processor allow.
    pub(crate) fn chosen() -> Self {
        static CHOSEN: OnceLock<Path> = OnceLock::new();
        *CHOSEN.get_or_init(|| Self::of(drophammer_quant::simd::level()))
    }

    /// The best set of kernels at a level.
    pub(crate) fn of(level: Level) -> Self {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Amx => match Self::of(Level::Avx512) {
                Path::Avx512Vnni if level.is_supported() && amx::permitted() => Path::Amx,
                without => without,
            },
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if level.is_supported() => {
                if std::is_x86_feature_detected!("avx512vnni") {
                    Path::Avx512Vnni
                } else {
                    Path::Avx512
                }
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::AvxVnni if Level::AvxVnni.is_supported() => Path::AvxVnni,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::AvxVnni | Level::Avx2 if Level::Avx2.is_supported() => Path::Avx2,
            #[cfg(target_arch = "aarch64")]
            Level::I8mm if level.is_supported() => Path::NeonMatrix,
            #[cfg(target_arch = "aarch64")]
            Level::I8mm | Level::Dotprod if Level::Dotprod.is_supported() => Path::NeonDot,
            #[cfg(target_arch = "aarch64")]
            Level::I8mm | Level::Dotprod | Level::Neon => Path::Neon,
            _ => Path::Portable,
        }
    }

    /// All that this processor can run.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        let mut all: Vec<Self> = Level::supported().map(Self::of).collect();
        all.dedup();
        // What processors without VNNI take, those with it can run too.
        #[cfg(target_arch = "x86_64")]
        if Level::Avx512.is_supported() && !all.contains(&Path::Avx512) {
            all.push(Path::Avx512);
        }
        all
    }

    /// Whether activations have codes of 8 bits, and some are set apart.
    #[cfg(test)]
    pub(crate) fn takes_bytes(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 | Path::AvxVnni | Path::Avx512 | Path::Avx512Vnni | Path::Amx => true,
            #[cfg(target_arch = "aarch64")]
            Path::NeonDot | Path::NeonMatrix => true,
            _ => false,
        }
    }

    /// Whether products take codes as signed: see [`Isa::codes_about_128`].
    pub(crate) fn signs_codes(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 | Path::Avx512 => true,
            #[cfg(target_arch = "aarch64")]
            Path::NeonDot | Path::NeonMatrix => true,
            _ => false,
        }
    }

    /// Whether there are tiles.
    pub(crate) fn has_tiles(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Path::Amx => true,
            _ => false,
        }
    }

    /// Whether many tokens are multiplied faster by floats than by codes whose products sixteen bits cannot sum. Measured: not on AVX2.
    pub(crate) fn prefers_floats(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => true,
            _ => false,
        }
    }

    /// Whether registers hold a strip's sums of more tokens than a panel for every path has.
    pub(crate) fn has_wide_panels(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Avx512Vnni | Path::Amx => true,
            _ => false,
        }
    }

    /// Columns that one [`Isa::densest`] product of integers takes.
    pub(crate) fn columns_at_once(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 | Path::AvxVnni | Path::Avx512 | Path::Avx512Vnni | Path::Amx => 4,
            #[cfg(target_arch = "aarch64")]
            Path::NeonDot => 4,
            #[cfg(target_arch = "aarch64")]
            Path::NeonMatrix => 8,
            _ => 2,
        }
    }

    /// For reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Path::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Path::AvxVnni => "AVX2, AVX-VNNI",
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Path::Avx512Vnni => "AVX-512 VNNI",
            #[cfg(target_arch = "x86_64")]
            Path::Amx => "AVX-512 VNNI, AMX",
            #[cfg(target_arch = "aarch64")]
            Path::Neon => "NEON",
            #[cfg(target_arch = "aarch64")]
            Path::NeonDot => "NEON dotprod",
            #[cfg(target_arch = "aarch64")]
            Path::NeonMatrix => "NEON i8mm",
        }
    }
}

/// Work written once over [`Isa`].
pub(crate) trait Kernel {
    /// What it gives back.
    type Output;

    /// Does the work.
    ///
    /// # Safety
    /// The processor has the instructions of `I`. Implementations may ask more.
    unsafe fn run<I: Isa>(self) -> Self::Output;
}

/// Runs a kernel with the instructions of `path`.
///
/// # Safety
/// What the kernel asks of its arguments. (`path` comes from detection.)
pub(crate) unsafe fn run<K: Kernel>(path: Path, kernel: K) -> K::Output {
    match path {
        // SAFETY: `Path::of` gives this path only where the processor has the features.
        #[cfg(target_arch = "x86_64")]
        Path::Avx512Vnni | Path::Amx => unsafe { run_avx512_vnni(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Path::Avx512 => unsafe { run_avx512(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Path::AvxVnni => unsafe { run_avx_vnni(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => unsafe { run_avx2(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Path::NeonMatrix => unsafe { run_neon_matrix(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Path::NeonDot => unsafe { run_neon_dot(kernel) },
        // SAFETY: NEON belongs to the target's baseline.
        #[cfg(target_arch = "aarch64")]
        Path::Neon => unsafe { kernel.run::<neon::Neon<neon::Words>>() },
        // SAFETY: needs no instruction beyond the baseline.
        Path::Portable => unsafe { kernel.run::<Portable>() },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")]
unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<avx512::Avx512<false>>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,bmi2")]
unsafe fn run_avx512_vnni<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<avx512::Avx512<true>>() }
}

/// Work with tiles, written over the vectors that go with them.
#[cfg(target_arch = "x86_64")]
pub(crate) trait TileKernel {
    /// Does the work.
    ///
    /// # Safety
    /// The processor has the instructions of `I`. Implementations may ask more.
    unsafe fn run<I: amx::Tiled>(self);
}

/// Runs a kernel with tiles.
///
/// # Safety
/// The processor has AVX512-BF16 besides what [`Path::Avx512Vnni`] takes; and what the kernel asks.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c,bmi2")]
pub(crate) unsafe fn run_tiles<K: TileKernel>(kernel: K) {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<avx512::Avx512<true>>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi2")]
unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<avx2::Avx2<false>>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avxvnni,avx2,fma,f16c,bmi2")]
unsafe fn run_avx_vnni<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<avx2::Avx2<true>>() }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "dotprod")]
unsafe fn run_neon_dot<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<neon::Neon<neon::SignedBytes<false>>>() }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "dotprod,i8mm")]
unsafe fn run_neon_matrix<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<neon::Neon<neon::SignedBytes<true>>>() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever runs tests on a processor of known kind (`cargo xtask arm`) says which paths must have been tested.
    #[test]
    fn this_processor_has_the_paths_it_is_said_to_have() {
        let paths: Vec<&str> = Path::all().into_iter().map(Path::name).collect();
        assert_eq!(paths[0], "portable");
        if let Ok(due) = std::env::var("DROPHAMMER_TEST_PATHS") {
            assert_eq!(paths.join(", "), due);
        }
    }
}
