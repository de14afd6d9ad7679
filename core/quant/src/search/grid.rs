//! The levels a scaled weight may take.

use crate::lanes::Lanes;

/// A set of levels for `x ≈ d·level`.
pub(crate) trait Grid: Copy {
    /// The level nearest to `u`.
    fn nearest<L: Lanes>(self, u: L) -> L;

    /// Where candidates of the search place the value of largest magnitude: on its level, beyond it (which clips it and makes
    /// the grid finer for the rest) or short of it. A multiple of four.
    fn targets(self) -> [f32; 20];

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
    fn targets(self) -> [f32; 20] {
        [
            -0.9, -0.75, -0.6, -0.45, -0.3, -0.15, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.1, 1.3,
            1.5, 1.75, 2.0,
        ]
        .map(|beyond| -self.0 - beyond)
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
    fn targets(self) -> [f32; 20] {
        [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1, 2.2, 2.35, 2.5, 2.7, 2.9, 3.2, 3.6, 4.0]
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
    fn targets(self) -> [f32; 20] {
        [
            -118.0, -120.0, -122.0, -124.0, -126.0, -127.0, -128.0, -130.0, -132.0, -134.0, -137.0, -140.0,
            108.0, 111.0, 113.0, 115.0, 117.0, 119.0, 122.0, 126.0,
        ]
    }

    #[inline(always)]
    fn plain_target(self) -> f32 {
        -127.0
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
