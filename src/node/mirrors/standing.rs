//! What a member says of itself when the leader asks how it is: the answer to the question of [`super::super::contacts`].
//!
//! JSON with field names. A member of an earlier program answers without content; whoever reads an answer of a later one
//! skips what it does not know.

use serde::{Deserialize, Serialize};

use super::super::Inner;
use crate::model::{ChainHash, Revision};

/// How a member stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// The last entry that is durable here, in the log or in the history.
    pub received_index: Option<u64>,
    /// The last entry that is applied, the revision and the chain hash after it.
    pub applied: Option<AppliedPoint>,
    /// Roughly how many bytes the entries have that are received and not applied.
    pub redo_bytes: u64,
    /// The newest canary that is applied: the leader's time inside it, in milliseconds since 1970.
    #[serde(default)]
    pub canary_ms: Option<u64>,
    /// Why the member is quarantined, when it is.
    #[serde(default)]
    pub quarantined: Option<String>,
    /// It came back from another branch of history, and its content is not verified yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unverified: bool,
}

/// A point of the history that a member has applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedPoint {
    /// The position, which is the index of the entry.
    pub position: u64,
    /// The revision after it.
    pub revision: Revision,
    /// The chain hash there.
    pub chain: ChainHash,
}

impl Inner {
    /// How this member stands.
    pub(in crate::node) fn standing(&self) -> Standing {
        let head = self.store.head();
        let applied = head.applied.map(|applied| AppliedPoint {
            position: applied.index,
            revision: head.revision,
            chain: head.chain,
        });
        // After an install the log is behind the history, which is durable as far as it is sealed.
        let received_index = self.wal.durable_index().max(self.store.sealed().map(|sealed| sealed.index));
        let next = applied.map_or(0, |applied| applied.position + 1);
        Standing {
            received_index,
            applied,
            redo_bytes: self.wal.bytes_between(next, received_index.map_or(0, |index| index + 1)),
            canary_ms: self.store.canary_ms(),
            quarantined: self.quarantined().map(|quarantine| quarantine.why.to_string()),
            unverified: self.is_unverified(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_a_later_program_is_understood() {
        let text = format!(
            r#"{{"received_index":9,"applied":{{"position":8,"revision":7,"chain":"{}"}},"redo_bytes":10,"mood":"fine"}}"#,
            "0".repeat(32)
        );
        let standing: Standing = serde_json::from_str(&text).unwrap();
        assert_eq!((standing.received_index, standing.quarantined), (Some(9), None));
        assert_eq!(standing.applied.map(|point| (point.position, point.revision)), Some((8, 7)));
    }
}
