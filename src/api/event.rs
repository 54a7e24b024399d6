//! What happened to a member and its cluster: `/v1/events`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Counts from 1 since the member's process started.
    pub id: u64,
    /// When, in milliseconds since 1970, by the member's clock.
    pub time_ms: u64,
    /// What kind of thing, for programs.
    pub kind: String,
    /// What, for people.
    pub detail: String,
    /// The member that saw it.
    pub member: String,
    /// Whether all members show it, or only the one that saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<EventScope>,
    /// The member that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What that was before, or who.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What it is now, or who.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The same on every member and in webhooks: 16 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
}

/// Who shows an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EventScope {
    /// Every member, also after a restart.
    Cluster,
    /// The member that saw it, until its process ends.
    Member,
}

/// The reply to `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventsReply {
    /// The events, the oldest first.
    pub events: Vec<Event>,
    /// The next `since`.
    pub next: u64,
}
