//! Blocks side by side and one after another: the two directions in which a tile is filled and emptied.
#![allow(unsafe_code)] // SSE2, which every x86-64 processor has, on references to whole arrays

use super::LANES;

/// Four rows of four from the `begin`s of four lines: row `j` holds element `j` of each.
#[inline(always)]
pub(crate) fn four(lines: [&[f32; 4]; 4]) -> [[f32; 4]; 4] {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            _mm_loadu_ps, _mm_movehl_ps, _mm_movelh_ps, _mm_storeu_ps, _mm_unpackhi_ps, _mm_unpacklo_ps,
        };
        let mut out = [[0.0; 4]; 4];
        // SAFETY: SSE2 is part of the baseline; every load and store is of a whole array of four.
        unsafe {
            let [a, b, c, d] = lines.map(|line| _mm_loadu_ps(line.as_ptr()));
            let (ab_low, ab_high) = (_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
            let (cd_low, cd_high) = (_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
            _mm_storeu_ps(out[0].as_mut_ptr(), _mm_movelh_ps(ab_low, cd_low));
            _mm_storeu_ps(out[1].as_mut_ptr(), _mm_movehl_ps(cd_low, ab_low));
            _mm_storeu_ps(out[2].as_mut_ptr(), _mm_movelh_ps(ab_high, cd_high));
            _mm_storeu_ps(out[3].as_mut_ptr(), _mm_movehl_ps(cd_high, ab_high));
        }
        out
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::array::from_fn(|row| lines.map(|line| line[row]))
}

/// Sixteen rows of sixteen codes: code `j` of line `i` comes from row `j`, lane `i`.
#[inline(always)]
pub(crate) fn sixteen(rows: &[[u8; LANES]; LANES]) -> [[u8; LANES]; LANES] {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            _mm_loadu_si128, _mm_setzero_si128, _mm_storeu_si128, _mm_unpackhi_epi8, _mm_unpacklo_epi8,
        };
        let mut out = [[0; LANES]; LANES];
        // SAFETY: as above, of arrays of sixteen bytes.
        unsafe {
            let mut now = rows.each_ref().map(|row| _mm_loadu_si128(row.as_ptr().cast()));
            // Interleaving the halves turns row and column numbers, taken as one number of eight bits, by one bit.
            for _ in 0..4 {
                let mut next = [_mm_setzero_si128(); LANES];
                for i in 0..LANES / 2 {
                    next[2 * i] = _mm_unpacklo_epi8(now[i], now[i + LANES / 2]);
                    next[2 * i + 1] = _mm_unpackhi_epi8(now[i], now[i + LANES / 2]);
                }
                now = next;
            }
            for (out, row) in out.iter_mut().zip(now) {
                _mm_storeu_si128(out.as_mut_ptr().cast(), row);
            }
        }
        out
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::array::from_fn(|line| std::array::from_fn(|j| rows[j][line]))
}

#[cfg(test)]
mod tests {
    #[test]
    fn rows_become_lines_and_lines_rows() {
        let lines: [[f32; 4]; 4] = std::array::from_fn(|i| std::array::from_fn(|j| (i * 4 + j) as f32));
        let rows = super::four(lines.each_ref());
        assert!((0..4).all(|i| (0..4).all(|j| rows[j][i] == lines[i][j])));
        let rows: [[u8; 16]; 16] = std::array::from_fn(|i| std::array::from_fn(|j| (i * 16 + j) as u8));
        let lines = super::sixteen(&rows);
        assert!((0..16).all(|i| (0..16).all(|j| lines[i][j] == rows[j][i])));
    }
}
