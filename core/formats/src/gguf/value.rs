//! Metadata values: scalars, strings and (nested) arrays.

use serde::Serialize;

macro_rules! scalars {
    ($($variant:ident($rust:ty) = $id:literal),* $(,)?) => {
        /// A metadata value.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(untagged)]
        #[allow(missing_docs)] // the variants are named after the format's own types
        pub enum Value {
            $($variant($rust),)*
            Bool(bool),
            /// Bytes that are not UTF-8 read as replacement characters; keys and tensor names must be UTF-8.
            String(String),
            Array(Array),
        }

        /// The elements of an array value, all of one type.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(untagged)]
        #[allow(missing_docs)]
        pub enum Array {
            $($variant(Vec<$rust>),)*
            Bool(Vec<bool>),
            String(Vec<String>),
            Array(Vec<Array>),
        }

        impl Value {
            /// The value type's number in the file.
            pub const fn type_id(&self) -> u32 {
                match self { $(Value::$variant(_) => $id,)* Value::Bool(_) => 7, Value::String(_) => 8, Value::Array(_) => 9 }
            }

            pub(super) fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(Value::$variant(value) => out.extend(value.to_le_bytes()),)*
                    Value::Bool(value) => out.push((*value).into()),
                    Value::String(value) => write_string(value, out),
                    Value::Array(array) => array.write(out),
                }
            }
        }

        impl Array {
            /// The element type's number in the file.
            pub const fn type_id(&self) -> u32 {
                match self { $(Array::$variant(_) => $id,)* Array::Bool(_) => 7, Array::String(_) => 8, Array::Array(_) => 9 }
            }

            /// How many elements it has.
            pub fn len(&self) -> usize {
                match self {
                    $(Array::$variant(values) => values.len(),)*
                    Array::Bool(values) => values.len(),
                    Array::String(values) => values.len(),
                    Array::Array(values) => values.len(),
                }
            }

            /// Whether it has no elements.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            pub(super) fn write(&self, out: &mut Vec<u8>) {
                out.extend(self.type_id().to_le_bytes());
                out.extend((self.len() as u64).to_le_bytes());
                match self {
                    $(Array::$variant(values) => for value in values { out.extend(value.to_le_bytes()); },)*
                    Array::Bool(values) => out.extend(values.iter().map(|&value| u8::from(value))),
                    Array::String(values) => for value in values { write_string(value, out); },
                    Array::Array(values) => for value in values { value.write(out); },
                }
            }
        }

        $(
            impl From<$rust> for Value {
                fn from(value: $rust) -> Self { Value::$variant(value) }
            }
            impl From<Vec<$rust>> for Value {
                fn from(values: Vec<$rust>) -> Self { Value::Array(Array::$variant(values)) }
            }
        )*
    };
}

scalars! {
    U8(u8) = 0,
    I8(i8) = 1,
    U16(u16) = 2,
    I16(i16) = 3,
    U32(u32) = 4,
    I32(i32) = 5,
    F32(f32) = 6,
    U64(u64) = 10,
    I64(i64) = 11,
    F64(f64) = 12,
}

/// Length, then bytes: how the format writes every string.
pub(super) fn write_string(string: &str, out: &mut Vec<u8>) {
    out.extend((string.len() as u64).to_le_bytes());
    out.extend(string.as_bytes());
}

impl Value {
    /// The value as an unsigned number, from any integer type that can hold it without loss.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            _ => self.as_i64().and_then(|v| v.try_into().ok()),
        }
    }

    /// The value as a signed number, from any integer type that can hold it without loss.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Value::I8(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::I64(v) => Some(v),
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// The value as a floating-point number, from any float type.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            _ => None,
        }
    }

    /// The value, if it is a truth value.
    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(value) = self { Some(*value) } else { None }
    }

    /// The value, if it is a string.
    pub fn as_str(&self) -> Option<&str> {
        if let Value::String(value) = self { Some(value) } else { None }
    }

    /// The value, if it is an array.
    pub fn as_array(&self) -> Option<&Array> {
        if let Value::Array(array) = self { Some(array) } else { None }
    }
}

impl Array {
    /// The elements, if they are strings.
    pub fn as_strings(&self) -> Option<&[String]> {
        if let Array::String(values) = self { Some(values) } else { None }
    }

    /// The elements, if they are truth values.
    pub fn as_bools(&self) -> Option<&[bool]> {
        if let Array::Bool(values) = self { Some(values) } else { None }
    }

    /// The elements as signed numbers, from any integer type that can hold them without loss.
    pub fn to_i64s(&self) -> Option<Vec<i64>> {
        match self {
            Array::U8(v) => Some(v.iter().map(|&x| x.into()).collect()),
            Array::I8(v) => Some(v.iter().map(|&x| x.into()).collect()),
            Array::U16(v) => Some(v.iter().map(|&x| x.into()).collect()),
            Array::I16(v) => Some(v.iter().map(|&x| x.into()).collect()),
            Array::U32(v) => Some(v.iter().map(|&x| x.into()).collect()),
            Array::I32(v) => Some(v.iter().map(|&x| x.into()).collect()),
            Array::I64(v) => Some(v.clone()),
            Array::U64(v) => v.iter().map(|&x| x.try_into().ok()).collect(),
            _ => None,
        }
    }

    /// The elements as `f32`, from either float type.
    pub fn to_f32s(&self) -> Option<Vec<f32>> {
        match self {
            Array::F32(v) => Some(v.clone()),
            Array::F64(v) => Some(v.iter().map(|&x| x as f32).collect()),
            _ => None,
        }
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Bool(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::String(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Value::String(value)
    }
}

impl From<Vec<String>> for Value {
    fn from(values: Vec<String>) -> Self {
        Value::Array(Array::String(values))
    }
}

impl From<Vec<bool>> for Value {
    fn from(values: Vec<bool>) -> Self {
        Value::Array(Array::Bool(values))
    }
}
