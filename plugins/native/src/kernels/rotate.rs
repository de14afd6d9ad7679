//! Rotary position embedding of one head.
//! (Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.)

use drophammer_models::rope::RopeLayout;

use super::isa::{self, Isa, Kernel, Path};

/// A head, `[2 · pairs]`, and the cosines and sines of its pairs.
struct Rotation<'a> {
    head: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    layout: RopeLayout,
}

impl Kernel for Rotation<'_> {
    type Output = ();

    // Simple loops, which the compiler turns into vectors of the instruction set at hand.
    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let angles = self.cos.iter().zip(self.sin);
        match self.layout {
            RopeLayout::Halves => {
                let (low, high) = self.head.split_at_mut(self.cos.len());
                for ((a, b), (cos, sin)) in low.iter_mut().zip(high).zip(angles) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
            RopeLayout::Pairs => {
                for ([a, b], (cos, sin)) in self.head.as_chunks_mut().0.iter_mut().zip(angles) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}

/// Rotates the pairs of one head in place: `(i, i + half)` or `(2i, 2i + 1)`. `cos` and `sin` have an entry for each.
///
/// # Panics
/// If the lengths do not fit.
pub(crate) fn rotate_head(path: Path, layout: RopeLayout, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert!(head.len() == 2 * cos.len() && sin.len() == cos.len());
    // SAFETY: it asks nothing more.
    unsafe { isa::run(path, Rotation { head, cos, sin, layout }) }
}
