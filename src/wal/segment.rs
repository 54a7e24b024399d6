//! The frame around the records: names of files, the header of a segment and the header of a batch.
//!
//! ```text
//!   0000000000000007.wal:  segment header, one sector │ batch │ batch │ … │ zeros or stale bytes
//!   batch:                 batch header │ record │ record │ …
//! ```
//!
//! A segment header is durable before the file has its name, so a segment without a valid header is damage, never an
//! accident. It repeats everything that the segments before it amount to (vote, purged id, last id), so that those may
//! go; and it says where the segment before it ends, so that what a crash left behind that end never counts again.
//!
//! The epoch of a segment is drawn at random when it is made. It begins every batch, so that the batches of this
//! segment, and of no earlier user of the file, can be found among stale bytes.

use bytes::Bytes;

use super::record::{put_log_id, put_option, put_vote, read_log_id, read_option, read_vote};
use crate::model::codec::{DecodeError, Reader};
use crate::model::{ClusterId, LogId, MemberId, Vote};

/// One sector: it is written whole or not at all, and batches never share it.
pub(super) const SEGMENT_HEADER_BYTES: usize = 512;
const SEGMENT_MAGIC: &[u8; 8] = b"LIFEBWAL";
pub(super) const FORMAT_VERSION: u32 = 1;

pub(super) const BATCH_HEADER_BYTES: usize = 73;

/// What all records up to some point amount to, the entries themselves apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LogState {
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
    /// The last entry, or the purged id when there is none after it.
    pub last: Option<LogId>,
}

/// The index that follows an optional log id: the first index of a log is 0.
pub(super) fn next_index(id: Option<LogId>) -> u64 {
    id.map_or(0, |id| id.index + 1)
}

/// The beginning of a segment file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub id: u64,
    pub epoch: u64,
    pub cluster: ClusterId,
    pub member: MemberId,
    /// The number of the first batch of this segment.
    pub first_batch: u64,
    /// Where the segment before this one ends; 0 when there was none.
    pub previous_end: u64,
    /// What all earlier segments amount to.
    pub state: LogState,
}

/// Why a segment header was not accepted.
#[derive(Debug)]
pub(super) enum HeaderError {
    Damaged,
    Version(u32),
    Malformed(DecodeError),
}

impl SegmentHeader {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        out.extend_from_slice(SEGMENT_MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&self.id.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.cluster.0);
        out.extend_from_slice(&self.member.to_le_bytes());
        out.extend_from_slice(&self.first_batch.to_le_bytes());
        out.extend_from_slice(&self.previous_end.to_le_bytes());
        put_option(&mut out, self.state.vote.as_ref(), put_vote);
        for id in [&self.state.committed, &self.state.purged, &self.state.last] {
            put_option(&mut out, id.as_ref(), put_log_id);
        }
        out.resize(SEGMENT_HEADER_BYTES - 4, 0);
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<SegmentHeader, HeaderError> {
        let sector = bytes.get(..SEGMENT_HEADER_BYTES).ok_or(HeaderError::Damaged)?;
        let (content, crc) = sector.split_at(SEGMENT_HEADER_BYTES - 4);
        if crc32c::crc32c(content).to_le_bytes() != crc || !content.starts_with(SEGMENT_MAGIC) {
            return Err(HeaderError::Damaged);
        }
        let mut reader = Reader::new(Bytes::copy_from_slice(&content[SEGMENT_MAGIC.len()..]));
        let version = reader.u32("version").map_err(HeaderError::Malformed)?;
        if version != FORMAT_VERSION {
            return Err(HeaderError::Version(version));
        }
        SegmentHeader::read(&mut reader).map_err(HeaderError::Malformed)
    }

    fn read(reader: &mut Reader) -> Result<SegmentHeader, DecodeError> {
        let (id, epoch) = (reader.u64("segment id")?, reader.u64("epoch")?);
        let mut cluster = ClusterId::default();
        cluster.0.copy_from_slice(&reader.take(16, "cluster id")?);
        Ok(SegmentHeader {
            id,
            epoch,
            cluster,
            member: reader.u64("member id")?,
            first_batch: reader.u64("first batch")?,
            previous_end: reader.u64("end of the segment before")?,
            state: LogState {
                vote: read_option(reader, read_vote)?,
                committed: read_option(reader, read_log_id)?,
                purged: read_option(reader, read_log_id)?,
                last: read_option(reader, read_log_id)?,
            },
        })
    }
}

/// The beginning of a batch. It also carries its own place in the file, and by that says that all bytes of the segment
/// before this place were durable when the batch was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchHeader {
    /// Counts batches over the whole life of the wal.
    pub batch: u64,
    pub records: u32,
    /// The length of all records together.
    pub records_bytes: u64,
    /// The committed log id; never beyond what was durable in this wal before this batch.
    pub committed: Option<LogId>,
}

impl BatchHeader {
    /// Writes the header into its place at the front of `out`.
    pub fn encode_into(&self, epoch: u64, segment: u64, offset: u64, out: &mut [u8]) {
        let committed = self.committed.unwrap_or_default();
        let fields = [epoch, segment, offset, self.batch, self.records_bytes];
        let ids = [committed.term, committed.leader, committed.index];
        for (place, field) in out.chunks_exact_mut(8).zip(fields.into_iter().chain(ids)) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        out[64] = u8::from(self.committed.is_some());
        out[65..69].copy_from_slice(&self.records.to_le_bytes());
        let crc = crc32c::crc32c(&out[..69]);
        out[69..73].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads the header of a batch of this segment at the front of `bytes`, which stand at `offset` in the file; `None`
    /// when none stands there.
    pub fn parse(bytes: &[u8], epoch: u64, segment: u64, offset: u64) -> Option<BatchHeader> {
        let bytes = bytes.get(..BATCH_HEADER_BYTES)?;
        if bytes[..8] != epoch.to_le_bytes() || crc32c::crc32c(&bytes[..69]).to_le_bytes() != bytes[69..] {
            return None;
        }
        let mut reader = Reader::new(Bytes::copy_from_slice(&bytes[8..69]));
        let mut field = || reader.u64("batch header").ok();
        let (found_segment, found_offset, batch, records_bytes) = (field()?, field()?, field()?, field()?);
        let committed = LogId { term: field()?, leader: field()?, index: field()? };
        let committed = match reader.u8("batch header").ok()? {
            0 => None,
            1 => Some(committed),
            _ => return None,
        };
        let records = reader.u32("batch header").ok()?;
        let valid = found_segment == segment && found_offset == offset;
        valid.then_some(BatchHeader { batch, records, records_bytes, committed })
    }
}

pub(super) fn segment_name(id: u64) -> String {
    format!("{id:016x}.wal")
}

pub(super) fn spare_name(id: u64) -> String {
    format!("{id:016x}.spare")
}

/// What a file in the wal's directory is, by its name; other files are not ours and stay untouched.
pub(super) enum FileName {
    Segment(u64),
    Spare,
    Foreign,
}

pub(super) fn parse_name(name: &str) -> FileName {
    let parsed = name.split_once('.').and_then(|(id, kind)| {
        let id = (id.len() == 16).then(|| u64::from_str_radix(id, 16).ok()).flatten()?;
        Some((id, kind))
    });
    match parsed {
        Some((id, "wal")) if segment_name(id) == name => FileName::Segment(id),
        Some((id, "spare")) if spare_name(id) == name => FileName::Spare,
        _ => FileName::Foreign,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::new_random_id;

    #[test]
    fn a_segment_header_comes_back_and_any_flip_is_noticed() {
        let id = LogId { term: 1, leader: 2, index: 3 };
        let vote = Vote { term: 4, member: 5, committed: true };
        let header = SegmentHeader {
            id: 6,
            epoch: 7,
            cluster: new_random_id(),
            member: 8,
            first_batch: 9,
            previous_end: 10,
            state: LogState { vote: Some(vote), committed: None, purged: Some(id), last: Some(id) },
        };
        let bytes = header.encode();
        assert_eq!(bytes.len(), SEGMENT_HEADER_BYTES);
        assert_eq!(SegmentHeader::decode(&bytes).unwrap(), header);
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(matches!(SegmentHeader::decode(&flipped), Err(HeaderError::Damaged)), "flip at {at}");
        }
    }

    #[test]
    fn a_batch_header_comes_back_only_in_its_own_place_and_any_flip_is_noticed() {
        let committed = Some(LogId { term: 1, leader: 2, index: 3 });
        for committed in [None, committed] {
            let header = BatchHeader { batch: 0, records: 4, records_bytes: 5, committed };
            let mut bytes = [0; BATCH_HEADER_BYTES];
            header.encode_into(6, 7, 8, &mut bytes);
            assert_eq!(BatchHeader::parse(&bytes, 6, 7, 8), Some(header));
            assert_eq!(BatchHeader::parse(&bytes, 6, 8, 8), None);
            assert_eq!(BatchHeader::parse(&bytes, 5, 7, 8), None);
            assert_eq!(BatchHeader::parse(&bytes, 6, 7, 9), None);
            for at in 0..bytes.len() {
                let mut flipped = bytes;
                flipped[at] ^= 1;
                assert_eq!(BatchHeader::parse(&flipped, 6, 7, 8), None, "flip at {at}");
            }
        }
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        assert!(matches!(parse_name(&segment_name(300)), FileName::Segment(300)));
        assert!(matches!(parse_name(&spare_name(1)), FileName::Spare));
        for name in ["1.wal", "00000000000000AB.wal", "notes.txt", "0000000000000001.wal.bak", ""] {
            assert!(matches!(parse_name(name), FileName::Foreign), "{name}");
        }
    }
}
