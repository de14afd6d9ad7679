//! Products with the residuals of refined activations: see [`activation`](crate::kernels::activation).

use super::BLOCK;
use super::multiply::{Shape, Unpacked, offset, sum};
use crate::kernels::LANES;
use crate::kernels::activation::{Panels, RESIDUAL};
use crate::kernels::isa::{Isa, Kernel};

/// Vectors of a block's codes where activations have residuals: those of bytes.
const STEPS: usize = 8;

/// What one token's residual in a block is multiplied with, in one place.
struct Residual {
    words: [i32; STEPS],
    /// Sums of the codes of 16 columns each.
    sums: [i32; 2],
    scale: f32,
    token: u32,
}

/// The residuals of a batch, and what a strip gives with them.
pub(super) struct Residuals {
    /// Those of the first block, of the second, and so on.
    list: Vec<Residual>,
    /// Where those of each block end.
    ends: Vec<usize>,
    /// `[tokens][16]`.
    sums: Vec<f32>,
}

impl Residuals {
    /// For up to so many blocks of 32 columns and tokens.
    pub(super) fn new(blocks: usize, tokens: usize) -> Self {
        Self {
            list: Vec::with_capacity(blocks * tokens),
            ends: vec![0; blocks],
            sums: vec![0.0; tokens * LANES],
        }
    }

    /// Collects those of `x`.
    pub(super) fn find(&mut self, x: Panels) {
        self.list.clear();
        let blocks = x.columns / BLOCK;
        for (block, end) in self.ends.iter_mut().enumerate().take(blocks) {
            for index in 0..x.count() {
                let panel = x.at(index);
                for token in 0..panel.tokens {
                    let at = |block: usize| block * x.panel + token;
                    // SAFETY: the panel holds codes and sums of as many blocks, then as many of residuals.
                    unsafe {
                        if *panel.refined.add(at(block)) {
                            let block = blocks + block;
                            self.list.push(Residual {
                                words: std::array::from_fn(|i| {
                                    *panel.codes.add(at(block * STEPS + i)) as i32
                                }),
                                sums: std::array::from_fn(|i| *panel.sums.add(at(block * 2 + i))),
                                scale: *panel.scales.add(at(block - blocks)) / RESIDUAL,
                                token: (index * x.panel + token) as u32,
                            });
                        }
                    }
                }
            }
            *end = self.list.len();
        }
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// What the strip gave with a token's residuals.
    pub(super) fn of_token(&self, token: usize) -> &[f32; LANES] {
        self.sums.as_chunks().0.get(token).unwrap_or(&[0.0; LANES])
    }
}

/// An unpacked strip times all residuals, block by block, so that its weights stay in registers for all tokens.
pub(super) struct Products<'a, S> {
    pub(super) room: &'a mut Unpacked,
    pub(super) tokens: usize,
    /// The code that means nothing.
    pub(super) zero: i32,
    pub(super) shape: std::marker::PhantomData<S>,
}

impl<const GROUPS: usize, const MINIMUMS: bool> Kernel for Products<'_, Shape<GROUPS, MINIMUMS>> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Unpacked { codes, scales, minimums, residuals, .. } = self.room;
        let Residuals { list, ends, sums } = residuals;
        if list.is_empty() {
            return;
        }
        sums[..self.tokens * LANES].fill(0.0);
        let (steps, mut begin) = (I::STEPS / GROUPS, 0);
        // SAFETY: the room holds the strip, and sums for all tokens.
        unsafe {
            for (block, &end) in ends.iter().enumerate() {
                for group in 0..GROUPS {
                    let at = block * GROUPS + group;
                    let mut w = [I::splat_b(0); STEPS];
                    for (step, w) in w.iter_mut().enumerate().take(steps) {
                        *w = I::load_b(codes.as_ptr().add((at * steps + step) * 64));
                    }
                    let scale = I::load(scales.as_ptr().add(at * LANES));
                    let minimum = I::load(minimums.as_ptr().add(at * LANES));
                    for residual in list.get_unchecked(begin..end) {
                        let codes = sum(residual.sums.as_ptr(), 1, group, GROUPS);
                        let offset = offset(MINIMUMS, self.zero, codes, residual.scale);
                        let mut acc = if MINIMUMS { I::zero_i() } else { I::splat_i(offset) };
                        for (step, w) in w.iter().enumerate().take(steps) {
                            acc = I::dot(acc, *w, *residual.words.get_unchecked(group * steps + step));
                        }
                        let sums = sums.as_mut_ptr().add(residual.token as usize * LANES);
                        let scale = I::mul(scale, I::splat(residual.scale));
                        let mut sum = I::fma(I::to_float(acc), scale, I::load(sums));
                        if MINIMUMS {
                            sum = I::fma(minimum, I::splat(f32::from_bits(offset as u32)), sum);
                        }
                        I::store(sums, sum);
                    }
                }
                begin = end;
                if begin == list.len() {
                    break;
                }
            }
        }
    }
}
