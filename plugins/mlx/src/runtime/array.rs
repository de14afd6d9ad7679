//! Arrays of libmlx: lazy, cheap to clone, freed when dropped; what is computed with them is in `operations`.

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

pub(super) fn maybe(array: Option<&Array>) -> *const Raw {
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

    /// Radians per position of each of `pairs` pairs of a rotation: see [`Array::rope`].
    pub(crate) fn turns(self, wavelengths: Option<&Array>, base: f32, pairs: i32) -> Result<Array> {
        // SAFETY: a live array or none.
        made(self.api, unsafe { (self.api.turns)(maybe(wavelengths), base, pairs) })
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

    /// Begins to compute arrays while more is built.
    pub(crate) fn start<'a>(self, arrays: impl Iterator<Item = &'a Array>) -> Result<()> {
        let raw: Vec<*const Raw> = arrays.map(Array::raw).collect();
        // SAFETY: live arrays.
        self.api.check(unsafe { (self.api.start)(raw.as_ptr(), raw.len() as c_int) })
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
    pub(super) fn raw(&self) -> *const Raw {
        self.0.raw.as_ptr()
    }

    pub(super) fn api(&self) -> &'static Api {
        self.0.api
    }

    pub(super) fn make(&self, raw: *mut Raw) -> Result<Array> {
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
}
