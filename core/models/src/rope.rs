//! Rotary position embedding: which part of a head turns, and how fast.
//!
//! Plain rotation: Su et al., "RoFormer" (2021). Scaling rules: position interpolation (linear), NTK-aware (dynamic), YaRN
//! (Peng et al., 2023), Llama 3.1's, LongRoPE (Ding et al., 2024).

use std::f64::consts::PI;

use serde::Serialize;

/// How the two numbers of a rotated pair lie in a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum RopeLayout {
    /// `i` with `i + width/2` (GPT-NeoX, Hugging Face's Llama).
    Halves,
    /// `2i` with `2i + 1` (GPT-J, Cohere; Llama's rows in GGUF).
    Pairs,
}

/// A rotation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rope {
    /// Rotated numbers per head; even.
    pub width: u32,
    /// Where in the head they begin.
    pub start: u32,
    /// How pairs lie.
    pub layout: RopeLayout,
    /// Base of the geometric series of wave lengths.
    pub theta: f64,
    /// How contexts longer than trained are reached.
    pub scaling: RopeScaling,
}

/// How wave lengths are stretched.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All alike.
    Linear {
        /// By how much.
        factor: f64,
    },
    /// The base grows with the length, beyond the trained one.
    Dynamic {
        /// By how much.
        factor: f64,
        /// Trained length.
        original: u32,
    },
    /// Long waves stretched, short ones kept, a ramp between.
    Yarn(Yarn),
    /// Llama 3.1's ramp over wave lengths.
    Llama3 {
        /// By how much long waves are stretched.
        factor: f64,
        /// Waves longer than `original / low` are stretched.
        low: f64,
        /// Waves shorter than `original / high` are kept.
        high: f64,
        /// Trained length.
        original: u32,
    },
    /// A stretch for each pair, one list within the trained length and one beyond.
    Long {
        /// Within.
        short: Vec<f32>,
        /// Beyond.
        long: Vec<f32>,
        /// Trained length.
        original: u32,
        /// Multiplies sines and cosines.
        magnitude: f64,
    },
    /// A stretch for each pair.
    Factors(Vec<f32>),
}

/// YaRN's parameters.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Yarn {
    /// By how much long waves are stretched.
    pub factor: f64,
    /// Trained length.
    pub original: u32,
    /// Rotations over the trained length above which a wave is kept.
    pub beta_fast: f64,
    /// Rotations below which it is stretched fully.
    pub beta_slow: f64,
    /// Multiplies sines and cosines.
    pub magnitude: f64,
    /// Whether the ramp's ends are rounded to whole pairs.
    pub truncate: bool,
}

/// Angles per position.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RopeTable {
    /// Radians per position for each pair: `width / 2`.
    pub frequencies: Vec<f32>,
    /// Multiplies sines and cosines.
    pub magnitude: f32,
}

impl Rope {
    /// Rotation of a whole head, unscaled.
    pub fn plain(width: u32, theta: f64) -> Self {
        Self { width, start: 0, layout: RopeLayout::Halves, theta, scaling: RopeScaling::None }
    }

    /// The length beyond which [`Rope::table`] differs, where it depends on it.
    pub fn threshold(&self) -> Option<u32> {
        match &self.scaling {
            RopeScaling::Long { original, .. } | RopeScaling::Dynamic { original, .. } => Some(*original),
            _ => None,
        }
    }

    /// Angles for sequences of `length` tokens. Only lengths beyond [`Rope::threshold`] matter.
    pub fn table(&self, length: u32) -> RopeTable {
        let magnitude = match &self.scaling {
            RopeScaling::Yarn(yarn) => yarn.magnitude,
            RopeScaling::Long { magnitude, .. } => *magnitude,
            _ => 1.0,
        };
        let frequencies = vec![0.0; self.width as usize / 2];
        let mut table = RopeTable { frequencies, magnitude: magnitude as f32 };
        self.stretch(&mut table, length);
        table
    }

    /// Makes a table of this rotation one for sequences of another length, in the same memory.
    pub fn stretch(&self, table: &mut RopeTable, length: u32) {
        let base = self.base(length);
        for (pair, frequency) in table.frequencies.iter_mut().enumerate() {
            let plain = base.powf(-((2 * pair) as f64) / f64::from(self.width));
            *frequency = self.scaled(plain, pair, length) as f32;
        }
    }

    /// What is raised to a pair's power.
    fn base(&self, length: u32) -> f64 {
        let RopeScaling::Dynamic { factor, original } = self.scaling else { return self.theta };
        let stretch = f64::from(length.max(original)) / f64::from(original.max(1));
        let width = f64::from(self.width);
        self.theta * (factor * stretch - (factor - 1.0)).powf(width / (width - 2.0).max(1.0))
    }

    /// A pair's frequency, which without scaling is `plain`.
    fn scaled(&self, plain: f64, pair: usize, length: u32) -> f64 {
        let divided = |factors: &[f32]| factors.get(pair).map_or(plain, |factor| plain / f64::from(*factor));
        match &self.scaling {
            RopeScaling::None | RopeScaling::Dynamic { .. } => plain,
            RopeScaling::Linear { factor } => plain / factor,
            RopeScaling::Yarn(yarn) => {
                let stretched = self.stretched(yarn, pair);
                plain / yarn.factor * stretched + plain * (1.0 - stretched)
            }
            RopeScaling::Llama3 { factor, low, high, original } => {
                llama3(plain, *factor, *low, *high, f64::from(*original))
            }
            RopeScaling::Long { short, long, original, .. } => {
                divided(if length > *original { long } else { short })
            }
            RopeScaling::Factors(factors) => divided(factors),
        }
    }

    /// How much of YaRN's stretch a pair gets, 0 to 1.
    fn stretched(&self, yarn: &Yarn, pair: usize) -> f64 {
        let width = f64::from(self.width);
        let pair_turning = |rotations: f64| {
            width * (f64::from(yarn.original) / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (pair_turning(yarn.beta_fast), pair_turning(yarn.beta_slow));
        if yarn.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(width - 1.0));
        if low == high {
            high += 0.001; // the ramp may not be infinitely steep
        }
        ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0)
    }
}

impl Yarn {
    /// The usual multiplier of sines and cosines: `0.1 · scale · ln(factor) + 1`.
    pub fn usual_magnitude(factor: f64, scale: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 }
    }
}

fn llama3(frequency: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let wave = 2.0 * PI / frequency;
    if wave < original / high {
        frequency
    } else if wave > original / low {
        frequency / factor
    } else {
        let smooth = (original / wave - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}
