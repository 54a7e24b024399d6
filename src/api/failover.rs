//! A forced failover, and the survey before it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{MemberRole, Revision, TimelineId, TimelineName};

/// What a forced failover loses, as far as it can be known without the members that are gone.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Loss {
    /// The revision that the promoted member has applied. Of what its log holds behind that, all is kept.
    pub kept_revision: Revision,
    /// The last entry of its log.
    pub kept_index: u64,
    /// The last of them that it knows to be committed; those behind it may or may not have been acknowledged.
    pub known_committed_index: Option<u64>,
    /// So many entries at least are held by others that answered, and not by it.
    pub entries_at_least: u64,
    /// What was acknowledged in the last so many seconds may be lost: since a quorum last confirmed what the member holds.
    /// None when that is not known.
    pub window_seconds: Option<f64>,
    /// The voters that do not answer could be a majority elsewhere: if they still serve, the loss grows until they are
    /// fenced.
    pub unbounded: bool,
}

impl Loss {
    /// For people.
    pub fn words(&self) -> String {
        let window = match self.window_seconds {
            Some(window) => format!("writes of the last {window:.1} s may be lost"),
            None => "how far back writes may be lost is not known".to_owned(),
        };
        let entries = match self.entries_at_least {
            0 => String::new(),
            count => format!(", at least {count} entries"),
        };
        let grows = if self.unbounded { "; more if the old primary still serves" } else { "" };
        format!("{window}{entries}{grows}")
    }
}

/// A member as a survey found it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SurveyedMember {
    /// Its name.
    pub name: String,
    /// The site it stands in.
    pub site: String,
    /// What it is, by the membership that the asked member knows.
    pub role: MemberRole,
    /// Whether it answered.
    pub answers: bool,
    /// Whether it leads, and a quorum confirms it.
    pub leads: bool,
    /// The timeline it is on.
    pub timeline: Option<TimelineName>,
    /// The term of the last entry of its log. The longest log is the one with the highest term, then index.
    pub last_term: Option<u64>,
    /// The last entry of its log.
    pub last_index: Option<u64>,
    /// The last entry that it knows to be committed.
    pub committed_index: Option<u64>,
    /// The last entry that it has applied.
    pub applied_index: Option<u64>,
    /// The revision after that.
    pub revision: Option<Revision>,
    /// Since when no quorum has confirmed what it has.
    pub lag_seconds: Option<f64>,
    /// Why it could not take part.
    pub reason: Option<String>,
}

/// The reply to `GET /v1/dr/survey`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SurveyReply {
    /// The member that asked the others.
    pub asked: String,
    /// Its site, of which a member would be promoted.
    pub site: String,
    /// The timeline it is on.
    pub timeline: Option<TimelineName>,
    /// What shows that the primary is there, so that nothing may be forced; none when nothing does.
    pub primary: Option<String>,
    /// The member of the site that would be promoted: the one with the longest log.
    pub best: Option<String>,
    /// What would be lost.
    pub loss: Option<Loss>,
    /// Members of the site that cannot take part, and may hold more.
    pub missing: Vec<String>,
    /// All members.
    pub members: Vec<SurveyedMember>,
    /// The next command.
    pub next: String,
}

/// The body of `POST /v1/dr/force`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForceRequest {
    /// Must be true.
    #[serde(default)]
    pub accept_data_loss: bool,
    /// Members of the site that need not answer, although they may hold more than the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<String>,
    /// Whether the asked member is a voter of a site that has lost its quorum, and not a mirror of a standby site.
    #[serde(default)]
    pub survivor: bool,
    /// Who orders it; for the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why; for the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The reply to `POST /v1/dr/force`: a member has written down that it begins a timeline, and does so now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ForceReply {
    /// The member that is promoted.
    pub member: String,
    /// Where clients reach it.
    pub client_url: String,
    /// The timeline that it begins.
    pub timeline: TimelineId,
    /// The one that it forks from.
    pub parent: TimelineId,
    /// What is lost.
    pub loss: Loss,
    /// Members that come home by themselves, and vote then.
    pub rejoining: Vec<String>,
    /// Members that are fenced as soon as they are met, and wait for `lifeboat dr rejoin`.
    pub waiting: Vec<String>,
    /// The next command.
    pub next: String,
}

/// The body of `POST /v1/dr/rejoin`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RejoinRequest {
    /// For a member that is not fenced because two sites were forced from one parent: the timeline that it is on, which is
    /// given up for the other one. Its writes since the fork are salvaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abandon_timeline: Option<TimelineId>,
}

/// The reply to `POST /v1/dr/rejoin`: the member has written down that it rejoins, and does so now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RejoinReply {
    /// The member.
    pub member: String,
    /// The site that it rejoins.
    pub site: String,
    /// The timeline there.
    pub timeline: TimelineName,
    /// The next command.
    pub next: String,
}
