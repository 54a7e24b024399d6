//! Pipelined appends: one upgraded connection a peer, frames both ways, answers in the order of the requests.
//!
//! The leader's side is [`send`]: a stream of answers that, while it is polled, takes requests from openraft, writes them
//! and reads answers. Requests in flight are bounded in number and in bytes. Dropping the stream drops the requests'
//! source with it, which openraft waits for. The follower's side is [`serve`]: it hands requests to openraft as they
//! arrive and writes each answer when openraft gives it, which is when the entries are durable.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::{FutureExt, Stream, StreamExt, future};
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::Instant;

use super::types::{Raft, TypeConfig};
use super::wire;

/// The name of the protocol in the HTTP upgrade.
pub const PROTOCOL: &str = "lifeboat-append";
/// At most so many appends wait for an answer of one peer.
const MAX_IN_FLIGHT: usize = 16;
/// Unless it is the only one, an append waits while so many bytes are in flight to one peer.
const MAX_IN_FLIGHT_BYTES: usize = 2 << 20;
/// A link may be as slow as this. Bytes on their way lie mostly in the buffers of the operating system, which move in
/// large steps: a peer that is only slow must not look like one that is gone, or it would be sent the same for ever.
const SLOWEST_LINK_BYTES_PER_SECOND: usize = 256 << 10;
/// Initial size of the buffers for reading.
const READ_BUFFER_BYTES: usize = 64 << 10;

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
    /// When something last moved while something was in flight.
    last_progress: Instant,
}

/// Sends `first` and then everything that `input` gives, and yields the answers. Ends when the input has ended and all
/// answers have come, or with an error; nothing moving for `idle_timeout` is one, while there is something to send or an
/// answer is due.
pub fn send<S, IO>(
    first: AppendEntriesRequest<TypeConfig>,
    input: S,
    io: IO,
    idle_timeout: Duration,
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
        last_progress: Instant::now(),
    };
    futures_util::stream::unfold((Some(session), Some(first)), |(session, first)| async move {
        let mut session = session?;
        if let Some(first) = first
            && let Err(e) = session.write(first).await
        {
            return Some((Err(e), (None, None)));
        }
        match session.next_answer().await {
            Ok(Some(answer)) => {
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
        let patience = self.patience();
        let mut sent = 0;
        while sent < self.write_buffer.len() {
            let write = self.writer.write(&self.write_buffer[sent..]);
            sent += match tokio::time::timeout(patience, write).await {
                Ok(written) => match written? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    bytes => bytes,
                },
                Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "an append is not taken")),
            };
            self.last_progress = Instant::now();
        }
        self.writer.flush().await
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
        let on_the_way = self.in_flight_bytes as f64 / SLOWEST_LINK_BYTES_PER_SECOND as f64;
        self.idle_timeout + Duration::from_secs_f64(on_the_way)
    }

    fn may_send(&self) -> bool {
        self.in_flight.len() < MAX_IN_FLIGHT && self.in_flight_bytes < MAX_IN_FLIGHT_BYTES
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

/// The follower's side: feeds openraft from `io` until the leader hangs up or openraft ends the session.
pub async fn serve<IO>(raft: Raft, io: IO) -> io::Result<()>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (reader, mut writer) = tokio::io::split(io);
    let requests =
        futures_util::stream::unfold(Some((reader, BytesMut::with_capacity(READ_BUFFER_BYTES))), |state| async move {
            let (mut reader, mut buffer) = state?;
            match next_request(&mut reader, &mut buffer).await {
                Ok(Some(request)) => Some((request, Some((reader, buffer)))),
                Ok(None) => None,
                Err(e) => {
                    tracing::warn!(error = %e, "an append stream is cut");
                    None
                }
            }
        });
    let mut answers = std::pin::pin!(raft.stream_append(requests));
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

async fn next_request(
    reader: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
) -> io::Result<Option<AppendEntriesRequest<TypeConfig>>> {
    loop {
        if let Some(frame) = wire::take_frame(buffer)? {
            return wire::read_append(frame).map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e));
        }
        if reader.read_buf(buffer).await? == 0 {
            return if buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LogId, Vote};
    use crate::raft::types::{Proposal, to_raft_log_id, to_raft_vote};

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_given_up() {
        let at = |index| to_raft_log_id(LogId { term: 1, leader: 1, index });
        let payload = openraft::EntryPayload::Normal(Proposal(vec![0; 1000].into()));
        let request = AppendEntriesRequest {
            vote: to_raft_vote(Vote { term: 1, member: 1, committed: true }),
            prev_log_id: None,
            leader_commit: None,
            entries: vec![openraft::Entry { log_id: at(0), payload }],
        };
        let (ours, _theirs) = tokio::io::duplex(64);
        let input = futures_util::stream::pending();
        let mut answers = std::pin::pin!(send(request, input, ours, Duration::from_millis(20)));
        let answer = tokio::time::timeout(Duration::from_secs(60), answers.next()).await;
        let error = answer.expect("it ends by itself").expect("with an error").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(answers.next().await.is_none());
    }
}
