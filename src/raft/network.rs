//! openraft's network: what this member, as leader or candidate, asks of one peer.
//!
//! Appends go through one pipelined stream a peer ([`super::append_stream`]); heartbeats, votes, transfers and snapshots
//! are POSTs of their own, so that none of them waits behind a full pipe. An unreachable or refusing peer is retried
//! with a growing delay.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption, RPCTypes,
};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory};
use parking_lot::RwLock;
use thiserror::Error;

use super::machine::SnapshotContent;
use super::peer_http::{PeerError, PeerHttp};
use super::types::{
    MemberInfo, RaftLogId, RaftVote, TypeConfig, encode_membership, from_raft_log_id, from_raft_vote, to_raft_log_id,
    to_raft_vote,
};
use super::{append_stream, wire};
use crate::model::MemberId;

/// The paths between members.
pub mod path {
    /// Pipelined appends (an HTTP upgrade).
    pub const APPEND_STREAM: &str = "/peer/v1/append-stream";
    /// One append, used for heartbeats.
    pub const APPEND: &str = "/peer/v1/append";
    /// A vote.
    pub const VOTE: &str = "/peer/v1/vote";
    /// A question whether a vote would be granted.
    pub const PRE_VOTE: &str = "/peer/v1/pre-vote";
    /// A hand-over of leadership.
    pub const TRANSFER: &str = "/peer/v1/transfer";
    /// A snapshot.
    pub const SNAPSHOT: &str = "/peer/v1/snapshot";
}

/// The first delay before a peer that cannot be reached is tried again; it doubles up to the last.
const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_LAST: Duration = Duration::from_millis(500);

/// How long peers may take.
#[derive(Debug, Clone, Copy)]
pub struct NetworkTimeouts {
    /// An append stream without any answer for so long, while one is due, is given up.
    pub append_idle: Duration,
    /// A vote, a heartbeat or a transfer.
    pub control: Duration,
    /// A snapshot that makes no progress for so long is given up.
    pub snapshot_idle: Duration,
}

/// Where the members are now. openraft keeps the client of a peer for as long as a leader leads, also when the
/// membership says that the peer has moved; so a client asks here before every dial.
#[derive(Debug, Clone, Default)]
pub struct AddressBook(Arc<RwLock<BTreeMap<MemberId, Arc<str>>>>);

impl AddressBook {
    /// Takes the addresses of a membership in place of the ones before.
    pub fn set<'a>(&self, members: impl Iterator<Item = (&'a MemberId, &'a MemberInfo)>) {
        *self.0.write() = members.map(|(id, info)| (*id, Arc::from(info.peer_url.as_str()))).collect();
    }
}

/// The first entry that the leader still keeps for members that lag. Whoever needs an older one gets a snapshot.
///
/// openraft purges nothing that a peer may still be sent, and a slow peer that is always being sent something would keep
/// the log from being purged for ever. So its stream is ended when it needs what is given up; openraft then purges, and
/// finds that it has to send a snapshot.
#[derive(Debug, Clone, Default)]
pub struct KeptFrom(Arc<AtomicU64>);

impl KeptFrom {
    /// Gives up everything below `index`.
    pub fn raise(&self, index: u64) {
        self.0.fetch_max(index, Ordering::Relaxed);
    }

    /// Whether a peer that holds everything up to `matched` needs what is given up.
    fn is_beyond(&self, matched: Option<RaftLogId>) -> bool {
        matched.map_or(0, |id| id.index + 1) < self.0.load(Ordering::Relaxed)
    }
}

/// What a client says when it ends the stream of a peer that lags too far.
#[derive(Debug, Error)]
#[error("the peer needs entries that the log does not keep any more: it gets a snapshot")]
struct GivenUp;

/// Makes a [`PeerClient`] for each peer.
#[derive(Debug, Clone)]
pub struct Network {
    http: PeerHttp,
    timeouts: NetworkTimeouts,
    addresses: AddressBook,
    kept_from: KeptFrom,
}

impl Network {
    /// A network that dials through `http`, where `addresses` says, and sends no entry that is given up.
    pub fn new(http: PeerHttp, timeouts: NetworkTimeouts, addresses: AddressBook, kept_from: KeptFrom) -> Network {
        Network { http, timeouts, addresses, kept_from }
    }

    fn client(&self, target: MemberId, info: &MemberInfo, heartbeat: bool) -> PeerClient {
        PeerClient {
            http: self.http.clone(),
            timeouts: self.timeouts,
            target,
            first_url: Arc::from(info.peer_url.as_str()),
            addresses: self.addresses.clone(),
            kept_from: self.kept_from.clone(),
            heartbeat,
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = PeerClient;

    async fn new_client(&mut self, target: MemberId, node: &MemberInfo) -> PeerClient {
        self.client(target, node, false)
    }

    async fn new_heartbeat_client(&mut self, target: MemberId, node: &MemberInfo) -> PeerClient {
        self.client(target, node, true)
    }
}

/// Talks to one peer.
#[derive(Debug, Clone)]
pub struct PeerClient {
    http: PeerHttp,
    timeouts: NetworkTimeouts,
    target: MemberId,
    /// Where it was when this client was made.
    first_url: Arc<str>,
    addresses: AddressBook,
    kept_from: KeptFrom,
    /// Whether appends are single POSTs instead of a stream.
    heartbeat: bool,
}

impl PeerClient {
    /// Where the peer is now.
    fn url(&self) -> Arc<str> {
        self.addresses.0.read().get(&self.target).unwrap_or(&self.first_url).clone()
    }

    fn rpc_error(&self, error: PeerError, action: RPCTypes, timeout: Duration) -> RPCError<TypeConfig> {
        match error {
            PeerError::Timeout { .. } => {
                RPCError::Timeout(Timeout { action, id: self.http.identity().member, target: self.target, timeout })
            }
            PeerError::Broken { .. } => RPCError::Network(NetworkError::new(&error)),
            // A peer that refuses or talks nonsense is left alone for a while, like one that is away.
            PeerError::Connect { .. }
            | PeerError::Status { .. }
            | PeerError::Fenced { .. }
            | PeerError::Malformed { .. } => RPCError::Unreachable(Unreachable::new(&error)),
        }
    }

    async fn ask_vote(
        &self,
        path: &str,
        request: VoteRequest<TypeConfig>,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let timeout = self.timeouts.control;
        let message = wire::VoteMessage::from_raft(&request);
        let answer = self.http.post_json::<wire::VoteAnswer>(self.target, &self.url(), path, &message, timeout).await;
        Ok(answer.map_err(|e| self.rpc_error(e, RPCTypes::Vote, timeout))?.into_raft())
    }

    async fn append_once(
        &self,
        request: AppendEntriesRequest<TypeConfig>,
        timeout: Duration,
    ) -> Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>> {
        let mut out = Vec::with_capacity(128);
        wire::put_append(&mut out, &request);
        let answer = self.http.post(self.target, &self.url(), path::APPEND, out, timeout).await;
        let answer = answer.map_err(|e| self.rpc_error(e, RPCTypes::AppendEntries, timeout))?;
        let frame = wire::take_frame(&mut BytesMut::from(answer));
        match frame.map(|frame| frame.map(wire::read_append_answer)) {
            Ok(Some(Ok(answer))) => Ok(answer),
            other => Err(self.rpc_error(
                PeerError::Malformed { url: self.url().to_string(), detail: format!("{other:?}") },
                RPCTypes::AppendEntries,
                timeout,
            )),
        }
    }
}

impl NetBackoff<TypeConfig> for PeerClient {
    fn backoff(&self) -> Option<Backoff> {
        let delays = std::iter::successors(Some(BACKOFF_FIRST), |d| Some((*d * 2).min(BACKOFF_LAST)));
        Some(Backoff::new(delays))
    }
}

impl NetVote<TypeConfig> for PeerClient {
    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(path::VOTE, rpc).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(path::PRE_VOTE, rpc).await
    }
}

type Answers<'s> = BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>;

impl NetStreamAppend<TypeConfig> for PeerClient {
    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<Answers<'s>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            // The first request is awaited before dialling: openraft's delay after a failure sits in front of it.
            let Some(first) = input.next().await else {
                return Ok(Box::pin(futures_util::stream::empty()) as Answers<'s>);
            };
            if self.heartbeat {
                let answer = self.append_once(first, option.hard_ttl()).await?;
                return Ok(Box::pin(futures_util::stream::iter([Ok(answer)])) as Answers<'s>);
            }
            if self.kept_from.is_beyond(first.prev_log_id) {
                return Err(RPCError::Unreachable(Unreachable::new(&GivenUp)));
            }
            let timeout = self.timeouts.append_idle;
            let url = self.url();
            let dialled =
                self.http.upgrade(self.target, &url, path::APPEND_STREAM, append_stream::PROTOCOL, timeout).await;
            let io = dialled.map_err(|e| self.rpc_error(e, RPCTypes::AppendEntries, timeout))?;
            tracing::debug!(peer = %url, "append stream opened");
            let (target, kept_from) = (self.target, self.kept_from.clone());
            let answers = append_stream::send(first, input, io, timeout).map(move |answer| match answer {
                Ok(Ok(matched)) if kept_from.is_beyond(matched) => {
                    tracing::info!(peer = %url, "the peer lags beyond what the log keeps; it gets a snapshot");
                    Err(RPCError::Network(NetworkError::new(&GivenUp)))
                }
                Ok(answer) => Ok(answer),
                Err(e) => {
                    tracing::debug!(peer = %url, target, error = %e, "append stream ended");
                    Err(RPCError::Network(NetworkError::new(&e)))
                }
            });
            Ok(Box::pin(answers) as Answers<'s>)
        })
    }
}

impl NetTransferLeader<TypeConfig> for PeerClient {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let timeout = self.timeouts.control;
        let message = wire::TransferMessage {
            from_leader: from_raft_vote(request.from_leader()),
            to: *request.to_node_id(),
            last_log_id: request.last_log_id().map(from_raft_log_id),
        };
        let answer = self.http.post_json(self.target, &self.url(), path::TRANSFER, &message, timeout).await;
        Ok(match answer.map_err(|e| self.rpc_error(e, RPCTypes::TransferLeader, timeout))? {
            wire::TransferAnswer::Accepted => Ok(()),
            wire::TransferAnswer::VoteChanged { actual } => {
                Err(TransferLeaderError::VoteChanged { expected: *request.from_leader(), actual: to_raft_vote(actual) })
            }
            wire::TransferAnswer::LogNotFlushed { actual } => Err(TransferLeaderError::LogNotFlushed {
                expected: request.last_log_id().cloned(),
                actual: actual.map(to_raft_log_id),
            }),
        })
    }
}

impl NetSnapshot<TypeConfig> for PeerClient {
    type SnapshotData = SnapshotContent;

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: openraft::alias::SnapshotOf<TypeConfig, SnapshotContent>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let SnapshotContent::Outgoing(mut reader) = snapshot.snapshot else {
            return Err(NetworkError::from_string("a received snapshot cannot be sent on").into());
        };
        let membership = encode_membership(snapshot.meta.last_membership.membership());
        let header = wire::SnapshotHeader {
            vote: from_raft_vote(&vote),
            last_log_id: snapshot.meta.last_log_id.as_ref().map(from_raft_log_id),
            membership_log_id: snapshot.meta.last_membership.log_id().as_ref().map(from_raft_log_id),
            membership: serde_json::from_slice(&membership).expect("a membership is stored as JSON"),
        };
        let json = serde_json::to_vec(&header).expect("messages between members always serialise");
        let mut head = u32::try_from(json.len()).expect("a membership is small").to_le_bytes().to_vec();
        head.extend_from_slice(&json);

        // The reader works on a thread of its own; the channel's bound is what keeps it from running ahead of the peer.
        // A peer that takes nothing for too long ends the transfer.
        let (chunks, mut rx) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(2);
        tokio::task::spawn_blocking(move || {
            let mut next = Some(Ok(Bytes::from(head)));
            while let Some(chunk) = next {
                if chunks.blocking_send(chunk).is_err() {
                    return;
                }
                next = reader.next_chunk().map_err(std::io::Error::other).transpose();
            }
        });
        let progress = Arc::new(tokio::sync::Notify::new());
        let all_sent = Arc::new(AtomicBool::new(false));
        let (on_chunk, on_end) = (progress.clone(), all_sent.clone());
        let body = futures_util::stream::poll_fn(move |cx| {
            let polled = rx.poll_recv(cx);
            if let Poll::Ready(chunk) = &polled {
                on_end.store(chunk.is_none(), Ordering::Relaxed);
                on_chunk.notify_one();
            }
            polled
        });
        let url = self.url();
        let send = self.http.post(
            self.target,
            &url,
            path::SNAPSHOT,
            reqwest::Body::wrap_stream(body),
            // The whole transfer has no deadline: the stall watch below ends it when nothing moves.
            Duration::from_secs(24 * 3600),
        );
        let idle = self.timeouts.snapshot_idle;
        // Once all is sent the peer installs it, which takes as long as it takes: its death closes the connection.
        let stalled = async {
            while tokio::time::timeout(idle, progress.notified()).await.is_ok() || all_sent.load(Ordering::Relaxed) {}
        };
        let cancel: Pin<&mut _> = std::pin::pin!(cancel);
        let answer = tokio::select! {
            answer = send => answer,
            closed = cancel => return Err(closed.into()),
            () = stalled => Err(PeerError::Timeout { url: url.to_string() }),
        };
        let answer: Bytes = answer.map_err(|e| self.rpc_error(e, RPCTypes::InstallSnapshot, idle))?;
        let answer: wire::SnapshotAnswer =
            serde_json::from_slice(&answer).map_err(|e| NetworkError::<TypeConfig>::new(&e))?;
        Ok(SnapshotResponse::new(to_raft_vote(answer.vote)))
    }
}
