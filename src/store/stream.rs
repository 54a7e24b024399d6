//! The bytes in which a part of the history, or all of it, travels to another member.
//!
//! ```text
//! header   magic LBSN │ u32 format (2) │ u32 length │ u32 crc32c over the twelve bytes before and the content
//!          │ content: JSON, the head at the end of the stream and the point after which its frames begin
//! items    frame   as it lies in a segment, with its own checksum and chain hash; the thinned ones as they are
//!          point   u32 1 │ 32 bytes, a kept point of a position that has no frame any more │ u32 crc32c
//!          mark    u32 2 │ u64 frames so far │ 16 bytes digest │ u32 crc32c
//! footer   u32 0 │ u64 frames │ 16 bytes chain │ 16 bytes digest │ u32 crc32c
//! ```
//!
//! No frame has a length of 0, 1 or 2. A digest is BLAKE3 over all bytes of the stream before it. Where frames are thinned
//! or missing the chain cannot be computed, so it is the digest that shows that nothing was left out; a mark shows it for
//! what came so far, and is where a receiver may keep what it has.
//!
//! Members of the first release know only the form of theirs ([`Form::First`]): format 1, a header with the head alone, whole
//! frames from the beginning, and a footer without a digest. It can say nothing of what compaction took away.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::history::layout::{put_point, read_point};
use crate::history::{Head, Point};
use crate::model::ChainHash;
use crate::model::codec::Reader;

const MAGIC: &[u8; 4] = b"LBSN";
const FORMAT: u32 = 2;
/// The format of the first release, and what the head did not have then: it refuses names that it does not know.
const FIRST_FORMAT: u32 = 1;
const NOT_IN_FIRST: [&str; 2] = ["delta_revision", "feature_level"];
const HEADER_BYTES: usize = 16;
const ITEM_FOOTER: u32 = 0;
const ITEM_POINT: u32 = 1;
const ITEM_MARK: u32 = 2;

/// What a stream is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    /// The state at its end.
    pub head: Head,
    /// Where its frames begin.
    pub from: Point,
}

/// For whom a copy is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Members of this program, and of all since the second release.
    Present,
    /// Members of the first release.
    First,
}

/// What is not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Special {
    Footer { frames: u64, chain: ChainHash, digest: [u8; 16] },
    Point(Point),
    Mark { frames: u64, digest: [u8; 16] },
}

/// The digest of what a hasher has taken so far.
pub(super) fn digest(hasher: &blake3::Hasher) -> [u8; 16] {
    *hasher.finalize().as_bytes().first_chunk().expect("a BLAKE3 hash has 32 bytes")
}

impl Header {
    pub fn encode(&self) -> Vec<u8> {
        self.encode_as(Form::Present)
    }

    pub fn encode_as(&self, form: Form) -> Vec<u8> {
        const ALWAYS: &str = "plain structures with string keys always become JSON";
        let (format, content) = match form {
            Form::Present => (FORMAT, serde_json::to_vec(self).expect(ALWAYS)),
            Form::First => {
                let mut head = serde_json::to_value(&self.head).expect(ALWAYS);
                let fields = head.as_object_mut().expect("a head is a structure");
                NOT_IN_FIRST.iter().for_each(|name| drop(fields.remove(*name)));
                (FIRST_FORMAT, serde_json::to_vec(&head).expect(ALWAYS))
            }
        };
        let mut out = Vec::with_capacity(HEADER_BYTES + content.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&format.to_le_bytes());
        out.extend_from_slice(&(content.len() as u32).to_le_bytes());
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&out), &content);
        out.extend_from_slice(&checksum.to_le_bytes());
        out.extend_from_slice(&content);
        out
    }

    /// How long the header at the front of `bytes` is; none when its length is not there yet.
    pub fn len(bytes: &[u8]) -> Result<Option<usize>, &'static str> {
        /// A head is small; a length beyond this is damage and must not be waited for.
        const MAX_HEADER_BYTES: usize = 64 << 20;
        if bytes.len() < HEADER_BYTES {
            return Ok(None);
        }
        if !bytes.starts_with(MAGIC) {
            return Err("this is not a copy of a history");
        }
        if bytes[4..8] != FORMAT.to_le_bytes() {
            return Err("unknown format version");
        }
        let length = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize;
        if length > MAX_HEADER_BYTES {
            Err("the header's length is impossible")
        } else {
            Ok(Some(HEADER_BYTES + length))
        }
    }

    /// Reads a whole header.
    pub fn decode(bytes: &[u8]) -> Result<Header, String> {
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[HEADER_BYTES..]);
        if bytes[12..16] != checksum.to_le_bytes() {
            return Err("the header's checksum does not match".into());
        }
        serde_json::from_slice(&bytes[HEADER_BYTES..]).map_err(|e| format!("malformed header: {e}"))
    }
}

impl Special {
    pub fn encode(&self) -> Vec<u8> {
        self.encode_as(Form::Present)
    }

    pub fn encode_as(&self, form: Form) -> Vec<u8> {
        let mut out = Vec::with_capacity(48);
        match self {
            Special::Footer { frames, chain, digest } => {
                out.extend_from_slice(&ITEM_FOOTER.to_le_bytes());
                out.extend_from_slice(&frames.to_le_bytes());
                out.extend_from_slice(&chain.0);
                if form == Form::Present {
                    out.extend_from_slice(digest);
                }
            }
            Special::Point(point) => {
                out.extend_from_slice(&ITEM_POINT.to_le_bytes());
                put_point(&mut out, point);
            }
            Special::Mark { frames, digest } => {
                out.extend_from_slice(&ITEM_MARK.to_le_bytes());
                out.extend_from_slice(&frames.to_le_bytes());
                out.extend_from_slice(digest);
            }
        }
        let checksum = crc32c::crc32c(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out
    }

    /// How long the item is that begins with these four bytes; none when it is a frame.
    pub fn len(first: [u8; 4]) -> Option<usize> {
        match u32::from_le_bytes(first) {
            ITEM_FOOTER => Some(4 + 8 + 16 + 16 + 4),
            ITEM_POINT => Some(4 + 32 + 4),
            ITEM_MARK => Some(4 + 8 + 16 + 4),
            _ => None,
        }
    }

    /// Reads a whole item.
    pub fn decode(bytes: &Bytes) -> Result<Special, String> {
        let content = bytes.slice(..bytes.len() - 4);
        if bytes[content.len()..] != crc32c::crc32c(&content).to_le_bytes() {
            return Err("the checksum of an item does not match".into());
        }
        let mut reader = Reader::new(content);
        let malformed = |e: crate::model::codec::DecodeError| e.to_string();
        let sixteen = |reader: &mut Reader| {
            let bytes = reader.take(16, "item").map_err(malformed)?;
            Ok::<[u8; 16], String>(*bytes.first_chunk().expect("sixteen bytes were taken"))
        };
        match reader.u32("item").map_err(malformed)? {
            ITEM_POINT => read_point(&mut reader).map(Special::Point).map_err(malformed),
            ITEM_MARK => {
                let frames = reader.u64("item").map_err(malformed)?;
                Ok(Special::Mark { frames, digest: sixteen(&mut reader)? })
            }
            _ => {
                let frames = reader.u64("item").map_err(malformed)?;
                let chain = ChainHash(sixteen(&mut reader)?);
                Ok(Special::Footer { frames, chain, digest: sixteen(&mut reader)? })
            }
        }
    }
}
