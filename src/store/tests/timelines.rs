//! A timeline that begins: its record and its revisions, what becomes of revisions of the branch that was left, and that
//! snapshots, restarts and seals carry all of it.

use std::sync::Arc;

use bytes::Bytes;

use super::copies::copy;
use super::open;
use crate::files::sim::SimDisk;
use crate::model::{
    BeginTimeline, Command, Entry, EntryKind, KeySpace, LogId, Outcome, RandomId, Revision, TimelineId, WriteCommand,
    WriteOp,
};
use crate::store::{ChangesQuery, ReadError, Store};

fn id(number: u8) -> TimelineId {
    RandomId([number; 16])
}

fn apply(store: &Store, command: impl Into<Command>) -> Outcome {
    let index = store.applied().map_or(0, |log_id| log_id.index + 1);
    let log_id = LogId { term: 1, leader: 1, index };
    let entry = Entry { log_id, kind: EntryKind::Command, payload: command.into().encode() };
    store.apply(&[entry]).unwrap().remove(0)
}

fn put(store: &Store, key: &'static str, value: &'static str) -> Revision {
    let (key, value) = (Bytes::from_static(key.as_bytes()), Bytes::from_static(value.as_bytes()));
    let ops = vec![WriteOp::Put { space: KeySpace::User, key, value, lease: 0 }];
    match apply(store, WriteCommand { ops, ..WriteCommand::default() }) {
        Outcome::Written { revision, .. } => revision,
        other => panic!("{other:?}"),
    }
}

fn begin(store: &Store, new: u8, parent: u8, offset: u64) {
    let record = Bytes::from(format!("timeline {new}"));
    apply(store, Command::Begin(BeginTimeline { time_ms: 9, id: id(new), parent: id(parent), offset, record }));
}

fn founded() -> Store {
    let store = open(&SimDisk::new(), &Arc::default()).unwrap();
    apply(&store, Command::Found { time_ms: 1, cluster: id(9), timeline: id(1) });
    store
}

fn changes(after: Revision, max_transactions: usize) -> ChangesQuery {
    ChangesQuery { after, max_transactions, max_bytes: 1 << 20, previous: true }
}

#[test]
fn a_timeline_begins_once_and_only_on_its_parent() {
    let store = founded();
    put(&store, "a", "1");
    let before = store.revision();
    begin(&store, 2, 7, 0);
    assert_eq!((store.timelines().len(), store.revision()), (1, before), "its parent is another one");
    begin(&store, 2, 1, 5);
    let timeline = store.timelines().pop().unwrap();
    assert_eq!((timeline.number, timeline.id, timeline.parent), (2, id(2), Some(id(1))));
    // The founding, a write, what was refused.
    assert_eq!((timeline.fork_position, timeline.fork_revision), (2, before));
    assert_eq!(timeline.base_revision, (1 << 40) + 5);
    assert_eq!(store.revision(), timeline.base_revision);
    assert_eq!(store.timeline_record(2).unwrap().unwrap(), "timeline 2");
    begin(&store, 2, 1, 5);
    assert_eq!((store.timelines().len(), store.revision()), (2, timeline.base_revision), "it has begun already");
    assert_eq!(put(&store, "a", "2"), timeline.base_revision + 1);
}

#[test]
fn revisions_of_the_branch_that_was_left_are_refused_and_all_others_are_read() {
    let mut store = founded();
    let old = put(&store, "a", "1");
    begin(&store, 2, 1, 1 << 33);
    let base = store.revision();
    let new = put(&store, "a", "2");
    for round in 0..3 {
        let value = |at| store.get(KeySpace::User, b"a", Some(at)).map(|found| found.map(|found| found.value));
        assert_eq!(value(old).unwrap().unwrap(), "1");
        assert_eq!(value(base).unwrap().unwrap(), "1");
        assert_eq!(value(new).unwrap().unwrap(), "2");
        for left in [old + 1, old + 1000, 1 << 40, base - 1] {
            let diverged = |error| match error {
                ReadError::Diverged { fork, base: first } => (fork, first),
                other => panic!("{other:?}"),
            };
            assert_eq!(diverged(value(left).unwrap_err()), (old, base), "{round}");
            assert_eq!(diverged(store.changes(&changes(left, 10)).unwrap_err()), (old, base));
            assert_eq!(diverged(store.check_not_left(left).unwrap_err()), (old, base));
        }
        assert!(matches!(value(new + 1), Err(ReadError::Future { current }) if current == new));
        // From before the fork, one transaction a page: every cursor on the way can be continued.
        let (mut at, mut seen) = (0, Vec::new());
        while at < new {
            let page = store.changes(&changes(at, 1)).unwrap();
            assert!(page.upto > at, "{round}: from {at}");
            seen.extend(page.transactions.iter().map(|transaction| transaction.revision));
            at = page.upto;
        }
        assert_eq!(seen, [old, new]);
        match round {
            // Sealed, then as a copy.
            0 => {
                let applied = store.applied().unwrap().index;
                store.seal_all(applied).unwrap();
            }
            1 => {
                let other = open(&SimDisk::new(), &Arc::default()).unwrap();
                copy(&store, &other).unwrap();
                assert_eq!(other.timelines(), store.timelines());
                assert_eq!(other.chain(), store.chain());
                store = other;
            }
            _ => {}
        }
    }
}
