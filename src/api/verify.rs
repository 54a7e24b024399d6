//! Verification of what the members hold: `/v1/verify`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cluster::Role;
use crate::model::Revision;

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VerifyPhase {
    /// Every member reads its segments from the disk.
    Scrub,
    /// Their contents are compared.
    Content,
}

/// A line of the stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum VerifyLine {
    /// How far it is.
    Progress(VerifyProgress),
    /// The last line: what was found.
    Report(VerifyReport),
}

/// How far a verification is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VerifyProgress {
    /// What is being done.
    pub phase: VerifyPhase,
    /// Bytes of segments (`scrub`) or keys (`content`) that are done.
    pub done: u64,
    /// Of how many, as far as that is known.
    pub total: u64,
    /// Bytes that all members together have read so far.
    pub bytes: u64,
    /// Since it began.
    pub elapsed_seconds: f64,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VerifyReport {
    /// The revision at which contents were compared.
    pub revision: Revision,
    /// The member that led it.
    pub leader: String,
    /// No member holds anything else than the others, and none is damaged.
    pub agreed: bool,
    /// Every member was verified.
    pub complete: bool,
    /// Keys that were compared, those of the system too.
    pub keys: u64,
    /// Bytes of keys and values that were compared.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// What was found of each member.
    pub members: Vec<VerifyMember>,
    /// What has to be known besides.
    pub notes: Vec<String>,
}

/// What was found of one member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VerifyMember {
    /// Its name.
    pub name: String,
    /// Its role when it was asked.
    pub role: Role,
    /// What was found.
    pub state: VerifyState,
    /// Bytes of segments that it has read from its disk.
    pub scrubbed_bytes: u64,
    /// Why, where the state needs a reason: the damaged record, or the first key that differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What it may have served wrongly before it was found; absent when it has served nothing that is in doubt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt: Option<VerifyDoubt>,
}

/// What was found of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VerifyState {
    /// Its files are sound, and it holds what the others hold.
    Agrees,
    /// It holds something else than most, and is in quarantine now.
    Differs,
    /// A file of its history is damaged, and it is in quarantine now.
    Damaged,
    /// It was in quarantine already.
    Quarantined,
    /// It has not applied the revision in time; only its files were verified.
    Behind,
    /// It did not answer; nothing is known of it.
    Unreachable,
    /// Its program is too old to be asked.
    OldProgram,
}

/// Reads whose answers are in doubt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VerifyDoubt {
    /// Of these keys; at most 100 are named.
    pub keys: Vec<String>,
    /// How many keys there are in all, as far as they were counted.
    pub count: u64,
    /// From this revision on.
    pub from_revision: Revision,
    /// Up to this revision, the newest when the member was taken out of service.
    pub to_revision: Revision,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_look_as_documented_and_come_back() {
        let line = VerifyLine::Progress(VerifyProgress {
            phase: VerifyPhase::Scrub,
            done: 1,
            total: 2,
            bytes: 3,
            elapsed_seconds: 0.5,
        });
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(text, r#"{"type":"progress","phase":"scrub","done":1,"total":2,"bytes":3,"elapsed_seconds":0.5}"#);
        assert_eq!(serde_json::from_str::<VerifyLine>(&text).unwrap(), line);
        let doubt = VerifyDoubt { keys: vec!["\"a\"".into()], count: 1, from_revision: 4, to_revision: 9 };
        let member = VerifyMember {
            name: "n2".into(),
            role: Role::Mirror,
            state: VerifyState::OldProgram,
            scrubbed_bytes: 7,
            detail: None,
            doubt: Some(doubt),
        };
        let text = serde_json::to_string(&member).unwrap();
        assert!(text.contains(r#""state":"old-program""#), "{text}");
        assert_eq!(serde_json::from_str::<VerifyMember>(&text).unwrap(), member);
    }
}
