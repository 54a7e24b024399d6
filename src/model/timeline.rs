//! Identities of clusters and of timelines (branches of history).
//!
//! Timelines are compared by identity and ancestry, never by number alone.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A random 128-bit identity, written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct RandomId(pub [u8; 16]);

/// The identity of a cluster: drawn once by the member that bootstraps it.
pub type ClusterId = RandomId;
/// The identity of a timeline.
pub type TimelineId = RandomId;

/// Draws a new identity from the operating system's random source.
pub fn new_random_id() -> RandomId {
    RandomId(rand::random())
}

impl fmt::Display for RandomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for RandomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for RandomId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() != 32 {
            return Err(format!("an identity has 32 hexadecimal digits, this has {} characters", text.len()));
        }
        u128::from_str_radix(text, 16).map(|n| RandomId(n.to_be_bytes())).map_err(|e| e.to_string())
    }
}

impl Serialize for RandomId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RandomId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
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
