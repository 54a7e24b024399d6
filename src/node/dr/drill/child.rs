//! The throwaway member of a drill: what it tells the mirror that started it, and what it does that no other member does.
//!
//! It is a member as any other until it is told to rehearse: a mirror that finds no leader. Then it promotes itself by the
//! very code of a forced failover ([`Inner::promoted`]), which closes it and opens it anew.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::api::{DrillCheck, DrillRto, DrillSequence, Loss, TimelineName};
use crate::model::{KeySpace, Revision, TimelineId, new_random_id};
use crate::node::dr::promote::{Fork, Promotion};
use crate::node::verify::Pacer;
use crate::node::{Inner, Node};
use crate::raft::peer_http;
use crate::store::{DigestRange, RangeQuery, Store};

/// Behind every key that clients write, and before those of the system.
const BEHIND_USER_KEYS: &[u8] = &[KeySpace::System as u8];
/// Where the records of sequences begin, in the key space of the system.
const SEQUENCES: &[u8] = b"seq/";
const BEHIND_SEQUENCES: &[u8] = b"seq0";

/// A line of the child's standard output.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChildLine {
    /// It has opened the fork and built an index, in so many seconds.
    Opened {
        /// How long that took.
        seconds: f64,
    },
    /// It leads and has accepted a write.
    Leads(ChildLeads),
    /// All is checked.
    Checked(ChildChecked),
    /// It gives up.
    Failed {
        /// Why.
        why: String,
    },
}

/// What a child says when it leads.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChildLeads {
    /// How long it took, by its parts. The mirror fills in the objective.
    pub rto: DrillRto,
    /// The timeline that it has begun.
    pub timeline: TimelineName,
    /// The revision of the first write.
    pub revision: Revision,
    /// A planned pause refused that write, and was ended in the fork.
    pub ended_pause: bool,
}

/// What a child has found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChildChecked {
    /// The checks.
    pub checks: Vec<DrillCheck>,
    /// How a sequence jumped.
    pub sequence: Option<DrillSequence>,
    /// What it holds at the revision that it was told; or why that cannot be said.
    pub content: Result<Contents, String>,
}

/// What a store holds at a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// How many keys of clients there are.
    pub keys: u64,
    /// The digest of them with all that belongs to them.
    pub user: String,
    /// The same of the records of the system.
    pub system: String,
}

/// A key as it was before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}

impl Contents {
    /// Digests a store, not faster than at this rate; none when `go_on` has ended it.
    pub(super) fn of(
        store: &Store,
        at: Revision,
        bytes_per_second: u64,
        go_on: impl Fn() -> bool,
    ) -> Result<Option<Contents>, String> {
        let mut pacer = Pacer::new(0, bytes_per_second);
        let mut pace = |bytes| {
            pacer.took(bytes);
            if go_on() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let border = bytes::Bytes::from_static(BEHIND_USER_KEYS);
        let user = DigestRange { after: None, upto: Some(border.clone()) };
        let system = DigestRange { after: Some(border), upto: None };
        let mut digest = |range| store.digest(at, &range, u64::MAX, u64::MAX, &mut pace).map_err(|e| e.to_string());
        let Some(user) = digest(user)? else { return Ok(None) };
        let Some(system) = digest(system)? else { return Ok(None) };
        let text = |digest: [u8; 32]| digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Some(Contents { keys: user.keys, user: text(user.digest), system: text(system.digest) }))
    }
}

impl Inner {
    /// Promotes this member, which nobody else knows.
    fn rehearse(self: &std::sync::Arc<Self>) -> Result<TimelineId, String> {
        if !peer_http::dials_nobody() {
            return Err("this member can reach others: it is none to rehearse with".into());
        }
        let Some(parent) = self.store.timelines().last().map(|timeline| timeline.id) else {
            return Err("the fork has no history".into());
        };
        let last = self.wal.state().last.max(self.store.applied());
        let fork = Fork {
            cluster: self.http.identity().cluster,
            id: new_random_id(),
            parent,
            began_ms: super::now_ms(),
            by: "lifeboat dr drill".into(),
            reason: "a drill".into(),
            member: self.info.name.clone(),
            site: self.info.site.clone(),
            survivor: false,
            loss: Loss {
                kept_revision: self.store.revision(),
                kept_index: last.map_or(0, |last| last.index),
                known_committed_index: self.committed_index(),
                entries_at_least: 0,
                window_seconds: None,
                unbounded: false,
            },
            // Nobody is told, and nobody comes home.
            members: Vec::new(),
            rejoin: Vec::new(),
        };
        self.promoted(Promotion { id: fork.id, parent, offset: rand::random(), fork, decided: false })
    }

    /// Reads all segments from the disk; how many bytes they have.
    fn scrub_all(&self) -> Result<u64, String> {
        let mut pacer = Pacer::new(0, self.verify_bytes_per_second);
        let (mut next, mut bytes) = (Some(0), 0);
        while let Some(from) = next {
            let step = self.store.scrub(from, &mut |read| {
                pacer.took(read);
                ControlFlow::Continue(())
            });
            let step = step.map_err(|error| error.to_string())?;
            (next, bytes) = (step.next, bytes + step.bytes);
        }
        Ok(bytes)
    }
}

impl Node {
    /// Promotes this throwaway member as a forced failover would.
    pub fn rehearse(&self) -> Result<TimelineId, String> {
        self.0.rehearse()
    }

    /// The timeline that this member's history is on.
    pub fn newest_timeline(&self) -> Option<TimelineName> {
        let newest = self.0.store.timelines().pop()?;
        Some(TimelineName { number: newest.number, id: newest.id })
    }

    /// The name of some sequence.
    pub fn some_sequence(&self) -> Option<String> {
        let query = RangeQuery {
            start: SEQUENCES.into(),
            end: Some(BEHIND_SEQUENCES.into()),
            limit: 1,
            keys_only: true,
            ..RangeQuery::all(KeySpace::System)
        };
        let found = self.0.store.range(&query).ok()?.items.pop()?;
        String::from_utf8(found.key.strip_prefix(SEQUENCES)?.to_vec()).ok()
    }

    /// Some key that clients have written before this revision, with what it was then.
    pub fn some_key(&self, at: Revision) -> Result<Option<Sample>, String> {
        let query = RangeQuery { limit: 1, at: Some(at), ..RangeQuery::all(KeySpace::User) };
        let mut page = self.0.store.range(&query).map_err(|error| error.to_string())?;
        Ok(page.items.pop().map(|item| Sample { key: item.key.to_vec(), value: item.value.to_vec() }))
    }

    /// Reads everything of this member from its disk, and digests what it holds at a revision.
    pub async fn inspect(&self, at: Revision) -> (DrillCheck, Result<Contents, String>) {
        let inner = self.0.clone();
        let inspected = tokio::task::spawn_blocking(move || {
            let (passed, detail) = match inner.scrub_all() {
                Ok(bytes) => (true, format!("{bytes} bytes of segments were read from the disk and are sound")),
                Err(why) => (false, why),
            };
            let scrub = DrillCheck { name: "files".into(), passed, detail };
            let contents = Contents::of(&inner.store, at, inner.verify_bytes_per_second, || true);
            (scrub, contents.and_then(|contents| contents.ok_or_else(|| "it was ended".to_owned())))
        });
        inspected.await.unwrap_or_else(|error| {
            let why = error.to_string();
            (DrillCheck { name: "files".into(), passed: false, detail: why.clone() }, Err(why))
        })
    }
}
