//! The model: plain maps that hold every version of every key, written without any of the store's code.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::history::FrameOp;
use crate::model::{
    Command, Condition, Entry, EntryKind, KeyMeta, KeySpace, LogId, OpResult, Outcome, Revision, WriteOp,
};
use crate::store::KeyValue;

pub type ModelKey = (KeySpace, Bytes);
/// A version: its revision, and the value unless it is a deletion.
pub type Version = (Revision, Option<(KeyMeta, Bytes)>);

/// What one entry must come to.
#[derive(Debug, Clone)]
pub struct Expected {
    pub outcome: Outcome,
    pub ops: Vec<FrameOp>,
    pub revision: Revision,
    pub clock_ms: u64,
}

#[derive(Debug, Default, Clone)]
pub struct Oracle {
    /// The wal: every entry since the first.
    pub entries: Vec<Entry>,
    pub expected: Vec<Expected>,
    /// The versions of each key, the oldest first.
    pub versions: BTreeMap<ModelKey, Vec<Version>>,
    pub revision: Revision,
    pub clock_ms: u64,
    pub membership: Option<(LogId, Bytes)>,
    pub cluster: Option<crate::model::ClusterId>,
    pub read_floor: Revision,
    pub delta_floor: u64,
}

impl Oracle {
    pub fn at(&self, key: &ModelKey, revision: Revision) -> Option<(KeyMeta, Bytes)> {
        let versions = self.versions.get(key)?;
        versions.iter().rev().find(|version| version.0 <= revision)?.1.clone()
    }

    /// Up to which revision a deletion counts as if the key had never been.
    fn tombstone_floor(&self) -> Revision {
        // At 0 it has not moved yet, and nothing lies below it.
        let floor = self.expected.get(self.delta_floor as usize).filter(|_| self.delta_floor > 0);
        let at_delta_floor = floor.map_or(0, |expected| expected.revision);
        self.read_floor.min(at_delta_floor)
    }

    /// Takes a record of the floors, which do not go down and not beyond what came before.
    fn move_floors(&mut self, record: &[u8]) {
        let record: serde_json::Value = serde_json::from_slice(record).unwrap();
        let field = |name: &str| record[name].as_u64().unwrap();
        self.read_floor = self.read_floor.max(field("read_floor").min(self.revision));
        let last = (self.entries.len() as u64).saturating_sub(1);
        self.delta_floor = self.delta_floor.max(field("delta_floor").min(last));
    }

    pub fn newest(&self, key: &ModelKey) -> Option<(KeyMeta, Bytes)> {
        self.at(key, Revision::MAX)
    }

    /// The keys of a range at a revision.
    pub fn range(
        &self,
        space: KeySpace,
        start: &Bytes,
        end: Option<&Bytes>,
        revision: Revision,
    ) -> Vec<(Bytes, KeyMeta, Bytes)> {
        let inside = |key: &Bytes| key >= start && end.is_none_or(|end| key < end);
        let keys = self.versions.keys().filter(|(s, key)| *s == space && inside(key));
        keys.filter_map(|key| self.at(key, revision).map(|(meta, value)| (key.1.clone(), meta, value))).collect()
    }

    /// All keys of a space as they are now.
    pub fn all(&self, space: KeySpace) -> Vec<KeyValue> {
        let keys = self.range(space, &Bytes::new(), None, Revision::MAX);
        keys.into_iter().map(|(key, meta, value)| KeyValue { key, value, meta }).collect()
    }

    pub fn live_keys(&self) -> u64 {
        self.versions.keys().filter(|key| self.newest(key).is_some()).count() as u64
    }

    pub fn apply(&mut self, entry: Entry) {
        let (outcome, ops) = match entry.kind {
            EntryKind::Blank => (Outcome::None, vec![]),
            EntryKind::Membership => {
                self.membership = Some((entry.log_id, entry.payload.clone()));
                (Outcome::None, vec![])
            }
            EntryKind::Command => self.command(Command::decode(&entry.payload).unwrap()),
        };
        if !ops.is_empty() {
            self.revision += 1;
        }
        let (revision, clock_ms) = (self.revision, self.clock_ms);
        self.expected.push(Expected { outcome, ops, revision, clock_ms });
        self.entries.push(entry);
    }

    fn command(&mut self, command: Command) -> (Outcome, Vec<FrameOp>) {
        match command {
            Command::Found { time_ms, cluster, timeline } => {
                self.clock_ms = self.clock_ms.max(time_ms);
                if self.cluster.is_some() {
                    return (Outcome::None, vec![]);
                }
                self.cluster = Some(cluster);
                let timelines =
                    format!(r#"[{{"number":1,"id":"{timeline}","parent":null,"fork_position":0,"fork_revision":0}}]"#);
                let puts: [(&'static str, Bytes); 2] =
                    [("cluster", Bytes::copy_from_slice(&cluster.0)), ("timelines", timelines.into())];
                let (key, space) = (|key: &'static str| Bytes::from_static(key.as_bytes()), KeySpace::System);
                let puts = puts.map(|(k, value)| WriteOp::Put { space, key: key(k), value, lease: 0 });
                let ops = self.ops(puts.to_vec()).1;
                (Outcome::None, ops)
            }
            Command::Request(_) | Command::Begin(_) => unreachable!("they have tests of their own"),
            Command::Write(write) => {
                self.clock_ms = self.clock_ms.max(write.time_ms);
                for (guard, asked) in write.guards.iter().enumerate() {
                    let current = self.newest(&(KeySpace::User, asked.key.clone())).map(|(meta, _)| meta);
                    let holds = match (&asked.condition, current) {
                        (Condition::Absent, current) => current.is_none(),
                        (Condition::Exists, current) => current.is_some(),
                        (Condition::ModRevisionIn(list), current) => {
                            current.is_some_and(|meta| list.contains(&meta.mod_revision))
                        }
                        (Condition::ModRevisionNotIn(list), current) => {
                            !current.is_some_and(|meta| list.contains(&meta.mod_revision))
                        }
                    };
                    if !holds {
                        return (Outcome::Refused { revision: self.revision, guard, current }, vec![]);
                    }
                }
                let floors = |op: &WriteOp| match op {
                    WriteOp::Put { space: KeySpace::System, key, value, .. } if key == "floors" => Some(value.clone()),
                    _ => None,
                };
                let record = write.ops.iter().find_map(floors);
                let (results, ops) = self.ops(write.ops);
                if let Some(record) = record {
                    self.move_floors(&record);
                }
                let revision = self.revision + u64::from(!ops.is_empty());
                (Outcome::Written { revision, results }, ops)
            }
        }
    }

    fn ops(&mut self, ops: Vec<WriteOp>) -> (Vec<OpResult>, Vec<FrameOp>) {
        let revision = self.revision + 1;
        let (mut results, mut done) = (vec![], vec![]);
        for op in ops {
            match op {
                WriteOp::Put { space, key, value, lease } => {
                    let replaced = self.newest(&(space, key.clone())).map(|(meta, _)| meta);
                    let meta = KeyMeta {
                        create_revision: replaced.map_or(revision, |meta| meta.create_revision),
                        mod_revision: revision,
                        version: replaced.map_or(1, |meta| meta.version + 1),
                        lease,
                    };
                    let previous = self.set((space, key.clone()), revision, Some((meta, value.clone())));
                    let KeyMeta { create_revision, version, .. } = meta;
                    done.push(FrameOp::Put { space, key, value, create_revision, version, lease, previous });
                    results.push(OpResult::Put { meta, previous: replaced.map(|meta| meta.mod_revision) });
                }
                WriteOp::Delete { space, key } => {
                    let deleted = self.newest(&(space, key.clone())).map(|(meta, _)| meta.mod_revision);
                    if deleted.is_some() {
                        let previous = self.set((space, key.clone()), revision, None);
                        done.push(FrameOp::Delete { space, key, previous });
                    }
                    results.push(OpResult::Deleted { count: u64::from(deleted.is_some()), previous: deleted });
                }
                WriteOp::DeleteRange { space, start, end } => {
                    let keys = self.range(space, &start, end.as_ref(), Revision::MAX);
                    results.push(OpResult::Deleted { count: keys.len() as u64, previous: None });
                    for (key, _, _) in keys {
                        let previous = self.set((space, key.clone()), revision, None);
                        done.push(FrameOp::Delete { space, key, previous });
                    }
                }
            }
        }
        (results, done)
    }

    /// Adds a version, which replaces one of the same revision; returns the revision before.
    fn set(&mut self, key: ModelKey, revision: Revision, value: Option<(KeyMeta, Bytes)>) -> Revision {
        let floor = self.tombstone_floor();
        let versions = self.versions.entry(key).or_default();
        if versions.last().is_some_and(|last| last.0 == revision) {
            versions.pop();
        }
        let absent = |last: &&Version| last.1.is_none() && last.0 <= floor;
        let previous = versions.last().filter(|last| !absent(last)).map_or(0, |last| last.0);
        versions.push((revision, value));
        previous
    }
}
