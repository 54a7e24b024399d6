//! Handing leadership over, asked by a person or done before the leader stops.
//!
//! openraft does not check the target, and a transfer to nobody blocks writes, so everything is checked first: a voter,
//! not this member, answering, and close to the tip. Then the new leader is awaited.

use std::time::{Duration, Instant};

use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver;
use serde::{Deserialize, Serialize};

use super::{Inner, NodeError, RequestContext, peer_path};
use crate::api;
use crate::model::{MemberId, MemberRole};
use crate::raft::peer_http::PeerError;

/// A target may lack so many entries; it gets them before it is told to take over.
const MAX_BEHIND_ENTRIES: u64 = 10_000;
/// Between two looks whether the new leader leads.
const POLL: Duration = Duration::from_millis(5);

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
        tracing::info!(to = name, "handing leadership over");
        let triggered = self.raft.trigger().transfer_leader(id).await;
        triggered.map_err(|e| NodeError::StorageFailed { detail: e.to_string() })?;
        loop {
            let view = self.view();
            match &view.leader {
                Some(leader) if leader.id == id => return Ok(api::LeaderReply { leader: name, term: view.term }),
                _ if Instant::now() >= ctx.deadline => return Err(NodeError::TransferTimedOut { name }),
                _ => tokio::time::sleep(POLL).await,
            }
        }
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
        let metrics = self.raft.metrics().borrow_watched().clone();
        let heard = metrics.heartbeat.as_ref().and_then(|map| map.get(&id).cloned().flatten());
        let silent = heard.map(|at| at.elapsed());
        if silent.is_none_or(|silent| silent > self.election_max * 2) {
            return Some("it does not answer".to_string());
        }
        let last = metrics.last_log_index.unwrap_or(0);
        let behind = last.saturating_sub(self.matched_index(id).unwrap_or(0));
        (behind > MAX_BEHIND_ENTRIES).then(|| format!("it lacks {behind} entries"))
    }

    fn matched_index(&self, id: MemberId) -> Option<u64> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        metrics.replication.as_ref().and_then(|map| map.get(&id).cloned().flatten()).map(|at| at.index)
    }
}
