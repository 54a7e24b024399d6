//! What this member sees of the cluster: who leads, who belongs to it. Made anew whenever Raft's answer to that changes,
//! so that a request reads it without asking Raft.

use std::sync::Arc;

use openraft::ServerState;
use openraft::metrics::RaftServerMetrics;

use crate::api;
use crate::model::{MemberId, MemberRole};
use crate::raft::types::{MemberInfo, TypeConfig};

/// The leader, as this member knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderView {
    /// Its id.
    pub id: MemberId,
    /// Its name.
    pub name: String,
    /// Where clients reach it.
    pub client_url: Arc<str>,
    /// Where members reach it.
    pub peer_url: Arc<str>,
}

/// A picture of the cluster at one moment.
#[derive(Debug, Clone)]
pub struct View {
    /// Raft's term.
    pub term: u64,
    /// The leader, when known.
    pub leader: Option<LeaderView>,
    /// Whether this member leads, as far as it knows.
    pub leads: bool,
    /// Whether this member alone decides: it is the only voter, of both sets amid a joint change.
    pub decides_alone: bool,
    /// What this member is in the membership; what it was configured as before it has one.
    pub role: MemberRole,
    /// All members.
    pub members: Vec<api::Member>,
}

impl View {
    /// Before Raft has said anything.
    pub fn unknown(role: MemberRole) -> View {
        View { term: 0, leader: None, leads: false, decides_alone: false, role, members: Vec::new() }
    }

    /// What Raft says now, seen by `own`.
    pub fn from_metrics(metrics: &RaftServerMetrics<TypeConfig>, own: MemberId, configured: MemberRole) -> View {
        let membership = &metrics.membership_config;
        // Amid a change both the old and the new voters decide: a member votes when it is one of all of them.
        let sets = membership.membership().get_joint_config();
        let votes = |id: &MemberId| !sets.is_empty() && sets.iter().all(|voters| voters.contains(id));
        let member = |id: &MemberId, info: &MemberInfo| api::Member {
            id: *id,
            name: info.name.clone(),
            site: info.site.clone(),
            role: info.role,
            client_url: info.client_url.clone(),
            peer_url: info.peer_url.clone(),
            leader: metrics.current_leader == Some(*id),
            joining: info.role == MemberRole::Voter && !votes(id),
        };
        let mut members: Vec<api::Member> = membership.nodes().map(|(id, info)| member(id, info)).collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        let leader = metrics.current_leader.and_then(|id| membership.get_node(&id).map(|info| (id, info)));
        View {
            term: metrics.vote.leader_id.term,
            leader: leader.map(|(id, info)| LeaderView {
                id,
                name: info.name.clone(),
                client_url: info.client_url.as_str().into(),
                peer_url: info.peer_url.as_str().into(),
            }),
            leads: metrics.state == ServerState::Leader,
            decides_alone: !sets.is_empty() && sets.iter().flatten().all(|id| *id == own),
            role: membership.get_node(&own).map_or(configured, |info| info.role),
            members,
        }
    }

    /// What this member does.
    pub fn role(&self) -> api::Role {
        match (self.leads, self.role) {
            (true, _) => api::Role::Leader,
            (false, MemberRole::Voter) => api::Role::Follower,
            (false, MemberRole::Mirror) => api::Role::Mirror,
        }
    }
}
