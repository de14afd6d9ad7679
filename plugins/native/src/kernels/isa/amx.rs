//! AMX: products of whole tiles, of sixteen rows of 64 bytes, in registers of their own.
//!
//! Written as assembly: the compiler's intrinsics are not stable. A thread says what shapes its tiles have ([`Configured`])
//! when it begins a product; products leave their sums in memory, where operations on vectors take them up.

use std::arch::asm;
use std::sync::OnceLock;

use super::Isa;

/// Rows of a tile: tokens, and lanes of sums.
pub(crate) const ROWS: usize = 16;
/// Bytes of a row.
pub(crate) const ROW: usize = 64;

/// Whether the system lets this process use tiles, which it has to be asked for once: their registers are large.
pub(crate) fn permitted() -> bool {
    static PERMITTED: OnceLock<bool> = OnceLock::new();
    *PERMITTED.get_or_init(ask)
}

#[cfg(target_os = "linux")]
fn ask() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: a system call that touches no memory of this process; a kernel that does not know it refuses it.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack)
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn ask() -> bool {
    false
}

/// Bytes of a tile.
pub(crate) const TILE: usize = ROWS * ROW;

/// Vectors that go with tiles.
///
/// # Safety
/// As for [`Isa`], with AVX512-BF16.
pub(crate) trait Tiled: Isa {
    /// Rounds to bfloat16, to nearest even: two neighbouring columns side by side in each lane.
    unsafe fn bfloat_pairs(first: Self::F, second: Self::F) -> Self::B;
    /// The same of 32 neighbours, in their order.
    unsafe fn bfloats(x: [Self::F; 2]) -> Self::B;
    /// Adds to each lane the products of its two bfloat16 numbers with those of `x`, as tiles do.
    #[cfg(test)]
    unsafe fn dot_bfloats(acc: Self::F, w: Self::B, x: u32) -> Self::F;
}

/// Who multiplies tiles.
pub(crate) trait Multiply {
    /// Prepares this thread for it, until it is dropped.
    ///
    /// # Safety
    /// The processor can, and of AMX it is [`permitted`].
    unsafe fn begin() -> Self;

    /// Sums of `steps` products of two tiles of 16 tokens, `[16][32 columns]`, with two of 16 rows of weights, `[32 / 2 columns][16][2]`;
    /// all of bfloat16, each one's steps one after another. Writes four tiles of sums, `[token][row]`: of the first tokens with both
    /// rows, then of the second.
    ///
    /// # Safety
    /// All of that is there.
    unsafe fn products<I: Tiled>(&self, x: [*const u8; 2], w: [*const u8; 2], steps: usize, sums: *mut f32);
}

/// Shapes of this thread's tiles, eight whole ones, until it is dropped.
pub(crate) struct Configured(());

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: there is a configuration.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags)) };
    }
}

impl Multiply for Configured {
    unsafe fn begin() -> Self {
        #[repr(C, align(64))]
        struct Shapes {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        let mut shapes =
            Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        shapes.rows[..8].fill(ROWS as u8);
        shapes.row_bytes[..8].fill(ROW as u16);
        // SAFETY: 64 bytes of a valid configuration.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, preserves_flags)) };
        Self(())
    }

    #[inline(always)]
    unsafe fn products<I: Tiled>(&self, x: [*const u8; 2], w: [*const u8; 2], steps: usize, sums: *mut f32) {
        // SAFETY: the caller's promise; there is a configuration.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{x0} + {row}]",
                "tileloadd tmm6, [{w0} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{w1} + {row}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{x1} + {row}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {x0}, {tile}",
                "add {x1}, {tile}",
                "add {w0}, {tile}",
                "add {w1}, {tile}",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {row}], tmm0",
                "tilestored [{sums} + {row} + {tile}], tmm1",
                "tilestored [{sums} + {row} + 2 * {tile}], tmm2",
                "tilestored [{sums} + {row} + 3 * {tile}], tmm3",
                x0 = inout(reg) x[0] => _,
                x1 = inout(reg) x[1] => _,
                w0 = inout(reg) w[0] => _,
                w1 = inout(reg) w[1] => _,
                steps = inout(reg) steps => _,
                sums = in(reg) sums,
                row = in(reg) ROW,
                tile = const TILE,
                options(nostack)
            );
        }
    }
}

/// Tiles on a processor that has none, by its vectors: for tests.
#[cfg(test)]
pub(crate) struct Emulated;

#[cfg(test)]
impl Multiply for Emulated {
    unsafe fn begin() -> Self {
        Self
    }

    unsafe fn products<I: Tiled>(&self, x: [*const u8; 2], w: [*const u8; 2], steps: usize, sums: *mut f32) {
        for (at, (x, w)) in x.into_iter().flat_map(|x| w.into_iter().map(move |w| (x, w))).enumerate() {
            for token in 0..ROWS {
                // SAFETY: the caller's promise.
                unsafe {
                    let mut sum = I::splat(0.0);
                    for pair in 0..steps * ROWS {
                        let (tile, row) = (pair / ROWS * TILE, pair % ROWS);
                        let x = x.add(tile + token * ROW).cast::<u32>().add(row);
                        sum = I::dot_bfloats(sum, I::load_b(w.add(tile + row * ROW)), *x);
                    }
                    I::store(sums.add((at * ROWS + token) * ROWS), sum);
                }
            }
        }
    }
}
