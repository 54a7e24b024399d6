//! The MANIFEST: which segments there are, and the state of the store after the last of them.
//!
//! One small file, replaced as a whole (temporary file, fsync, rename, fsync of the directory) and never changed in
//! place: after a crash there is the old one or the new one. It is the only commit point of a seal, of a compaction, of
//! an install, and of each part of a copy that is received.
//!
//! Format: magic `LBMF`, u32 format version, u32 length of the content, u32 crc32c over the twelve bytes before and the
//! content, then the content as JSON with field names; an unknown field is refused. Version 2 may hold the fields that
//! compaction and staging need; version 1, which lacks them, is still read.
//!
//! It exists from the first open on, so segments without it mean damage and not a new store.
//!
//! Proven by the tests below (every flipped byte, every truncation) and by the power cuts in `store`.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::segment::SegmentInfo;
use super::{ChainHash, HistoryError, Point};
use crate::files::{self, Disk};
use crate::model::{ClusterId, LogId, Revision, Timeline};

/// The file's name.
pub const MANIFEST: &str = "MANIFEST";
const MAGIC: &[u8; 4] = b"LBMF";
const FORMAT: u32 = 2;
const OLD_FORMAT: u32 = 1;
const ENVELOPE_BYTES: usize = 16;

/// The state of the store after some frame, besides its keys.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The log id of the last frame; none before the first.
    pub applied: Option<LogId>,
    /// The chain hash at the last frame.
    pub chain: ChainHash,
    /// The revision.
    pub revision: Revision,
    /// The clock: the highest of the leaders' times so far, in milliseconds since 1970.
    pub clock_ms: u64,
    /// The last membership entry.
    pub membership: Option<MembershipRecord>,
    /// The cluster's identity, once it is founded.
    pub cluster: Option<ClusterId>,
    /// The timelines, from the first to the current one.
    pub timelines: Vec<Timeline>,
    /// Old versions below this revision may be gone.
    pub read_floor: Revision,
    /// A catch-up from a position below this one must be a full copy.
    pub delta_floor: u64,
    /// The revision at the delta floor, or a lower one.
    #[serde(default)]
    pub delta_revision: Revision,
    /// Which commands the cluster may use.
    #[serde(default)]
    pub feature_level: u64,
}

impl Head {
    /// The position of the frame that comes next.
    pub fn next_position(&self) -> u64 {
        self.applied.map_or(0, |log_id| log_id.index + 1)
    }

    /// A tombstone at or below this revision is below both floors: everywhere it counts as if it were not there, so that
    /// it makes no difference who has dropped it already.
    pub fn tombstone_floor(&self) -> Revision {
        self.read_floor.min(self.delta_revision)
    }

    /// This place in the history.
    pub fn point(&self) -> Point {
        Point { next_position: self.next_position(), revision: self.revision, chain: self.chain }
    }
}

/// A membership entry, its payload as proposed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MembershipRecord {
    /// The entry's log id.
    pub log_id: LogId,
    /// The entry's payload, which only `raft` reads.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub payload: Bytes,
}

fn to_base64<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&BASE64.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let text = String::deserialize(deserializer)?;
    BASE64.decode(text).map(Bytes::from).map_err(D::Error::custom)
}

/// What the MANIFEST says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The segments, in the order of their positions.
    pub segments: Vec<SegmentInfo>,
    /// The state after the last of them.
    pub head: Head,
    /// The id that the next segment gets; ids are never used twice.
    pub next_segment_id: u64,
    /// A part of a copy that is being received. Not content yet.
    #[serde(default)]
    pub staging: Option<Staging>,
}

/// The durable part of a copy that is being received from another member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Staging {
    /// Where the copy begins: the end of what is sealed here, or the beginning for a full copy.
    pub base: Point,
    /// The state after the last of the segments.
    pub head: Head,
    /// What came so far, in the order of the positions.
    pub segments: Vec<SegmentInfo>,
}

impl Manifest {
    /// Every segment file that it names.
    pub fn all_segments(&self) -> impl Iterator<Item = &SegmentInfo> {
        self.segments.iter().chain(self.staging.iter().flat_map(|staging| &staging.segments))
    }

    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let content = serde_json::to_vec(self).expect("plain structures with string keys always become JSON");
        let mut bytes = Vec::with_capacity(ENVELOPE_BYTES + content.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&(content.len() as u32).to_le_bytes());
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes), &content);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes.extend_from_slice(&content);
        bytes
    }

    /// Reads the bytes of the file called `file`.
    pub fn decode(bytes: &[u8], file: &str) -> Result<Manifest, HistoryError> {
        let corrupt = |offset, what: &str| HistoryError::corrupt(file, offset, what);
        let field = |at: usize| bytes.get(at..at + 4).and_then(|b| b.first_chunk::<4>().copied());
        if field(0).as_ref() != Some(MAGIC) {
            return Err(corrupt(0, "not a MANIFEST"));
        }
        let length = field(8).map(u32::from_le_bytes).ok_or_else(|| corrupt(8, "cut short"))?;
        if bytes.len() != ENVELOPE_BYTES + length as usize {
            return Err(corrupt(8, "its length is not what it says"));
        }
        let content = &bytes[ENVELOPE_BYTES..];
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), content);
        if field(12) != Some(checksum.to_le_bytes()) {
            return Err(corrupt(12, "checksum does not match"));
        }
        if ![FORMAT, OLD_FORMAT].map(u32::to_le_bytes).map(Some).contains(&field(4)) {
            return Err(corrupt(4, "unknown format version"));
        }
        let manifest: Manifest = serde_json::from_slice(content)
            .map_err(|e| HistoryError::corrupt(file, ENVELOPE_BYTES as u64, format!("malformed content: {e}")))?;
        manifest.check(file)?;
        Ok(manifest)
    }

    /// Checks that the segments follow each other and end where the head stands.
    fn check(&self, file: &str) -> Result<(), HistoryError> {
        let corrupt = |what: String| HistoryError::corrupt(file, ENVELOPE_BYTES as u64, what);
        follow(Point::default(), &self.segments, self.head.point()).map_err(corrupt)?;
        if let Some(Staging { base, head, segments }) = &self.staging {
            follow(*base, segments, head.point()).map_err(corrupt)?;
        }
        match self.all_segments().find(|segment| segment.id >= self.next_segment_id) {
            Some(segment) => Err(corrupt(format!("segment {} has an id that was not given yet", segment.file))),
            None => Ok(()),
        }
    }

    /// Makes this the MANIFEST in `dir`, durably and at once.
    pub fn commit(&self, disk: &dyn Disk, dir: &Path) -> Result<(), HistoryError> {
        let file = dir.join(MANIFEST).display().to_string();
        files::replace_file(disk, dir, MANIFEST, &self.encode()).map_err(HistoryError::io("replacing", file))
    }

    /// Reads the MANIFEST in `dir`; none when there is no such file.
    pub fn load(disk: &dyn Disk, dir: &Path) -> Result<Option<Manifest>, HistoryError> {
        let path = dir.join(MANIFEST);
        let file = path.display().to_string();
        match files::read_file(disk, &path).map_err(HistoryError::io("reading", file.clone()))? {
            None => Ok(None),
            Some(bytes) => Manifest::decode(&bytes, &file).map(Some),
        }
    }
}

/// Checks that segments begin where they should, follow each other, and end where they should.
fn follow(mut at: Point, segments: &[SegmentInfo], end: Point) -> Result<(), String> {
    for segment in segments {
        if segment.start() != at || segment.last_position < segment.first_position {
            return Err(format!("segment {} does not follow the one before", segment.file));
        }
        at = segment.end();
    }
    if at == end { Ok(()) } else { Err("the segments do not end where the state stands".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::new_random_id;

    fn sample() -> Manifest {
        let segment = SegmentInfo {
            id: 4,
            file: "0000000000000004.seg".into(),
            first_position: 0,
            last_position: 9,
            revision_before: 0,
            last_revision: 5,
            chain_before: ChainHash::default(),
            chain_after: ChainHash([7; 16]),
            bytes: 1000,
            thinned_to: 3,
            tombstones_gone_to: 2,
        };
        let log_id = LogId { term: 2, leader: u64::MAX, index: 9 };
        let head = Head {
            applied: Some(log_id),
            chain: ChainHash([7; 16]),
            revision: 5,
            clock_ms: 77,
            membership: Some(MembershipRecord { log_id, payload: Bytes::from_static(b"\xff{}") }),
            cluster: Some(new_random_id()),
            timelines: vec![],
            read_floor: 1,
            delta_floor: 2,
            delta_revision: 1,
            feature_level: 3,
        };
        let last = segment.end();
        let staged = SegmentInfo {
            id: 3,
            file: "0000000000000003.seg".into(),
            first_position: last.next_position,
            last_position: 12,
            revision_before: last.revision,
            last_revision: 6,
            chain_before: last.chain,
            chain_after: ChainHash([8; 16]),
            ..segment.clone()
        };
        let log_id = LogId { index: 12, ..log_id };
        let later = Head { applied: Some(log_id), chain: staged.chain_after, revision: 6, ..head.clone() };
        let staging = Staging { base: last, head: later, segments: vec![staged] };
        Manifest { segments: vec![segment], head, next_segment_id: 5, staging: Some(staging) }
    }

    #[test]
    fn a_manifest_comes_back() {
        for manifest in [Manifest::default(), sample()] {
            assert_eq!(Manifest::decode(&manifest.encode(), "MANIFEST").unwrap(), manifest);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_named() {
        let bytes = sample().encode();
        let named = |bytes: &[u8]| match Manifest::decode(bytes, "the file") {
            Err(HistoryError::Corrupt { file, .. }) => file == "the file",
            _ => false,
        };
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(named(&flipped), "bit {bit}");
        }
        for end in 0..bytes.len() {
            assert!(named(&bytes[..end]), "cut at {end}");
        }
    }

    #[test]
    fn segments_that_do_not_fit_are_refused() {
        let mut gap = sample();
        gap.segments[0].first_position = 1;
        let mut beyond = sample();
        beyond.head.revision = 6;
        let mut reused = sample();
        reused.next_segment_id = 4;
        let mut elsewhere = sample();
        elsewhere.staging.as_mut().unwrap().base.revision = 4;
        for manifest in [gap, beyond, reused, elsewhere] {
            assert!(Manifest::decode(&manifest.encode(), "MANIFEST").is_err());
        }
    }
}
