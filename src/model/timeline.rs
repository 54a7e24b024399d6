//! Identities of clusters and of timelines (branches of history).
//!
//! Timelines are compared by identity and ancestry, never by number alone.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Revision;
use super::codec::{DecodeError, Reader, put_bytes, put_varint};
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
    pub fork_revision: Revision,
    /// The first revision of its own. None of those between the fork and this one belongs to it: they are, or may become,
    /// the revisions of the branch that was left behind. The first timeline has none, and does not say so: earlier programs
    /// write its record without this field, and all must write the same.
    #[serde(default, skip_serializing_if = "is_none")]
    pub base_revision: Revision,
}

fn is_none(revision: &Revision) -> bool {
    *revision == 0
}

/// A timeline begins its revisions behind a multiple of this. JSON numbers, which hold 53 bits, have room for some 8,000.
const REVISION_STEP: Revision = 1 << 40;
/// So many revisions at least lie between a fork and the base behind it, and between a base and the next multiple: more
/// than the branch that was left behind will ever write.
const REVISION_GAP: Revision = 1 << 32;
/// No revision may be larger: the largest number that JSON's readers keep exactly.
const MAX_REVISION: Revision = 1 << 53;

impl Timeline {
    /// The first timeline of a cluster.
    pub fn first(id: TimelineId) -> Timeline {
        Timeline { number: 1, id, parent: None, fork_position: 0, fork_revision: 0, base_revision: 0 }
    }
}

/// The first revision of a timeline that forks at a revision. `offset` is random, so that two timelines that fork from one
/// parent do not give the same revisions out. None when there is no room for more timelines.
pub fn base_revision(fork_revision: Revision, offset: u64) -> Option<Revision> {
    let step = (fork_revision + REVISION_GAP) / REVISION_STEP + 1;
    let base = step.checked_mul(REVISION_STEP)? + offset % (REVISION_STEP - REVISION_GAP);
    (base + REVISION_GAP < MAX_REVISION).then_some(base)
}

/// How the branch that one member is on relates to that of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kinship {
    /// The same timeline.
    Same,
    /// Ours forked into theirs: history went on without us.
    Ancestor,
    /// Theirs forked into ours.
    Descendant,
    /// Both forked from one that both know: neither contains the other.
    Siblings,
    /// They have nothing in common, or one is not known.
    Strangers,
}

/// Compares two lists of timelines, each from the first to the current one.
pub fn kinship(ours: &[Timeline], theirs: &[Timeline]) -> Kinship {
    let knows = |list: &[Timeline], id: TimelineId| list.iter().any(|timeline| timeline.id == id);
    let (Some(our), Some(their)) = (ours.last(), theirs.last()) else { return Kinship::Strangers };
    match () {
        () if our.id == their.id => Kinship::Same,
        () if knows(theirs, our.id) => Kinship::Ancestor,
        () if knows(ours, their.id) => Kinship::Descendant,
        () if ours.iter().any(|timeline| knows(theirs, timeline.id)) => Kinship::Siblings,
        () => Kinship::Strangers,
    }
}

/// The fork and the base between which a revision lies, when it belongs to a branch that these timelines have left behind.
pub fn left_behind(timelines: &[Timeline], revision: Revision) -> Option<(Revision, Revision)> {
    let gaps = timelines.iter().map(|timeline| (timeline.fork_revision, timeline.base_revision));
    gaps.into_iter().find(|(fork, base)| *fork < revision && revision < *base)
}

/// Begins a timeline: the entry that a forced failover writes into the log of the member that it promotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeginTimeline {
    /// The promoted member's time in milliseconds since 1970.
    pub time_ms: u64,
    /// The identity of the new timeline.
    pub id: TimelineId,
    /// The timeline that it forks from; on another one the entry does nothing.
    pub parent: TimelineId,
    /// Random; see [`base_revision`].
    pub offset: u64,
    /// Who, when, why, and what is lost: JSON for people, kept as a record.
    pub record: Bytes,
}

impl BeginTimeline {
    /// All but the time.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.0);
        out.extend_from_slice(&self.parent.0);
        put_varint(out, self.offset);
        put_bytes(out, &self.record);
    }

    /// With the time.
    pub(super) fn decode(reader: &mut Reader) -> Result<BeginTimeline, DecodeError> {
        Ok(BeginTimeline {
            time_ms: reader.u64("time")?,
            id: super::command::read_id(reader)?,
            parent: super::command::read_id(reader)?,
            offset: reader.varint("offset of a timeline")?,
            record: reader.bytes("record of a timeline")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branch(ids: &[u8]) -> Vec<Timeline> {
        let ids = ids.iter().map(|id| RandomId([*id; 16]));
        ids.map(Timeline::first).collect()
    }

    #[test]
    fn timelines_are_compared_by_identity() {
        let of = |ours: &[u8], theirs: &[u8]| kinship(&branch(ours), &branch(theirs));
        assert_eq!(of(&[1, 2], &[1, 2]), Kinship::Same);
        assert_eq!(of(&[1], &[1, 2]), Kinship::Ancestor);
        assert_eq!(of(&[1, 2, 3], &[1, 2]), Kinship::Descendant);
        assert_eq!(of(&[1, 2], &[1, 3]), Kinship::Siblings);
        assert_eq!(of(&[1, 2, 4], &[1, 3]), Kinship::Siblings);
        assert_eq!(of(&[1], &[2]), Kinship::Strangers);
        assert_eq!(of(&[], &[2]), Kinship::Strangers);
        assert_eq!(of(&[1], &[]), Kinship::Strangers);
    }

    #[test]
    fn bases_leave_room_for_the_branch_that_was_left() {
        let offsets = [0, 1, REVISION_STEP - REVISION_GAP - 1, u64::MAX];
        for fork in [0, 1, REVISION_STEP - REVISION_GAP - 1, REVISION_STEP - 1, REVISION_STEP, 7 * REVISION_STEP + 99] {
            for offset in offsets {
                let base = base_revision(fork, offset).unwrap();
                assert!(base >= fork + REVISION_GAP, "{fork} {offset}: {base}");
                assert!(base / REVISION_STEP > fork / REVISION_STEP, "{fork} {offset}: {base}");
                assert!((base + REVISION_GAP - 1) / REVISION_STEP == base / REVISION_STEP, "{fork} {offset}: {base}");
            }
        }
        let mut fork = 0;
        let mut count = 0;
        while let Some(base) = base_revision(fork, u64::MAX) {
            assert!(base > fork && base < MAX_REVISION);
            (fork, count) = (base + 1, count + 1);
        }
        assert!(count > 4000, "{count}");
    }

    #[test]
    fn a_revision_of_a_branch_that_was_left_is_told_from_ours() {
        let mut timelines = branch(&[1, 2, 3]);
        (timelines[1].fork_revision, timelines[1].base_revision) = (10, 100);
        (timelines[2].fork_revision, timelines[2].base_revision) = (120, 200);
        for (revision, gap) in [
            (0, None),
            (10, None),
            (11, Some((10, 100))),
            (99, Some((10, 100))),
            (100, None),
            (120, None),
            (121, Some((120, 200))),
            (200, None),
            (900, None),
        ] {
            assert_eq!(left_behind(&timelines, revision), gap, "{revision}");
        }
    }
}
