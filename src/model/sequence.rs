//! What a sequence gives out, and why it may give out nothing.
//!
//! The bounds here are part of the format: every member must refuse the same, for ever. They come from JSON, whose
//! numbers end at 2^53.

use super::codec::{DecodeError, Reader, put_varint};
use super::txn::read_flag;

/// No sequence gives out a larger number.
pub const MAX_SEQUENCE_NUMBER: u64 = (1 << 53) - 1;
/// No request takes more numbers.
pub const MAX_SEQUENCE_COUNT: u64 = 1_000_000;
/// By how much a sequence jumps for which nothing else was declared.
pub const DEFAULT_SEQUENCE_STEP: u64 = 1_000_000;
/// No sequence jumps by more.
pub const MAX_SEQUENCE_STEP: u64 = 1 << 40;

/// The numbers that one request took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceNumbers {
    /// The first.
    pub first: u64,
    /// The last; all between them belong to the request too.
    pub last: u64,
    /// By how much the sequence jumps when the timeline changes.
    pub step: u64,
    /// Whether it is proven that nobody was given one of them before.
    pub unique: bool,
}

/// Why a sequence gave out nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SequenceRefusal {
    /// It was created with another step.
    OtherStep {
        /// This one.
        step: u64,
    },
    /// The numbers would pass the largest one.
    Exhausted {
        /// The last one given out, jumps included.
        last: u64,
    },
    /// No numbers or too many were asked for, or the step is too large.
    BadCount,
}

const OTHER_STEP: u8 = 1;
const EXHAUSTED: u8 = 2;
const BAD_COUNT: u8 = 3;

impl SequenceNumbers {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.first);
        put_varint(out, self.last);
        put_varint(out, self.step);
        out.push(u8::from(self.unique));
    }

    pub(super) fn decode(reader: &mut Reader) -> Result<SequenceNumbers, DecodeError> {
        Ok(SequenceNumbers {
            first: reader.varint("first number")?,
            last: reader.varint("last number")?,
            step: reader.varint("step of a sequence")?,
            unique: read_flag(reader)?,
        })
    }
}

impl SequenceRefusal {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            SequenceRefusal::OtherStep { step } => {
                out.push(OTHER_STEP);
                put_varint(out, *step);
            }
            SequenceRefusal::Exhausted { last } => {
                out.push(EXHAUSTED);
                put_varint(out, *last);
            }
            SequenceRefusal::BadCount => out.push(BAD_COUNT),
        }
    }

    pub(super) fn decode(reader: &mut Reader) -> Result<SequenceRefusal, DecodeError> {
        match reader.u8("refusal of a sequence")? {
            OTHER_STEP => Ok(SequenceRefusal::OtherStep { step: reader.varint("step of a sequence")? }),
            EXHAUSTED => Ok(SequenceRefusal::Exhausted { last: reader.varint("last number")? }),
            BAD_COUNT => Ok(SequenceRefusal::BadCount),
            _ => Err(DecodeError { what: "refusal of a sequence: unknown kind" }),
        }
    }
}
