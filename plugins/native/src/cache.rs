//! The key/value cache: pages of 64 positions, shared between sequences until one of them writes.
//!
//! A sequence is a table from position / 64 to a page and a mask of the positions it holds there. Copying a sequence
//! shares its pages; writing to a shared page copies that page first; forgetting positions clears bits. A page holds the
//! keys and values of all layers, so tables are few and short. Memory is reserved for the worst case and touched
//! only as pages come into use.

#![allow(clippy::cast_ptr_alignment)] // pages begin at cache lines, layers at multiples of a page of numbers
#![allow(unsafe_code)] // threads write disjoint parts of one memory; every block says why that is sound

use crate::kernels::attention::{PAGE, PageOfHead, Stored, put_key, put_value};
use crate::kernels::{LANES, Path, rows};
use crate::memory::Memory;

const NONE: u32 = u32::MAX;

/// One layer's part of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LayerShape {
    pub(crate) kv_heads: usize,
    pub(crate) key_width: usize,
    pub(crate) value_width: usize,
}

impl LayerShape {
    /// Elements between the values of neighbouring slots.
    pub(crate) fn value_stride(&self) -> usize {
        self.value_width.next_multiple_of(LANES)
    }

    /// Bytes of a page.
    pub(crate) fn bytes(&self, stored: Stored) -> usize {
        self.kv_heads * (stored.page_bytes(self.key_width) + stored.page_bytes(self.value_stride()))
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    page: u32,
    valid: u64,
}

const EMPTY: Entry = Entry { page: NONE, valid: 0 };

/// Keys and values of all sequences.
pub(crate) struct Cache {
    stored: Stored,
    layers: Vec<LayerShape>,
    /// Where each layer begins in a page, in bytes.
    starts: Vec<usize>,
    page_bytes: usize,
    memory: Memory,
    free: Vec<u32>,
    references: Vec<u32>,
    tables: Vec<Vec<Entry>>,
}

/// Where a token's keys and values go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    page: u32,
    slot: u32,
}

impl Cache {
    /// For `sequences` sequences of up to `context` positions; `None` if there is not that much memory.
    pub(crate) fn new(
        layers: Vec<LayerShape>,
        stored: Stored,
        sequences: usize,
        context: usize,
    ) -> Option<Self> {
        let per_sequence = context.div_ceil(PAGE);
        let pages = per_sequence.checked_mul(sequences)?;
        let mut starts = Vec::with_capacity(layers.len());
        let mut page_bytes = 0usize;
        for layer in &layers {
            starts.push(page_bytes);
            page_bytes = page_bytes.checked_add(layer.bytes(stored))?;
        }
        // Zeroed memory comes untouched from the system: it becomes resident page by page.
        let memory = Memory::zeroed(page_bytes.checked_mul(pages)?.max(64))?;
        Some(Self {
            stored,
            layers,
            starts,
            page_bytes,
            memory,
            free: (0..u32::try_from(pages).ok()?).rev().collect(),
            references: vec![0; pages],
            tables: vec![vec![EMPTY; per_sequence]; sequences],
        })
    }

    /// Bytes that a cache of these layers would take at `context` positions per sequence.
    pub(crate) fn bytes(layers: &[LayerShape], stored: Stored, sequences: u64, context: u64) -> u64 {
        let page: usize = layers.iter().map(|layer| layer.bytes(stored)).sum();
        context.div_ceil(PAGE as u64).saturating_mul(sequences).saturating_mul(page as u64)
    }

    pub(crate) fn stored(&self) -> Stored {
        self.stored
    }

    pub(crate) fn layers(&self) -> usize {
        self.layers.len()
    }

    pub(crate) fn layer(&self, layer: usize) -> LayerShape {
        self.layers[layer]
    }

    fn page_offset(&self, page: u32) -> usize {
        page as usize * self.page_bytes
    }

    /// A page nobody uses. There always is one: sequences have at most their own tables' worth of pages.
    fn take(&mut self) -> u32 {
        let page = self.free.pop().unwrap_or(0);
        self.references[page as usize] = 1;
        page
    }

    fn release(&mut self, page: u32) {
        if page != NONE {
            let references = &mut self.references[page as usize];
            *references -= 1;
            if *references == 0 {
                self.free.push(page);
            }
        }
    }

    /// Makes room for a token and counts it as held.
    pub(crate) fn reserve(&mut self, sequence: u32, position: u32) -> Place {
        let (sequence, index, slot) = (sequence as usize, position as usize / PAGE, position % PAGE as u32);
        let Entry { page, valid } = self.tables[sequence][index];
        let own = if page == NONE {
            self.take()
        } else if self.references[page as usize] > 1 {
            // A page shared with another sequence: this one goes on in its own copy.
            self.references[page as usize] -= 1;
            let own = self.take();
            let (from, to) = (self.page_offset(page), self.page_offset(own));
            // SAFETY: two different pages, both inside the memory; `&mut self` excludes other users.
            unsafe {
                let memory = self.memory.as_ptr();
                std::ptr::copy_nonoverlapping(memory.add(from), memory.add(to), self.page_bytes);
            }
            own
        } else {
            page
        };
        self.tables[sequence][index] = Entry { page: own, valid: valid | 1 << slot };
        Place { page: own, slot }
    }

    /// Forgets the positions of `from..to`.
    pub(crate) fn remove(&mut self, sequence: u32, from: u32, to: u32) {
        let sequence = sequence as usize;
        for index in 0..self.tables[sequence].len() {
            let Entry { page, valid } = self.tables[sequence][index];
            let valid = valid & !slots(index, from, to);
            if valid == 0 && page != NONE {
                self.release(page);
                self.tables[sequence][index] = EMPTY;
            } else {
                self.tables[sequence][index].valid = valid;
            }
        }
    }

    /// Forgets everything outside `from..to`.
    pub(crate) fn keep(&mut self, sequence: u32, from: u32, to: u32) {
        self.remove(sequence, 0, from);
        self.remove(sequence, to.max(from), u32::MAX);
    }

    /// Makes positions `from..to` of `source` the content of `target`.
    pub(crate) fn copy(&mut self, source: u32, target: u32, from: u32, to: u32) {
        if source == target {
            self.keep(source, from, to);
            return;
        }
        self.remove(target, 0, u32::MAX);
        for index in 0..self.tables[source as usize].len() {
            let Entry { page, valid } = self.tables[source as usize][index];
            let valid = valid & slots(index, from, to);
            if valid != 0 {
                self.references[page as usize] += 1;
                self.tables[target as usize][index] = Entry { page, valid };
            }
        }
    }

    /// The pages that `sequence` holds between two positions, for one head of one layer.
    pub(crate) fn pages(
        &self,
        sequence: u32,
        layer: usize,
        kv_head: usize,
        from: u32,
        to: u32,
    ) -> impl Iterator<Item = PageOfHead> + '_ {
        let (keys, values) = self.offsets(layer, kv_head);
        let table = &self.tables[sequence as usize];
        let end = (to as usize / PAGE + 1).min(table.len());
        let begin = (from as usize / PAGE).min(end);
        table[begin..end].iter().enumerate().filter(|(_, entry)| entry.valid != 0).map(move |(i, entry)| {
            let page = self.memory.as_ptr().wrapping_add(self.page_offset(entry.page));
            PageOfHead {
                keys: page.wrapping_add(keys),
                values: page.wrapping_add(values),
                first: ((begin + i) * PAGE) as u32,
                valid: entry.valid,
            }
        })
    }

    /// Writes one head's key and value of a token.
    ///
    /// # Safety
    /// `place` is from [`Cache::reserve`] since the last change of any sequence, and no other thread reads or writes this
    /// head of this layer in the same page meanwhile.
    ///
    /// # Panics
    /// If the widths are not the layer's.
    pub(crate) unsafe fn write(
        &self,
        path: Path,
        layer: usize,
        kv_head: usize,
        place: Place,
        key: &[f32],
        value: &[f32],
    ) {
        let shape = self.layers[layer];
        assert!(key.len() == shape.key_width && value.len() == shape.value_width && kv_head < shape.kv_heads);
        let (keys, values) = self.offsets(layer, kv_head);
        let slot = place.slot as usize;
        // SAFETY: the offsets lie inside the page, and nobody else uses these bytes by the caller's promise.
        unsafe {
            let page = self.memory.as_ptr().add(self.page_offset(place.page));
            let (keys, values) = (page.add(keys), page.add(values));
            let along = slot * shape.value_stride();
            match self.stored {
                Stored::Float => {
                    let keys = keys.cast::<f32>().add(slot);
                    for (d, x) in key.iter().enumerate() {
                        *keys.add(d * PAGE) = *x;
                    }
                    let values = values.cast::<f32>().add(along);
                    std::ptr::copy_nonoverlapping(value.as_ptr(), values, value.len());
                }
                Stored::Half => {
                    rows::scatter_half(path, key, keys.cast::<u16>().add(slot), PAGE);
                    rows::scatter_half(path, value, values.cast::<u16>().add(along), 1);
                }
                Stored::Word => {
                    put_key(key, keys, slot);
                    put_value(value, values, slot, shape.value_stride());
                }
                Stored::Byte => {
                    let scales = |begin: *mut u8, width: usize| begin.add(width * PAGE).cast::<f32>();
                    *scales(keys, shape.key_width).add(slot) =
                        rows::scatter_bytes(key, keys.cast::<i8>().add(slot), PAGE);
                    *scales(values, shape.value_stride()).add(slot) =
                        rows::scatter_bytes(value, values.cast::<i8>().add(along), 1);
                }
            }
        }
    }

    /// Where a head's keys and values begin in a page, in bytes.
    fn offsets(&self, layer: usize, kv_head: usize) -> (usize, usize) {
        let shape = self.layers[layer];
        let (begin, key_bytes) = (self.starts[layer], self.stored.page_bytes(shape.key_width));
        let value_bytes = self.stored.page_bytes(shape.value_stride());
        (begin + kv_head * key_bytes, begin + shape.kv_heads * key_bytes + kv_head * value_bytes)
    }
}

/// The bits of table entry `index` that positions `from..to` stand for.
fn slots(index: usize, from: u32, to: u32) -> u64 {
    let first = (index * PAGE) as u64;
    let below = |position: u32| {
        let n = u64::from(position).saturating_sub(first);
        if n >= PAGE as u64 { u64::MAX } else { (1 << n) - 1 }
    };
    below(to) & !below(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> Cache {
        let shape = LayerShape { kv_heads: 2, key_width: 4, value_width: 3 };
        Cache::new(vec![shape; 2], Stored::Float, 2, 200).unwrap()
    }

    fn write(cache: &mut Cache, sequence: u32, position: u32, mark: f32) {
        let place = cache.reserve(sequence, position);
        for layer in 0..2 {
            for head in 0..2 {
                // SAFETY: one thread.
                unsafe { cache.write(Path::Portable, layer, head, place, &[mark; 4], &[-mark; 3]) };
            }
        }
    }

    fn held(cache: &Cache, sequence: u32) -> Vec<(u32, f32)> {
        let mut held = Vec::new();
        for page in cache.pages(sequence, 1, 1, 0, 199) {
            for slot in (0..PAGE).filter(|slot| page.valid >> slot & 1 == 1) {
                // SAFETY: a valid slot.
                let (k, v) = unsafe {
                    let stride = cache.layer(1).value_stride();
                    (
                        *page.keys.cast::<f32>().add(PAGE + slot),
                        *page.values.cast::<f32>().add(slot * stride + 2),
                    )
                };
                assert_eq!(k, -v);
                held.push((page.first + slot as u32, k));
            }
        }
        held
    }

    #[test]
    fn sequences_share_pages_until_one_writes() {
        let mut cache = cache();
        (0..130).for_each(|p| write(&mut cache, 0, p, p as f32));
        cache.copy(0, 1, 10, 100);
        assert_eq!(held(&cache, 1), (10..100).map(|p| (p, p as f32)).collect::<Vec<_>>());
        write(&mut cache, 1, 100, 1000.0);
        write(&mut cache, 0, 100, 2000.0);
        assert_eq!(held(&cache, 1).last(), Some(&(100, 1000.0)));
        assert_eq!(held(&cache, 0)[100], (100, 2000.0));
        assert_eq!(held(&cache, 0)[99], (99, 99.0));
    }

    #[test]
    fn removed_and_kept_ranges_are_what_is_left_and_pages_come_back() {
        let mut cache = cache();
        (0..200).for_each(|p| write(&mut cache, 0, p, p as f32));
        cache.remove(0, 60, 70);
        cache.keep(0, 50, 150);
        let left: Vec<u32> = held(&cache, 0).into_iter().map(|(p, _)| p).collect();
        assert_eq!(left, (50..60).chain(70..150).collect::<Vec<_>>());
        cache.copy(0, 1, 0, u32::MAX);
        cache.remove(0, 0, u32::MAX);
        cache.remove(1, 0, u32::MAX);
        assert_eq!(cache.free.len(), 8);
        // Every page can be taken again by every sequence.
        for sequence in 0..2 {
            (0..200).for_each(|p| write(&mut cache, sequence, p, p as f32));
        }
        assert!(cache.free.is_empty());
    }
}
