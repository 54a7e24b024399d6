//! openraft's network: what this member, as leader or candidate, asks of one peer.
//!
//! Appends go through one pipelined stream a peer ([`super::append_stream`]); heartbeats, votes, transfers and copies
//! are POSTs of their own, so that none of them waits behind a full pipe. An unreachable or refusing peer is retried
//! with a growing delay.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::{Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, Timeout, Unreachable};
use openraft::network::{Backoff, NetBackoff, NetStreamAppend, NetTransferLeader, NetVote, RPCOption, RPCTypes};
use openraft::raft::{
    AppendEntriesRequest, StreamAppendResult, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory};
use parking_lot::RwLock;
use thiserror::Error;

use super::append_stream::{self, Search, Sought, Tip};
use super::copy::Copies;
use super::link::{Encoder, Link, Links};
use super::peer_http::{PeerError, PeerHttp};
use super::types::{MemberInfo, RaftLogId, TypeConfig, from_raft_log_id, from_raft_vote, to_raft_log_id, to_raft_vote};
use super::wire;
use crate::model::{LogId, MemberId, Vote};
use crate::wal::Wal;

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
    /// Where a member stands that is to be sent a copy.
    pub const COPY_POSITION: &str = "/peer/v1/copy-position";
    /// A copy of the history, whole or in part; Raft's snapshot.
    pub const SNAPSHOT: &str = "/peer/v1/snapshot";
}

/// The tip from before a lead is looked for so far back.
const TIP_WITHIN_ENTRIES: usize = 1024;
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
    /// A copy that makes no progress for so long is given up.
    pub snapshot_idle: Duration,
}

/// Where the members are now. openraft keeps the client of a peer for as long as a leader leads, also when the
/// membership says that the peer has moved; so a client asks here before every dial.
///
/// An address comes from the membership, or from the member itself when it was met at another one: when all members have
/// moved at once nobody can lead, and so nobody can change the membership, before some have met. Only members of the
/// membership are dialled, and the fence looks at every message whatever the address.
#[derive(Debug, Clone, Default)]
pub struct AddressBook(Arc<RwLock<BTreeMap<MemberId, Place>>>);

#[derive(Debug)]
struct Place {
    /// As the membership has it.
    known: Arc<str>,
    /// As the member has told, since the membership changed last.
    heard: Option<Arc<str>>,
}

impl AddressBook {
    /// Takes the addresses of a membership in place of the ones before. What was heard of a member holds on until the
    /// membership says something new of it.
    pub fn set<'a>(&self, members: impl Iterator<Item = (&'a MemberId, &'a MemberInfo)>) {
        let mut places = self.0.write();
        let mut before = std::mem::take(&mut *places);
        places.extend(members.map(|(id, info)| match before.remove(id) {
            Some(place) if *place.known == info.peer_url => (*id, place),
            _ => (*id, Place { known: Arc::from(info.peer_url.as_str()), heard: None }),
        }));
    }

    /// A member has told where it is. Says whether that was news of a member.
    pub fn hear(&self, id: MemberId, url: &str) -> bool {
        match self.0.write().get_mut(&id) {
            Some(place) if **place.heard.as_ref().unwrap_or(&place.known) != *url => {
                place.heard = Some(Arc::from(url));
                true
            }
            _ => false,
        }
    }

    /// Where a member is now; `None` when it is not in the membership.
    pub fn get(&self, id: MemberId) -> Option<Arc<str>> {
        self.0.read().get(&id).map(|place| place.heard.as_ref().unwrap_or(&place.known).clone())
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

/// The members that are sent nothing, because somebody said so. Heartbeats go on.
#[derive(Debug, Clone, Default)]
pub struct Suspensions(Arc<RwLock<BTreeSet<MemberId>>>);

impl Suspensions {
    /// These and no others.
    pub fn set(&self, members: BTreeSet<MemberId>) {
        if *self.0.read() != members {
            *self.0.write() = members;
        }
    }

    /// Whether a member is one of them.
    pub fn contains(&self, member: MemberId) -> bool {
        self.0.read().contains(&member)
    }
}

/// What a client says that sends nothing to a member because of that.
#[derive(Debug, Error)]
#[error("the member is suspended")]
pub(super) struct Suspended;

/// What decides whether and where a peer is dialled.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// Where the members are.
    pub addresses: AddressBook,
    /// What is still kept for those that lag.
    pub kept_from: KeptFrom,
    /// Who is sent nothing.
    pub suspensions: Suspensions,
}

/// What a client says when it ends the stream of a peer that lags too far.
#[derive(Debug, Error)]
#[error("the peer needs entries that the log does not keep any more: it gets a copy")]
struct GivenUp;

/// Makes a [`PeerClient`] for each peer.
#[derive(Clone)]
pub struct Network {
    http: PeerHttp,
    timeouts: NetworkTimeouts,
    reach: Reach,
    copies: Copies,
    links: Links,
    wal: Wal,
}

impl Network {
    /// A network that dials through `http`, whom and where `reach` says, copies as `copies` says, and treats connections
    /// as `links` says.
    /// What a peer is likely to have it finds in `wal`.
    pub fn new(
        http: PeerHttp,
        timeouts: NetworkTimeouts,
        reach: Reach,
        copies: Copies,
        links: Links,
        wal: Wal,
    ) -> Network {
        Network { http, timeouts, reach, copies, links, wal }
    }

    fn client(&self, target: MemberId, info: &MemberInfo, heartbeat: bool) -> PeerClient {
        PeerClient {
            http: self.http.clone(),
            timeouts: self.timeouts,
            target,
            first_url: Arc::from(info.peer_url.as_str()),
            reach: self.reach.clone(),
            copies: self.copies.clone(),
            link: self.links.to(target, &info.site),
            search: Search::default(),
            wal: self.wal.clone(),
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
#[derive(Clone)]
pub struct PeerClient {
    pub(super) http: PeerHttp,
    pub(super) timeouts: NetworkTimeouts,
    pub(super) target: MemberId,
    /// Where it was when this client was made.
    first_url: Arc<str>,
    reach: Reach,
    pub(super) copies: Copies,
    pub(super) link: Arc<Link>,
    search: Search,
    wal: Wal,
    /// Whether appends are single POSTs instead of a stream.
    heartbeat: bool,
}

impl PeerClient {
    /// Where the peer is now.
    pub(super) fn url(&self) -> Arc<str> {
        self.reach.addresses.get(self.target).unwrap_or_else(|| self.first_url.clone())
    }

    /// Whether the peer is sent nothing.
    pub(super) fn is_suspended(&self) -> bool {
        self.reach.suspensions.contains(self.target)
    }

    pub(super) fn rpc_error(&self, error: PeerError, action: RPCTypes, timeout: Duration) -> RPCError<TypeConfig> {
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

impl PeerClient {
    /// The last entry of this member's log from before its lead; none when it is not close to the end.
    fn tip_before(&self, lead: Vote) -> Tip {
        let last = self.wal.state().last?.index;
        let near = (0..=last).rev().take(TIP_WITHIN_ENTRIES);
        // Unreadable is not found here; whoever has to read it will say so.
        let ids = near.map_while(|index| self.wal.log_id_at(index).ok().flatten());
        tip_before(lead, ids).map(to_raft_log_id)
    }
}

/// The last entry from before a lead, among the ids of a log from its end on. None unless the last of all is the leader's
/// own: then nothing from before can be taken away any more that a peer was asked for.
fn tip_before(lead: Vote, mut ids: impl Iterator<Item = LogId>) -> Option<LogId> {
    ids.next().filter(|last| (last.term, last.leader) == (lead.term, lead.member))?;
    ids.find(|id| id.term < lead.term)
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
            if self.is_suspended() {
                return Err(RPCError::Unreachable(Unreachable::new(&Suspended)));
            }
            if self.reach.kept_from.is_beyond(first.prev_log_id) {
                return Err(RPCError::Unreachable(Unreachable::new(&GivenUp)));
            }
            let tip = self.tip_before(from_raft_vote(&first.vote));
            if let Some(answer) = append_stream::answer_by_tip(&self.search, &first, tip) {
                return Ok(Box::pin(futures_util::stream::iter([Ok(answer)])) as Answers<'s>);
            }
            let timeout = self.timeouts.append_idle;
            let url = self.url();
            let offer = self.link.offers_compression();
            let dialled = self
                .http
                .upgrade(self.target, &url, path::APPEND_STREAM, append_stream::PROTOCOL, offer, timeout)
                .await;
            let (io, compressed) = dialled.map_err(|e| self.rpc_error(e, RPCTypes::AppendEntries, timeout))?;
            let encoder = compressed.then(Encoder::new).transpose();
            let encoder = encoder.map_err(|e| RPCError::Unreachable(Unreachable::new(&e)))?;
            tracing::debug!(peer = %url, compressed, "append stream opened");
            let (target, kept_from) = (self.target, self.reach.kept_from.clone());
            let suspensions = self.reach.suspensions.clone();
            // Ends the stream cleanly: what is under way is answered, the next attempt is refused above.
            let input = input.take_while(move |_| std::future::ready(!suspensions.contains(target)));
            let (link, search) = (self.link.clone(), self.search.clone());
            let answers = append_stream::send(first, input, io, timeout, link, encoder, Sought { search, tip });
            let answers = answers.map(move |answer| match answer {
                Ok(Ok(matched)) if kept_from.is_beyond(matched) => {
                    tracing::info!(peer = %url, "the peer lags beyond what the log keeps; it gets a copy");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MemberRole;

    fn at(url: &str) -> MemberInfo {
        let text = || url.to_string();
        MemberInfo { name: text(), site: text(), role: MemberRole::Voter, client_url: text(), peer_url: text() }
    }

    #[test]
    fn the_tip_is_the_last_entry_from_before_a_lead_that_has_begun() {
        let tip = |lead: (u64, MemberId), log: &[(u64, MemberId)]| {
            let ids = log.iter().enumerate().map(|(index, (term, leader))| (*term, *leader, index as u64));
            let ids = ids.map(|(term, leader, index)| LogId { term, leader, index });
            let lead = Vote { term: lead.0, member: lead.1, committed: true };
            tip_before(lead, ids.rev()).map(|id| id.index)
        };
        let log = [(1, 1), (1, 1), (3, 2), (3, 2), (5, 1), (5, 1)];
        assert_eq!(tip((5, 1), &log), Some(3));
        assert_eq!(tip((5, 2), &log), None, "another leads in that term");
        assert_eq!(tip((6, 1), &log), None, "nothing of this lead is in the log yet");
        assert_eq!(tip((1, 1), &log[..2]), None, "nothing is from before");
        assert_eq!(tip((5, 1), &[]), None);
    }

    #[test]
    fn what_a_member_tells_holds_until_the_membership_says_something_new() {
        let book = AddressBook::default();
        let set = |members: &[(MemberId, MemberInfo)]| book.set(members.iter().map(|(id, info)| (id, info)));
        let is = |id| book.get(id).map(|url| url.to_string());
        set(&[(1, at("a")), (2, at("b"))]);
        assert!(!book.hear(3, "x"), "nobody outside the membership is dialled");
        assert!(!book.hear(1, "a") && book.hear(1, "new") && !book.hear(1, "new"));
        set(&[(1, at("a")), (2, at("b"))]);
        assert_eq!((is(1), is(2), is(3)), (Some("new".into()), Some("b".into()), None));
        set(&[(1, at("newer")), (2, at("b"))]);
        assert_eq!(is(1).as_deref(), Some("newer"));
        assert!(book.hear(2, "c"));
        set(&[(1, at("newer"))]);
        assert_eq!(is(2), None);
    }
}
