//! Reading and writing of the explicit binary formats: little-endian integers, variable-length lengths, byte strings.
//!
//! A [`Reader`] never panics and never reads past its input; whatever does not fit is a [`DecodeError`] that says what
//! was being read.

use bytes::{Buf, Bytes};
use thiserror::Error;

/// Bytes that are not what their format says.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("malformed {what}")]
pub struct DecodeError {
    /// What was being read.
    pub what: &'static str,
}

/// Reads values off the front of shared bytes; byte strings share memory with the input.
#[derive(Debug, Clone)]
pub struct Reader {
    rest: Bytes,
}

impl Reader {
    /// Starts at the front of `bytes`.
    pub fn new(bytes: Bytes) -> Reader {
        Reader { rest: bytes }
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// One byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        if self.rest.is_empty() {
            return Err(DecodeError { what });
        }
        Ok(self.rest.get_u8())
    }

    /// A little-endian 32-bit integer.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        if self.rest.len() < 4 {
            return Err(DecodeError { what });
        }
        Ok(self.rest.get_u32_le())
    }

    /// A little-endian 64-bit integer.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        if self.rest.len() < 8 {
            return Err(DecodeError { what });
        }
        Ok(self.rest.get_u64_le())
    }

    /// A variable-length integer (LEB128).
    pub fn varint(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(what)?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(DecodeError { what });
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError { what })
    }

    /// Exactly `n` bytes.
    pub fn take(&mut self, n: usize, what: &'static str) -> Result<Bytes, DecodeError> {
        if self.rest.len() < n {
            return Err(DecodeError { what });
        }
        Ok(self.rest.split_to(n))
    }

    /// A byte string: its length as a varint, then its bytes.
    pub fn bytes(&mut self, what: &'static str) -> Result<Bytes, DecodeError> {
        let n = self.varint(what)?;
        let n = usize::try_from(n).map_err(|_| DecodeError { what })?;
        self.take(n, what)
    }

    /// Succeeds only when nothing is left.
    pub fn finish(self, what: &'static str) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError { what }) }
    }
}

/// Appends a variable-length integer (LEB128).
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a byte string: its length as a varint, then its bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads a counted list. Every item takes at least one byte, so a count beyond the bytes that are left is refused
/// before anything is allocated for it.
pub fn read_list<T>(
    reader: &mut Reader,
    what: &'static str,
    mut item: impl FnMut(&mut Reader) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let count = reader.varint(what)?;
    if count > reader.remaining() as u64 {
        return Err(DecodeError { what });
    }
    (0..count).map(|_| item(reader)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_come_back() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            let mut reader = Reader::new(out.into());
            assert_eq!(reader.varint("v"), Ok(value));
            assert_eq!(reader.finish("end"), Ok(()));
        }
    }

    #[test]
    fn a_varint_that_overflows_or_never_ends_is_refused() {
        assert!(Reader::new(Bytes::from_static(&[0xff; 9])).varint("v").is_err());
        assert!(Reader::new(Bytes::from_static(&[0xff; 11])).varint("v").is_err());
        let mut too_big = vec![0xff; 9];
        too_big.push(2);
        assert!(Reader::new(too_big.into()).varint("v").is_err());
    }

    #[test]
    fn a_length_beyond_the_input_is_refused() {
        let mut out = Vec::new();
        put_varint(&mut out, u64::MAX);
        out.push(1);
        assert_eq!(Reader::new(out.into()).bytes("name"), Err(DecodeError { what: "name" }));
    }
}
