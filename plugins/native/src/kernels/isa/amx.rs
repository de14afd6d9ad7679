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

/// Vectors that go with tiles.
///
/// # Safety
/// As for [`Isa`].
pub(crate) trait Tiled: Isa {
    /// Words of two steps as their upper and their lower seven bits, four neighbouring columns to a lane.
    unsafe fn planes(words: [Self::B; 2]) -> [Self::B; 2];
    /// `high · 2¹⁴ + middle · 2⁷ + low`, as floats.
    unsafe fn joined(high: *const i32, middle: *const i32, low: *const i32) -> Self::F;
}

/// Shapes of this thread's tiles, until it is dropped.
pub(crate) struct Configured(());

impl Configured {
    /// Eight whole tiles.
    ///
    /// # Safety
    /// [`permitted`], and the processor has AMX.
    pub(crate) unsafe fn new() -> Self {
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
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: there is a configuration.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags)) };
    }
}

/// Products of two planes of bytes each, `[upper, lower]`: writes those of the upper ones, of the mixed ones, of the lower ones.
///
/// # Safety
/// The tiles are [`Configured`]; all rows are there, and room for three tiles.
#[inline(always)]
pub(crate) unsafe fn planes(x: [*const u8; 2], w: [*const u8; 2], out: [*mut i32; 3]) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tileloadd tmm4, [{xh} + {row}]",
            "tileloadd tmm6, [{wh} + {row}]",
            "tilezero tmm0",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{wl} + {row}]",
            "tilezero tmm1",
            "tdpbssd tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{xl} + {row}]",
            "tilezero tmm2",
            "tdpbssd tmm2, tmm5, tmm7",
            "tdpbssd tmm1, tmm5, tmm6",
            "tilestored [{high} + {row}], tmm0",
            "tilestored [{low} + {row}], tmm2",
            "tilestored [{middle} + {row}], tmm1",
            xh = in(reg) x[0],
            xl = in(reg) x[1],
            wh = in(reg) w[0],
            wl = in(reg) w[1],
            high = in(reg) out[0],
            middle = in(reg) out[1],
            low = in(reg) out[2],
            row = in(reg) ROW,
            options(nostack, preserves_flags)
        );
    }
}
