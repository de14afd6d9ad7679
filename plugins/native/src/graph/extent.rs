//! How far a value reaches.

use crate::kernels::LANES;

/// Numbers whose squares are added up in single precision before they join the sum.
const BLOCK: usize = 1 << 12;

/// The ends of some numbers, and how large they are. Of none, or where one is not finite, `mean_square` is no finite number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Extent {
    /// The least number.
    pub low: f32,
    /// The largest number.
    pub high: f32,
    /// The mean of their squares.
    pub mean_square: f32,
}

impl Extent {
    /// Of some numbers.
    pub fn of(numbers: &[f32]) -> Self {
        let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
        let mut squares = 0.0;
        for block in numbers.chunks(BLOCK) {
            let mut sums = [0f32; LANES];
            for part in block.chunks(LANES) {
                for (i, &x) in part.iter().enumerate() {
                    low[i] = low[i].min(x);
                    high[i] = high[i].max(x);
                    sums[i] += x * x;
                }
            }
            squares += sums.iter().map(|sum| f64::from(*sum)).sum::<f64>();
        }
        let low = low.into_iter().fold(f32::INFINITY, f32::min);
        let high = high.into_iter().fold(f32::NEG_INFINITY, f32::max);
        Self { low, high, mean_square: (squares / numbers.len() as f64) as f32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_and_squares_are_those_of_all_numbers() {
        for count in [1, 15, 16, 17, BLOCK + 3] {
            let numbers: Vec<f32> = (0..count).map(|i| (i as f32 * 0.7).sin() * 3.0 - 1.0).collect();
            let Extent { low, high, mean_square } = Extent::of(&numbers);
            assert_eq!(low, numbers.iter().copied().fold(f32::INFINITY, f32::min));
            assert_eq!(high, numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let due = numbers.iter().map(|x| f64::from(x * x)).sum::<f64>() / count as f64;
            assert!((f64::from(mean_square) - due).abs() < 1e-5 * due, "{mean_square} instead of {due}");
        }
    }

    #[test]
    fn what_is_not_finite_shows() {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
            let mut numbers = vec![1.0; 40];
            numbers[20] = odd;
            assert!(!Extent::of(&numbers).mean_square.is_finite(), "{odd}");
        }
        assert!(!Extent::of(&[]).mean_square.is_finite());
    }
}
