//! Sequences: numbers that are given out once, and the record that each sequence keeps.
//!
//! ```text
//! seq/<name>     version 1, last number, step, timeline id (16 bytes), how many jumps, the newest of them
//! ```
//!
//! A sequence is as safe as the log as long as there is one history. When a site is lost and another goes on without it
//! (a new timeline), the lost site may have given out numbers that nobody here knows of. So a sequence that meets a
//! timeline which its record does not know jumps by its step, once for each timeline that began since: what the lost site
//! gave out is passed unless it was more than a step. The jump is written into the record, and from then on the sequence
//! does not claim any more that its numbers are unique. A sequence that is created on a later timeline than the first
//! jumps too, because the lost site may have had one of that name.
//!
//! Invariants: what is given out depends on the log alone; no number is given out twice on one timeline; the bounds of
//! [`crate::model::sequence`] are part of the format.
//!
//! Proven by `store/tests/sequences.rs` and `tests/records.rs`.

use bytes::Bytes;

use super::apply::{Applier, Before, Context};
use super::records::corrupt;
use super::request::Stop;
use super::{ReadError, Store};
use crate::model::codec::{DecodeError, Reader, put_varint, read_list};
use crate::model::sequence::{
    DEFAULT_SEQUENCE_STEP, MAX_SEQUENCE_COUNT, MAX_SEQUENCE_NUMBER, MAX_SEQUENCE_STEP, SequenceNumbers, SequenceRefusal,
};
use crate::model::{KeyMeta, KeySpace, Outcome, RandomId, Revision, Timeline, TimelineId};

pub(super) const SEQUENCE: &[u8] = b"seq/";
const VERSION: u8 = 1;
/// So many jumps are kept in a record. Part of the format.
const KEPT_JUMPS: usize = 16;

/// One jump of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceJump {
    /// The last number given out before it, as far as this history knows.
    pub from: u64,
    /// From this number on it went on (the next given out is one more).
    pub to: u64,
    /// The number of the timeline on which it jumped.
    pub timeline: u64,
    /// The identity of that timeline.
    pub timeline_id: TimelineId,
    /// At which revision.
    pub revision: Revision,
}

/// A sequence, as the history has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceRecord {
    /// The last number given out; 0 before the first.
    pub last: u64,
    /// By how much it jumps when the timeline changes.
    pub step: u64,
    /// The timeline on which it gave out numbers last.
    pub timeline_id: TimelineId,
    /// How often it has jumped.
    pub jump_count: u64,
    /// The newest jumps, the oldest first.
    pub jumps: Vec<SequenceJump>,
}

impl SequenceRecord {
    fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(48 + 48 * self.jumps.len());
        out.push(VERSION);
        put_varint(&mut out, self.last);
        put_varint(&mut out, self.step);
        out.extend_from_slice(&self.timeline_id.0);
        put_varint(&mut out, self.jump_count);
        put_varint(&mut out, self.jumps.len() as u64);
        for jump in &self.jumps {
            for number in [jump.from, jump.to, jump.timeline, jump.revision] {
                put_varint(&mut out, number);
            }
            out.extend_from_slice(&jump.timeline_id.0);
        }
        out.into()
    }

    /// Reads the record of a sequence.
    pub fn decode(value: &Bytes) -> Result<SequenceRecord, DecodeError> {
        let mut reader = Reader::new(value.clone());
        if reader.u8("version of a sequence")? != VERSION {
            return Err(DecodeError { what: "record of a sequence: unknown version" });
        }
        let record = SequenceRecord {
            last: reader.varint("last number")?,
            step: reader.varint("step of a sequence")?,
            timeline_id: read_id(&mut reader)?,
            jump_count: reader.varint("count of jumps")?,
            jumps: read_list(&mut reader, "jumps", |reader| {
                Ok(SequenceJump {
                    from: reader.varint("number before a jump")?,
                    to: reader.varint("number after a jump")?,
                    timeline: reader.varint("timeline of a jump")?,
                    revision: reader.varint("revision of a jump")?,
                    timeline_id: read_id(reader)?,
                })
            })?,
        };
        reader.finish("record of a sequence: bytes after its end")?;
        Ok(record)
    }

    /// Whether all its numbers are proven to have been given out once.
    pub fn is_unique(&self) -> bool {
        self.jump_count == 0
    }

    /// Takes the next numbers on the last of these timelines.
    fn take(&mut self, timelines: &[Timeline], revision: Revision, count: u64) -> Result<(u64, u64), SequenceRefusal> {
        let exhausted = |last| SequenceRefusal::Exhausted { last };
        let known = timelines.iter().position(|timeline| timeline.id == self.timeline_id);
        // A record that names none of these timelines is older than all of them.
        let crossed = known.map_or(timelines.len(), |at| timelines.len() - 1 - at) as u64;
        if let (Some(current), true) = (timelines.last(), crossed > 0) {
            let to = self.step.checked_mul(crossed).and_then(|by| self.last.checked_add(by));
            let to = to.filter(|to| *to <= MAX_SEQUENCE_NUMBER).ok_or(exhausted(self.last))?;
            let jump =
                SequenceJump { from: self.last, to, timeline: current.number, timeline_id: current.id, revision };
            self.jumps.push(jump);
            if self.jumps.len() > KEPT_JUMPS {
                self.jumps.remove(0);
            }
            self.jump_count += 1;
            self.last = to;
            self.timeline_id = current.id;
        }
        let last = self.last.checked_add(count).filter(|last| *last <= MAX_SEQUENCE_NUMBER);
        let last = last.ok_or(exhausted(self.last))?;
        let first = self.last + 1;
        self.last = last;
        Ok((first, last))
    }
}

fn read_id(reader: &mut Reader) -> Result<RandomId, DecodeError> {
    let mut id = RandomId::default();
    id.0.copy_from_slice(&reader.take(16, "identity")?);
    Ok(id)
}

fn sequence_key(name: &[u8]) -> Bytes {
    [SEQUENCE, name].concat().into()
}

impl Applier {
    /// Gives out the next `count` numbers of a sequence, which is created when it does not exist.
    pub(super) fn sequence(
        &mut self,
        cx: &Context,
        before: &Before,
        name: &[u8],
        count: u64,
        step: u64,
    ) -> Result<Outcome, Stop> {
        let refused = |why| Err(Stop::Refused(Outcome::SequenceRefused { revision: before.revision, why }));
        if !(1..=MAX_SEQUENCE_COUNT).contains(&count) || step > MAX_SEQUENCE_STEP {
            return refused(SequenceRefusal::BadCount);
        }
        let key = sequence_key(name);
        let (_, now) = self.versions(cx, KeySpace::System, &key)?;
        let value = match now {
            Some(entry) => cx.value(&super::state::index_key(KeySpace::System, &key), entry)?,
            None => None,
        };
        let timelines = cx.body.state.read().head.timelines.clone();
        let mut record = match value {
            Some(value) => SequenceRecord::decode(&value)?,
            None => SequenceRecord {
                last: 0,
                step: if step == 0 { DEFAULT_SEQUENCE_STEP } else { step },
                timeline_id: timelines.first().map(|first| first.id).unwrap_or_default(),
                jump_count: 0,
                jumps: Vec::new(),
            },
        };
        if step != 0 && step != record.step {
            return refused(SequenceRefusal::OtherStep { step: record.step });
        }
        let revision = before.revision + 1;
        let (first, last) = match record.take(&timelines, revision, count) {
            Ok(taken) => taken,
            Err(why) => return refused(why),
        };
        let numbers = SequenceNumbers { first, last, step: record.step, unique: record.is_unique() };
        self.put(cx, revision, KeySpace::System, key, record.encode(), 0)?;
        Ok(Outcome::Sequence { revision, numbers })
    }
}

impl Store {
    /// A sequence, and the record's revisions; none when it does not exist.
    pub fn sequence(&self, name: &[u8]) -> Result<Option<(SequenceRecord, KeyMeta)>, ReadError> {
        match self.get(KeySpace::System, &sequence_key(name), None)? {
            Some(found) => Ok(Some((SequenceRecord::decode(&found.value).map_err(corrupt)?, found.meta))),
            None => Ok(None),
        }
    }
}
