//! The complete plan of an output: every file, header and offset, known before the first byte is written.
//!
//! [`gguf::plan`](crate::gguf::plan) and [`safetensors::plan`](crate::safetensors::plan) make layouts;
//! [`PlacedFiles`](crate::placed::PlacedFiles) fills them. Because offsets are fixed by names, types and shapes
//! alone, the bytes of an output do not depend on the order in which its tensors are finished.

/// An output of one or more files, in the terms of the tensors it was planned for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// The files that hold tensors.
    pub files: Vec<FilePlan>,
    /// Where each tensor goes, in the order the tensors were given.
    pub places: Vec<Place>,
    /// Small files beside them (an index), complete: name and content.
    pub side_files: Vec<(String, Vec<u8>)>,
}

/// One file of a [`Layout`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePlan {
    /// Its plain file name.
    pub name: String,
    /// Everything before the tensor data.
    pub header: Vec<u8>,
    /// The finished file's length in bytes.
    pub len: u64,
}

/// Where a tensor's data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Index into [`Layout::files`].
    pub file: usize,
    /// Bytes from the file's start.
    pub offset: u64,
    /// Bytes of data.
    pub len: u64,
}

impl Layout {
    /// Bytes of all files together.
    pub fn total_bytes(&self) -> u64 {
        let side = self.side_files.iter().map(|(_, content)| content.len() as u64).sum::<u64>();
        self.files.iter().map(|file| file.len).sum::<u64>() + side
    }
}

/// Splits tensors of the given sizes into consecutive groups of at most `max_bytes` (a tensor larger than that
/// gets a group of its own). Returns each group's range of indices; always at least one group.
pub(crate) fn group_by_size(sizes: &[u64], max_bytes: Option<u64>) -> Vec<std::ops::Range<usize>> {
    let Some(max_bytes) = max_bytes else { return std::iter::once(0..sizes.len()).collect() };
    let mut groups = Vec::new();
    let (mut begin, mut filled) = (0, 0u64);
    for (index, &size) in sizes.iter().enumerate() {
        if index > begin && filled.saturating_add(size) > max_bytes {
            groups.push(begin..index);
            (begin, filled) = (index, 0);
        }
        filled = filled.saturating_add(size);
    }
    groups.push(begin..sizes.len());
    groups
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // a group is a range
mod tests {
    use super::group_by_size;

    #[test]
    fn groups_are_consecutive_and_hold_an_oversized_tensor_alone() {
        assert_eq!(group_by_size(&[], Some(10)), [0..0]);
        assert_eq!(group_by_size(&[3, 4, 5], None), [0..3]);
        assert_eq!(group_by_size(&[3, 4, 5, 20, 1], Some(10)), [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(group_by_size(&[20], Some(10)), [0..1]);
    }
}
