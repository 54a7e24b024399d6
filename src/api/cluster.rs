//! Replies and requests about members, leadership and health.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::model::MemberRole;
use crate::model::{ClusterId, MemberId, Revision, TimelineId};

/// What a member does at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It leads, as far as it knows.
    Leader,
    /// It votes and follows, or waits for an election.
    Follower,
    /// It receives everything and never votes.
    Mirror,
    /// History went on without it: it votes for nobody and serves nothing until it rejoins.
    Fenced,
}

impl Role {
    /// The word in JSON and in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Mirror => "mirror",
            Role::Fenced => "fenced",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One member of the cluster, as the membership names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Member {
    /// Its identity.
    #[serde(with = "member_id")]
    #[schemars(with = "super::schema::MemberIdText")]
    pub id: MemberId,
    /// Its name, which people use.
    pub name: String,
    /// The data centre it stands in.
    pub site: String,
    /// What it is.
    pub role: MemberRole,
    /// Where its clients reach it.
    pub client_url: String,
    /// Where its peers reach it.
    pub peer_url: String,
    /// Whether it leads, as far as the answering member knows.
    pub leader: bool,
    /// Whether it still catches up before it becomes what its role says.
    #[serde(default, skip_serializing_if = "is_false")]
    pub joining: bool,
}

pub(super) fn is_false(value: &bool) -> bool {
    !*value
}

/// The leader, as the answering member knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Leader {
    /// Its identity.
    #[serde(with = "member_id")]
    #[schemars(with = "super::schema::MemberIdText")]
    pub id: MemberId,
    /// Its name.
    pub name: String,
    /// Where its clients reach it.
    pub client_url: String,
}

/// A timeline's number and identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TimelineName {
    /// Counts from 1.
    pub number: u64,
    /// The identity; two timelines may share a number, never this.
    pub id: TimelineId,
}

/// The cluster's identity and its current timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cluster {
    /// The identity.
    pub id: ClusterId,
    /// The timeline that the answering member is on.
    pub timeline: TimelineName,
}

/// A member and the cluster as it sees it (`GET /v1/status`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Its identity.
    #[serde(with = "member_id")]
    #[schemars(with = "super::schema::MemberIdText")]
    pub id: MemberId,
    /// The data centre it stands in.
    pub site: String,
    /// What it does.
    pub role: Role,
    /// The version of its program.
    pub version: String,
    /// Which kinds of commands all members know, as far as it has applied; 0 from a program that does not say. It rises
    /// when the last member of a cluster runs a newer program.
    #[serde(default)]
    pub feature_level: u64,
    /// Whether it can serve linearizable reads and writes.
    pub ready: bool,
    /// Why it is in quarantine; absent when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantined: Option<String>,
    /// The cluster; none before it belongs to one.
    pub cluster: Option<Cluster>,
    /// The leader, when known.
    pub leader: Option<Leader>,
    /// Raft's term.
    pub term: u64,
    /// The newest applied revision.
    pub revision: Revision,
    /// The last entry in its log; none when there is none. So for all indexes; the first is 0.
    pub last_index: Option<u64>,
    /// The last entry it knows to be committed.
    pub committed_index: Option<u64>,
    /// The last entry it has applied.
    pub applied_index: Option<u64>,
    /// The last entry whose frame lies in a sealed segment.
    pub sealed_index: Option<u64>,
    /// An upper bound of how old a stale read here may be; none when unknown.
    pub lag_seconds: Option<f64>,
    /// How long the process has run.
    pub uptime_seconds: f64,
    /// All members.
    pub members: Vec<Member>,
}

/// The reply to `GET /v1/members`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MembersReply {
    /// All members.
    pub members: Vec<Member>,
    /// What is unwise about them, as far as the answering member knows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The reply to `GET /v1/role`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RoleReply {
    /// What the member does.
    pub role: Role,
    /// Its name.
    pub name: String,
    /// The data centre it stands in.
    pub site: String,
    /// The leader's name, when known.
    pub leader: Option<String>,
}

/// The body of `POST /v1/leader`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaderRequest {
    /// The name of the member that shall lead; none for the best follower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// The reply to `POST /v1/leader`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeaderReply {
    /// The name of the member that leads now.
    pub leader: String,
    /// Its term.
    pub term: u64,
}

/// The reply of the health checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// Whether the check passed.
    pub healthy: bool,
    /// Why it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Member ids in JSON: 16 hexadecimal digits.
mod member_id {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    use crate::model::{MemberId, format_member_id, parse_member_id};

    pub fn serialize<S: Serializer>(id: &MemberId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_member_id(*id))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MemberId, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_member_id(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is not a member id")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RandomId;

    fn status() -> Status {
        let member = Member {
            id: 0x00c0_ffee_00c0_ffee,
            name: "n1".into(),
            site: "east".into(),
            role: MemberRole::Voter,
            client_url: "http://127.0.0.1:7400".into(),
            peer_url: "http://127.0.0.1:7401".into(),
            leader: true,
            joining: false,
        };
        let timeline = TimelineName { number: 1, id: RandomId([0xab; 16]) };
        Status {
            name: "n1".into(),
            id: member.id,
            site: "east".into(),
            role: Role::Leader,
            version: "0.1.0".into(),
            feature_level: 1,
            ready: true,
            quarantined: None,
            cluster: Some(Cluster { id: RandomId([1; 16]), timeline }),
            leader: Some(Leader { id: member.id, name: "n1".into(), client_url: member.client_url.clone() }),
            term: 3,
            revision: 44,
            last_index: Some(51),
            committed_index: Some(51),
            applied_index: Some(51),
            sealed_index: None,
            lag_seconds: Some(0.012),
            uptime_seconds: 17.4,
            members: vec![member],
        }
    }

    #[test]
    fn a_status_looks_as_documented_and_comes_back() {
        let text = serde_json::to_string(&status()).unwrap();
        let expected = concat!(
            r#"{"name":"n1","id":"00c0ffee00c0ffee","site":"east","role":"leader","version":"0.1.0","feature_level":1,"#,
            r#""ready":true,"cluster":{"id":"01010101010101010101010101010101","#,
            r#""timeline":{"number":1,"id":"abababababababababababababababab"}},"#,
            r#""leader":{"id":"00c0ffee00c0ffee","name":"n1","client_url":"http://127.0.0.1:7400"},"#,
            r#""term":3,"revision":44,"last_index":51,"committed_index":51,"applied_index":51,"sealed_index":null,"#,
            r#""lag_seconds":0.012,"uptime_seconds":17.4,"#,
            r#""members":[{"id":"00c0ffee00c0ffee","name":"n1","site":"east","role":"voter","#,
            r#""client_url":"http://127.0.0.1:7400","peer_url":"http://127.0.0.1:7401","leader":true}]}"#,
        );
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status());
    }

    #[test]
    fn a_newer_members_reply_is_understood_and_a_misspelt_request_is_not() {
        let reply = r#"{"leader":"n2","term":4,"since":"yesterday"}"#;
        assert_eq!(serde_json::from_str::<LeaderReply>(reply).unwrap(), LeaderReply { leader: "n2".into(), term: 4 });
        assert!(serde_json::from_str::<LeaderRequest>(r#"{"too":"n2"}"#).is_err());
        assert_eq!(serde_json::from_str::<LeaderRequest>("{}").unwrap(), LeaderRequest { to: None });
    }

    #[test]
    fn a_member_id_is_sixteen_digits() {
        let text = serde_json::to_string(&status()).unwrap().replace("00c0ffee00c0ffee", "c0ffee");
        assert!(serde_json::from_str::<Status>(&text).is_err());
    }

    #[test]
    fn health_names_its_reason_only_when_there_is_one() {
        let healthy = Health { healthy: true, reason: None };
        assert_eq!(serde_json::to_string(&healthy).unwrap(), r#"{"healthy":true}"#);
        let sick = Health { healthy: false, reason: Some("no leader".into()) };
        assert_eq!(serde_json::to_string(&sick).unwrap(), r#"{"healthy":false,"reason":"no leader"}"#);
    }
}
