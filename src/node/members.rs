//! Members that come and go, as people ask for it: invite, look, change the role, remove.
//!
//! Any member takes the request and asks the leader, one hop. On the leader every change of the membership goes through
//! one lock ([`Inner::change`]), so that checks and change are one step; what another leader does meanwhile is refused by
//! Raft itself.
//!
//! Rules:
//! - A change that leaves fewer answering voters than a quorum of what remains is refused: it could not be committed, and
//!   until it is nothing else can. No force replaces a quorum. The last voter can never go. Who answers is measured
//!   ([`super::contacts`]), not read from the membership.
//! - A voter that answers and whose going would leave exactly a quorum beside others that do not answer goes only by
//!   force: that can be committed, but the next failure would stop all writes.
//! - A voter that goes, or becomes a mirror, does so in a joint change of Raft. The entry that begins it says how it ends:
//!   whoever leaves the voters with the role of a voter leaves the cluster, with the role of a mirror it stays. So any
//!   later leader can finish it.
//! - A leader that is itself the one hands over first.
//!
//! What survives a crash: what is in the log. Proven by `tests/cluster/members.rs` and `node/tests`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use serde::{Deserialize, Serialize};

use super::background::PROMOTE_BEHIND_ENTRIES;
use super::dr::switchover::Ask;
use super::events::NewEvent;
use super::invited::Invitation;
use super::{Inner, NodeError, RequestContext, peer_path};
use crate::api::{
    DrReply, Event, InviteRequest, Member, MemberReply, Progress, ProgressState, RemovedReply, ReplicationReply,
    RoleChange, SuspendReply, SwitchoverReply,
};
use crate::model::{MemberId, MemberRole, format_member_id};
use crate::raft::peer_http::PeerError;
use crate::raft::types::{MemberInfo, RaftLogId};

/// A voter whose round trip to the leader is longer makes every write slow.
const FAR_AWAY: Duration = Duration::from_millis(50);
/// Between two attempts while Raft is busy with another change of the membership.
const RETRY: Duration = Duration::from_millis(20);

/// What is asked of the leader.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MembersRequest {
    /// To expect a member.
    Invite(InviteRequest),
    /// To say how far a member is.
    Show {
        /// Its name.
        name: String,
    },
    /// To make a voter a mirror, or a mirror a voter.
    Change {
        /// Its name.
        name: String,
        /// What it shall be.
        change: RoleChange,
    },
    /// To take a member out.
    Remove {
        /// Its name.
        name: String,
        /// Also when no other voter could fail afterwards.
        force: bool,
    },
    /// To send a mirror nothing any more, or everything again.
    Suspend {
        /// Its name.
        name: String,
        /// Which of the two.
        suspended: bool,
    },
    /// To say how every member follows.
    Replication,
    /// To say how the cluster stands against the loss of its site.
    Dr,
    /// To move the primary site, or to say how that stands.
    Switchover(Ask),
    /// To write events that an earlier leader has seen.
    TakeOverEvents(Vec<Event>),
}

/// What was done, or found.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MembersAnswer {
    /// A member as it stands.
    Member(Box<MemberReply>),
    /// It is gone.
    Removed(RemovedReply),
    /// It is suspended or not.
    Suspended(SuspendReply),
    /// How every member follows.
    Replication(Box<ReplicationReply>),
    /// How the cluster stands.
    Dr(Box<DrReply>),
    /// How the move of the primary site stands.
    Switchover(Box<SwitchoverReply>),
    /// The events are there.
    TookOverEvents,
}

/// The leader's answer to another member.
#[derive(Debug, Serialize, Deserialize)]
pub struct MembersMessage {
    /// What was done, or why it was not.
    pub result: Result<MembersAnswer, NodeError>,
}

impl MembersRequest {
    fn only_looks(&self) -> bool {
        use MembersRequest::{Dr, Replication, Show, Switchover};
        matches!(self, Show { .. } | Replication | Dr | Switchover(Ask::Show))
    }
}

impl Inner {
    /// Does what is asked when this member leads, else asks the leader. Between two leaders it waits for the next as a write
    /// does; who only looks is told at once that there is none.
    pub(super) async fn ask_members(
        &self,
        ctx: &RequestContext,
        request: MembersRequest,
        forwarded: bool,
    ) -> Result<MembersAnswer, NodeError> {
        let first = Instant::now();
        let waits = !forwarded && !request.only_looks();
        loop {
            if waits && self.is_founded() {
                // Too late is told below.
                let _ = tokio::time::timeout_at(ctx.deadline.into(), self.wait_for_leader()).await;
            }
            // Refused so, it has changed nothing.
            let answer = self.ask_members_once(ctx, request.clone(), forwarded).await;
            let nobody_led = matches!(answer, Err(NodeError::NoLeader { .. }));
            if !nobody_led || !waits || ctx.remaining().is_zero() || !self.try_again(first).await {
                return answer;
            }
        }
    }

    async fn ask_members_once(
        &self,
        ctx: &RequestContext,
        request: MembersRequest,
        forwarded: bool,
    ) -> Result<MembersAnswer, NodeError> {
        if self.is_stopping() {
            return Err(NodeError::Stopping);
        }
        if !self.is_founded() {
            return Err(NodeError::NotJoined);
        }
        match &self.view().leader {
            None => Err(self.no_leader()),
            Some(leader) if leader.id == self.id => self.lead_members(ctx, request).await,
            Some(_) if forwarded => Err(self.no_leader()),
            Some(leader) => self.forward_members(ctx, request, leader.id, &leader.peer_url).await,
        }
    }

    async fn forward_members(
        &self,
        ctx: &RequestContext,
        request: MembersRequest,
        leader: MemberId,
        url: &str,
    ) -> Result<MembersAnswer, NodeError> {
        let url = self.addresses.get(leader).unwrap_or_else(|| url.into());
        // A little longer than the leader tries, so that it is the leader who says what became of it.
        let limit = ctx.remaining() + Duration::from_millis(200);
        let asked = self.http.post_json::<MembersMessage>(leader, &url, peer_path::MEMBERS, &request, limit).await;
        match asked {
            Ok(message) => message.result,
            Err(e @ (PeerError::Connect { .. } | PeerError::Status { by_member: true, .. })) => {
                Err(NodeError::LeaderUnreachable { url: url.to_string(), detail: e.to_string() })
            }
            Err(e) if request.only_looks() => {
                Err(NodeError::LeaderUnreachable { url: url.to_string(), detail: e.to_string() })
            }
            // The leader may have begun.
            Err(e) => Err(NodeError::Unknown { detail: e.to_string() }),
        }
    }

    async fn lead_members(&self, ctx: &RequestContext, request: MembersRequest) -> Result<MembersAnswer, NodeError> {
        match request {
            MembersRequest::Show { name } => self.member_reply(&name).map(|reply| MembersAnswer::Member(reply.into())),
            MembersRequest::Replication => Ok(MembersAnswer::Replication(self.replication().into())),
            MembersRequest::Dr => Ok(MembersAnswer::Dr(self.dr().into())),
            MembersRequest::Switchover(ask) => {
                self.lead_switchover(ask).await.map(|reply| MembersAnswer::Switchover(reply.into()))
            }
            MembersRequest::TakeOverEvents(events) => {
                self.take_over_events(events).await;
                Ok(MembersAnswer::TookOverEvents)
            }
            MembersRequest::Suspend { name, suspended } => {
                self.refuse_amid_switchover().await?;
                self.suspend(&name, suspended).await.map(MembersAnswer::Suspended)
            }
            MembersRequest::Invite(asked) => {
                let _one_at_a_time = self.membership_change.lock().await;
                self.refuse_amid_switchover().await?;
                if self.member_named(&asked.name).is_some() {
                    return Err(NodeError::MemberExists { name: asked.name });
                }
                let InviteRequest { name, peer_url, role, site } = asked;
                tracing::info!(name, "member invited");
                self.events.record("member-invited", name.clone());
                self.invite(&Invitation { name: name.clone(), role, site, peer_url }).await?;
                self.member_reply(&name).map(|reply| MembersAnswer::Member(reply.into()))
            }
            MembersRequest::Change { ref name, ref change } => {
                let lock = self.membership_change.lock().await;
                self.refuse_amid_switchover().await?;
                let Some((id, info)) = self.member_named(name) else {
                    return Err(NodeError::UnknownMember { name: name.clone() });
                };
                if info.role != change.role {
                    if id == self.id {
                        self.check_remaining(id, change.force).await?;
                        drop(lock);
                        return self.hand_over_and_ask(ctx, request).await;
                    }
                    self.change_role(id, info, change).await?;
                }
                self.member_reply(name).map(|reply| MembersAnswer::Member(reply.into()))
            }
            MembersRequest::Remove { ref name, force } => {
                let lock = self.membership_change.lock().await;
                self.refuse_amid_switchover().await?;
                let Some((id, _)) = self.member_named(name) else {
                    let forgotten = self.forget(name, force).await?.pop();
                    if forgotten.is_none() && self.invitation(name)?.is_none() {
                        return Err(NodeError::UnknownMember { name: name.clone() });
                    }
                    self.uninvite(name).await?;
                    return Ok(MembersAnswer::Removed(self.removed_reply(name, forgotten)));
                };
                if self.target_voters().contains(&id) {
                    self.check_remaining(id, force).await?;
                    if id == self.id {
                        drop(lock);
                        return self.hand_over_and_ask(ctx, request).await;
                    }
                    // Not retained: it leaves the nodes in the step in which it leaves the voters.
                    self.change(ChangeMembers::RemoveVoters([id].into()), false).await?;
                } else {
                    self.change(ChangeMembers::RemoveNodes([id].into()), true).await?;
                }
                tracing::info!(name, id = format_member_id(id), "member removed");
                let detail = format!("{name}, member {}, was removed", format_member_id(id));
                self.record_cluster_event(NewEvent::new("member-removed", detail).about(name));
                // It is gone, whatever becomes of its invitation.
                let kept = |e| NodeError::Unknown {
                    detail: format!("the member is removed, its invitation perhaps not: {e}"),
                };
                self.uninvite(name).await.map_err(kept)?;
                Ok(MembersAnswer::Removed(self.removed_reply(name, Some(id))))
            }
        }
    }

    /// Another member leads first, and then does what is asked of this one.
    async fn hand_over_and_ask(
        &self,
        ctx: &RequestContext,
        request: MembersRequest,
    ) -> Result<MembersAnswer, NodeError> {
        loop {
            // A hand-over is an attempt: on a busy machine one may come to nothing, and the leader goes on.
            let attempt = RequestContext::anonymous(ctx.trace_id, (self.election_max * 3).min(ctx.remaining()));
            // Only this one's own lead: what another leads by now it keeps.
            let moved = self.transfer_leader(&attempt, None, true).await;
            let view = self.view();
            match (&view.leader, moved) {
                (Some(leader), _) if leader.id != self.id => {
                    return self.forward_members(ctx, request, leader.id, &leader.peer_url).await;
                }
                (_, Err(NodeError::NotAtTip { detail, .. })) => {
                    let detail = format!("this member leads, and no other can take over: {detail}");
                    return Err(NodeError::QuorumAtRisk { detail });
                }
                (_, Err(e)) if !matches!(e, NodeError::TransferTimedOut { .. } | NodeError::NoLeader { .. }) => {
                    return Err(e);
                }
                _ if ctx.remaining() < self.election_max => {
                    return Err(NodeError::NotNow { detail: "leadership could not be handed over in time".into() });
                }
                // Either it came to nothing, or nobody leads for a moment.
                _ => tokio::time::sleep(RETRY).await,
            }
        }
    }

    async fn change_role(&self, id: MemberId, info: MemberInfo, change: &RoleChange) -> Result<(), NodeError> {
        let (name, before) = (info.name.clone(), info.role);
        let set = ChangeMembers::SetNodes(BTreeMap::from([(id, MemberInfo { role: change.role, ..info })]));
        if change.role == MemberRole::Mirror && self.target_voters().contains(&id) {
            self.check_remaining(id, change.force).await?;
            let remove = ChangeMembers::RemoveVoters([id].into());
            self.change(ChangeMembers::Batch(vec![set, remove]), true).await?;
        } else {
            // A mirror that shall vote is promoted when it has caught up, as a newcomer is.
            self.change(set, true).await?;
        }
        tracing::info!(name, role = %change.role, "role changed");
        let event = NewEvent::new("member-changed", format!("{name} is to be a {}", change.role));
        self.record_cluster_event(event.about(name).change(Some(before.to_string()), change.role.to_string()));
        Ok(())
    }

    /// The sets of voters: two while a joint change goes on.
    pub(super) fn voter_sets(&self) -> Vec<BTreeSet<MemberId>> {
        let membership = self.raft.server_metrics().borrow_watched().membership_config.clone();
        membership.membership().get_joint_config().clone()
    }

    /// The voters as they are, or as a change that is under way will leave them.
    pub(super) fn target_voters(&self) -> BTreeSet<MemberId> {
        let membership = self.raft.server_metrics().borrow_watched().membership_config.clone();
        membership.membership().get_joint_config().last().cloned().unwrap_or_default()
    }

    /// Refuses to take away a voter whose absence would leave no quorum of those that answer.
    /// They are asked now, and again for a while: a leader that has only begun to lead has heard of no quorum yet.
    async fn check_remaining(&self, gone: MemberId, force: bool) -> Result<(), NodeError> {
        let patience = Instant::now() + self.election_max * 2;
        loop {
            let voters = self.target_voters();
            let answering = self.who_answers(&voters).await;
            let remains = may_go(gone, &voters, &answering, force);
            // The change itself needs the quorum that there is as well.
            let present = has_quorum(voters.len(), answering.len()).and_then(|()| self.leads_with_quorum());
            let refusal = match (present, remains) {
                (Ok(()), Ok(())) => return Ok(()),
                (_, Err(detail)) => NodeError::QuorumAtRisk { detail },
                (Err(detail), Ok(())) => NodeError::NotNow { detail },
            };
            if voters.len() < 2 || Instant::now() + RETRY >= patience {
                return Err(refusal);
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Changes the membership, and finishes first what another leader has left half done. The caller holds the lock.
    pub(super) async fn change(
        &self,
        change: ChangeMembers<MemberId, MemberInfo>,
        retain: bool,
    ) -> Result<(), NodeError> {
        let deadline = Instant::now() + self.limits.request_timeout;
        self.finish_what_was_left(deadline).await?;
        self.change_once(change, retain, deadline).await
    }

    /// Ends a change of the voters that another leader has left half done, and tells who votes by it: the other one cannot.
    pub(super) async fn finish_what_was_left(&self, deadline: Instant) -> Result<(), NodeError> {
        let membership = self.raft.server_metrics().borrow_watched().membership_config.clone();
        if self.finish_joint(deadline).await?
            && let Some((last, before)) = membership.membership().get_joint_config().split_last()
        {
            tracing::info!("an unfinished change of the voters is finished");
            let new = last.iter().filter(|id| before.iter().all(|voters| !voters.contains(id)));
            new.filter_map(|id| membership.membership().get_node(id)).for_each(|info| self.record_vote(info));
        }
        Ok(())
    }

    /// Tells that a member votes now.
    pub(super) fn record_vote(&self, info: &MemberInfo) {
        let event = NewEvent::new("member-votes", format!("{} votes", info.name));
        self.record_cluster_event(event.about(&info.name));
    }

    /// Ends a joint change that was left half done; nothing to do when there is none. Whoever leaves the voters with the
    /// role of a voter was being removed.
    pub(super) async fn finish_joint(&self, deadline: Instant) -> Result<bool, NodeError> {
        let membership = self.raft.server_metrics().borrow_watched().membership_config.clone();
        let configs = membership.membership().get_joint_config();
        let Some((last, before)) = configs.split_last().filter(|(_, before)| !before.is_empty()) else {
            return Ok(false);
        };
        let leaving = before.iter().flatten().filter(|id| !last.contains(id)).copied();
        let is_voter =
            |id: &MemberId| membership.membership().get_node(id).is_some_and(|info| info.role == MemberRole::Voter);
        let removed: BTreeSet<MemberId> = leaving.filter(is_voter).collect();
        let finish = vec![ChangeMembers::AddVoterIds(BTreeSet::new()), ChangeMembers::RemoveNodes(removed)];
        self.change_once(ChangeMembers::Batch(finish), true, deadline).await?;
        Ok(true)
    }

    /// A change of the voters takes two proposals. When this member loses its lead between them the first one stands, and
    /// the next leader finishes the change: then it is not known what became of it.
    pub(super) async fn change_once(
        &self,
        change: ChangeMembers<MemberId, MemberInfo>,
        retain: bool,
        deadline: Instant,
    ) -> Result<(), NodeError> {
        let mut refused = None;
        loop {
            self.wait_membership_committed(deadline).await?;
            let (before, term) = (self.membership_id(), self.view().term);
            let changed = self.raft.change_membership(change.clone(), retain);
            let Ok(changed) = tokio::time::timeout_at(deadline.into(), changed).await else {
                return Err(NodeError::Unknown { detail: "the change of members was not committed in time".into() });
            };
            let error = match changed {
                Ok(_) => return Ok(()),
                Err(RaftError::APIError(error)) => error,
                Err(fatal @ RaftError::Fatal(_)) => {
                    return Err(NodeError::StorageFailed { detail: fatal.to_string() });
                }
            };
            // Refused only because the quorum was silent for a moment: this member still leads.
            let goes_on = match &error {
                ClientWriteError::ForwardToLeader(_) => {
                    let first = *refused.get_or_insert_with(Instant::now);
                    self.view().leads && self.view().term == term && self.try_again(first).await
                }
                _ => false,
            };
            if self.membership_id() != before {
                if goes_on && Box::pin(self.finish_joint(deadline)).await.is_ok_and(|finished| finished) {
                    return Ok(());
                }
                return Err(NodeError::Unknown { detail: format!("the change of members has begun: {error}") });
            }
            match error {
                ClientWriteError::ForwardToLeader(_) if goes_on => {}
                ClientWriteError::ForwardToLeader(_) => return Err(self.no_leader()),
                // Another change came first; it is waited for like any other.
                ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)) => {}
                ClientWriteError::ChangeMembershipError(e) => {
                    return Err(NodeError::QuorumAtRisk { detail: e.to_string() });
                }
                other => return Err(NodeError::Unknown { detail: other.to_string() }),
            }
        }
    }

    /// How far away a member is from this leader, if that is too far for a voter.
    pub(super) fn far_away(&self, id: MemberId) -> Option<Duration> {
        self.contacts.sure_round_trip(id).filter(|far| *far > FAR_AWAY)
    }

    /// The log id of the newest membership.
    fn membership_id(&self) -> Option<RaftLogId> {
        *self.raft.server_metrics().borrow_watched().membership_config.log_id()
    }

    /// Waits until the newest membership is committed: Raft begins no change before.
    pub(super) async fn wait_membership_committed(&self, deadline: Instant) -> Result<(), NodeError> {
        loop {
            {
                let metrics = self.raft.server_metrics();
                let metrics = metrics.borrow_watched();
                if metrics.membership_config.log_id() == metrics.committed_membership_config.log_id() {
                    return Ok(());
                }
            }
            if Instant::now() + RETRY >= deadline {
                return Err(NodeError::NotNow { detail: "another change of members is not committed yet".into() });
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// The member of this name. While a member that lost its disk is being replaced two have the name: the one that stays.
    pub(super) fn member_named(&self, name: &str) -> Option<(MemberId, MemberInfo)> {
        let membership = self.raft.server_metrics().borrow_watched().membership_config.clone();
        let configs = membership.membership().get_joint_config();
        let leaves = |id: &MemberId| {
            let last = configs.last().is_some_and(|last| last.contains(id));
            !last && configs.iter().any(|config| config.contains(id))
        };
        let mut named: Vec<_> = membership.nodes().filter(|(_, info)| info.name == name).collect();
        named.sort_by_key(|(id, info)| leaves(id) && info.role == MemberRole::Voter);
        named.first().map(|(id, info)| (**id, (*info).clone()))
    }

    /// A member, or what is known of one that is invited, as the leader sees it.
    fn member_reply(&self, name: &str) -> Result<MemberReply, NodeError> {
        let warnings = self.member_warnings();
        let Some((id, info)) = self.member_named(name) else {
            let Some(Invitation { name, role, site, peer_url }) = self.invitation(name)? else {
                return Err(NodeError::UnknownMember { name: name.to_string() });
            };
            let state = ProgressState::Invited;
            let progress = Progress { state, matched_index: None, last_index: None, behind_entries: None };
            return Ok(MemberReply {
                id: None,
                name,
                site,
                role,
                client_url: None,
                peer_url,
                leader: false,
                joining: false,
                progress: Some(progress),
                warnings,
            });
        };
        let joining = info.role == MemberRole::Voter && !self.target_voters().contains(&id);
        Ok(MemberReply {
            id: Some(format_member_id(id)),
            name: info.name,
            site: Some(info.site),
            role: Some(info.role),
            client_url: Some(info.client_url),
            peer_url: Some(info.peer_url),
            leader: id == self.id,
            joining,
            progress: Some(self.progress(id, joining)),
            warnings,
        })
    }

    /// A member as it is known without the leader.
    pub(super) fn known_member(&self, member: Member) -> MemberReply {
        MemberReply {
            id: Some(format_member_id(member.id)),
            name: member.name,
            site: Some(member.site),
            role: Some(member.role),
            client_url: Some(member.client_url),
            peer_url: Some(member.peer_url),
            leader: member.leader,
            joining: member.joining,
            progress: None,
            warnings: self.member_warnings(),
        }
    }

    fn removed_reply(&self, name: &str, id: Option<MemberId>) -> RemovedReply {
        RemovedReply { removed: name.to_string(), id: id.map(format_member_id), warnings: self.member_warnings() }
    }

    fn progress(&self, id: MemberId, joining: bool) -> Progress {
        let last = self.raft.metrics().borrow_watched().last_log_index;
        let matched = if id == self.id { last } else { self.matched_index(id) };
        let behind = matched.zip(last).map(|(matched, last)| last.saturating_sub(matched));
        let state = match behind {
            None => ProgressState::Joining,
            Some(behind) if behind > PROMOTE_BEHIND_ENTRIES || joining => ProgressState::CatchingUp,
            Some(_) => ProgressState::CaughtUp,
        };
        Progress { state, matched_index: matched, last_index: last, behind_entries: behind }
    }

    /// What is unwise about the members as they are. How far away they are only the leader knows.
    pub(super) fn member_warnings(&self) -> Vec<String> {
        let members = self.members_by_id();
        let voters = || members.iter().filter(|(_, info)| info.role == MemberRole::Voter);
        let mut warnings = Vec::new();
        let count = voters().count();
        if count > 0 && count % 2 == 0 {
            let fewer = count - 1;
            warnings.push(format!(
                "{count} voters: an even number tolerates no more failures than {fewer} would, and needs more answers"
            ));
        }
        if self.view().leads {
            for (id, info) in voters() {
                if let Some(far) = self.far_away(*id) {
                    let name = &info.name;
                    let ms = far.as_millis();
                    warnings
                        .push(format!("voter {name} is {ms} ms away from the leader: a mirror would not slow writes"));
                }
            }
        }
        warnings
    }
}

fn has_quorum(voters: usize, answering: usize) -> Result<(), String> {
    let quorum = voters / 2 + 1;
    match answering < quorum {
        true => Err(format!("of the {voters} voters {answering} answer, and {quorum} are needed for a quorum")),
        false => Ok(()),
    }
}

/// Whether `gone` may leave the voters, of which these answer.
fn may_go(
    gone: MemberId,
    voters: &BTreeSet<MemberId>,
    answering: &BTreeSet<MemberId>,
    force: bool,
) -> Result<(), String> {
    let without = |set: &BTreeSet<MemberId>| set.iter().filter(|id| **id != gone).count();
    let (remain, answer) = (without(voters), without(answering));
    if remain == 0 {
        return Err("it is the last voter, without which there is no cluster".to_string());
    }
    // The new voters commit the change too: without a quorum of them it, and all that comes after it, would wait for
    // whoever is away.
    has_quorum(remain, answer)
        .map_err(|why| format!("{why}: it could not be committed; remove those first that do not answer"))?;
    if answering.contains(&gone) && answer < remain && answer == remain / 2 + 1 && !force {
        return Err(format!(
            "of the {remain} voters that remain {answer} answer: if one more failed there would be no quorum. Remove those \
             first that do not answer, or force it"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_of_those_that_answer_must_remain() {
        let set = |ids: &[MemberId]| ids.iter().copied().collect::<BTreeSet<_>>();
        let check = |gone, voters: &[MemberId], answering: &[MemberId], force| {
            may_go(gone, &set(voters), &set(answering), force).is_ok()
        };
        for force in [false, true] {
            assert!(check(1, &[1, 2], &[1, 2], force));
            assert!(check(3, &[1, 2, 3], &[1, 2], force), "the dead one may always go");
            assert!(check(3, &[1, 2, 3], &[1, 2, 3], force));
            assert!(check(5, &[1, 2, 3, 4, 5], &[1, 2, 3], force), "one dead one of two");
            assert!(!check(2, &[1, 2, 3], &[1, 2], force), "of two that remain one answers: never committed");
            assert!(!check(3, &[1, 2, 3, 4, 5], &[1, 2, 3], force));
            assert!(!check(1, &[1], &[1], force), "the last voter cannot be forced out");
        }
        assert!(!check(3, &[1, 2, 3, 4], &[1, 2, 3], false), "no further failure could be borne");
        assert!(check(3, &[1, 2, 3, 4], &[1, 2, 3], true));
        assert!(check(5, &[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5], false));
        assert!(!check(4, &[1, 2, 3, 4, 5], &[1, 2, 3, 4], false));
        assert!(check(4, &[1, 2, 3, 4, 5], &[1, 2, 3, 4], true));
    }
}
