//! Replies about replication: what each member lacks, how old what it shows is, whether it agrees.
//!
//! `docs/mirrors.md` says what each figure means and how it is measured.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{MemberRole, SwitchoverReply};
use crate::model::Revision;

/// How a member follows the leader, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum MirrorState {
    /// What it shows is as new as the distance allows.
    Synchronized,
    /// It is being sent what it lacks, or applies what it was sent.
    Synchronizing,
    /// It is sent nothing because somebody said so.
    Suspended,
    /// It does not answer.
    Disconnected,
    /// It disagrees with the others, or has found damage in its data; it serves nothing until it is repaired.
    Quarantined,
}

impl MirrorState {
    /// All states.
    pub const ALL: [MirrorState; 5] = [
        MirrorState::Synchronized,
        MirrorState::Synchronizing,
        MirrorState::Suspended,
        MirrorState::Disconnected,
        MirrorState::Quarantined,
    ];

    /// The word in JSON, in events and in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            MirrorState::Synchronized => "SYNCHRONIZED",
            MirrorState::Synchronizing => "SYNCHRONIZING",
            MirrorState::Suspended => "SUSPENDED",
            MirrorState::Disconnected => "DISCONNECTED",
            MirrorState::Quarantined => "QUARANTINED",
        }
    }
}

impl fmt::Display for MirrorState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Entries that wait to be sent to a member, or to be applied by it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Queue {
    /// How many.
    pub entries: u64,
    /// Roughly how many bytes they have.
    pub bytes: u64,
    /// How long ago the oldest of them was committed, at most; 0 when there is none, and null when that is not known. While
    /// no quorum confirms the leader others may have committed what it does not know of: no less than since then.
    pub oldest_seconds: Option<f64>,
}

impl Queue {
    /// Nothing waits.
    pub const EMPTY: Queue = Queue { entries: 0, bytes: 0, oldest_seconds: Some(0.0) };
}

/// By what a member can be brought up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CatchUp {
    /// By entries, which the leader's log still has.
    Log,
    /// By the part of the history that it lacks: its next entry is not in the log any more.
    Delta,
    /// By all of the history: what it lacks cannot be told apart any more.
    Full,
}

/// A member as the leader sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MemberReplication {
    /// Its name.
    pub name: String,
    /// The data centre it stands in.
    pub site: String,
    /// What it is.
    pub role: MemberRole,
    /// Whether it leads: what the others are compared with.
    pub leader: bool,
    /// How it follows.
    pub state: MirrorState,
    /// For how long it has been in this state, as far as this leader knows.
    pub state_seconds: f64,
    /// What is committed and it is not known to have received.
    pub send_queue: Queue,
    /// What it had received and not applied when it answered last; none when it has not answered this leader.
    pub redo_queue: Option<Queue>,
    /// An upper bound of how old what it shows is; none when it has not answered this leader.
    pub lag_seconds: Option<f64>,
    /// How far away it is; none when it has not answered this leader.
    pub round_trip_seconds: Option<f64>,
    /// How long ago it answered last; none when it has not answered this leader.
    pub last_contact_seconds: Option<f64>,
    /// The newest revision at which its chain hash was compared with the leader's and agreed.
    pub hash_agreed_revision: Option<Revision>,
    /// The last entry that it had applied when it answered last.
    pub applied_index: Option<u64>,
    /// The last entry that it is known to have on its disk.
    pub received_index: Option<u64>,
    /// How fast it receives, in entries a second, over the last seconds.
    pub received_per_second: f64,
    /// In how many seconds it will have caught up, at this rate; none when it is not catching up.
    pub catch_up_seconds: Option<f64>,
    /// By what it can be brought up to date; none when that is not known.
    pub catch_up_by: Option<CatchUp>,
    /// How long it took from the newest canary that it has shown until it showed it.
    pub canary_seconds: Option<f64>,
    /// Bytes that this leader has sent to it over a link to another site, as they were on the wire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_sent_bytes: Option<u64>,
    /// The same before they were compressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_payload_bytes: Option<u64>,
    /// Why it is quarantined or suspended, or what is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The reply to `GET /v1/replication`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReplicationReply {
    /// The member that says this, as the leader; none when no leader could be asked: then the figures are of the asked
    /// member alone.
    pub leader: Option<String>,
    /// Whether a quorum has confirmed this leader within the election timeout. If not, all figures are lower bounds: what
    /// another leader has acknowledged meanwhile is not known here.
    pub confirmed: bool,
    /// How long ago a quorum confirmed it; none when none has yet.
    pub confirmed_seconds: Option<f64>,
    /// The last committed entry, as far as this is known.
    pub committed_index: Option<u64>,
    /// The newest revision.
    pub revision: Revision,
    /// All members.
    pub members: Vec<MemberReplication>,
}

/// The reply to `POST /v1/members/{name}/suspend` and `/resume`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SuspendReply {
    /// The member.
    pub name: String,
    /// Whether it is suspended now.
    pub suspended: bool,
}

/// What is aimed at and what is measured, of one standby site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StandbySite {
    /// The site.
    pub site: String,
    /// Its mirrors.
    pub mirrors: Vec<String>,
    /// The mirror that lacks least: the one that a failover would build on; none when none has answered.
    pub best: Option<String>,
    /// How old the oldest write is that would be lost if the primary site were lost now; none when it is not known.
    pub rpo_seconds: Option<f64>,
    /// How many entries would be lost, none when it is not known.
    pub rpo_entries: Option<u64>,
    /// Whether the first objective is met.
    pub rpo_met: bool,
    /// How long a failover to it would take, as estimated: what it has received and not applied, at the rate at which it
    /// applies, and a start. None when it is not known.
    pub rto_seconds: Option<f64>,
    /// Whether the second objective is met.
    pub rto_met: bool,
}

/// The objectives of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Objectives {
    /// So old may the oldest write be that a disaster costs.
    pub rpo_seconds: f64,
    /// So long may a failover take.
    pub rto_seconds: f64,
}

/// A command that makes sense in the present state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlanStep {
    /// When and why.
    pub why: String,
    /// The command, as it is typed.
    pub command: String,
}

/// The reply to `GET /v1/dr`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DrReply {
    /// The site with the voters; none when they stand in several.
    pub primary_site: Option<String>,
    /// The sites with mirrors only.
    pub standby_sites: Vec<StandbySite>,
    /// What is aimed at.
    pub objectives: Objectives,
    /// Whether a quorum has confirmed the leader that says this. If not, all figures are lower bounds.
    pub confirmed: bool,
    /// How many more voters may fail before nothing can be written; none when the leader is not known.
    pub quorum_margin: Option<u64>,
    /// The switchover that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switchover: Option<SwitchoverReply>,
    /// What is unwise or wrong.
    pub warnings: Vec<String>,
    /// What to do in the present state, the most urgent first.
    pub plan: Vec<PlanStep>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_the_words_of_the_documentation() {
        for state in MirrorState::ALL {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{state}\""));
        }
        assert_eq!(MirrorState::Synchronized.to_string(), "SYNCHRONIZED");
        assert_eq!(serde_json::to_string(&CatchUp::Delta).unwrap(), r#""delta""#);
    }

    #[test]
    fn what_is_absent_is_left_out_or_null_and_comes_back() {
        let text = concat!(
            r#"{"name":"m1","site":"west","role":"mirror","leader":false,"state":"DISCONNECTED","state_seconds":2.5,"#,
            r#""send_queue":{"entries":3,"bytes":300,"oldest_seconds":1.5},"redo_queue":null,"lag_seconds":null,"#,
            r#""round_trip_seconds":null,"last_contact_seconds":null,"hash_agreed_revision":null,"applied_index":null,"#,
            r#""received_index":null,"received_per_second":0.0,"catch_up_seconds":null,"catch_up_by":"log","#,
            r#""canary_seconds":null}"#,
        );
        let member: MemberReplication = serde_json::from_str(text).unwrap();
        assert_eq!(member.send_queue, Queue { entries: 3, bytes: 300, oldest_seconds: Some(1.5) });
        assert_eq!(serde_json::to_string(&member).unwrap(), text);
    }
}
