//! The way of a write from a request to the log: one queue, drained in batches.
//!
//! Whoever wants to write puts an encoded command and a place for the answer into the queue and waits. One task takes
//! everything that waits and, when this member leads, proposes it as one batch; else it sends it as one message to the
//! leader (one hop: what was forwarded once is never forwarded again). While few batches are outstanding the next one
//! grows, so the load sets the size of the batches, and no timer does.
//!
//! A write that reached no log because nobody led at that moment waits for the next leader ([`super::patience`]) and goes
//! through the queue once more. Whoever hands the lead over takes all permits of [`Proposing`]: then nothing is proposed
//! any more, all that was proposed has its answer, and what comes waits in the queue for the new leader.
//!
//! Bounds: the queue holds `write_queue` commands, past which a write is refused with nothing done; at most
//! [`MAX_OUTSTANDING`] batches of at most [`MAX_BATCH`] commands are proposed at the same time. What is forwarded is
//! bounded by the requests that wait for it, each for `request_timeout` at most.
//!
//! What the answers mean: only what provably never reached a log is told to be "not applied"; all else is unknown.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use openraft::errors::ClientWriteError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{Inner, NodeError, peer_path};
use crate::model::codec::{DecodeError, Reader};
use crate::model::{Command, Outcome, RequestCommand, command, idempotency_of};
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
    /// Whether it goes no further than this member: another one forwarded it, or it means something from this leader
    /// only.
    pub forwarded: bool,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Answer>,
    /// When it was first refused because nobody led, and in which term.
    pub refused: Option<(Instant, u64)>,
    /// Whose it is: the queue's or, once its time is over, that of whoever waits for it.
    pub place: Place,
}

/// Decides which comes first for a command: that it leaves the queue, or that whoever waits for it gives up. Only what
/// never left the queue is known not to be applied.
#[derive(Debug, Clone, Default)]
pub struct Place(Arc<AtomicBool>);

impl Place {
    /// True for the first who asks.
    pub fn take(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }

    /// It was refused before it reached a log, and waits again.
    fn give_back(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Waiting {
    /// A command that nobody has refused yet, and where its answer goes.
    pub fn new(command: Bytes, forwarded: bool, answer: oneshot::Sender<Answer>) -> Waiting {
        Waiting { command, forwarded, answer, refused: None, place: Place::default() }
    }
}

/// How many batches are proposed at the same time, and the right to stop them.
#[derive(Debug, Clone)]
pub struct Proposing(Arc<Semaphore>);

impl Default for Proposing {
    fn default() -> Self {
        Proposing(Arc::new(Semaphore::new(MAX_OUTSTANDING)))
    }
}

impl Proposing {
    async fn begin(&self) -> OwnedSemaphorePermit {
        self.0.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Proposes nothing from now on until what is given back is dropped; returns once all that was proposed has its answer.
    /// None when that takes longer than `limit`: then nothing has changed.
    pub async fn hold(&self, limit: Duration) -> Option<OwnedSemaphorePermit> {
        let all = self.0.clone().acquire_many_owned(MAX_OUTSTANDING as u32);
        tokio::time::timeout(limit, all).await.ok().map(|held| held.expect("the semaphore is never closed"))
    }
}

/// Takes commands off the queue until nobody can add any more.
pub async fn run(inner: Arc<Inner>, mut queue: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    loop {
        // Something to propose first: whoever waits without anything would keep the lead from being handed over.
        if queue.recv_many(&mut batch, MAX_BATCH).await == 0 {
            return;
        }
        let permit = inner.proposing.begin().await;
        inner.wait_for_leader().await;
        while batch.len() < MAX_BATCH
            && let Ok(waiting) = queue.try_recv()
        {
            batch.push(waiting);
        }
        // Who does not wait any more has been told so; what was not proposed yet must not be.
        batch.retain(|waiting| !waiting.answer.is_closed() && waiting.place.take());
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
            let batch = inner.refuse_outcomes(inner.refuse_growth(batch));
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

/// Takes what reached no log, because nobody led, through the queue once more; false when its time is over. What goes no
/// further than this member is tried again by the same leader only: its quorum was silent for a moment.
async fn once_more(inner: &Inner, mut waiting: Waiting) -> Result<(), Waiting> {
    let (first, term) = *waiting.refused.get_or_insert_with(|| (Instant::now(), inner.view().term));
    let view = inner.view();
    let goes_on = !waiting.forwarded || view.leads && view.term == term;
    if !goes_on || waiting.answer.is_closed() || !inner.try_again(first).await {
        return Err(waiting);
    }
    inner.proposals.try_send(waiting).map_err(mpsc::error::TrySendError::into_inner)
}

/// Answers what nobody who leads could take, or takes it through the queue once more.
fn nobody_led(inner: &Arc<Inner>, refused: Vec<Waiting>) {
    for waiting in refused {
        let inner = inner.clone();
        waiting.place.give_back();
        tokio::spawn(async move {
            if let Err(waiting) = once_more(&inner, waiting).await {
                // A receiver that is gone has stopped waiting.
                let _ = waiting.answer.send(Err(inner.no_leader()));
            }
        });
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

async fn propose(inner: &Arc<Inner>, batch: Vec<Waiting>, permit: OwnedSemaphorePermit) {
    let now_ms = inner.clock.now_ms();
    let mut answers = Vec::with_capacity(batch.len());
    let mut commands = Vec::with_capacity(batch.len());
    for waiting in batch {
        let key = idempotency_of(&waiting.command).map(Box::from);
        let command = command::set_time(waiting.command, now_ms);
        commands.push(Proposal(command.clone()));
        answers.push(Asker { key, waiting: Waiting { command, ..waiting } });
    }
    let mut answers = answers.into_iter();
    let detail = tokio::select! {
        why = answer_in_order(inner, commands, &mut answers) => why,
        () = quorum_is_gone(inner) => "no quorum has answered in time".to_string(),
    };
    for asker in answers {
        settle(inner, asker, Err(NodeError::Unknown { detail: detail.clone() }));
    }
    drop(permit);
}

/// Who waits for an answer, and the key of the request.
struct Asker {
    key: Option<Box<[u8]>>,
    waiting: Waiting,
}

impl Asker {
    /// Its key is no longer under way.
    fn leave(self, inner: &Inner) -> Waiting {
        if let Some(key) = self.key {
            inner.under_way.leave(&key);
        }
        self.waiting
    }
}

/// Hands out an answer. Its key is no longer under way, which is so before anybody can act on the answer.
fn settle(inner: &Inner, asker: Asker, said: Answer) {
    // A fenced member acknowledges nothing, not even what it could.
    let said = match inner.is_fenced() && said.is_ok() {
        true => Err(NodeError::Unknown { detail: "this member was fenced meanwhile".into() }),
        false => said,
    };
    // A receiver that is gone has stopped waiting.
    let _ = asker.leave(inner).answer.send(said);
}

/// Proposes and hands out the answers as they come; says why the rest got none.
async fn answer_in_order(
    inner: &Arc<Inner>,
    commands: Vec<Proposal>,
    answers: &mut impl Iterator<Item = Asker>,
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
        let Some(asker) = answers.next() else { return String::new() };
        match result {
            Ok(written) => settle(inner, asker, Ok(written.response)),
            // Before it had a place in the log.
            Err(ClientWriteError::ForwardToLeader(_)) => nobody_led(inner, vec![asker.leave(inner)]),
            Err(e) => settle(inner, asker, Err(NodeError::Unknown { detail: e.to_string() })),
        }
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

async fn forward(inner: &Arc<Inner>, leader: u64, url: &str, batch: Vec<Waiting>) {
    let body = write_commands(&batch);
    let sent = inner.http.post(leader, url, peer_path::WRITE, body, inner.limits.request_timeout).await;
    let error = match sent.map(|reply| read_answers(reply, batch.len())) {
        Ok(Ok(answers)) => {
            let mut refused = Vec::new();
            for (waiting, answer) in batch.into_iter().zip(answers) {
                match answer {
                    // It led no more, and says so before it looks at the command.
                    Err(NodeError::NoLeader { .. }) => refused.push(waiting),
                    answer => drop(waiting.answer.send(answer)),
                }
            }
            return nobody_led(inner, refused);
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
fn read_commands(body: Bytes) -> Result<Vec<(Bytes, Command)>, DecodeError> {
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
        let decoded = Command::decode(&command)?;
        match &decoded {
            Command::Write(_) => {}
            Command::Request(RequestCommand { request, .. }) if !request.is_leaders_own() => {}
            // The leader proposes these by itself.
            Command::Request(_) | Command::Found { .. } | Command::Begin(_) => {
                return Err(DecodeError { what: "command: not one of a client" });
            }
        }
        commands.push((command, decoded));
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
    for (command, decoded) in commands {
        // The leader has applied a planned pause before anyone else has.
        if let Err(refused) = inner.admit_write(&decoded) {
            waiting.push(Err(refused));
            continue;
        }
        let (answer, rx) = oneshot::channel();
        // A copy of its own: the command will lie in memory longer than the message around it.
        let command = BytesMut::from(&command[..]).freeze();
        // What this member would answer may be wrong. (Another word than this the first release does not know.)
        if inner.check_serves().is_err() {
            waiting.push(Err(NodeError::Stopping));
            continue;
        }
        waiting.push(match inner.proposals.try_send(Waiting::new(command, true, answer)) {
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
    use crate::model::{LeaseGrant, Request};

    #[test]
    fn a_forwarded_command_that_is_damaged_is_never_proposed() {
        let waiting = |command: Bytes| Waiting::new(command, false, oneshot::channel().0);
        let command = Command::Write(Default::default()).encode();
        let body = write_commands(&[waiting(command.clone()), waiting(command.clone())]);
        let read = || (command.clone(), Command::Write(Default::default()));
        assert_eq!(read_commands(body.clone().into()), Ok(vec![read(), read()]));
        for at in 0..body.len() {
            let mut flipped = body.clone();
            flipped[at] ^= 1;
            assert!(read_commands(flipped.into()).is_err(), "flip at {at}");
        }
        let nonsense = write_commands(&[waiting(Bytes::from_static(b"nonsense"))]);
        assert!(read_commands(nonsense.into()).is_err());
    }

    #[test]
    fn what_clients_ask_may_be_forwarded_and_what_leaders_do_may_not() {
        let request = |request| Command::Request(RequestCommand { time_ms: 0, idempotency: None, request });
        let grant = LeaseGrant { id: 7, ttl_ms: 1000 };
        for (command, taken) in [
            (Command::Write(Default::default()), true),
            (request(Request::Write { grant: Some(grant), guards: vec![], ops: vec![] }), true),
            (request(Request::Txn(Default::default())), true),
            (request(Request::Grant(grant)), true),
            (request(Request::Revoke { id: 7, granted: 0, term: 0, max_keys: 10 }), true),
            (request(Request::Sequence { name: Bytes::from_static(b"n"), count: 1, step: 0 }), true),
            (request(Request::Sweep { max: 1 }), false),
            (request(Request::Canary), false),
            (request(Request::Record { key: Bytes::new(), written: 0, value: None }), false),
            (Command::Found { time_ms: 0, cluster: Default::default(), timeline: Default::default() }, false),
        ] {
            let waiting = Waiting::new(command.encode(), false, oneshot::channel().0);
            assert_eq!(read_commands(write_commands(&[waiting]).into()).is_ok(), taken, "{command:?}");
        }
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
