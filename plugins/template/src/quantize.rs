//! Eight-bit numbers: a row is one scale and an integer per weight.

/// Integers and their scale; weight = integer × scale.
pub(crate) fn encode(row: &[f32]) -> (Vec<u8>, f32) {
    let largest = row.iter().fold(0.0f32, |most, weight| most.max(weight.abs()));
    let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
    (row.iter().map(|weight| (weight / scale).round() as i8 as u8).collect(), scale)
}

/// The reverse of [`encode`].
pub(crate) fn decode(bytes: &[u8], scale: f32) -> impl Iterator<Item = f32> {
    bytes.iter().map(move |byte| f32::from(*byte as i8) * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_weight_is_off_by_more_than_half_a_step() {
        for row in [&[0.5f32, -1.0, 0.25, 1e-3][..], &[0.0; 4], &[-3e4, 3e4]] {
            let (bytes, scale) = encode(row);
            for (weight, decoded) in row.iter().zip(decode(&bytes, scale)) {
                assert!((weight - decoded).abs() <= scale * 0.5001, "{weight} became {decoded}");
            }
        }
    }
}
