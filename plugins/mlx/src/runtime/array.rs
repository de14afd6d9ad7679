//! Arrays of libmlx: lazy, cheap to clone, freed when dropped.

use std::ffi::{CStr, c_int, c_void};
use std::ptr::{NonNull, null};
use std::sync::Arc;

use drophammer_sdk::Result;

use super::Arrays;
use super::library::{Api, Raw};

/// Types of elements; the numbers are the shim's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Type {
    F32 = 0,
    F16 = 1,
    Bf16 = 2,
    U32 = 3,
    U8 = 4,
    I32 = 5,
    Bool = 6,
}

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

/// How a matrix is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packing {
    pub(crate) group: i32,
    pub(crate) bits: i32,
    /// libmlx's name.
    pub(crate) mode: &'static CStr,
}

/// A packed matrix or stack of matrices.
#[derive(Clone)]
pub(crate) struct Quantized {
    pub(crate) codes: Array,
    pub(crate) scales: Array,
    pub(crate) biases: Option<Array>,
    pub(crate) packing: Packing,
}

struct Owned {
    raw: NonNull<Raw>,
    api: &'static Api,
}

// SAFETY: an array is a counted reference whose counts are atomic; work on it is ordered by the one session that owns it.
unsafe impl Send for Owned {}
// SAFETY: as above; shared references only read the handle.
unsafe impl Sync for Owned {}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: made by the shim, freed once.
        unsafe { (self.api.free)(self.raw.as_ptr()) }
    }
}

/// An array.
#[derive(Clone)]
pub(crate) struct Array(Arc<Owned>);

fn made(api: &'static Api, raw: *mut Raw) -> Result<Array> {
    NonNull::new(raw).map(|raw| Array(Arc::new(Owned { raw, api }))).ok_or_else(|| api.failure())
}

fn maybe(array: Option<&Array>) -> *const Raw {
    array.map_or(null(), Array::raw)
}

impl Arrays {
    /// An array whose bytes `fill` writes.
    pub(crate) fn filled(
        self,
        dims: &[i32],
        kind: Type,
        fill: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<Array> {
        let mut data: *mut c_void = std::ptr::null_mut();
        // SAFETY: the shim reads `dims` and writes where the data are.
        let array = made(self.api, unsafe {
            (self.api.new)(dims.as_ptr(), dims.len() as c_int, kind as c_int, &raw mut data)
        })?;
        let elements: usize = dims.iter().map(|&dim| dim.max(0) as usize).product();
        if elements > 0 {
            // SAFETY: libmlx allocated so many bytes; nobody else knows the array yet.
            fill(unsafe { std::slice::from_raw_parts_mut(data.cast(), elements * kind.bytes()) })?;
        }
        Ok(array)
    }

    /// Whole numbers.
    pub(crate) fn integers(self, values: &[i32], dims: &[i32]) -> Result<Array> {
        self.filled(dims, Type::I32, |bytes| {
            for (bytes, value) in bytes.chunks_exact_mut(4).zip(values) {
                bytes.copy_from_slice(&value.to_ne_bytes());
            }
            Ok(())
        })
    }

    /// Floats, converted to `kind`.
    pub(crate) fn floats(self, values: &[f32], dims: &[i32], kind: Type) -> Result<Array> {
        let array = self.filled(dims, Type::F32, |bytes| {
            for (bytes, value) in bytes.chunks_exact_mut(4).zip(values) {
                bytes.copy_from_slice(&value.to_ne_bytes());
            }
            Ok(())
        })?;
        if kind == Type::F32 { Ok(array) } else { array.astype(kind) }
    }

    /// Truth values.
    pub(crate) fn booleans(self, values: impl Iterator<Item = bool>, dims: &[i32]) -> Result<Array> {
        self.filled(dims, Type::Bool, |bytes| {
            bytes.iter_mut().zip(values).for_each(|(byte, value)| *byte = u8::from(value));
            Ok(())
        })
    }

    /// Zeros.
    pub(crate) fn zeros(self, dims: &[i32], kind: Type) -> Result<Array> {
        // SAFETY: reads `dims`.
        made(self.api, unsafe { (self.api.zeros)(dims.as_ptr(), dims.len() as c_int, kind as c_int) })
    }

    /// Computes arrays.
    pub(crate) fn eval<'a>(self, arrays: impl Iterator<Item = &'a Array>) -> Result<()> {
        let raw: Vec<*const Raw> = arrays.map(Array::raw).collect();
        // SAFETY: live arrays.
        self.api.check(unsafe { (self.api.eval)(raw.as_ptr(), raw.len() as c_int) })
    }

    /// Arrays end to end along an axis.
    pub(crate) fn concatenate(self, arrays: &[Array], axis: i32) -> Result<Array> {
        if let [one] = arrays {
            return Ok(one.clone());
        }
        let raw: Vec<*const Raw> = arrays.iter().map(Array::raw).collect();
        // SAFETY: live arrays.
        made(self.api, unsafe { (self.api.concatenate)(raw.as_ptr(), raw.len() as c_int, axis) })
    }
}

impl Type {
    /// Bytes of an element.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Type::F32 | Type::U32 | Type::I32 => 4,
            Type::F16 | Type::Bf16 => 2,
            Type::U8 | Type::Bool => 1,
        }
    }
}

// SAFETY of all calls below: `self` and the other arrays are live; slices are passed with their lengths; strings end in zero.
impl Array {
    fn raw(&self) -> *const Raw {
        self.0.raw.as_ptr()
    }

    fn api(&self) -> &'static Api {
        self.0.api
    }

    fn make(&self, raw: *mut Raw) -> Result<Array> {
        made(self.api(), raw)
    }

    /// Whether both are the same array.
    pub(crate) fn is(&self, other: &Array) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Its dimensions.
    pub(crate) fn dims(&self) -> Vec<i32> {
        let mut dims = [0; 8];
        // SAFETY: see above.
        let n = unsafe { (self.api().dims)(self.raw(), dims.as_mut_ptr(), dims.len() as c_int) };
        dims[..(n.max(0) as usize).min(8)].to_vec()
    }

    /// Computes it and copies it out.
    pub(crate) fn read(&self, out: &mut [f32]) -> Result<()> {
        // SAFETY: see above.
        self.api().check(unsafe { (self.api().read)(self.raw(), out.as_mut_ptr(), out.len()) })
    }

    pub(crate) fn astype(&self, kind: Type) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().astype)(self.raw(), kind as c_int) })
    }

    pub(crate) fn reshape(&self, dims: &[i32]) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().reshape)(self.raw(), dims.as_ptr(), dims.len() as c_int) })
    }

    pub(crate) fn transpose(&self, axes: &[i32]) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().transpose)(self.raw(), axes.as_ptr(), axes.len() as c_int) })
    }

    /// The part from `begin` to `end` of an axis.
    pub(crate) fn slice(&self, axis: i32, begin: i32, end: i32) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().slice)(self.raw(), axis, begin, end) })
    }

    /// This array with `part` from `begin` on along an axis; in place where nobody else holds it.
    pub(crate) fn write(self, part: &Array, axis: i32, begin: i32) -> Result<Array> {
        let api = self.api();
        // The shim frees what it takes over, so that the old array's memory has no other owner when the new one is computed.
        let taken = match Arc::try_unwrap(self.0) {
            Ok(owned) => {
                let raw = owned.raw.as_ptr();
                std::mem::forget(owned);
                raw
            }
            // SAFETY: see above.
            Err(shared) => unsafe { (api.clone)(shared.raw.as_ptr()) },
        };
        if taken.is_null() {
            return Err(api.failure());
        }
        // SAFETY: see above; `taken` is given away.
        made(api, unsafe { (api.write)(taken, part.raw(), axis, begin) })
    }

    /// Rows at `indices` of an axis.
    pub(crate) fn take(&self, indices: &Array, axis: i32) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().take)(self.raw(), indices.raw(), axis) })
    }

    pub(crate) fn take_along(&self, indices: &Array, axis: i32) -> Result<Array> {
        // SAFETY: see above.
        self.make(unsafe { (self.api().take_along)(self.raw(), indices.raw(), axis) })
    }

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
