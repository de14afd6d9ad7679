//! Large zeroed memory that threads read, and write through shared references, in parts they keep apart.
//!
//! Weights are read from end to end for every token: with pages of 4 KiB the processor spends almost as long finding them as
//! reading them. The system is asked for large pages where it has them.
#![allow(unsafe_code)] // allocation and advice to the system

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::Arc;

/// Size of a large page.
const LARGE_PAGE: usize = 2 << 20;

/// Zeroed bytes that begin at a large page (or, where they are fewer than one, at a cache line).
pub(crate) struct Memory {
    raw: NonNull<u8>,
    layout: Layout,
    begin: *mut u8,
    len: usize,
}

// SAFETY: plain bytes; whoever writes through a shared reference says why nobody else uses them.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// So many bytes, not resident until they are used; `None` if there are not so many.
    pub(crate) fn zeroed(bytes: usize) -> Option<Self> {
        let align = if bytes >= LARGE_PAGE { LARGE_PAGE } else { 64 };
        // Asked for with more alignment, the allocator would write the zeros itself and so touch every page.
        let layout = Layout::from_size_align(bytes.checked_add(align)?, 16).ok()?;
        // SAFETY: the size is not zero.
        let raw = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
        let begin = raw.as_ptr().wrapping_add(raw.as_ptr().align_offset(align).min(align));
        #[cfg(target_os = "linux")]
        if align == LARGE_PAGE {
            // SAFETY: the range is inside this allocation. Advice changes no content; failure costs speed only.
            let _ = unsafe { rustix::mm::madvise(begin.cast(), bytes, rustix::mm::Advice::LinuxHugepage) };
        }
        Some(Self { raw, layout, begin, len: bytes })
    }

    /// Where it begins.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.begin
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(self.raw.as_ptr(), self.layout) }
    }
}

/// Memory that is handed out from its begin to its end.
pub(crate) struct Arena {
    memory: Arc<Memory>,
    used: usize,
}

impl Arena {
    /// Room for `bytes`, `None` if there are not so many.
    pub(crate) fn new(bytes: usize) -> Option<Self> {
        Some(Self { memory: Arc::new(Memory::zeroed(bytes)?), used: 0 })
    }

    /// The next `bytes`, a multiple of a cache line; `None` where they are used up.
    pub(crate) fn take(&mut self, bytes: usize) -> Option<Region> {
        let begin = self.used;
        self.used = begin.checked_add(bytes)?;
        (self.used <= self.memory.len).then(|| Region { memory: Arc::clone(&self.memory), begin, len: bytes })
    }
}

/// A part of an [`Arena`] that belongs to one owner.
pub(crate) struct Region {
    memory: Arc<Memory>,
    begin: usize,
    len: usize,
}

impl Region {
    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: inside the memory, which is alive and zeroed; regions do not overlap and `&self` excludes writers.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().add(self.begin), self.len) }
    }

    /// Its bytes, to write.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; `&mut self` excludes everybody else.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr().add(self.begin), self.len) }
    }
}
