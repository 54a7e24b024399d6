//! The messages between members.
//!
//! Control messages (votes, transfer, the header of a snapshot) are JSON with field names: rare, and open to new fields.
//! Appends are explicit binary frames, because they carry every write: the entries in them are the bytes that lie in
//! the wal, each with its checksum, so that a leader encodes nothing again and a follower checks what it stores.
//!
//! ```text
//! append   u32 length | vote | position before | committed | u32 count | u32 crc32c of these
//!          | count × (u32 length | u32 crc32c | entry)
//! answer   u32 length | u8 kind | position or vote | u32 crc32c of these
//! ```
//!
//! All of it is checked: a wrong commit position would apply what is not committed, a wrong answer would acknowledge what
//! a member does not have.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult, VoteRequest, VoteResponse};
use serde::{Deserialize, Serialize};

use super::types::{
    RaftVote, TypeConfig, from_raft_entry, from_raft_log_id, from_raft_vote, to_raft_entry, to_raft_log_id,
    to_raft_vote,
};
use crate::model::codec::{DecodeError, Reader};
use crate::model::{LogId, Vote};
use crate::wal::record::{decode_entry, encode_entry_into};

/// No frame between members is larger: an append is bounded far below it.
pub const MAX_FRAME_BYTES: usize = 256 << 20;

/// Asks for a vote, or whether one would be granted.
#[derive(Debug, Serialize, Deserialize)]
pub struct VoteMessage {
    /// The vote the candidate wants.
    pub vote: Vote,
    /// The last entry of the candidate's log.
    pub last_log_id: Option<LogId>,
    /// Whether a leader asked the candidate to take over.
    pub leadership_transfer: bool,
}

/// Answers a [`VoteMessage`].
#[derive(Debug, Serialize, Deserialize)]
pub struct VoteAnswer {
    /// The vote of the member that answers.
    pub vote: Vote,
    /// Whether it granted.
    pub granted: bool,
    /// The last entry of its log.
    pub last_log_id: Option<LogId>,
}

/// Asks a member to take over leadership.
#[derive(Debug, Serialize, Deserialize)]
pub struct TransferMessage {
    /// The vote of the leader that hands over.
    pub from_leader: Vote,
    /// Who shall lead.
    pub to: u64,
    /// The log that the new leader must hold.
    pub last_log_id: Option<LogId>,
}

/// Answers a [`TransferMessage`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransferAnswer {
    /// The message was taken.
    Accepted,
    /// The vote changed meanwhile.
    VoteChanged {
        /// The vote now.
        actual: Vote,
    },
    /// The log was not flushed far enough in time.
    LogNotFlushed {
        /// What is flushed.
        actual: Option<LogId>,
    },
}

/// Stands before the bytes of a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub struct SnapshotHeader {
    /// The vote of the leader that sends.
    pub vote: Vote,
    /// The last entry that the snapshot covers.
    pub last_log_id: Option<LogId>,
    /// Where the membership in it stands in the log.
    pub membership_log_id: Option<LogId>,
    /// That membership, as it is stored.
    pub membership: serde_json::Value,
}

/// Answers a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub struct SnapshotAnswer {
    /// The vote of the member that answers.
    pub vote: Vote,
}

impl VoteMessage {
    /// The message for openraft's request.
    pub fn from_raft(request: &VoteRequest<TypeConfig>) -> VoteMessage {
        VoteMessage {
            vote: from_raft_vote(&request.vote),
            last_log_id: request.last_log_id.as_ref().map(from_raft_log_id),
            leadership_transfer: request.leadership_transfer,
        }
    }

    /// openraft's request.
    pub fn into_raft(self) -> VoteRequest<TypeConfig> {
        VoteRequest {
            vote: to_raft_vote(self.vote),
            last_log_id: self.last_log_id.map(to_raft_log_id),
            leadership_transfer: self.leadership_transfer,
        }
    }
}

impl VoteAnswer {
    /// The message for openraft's response.
    pub fn from_raft(response: &VoteResponse<TypeConfig>) -> VoteAnswer {
        VoteAnswer {
            vote: from_raft_vote(&response.vote),
            granted: response.vote_granted,
            last_log_id: response.last_log_id.as_ref().map(from_raft_log_id),
        }
    }

    /// openraft's response.
    pub fn into_raft(self) -> VoteResponse<TypeConfig> {
        VoteResponse {
            vote: to_raft_vote(self.vote),
            vote_granted: self.granted,
            last_log_id: self.last_log_id.map(to_raft_log_id),
        }
    }
}

fn put_vote(out: &mut Vec<u8>, vote: &RaftVote) {
    let vote = from_raft_vote(vote);
    out.extend_from_slice(&vote.term.to_le_bytes());
    out.extend_from_slice(&vote.member.to_le_bytes());
    out.push(u8::from(vote.committed));
}

fn read_vote(reader: &mut Reader) -> Result<RaftVote, DecodeError> {
    let (term, member) = (reader.u64("vote")?, reader.u64("vote")?);
    Ok(to_raft_vote(Vote { term, member, committed: read_flag(reader)? }))
}

fn read_flag(reader: &mut Reader) -> Result<bool, DecodeError> {
    match reader.u8("flag")? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError { what: "flag" }),
    }
}

fn put_position(out: &mut Vec<u8>, position: Option<LogId>) {
    out.push(u8::from(position.is_some()));
    if let Some(id) = position {
        for part in [id.term, id.leader, id.index] {
            out.extend_from_slice(&part.to_le_bytes());
        }
    }
}

fn read_position(reader: &mut Reader) -> Result<Option<LogId>, DecodeError> {
    if !read_flag(reader)? {
        return Ok(None);
    }
    let (term, leader, index) = (reader.u64("position")?, reader.u64("position")?, reader.u64("position")?);
    Ok(Some(LogId { term, leader, index }))
}

/// Appends a frame whose content `fill` writes: the length is put in front afterwards.
fn put_frame(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    fill(out);
    let length = u32::try_from(out.len() - start - 4).expect("an append is bounded far below 4 GiB");
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// Appends the checksum of what was written to `out` from `start` on.
fn put_crc(out: &mut Vec<u8>, start: usize) {
    let crc = crc32c::crc32c(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
}

/// Checks what was read of `frame` so far against the checksum that comes next.
fn check_crc(frame: &Bytes, reader: &mut Reader) -> Result<(), DecodeError> {
    let crc = crc32c::crc32c(&frame[..frame.len() - reader.remaining()]);
    if reader.u32("checksum")? != crc {
        return Err(DecodeError { what: "a message that does not match its checksum" });
    }
    Ok(())
}

/// Appends the frame of an append request to `out`.
pub fn put_append(out: &mut Vec<u8>, request: &AppendEntriesRequest<TypeConfig>) {
    put_frame(out, |out| {
        let head = out.len();
        put_vote(out, &request.vote);
        put_position(out, request.prev_log_id.as_ref().map(from_raft_log_id));
        put_position(out, request.leader_commit.as_ref().map(from_raft_log_id));
        let count = u32::try_from(request.entries.len()).expect("an append has few entries");
        out.extend_from_slice(&count.to_le_bytes());
        put_crc(out, head);
        for entry in &request.entries {
            let start = out.len();
            out.extend_from_slice(&[0; 8]);
            encode_entry_into(&from_raft_entry(entry), out);
            let (head, body) = out[start..].split_at_mut(8);
            let length = u32::try_from(body.len()).expect("an entry is bounded far below 4 GiB");
            head[..4].copy_from_slice(&length.to_le_bytes());
            head[4..].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
        }
    });
}

/// Reads the content of an append frame. Payloads share memory with the buffer that `frame` was cut from, which holds
/// little but the frames before and after it.
pub fn read_append(frame: Bytes) -> Result<AppendEntriesRequest<TypeConfig>, String> {
    let mut reader = Reader::new(frame.clone());
    let malformed = |e: DecodeError| e.to_string();
    let vote = read_vote(&mut reader).map_err(malformed)?;
    let prev_log_id = read_position(&mut reader).map_err(malformed)?.map(to_raft_log_id);
    let leader_commit = read_position(&mut reader).map_err(malformed)?.map(to_raft_log_id);
    let count = reader.u32("count of entries").map_err(malformed)? as usize;
    check_crc(&frame, &mut reader).map_err(malformed)?;
    let mut entries = Vec::with_capacity(count.min(reader.remaining() / 8));
    for _ in 0..count {
        let length = reader.u32("length of an entry").map_err(malformed)? as usize;
        let crc = reader.u32("checksum of an entry").map_err(malformed)?;
        let bytes = reader.take(length, "entry").map_err(malformed)?;
        if crc32c::crc32c(&bytes) != crc {
            return Err("an entry does not match its checksum".into());
        }
        entries.push(to_raft_entry(decode_entry(&bytes).map_err(malformed)?)?);
    }
    reader.finish("append: bytes after its end").map_err(malformed)?;
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

const ANSWER_MATCHING: u8 = 0;
const ANSWER_CONFLICT: u8 = 1;
const ANSWER_HIGHER_VOTE: u8 = 2;

/// Appends the frame of an answer to an append.
pub fn put_append_answer(out: &mut Vec<u8>, answer: &StreamAppendResult<TypeConfig>) {
    put_frame(out, |out| {
        let start = out.len();
        match answer {
            Ok(matching) => {
                out.push(ANSWER_MATCHING);
                put_position(out, matching.as_ref().map(from_raft_log_id));
            }
            Err(StreamAppendError::Conflict(at)) => {
                out.push(ANSWER_CONFLICT);
                put_position(out, Some(from_raft_log_id(at)));
            }
            Err(StreamAppendError::HigherVote(vote)) => {
                out.push(ANSWER_HIGHER_VOTE);
                put_vote(out, vote);
            }
        }
        put_crc(out, start);
    });
}

/// Reads the content of an answer frame.
pub fn read_append_answer(frame: Bytes) -> Result<StreamAppendResult<TypeConfig>, DecodeError> {
    let mut reader = Reader::new(frame.clone());
    let answer = match reader.u8("answer")? {
        ANSWER_MATCHING => Ok(read_position(&mut reader)?.map(to_raft_log_id)),
        ANSWER_CONFLICT => {
            let at = read_position(&mut reader)?.ok_or(DecodeError { what: "conflict" })?;
            Err(StreamAppendError::Conflict(to_raft_log_id(at)))
        }
        ANSWER_HIGHER_VOTE => Err(StreamAppendError::HigherVote(read_vote(&mut reader)?)),
        _ => return Err(DecodeError { what: "answer: unknown kind" }),
    };
    check_crc(&frame, &mut reader)?;
    reader.finish("answer: bytes after its end")?;
    Ok(answer)
}

/// Takes the next whole frame off `buffer`; `None` when it has not arrived yet.
pub fn take_frame(buffer: &mut BytesMut) -> io::Result<Option<Bytes>> {
    if buffer.len() < 4 {
        return Ok(None);
    }
    let length = u32::from_le_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
    }
    if buffer.len() < 4 + length {
        buffer.reserve(4 + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(4);
    Ok(Some(buffer.split_to(length).freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::Proposal;

    fn request() -> AppendEntriesRequest<TypeConfig> {
        let at = |index| to_raft_log_id(LogId { term: 3, leader: 9, index });
        AppendEntriesRequest {
            vote: to_raft_vote(Vote { term: 3, member: 9, committed: true }),
            prev_log_id: Some(at(4)),
            leader_commit: None,
            entries: vec![
                openraft::Entry { log_id: at(5), payload: openraft::EntryPayload::Blank },
                openraft::Entry {
                    log_id: at(6),
                    payload: openraft::EntryPayload::Normal(Proposal(Bytes::from_static(b"payload"))),
                },
            ],
        }
    }

    #[test]
    fn appends_come_back_and_no_flip_goes_unseen() {
        let mut out = Vec::new();
        put_append(&mut out, &request());
        let mut buffer = BytesMut::from(&out[..]);
        let frame = take_frame(&mut buffer).unwrap().unwrap();
        assert!(buffer.is_empty());
        let back = read_append(frame.clone()).unwrap();
        assert_eq!(back.entries, request().entries);
        assert_eq!((back.vote, back.prev_log_id, back.leader_commit), (request().vote, request().prev_log_id, None));

        for end in 0..frame.len() {
            assert!(read_append(frame.slice(..end)).is_err(), "cut at {end}");
        }
        for at in 0..frame.len() {
            let mut flipped = frame.to_vec();
            flipped[at] ^= 1;
            assert!(read_append(flipped.into()).is_err(), "flip at {at}");
        }
    }

    #[test]
    fn answers_come_back() {
        let at = to_raft_log_id(LogId { term: 1, leader: 2, index: 3 });
        let vote = to_raft_vote(Vote { term: 1, member: 2, committed: false });
        let answers: [StreamAppendResult<TypeConfig>; 4] =
            [Ok(None), Ok(Some(at)), Err(StreamAppendError::Conflict(at)), Err(StreamAppendError::HigherVote(vote))];
        for answer in answers {
            let mut out = Vec::new();
            put_append_answer(&mut out, &answer);
            let frame = take_frame(&mut BytesMut::from(&out[..])).unwrap().unwrap();
            for at in 0..frame.len() {
                let mut flipped = frame.to_vec();
                flipped[at] ^= 1;
                assert!(read_append_answer(flipped.into()).is_err(), "flip at {at} of {answer:?}");
            }
            assert_eq!(read_append_answer(frame), Ok(answer));
        }
    }

    #[test]
    fn a_frame_is_taken_only_whole_and_never_too_large() {
        let mut out = Vec::new();
        put_append_answer(&mut out, &Ok(None));
        for end in 0..out.len() {
            assert_eq!(take_frame(&mut BytesMut::from(&out[..end])).unwrap(), None);
        }
        assert!(take_frame(&mut BytesMut::from(&u32::MAX.to_le_bytes()[..])).is_err());
    }
}
