//! Reading entries back from the segment files, from a mark on.
//!
//! Every record is checked again on the way: what was durable and does not check now is damage.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::error::WalError;
use super::record::{RECORD_HEADER_BYTES, Record, RecordHeader, Salt};
use super::segment::{BATCH_HEADER_BYTES, BatchHeader};
use super::view::Mark;
use crate::files::DiskFile;
use crate::model::Entry;

/// How much is read from a file at a time.
const WINDOW_BYTES: usize = 256 << 10;

/// A place in a segment file, moving from record to record over the borders of batches.
pub(super) struct Cursor {
    pub path: PathBuf,
    file: Arc<dyn DiskFile>,
    salt: Salt,
    offset: u64,
    batch_end: u64,
    window: Bytes,
    window_start: u64,
}

impl Cursor {
    pub fn new(path: PathBuf, file: Arc<dyn DiskFile>, epoch: u64, segment: u64, mark: &Mark) -> Cursor {
        Cursor {
            path,
            file,
            salt: Salt { epoch, segment, batch: mark.batch },
            offset: mark.offset,
            batch_end: mark.batch_end,
            window: Bytes::new(),
            window_start: 0,
        }
    }

    /// The next entry; records of other kinds are passed over.
    pub fn next_entry(&mut self) -> Result<Entry, WalError> {
        loop {
            while self.offset >= self.batch_end {
                self.enter_batch()?;
            }
            let start = self.offset;
            let header = self.bytes(start, RECORD_HEADER_BYTES)?;
            let Some(header) = RecordHeader::parse(&header) else {
                return Err(WalError::corrupt(&self.path, start, "no record"));
            };
            let end = start + header.record_bytes() as u64;
            if end > self.batch_end {
                return Err(WalError::corrupt(&self.path, start, "a record reaches beyond its batch"));
            }
            let body_at = start + RECORD_HEADER_BYTES as u64;
            let body = self.bytes(body_at, header.record_bytes() - RECORD_HEADER_BYTES)?;
            if !header.vouches_for(&body, &self.salt) {
                return Err(WalError::corrupt(&self.path, start, "the checksum of a record is wrong"));
            }
            self.offset = end;
            if !header.is_entry() {
                continue;
            }
            match header.decode(&body) {
                Ok(Record::Entry(entry)) => return Ok(entry),
                Ok(_) => {}
                Err(e) => return Err(WalError::corrupt(&self.path, start, e.to_string())),
            }
        }
    }

    fn enter_batch(&mut self) -> Result<(), WalError> {
        let bytes = self.bytes(self.offset, BATCH_HEADER_BYTES)?;
        let header = BatchHeader::parse(&bytes, self.salt.epoch, self.salt.segment, self.offset);
        let expected = self.salt.batch + 1;
        let Some(header) = header.filter(|header| header.batch == expected) else {
            return Err(WalError::corrupt(&self.path, self.offset, "the header of a batch is wrong"));
        };
        self.salt.batch = header.batch;
        self.offset += BATCH_HEADER_BYTES as u64;
        self.batch_end = self.offset + header.records_bytes;
        Ok(())
    }

    /// Exactly `len` bytes of the file at `offset`.
    fn bytes(&mut self, offset: u64, len: usize) -> Result<Bytes, WalError> {
        let window_end = self.window_start + self.window.len() as u64;
        if offset < self.window_start || offset + len as u64 > window_end {
            let mut window = vec![0; len.max(WINDOW_BYTES)];
            let read = self.file.read_at(&mut window, offset).map_err(WalError::io("read", &self.path))?;
            if read < len {
                return Err(WalError::corrupt(&self.path, offset + read as u64, "the file ends too early"));
            }
            window.truncate(read);
            (self.window, self.window_start) = (window.into(), offset);
        }
        let start = (offset - self.window_start) as usize;
        Ok(self.window.slice(start..start + len))
    }
}
