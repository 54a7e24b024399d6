//! Pipelined appends: one upgraded connection a peer, frames both ways, answers in the order of the requests.
//!
//! The leader's side is [`send`]: a stream of answers that, while it is polled, takes requests from openraft, writes them
//! and reads answers. Requests in flight are bounded in number and in bytes. Dropping the stream drops the requests'
//! source with it, which openraft waits for. The follower's side is [`serve`]: it hands requests to openraft as they
//! arrive and writes each answer when openraft gives it, which is when the entries are durable.
//!
//! To a member of another site the leader's side of the stream is compressed, if that member can undo it, and kept to a
//! cap ([`super::link`]). Much is compressed on another thread: this one is Raft's. And while openraft searches for the
//! point up to which the logs agree, it tries entries here and there, most of which do not fit or are there already: they
//! would cross the link for nothing, half a mebibyte each time. So the member is asked first whether it knows what stands
//! before them ([`Session::begin`]).
//!
//! That search takes a step for every halving of the log, and each is a session of its own: on a long log, to another site,
//! longer than anybody wants to wait for a new leader. But who was at the tip before this leader led has exactly the last
//! entry from before ([`Tip`]). So that is asked first, once: an append behind it is taken only by a member that has it. All
//! further steps of the search are answered here then, without the member ([`answer_by_tip`]).

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::{FutureExt, Stream, StreamExt, future};
use openraft::EntryPayload;
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::Instant;

use super::link::{Decoder, Encoder, Link};
use super::types::{Raft, RaftLogId, TypeConfig};
use super::wire;

/// The name of the protocol in the HTTP upgrade.
pub const PROTOCOL: &str = "lifeboat-append";
/// At most so many appends wait for an answer of one peer.
const MAX_IN_FLIGHT: usize = 16;
/// Unless it is the only one, an append waits while so many bytes are in flight to one peer.
const MAX_IN_FLIGHT_BYTES: usize = 2 << 20;
/// A link may be as slow as this. Bytes on their way lie mostly in the buffers of the operating system, which move in
/// large steps: a peer that is only slow must not look like one that is gone, or it would be sent the same for ever.
const SLOWEST_LINK_BYTES_PER_SECOND: u64 = 256 << 10;
/// Under a cap no more is in flight than passes in so many seconds, or [`MIN_IN_FLIGHT_BYTES`].
const CAP_SECONDS_IN_FLIGHT: u64 = 2;
const MIN_IN_FLIGHT_BYTES: usize = 64 << 10;
/// More than this is compressed on another thread.
const COMPRESS_HERE_BYTES: usize = 16 << 10;
/// Entries of fewer bytes are sent at once, whether they fit or not.
const ASK_BEFORE_BYTES: usize = 16 << 10;
/// Initial size of the buffers for reading.
const READ_BUFFER_BYTES: usize = 64 << 10;

/// What was found of a peer's log, over the sessions with it.
pub type Search = Arc<Mutex<Found>>;

/// The answers of a peer while the point is searched up to which the logs agree.
#[derive(Debug, Default)]
pub struct Found {
    /// What a peer of another site was last asked for and knew.
    known: Option<RaftLogId>,
    /// The [`Tip`] that it has, as it said to this leader, which is the same for as long as this is kept.
    has: Option<RaftLogId>,
    /// The [`Tip`] that it did not have.
    lacks: Option<RaftLogId>,
}

/// The answer of a peer that has the tip to a step of the search before it: no step may be answered with more than it asks.
pub fn answer_by_tip(
    search: &Search,
    first: &AppendEntriesRequest<TypeConfig>,
    tip: Tip,
) -> Option<StreamAppendResult<TypeConfig>> {
    let tip = tip.filter(|tip| Some(*tip) > first.prev_log_id && search.lock().has == Some(*tip))?;
    Some(Ok(reached(first, tip)))
}

/// How far a request reaches that is taken by a member which has the tip, and nothing behind it.
fn reached(first: &AppendEntriesRequest<TypeConfig>, tip: RaftLogId) -> Option<RaftLogId> {
    first.entries.last().map_or(first.prev_log_id, |last| Some(last.log_id.min(tip)))
}

/// The last entry of the leader's log that is older than its lead.
pub type Tip = Option<RaftLogId>;

/// What is searched for in a peer's log.
#[derive(Debug, Default)]
pub struct Sought {
    /// What was found so far.
    pub search: Search,
    /// Where to look first.
    pub tip: Tip,
}

/// What became of the question for the tip.
enum Asked {
    /// It was not asked: the first request is still to be sent.
    No,
    /// This is the answer to the first request. That it conflicts at the tip is one too: the tip is behind what the request
    /// follows, which is not before what the peer is known to have.
    Answered(StreamAppendResult<TypeConfig>),
    /// The first request is sent as it was.
    Sent,
}

/// The leader's side of one session.
struct Session<S, IO> {
    input: Option<S>,
    writer: WriteHalf<IO>,
    reader: ReadHalf<IO>,
    read_buffer: BytesMut,
    write_buffer: Vec<u8>,
    /// The sizes of the appends that have no answer yet.
    in_flight: VecDeque<usize>,
    in_flight_bytes: usize,
    idle_timeout: Duration,
    link: Arc<Link>,
    encoder: Option<Encoder>,
    search: Search,
    /// When something last moved while something was in flight.
    last_progress: Instant,
}

/// Sends `first` and then everything that `input` gives, and yields the answers. Ends when the input has ended and all
/// answers have come, or with an error; nothing moving for `idle_timeout` is one, while there is something to send or an
/// answer is due. What goes over the connection is compressed by `encoder` if there is one.
pub fn send<S, IO>(
    first: AppendEntriesRequest<TypeConfig>,
    input: S,
    io: IO,
    idle_timeout: Duration,
    link: Arc<Link>,
    encoder: Option<Encoder>,
    Sought { search, tip }: Sought,
) -> impl Stream<Item = io::Result<StreamAppendResult<TypeConfig>>>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let (reader, writer) = tokio::io::split(io);
    let session = Session {
        input: Some(input),
        writer,
        reader,
        read_buffer: BytesMut::with_capacity(READ_BUFFER_BYTES),
        write_buffer: Vec::new(),
        in_flight: VecDeque::new(),
        in_flight_bytes: 0,
        idle_timeout,
        link,
        encoder,
        search,
        last_progress: Instant::now(),
    };
    futures_util::stream::unfold((Some(session), Some(first)), move |(session, first)| async move {
        let mut session = session?;
        if let Some(first) = first {
            match session.begin(first, tip).await {
                Ok(None) => {}
                Ok(Some(answer)) => {
                    session.learn(&answer);
                    return Some((Ok(answer), (None, None)));
                }
                Err(e) => return Some((Err(e), (None, None))),
            }
        }
        match session.next_answer().await {
            Ok(Some(answer)) => {
                session.learn(&answer);
                let next = answer.is_ok().then_some(session);
                Some((Ok(answer), (next, None)))
            }
            Ok(None) => None,
            Err(e) => Some((Err(e), (None, None))),
        }
    })
}

impl<S, IO> Session<S, IO>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
    IO: AsyncRead + AsyncWrite + Unpin,
{
    /// A peer whose log does not agree may have lost what it said that it has.
    fn learn(&self, answer: &StreamAppendResult<TypeConfig>) {
        if matches!(answer, Err(StreamAppendError::Conflict(_))) {
            self.search.lock().has = None;
        }
    }

    /// Writes the first request; or gives the answer to it, when the entries need not be sent to know it.
    ///
    /// A request with nothing behind it is openraft's search. It is over for openraft when the member knows what stands
    /// before the entries, and goes on from there. When it comes back with the same point there is nothing left to
    /// search, and the entries are sent.
    async fn begin(
        &mut self,
        first: AppendEntriesRequest<TypeConfig>,
        tip: Tip,
    ) -> io::Result<Option<StreamAppendResult<TypeConfig>>> {
        let (vote, prev_log_id) = (first.vote, first.prev_log_id);
        if let Some(tip) = tip.filter(|tip| Some(*tip) > prev_log_id && self.search.lock().lacks != Some(*tip)) {
            match self.ask_for_tip(&first, tip).await? {
                Asked::No => {}
                Asked::Answered(answer) => return Ok(Some(answer)),
                Asked::Sent => return Ok(None),
            }
        }
        let far = self.link.is_far() && prev_log_id.is_some() && payload_bytes(&first) > ASK_BEFORE_BYTES;
        if far && self.search.lock().known != prev_log_id {
            self.write_buffer.clear();
            self.encode(&AppendEntriesRequest { vote, prev_log_id, leader_commit: None, entries: Vec::new() });
            self.send_out().await?;
            // Nothing else is sent meanwhile.
            let mut input = self.input.take();
            let answer = self.next_answer().await?;
            let next = input.as_mut().map_or(Some(None), |input| input.next().now_or_never());
            if let Some(refusal @ Err(_)) = answer {
                return Ok(Some(refusal));
            }
            self.search.lock().known = prev_log_id;
            match next {
                Some(None) => return Ok(Some(Ok(prev_log_id))),
                Some(Some(second)) => {
                    self.input = input;
                    self.write(first).await?;
                    self.write(second).await?;
                    return Ok(None);
                }
                None => self.input = input,
            }
        }
        self.write(first).await?;
        Ok(None)
    }

    /// Sends what stands behind the tip in the first request, if it is openraft's search, so that only a member that has
    /// the tip takes it.
    async fn ask_for_tip(&mut self, first: &AppendEntriesRequest<TypeConfig>, tip: RaftLogId) -> io::Result<Asked> {
        // A search is one request with nothing behind it.
        let Some(mut input) = self.input.take() else { return Ok(Asked::No) };
        let next = input.next().now_or_never();
        if !matches!(next, Some(None)) {
            self.input = Some(input);
            let Some(Some(second)) = next else { return Ok(Asked::No) };
            self.write(first.clone()).await?;
            self.write(second).await?;
            return Ok(Asked::Sent);
        }
        let behind = first.entries.iter().filter(|entry| entry.log_id.index() > tip.index());
        let reaches = first.entries.last().is_some_and(|last| last.log_id.index() > tip.index());
        let entries = if reaches { behind.cloned().collect() } else { Vec::new() };
        let vote = first.vote;
        self.write_buffer.clear();
        self.encode(&AppendEntriesRequest {
            vote,
            prev_log_id: Some(tip),
            leader_commit: first.leader_commit,
            entries,
        });
        self.send_out().await?;
        match self.next_answer().await? {
            Some(Err(StreamAppendError::Conflict(_))) => {
                // The member has ended the session with that: what is learned is the answer, and the next session asks on.
                self.search.lock().lacks = Some(tip);
                Ok(Asked::Answered(Err(StreamAppendError::Conflict(tip))))
            }
            Some(Ok(taken)) => {
                self.search.lock().has = Some(tip);
                Ok(Asked::Answered(Ok(if reaches { taken } else { reached(first, tip) })))
            }
            Some(refusal) => Ok(Asked::Answered(refusal)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Writes one request, and with it all that are ready now.
    async fn write(&mut self, request: AppendEntriesRequest<TypeConfig>) -> io::Result<()> {
        self.write_buffer.clear();
        self.encode(&request);
        while self.may_send() {
            let Some(input) = &mut self.input else { break };
            match input.next().now_or_never() {
                Some(Some(request)) => self.encode(&request),
                Some(None) => self.input = None,
                None => break,
            }
        }
        self.send_out().await
    }

    /// Hands the buffer to the connection. A peer that takes nothing for too long is given up: nobody waits for its
    /// answers meanwhile, and the connection alone would notice a peer that is cut off only after many minutes.
    async fn send_out(&mut self) -> io::Result<()> {
        self.link.count_payload(self.write_buffer.len());
        self.compress().await?;
        let patience = self.patience();
        let slice_bytes = self.link.slice_bytes();
        let mut sent = 0;
        while sent < self.write_buffer.len() {
            let slice = &self.write_buffer[sent..];
            let slice = &slice[..slice.len().min(slice_bytes)];
            self.link.pass(slice.len()).await;
            let mut taken = 0;
            while taken < slice.len() {
                let write = self.writer.write(&slice[taken..]);
                taken += match tokio::time::timeout(patience, write).await {
                    Ok(written) => match written? {
                        0 => return Err(io::ErrorKind::WriteZero.into()),
                        bytes => bytes,
                    },
                    Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "an append is not taken")),
                };
                self.last_progress = Instant::now();
            }
            sent += taken;
        }
        self.writer.flush().await
    }

    /// Replaces what is to be written by its compressed form.
    async fn compress(&mut self) -> io::Result<()> {
        let Some(mut encoder) = self.encoder.take() else { return Ok(()) };
        let payload = std::mem::take(&mut self.write_buffer);
        let here = payload.len() <= COMPRESS_HERE_BYTES;
        let work = move || encoder.encode(&payload).map(|wire| (wire, encoder));
        let done = if here { work() } else { tokio::task::spawn_blocking(work).await.map_err(io::Error::other)? };
        let (wire, encoder) = done?;
        self.write_buffer = wire;
        self.encoder = Some(encoder);
        Ok(())
    }

    fn encode(&mut self, request: &AppendEntriesRequest<TypeConfig>) {
        if self.in_flight.is_empty() {
            self.last_progress = Instant::now();
        }
        let before = self.write_buffer.len();
        wire::put_append(&mut self.write_buffer, request);
        let size = self.write_buffer.len() - before;
        self.in_flight.push_back(size);
        self.in_flight_bytes += size;
    }

    /// How long nothing may move before the peer is given up.
    fn patience(&self) -> Duration {
        let slowest = self.link.cap().map_or(u64::MAX, |cap| cap / 2).min(SLOWEST_LINK_BYTES_PER_SECOND);
        let on_the_way = self.in_flight_bytes as f64 / slowest as f64;
        self.idle_timeout + Duration::from_secs_f64(on_the_way)
    }

    fn max_in_flight_bytes(&self) -> usize {
        let Some(cap) = self.link.cap() else { return MAX_IN_FLIGHT_BYTES };
        let passes = usize::try_from(cap.saturating_mul(CAP_SECONDS_IN_FLIGHT)).unwrap_or(usize::MAX);
        passes.clamp(MIN_IN_FLIGHT_BYTES, MAX_IN_FLIGHT_BYTES)
    }

    fn may_send(&self) -> bool {
        self.in_flight.len() < MAX_IN_FLIGHT && self.in_flight_bytes < self.max_in_flight_bytes()
    }

    /// Sends what comes while it waits for the next answer; `None` when the input ended and nothing is due.
    async fn next_answer(&mut self) -> io::Result<Option<StreamAppendResult<TypeConfig>>> {
        loop {
            if let Some(frame) = wire::take_frame(&mut self.read_buffer)? {
                let Some(size) = self.in_flight.pop_front() else {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to nothing"));
                };
                self.in_flight_bytes -= size;
                self.last_progress = Instant::now();
                let answer = wire::read_append_answer(frame);
                return answer.map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e));
            }
            if self.input.is_none() && self.in_flight.is_empty() {
                return Ok(None);
            }
            let may_send = self.may_send();
            let due = self.last_progress + self.patience();
            let request = async {
                match &mut self.input {
                    Some(input) if may_send => input.next().await,
                    _ => future::pending().await,
                }
            };
            tokio::select! {
                biased;
                read = self.reader.read_buf(&mut self.read_buffer) => {
                    if read? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                request = request => match request {
                    Some(request) => self.write(request).await?,
                    None => self.input = None,
                },
                () = tokio::time::sleep_until(due), if !self.in_flight.is_empty() => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer to an append"));
                }
            }
        }
    }
}

/// Roughly what the entries of a request take on the wire.
fn payload_bytes(request: &AppendEntriesRequest<TypeConfig>) -> usize {
    let bytes = |entry: &super::types::RaftEntry| match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    };
    request.entries.iter().map(bytes).sum()
}

/// The follower's side: feeds openraft from `io` until the leader hangs up or openraft ends the session. What comes is
/// compressed if there is a decoder.
pub async fn serve<IO>(raft: Raft, io: IO, decoder: Option<Decoder>) -> io::Result<()>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (reader, mut writer) = tokio::io::split(io);
    let incoming = Incoming { reader, decoder, buffer: BytesMut::with_capacity(READ_BUFFER_BYTES) };
    let requests = futures_util::stream::unfold(Some(incoming), |incoming| async move {
        let mut incoming = incoming?;
        match incoming.next_request().await {
            Ok(Some(request)) => Some((request, Some(incoming))),
            Ok(None) => None,
            Err(e) => {
                tracing::warn!(error = %e, "an append stream is cut");
                None
            }
        }
    });
    // Fused, because the inner loop may meet the end before the outer one does.
    let mut answers = std::pin::pin!(raft.stream_append(requests).fuse());
    let mut out = Vec::new();
    while let Some(answer) = answers.next().await {
        out.clear();
        let answer = answer.map_err(|e| io::Error::other(e.to_string()))?;
        let mut ended = answer.is_err();
        wire::put_append_answer(&mut out, &answer);
        // Whatever else is ready goes out in the same write.
        while !ended && let Some(Some(answer)) = answers.next().now_or_never() {
            let answer = answer.map_err(|e| io::Error::other(e.to_string()))?;
            ended = answer.is_err();
            wire::put_append_answer(&mut out, &answer);
        }
        writer.write_all(&out).await?;
        writer.flush().await?;
        if ended {
            break;
        }
    }
    writer.shutdown().await
}

/// What a follower reads.
struct Incoming<R> {
    reader: R,
    decoder: Option<Decoder>,
    /// What has arrived, decoded, and was not taken yet.
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    async fn next_request(&mut self) -> io::Result<Option<AppendEntriesRequest<TypeConfig>>> {
        loop {
            if let Some(frame) = wire::take_frame(&mut self.buffer)? {
                return wire::read_append(frame).map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e));
            }
            let arrived = match &mut self.decoder {
                None => self.reader.read_buf(&mut self.buffer).await?,
                Some(decoder) => {
                    if decoder.step(&mut self.buffer)? {
                        continue;
                    }
                    let input = decoder.input();
                    input.reserve(READ_BUFFER_BYTES);
                    self.reader.read_buf(input).await?
                }
            };
            if arrived == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LogId, Vote};
    use crate::raft::link::{LinkConfig, Links};
    use crate::raft::types::{Proposal, to_raft_log_id, to_raft_vote};

    fn link(bandwidth_bytes: u64) -> Arc<Link> {
        Links::new(LinkConfig { site: "east".into(), compression: true, bandwidth_bytes }).to(2, "west")
    }

    fn request(index: u64, value: Vec<u8>) -> AppendEntriesRequest<TypeConfig> {
        let at = |index| to_raft_log_id(LogId { term: 1, leader: 1, index });
        AppendEntriesRequest {
            vote: to_raft_vote(Vote { term: 1, member: 1, committed: true }),
            prev_log_id: index.checked_sub(1).map(at),
            leader_commit: None,
            entries: vec![openraft::Entry { log_id: at(index), payload: EntryPayload::Normal(Proposal(value.into())) }],
        }
    }

    fn requests() -> Vec<AppendEntriesRequest<TypeConfig>> {
        let json =
            |i: u64| format!("{{\"number\":{i},\"text\":\"the same in every value\"}}").repeat(1 + i as usize % 9);
        (0..40).map(|i| request(i, json(i).into_bytes())).collect()
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_given_up() {
        let (ours, _theirs) = tokio::io::duplex(64);
        let input = futures_util::stream::pending();
        let first = request(0, vec![0; 1000]);
        let mut answers =
            std::pin::pin!(send(first, input, ours, Duration::from_millis(20), link(0), None, Sought::default()));
        let answer = tokio::time::timeout(Duration::from_secs(60), answers.next()).await;
        let error = answer.expect("it ends by itself").expect("with an error").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(answers.next().await.is_none());
    }

    /// A follower that takes everything, or refuses and ends the session, by what it got.
    async fn follow(io: tokio::io::DuplexStream, decoder: Option<Decoder>, known: bool) -> Vec<(usize, u64)> {
        let (reader, mut writer) = tokio::io::split(io);
        let mut incoming = Incoming { reader, decoder, buffer: BytesMut::new() };
        let mut got = Vec::new();
        while let Some(request) = incoming.next_request().await.unwrap() {
            let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
            got.push((request.entries.len(), last.map_or(0, |id| id.index)));
            let answer = if known { Ok(last) } else { Err(StreamAppendError::Conflict(last.unwrap())) };
            let mut out = Vec::new();
            wire::put_append_answer(&mut out, &answer);
            writer.write_all(&out).await.unwrap();
            if answer.is_err() {
                break;
            }
        }
        got
    }

    #[tokio::test]
    async fn a_compressed_stream_carries_the_same_in_less() {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let follower = tokio::spawn(follow(theirs, Some(Decoder::new().unwrap()), true));
        let mut requests = requests();
        // One that is compressed on another thread.
        requests.push(request(40, b"0123456789".repeat(100_000)));
        let expected: Vec<_> = (0..=40).map(|i| (1, i)).collect();
        let first = requests.remove(0);
        let link = link(0);
        let input = futures_util::stream::iter(requests);
        let sent = send(
            first,
            input,
            ours,
            Duration::from_secs(60),
            link.clone(),
            Some(Encoder::new().unwrap()),
            Sought::default(),
        );
        let answers: Vec<_> = sent.map(|answer| answer.unwrap().unwrap().unwrap().index).collect().await;
        assert_eq!(answers, (0..=40).collect::<Vec<u64>>());
        assert_eq!(follower.await.unwrap(), expected);
        let traffic = link.traffic();
        assert!(traffic.sent_bytes * 10 < traffic.payload_bytes, "{traffic:?}");
    }

    /// What is answered to an append of entry 7, and what the member got, in number of entries and last index.
    async fn append_of_seven(
        input: impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
        known: bool,
        search: &Search,
        tip: Tip,
    ) -> (Vec<StreamAppendResult<TypeConfig>>, Vec<(usize, u64)>) {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let follower = tokio::spawn(follow(theirs, None, known));
        let first = request(7, vec![1; 100_000]);
        let sent =
            send(first, input, ours, Duration::from_secs(60), link(0), None, Sought { search: search.clone(), tip });
        let answers = sent.map(Result::unwrap).collect().await;
        (answers, follower.await.unwrap())
    }

    #[tokio::test]
    async fn while_logs_are_compared_entries_do_not_cross_to_another_site() {
        let at = |index| to_raft_log_id(LogId { term: 1, leader: 1, index });
        let conflict = vec![Err(StreamAppendError::Conflict(at(6)))];
        let search = Search::default();
        let nothing = futures_util::stream::empty;
        assert_eq!(append_of_seven(nothing(), false, &search, None).await, (conflict, vec![(0, 6)]));
        // It is known up to there, which is an answer; asked again from there, the entries are due.
        assert_eq!(append_of_seven(nothing(), true, &search, None).await, (vec![Ok(Some(at(6)))], vec![(0, 6)]));
        assert_eq!(append_of_seven(nothing(), true, &search, None).await, (vec![Ok(Some(at(7)))], vec![(1, 7)]));
        // With more behind it there is no search: all is sent.
        let more = futures_util::stream::iter([request(8, vec![2; 10])]);
        let (answers, got) = append_of_seven(more, true, &Search::default(), None).await;
        assert_eq!(answers, [Ok(Some(at(7))), Ok(Some(at(8)))]);
        assert_eq!(got, [(0, 6), (1, 7), (1, 8)]);
    }

    #[tokio::test]
    async fn whoever_has_the_tip_says_so_at_once_and_is_asked_once() {
        let at = |index| to_raft_log_id(LogId { term: 1, leader: 1, index });
        let nothing = futures_util::stream::empty;
        let search = Search::default();
        // The tip is behind all that the search carries: nothing of that crosses.
        let (answers, got) = append_of_seven(nothing(), true, &search, Some(at(90))).await;
        assert_eq!((answers, got), (vec![Ok(Some(at(7)))], vec![(0, 90)]));
        // From then on it need not be asked, up to there and no further.
        let by_tip = |index, tip| answer_by_tip(&search, &request(index, vec![]), Some(at(tip)));
        assert_eq!(
            (by_tip(50, 90), by_tip(90, 90), by_tip(91, 90)),
            (Some(Ok(Some(at(50)))), Some(Ok(Some(at(90)))), None)
        );
        assert_eq!(by_tip(50, 91), None, "another tip was not asked for");
        // One that has it not says that, which is an answer; it is asked as before then, and not for it again.
        let (answers, got) = append_of_seven(nothing(), false, &search, Some(at(91))).await;
        assert_eq!((answers, got), (vec![Err(StreamAppendError::Conflict(at(91)))], vec![(0, 91)]));
        let (answers, got) = append_of_seven(nothing(), false, &search, Some(at(91))).await;
        assert_eq!((answers, got), (vec![Err(StreamAppendError::Conflict(at(6)))], vec![(0, 6)]));
        // Nor is anything believed any more that it said before.
        assert_eq!(answer_by_tip(&search, &request(50, vec![]), Some(at(90))), None);
        // What is known already needs no question, and what is no search is sent as it is.
        let (_, got) = append_of_seven(nothing(), true, &Search::default(), Some(at(6))).await;
        assert_eq!(got, [(0, 6)]);
        let more = futures_util::stream::iter([request(8, vec![2; 10])]);
        let (answers, got) = append_of_seven(more, true, &Search::default(), Some(at(90))).await;
        assert_eq!((answers, got), (vec![Ok(Some(at(7))), Ok(Some(at(8)))], vec![(1, 7), (1, 8)]));
    }

    #[tokio::test]
    async fn a_damaged_stream_ends_and_is_never_misread() {
        let mut encoder = Encoder::new().unwrap();
        let mut wire = Vec::new();
        let requests = &requests()[..6];
        for request in requests {
            let mut payload = Vec::new();
            wire::put_append(&mut payload, request);
            wire.extend(encoder.encode(&payload).unwrap());
        }
        let mut noticed = 0;
        for at in 0..wire.len() {
            let mut damaged = wire.clone();
            damaged[at] ^= 0x10;
            let mut incoming =
                Incoming { reader: &damaged[..], decoder: Some(Decoder::new().unwrap()), buffer: BytesMut::new() };
            let mut read = 0;
            while let Ok(Some(request)) = incoming.next_request().await {
                assert_eq!(request.entries, requests[read].entries, "flip at {at}");
                read += 1;
            }
            // A few bits of zstd's headers have no effect.
            noticed += usize::from(read < requests.len());
        }
        assert!(noticed * 100 > wire.len() * 95, "{noticed} of {} flips were noticed", wire.len());
    }

    #[tokio::test]
    async fn under_a_cap_less_is_in_flight_and_patience_grows() {
        let session = |link| Session {
            input: Some(futures_util::stream::pending()),
            writer: tokio::io::split(tokio::io::duplex(1).0).1,
            reader: tokio::io::split(tokio::io::duplex(1).0).0,
            read_buffer: BytesMut::new(),
            write_buffer: Vec::new(),
            in_flight: VecDeque::new(),
            in_flight_bytes: 512 << 10,
            idle_timeout: Duration::from_secs(1),
            link,
            encoder: None,
            search: Search::default(),
            last_progress: Instant::now(),
        };
        let (free, capped) = (session(link(0)), session(link(100_000)));
        assert!(free.may_send() && !capped.may_send());
        assert_eq!(capped.max_in_flight_bytes(), 200_000);
        assert!(free.patience() == Duration::from_secs(3) && capped.patience() > Duration::from_secs(10));
    }
}
