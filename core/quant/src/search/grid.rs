//! The levels a scaled weight may take.

use crate::gguf::{code_e2m1, nearest_e2m1};
use crate::grouped::NF4_LEVELS;
use crate::lanes::Lanes;
use crate::plain::f32_to_f8_e4m3;

/// A set of levels for `x ≈ d·level`.
pub(crate) trait Grid: Copy {
    /// The level nearest to `u`.
    fn nearest<L: Lanes>(self, u: L) -> L;

    /// The code of the level nearest to `u`, a whole number from 0 to 255.
    fn code<L: Lanes>(self, u: L) -> L;

    /// The candidates of the search, from likely to unlikely; an even number of them. Where weights differ in importance, the value
    /// of largest magnitude may be one that hardly counts, and more clipping must be tried.
    fn rungs(self, weighted: bool) -> &'static [f32];

    /// Where a candidate places the value of largest magnitude: on its level, beyond it (which clips it and makes the grid
    /// finer for the rest) or short of it.
    fn target(self, rung: f32) -> f32;

    /// What weights are measured in: by default the value of largest magnitude with its sign, so that it becomes 1 and
    /// scales may be negative.
    #[inline(always)]
    fn reference<L: Lanes>(self, extreme: L) -> L {
        extreme
    }

    /// The level on which the plain encoding, without a search, places the value of largest magnitude.
    fn plain_target(self) -> f32;
}

/// Whole numbers from `-n` to `n - 1`.
#[derive(Clone, Copy)]
pub(crate) struct Centred(pub(crate) f32);

impl Grid for Centred {
    #[inline(always)]
    fn nearest<L: Lanes>(self, u: L) -> L {
        u.round().clamp(-self.0, self.0 - 1.0)
    }

    #[inline(always)]
    fn code<L: Lanes>(self, u: L) -> L {
        self.nearest(u) + L::splat(self.0)
    }

    #[inline(always)]
    fn rungs(self, weighted: bool) -> &'static [f32] {
        // Four already come within half a percent of what forty reach on even weights, eight within a tenth.
        const EVEN: [f32; 8] = [0.2, 0.6, -0.2, -0.9, 0.9, 0.0, 0.4, -0.65];
        const UNEVEN: [f32; 16] =
            [0.2, 0.6, -0.2, -0.9, 0.9, 0.0, 0.4, -0.65, 1.2, 1.5, 1.9, 2.4, -0.4, 0.75, 3.0, 4.0];
        match (weighted, self.0 <= 16.0) {
            (true, true) => &UNEVEN,
            (false, true) => &EVEN[..4],
            // Clipping never pays where there are so many levels.
            (_, false) => &EVEN,
        }
    }

    #[inline(always)]
    fn target(self, rung: f32) -> f32 {
        -self.0 - rung
    }

    #[inline(always)]
    fn plain_target(self) -> f32 {
        -self.0
    }
}

/// -1, 0 and 1.
#[derive(Clone, Copy)]
pub(crate) struct Ternary;

impl Grid for Ternary {
    #[inline(always)]
    fn nearest<L: Lanes>(self, u: L) -> L {
        u.round().clamp(-1.0, 1.0)
    }

    #[inline(always)]
    fn code<L: Lanes>(self, u: L) -> L {
        self.nearest(u) + L::splat(1.0)
    }

    #[inline(always)]
    fn rungs(self, _: bool) -> &'static [f32] {
        &[1.0, 1.15, 1.3, 1.45, 1.6, 1.75, 1.9, 2.05, 2.2, 2.4, 2.6, 2.8, 3.1, 3.5, 4.0, 5.0]
    }

    #[inline(always)]
    fn target(self, rung: f32) -> f32 {
        rung
    }

    #[inline(always)]
    fn plain_target(self) -> f32 {
        1.0
    }
}

/// The sixteen levels of the non-linear 4-bit types.
#[derive(Clone, Copy)]
pub(crate) struct NonLinear;

impl NonLinear {
    /// The levels.
    pub(crate) const LEVELS: [i8; 16] =
        [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

    /// Starts at `first` and adds `step` of each pair of neighbouring levels whose middle `u` exceeds.
    #[inline(always)]
    fn climb<L: Lanes>(u: L, first: f32, step: impl Fn(usize) -> f32) -> L {
        let mut sum = L::splat(first);
        for k in 0..15 {
            let middle = (f32::from(Self::LEVELS[k]) + f32::from(Self::LEVELS[k + 1])) * 0.5;
            sum = L::select(L::splat(middle).lt(u), sum + L::splat(step(k)), sum);
        }
        sum
    }

    /// The place of the nearest level among them.
    #[inline(always)]
    pub(crate) fn index<L: Lanes>(u: L) -> L {
        Self::climb(u, 0.0, |_| 1.0)
    }
}

impl Grid for NonLinear {
    #[inline(always)]
    fn nearest<L: Lanes>(self, u: L) -> L {
        Self::climb(u, f32::from(Self::LEVELS[0]), |k| {
            f32::from(Self::LEVELS[k + 1]) - f32::from(Self::LEVELS[k])
        })
    }

    #[inline(always)]
    fn code<L: Lanes>(self, u: L) -> L {
        Self::index(u)
    }

    #[inline(always)]
    fn rungs(self, _: bool) -> &'static [f32] {
        &[-118.0, -123.0, -127.0, -131.0, -136.0, 109.0, 114.0, 120.0]
    }

    #[inline(always)]
    fn target(self, rung: f32) -> f32 {
        rung
    }

    #[inline(always)]
    fn plain_target(self) -> f32 {
        -127.0
    }
}

/// The levels of NF4.
#[derive(Clone, Copy)]
pub(crate) struct Nf4;

impl Nf4 {
    #[inline(always)]
    fn index<L: Lanes>(u: L) -> L {
        let mut sum = L::zero();
        for pair in NF4_LEVELS.windows(2) {
            let above = L::splat(f32::midpoint(pair[0], pair[1])).lt(u);
            sum = L::select(above, sum + L::splat(1.0), sum);
        }
        sum
    }
}

impl Grid for Nf4 {
    #[inline(always)]
    fn nearest<L: Lanes>(self, u: L) -> L {
        let mut level = L::splat(NF4_LEVELS[0]);
        for pair in NF4_LEVELS.windows(2) {
            level = L::select(L::splat(f32::midpoint(pair[0], pair[1])).lt(u), L::splat(pair[1]), level);
        }
        level
    }

    #[inline(always)]
    fn code<L: Lanes>(self, u: L) -> L {
        Self::index(u)
    }

    #[inline(always)]
    fn rungs(self, _: bool) -> &'static [f32] {
        &[0.82, 0.86, 0.9, 0.93, 0.96, 1.0, 1.03, 1.06, 1.1, 1.14, 1.18, 1.24, 1.3, 1.4, 1.5, 1.7]
    }

    #[inline(always)]
    fn target(self, rung: f32) -> f32 {
        rung
    }

    #[inline(always)]
    fn reference<L: Lanes>(self, extreme: L) -> L {
        extreme.abs()
    }

    #[inline(always)]
    fn plain_target(self) -> f32 {
        1.0
    }
}

/// The values of a 4-bit float.
#[derive(Clone, Copy)]
pub(crate) struct E2m1;

impl Grid for E2m1 {
    #[inline(always)]
    fn nearest<L: Lanes>(self, u: L) -> L {
        let magnitude = nearest_e2m1(u.abs() * L::splat(2.0)) * L::splat(0.5);
        L::select(u.lt(L::zero()), L::zero() - magnitude, magnitude)
    }

    #[inline(always)]
    fn code<L: Lanes>(self, u: L) -> L {
        code_e2m1(u * L::splat(2.0))
    }

    #[inline(always)]
    fn rungs(self, _: bool) -> &'static [f32] {
        &[3.8, 4.1, 4.4, 4.7, 5.0, 5.3, 5.6, 5.8, 6.0, 6.2, 6.5, 6.8, 7.1, 7.5, 8.0, 9.0]
    }

    #[inline(always)]
    fn target(self, rung: f32) -> f32 {
        rung
    }

    #[inline(always)]
    fn reference<L: Lanes>(self, extreme: L) -> L {
        extreme.abs()
    }

    #[inline(always)]
    fn plain_target(self) -> f32 {
        6.0
    }
}

/// The values of an 8-bit float.
#[derive(Clone, Copy)]
pub(crate) struct E4m3;

impl Grid for E4m3 {
    #[inline(always)]
    fn nearest<L: Lanes>(self, u: L) -> L {
        L::load(&u.to_array().map(|u| crate::plain::f8_e4m3_to_f32(f32_to_f8_e4m3(u))))
    }

    #[inline(always)]
    fn code<L: Lanes>(self, u: L) -> L {
        L::load(&u.to_array().map(|u| f32::from(f32_to_f8_e4m3(u))))
    }

    #[inline(always)]
    fn rungs(self, _: bool) -> &'static [f32] {
        &[256.0, 288.0, 320.0, 352.0, 384.0, 416.0, 432.0, 448.0]
    }

    #[inline(always)]
    fn target(self, rung: f32) -> f32 {
        rung
    }

    #[inline(always)]
    fn reference<L: Lanes>(self, extreme: L) -> L {
        extreme.abs()
    }

    #[inline(always)]
    fn plain_target(self) -> f32 {
        448.0
    }
}

#[cfg(test)]
mod tests {
    use super::{Grid, NonLinear};
    use crate::lanes::{Lanes, Portable};

    #[test]
    fn the_nearest_non_linear_level_is_nearest() {
        for i in -1500..1500 {
            let x = i as f32 * 0.0931;
            let value = NonLinear.nearest(Portable::splat(x)).to_array()[0];
            let index = NonLinear::index(Portable::splat(x)).to_array()[0];
            assert_eq!(f32::from(NonLinear::LEVELS[index as usize]), value);
            assert!(
                NonLinear::LEVELS.iter().all(|&l| (f32::from(l) - x).abs() >= (value - x).abs()),
                "{x} → {value}"
            );
        }
    }
}
