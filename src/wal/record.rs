//! The binary forms of the wal's records, and of a log entry wherever it goes.
//!
//! An entry has one encoding, made of its fields and its payload as proposed. The wal stores these bytes and the peers
//! send them. Integers are little-endian:
//!
//! ```text
//!   entry:   version u8 (1) · kind u8 · term u64 · leader u64 · index u64 · payload, to the end
//!   record:  crc u32 · length of the body u32 · kind of record u8 · body
//!   crc    = crc32c(body), continued over (epoch and id of the segment, number of the batch, kind, length)
//! ```
//!
//! The crc of the body alone is [`entry_crc`], which the wire uses as it is; continuing it over the salt costs 29 bytes
//! whatever the payload. The salt is what keeps a record that lay in a recycled file, or in a batch that was cut, from
//! being taken for one of the batch that now stands there.
//!
//! Proven by the tests below and by `wal::tests::damage`.

use bytes::Bytes;

use crate::model::codec::{DecodeError, Reader};
use crate::model::{Entry, EntryKind, LogId, Vote};

const ENTRY_VERSION: u8 = 1;
/// How many bytes an encoded entry has before its payload.
pub const ENTRY_HEADER_BYTES: usize = 26;
/// How many bytes a record has before its body.
pub(super) const RECORD_HEADER_BYTES: usize = 9;

pub(super) const RECORD_ENTRY: u8 = 1;
pub(super) const RECORD_VOTE: u8 = 2;
pub(super) const RECORD_TRUNCATE: u8 = 3;
pub(super) const RECORD_PURGE: u8 = 4;

/// How many bytes [`encode_entry_into`] will append.
pub fn encoded_entry_bytes(entry: &Entry) -> usize {
    ENTRY_HEADER_BYTES + entry.payload.len()
}

/// Appends the encoding of an entry.
pub fn encode_entry_into(entry: &Entry, out: &mut Vec<u8>) {
    let mut header = [0; ENTRY_HEADER_BYTES];
    header[0] = ENTRY_VERSION;
    header[1] = entry.kind as u8;
    header[2..10].copy_from_slice(&entry.log_id.term.to_le_bytes());
    header[10..18].copy_from_slice(&entry.log_id.leader.to_le_bytes());
    header[18..26].copy_from_slice(&entry.log_id.index.to_le_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(&entry.payload);
}

/// Reads back what [`encode_entry_into`] wrote, all of it; the payload shares memory with `bytes`.
pub fn decode_entry(bytes: &Bytes) -> Result<Entry, DecodeError> {
    let mut reader = Reader::new(bytes.clone());
    if reader.u8("entry version")? != ENTRY_VERSION {
        return Err(DecodeError { what: "entry: unknown version" });
    }
    let kind = EntryKind::from_byte(reader.u8("entry kind")?).ok_or(DecodeError { what: "entry: unknown kind" })?;
    let log_id = read_log_id(&mut reader)?;
    let payload = reader.take(reader.remaining(), "payload")?;
    Ok(Entry { log_id, kind, payload })
}

/// The checksum of an encoded entry: what travels with it between members.
pub fn entry_crc(encoded: &[u8]) -> u32 {
    crc32c::crc32c(encoded)
}

/// What ties a record to the one batch that it was written in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Salt {
    pub epoch: u64,
    pub segment: u64,
    pub batch: u64,
}

impl Salt {
    /// Continues the checksum of a body over this salt and the record's own header.
    fn seal(&self, body_crc: u32, kind: u8, body_bytes: u32) -> u32 {
        let mut tail = [0; 29];
        tail[..8].copy_from_slice(&self.epoch.to_le_bytes());
        tail[8..16].copy_from_slice(&self.segment.to_le_bytes());
        tail[16..24].copy_from_slice(&self.batch.to_le_bytes());
        tail[24] = kind;
        tail[25..].copy_from_slice(&body_bytes.to_le_bytes());
        crc32c::crc32c_append(body_crc, &tail)
    }
}

/// Appends a record whose body is what `put_body` appends.
pub(super) fn put_record(out: &mut Vec<u8>, salt: &Salt, kind: u8, put_body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
    put_body(out);
    let body = &out[start + RECORD_HEADER_BYTES..];
    let body_bytes = body.len() as u32;
    let crc = salt.seal(entry_crc(body), kind, body_bytes);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&body_bytes.to_le_bytes());
    out[start + 8] = kind;
}

/// The header of a record, not yet believed.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecordHeader {
    crc: u32,
    kind: u8,
    body_bytes: u32,
}

impl RecordHeader {
    pub fn parse(bytes: &[u8]) -> Option<RecordHeader> {
        let (crc, rest) = bytes.split_first_chunk::<4>()?;
        let (body_bytes, rest) = rest.split_first_chunk::<4>()?;
        Some(RecordHeader {
            crc: u32::from_le_bytes(*crc),
            body_bytes: u32::from_le_bytes(*body_bytes),
            kind: *rest.first()?,
        })
    }

    /// How many bytes the record takes, header and body.
    pub fn record_bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.body_bytes as usize
    }

    /// Whether `body` is what was written under this header in the batch that `salt` stands for.
    pub fn vouches_for(&self, body: &[u8], salt: &Salt) -> bool {
        body.len() == self.body_bytes as usize && salt.seal(entry_crc(body), self.kind, self.body_bytes) == self.crc
    }

    /// Whether the record is an entry.
    pub fn is_entry(&self) -> bool {
        self.kind == RECORD_ENTRY
    }

    /// Decodes a body that [`RecordHeader::vouches_for`] has accepted.
    pub fn decode(&self, body: &Bytes) -> Result<Record, DecodeError> {
        if self.kind == RECORD_ENTRY {
            return Ok(Record::Entry(decode_entry(body)?));
        }
        let mut reader = Reader::new(body.clone());
        let record = match self.kind {
            RECORD_VOTE => Record::Vote(read_vote(&mut reader)?),
            RECORD_TRUNCATE => Record::Truncate(read_option(&mut reader, read_log_id)?),
            RECORD_PURGE => Record::Purge(read_log_id(&mut reader)?),
            _ => return Err(DecodeError { what: "record: unknown kind" }),
        };
        reader.finish("record: bytes after its end")?;
        Ok(record)
    }
}

/// One thing that the wal remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    Entry(Entry),
    Vote(Vote),
    /// The log ends after this entry; what followed it is gone.
    Truncate(Option<LogId>),
    /// Entries up to this one are gone.
    Purge(LogId),
}

pub(super) fn put_log_id(out: &mut Vec<u8>, id: &LogId) {
    out.extend_from_slice(&id.term.to_le_bytes());
    out.extend_from_slice(&id.leader.to_le_bytes());
    out.extend_from_slice(&id.index.to_le_bytes());
}

pub(super) fn read_log_id(reader: &mut Reader) -> Result<LogId, DecodeError> {
    Ok(LogId { term: reader.u64("term")?, leader: reader.u64("leader")?, index: reader.u64("index")? })
}

pub(super) fn put_vote(out: &mut Vec<u8>, vote: &Vote) {
    out.extend_from_slice(&vote.term.to_le_bytes());
    out.extend_from_slice(&vote.member.to_le_bytes());
    out.push(u8::from(vote.committed));
}

pub(super) fn read_vote(reader: &mut Reader) -> Result<Vote, DecodeError> {
    let (term, member) = (reader.u64("term")?, reader.u64("member")?);
    let committed = match reader.u8("committed vote")? {
        0 => false,
        1 => true,
        _ => return Err(DecodeError { what: "committed vote" }),
    };
    Ok(Vote { term, member, committed })
}

pub(super) fn put_option<T>(out: &mut Vec<u8>, value: Option<&T>, put: impl FnOnce(&mut Vec<u8>, &T)) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}

pub(super) fn read_option<T>(
    reader: &mut Reader,
    read: impl FnOnce(&mut Reader) -> Result<T, DecodeError>,
) -> Result<Option<T>, DecodeError> {
    match reader.u8("presence")? {
        0 => Ok(None),
        1 => read(reader).map(Some),
        _ => Err(DecodeError { what: "presence" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        let log_id = LogId { term: 3, leader: 0xfeed, index: u64::MAX };
        Entry { log_id, kind: EntryKind::Command, payload: Bytes::from_static(b"payload") }
    }

    #[test]
    fn entries_come_back() {
        for payload in [&b""[..], b"x", &[7; 1000]] {
            let entry = Entry { payload: Bytes::copy_from_slice(payload), ..entry() };
            let mut out = Vec::new();
            encode_entry_into(&entry, &mut out);
            assert_eq!(out.len(), encoded_entry_bytes(&entry));
            assert_eq!(decode_entry(&out.into()), Ok(entry));
        }
    }

    #[test]
    fn an_entry_of_another_version_or_kind_and_a_cut_one_are_refused() {
        let mut out = Vec::new();
        encode_entry_into(&entry(), &mut out);
        for (at, value) in [(0, 0), (0, 2), (1, 3), (1, 255)] {
            let mut changed = out.clone();
            changed[at] = value;
            assert!(decode_entry(&changed.into()).is_err());
        }
        for end in 0..ENTRY_HEADER_BYTES {
            assert!(decode_entry(&Bytes::copy_from_slice(&out[..end])).is_err());
        }
    }

    #[test]
    fn the_layout_of_an_entry_never_changes() {
        let log_id = LogId { term: 1, leader: 2, index: 3 };
        let entry = Entry { log_id, kind: EntryKind::Membership, payload: Bytes::from_static(b"{}") };
        let mut out = Vec::new();
        encode_entry_into(&entry, &mut out);
        assert_eq!(out, b"\x01\x01\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0{}");
    }

    #[test]
    fn a_record_is_believed_only_in_its_own_batch() {
        let salt = Salt { epoch: 1, segment: 2, batch: 3 };
        let mut out = Vec::new();
        put_record(&mut out, &salt, RECORD_ENTRY, |out| encode_entry_into(&entry(), out));
        let header = RecordHeader::parse(&out).unwrap();
        let body = Bytes::copy_from_slice(&out[RECORD_HEADER_BYTES..]);
        assert_eq!(header.record_bytes(), out.len());
        assert!(header.vouches_for(&body, &salt));
        assert_eq!(header.decode(&body), Ok(Record::Entry(entry())));
        for other in [Salt { epoch: 9, ..salt }, Salt { segment: 9, ..salt }, Salt { batch: 9, ..salt }] {
            assert!(!header.vouches_for(&body, &other));
        }
    }
}
