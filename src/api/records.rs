//! Sequences and the planned pause: `/v1/seq/{name}` and `/v1/maintenance`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::{Revision, TimelineId};

/// The reply to `POST /v1/seq/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SequenceReply {
    /// The revision at which the numbers were given out.
    pub revision: Revision,
    /// The sequence.
    pub name: String,
    /// The first number.
    pub first: u64,
    /// The last; all between them belong to the caller too.
    pub last: u64,
    /// How many they are.
    pub count: u64,
    /// Whether it is proven that nobody was given one of them before: the sequence has never met a change of timeline.
    pub unique: bool,
    /// By how much it jumps when the timeline changes.
    pub step: u64,
    /// What is not proven, when `unique` is false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// The reply to `GET /v1/seq/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SequenceState {
    /// The sequence.
    pub name: String,
    /// The last number given out.
    pub last: u64,
    /// By how much it jumps when the timeline changes.
    pub step: u64,
    /// Whether all its numbers are proven to have been given out once.
    pub unique: bool,
    /// What is not proven, when `unique` is false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The revision at which it was created.
    pub create_revision: Revision,
    /// The revision at which it gave out numbers last.
    pub mod_revision: Revision,
    /// How often it has jumped.
    pub jump_count: u64,
    /// The newest 16 jumps, the oldest first.
    pub jumps: Vec<SequenceJump>,
}

/// One jump of a sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SequenceJump {
    /// The last number before it, as far as this history knows.
    pub from: u64,
    /// What the last number was set to.
    pub to: u64,
    /// The number of the timeline that made it jump.
    pub timeline: u64,
    /// The identity of that timeline.
    pub timeline_id: TimelineId,
    /// At which revision.
    pub revision: Revision,
}

/// The body of `PUT /v1/maintenance`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MaintenanceRequest {
    /// What clients are told.
    pub message: String,
    /// When it ends by itself: a time (`2026-11-24T04:30:00Z`), or a span from now on (`30m`).
    pub until: String,
    /// Whether reads, lists and watches are refused too.
    #[serde(default)]
    pub reads: bool,
}

/// The planned pause: the reply to `GET` and `PUT /v1/maintenance`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MaintenanceReply {
    /// Whether one is in force.
    pub active: bool,
    /// What clients are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// The same in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
    /// How long that is from now, by the clock of the member that answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_seconds: Option<f64>,
    /// Whether reads, lists and watches are refused too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reads: Option<bool>,
    /// The revision at which it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
}

/// The reply to `DELETE /v1/maintenance`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EndedReply {
    /// Whether there was one.
    pub ended: bool,
    /// The revision afterwards.
    pub revision: Revision,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_look_as_documented_and_come_back() {
        let reply = SequenceReply {
            revision: 42,
            name: "orders".into(),
            first: 1,
            last: 10,
            count: 10,
            unique: true,
            step: 1_000_000,
            note: None,
        };
        let text = serde_json::to_string(&reply).unwrap();
        assert_eq!(
            text,
            r#"{"revision":42,"name":"orders","first":1,"last":10,"count":10,"unique":true,"step":1000000}"#
        );
        assert_eq!(serde_json::from_str::<SequenceReply>(&text).unwrap(), reply);
        let none = MaintenanceReply {
            active: false,
            message: None,
            until: None,
            until_ms: None,
            remaining_seconds: None,
            reads: None,
            revision: None,
        };
        assert_eq!(serde_json::to_string(&none).unwrap(), r#"{"active":false}"#);
        assert_eq!(serde_json::from_str::<MaintenanceReply>(r#"{"active":false}"#).unwrap(), none);
    }

    #[test]
    fn a_request_for_a_pause_takes_nothing_that_it_does_not_know() {
        let asked: MaintenanceRequest = serde_json::from_str(r#"{"message":"m","until":"30m"}"#).unwrap();
        assert_eq!((asked.until.as_str(), asked.reads), ("30m", false));
        for bad in [r#"{"until":"30m"}"#, r#"{"message":"m"}"#, r#"{"message":"m","until":"1h","read":true}"#] {
            assert!(serde_json::from_str::<MaintenanceRequest>(bad).is_err(), "{bad}");
        }
    }
}
