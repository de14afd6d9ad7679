//! Codes as a stream of bits, least significant first.

/// Bytes that `count` codes of `bits` bits take.
pub const fn packed_bytes(count: usize, bits: u32) -> usize {
    (count * bits as usize).div_ceil(8)
}

/// Packs codes into a little-endian stream of `bits` (1 to 8) per code; the last byte is filled up with zeros.
///
/// Codes are taken as they are. For two's complement (OpenVINO's `i4`, `i8`; ONNX's `int4`, `int8`) flip the sign bit of
/// [`Signed`](super::Levels::Signed) codes first: `code ^ (1 << (bits - 1))`.
pub fn pack(codes: &[u8], bits: u32) -> Vec<u8> {
    assert!((1..=8).contains(&bits), "codes of {bits} bits");
    let mut out = Vec::with_capacity(packed_bytes(codes.len(), bits));
    match bits {
        8 => out.extend_from_slice(codes),
        4 => {
            let (pairs, odd) = codes.as_chunks::<2>();
            // As numbers of two bytes, of which compilers make vectors.
            out.extend(pairs.iter().map(|pair| {
                let pair = u16::from_le_bytes(*pair);
                (pair & 0x0f | pair >> 4 & 0xf0) as u8
            }));
            out.extend(odd.iter().map(|low| low & 15));
        }
        _ => {
            let mask = (1u32 << bits) - 1;
            let (mut pending, mut filled) = (0u32, 0);
            for &code in codes {
                pending |= (u32::from(code) & mask) << filled;
                filled += bits;
                while filled >= 8 {
                    out.push(pending as u8);
                    pending >>= 8;
                    filled -= 8;
                }
            }
            if filled > 0 {
                out.push(pending as u8);
            }
        }
    }
    out
}

/// The first `count` codes of a packed stream, or as many as it holds.
pub fn unpack(bytes: &[u8], bits: u32, count: usize) -> Vec<u8> {
    assert!((1..=8).contains(&bits), "codes of {bits} bits");
    let count = count.min(bytes.len() * 8 / bits as usize);
    let mask = ((1u32 << bits) - 1) as u8;
    (0..count)
        .map(|i| {
            let (byte, shift) = (i * bits as usize / 8, i * bits as usize % 8);
            let pair = u16::from_le_bytes([bytes[byte], bytes.get(byte + 1).copied().unwrap_or(0)]);
            (pair >> shift) as u8 & mask
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{pack, packed_bytes, unpack};

    proptest! {
        #[test]
        fn packed_codes_come_back(codes in prop::collection::vec(any::<u8>(), 0..200), bits in 1u32..=8) {
            let codes: Vec<u8> = codes.iter().map(|code| code & ((1u32 << bits) - 1) as u8).collect();
            let packed = pack(&codes, bits);
            prop_assert_eq!(packed.len(), packed_bytes(codes.len(), bits));
            prop_assert_eq!(unpack(&packed, bits, codes.len()), codes);
        }
    }

    #[test]
    fn three_bits_cross_bytes_least_significant_first() {
        assert_eq!(pack(&[1, 2, 3, 4, 5, 6, 7, 0], 3), [0b1101_0001, 0b0101_1000, 0b0001_1111]);
        assert_eq!(pack(&[0xa, 0xb, 0xc], 4), [0xba, 0x0c]);
    }
}
