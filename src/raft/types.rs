//! The types that openraft is told to use, and the way between them and the words of [`crate::model`].
//!
//! openraft's serde support is switched off on purpose: nothing of its types goes to a disk or a wire. A membership is
//! stored as the self-describing JSON of [`MembershipRecord`], all else in explicit binary forms.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use openraft::impls::leader_id_adv::LeaderId;
use serde::{Deserialize, Serialize};

use crate::model::{self, EntryKind, MemberId, MemberRole, Outcome, format_member_id, parse_member_id};
use crate::raft::machine::Machine;

openraft::declare_raft_types!(
    /// What openraft is told to use: encoded commands, outcomes, members described by [`MemberInfo`].
    pub TypeConfig:
        D = Proposal,
        R = Outcome,
        NodeId = MemberId,
        Node = MemberInfo,
);

/// The running Raft of this member.
pub type Raft = openraft::Raft<TypeConfig, Machine>;
/// openraft's position in the log.
pub type RaftLogId = openraft::alias::LogIdOf<TypeConfig>;
/// openraft's vote.
pub type RaftVote = openraft::alias::VoteOf<TypeConfig>;
/// openraft's entry.
pub type RaftEntry = openraft::alias::EntryOf<TypeConfig>;
/// openraft's membership.
pub type RaftMembership = openraft::Membership<MemberId, MemberInfo>;
/// openraft's membership with its position in the log.
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
/// openraft's description of a snapshot.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// An encoded [`model::Command`] on its way into the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal(pub Bytes);

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What the cluster knows of a member. Replicated with the membership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Its name, unique in the cluster.
    pub name: String,
    /// The data centre it is in.
    pub site: String,
    /// What it is meant to be; a voter is a learner until it has caught up.
    pub role: MemberRole,
    /// Where clients reach it.
    pub client_url: String,
    /// Where other members reach it.
    pub peer_url: String,
}

/// The stored form of a membership: self-describing JSON, so that later versions may add fields.
#[derive(Debug, Serialize, Deserialize)]
struct MembershipRecord {
    format: u32,
    /// One list of voters, or two while a joint change goes on.
    voters: Vec<Vec<String>>,
    members: BTreeMap<String, MemberInfo>,
}

const MEMBERSHIP_FORMAT: u32 = 1;

/// The bytes of a membership that go into an entry.
pub fn encode_membership(membership: &RaftMembership) -> Bytes {
    let record = MembershipRecord {
        format: MEMBERSHIP_FORMAT,
        voters: membership
            .get_joint_config()
            .iter()
            .map(|set| set.iter().copied().map(format_member_id).collect())
            .collect(),
        members: membership.nodes().map(|(id, info)| (format_member_id(*id), info.clone())).collect(),
    };
    serde_json::to_vec(&record).expect("strings and numbers always serialise").into()
}

/// Reads back what [`encode_membership`] wrote; says what is wrong with anything else.
pub fn decode_membership(bytes: &[u8]) -> Result<RaftMembership, String> {
    let record: MembershipRecord = serde_json::from_slice(bytes).map_err(|e| format!("malformed membership: {e}"))?;
    if record.format != MEMBERSHIP_FORMAT {
        return Err(format!("membership of unknown format {}", record.format));
    }
    let id = |text: &String| parse_member_id(text).ok_or_else(|| format!("malformed member id {text:?}"));
    let mut configs = Vec::new();
    for list in &record.voters {
        configs.push(list.iter().map(id).collect::<Result<BTreeSet<_>, _>>()?);
    }
    let mut members = BTreeMap::new();
    for (text, info) in record.members {
        members.insert(id(&text)?, info);
    }
    RaftMembership::new(configs, members).map_err(|e| format!("impossible membership: {e}"))
}

/// From openraft's log id to ours.
pub fn from_raft_log_id(id: &RaftLogId) -> model::LogId {
    let leader = id.committed_leader_id();
    model::LogId { term: leader.term, leader: leader.node_id, index: id.index() }
}

/// From our log id to openraft's.
pub fn to_raft_log_id(id: model::LogId) -> RaftLogId {
    RaftLogId::new(LeaderId { term: id.term, node_id: id.leader }, id.index)
}

/// From openraft's vote to ours.
pub fn from_raft_vote(vote: &RaftVote) -> model::Vote {
    model::Vote { term: vote.leader_id.term, member: vote.leader_id.node_id, committed: vote.committed }
}

/// From our vote to openraft's.
pub fn to_raft_vote(vote: model::Vote) -> RaftVote {
    RaftVote { leader_id: LeaderId { term: vote.term, node_id: vote.member }, committed: vote.committed }
}

/// From openraft's entry to the one the wal keeps. A command's bytes are shared, not copied.
pub fn from_raft_entry(entry: &RaftEntry) -> model::Entry {
    let (kind, payload) = match &entry.payload {
        openraft::EntryPayload::Blank => (EntryKind::Blank, Bytes::new()),
        openraft::EntryPayload::Membership(m) => (EntryKind::Membership, encode_membership(m)),
        openraft::EntryPayload::Normal(Proposal(bytes)) => (EntryKind::Command, bytes.clone()),
    };
    model::Entry { log_id: from_raft_log_id(&entry.log_id), kind, payload }
}

/// From the wal's entry to openraft's; says what is wrong with a membership that cannot be read.
pub fn to_raft_entry(entry: model::Entry) -> Result<RaftEntry, String> {
    let payload = match entry.kind {
        EntryKind::Blank => openraft::EntryPayload::Blank,
        EntryKind::Membership => openraft::EntryPayload::Membership(decode_membership(&entry.payload)?),
        EntryKind::Command => openraft::EntryPayload::Normal(Proposal(entry.payload)),
    };
    Ok(RaftEntry { log_id: to_raft_log_id(entry.log_id), payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str) -> MemberInfo {
        MemberInfo {
            name: name.into(),
            site: "east".into(),
            role: MemberRole::Voter,
            client_url: "http://127.0.0.1:1".into(),
            peer_url: "http://127.0.0.1:2".into(),
        }
    }

    #[test]
    fn memberships_come_back_joint_ones_too() {
        let members: BTreeMap<MemberId, MemberInfo> =
            [(1, info("a")), (u64::MAX, info("b")), (3, info("c"))].into_iter().collect();
        for configs in [vec![[1].into()], vec![[1, 3].into(), [3, u64::MAX].into()]] {
            let membership = RaftMembership::new(configs, members.clone()).unwrap();
            assert_eq!(decode_membership(&encode_membership(&membership)), Ok(membership));
        }
    }

    #[test]
    fn a_membership_that_cannot_be_is_refused() {
        for bad in [
            &b"{}"[..],
            b"",
            br#"{"format":2,"voters":[["0000000000000001"]],"members":{}}"#,
            br#"{"format":1,"voters":[["0000000000000001"]],"members":{}}"#,
            br#"{"format":1,"voters":[["zz"]],"members":{}}"#,
        ] {
            assert!(decode_membership(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
