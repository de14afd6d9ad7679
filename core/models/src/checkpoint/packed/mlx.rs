//! MLX's quantized matrices: `weight` (a little-endian bit stream of 32-bit words per row), `scales` and, in the affine mode,
//! `biases`, one per group.

use std::ops::Range;

use drophammer_formats::{DType, Source, TensorInfo};
use serde_json::Value as Json;

use super::mxfp4::{E2M1, e8m0};
use super::{check_words, part, wrong};
use crate::checkpoint::stored::{Stored, decode, elements, matrices};
use crate::error::Result;

/// How a module is packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parameters {
    bits: u32,
    group: u64,
    /// Or the name of one that nobody here knows.
    mode: Result<Mode, String>,
}

/// How a matrix is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MlxPacking {
    /// What codes and scales mean.
    pub mode: MlxMode,
    /// Bits per code.
    pub bits: u32,
    /// Weights per scale.
    pub group: u64,
    /// How scales and biases are stored.
    pub scale: DType,
    /// Words of a row.
    pub words: u64,
}

use MlxMode as Mode;

/// What codes and scales mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlxMode {
    /// `q · scale + bias`.
    Affine,
    /// E2M1 with an E8M0 scale.
    Mxfp4,
    /// E2M1 with an E4M3 scale.
    Nvfp4,
    /// E4M3 with an E8M0 scale.
    Mxfp8,
}

impl MlxMode {
    /// MLX's own name.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Affine => "affine",
            Mode::Mxfp4 => "mxfp4",
            Mode::Nvfp4 => "nvfp4",
            Mode::Mxfp8 => "mxfp8",
        }
    }
}

impl Parameters {
    /// A module's own entry of the `quantization` object, or the object's general one.
    pub(super) fn of(quantization: &Json, module: &str) -> Self {
        let own = quantization.get(module).filter(|entry| entry.is_object());
        let get = |key: &str| own.and_then(|entry| entry.get(key)).or_else(|| quantization.get(key));
        let mode = match get("mode").and_then(Json::as_str).unwrap_or("affine") {
            "affine" => Ok(Mode::Affine),
            "mxfp4" => Ok(Mode::Mxfp4),
            "nvfp4" => Ok(Mode::Nvfp4),
            "mxfp8" => Ok(Mode::Mxfp8),
            other => Err(other.chars().take(40).collect()),
        };
        let (bits, group) = match mode {
            Ok(Mode::Mxfp4) => (4, 32),
            Ok(Mode::Nvfp4) => (4, 16),
            Ok(Mode::Mxfp8) => (8, 32),
            _ => (4, 64),
        };
        Self {
            bits: get("bits").and_then(Json::as_u64).map_or(bits, |bits| bits.min(64) as u32),
            group: get("group_size").and_then(Json::as_u64).unwrap_or(group),
            mode,
        }
    }
}

#[derive(Debug)]
pub(in crate::checkpoint) struct Mlx {
    weights: TensorInfo,
    scales: TensorInfo,
    biases: Option<TensorInfo>,
    mode: Mode,
    bits: u32,
    group: u64,
    extent: [u64; 3],
}

impl Mlx {
    pub(super) fn open(source: &Source, module: &str, parameters: Parameters) -> Result<Self> {
        let weights = part(source, format!("{module}.weight"))?;
        let scales = part(source, format!("{module}.scales"))?;
        check_words(&weights)?;
        let Parameters { bits, group, mode } = parameters;
        let mode = mode.map_err(|mode| {
            let problem =
                format!("is packed in the mode {mode:?}; known are affine, mxfp4, nvfp4 and mxfp8 (this file may be newer than this program)");
            wrong(&weights, problem)
        })?;
        let fits = match mode {
            Mode::Affine => (1..=8).contains(&bits),
            Mode::Mxfp4 | Mode::Nvfp4 => bits == 4,
            Mode::Mxfp8 => bits == 8,
        };
        if !fits || group == 0 {
            return Err(wrong(&weights, format!("has {bits} bits per weight in groups of {group}")));
        }
        let biases = match mode {
            Mode::Affine => Some(part(source, format!("{module}.biases"))?),
            _ => None,
        };
        let [count, rows, packed] = matrices(&weights.shape);
        let columns =
            packed.checked_mul(32).ok_or_else(|| wrong(&weights, "is too large"))? / u64::from(bits);
        for tensor in [Some(&scales), biases.as_ref()].into_iter().flatten() {
            if !columns.is_multiple_of(group) || matrices(&tensor.shape) != [count, rows, columns / group] {
                return Err(wrong(
                    tensor,
                    format!("does not hold one number per {group} of {rows} × {columns}"),
                ));
            }
        }
        if mode != Mode::Affine && scales.dtype != DType::U8 {
            return Err(wrong(&scales, format!("holds {} where bytes belong", scales.dtype)));
        }
        Ok(Self { weights, scales, biases, mode, bits, group, extent: [count, rows, columns] })
    }

    pub(in crate::checkpoint) fn packing(&self) -> MlxPacking {
        MlxPacking {
            mode: self.mode,
            bits: self.bits,
            group: self.group,
            scale: self.scales.dtype,
            words: self.weights.row_elements(),
        }
    }

    /// The bytes of a row's codes, scales and biases.
    pub(in crate::checkpoint) fn parts<'a>(
        &self,
        source: &'a Source,
        matrix: u64,
        row: u64,
    ) -> Result<[&'a [u8]; 3]> {
        let [_, height, columns] = self.extent;
        let (row, words, groups) = (matrix * height + row, self.weights.row_elements(), columns / self.group);
        Ok([
            elements(source, &self.weights, row * words, words)?,
            elements(source, &self.scales, row * groups, groups)?,
            match &self.biases {
                Some(biases) => elements(source, biases, row * groups, groups)?,
                None => &[],
            },
        ])
    }

    /// Scales of a row.
    fn row_scales(&self, source: &Source, row: u64, out: &mut [f32]) -> Result<()> {
        let groups = out.len() as u64;
        if self.mode == Mode::Affine {
            return decode(source, &self.scales, row * groups, groups, out);
        }
        let bytes = elements(source, &self.scales, row * groups, groups)?;
        if self.mode == Mode::Nvfp4 {
            return e4m3(bytes, out, &self.scales);
        }
        out.iter_mut().zip(bytes).for_each(|(out, &byte)| *out = e8m0(byte));
        Ok(())
    }
}

fn e4m3(bytes: &[u8], out: &mut [f32], tensor: &TensorInfo) -> Result<()> {
    drophammer_quant::dequantize(DType::F8E4M3, bytes, out).map_err(|error| wrong(tensor, error.to_string()))
}

/// The integers of a little-endian bit stream.
fn unpack(bytes: &[u8], bits: u32, out: &mut [f32]) {
    let (mut held, mut have, mut bytes) = (0u32, 0, bytes.iter());
    for value in out {
        while have < bits {
            held |= u32::from(*bytes.next().unwrap_or(&0)) << have;
            have += 8;
        }
        *value = (held & ((1 << bits) - 1)) as f32;
        held >>= bits;
        have -= bits;
    }
}

impl Stored for Mlx {
    fn extent(&self) -> [u64; 3] {
        self.extent
    }

    fn read(&self, source: &Source, matrix: u64, rows: Range<u64>, out: &mut [f32]) -> Result<()> {
        let [_, height, columns] = self.extent;
        let (groups, packed) = (columns / self.group, self.weights.row_elements());
        let mut scales = vec![0.0; groups as usize];
        let mut biases = vec![0.0; groups as usize];
        for (row, line) in rows.zip(out.chunks_exact_mut(columns as usize)) {
            let row = matrix * height + row;
            let bytes = elements(source, &self.weights, row * packed, packed)?;
            self.row_scales(source, row, &mut scales)?;
            match self.mode {
                Mode::Mxfp8 => e4m3(bytes, line, &self.weights)?,
                _ => unpack(bytes, self.bits, line),
            }
            if matches!(self.mode, Mode::Mxfp4 | Mode::Nvfp4) {
                for value in line.iter_mut() {
                    *value = E2M1[*value as usize & 15];
                }
            }
            if let Some(tensor) = &self.biases {
                decode(source, tensor, row * groups, groups, &mut biases)?;
            }
            for ((line, scale), bias) in line.chunks_exact_mut(self.group as usize).zip(&scales).zip(&biases)
            {
                for value in line {
                    *value = *value * scale + bias;
                }
            }
        }
        Ok(())
    }

    fn mlx(&self) -> Option<&Mlx> {
        Some(self)
    }

    fn dtype(&self) -> DType {
        if self.mode == Mode::Affine { self.scales.dtype } else { DType::BF16 }
    }

    fn tensors(&self) -> Vec<&TensorInfo> {
        [Some(&self.weights), Some(&self.scales), self.biases.as_ref()].into_iter().flatten().collect()
    }
}
