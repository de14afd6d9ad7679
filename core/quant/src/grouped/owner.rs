//! The rules of the formats' owners, operation for operation: libmlx's (mlx 0.32.4, CPU) and NNCF's (3.4).

use super::{Encoded, Format, Levels, NF4_LEVELS, ScaleType};
use crate::plain::f32_to_f8_e4m3;

/// Encodes groups by the owner's rule.
pub(super) fn encode(format: Format, rows: &[f32], group: usize) -> Encoded {
    let mut out = Encoded { codes: Vec::with_capacity(rows.len()), ..Encoded::default() };
    for x in rows.chunks_exact(group) {
        match format.levels {
            Levels::Affine { bits } => affine(x, bits, format.scale, &mut out),
            Levels::Signed { bits } => signed(x, bits, format.scale, &mut out),
            Levels::ZeroPoint { bits } => zero_point(x, bits, format.scale, &mut out),
            Levels::Nf4 => nf4(x, format.scale, &mut out),
            Levels::E2m1 => small_float(x, 6.0, format.scale, code_e2m1, &mut out),
            Levels::E4m3 => small_float(x, 448.0, format.scale, f32_to_f8_e4m3, &mut out),
        }
    }
    out
}

fn range(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &x| (low.min(x), high.max(x)))
}

fn largest_magnitude(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |largest, x| largest.max(x.abs()))
}

/// libmlx: the end of larger magnitude is hit exactly, and zero too where it lies inside the range.
fn affine(x: &[f32], bits: u8, stored: ScaleType, out: &mut Encoded) {
    let steps = ((1u32 << bits) - 1) as f32;
    let (low, high) = range(x);
    let mirrored = low.abs() > high.abs();
    let mut scale = ((high - low) / steps).max(1e-7);
    if !mirrored {
        scale = -scale;
    }
    let edge = if mirrored { low } else { high };
    let at_edge = (edge / scale).round_ties_even();
    let mut bias = 0.0;
    if at_edge != 0.0 {
        scale = edge / at_edge;
        bias = edge;
    }
    out.codes.extend(x.iter().map(|x| ((x - bias) / scale).round_ties_even().clamp(0.0, steps) as u8));
    out.scales.push(stored.round(scale));
    out.offsets.push(stored.round(bias));
}

/// NNCF: the value of largest magnitude meets the longer, negative end.
fn signed(x: &[f32], bits: u8, stored: ScaleType, out: &mut Encoded) {
    let half = (1u32 << (bits - 1)) as f32;
    let (low, high) = range(x);
    let scale = if low.abs() >= high { low.abs() } else { -high } / half;
    let scale = if scale.abs() < f32::EPSILON { f32::EPSILON } else { scale };
    out.codes.extend(x.iter().map(|x| ((x / scale).round_ties_even().clamp(-half, half - 1.0) + half) as u8));
    out.scales.push(stored.round(scale));
}

/// NNCF: the range is stretched to contain zero, which is then hit exactly.
fn zero_point(x: &[f32], bits: u8, stored: ScaleType, out: &mut Encoded) {
    let top = ((1u32 << bits) - 1) as f32;
    let (low, high) = range(x);
    let (low, high) = (low.min(0.0), high.max(0.0));
    let scale = (high - low) / top;
    let scale = if scale.abs() < f32::EPSILON { f32::EPSILON } else { scale };
    let zero = (-(low / scale).round_ties_even()).clamp(0.0, top);
    out.codes.extend(x.iter().map(|x| (x / scale + zero).round_ties_even().clamp(0.0, top) as u8));
    out.scales.push(stored.round(scale));
    out.offsets.push(zero);
}

/// NNCF: the largest magnitude meets ±1.
fn nf4(x: &[f32], stored: ScaleType, out: &mut Encoded) {
    let scale = largest_magnitude(x).max(f32::EPSILON);
    out.codes.extend(x.iter().map(|x| {
        let u = x / scale;
        NF4_LEVELS.windows(2).filter(|pair| f32::midpoint(pair[0], pair[1]) < u).count() as u8
    }));
    out.scales.push(stored.round(scale));
}

/// libmlx: the largest magnitude meets the largest level, as nearly as the scale's type allows.
fn small_float(x: &[f32], top: f32, stored: ScaleType, code: fn(f32) -> u8, out: &mut Encoded) {
    let scale = stored.round(largest_magnitude(x) / top);
    out.codes.extend(x.iter().map(|x| if scale == 0.0 { 0 } else { code(x / scale) }));
    out.scales.push(scale);
}

/// The 4-bit float nearest to `x`, ties to the even code.
fn code_e2m1(x: f32) -> u8 {
    let u = x.abs();
    let magnitude = u8::from(u > 0.25)
        + u8::from(u >= 0.75)
        + u8::from(u > 1.25)
        + u8::from(u >= 1.75)
        + u8::from(u > 2.5)
        + u8::from(u >= 3.5)
        + u8::from(u > 5.0);
    // Zero has one code.
    magnitude | u8::from(x < 0.0 && magnitude > 0) << 3
}
