//! Identities of clusters and of timelines (branches of history).
//!
//! Timelines are compared by identity and ancestry, never by number alone.

use serde::{Deserialize, Serialize};

use super::hex16::hex16;

hex16!(
    /// A random 128-bit identity, written as 32 hexadecimal digits.
    RandomId
);

/// The identity of a cluster: drawn once by the member that bootstraps it.
pub type ClusterId = RandomId;
/// The identity of a timeline.
pub type TimelineId = RandomId;

/// Draws a new identity from the operating system's random source.
pub fn new_random_id() -> RandomId {
    RandomId(rand::random())
}

/// A branch of history. A new one begins at a forced failover and at a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeline {
    /// Counts from 1; two timelines may have one number (siblings), never one id.
    pub number: u64,
    /// The identity.
    pub id: TimelineId,
    /// The timeline it branched from; none for the first.
    pub parent: Option<TimelineId>,
    /// The last position of the history (a Raft index) shared with the parent.
    pub fork_position: u64,
    /// The last revision shared with the parent.
    pub fork_revision: u64,
}
