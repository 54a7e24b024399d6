//! Handing leadership over, asked by a person or done before the leader stops.
//!
//! openraft does not check the target, and a transfer to nobody blocks writes, so everything is checked first: a voter,
//! not this member, answering, and close to the tip.
//!
//! Then nothing more is proposed, what was proposed gets its answers, and the target gets the last entry, before it is told
//! to take over: so no write is lost between two leaders with its fate unknown. Writes that come meanwhile wait in the
//! queue, and go to the new leader as soon as it is known; those that others forwarded are refused unread, and whoever
//! forwarded them sends them to the new leader ([`super::patience`]). What clients see is a pause of a few round trips.

use std::time::{Duration, Instant};

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;

use super::{Inner, NodeError, RequestContext, peer_path};
use crate::api;
use crate::crash_points::reach;
use crate::model::{MemberId, MemberRole};
use crate::raft::peer_http::PeerError;

/// A target may lack so many entries; it gets them before it is told to take over.
const MAX_BEHIND_ENTRIES: u64 = 10_000;
/// Between two looks whether the new leader leads.
const POLL: Duration = Duration::from_millis(2);
/// So many election timeouts writes may be held until nothing is under way any more and the target is at the tip.
const HOLD_ELECTION_TIMEOUTS: u32 = 2;
/// So many election timeouts a transfer may take: by then the target leads, or another does, or it came to nothing.
const PASS_ELECTION_TIMEOUTS: u32 = 4;

/// Asks the leader to hand over.
#[derive(Debug, Serialize, Deserialize)]
pub struct TransferRequest {
    /// The member that shall lead; none for the best.
    pub to: Option<String>,
}

/// The leader's answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct TransferReply {
    /// The new leader, or why there is none.
    pub result: Result<api::LeaderReply, NodeError>,
}

impl Inner {
    /// Hands leadership to the member named `to`, or to the best follower; any member takes the request.
    pub async fn transfer_leader(
        &self,
        ctx: &RequestContext,
        to: Option<String>,
        forwarded: bool,
    ) -> Result<api::LeaderReply, NodeError> {
        let view = self.view();
        match &view.leader {
            None => Err(self.no_leader()),
            Some(leader) if leader.id == self.id => self.hand_over(ctx, to).await,
            Some(_) if forwarded => Err(self.no_leader()),
            Some(leader) => {
                let request = TransferRequest { to };
                let (id, url) = (leader.id, leader.peer_url.clone());
                let asked = self.http.post_json::<TransferReply>(
                    id,
                    &url,
                    peer_path::HAND_OVER,
                    &request,
                    ctx.remaining() + POLL,
                );
                match asked.await {
                    Ok(reply) => reply.result,
                    Err(e @ (PeerError::Connect { .. } | PeerError::Status { by_member: true, .. })) => {
                        Err(NodeError::LeaderUnreachable { url: url.to_string(), detail: e.to_string() })
                    }
                    // The leader may have begun: it is not known who leads next.
                    Err(_) => {
                        let name = request.to.unwrap_or_else(|| "another member".to_string());
                        Err(NodeError::TransferTimedOut { name })
                    }
                }
            }
        }
    }

    async fn hand_over(&self, ctx: &RequestContext, to: Option<String>) -> Result<api::LeaderReply, NodeError> {
        let target = match to {
            Some(name) => {
                let view = self.view();
                let member = view.members.iter().find(|m| m.name == name);
                let Some(member) = member else { return Err(NodeError::UnknownMember { name }) };
                if member.id == self.id {
                    return Ok(api::LeaderReply { leader: name, term: view.term });
                }
                if member.role != MemberRole::Voter || member.joining {
                    return Err(NodeError::NotAVoter { name });
                }
                (member.id, name)
            }
            None => self.best_follower().ok_or_else(|| NodeError::NotAtTip {
                name: "no voter".into(),
                detail: "no other voter answers and is close to the tip".into(),
            })?,
        };
        let (id, name) = target;
        if let Some(detail) = self.unfit(id) {
            return Err(NodeError::NotAtTip { name, detail });
        }
        let (held, _) = self.hold_writes(ctx, id, &name).await?;
        tracing::info!(to = name, "handing leadership over");
        self.pass_lead(ctx, id, name, held).await
    }

    /// Proposes nothing any more until what is given back is dropped. All that was proposed is answered then, since when
    /// is said, and `target` has the last entry. Whoever does not lead (any more) holds nothing: its queue goes to the leader.
    pub(super) async fn hold_writes(
        &self,
        ctx: &RequestContext,
        target: MemberId,
        name: &str,
    ) -> Result<(OwnedSemaphorePermit, Instant), NodeError> {
        let limit = self.hold_limit().min(ctx.remaining());
        let late = Instant::now() + limit;
        let not_yet = |detail: String| NodeError::NotAtTip { name: name.to_owned(), detail };
        let Some(held) = self.proposing.hold(limit).await else {
            return Err(not_yet("what was proposed before is not applied yet".to_owned()));
        };
        let since = Instant::now();
        let mut metrics = self.raft.metrics();
        loop {
            let lacks = {
                let metrics = metrics.borrow_watched();
                if metrics.state != ServerState::Leader {
                    return Err(self.no_leader());
                }
                let has = metrics.replication.as_ref().and_then(|map| map.get(&target).cloned().flatten());
                metrics.last_log_index.unwrap_or(0).saturating_sub(has.map_or(0, |at| at.index))
            };
            if lacks == 0 {
                return Ok((held, since));
            }
            let changed = tokio::time::timeout_at(late.into(), metrics.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                return Err(not_yet(format!("it lacks {lacks} entries although no more came")));
            }
        }
    }

    /// So long writes are held at most before the target is told to take over.
    pub(super) fn hold_limit(&self) -> Duration {
        self.election_max * HOLD_ELECTION_TIMEOUTS
    }

    /// Tells a voter at the tip to take over, and waits until it, or anybody else, leads. Whatever was held goes on then.
    pub(super) async fn pass_lead(
        &self,
        ctx: &RequestContext,
        id: MemberId,
        name: String,
        held: OwnedSemaphorePermit,
    ) -> Result<api::LeaderReply, NodeError> {
        if self.raft.metrics().borrow_watched().state != ServerState::Leader {
            return Err(self.no_leader());
        }
        let late = ctx.deadline.min(Instant::now() + self.election_max * PASS_ELECTION_TIMEOUTS);
        let triggered = self.raft.trigger().transfer_leader(id).await;
        triggered.map_err(|e| NodeError::StorageFailed { detail: e.to_string() })?;
        reach("switchover-passing-lead").await;
        let moved = loop {
            let view = self.view();
            match &view.leader {
                Some(leader) if leader.id == id => break Ok(api::LeaderReply { leader: name, term: view.term }),
                // Another was elected: the transfer came to nothing, and will not come to anything any more.
                Some(leader) if leader.id != self.id => break Err(NodeError::TransferTimedOut { name }),
                _ if Instant::now() >= late => break Err(NodeError::TransferTimedOut { name }),
                _ => tokio::time::sleep(POLL).await,
            }
        };
        drop(held);
        moved
    }

    /// The voter that is closest to the tip among those that answer.
    fn best_follower(&self) -> Option<(MemberId, String)> {
        let view = self.view();
        let voters = view.members.iter().filter(|m| m.role == MemberRole::Voter && !m.joining && m.id != self.id);
        let fit = voters.filter(|m| self.unfit(m.id).is_none());
        let best = fit.max_by_key(|m| self.matched_index(m.id));
        best.map(|m| (m.id, m.name.clone()))
    }

    /// Why a member can neither take over nor begin to vote now; `None` when it can.
    pub(super) fn unfit(&self, id: MemberId) -> Option<String> {
        if !self.answers(id) {
            return Some("it does not answer".to_string());
        }
        if self.says_unverified(id) {
            return Some("it has come back and is not verified yet".to_string());
        }
        let metrics = self.raft.metrics().borrow_watched().clone();
        let last = metrics.last_log_index.unwrap_or(0);
        let behind = last.saturating_sub(self.matched_index(id).unwrap_or(0));
        (behind > MAX_BEHIND_ENTRIES).then(|| format!("it lacks {behind} entries"))
    }

    /// The last entry that a member is known to hold, when this one leads.
    pub(super) fn matched_index(&self, id: MemberId) -> Option<u64> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        metrics.replication.as_ref().and_then(|map| map.get(&id).cloned().flatten()).map(|at| at.index)
    }
}
