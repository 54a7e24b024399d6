//! One frame: what became of one applied Raft entry, in the bytes that lie in segments and travel in snapshots.
//!
//! ```text
//! u32 length of the body │ u32 crc32c over the length and the body │ body:
//!   u8 version (1) │ u8 kind │ u8 flags │ u8 outcome │ u64 term, u64 leader, u64 index │ u64 clock in ms
//!   │ u64 revision after the frame │ payload (to the last 16 bytes) │ 16 bytes chain hash
//! ```
//!
//! The payload of a membership frame is the membership's bytes; that of a command is a sequence of operations:
//!
//! ```text
//! put:    u8 0 │ u8 space │ bytes key │ varint create revision │ varint version │ varint lease │ varint previous
//!         │ bytes value
//! delete: u8 1 │ u8 space │ bytes key │ varint previous
//! ```
//!
//! `previous` is the revision of the key's newest version (a tombstone too) before this frame, 0 when it had none. All
//! operations of a frame share its revision. When one frame touches a key more than once, every operation is kept in
//! order, all with the same `previous`, and the last one is the key's version at that revision.
//!
//! Flags: bit 0, the frame made a revision; bit 2, the frame is thinned: compaction took operations out of it, and it
//! keeps the chain hash it was first written with, which therefore cannot be computed from it any more. All other bits
//! are 0 and refused by this reader. Of one key a thinned frame has all operations or none.
//!
//! Proven by the tests below: no truncation and no flipped bit is taken for a frame.

use bytes::Bytes;

use super::{ChainHash, Point};
use crate::model::codec::{DecodeError, Reader, put_bytes, put_varint};
use crate::model::{EntryKind, KeySpace, LogId, Revision};

/// Length and checksum in front of the body.
pub const PREFIX_BYTES: usize = 8;
/// The body's fixed fields in front of the payload.
const FIXED_BYTES: usize = 4 + 24 + 8 + 8;
const CHAIN_BYTES: usize = 16;
/// The smallest frame, with an empty payload.
pub const MIN_FRAME_BYTES: usize = PREFIX_BYTES + FIXED_BYTES + CHAIN_BYTES;
/// No frame is larger; a length beyond it is damage.
pub const MAX_FRAME_BYTES: usize = 1 << 30;

const VERSION: u8 = 1;
const FLAG_REVISION: u8 = 1;
const FLAG_THINNED: u8 = 4;
/// Where the flags lie in a whole frame.
const FLAGS_AT: usize = PREFIX_BYTES + 2;
const OP_PUT: u8 = 0;
const OP_DELETE: u8 = 1;

/// What became of the entry, in one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameOutcome {
    /// The entry changed no keys by its nature.
    None = 0,
    /// The operations were done (there may have been nothing to delete).
    Written = 1,
    /// A guard did not hold.
    Refused = 2,
}

/// The fixed fields of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    /// What kind of entry it was.
    pub kind: EntryKind,
    /// What became of it.
    pub outcome: FrameOutcome,
    /// Whether it made a revision.
    pub makes_revision: bool,
    /// The entry's log id; its index is the frame's position.
    pub log_id: LogId,
    /// The store's clock after it, in milliseconds since 1970; never runs backwards.
    pub clock_ms: u64,
    /// The store's revision after it.
    pub revision: Revision,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrameOp {
    /// The key was written.
    Put {
        /// Which key space.
        space: KeySpace,
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
        /// When the key was created (again).
        create_revision: Revision,
        /// How many times it was written since, from 1.
        version: u64,
        /// The lease it hangs on; 0 for none.
        lease: u64,
        /// The revision of the key's newest version before this frame; 0 for none.
        previous: Revision,
    },
    /// The key was deleted.
    Delete {
        /// Which key space.
        space: KeySpace,
        /// The key.
        key: Bytes,
        /// The revision of the key's newest version before this frame; 0 for none.
        previous: Revision,
    },
}

impl FrameOp {
    /// Which key it changes.
    pub fn key(&self) -> (KeySpace, &Bytes) {
        match self {
            FrameOp::Put { space, key, .. } | FrameOp::Delete { space, key, .. } => (*space, key),
        }
    }

    /// The revision of the key's newest version before the frame; 0 for none.
    pub fn previous(&self) -> Revision {
        match self {
            FrameOp::Put { previous, .. } | FrameOp::Delete { previous, .. } => *previous,
        }
    }
}

/// A whole frame whose checksum held, or that was just built. Cloning is cheap: the bytes are shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    bytes: Bytes,
    head: FrameHead,
}

impl Frame {
    /// How long the frame at the front of `bytes` says it is; none when fewer than four bytes are there.
    pub fn peek_len(bytes: &[u8]) -> Option<Result<usize, DecodeError>> {
        let length = u32::from_le_bytes(*bytes.first_chunk::<4>()?) as usize;
        let whole = length.saturating_add(PREFIX_BYTES);
        let valid = (MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&whole);
        Some(if valid { Ok(whole) } else { Err(DecodeError { what: "frame length" }) })
    }

    /// Checks the frame at the front of `bytes`, which may go on behind it: its checksum and its fixed fields. Returns
    /// them and how long it is.
    pub fn check(bytes: &[u8]) -> Result<(FrameHead, usize), DecodeError> {
        let whole = Frame::peek_len(bytes).ok_or(DecodeError { what: "frame: cut short" })??;
        let bytes = bytes.get(..whole).ok_or(DecodeError { what: "frame: cut short" })?;
        if bytes[4..PREFIX_BYTES] != checksum(bytes).to_le_bytes() {
            return Err(DecodeError { what: "frame: checksum does not match" });
        }
        let fixed = bytes[PREFIX_BYTES..].first_chunk().expect("a frame is never shorter than its fixed fields");
        Ok((FrameHead::decode(fixed)?, whole))
    }

    /// Reads the frame at the front of `bytes`, which may go on behind it. The frame shares their memory.
    pub fn parse(bytes: &Bytes) -> Result<Frame, DecodeError> {
        let (head, whole) = Frame::check(bytes)?;
        Ok(Frame { bytes: bytes.slice(..whole), head })
    }

    /// Reads what can be read of a frame whose checksum does not hold, to tell people what it was. Never content.
    pub(super) fn parse_damaged(bytes: &Bytes) -> Option<Frame> {
        let whole = Frame::peek_len(bytes)?.ok()?;
        let bytes = bytes.get(..whole).map(|_| bytes.slice(..whole))?;
        let head = FrameHead::decode(bytes[PREFIX_BYTES..].first_chunk()?).ok()?;
        Some(Frame { bytes, head })
    }

    /// The frame of bytes that [`Frame::check`] accepted.
    pub(super) fn checked(bytes: Bytes, head: FrameHead) -> Frame {
        Frame { bytes, head }
    }

    /// The whole frame, as it lies in a file.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The fixed fields.
    pub fn head(&self) -> &FrameHead {
        &self.head
    }

    /// The position: the Raft index of the entry.
    pub fn position(&self) -> u64 {
        self.head.log_id.index
    }

    /// The chain hash that the frame carries.
    pub fn chain(&self) -> ChainHash {
        chain_of(&self.bytes)
    }

    /// The place behind it.
    pub fn end(&self) -> Point {
        Point { next_position: self.position() + 1, revision: self.head.revision, chain: self.chain() }
    }

    /// Whether operations were taken out of it, so that its chain hash cannot be computed from it.
    pub fn is_thinned(&self) -> bool {
        self.bytes[FLAGS_AT] & FLAG_THINNED != 0
    }

    /// The chain hash that the frame must carry when it follows `before`; unless it is thinned.
    pub fn chain_after(&self, before: ChainHash) -> ChainHash {
        chain_hash(before, &self.bytes[PREFIX_BYTES..self.bytes.len() - CHAIN_BYTES])
    }

    fn payload(&self) -> Bytes {
        self.bytes.slice(PREFIX_BYTES + FIXED_BYTES..self.bytes.len() - CHAIN_BYTES)
    }

    /// The membership's bytes, when it is a membership frame.
    pub fn membership(&self) -> Option<Bytes> {
        (self.head.kind == EntryKind::Membership).then(|| self.payload())
    }

    /// The operations, in order; none unless it is a command's frame.
    pub fn ops(&self) -> Ops {
        let payload = if self.head.kind == EntryKind::Command { self.payload() } else { Bytes::new() };
        Ops { reader: Reader::new(payload) }
    }

    /// The version of a key that this frame holds: the last operation on it.
    pub fn find(&self, space: KeySpace, key: &[u8]) -> Result<Option<FrameOp>, DecodeError> {
        let mut found = None;
        for op in self.ops() {
            let op = op?;
            if op.key().0 == space && op.key().1 == key {
                found = Some(op);
            }
        }
        Ok(found)
    }
}

/// The chain hash in the last bytes of a whole frame.
pub(super) fn chain_of(frame: &[u8]) -> ChainHash {
    ChainHash(*frame.last_chunk().expect("a whole frame is longer than its chain hash"))
}

/// Iterates over the operations of a frame; stops after the first error.
#[derive(Debug)]
pub struct Ops {
    reader: Reader,
}

impl Iterator for Ops {
    type Item = Result<FrameOp, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.reader.remaining() == 0 {
            return None;
        }
        let op = read_op(&mut self.reader);
        if op.is_err() {
            self.reader = Reader::new(Bytes::new());
        }
        Some(op)
    }
}

fn read_op(reader: &mut Reader) -> Result<FrameOp, DecodeError> {
    let kind = reader.u8("operation")?;
    let space = KeySpace::from_byte(reader.u8("key space")?).ok_or(DecodeError { what: "key space" })?;
    let key = reader.bytes("key")?;
    match kind {
        OP_PUT => {
            let create_revision = reader.varint("create revision")?;
            let version = reader.varint("version")?;
            let lease = reader.varint("lease")?;
            let previous = reader.varint("previous revision")?;
            let value = reader.bytes("value")?;
            Ok(FrameOp::Put { space, key, value, create_revision, version, lease, previous })
        }
        OP_DELETE => Ok(FrameOp::Delete { space, key, previous: reader.varint("previous revision")? }),
        _ => Err(DecodeError { what: "operation: unknown kind" }),
    }
}

impl FrameHead {
    fn decode(bytes: &[u8; FIXED_BYTES]) -> Result<FrameHead, DecodeError> {
        let [version, kind, flags, outcome, ..] = *bytes;
        if version != VERSION {
            return Err(DecodeError { what: "frame: unknown version" });
        }
        let kind = EntryKind::from_byte(kind).ok_or(DecodeError { what: "frame: unknown kind" })?;
        if flags & !(FLAG_REVISION | FLAG_THINNED) != 0 {
            return Err(DecodeError { what: "frame: unknown flags" });
        }
        let outcome = match outcome {
            0 => FrameOutcome::None,
            1 => FrameOutcome::Written,
            2 => FrameOutcome::Refused,
            _ => return Err(DecodeError { what: "frame: unknown outcome" }),
        };
        let field = |n: usize| {
            let at = &bytes[4 + 8 * n..];
            u64::from_le_bytes(*at.first_chunk().expect("five fields of eight bytes follow the first four bytes"))
        };
        let log_id = LogId { term: field(0), leader: field(1), index: field(2) };
        let makes_revision = flags & FLAG_REVISION != 0;
        Ok(FrameHead { kind, outcome, makes_revision, log_id, clock_ms: field(3), revision: field(4) })
    }

    fn write(&self, out: &mut [u8]) {
        let flags = if self.makes_revision { FLAG_REVISION } else { 0 };
        out[..4].copy_from_slice(&[VERSION, self.kind as u8, flags, self.outcome as u8]);
        let LogId { term, leader, index } = self.log_id;
        for (i, field) in [term, leader, index, self.clock_ms, self.revision].into_iter().enumerate() {
            out[4 + 8 * i..12 + 8 * i].copy_from_slice(&field.to_le_bytes());
        }
    }
}

/// The checksum over the length and the body of a whole frame.
fn checksum(frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&frame[..4]), &frame[PREFIX_BYTES..])
}

fn chain_hash(before: ChainHash, body: &[u8]) -> ChainHash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&before.0);
    hasher.update(body);
    ChainHash(*hasher.finalize().as_bytes().first_chunk().expect("a BLAKE3 hash has 32 bytes"))
}

/// Builds frames one after the other in a buffer that is kept.
#[derive(Debug, Default)]
pub struct FrameBuilder {
    buffer: Vec<u8>,
}

impl FrameBuilder {
    /// Forgets what was begun and starts a new frame.
    pub fn start(&mut self) {
        self.buffer.clear();
        self.buffer.resize(PREFIX_BYTES + FIXED_BYTES, 0);
    }

    /// Whether the frame has no payload yet.
    pub fn is_empty(&self) -> bool {
        self.buffer.len() <= PREFIX_BYTES + FIXED_BYTES
    }

    /// The payload of a membership frame.
    pub fn membership(&mut self, payload: &[u8]) {
        self.buffer.extend_from_slice(payload);
    }

    /// Adds an operation.
    pub fn op(&mut self, op: &FrameOp) {
        let out = &mut self.buffer;
        match op {
            FrameOp::Put { space, key, value, create_revision, version, lease, previous } => {
                out.extend_from_slice(&[OP_PUT, *space as u8]);
                put_bytes(out, key);
                for field in [*create_revision, *version, *lease, *previous] {
                    put_varint(out, field);
                }
                put_bytes(out, value);
            }
            FrameOp::Delete { space, key, previous } => {
                out.extend_from_slice(&[OP_DELETE, *space as u8]);
                put_bytes(out, key);
                put_varint(out, *previous);
            }
        }
    }

    /// Completes the frame that follows `before` in the chain. Fails only when the frame would be too large.
    pub fn finish(&mut self, head: FrameHead, before: ChainHash) -> Result<Frame, DecodeError> {
        head.write(&mut self.buffer[PREFIX_BYTES..PREFIX_BYTES + FIXED_BYTES]);
        let chain = chain_hash(before, &self.buffer[PREFIX_BYTES..]);
        self.seal(head, chain)
    }

    /// Completes what is left of `whole` when operations are taken out of it.
    pub fn finish_thinned(&mut self, whole: &Frame) -> Result<Frame, DecodeError> {
        whole.head.write(&mut self.buffer[PREFIX_BYTES..PREFIX_BYTES + FIXED_BYTES]);
        self.buffer[FLAGS_AT] |= FLAG_THINNED;
        self.seal(whole.head, whole.chain())
    }

    fn seal(&mut self, head: FrameHead, chain: ChainHash) -> Result<Frame, DecodeError> {
        let out = &mut self.buffer;
        out.extend_from_slice(&chain.0);
        if out.len() > MAX_FRAME_BYTES {
            return Err(DecodeError { what: "frame: too large" });
        }
        let length = (out.len() - PREFIX_BYTES) as u32;
        out[..4].copy_from_slice(&length.to_le_bytes());
        let checksum = checksum(out);
        out[4..8].copy_from_slice(&checksum.to_le_bytes());
        let bytes = Bytes::copy_from_slice(out);
        // One huge frame must not keep its buffer for ever.
        self.buffer.clear();
        self.buffer.shrink_to(1 << 20);
        Ok(Frame { bytes, head })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(kind: EntryKind, index: u64) -> FrameHead {
        FrameHead {
            kind,
            outcome: FrameOutcome::Written,
            makes_revision: kind == EntryKind::Command,
            log_id: LogId { term: 3, leader: 9, index },
            clock_ms: 1234,
            revision: 7,
        }
    }

    fn ops() -> Vec<FrameOp> {
        let key = Bytes::from_static(b"key");
        let put = |value: &'static [u8], version| FrameOp::Put {
            space: KeySpace::User,
            key: key.clone(),
            value: Bytes::from_static(value),
            create_revision: 5,
            version,
            lease: 300,
            previous: 6,
        };
        vec![
            put(b"one", 2),
            FrameOp::Delete { space: KeySpace::System, key: key.clone(), previous: 1 << 40 },
            put(b"two", 3),
        ]
    }

    fn samples() -> Vec<Frame> {
        let mut builder = FrameBuilder::default();
        builder.start();
        let blank = builder.finish(head(EntryKind::Blank, 0), ChainHash::default()).unwrap();
        builder.start();
        builder.membership(b"{members}");
        let membership = builder.finish(head(EntryKind::Membership, 1), blank.chain()).unwrap();
        builder.start();
        ops().iter().for_each(|op| builder.op(op));
        let command = builder.finish(head(EntryKind::Command, 2), membership.chain()).unwrap();
        builder.start();
        builder.op(&ops()[1]);
        let thinned = builder.finish_thinned(&command).unwrap();
        vec![blank, membership, command, thinned]
    }

    #[test]
    fn frames_come_back_and_form_a_chain() {
        let mut chain = ChainHash::default();
        for frame in samples() {
            let mut longer = frame.bytes().to_vec();
            longer.extend_from_slice(b"the next frame");
            assert_eq!(Frame::parse(&longer.into()).unwrap(), frame);
            if frame.is_thinned() {
                continue;
            }
            assert_eq!(frame.chain(), frame.chain_after(chain));
            assert_ne!(frame.chain(), frame.chain_after(ChainHash([1; 16])));
            chain = frame.chain();
        }
        let frames = samples();
        assert_eq!(frames[1].membership(), Some(Bytes::from_static(b"{members}")));
        assert_eq!(frames[2].membership(), None);
        assert_eq!(frames[2].ops().collect::<Result<Vec<_>, _>>().unwrap(), ops());
        assert_eq!(frames[1].ops().count(), 0);
    }

    #[test]
    fn a_thinned_frame_keeps_its_place_and_its_chain_hash() {
        let frames = samples();
        let (whole, thinned) = (&frames[2], &frames[3]);
        assert!(thinned.is_thinned() && !whole.is_thinned());
        assert_eq!((thinned.head(), thinned.chain()), (whole.head(), whole.chain()));
        assert_eq!(thinned.ops().collect::<Result<Vec<_>, _>>().unwrap(), ops()[1..2]);
    }

    #[test]
    fn the_last_operation_on_a_key_is_its_version() {
        let frame = &samples()[2];
        assert_eq!(frame.find(KeySpace::User, b"key").unwrap(), Some(ops()[2].clone()));
        assert_eq!(frame.find(KeySpace::System, b"key").unwrap(), Some(ops()[1].clone()));
        assert_eq!(frame.find(KeySpace::User, b"kez").unwrap(), None);
    }

    #[test]
    fn no_truncation_and_no_flipped_bit_is_taken_for_a_frame() {
        for frame in samples() {
            let bytes = frame.bytes();
            for end in 0..bytes.len() {
                assert!(Frame::parse(&bytes.slice(..end)).is_err(), "cut at {end}");
            }
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.to_vec();
                flipped[bit / 8] ^= 1 << (bit % 8);
                // Something behind it, so that a larger length is not only caught by the end of the input.
                flipped.resize(flipped.len() + 70_000, 0);
                assert!(Frame::parse(&flipped.into()).is_err(), "bit {bit} flipped");
            }
        }
    }
}
