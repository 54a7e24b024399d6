//! Requests and replies about members that come and go.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::MemberRole;

/// The body of `POST /v1/members`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InviteRequest {
    /// The name under which the member will be started.
    pub name: String,
    /// Where its peers will reach it, when that is known already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_url: Option<String>,
    /// What it shall be, whatever it is started as; none for what it says itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<MemberRole>,
    /// The data centre it stands in, whatever it is started with; none for what it says itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
}

/// The body of `PATCH /v1/members/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RoleChange {
    /// What the member shall be.
    pub role: MemberRole,
    /// Do it although no further voter could fail afterwards.
    #[serde(default)]
    pub force: bool,
}

/// How far a member is on its way into the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProgressState {
    /// It has not come yet.
    Invited,
    /// It belongs to the cluster and has not said yet what it holds.
    Joining,
    /// It is sent what it lacks.
    CatchingUp,
    /// It lacks next to nothing, and is what its role says.
    CaughtUp,
}

/// How far a member is, as the leader knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// In a word.
    pub state: ProgressState,
    /// The last entry that it is known to hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matched_index: Option<u64>,
    /// The last entry of the leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_index: Option<u64>,
    /// So many entries it lacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind_entries: Option<u64>,
}

/// The reply to `POST /v1/members`, and to `GET` and `PATCH /v1/members/{name}`: a member, or one that is invited, of
/// which only what the invitation says is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemberReply {
    /// Its identity, 16 hexadecimal digits; none before it has come.
    pub id: Option<String>,
    /// Its name.
    pub name: String,
    /// The data centre it stands in.
    pub site: Option<String>,
    /// What it is, or shall be.
    pub role: Option<MemberRole>,
    /// Where its clients reach it.
    pub client_url: Option<String>,
    /// Where its peers reach it.
    pub peer_url: Option<String>,
    /// Whether it leads.
    pub leader: bool,
    /// Whether it still catches up before it becomes what its role says.
    #[serde(default, skip_serializing_if = "super::cluster::is_false")]
    pub joining: bool,
    /// How far it is; none when the leader could not be asked.
    pub progress: Option<Progress>,
    /// What is unwise about the members as they are.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// The reply to `DELETE /v1/members/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RemovedReply {
    /// The name.
    pub removed: String,
    /// The id that is gone, 16 hexadecimal digits; none when the member was only invited.
    pub id: Option<String>,
    /// What is unwise about the members as they are now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_look_as_documented_and_come_back() {
        let progress = Progress {
            state: ProgressState::CatchingUp,
            matched_index: Some(51),
            last_index: Some(60),
            behind_entries: Some(9),
        };
        let text = r#"{"state":"catching_up","matched_index":51,"last_index":60,"behind_entries":9}"#;
        assert_eq!(serde_json::to_string(&progress).unwrap(), text);
        assert_eq!(serde_json::from_str::<Progress>(text).unwrap(), progress);
        let removed = RemovedReply { removed: "n3".into(), id: Some("00c0ffee00c0ffee".into()), warnings: vec![] };
        let text = r#"{"removed":"n3","id":"00c0ffee00c0ffee"}"#;
        assert_eq!(serde_json::to_string(&removed).unwrap(), text);
        let text = r#"{"name":"n4","peer_url":"http://a:7401","role":"voter"}"#;
        let invite: InviteRequest = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&invite).unwrap(), text);
        assert!(serde_json::from_str::<InviteRequest>(r#"{"name":"n4","rolle":"voter"}"#).is_err());
        let change: RoleChange = serde_json::from_str(r#"{"role":"mirror"}"#).unwrap();
        assert_eq!(change, RoleChange { role: MemberRole::Mirror, force: false });
    }
}
