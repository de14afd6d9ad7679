//! Rotations of heads: how fast each pair turns, as libmlx wants to be told.

use drophammer_models::rope::{Rope, RopeLayout, RopeScaling};
use drophammer_sdk::Result;

use crate::runtime::{Array, Arrays, Type};

/// One of a model's rotations, for sequences of some length.
pub(crate) struct Rotation {
    /// Positions per radian of each pair, where they are no plain geometric series.
    wavelengths: Option<Array>,
    base: f32,
    scale: f32,
    /// Multiplies sines and cosines.
    pub(crate) magnitude: f32,
    pub(crate) width: i32,
    pub(crate) pairs: bool,
    /// The length it was made for, where that matters.
    length: u32,
    threshold: Option<u32>,
}

impl Rotation {
    /// A rotation for sequences of `length` tokens.
    pub(crate) fn new(arrays: Arrays, rope: &Rope, length: u32) -> Result<Self> {
        let mut rotation = Self {
            wavelengths: None,
            base: rope.theta as f32,
            scale: 1.0,
            magnitude: 1.0,
            width: rope.width as i32,
            pairs: rope.layout == RopeLayout::Pairs,
            length,
            threshold: rope.threshold(),
        };
        match &rope.scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => rotation.scale = (1.0 / factor) as f32,
            _ => {
                let table = rope.table(length);
                let waves: Vec<f32> = table.frequencies.iter().map(|frequency| 1.0 / frequency).collect();
                let kind = Type::F32;
                rotation.wavelengths = Some(arrays.floats(&waves, &[waves.len() as i32], kind)?);
                rotation.magnitude = table.magnitude;
            }
        }
        Ok(rotation)
    }

    /// Whether it holds for sequences of `length` tokens too.
    pub(crate) fn fits(&self, length: u32) -> bool {
        self.threshold.is_none_or(|threshold| self.length == length || self.length.max(length) <= threshold)
    }

    /// Cosines and sines at some positions, for rotations of halves.
    pub(crate) fn waves(&self, arrays: Arrays, positions: &[u32], kind: Type) -> Result<[Array; 2]> {
        let turns = arrays.turns(self.wavelengths.as_ref(), self.base, self.width / 2)?;
        let scaled: Vec<f32> = positions.iter().map(|position| *position as f32 * self.scale).collect();
        turns.waves(&arrays.floats(&scaled, &[scaled.len() as i32], Type::F32)?, kind)
    }

    /// As [`Array::rope`] takes it.
    pub(crate) fn speed(&self) -> (f32, f32, Option<&Array>) {
        (self.base, self.scale, self.wavelengths.as_ref())
    }
}
