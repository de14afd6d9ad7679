//! What is computed with arrays: element by element, over an axis, products, and libmlx's fused operations.

use std::ffi::c_int;

use drophammer_sdk::Result;

use super::array::{Array, Packing, Quantized, Type, maybe};

/// Operations on two arrays; the numbers are the shim's.
#[derive(Debug, Clone, Copy)]
#[repr(i32)]
pub(crate) enum Binary {
    Add = 0,
    Multiply = 1,
    Divide = 2,
}

/// Functions of one number; the numbers are the shim's.
#[derive(Debug, Clone, Copy)]
#[repr(i32)]
pub(crate) enum Activation {
    Silu = 0,
    Gelu = 1,
    GeluTanh = 2,
    Relu = 3,
    ReluSquared = 4,
    Sigmoid = 5,
    Tanh = 6,
}

// SAFETY of all calls below: `self` and the other arrays are live; strings end in zero.
impl Array {
    pub(crate) fn binary(&self, what: Binary, other: &Array) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().binary)(what as c_int, self.raw(), other.raw()) })
    }

    pub(crate) fn add(&self, other: &Array) -> Result<Array> {
        self.binary(Binary::Add, other)
    }

    pub(crate) fn mul(&self, other: &Array) -> Result<Array> {
        self.binary(Binary::Multiply, other)
    }

    /// Times a constant of the same type.
    pub(crate) fn scale(&self, factor: f32) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().scale)(self.raw(), factor) })
    }

    pub(crate) fn add_scalar(&self, value: f32) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().add_scalar)(self.raw(), value) })
    }

    /// Within bounds; an infinite one does not bound.
    pub(crate) fn clip(&self, low: f32, high: f32) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().clip)(self.raw(), low, high) })
    }

    pub(crate) fn activate(&self, what: Activation) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().activate)(what as c_int, self.raw()) })
    }

    /// This where `condition`, else `no`.
    pub(crate) fn only_where(&self, condition: &Array, no: f32) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().select)(condition.raw(), self.raw(), no) })
    }

    /// Whether less than `other`.
    pub(crate) fn less(&self, other: &Array) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().less)(self.raw(), other.raw()) })
    }

    /// The smallest finite number of its type.
    pub(crate) fn lowest(&self) -> f32 {
        // SAFETY: see above.
        unsafe { (self.api().lowest)(self.raw()) }
    }

    /// Over the last axis, summed in float32.
    pub(crate) fn softmax(&self) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().softmax)(self.raw()) })
    }

    pub(crate) fn sum(&self, axis: i32, keep: bool) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().sum)(self.raw(), axis, c_int::from(keep)) })
    }

    /// Where the `count` largest numbers of the last axis are.
    pub(crate) fn largest(&self, count: i32) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().largest)(self.raw(), count) })
    }

    /// The last axis in ascending order.
    pub(crate) fn sort(&self) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().sort)(self.raw()) })
    }

    pub(crate) fn matmul(&self, other: &Array) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().matmul)(self.raw(), other.raw()) })
    }

    /// `self · other + bias`.
    pub(crate) fn matmul_add(&self, other: &Array, bias: &Array) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().addmm)(bias.raw(), self.raw(), other.raw()) })
    }

    /// `self · Wᵀ`, or `self · W`.
    pub(crate) fn quantized_matmul(&self, w: &Quantized, transpose: bool) -> Result<Array> {
        let Packing { group, bits, mode } = w.packing;
        // SAFETY: see above.
        self.make(unsafe {
            (self.api().quantized_matmul)(
                self.raw(),
                w.codes.raw(),
                w.scales.raw(),
                maybe(w.biases.as_ref()),
                c_int::from(transpose),
                group,
                bits,
                mode.as_ptr(),
            )
        })
    }

    /// Each row times the matrix that `which` chooses from a stack `[n, inputs, outputs]`.
    pub(crate) fn gather_matmul(&self, stack: &Array, which: &Array) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().gather_mm)(self.raw(), stack.raw(), which.raw()) })
    }

    /// The same for packed stacks `[n, outputs, inputs]`.
    pub(crate) fn gather_quantized_matmul(&self, w: &Quantized, which: &Array) -> Result<Array> {
        let Packing { group, bits, mode } = w.packing;
        // SAFETY: see above.
        self.make(unsafe {
            (self.api().gather_qmm)(
                self.raw(),
                w.codes.raw(),
                w.scales.raw(),
                maybe(w.biases.as_ref()),
                which.raw(),
                group,
                bits,
                mode.as_ptr(),
            )
        })
    }

    /// Packed in the affine mode.
    pub(crate) fn quantize(&self, group: i32, bits: i32) -> Result<Quantized> {
        let mut parts = [std::ptr::null_mut(); 3];
        // SAFETY: see above; three arrays are written where it succeeds.
        self.api().check(unsafe { (self.api().quantize)(self.raw(), group, bits, parts.as_mut_ptr()) })?;
        let [codes, scales, biases] = parts;
        let packing = Packing { group, bits, mode: c"affine" };
        Ok(Quantized {
            codes: self.make(codes)?,
            scales: self.make(scales)?,
            biases: Some(self.make(biases)?),
            packing,
        })
    }

    pub(crate) fn rms_norm(&self, weight: Option<&Array>, epsilon: f32) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().rms_norm)(self.raw(), maybe(weight), epsilon) })
    }

    pub(crate) fn layer_norm(
        &self,
        weight: Option<&Array>,
        bias: Option<&Array>,
        epsilon: f32,
    ) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().layer_norm)(self.raw(), maybe(weight), maybe(bias), epsilon) })
    }

    /// Rotates the first `width` numbers of the last axis. `rotation` says how fast; positions count from `offset`, or
    /// are `offsets`, one for each of the first axis.
    pub(crate) fn rope(
        &self,
        width: i32,
        pairs: bool,
        (base, scale, wavelengths): (f32, f32, Option<&Array>),
        offset: i32,
        offsets: Option<&Array>,
    ) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe {
            (self.api().rope)(
                self.raw(),
                width,
                c_int::from(pairs),
                base,
                scale,
                maybe(offsets),
                offset,
                maybe(wavelengths),
            )
        })
    }

    /// Cosines and sines of these radians per position at `positions`.
    pub(crate) fn waves(&self, positions: &Array, kind: Type) -> Result<[Array; 2]> {
        let mut parts = [std::ptr::null_mut(); 2];
        // SAFETY: see above; two arrays are written where it succeeds.
        self.api().check(unsafe {
            (self.api().waves)(self.raw(), positions.raw(), kind as c_int, parts.as_mut_ptr())
        })?;
        let [cosines, sines] = parts;
        Ok([self.make(cosines)?, self.make(sines)?])
    }

    /// What [`Array::rope`] gives on a processor for pairs of halves, from cosines and sines that are made once.
    pub(crate) fn rotate(&self, [cosines, sines]: &[Array; 2], width: i32) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().rotate)(self.raw(), cosines.raw(), sines.raw(), width) })
    }

    /// Softmax attention of queries over keys and values, all `[1, heads, tokens, width]`.
    pub(crate) fn attention(
        &self,
        keys: &Array,
        values: &Array,
        scale: f32,
        causal: bool,
        mask: Option<&Array>,
        sinks: Option<&Array>,
    ) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe {
            (self.api().attention)(
                self.raw(),
                keys.raw(),
                values.raw(),
                scale,
                c_int::from(causal),
                maybe(mask),
                maybe(sinks),
            )
        })
    }
}

impl Quantized {
    /// As plain numbers.
    pub(crate) fn dequantize(&self, kind: Type) -> Result<Array> {
        let Packing { group, bits, mode } = self.packing;
        let codes = &self.codes;
        // SAFETY: see above.
        codes.make(unsafe {
            (codes.api().dequantize)(
                codes.raw(),
                self.scales.raw(),
                maybe(self.biases.as_ref()),
                group,
                bits,
                mode.as_ptr(),
                kind as c_int,
            )
        })
    }

    /// The same operation on each of its parts.
    pub(crate) fn each(&self, f: impl Fn(&Array) -> Result<Array>) -> Result<Self> {
        Ok(Self {
            codes: f(&self.codes)?,
            scales: f(&self.scales)?,
            biases: self.biases.as_ref().map(f).transpose()?,
            packing: self.packing,
        })
    }
}
