//! Protobuf's wire format, as far as ONNX needs it: fields of a message, one after the other.
//! <https://protobuf.dev/programming-guides/encoding/>

use crate::error::Fault;

/// A message being read. Offsets count from the file's start.
#[derive(Clone)]
pub(super) struct Message<'a> {
    bytes: &'a [u8],
    base: u64,
    position: usize,
}

/// A field's value as it is on the wire.
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    /// Bytes, and where they begin in the file.
    Bytes(&'a [u8], u64),
}

impl<'a> Message<'a> {
    pub(super) fn new(bytes: &'a [u8], base: u64) -> Self {
        Self { bytes, base, position: 0 }
    }

    pub(super) fn offset(&self) -> u64 {
        self.base + self.position as u64
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.position >= self.bytes.len()
    }

    /// The next field's number and value, or `None` at the message's end.
    pub(super) fn field(&mut self) -> Result<Option<(u64, Wire<'a>)>, Fault> {
        if self.is_at_end() {
            return Ok(None);
        }
        let offset = self.offset();
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(self.array()?),
            2 => {
                let len = self.varint()?;
                let at = self.offset();
                Wire::Bytes(self.take(len)?, at)
            }
            5 => Wire::Fixed32(self.array()?),
            other => {
                return Err(Fault::Wire {
                    problem: format!("wire type {other} is not used in ONNX"),
                    offset,
                });
            }
        };
        match tag >> 3 {
            0 => Err(Fault::Wire { problem: "a field has the number 0".into(), offset }),
            number => Ok(Some((number, wire))),
        }
    }

    pub(super) fn varint(&mut self) -> Result<u64, Fault> {
        let offset = self.offset();
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Fault::Wire { problem: "a number is longer than ten bytes".into(), offset })
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64)?);
        Ok(out)
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], Fault> {
        let rest = &self.bytes[self.position..];
        if len > rest.len() as u64 {
            let (offset, end) = (self.offset(), self.base + self.bytes.len() as u64);
            return Err(Fault::Truncated { what: "a protobuf message", offset, needed: len, len: end });
        }
        self.position += len as usize;
        Ok(&rest[..len as usize])
    }
}

/// A message being written. Numbers are written even where they are zero: readers take one that is missing for one that is not told.
#[derive(Default)]
pub(super) struct Writer {
    pub(super) bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    fn tag(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    pub(super) fn int(&mut self, field: u64, value: i64) {
        self.tag(field, 0);
        self.varint(value as u64);
    }

    pub(super) fn float(&mut self, field: u64, value: f32) {
        self.tag(field, 5);
        self.bytes.extend(value.to_le_bytes());
    }

    /// Bytes, an empty value included: a member of a repeated field or of a choice.
    pub(super) fn element(&mut self, field: u64, value: &[u8]) {
        self.tag(field, 2);
        self.varint(value.len() as u64);
        self.bytes.extend_from_slice(value);
    }

    /// Bytes, left out when empty.
    pub(super) fn string(&mut self, field: u64, value: &str) {
        if !value.is_empty() {
            self.element(field, value.as_bytes());
        }
    }

    pub(super) fn message(&mut self, field: u64, write: impl FnOnce(&mut Writer)) {
        let mut inner = Writer::default();
        write(&mut inner);
        self.element(field, &inner.bytes);
    }
}
