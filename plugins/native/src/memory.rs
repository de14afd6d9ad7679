//! Large zeroed memory that threads read, and write through shared references, in parts they keep apart; and bytes that hold what
//! they lie in.
//!
//! Weights are read from end to end for every token: with pages of 4 KiB the processor spends almost as long finding them as
//! reading them. The system is asked for large pages where it has them.
#![allow(unsafe_code)] // allocation, advice to the system, and views that keep alive what they show

use std::alloc::Layout;
use std::any::Any;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use sysinfo::System;

use crate::kernels::LINE;

/// Size of a large page.
const LARGE_PAGE: usize = 2 << 20;

/// Bytes that the system, or the container where there is one, has free or could free; what it does not tell counts as unlimited.
pub(crate) fn available() -> u64 {
    let mut system = System::new();
    system.refresh_memory();
    let (total, available) = (system.total_memory(), system.available_memory());
    let of_system = if total == 0 { u64::MAX } else { available };
    // Of a container what others than files take counts: files' pages can be given back.
    let of_container = system.cgroup_limits().map(|limits| limits.total_memory.saturating_sub(limits.rss));
    of_container.map_or(of_system, |bytes| bytes.min(of_system))
}

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

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: zeroed bytes of this allocation. Whoever writes through `as_ptr` while they are borrowed says why nobody reads them.
        unsafe { std::slice::from_raw_parts(self.begin, self.len) }
    }

    /// Its bytes, to write.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; `&mut self` excludes everybody else.
        unsafe { std::slice::from_raw_parts_mut(self.begin, self.len) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(self.raw.as_ptr(), self.layout) }
    }
}

/// Zeros to be overwritten, the first at the begin of a cache line: a vector that lies in two lines takes twice as long to load.
pub(crate) struct Aligned<T> {
    room: Vec<T>,
    begin: usize,
    len: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// So many.
    pub(crate) fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self { room: Vec::new(), begin: 0, len };
        }
        let spare = LINE / size_of::<T>();
        let room = vec![T::default(); len + spare];
        let begin = room.as_ptr().align_offset(LINE).min(spare);
        Self { room, begin, len }
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.room[self.begin..][..self.len]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.room[self.begin..][..self.len]
    }
}

/// Bytes that live as long as what they were borrowed from.
#[derive(Clone)]
pub(crate) struct Bytes {
    begin: *const u8,
    len: usize,
    #[allow(dead_code)] // held, not read
    owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: read-only bytes whose owner, itself `Send` and `Sync`, is held.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// What `bytes` chooses from `owner`.
    pub(crate) fn of<T: Any + Send + Sync>(owner: &Arc<T>, bytes: impl FnOnce(&T) -> &[u8]) -> Self {
        let slice = bytes(owner);
        Self {
            begin: slice.as_ptr(),
            len: slice.len(),
            owner: Arc::clone(owner) as Arc<dyn Any + Send + Sync>,
        }
    }

    /// `len` bytes from `begin`, or `None` where there are not so many.
    pub(crate) fn part(&self, begin: usize, len: usize) -> Option<Self> {
        (begin <= self.len && len <= self.len - begin).then(|| Self {
            begin: self.begin.wrapping_add(begin),
            len,
            owner: Arc::clone(&self.owner),
        })
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::of(&Arc::new(bytes), |bytes| bytes)
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: made from a slice of the owner, which is alive and whose bytes do not move or change.
        unsafe { std::slice::from_raw_parts(self.begin, self.len) }
    }
}
