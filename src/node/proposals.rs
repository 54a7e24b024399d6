//! The way of a write from a request to the log: one queue, drained in batches.
//!
//! Whoever wants to write puts an encoded command and a place for the answer into the queue and waits. One task takes
//! everything that waits and, when this member leads, proposes it as one batch; else it sends it as one message to the
//! leader (one hop: what was forwarded once is never forwarded again). While few batches are outstanding the next one
//! grows, so the load sets the size of the batches, and no timer does.
//!
//! Bounds: the queue holds `write_queue` commands, past which a write is refused with nothing done; at most
//! [`MAX_OUTSTANDING`] batches of at most [`MAX_BATCH`] commands are proposed at the same time. What is forwarded is
//! bounded by the requests that wait for it, each for `request_timeout` at most.
//!
//! What the answers mean: only what provably never reached a log is told to be "not applied"; all else is unknown.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use openraft::errors::ClientWriteError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{Inner, NodeError, peer_path};
use crate::model::codec::{DecodeError, Reader};
use crate::model::{Command, Outcome, command};
use crate::raft::peer_http::PeerError;
use crate::raft::types::Proposal;

/// Batches proposed at the same time.
const MAX_OUTSTANDING: usize = 4;
/// Commands in a batch.
const MAX_BATCH: usize = 1024;
/// Bytes of commands in one message to the leader.
const MAX_FORWARD_BYTES: usize = 8 << 20;

/// What becomes of a command.
pub type Answer = Result<Outcome, NodeError>;

/// A command that waits to be proposed.
pub struct Waiting {
    /// The encoded command; the leader sets its time.
    pub command: Bytes,
    /// Whether another member forwarded it.
    pub forwarded: bool,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Answer>,
}

/// Takes commands off the queue until nobody can add any more.
pub async fn run(inner: Arc<Inner>, mut queue: mpsc::Receiver<Waiting>) {
    let outstanding = Arc::new(Semaphore::new(MAX_OUTSTANDING));
    let mut batch = Vec::with_capacity(MAX_BATCH);
    loop {
        let permit = outstanding.clone().acquire_owned().await.expect("the semaphore is never closed");
        if queue.recv_many(&mut batch, MAX_BATCH).await == 0 {
            return;
        }
        // Who does not wait any more has been told "unknown"; what was not proposed yet need not be.
        batch.retain(|waiting| !waiting.answer.is_closed());
        dispatch(&inner, std::mem::take(&mut batch), permit);
        batch.reserve(MAX_BATCH);
    }
}

fn dispatch(inner: &Arc<Inner>, batch: Vec<Waiting>, permit: OwnedSemaphorePermit) {
    let view = inner.view();
    if inner.is_stopping() {
        return answer_all(batch, &NodeError::Stopping);
    }
    match &view.leader {
        Some(leader) if leader.id == inner.id => {
            let inner = inner.clone();
            tokio::spawn(async move { propose(&inner, batch, permit).await });
        }
        Some(leader) => {
            let (id, url) = (leader.id, leader.peer_url.clone());
            let (forwarded, own): (Vec<_>, Vec<_>) = batch.into_iter().partition(|waiting| waiting.forwarded);
            answer_all(forwarded, &inner.no_leader());
            for part in split(own) {
                let (inner, url) = (inner.clone(), url.clone());
                inner.metrics.writes_forwarded.inc_by(part.len() as u64);
                tokio::spawn(async move { forward(&inner, id, &url, part).await });
            }
            drop(permit);
        }
        None => answer_all(batch, &inner.no_leader()),
    }
}

fn answer_all(batch: Vec<Waiting>, error: &NodeError) {
    for waiting in batch {
        // A receiver that is gone has stopped waiting.
        let _ = waiting.answer.send(Err(error.clone()));
    }
}

/// Cuts a batch into messages of a bounded size.
fn split(batch: Vec<Waiting>) -> Vec<Vec<Waiting>> {
    let mut parts = Vec::new();
    let (mut part, mut size) = (Vec::new(), 0);
    for waiting in batch {
        if size > 0 && size + waiting.command.len() > MAX_FORWARD_BYTES {
            parts.push(std::mem::take(&mut part));
            size = 0;
        }
        size += waiting.command.len();
        part.push(waiting);
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

async fn propose(inner: &Inner, batch: Vec<Waiting>, permit: OwnedSemaphorePermit) {
    let now_ms = inner.clock.now_ms();
    let mut answers = Vec::with_capacity(batch.len());
    let mut commands = Vec::with_capacity(batch.len());
    for waiting in batch {
        commands.push(Proposal(command::set_time(waiting.command, now_ms)));
        answers.push(waiting.answer);
    }
    let mut answers = answers.into_iter();
    let detail = tokio::select! {
        why = answer_in_order(inner, commands, &mut answers) => why,
        () = quorum_is_gone(inner) => "no quorum has answered in time".to_string(),
    };
    for answer in answers {
        let _ = answer.send(Err(NodeError::Unknown { detail: detail.clone() }));
    }
    drop(permit);
}

/// Proposes and hands out the answers as they come; says why the rest got none.
async fn answer_in_order(
    inner: &Inner,
    commands: Vec<Proposal>,
    answers: &mut impl Iterator<Item = oneshot::Sender<Answer>>,
) -> String {
    let mut results = match inner.raft.client_write_many(commands).await {
        Ok(results) => results,
        Err(fatal) => return fatal.to_string(),
    };
    loop {
        let result = match results.next().await {
            Some(Ok(result)) => result,
            Some(Err(fatal)) => return fatal.to_string(),
            None => return "raft gave no answer".to_string(),
        };
        let Some(answer) = answers.next() else { return String::new() };
        let _ = answer.send(match result {
            Ok(written) => Ok(written.response),
            Err(ClientWriteError::ForwardToLeader(_)) => Err(inner.no_leader()),
            Err(e) => Err(NodeError::Unknown { detail: e.to_string() }),
        });
    }
}

/// Waits until whoever waited for a batch has gone and no quorum confirms this member. What it has proposed then gets no
/// answer before it meets the others again; it must not keep the next writes from hearing that there is no leader.
async fn quorum_is_gone(inner: &Inner) {
    loop {
        tokio::time::sleep(inner.limits.request_timeout).await;
        if inner.leads_with_quorum().is_err() {
            return;
        }
    }
}

async fn forward(inner: &Inner, leader: u64, url: &str, batch: Vec<Waiting>) {
    let body = write_commands(&batch);
    let sent = inner.http.post(leader, url, peer_path::WRITE, body, inner.limits.request_timeout).await;
    let error = match sent.map(|reply| read_answers(reply, batch.len())) {
        Ok(Ok(answers)) => {
            for (waiting, answer) in batch.into_iter().zip(answers) {
                let _ = waiting.answer.send(answer);
            }
            return;
        }
        Ok(Err(e)) => NodeError::Unknown { detail: format!("the leader's answer cannot be read: {e}") },
        Err(e) => forward_error(url, &e),
    };
    answer_all(batch, &error);
}

/// What a failed message to the leader says of the writes in it.
fn forward_error(url: &str, error: &PeerError) -> NodeError {
    match error {
        // No byte was sent, or the member at that address refused before it looked inside.
        PeerError::Connect { .. } | PeerError::Status { by_member: true, .. } => {
            NodeError::LeaderUnreachable { url: url.to_string(), detail: error.to_string() }
        }
        PeerError::Status { .. }
        | PeerError::Timeout { .. }
        | PeerError::Broken { .. }
        | PeerError::Fenced { .. }
        | PeerError::Malformed { .. } => NodeError::Unknown { detail: error.to_string() },
    }
}

fn put_u32(out: &mut Vec<u8>, value: usize) {
    let value = u32::try_from(value).expect("messages between members are bounded far below 4 GiB");
    out.extend_from_slice(&value.to_le_bytes());
}

/// Writes a message of commands: their number, then each with its length and its checksum.
fn write_commands(batch: &[Waiting]) -> Vec<u8> {
    let mut out = Vec::with_capacity(batch.iter().map(|w| w.command.len() + 8).sum::<usize>() + 4);
    put_u32(&mut out, batch.len());
    for Waiting { command, .. } in batch {
        put_u32(&mut out, command.len());
        out.extend_from_slice(&crc32c::crc32c(command).to_le_bytes());
        out.extend_from_slice(command);
    }
    out
}

/// Takes the commands out of a message of a member that forwards them. Each is looked at here, because one that cannot
/// be read would stop every member that applies it.
fn read_commands(body: Bytes) -> Result<Vec<Bytes>, DecodeError> {
    let mut reader = Reader::new(body);
    let count = reader.u32("count of commands")? as usize;
    if count > MAX_BATCH {
        return Err(DecodeError { what: "count of commands" });
    }
    let mut commands = Vec::with_capacity(count);
    for _ in 0..count {
        let length = reader.u32("length of a command")? as usize;
        let crc = reader.u32("checksum of a command")?;
        let command = reader.take(length, "command")?;
        if crc32c::crc32c(&command) != crc {
            return Err(DecodeError { what: "command: wrong checksum" });
        }
        if !matches!(Command::decode(&command)?, Command::Write(_)) {
            return Err(DecodeError { what: "command: not a write" });
        }
        commands.push(command);
    }
    reader.finish("commands: bytes after their end")?;
    Ok(commands)
}

const ANSWER_OUTCOME: u8 = 0;
const ANSWER_ERROR: u8 = 1;

/// Writes the answers to forwarded commands, in their order.
pub fn write_answers(answers: &[Answer]) -> Bytes {
    let mut out = Vec::with_capacity(16 * answers.len());
    for answer in answers {
        match answer {
            Ok(outcome) => {
                out.push(ANSWER_OUTCOME);
                outcome.encode_into(&mut out);
            }
            Err(error) => {
                out.push(ANSWER_ERROR);
                let json = serde_json::to_vec(error).expect("errors always serialise");
                put_u32(&mut out, json.len());
                out.extend_from_slice(&json);
            }
        }
    }
    out.into()
}

fn read_answers(body: Bytes, count: usize) -> Result<Vec<Answer>, DecodeError> {
    let mut reader = Reader::new(body);
    let mut answers = Vec::with_capacity(count);
    for _ in 0..count {
        answers.push(match reader.u8("answer")? {
            ANSWER_OUTCOME => Ok(Outcome::decode(&mut reader)?),
            ANSWER_ERROR => {
                let length = reader.u32("length of an error")? as usize;
                let json = reader.take(length, "error")?;
                Err(serde_json::from_slice(&json).map_err(|_| DecodeError { what: "error" })?)
            }
            _ => return Err(DecodeError { what: "answer: unknown kind" }),
        });
    }
    reader.finish("answers: bytes after their end")?;
    Ok(answers)
}

/// Serves a message of forwarded commands: each goes through this member's own queue.
pub async fn serve_forwarded(inner: &Inner, body: Bytes) -> Result<Bytes, DecodeError> {
    let commands = read_commands(body)?;
    let mut waiting = Vec::with_capacity(commands.len());
    for command in commands {
        let (answer, rx) = oneshot::channel();
        // A copy of its own: the command will lie in memory longer than the message around it.
        let command = BytesMut::from(&command[..]).freeze();
        waiting.push(match inner.proposals.try_send(Waiting { command, forwarded: true, answer }) {
            Ok(()) => Ok(rx),
            Err(mpsc::error::TrySendError::Full(_)) => Err(NodeError::QueueFull),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(NodeError::Stopping),
        });
    }
    let mut answers = Vec::with_capacity(waiting.len());
    for item in waiting {
        answers.push(match item {
            Ok(rx) => match rx.await {
                Ok(answer) => answer,
                Err(_) => Err(NodeError::Unknown { detail: "the leader stopped".into() }),
            },
            Err(e) => Err(e),
        });
    }
    Ok(write_answers(&answers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forwarded_command_that_is_damaged_is_never_proposed() {
        let waiting = |command: Bytes| Waiting { command, forwarded: false, answer: oneshot::channel().0 };
        let command = Command::Write(Default::default()).encode();
        let body = write_commands(&[waiting(command.clone()), waiting(command.clone())]);
        assert_eq!(read_commands(body.clone().into()), Ok(vec![command.clone(), command.clone()]));
        for at in 0..body.len() {
            let mut flipped = body.clone();
            flipped[at] ^= 1;
            assert!(read_commands(flipped.into()).is_err(), "flip at {at}");
        }
        let nonsense = write_commands(&[waiting(Bytes::from_static(b"nonsense"))]);
        assert!(read_commands(nonsense.into()).is_err());
    }

    #[test]
    fn answers_come_back_in_their_order() {
        let answers: Vec<Answer> = vec![
            Ok(Outcome::Written { revision: 3, results: vec![] }),
            Err(NodeError::QueueFull),
            Err(NodeError::Unknown { detail: "x".into() }),
            Ok(Outcome::Refused { revision: 3, guard: 0, current: None }),
        ];
        let bytes = write_answers(&answers);
        assert_eq!(read_answers(bytes.clone(), 4), Ok(answers));
        assert!(read_answers(bytes.clone(), 3).is_err());
        assert!(read_answers(bytes, 5).is_err());
    }

    #[test]
    fn only_what_was_never_sent_or_was_refused_unread_counts_as_not_applied() {
        let url = || "http://x".to_string();
        let status = |status, by_member| PeerError::Status { url: url(), status, by_member, body: String::new() };
        assert!(matches!(forward_error("u", &status(421, true)), NodeError::LeaderUnreachable { .. }));
        let malformed = PeerError::Malformed { url: url(), detail: String::new() };
        for lost in [status(504, false), PeerError::Timeout { url: url() }, malformed] {
            assert!(matches!(forward_error("u", &lost), NodeError::Unknown { .. }), "{lost}");
        }
    }
}
