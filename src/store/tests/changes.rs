//! The cursor by revision: what it gives is what the entries did, wherever their frames lie, page by page.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;

use super::compaction::{Compacting, compact_all};
use super::copies::copy;
use super::model::Pair;
use super::oracle::Oracle;
use super::{Seeded, chance, open};
use crate::files::sim::SimDisk;
use crate::history::FrameOp;
use crate::index::MemoryIndex;
use crate::model::{Command, Entry, EntryKind, KeyMeta, KeySpace, LogId, Revision, WriteCommand, WriteOp};
use crate::store::{
    ChangesPage, ChangesQuery, KeyChange, PREVIOUS_VALUES_BYTES, PreviousVersion, PutVersion, ReadError, Store,
    Transaction,
};

/// What the model says was changed after a revision.
fn expected(oracle: &Oracle, after: Revision, previous: bool) -> Vec<Transaction> {
    let made = oracle.expected.iter().filter(|entry| !entry.ops.is_empty() && entry.revision > after);
    let transactions = made.map(|entry| {
        let mut replaced: BTreeMap<Bytes, Option<(KeyMeta, Bytes)>> = BTreeMap::new();
        let mut changes = Vec::new();
        for op in entry.ops.iter().filter(|op| op.key().0 == KeySpace::User) {
            let key = op.key().1.clone();
            let put = match op {
                FrameOp::Delete { .. } => None,
                FrameOp::Put { value, create_revision, version, lease, .. } => {
                    let (create_revision, version, lease) = (*create_revision, *version, *lease);
                    let meta = KeyMeta { create_revision, mod_revision: entry.revision, version, lease };
                    Some(PutVersion { value: value.clone(), meta })
                }
            };
            let now = put.as_ref().map(|put| (put.meta, put.value.clone()));
            let before = oracle.at(&(KeySpace::User, key.clone()), entry.revision - 1);
            let before = replaced.insert(key.clone(), now).unwrap_or(before).filter(|_| previous);
            let previous = before.map(|(meta, value)| PreviousVersion { value: Some(value), meta });
            changes.push(KeyChange { key, put, previous });
        }
        Transaction { revision: entry.revision, time_ms: entry.clock_ms, changes }
    });
    transactions.filter(|transaction| !transaction.changes.is_empty()).collect()
}

/// Reads everything after a revision in pages of the given bounds.
fn read_all(store: &Store, query: &ChangesQuery) -> Vec<Transaction> {
    let (mut query, mut all) = (query.clone(), Vec::new());
    while query.after < store.revision() {
        let ChangesPage { transactions, upto } = store.changes(&query).unwrap();
        assert!(upto > query.after, "a page goes on: {query:?}");
        assert!(transactions.len() <= query.max_transactions.max(1));
        assert!(transactions.iter().all(|transaction| (query.after + 1..=upto).contains(&transaction.revision)));
        query.after = upto;
        all.extend(transactions);
    }
    all
}

fn check(rng: &mut StdRng, pair: &Pair) {
    let revision = pair.oracle.revision;
    let query = ChangesQuery {
        after: if chance(rng, 40) { 0 } else { rng.random_range(0..revision + 1) },
        max_transactions: if chance(rng, 50) { usize::MAX } else { rng.random_range(1..5) },
        max_bytes: if chance(rng, 50) { usize::MAX } else { rng.random_range(0..2000) },
        previous: rng.random(),
    };
    assert_eq!(read_all(&pair.store, &query), expected(&pair.oracle, query.after, query.previous), "{query:?}");
    let query = ChangesQuery { after: revision + 1, ..query };
    assert!(matches!(pair.store.changes(&query), Err(ReadError::Future { current }) if current == revision));
}

#[test]
fn changes_are_what_the_entries_did_wherever_they_lie() {
    let mut seeded = Seeded::new();
    let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
    let mut pair = Pair::new(open(&disk, &index).unwrap());
    for step in 0..400 {
        let count = seeded.rng.random_range(1..8);
        pair.apply(&mut seeded.rng, count);
        if chance(&mut seeded.rng, 20) {
            pair.store.seal(pair.last_index()).unwrap();
            pair.store.flush_index().unwrap();
        }
        if !pair.store.has_room() || chance(&mut seeded.rng, 2) {
            pair.store.seal_all(pair.last_index()).unwrap();
            pair.store.flush_index().unwrap();
        }
        if chance(&mut seeded.rng, 2) {
            drop(pair.store);
            pair.store = open(&disk, &index).unwrap();
            pair.catch_up(&mut seeded.rng);
        }
        if step % 4 == 0 {
            check(&mut seeded.rng, &pair);
        }
    }
    // And after an install, which replaces all of it.
    let other = open(&SimDisk::new(), &Arc::default()).unwrap();
    copy(&pair.store, &other).unwrap();
    let copied = Pair { store: other, oracle: pair.oracle.clone(), generator: pair.generator };
    for _ in 0..20 {
        check(&mut seeded.rng, &copied);
    }
}

#[test]
fn below_the_read_floor_there_are_no_changes_and_at_it_there_are_all() {
    let mut seeded = Seeded::new();
    let mut pair = Pair::new(open(&SimDisk::new(), &Arc::default()).unwrap());
    pair.apply(&mut seeded.rng, 60);
    let floor = pair.oracle.revision / 2;
    pair.store.set_read_floor(floor);
    let query = |after| ChangesQuery { after, max_transactions: usize::MAX, max_bytes: usize::MAX, previous: true };
    for after in 0..floor {
        let read = pair.store.changes(&query(after));
        assert!(matches!(read, Err(ReadError::Compacted { floor: told }) if told == floor), "{after}: {read:?}");
    }
    assert_eq!(read_all(&pair.store, &query(floor)), expected(&pair.oracle, floor, true));
}

#[test]
fn the_last_change_of_a_key_is_told_for_deleted_keys_too() {
    let mut seeded = Seeded::new();
    let mut pair = Pair::new(open(&SimDisk::new(), &Arc::default()).unwrap());
    pair.apply(&mut seeded.rng, 200);
    pair.store.seal_all(pair.last_index()).unwrap();
    pair.store.flush_index().unwrap();
    for ((space, key), versions) in &pair.oracle.versions {
        let newest = versions.last().map(|version| version.0);
        assert_eq!(pair.store.last_change(*space, key).unwrap(), newest, "{key:?}");
    }
    assert_eq!(pair.store.last_change(KeySpace::User, b"never written").unwrap(), None);
}

#[test]
fn previous_values_are_bounded() {
    let store = open(&SimDisk::new(), &Arc::default()).unwrap();
    let value = Bytes::from(vec![7; PREVIOUS_VALUES_BYTES / 2]);
    let mut index = 0;
    let mut apply = |ops| {
        let payload = Command::Write(WriteCommand { ops, ..WriteCommand::default() }).encode();
        let log_id = LogId { term: 1, leader: 1, index };
        store.apply(&[Entry { log_id, kind: EntryKind::Command, payload }]).unwrap();
        store.seal_all(index).unwrap();
        store.flush_index().unwrap();
        index += 1;
    };
    for key in [&b"a"[..], b"b", b"c"] {
        let (key, space) = (Bytes::from_static(key), KeySpace::User);
        apply(vec![WriteOp::Put { space, key, value: value.clone(), lease: 0 }]);
    }
    apply(vec![WriteOp::DeleteRange { space: KeySpace::User, start: Bytes::new(), end: None }]);
    let query = ChangesQuery { after: 3, max_transactions: 9, max_bytes: 1, previous: true };
    let page = store.changes(&query).unwrap();
    let previous = page.transactions[0].changes.iter().map(|change| change.previous.as_ref().unwrap());
    let (values, revisions): (Vec<_>, Vec<_>) =
        previous.map(|previous| (previous.value.is_some(), previous.meta.mod_revision)).unzip();
    assert_eq!((values, revisions), (vec![true, true, false], vec![1, 2, 3]));
}

#[test]
fn compaction_takes_nothing_from_above_the_floor() {
    let mut seeded = Seeded::new();
    let mut compacting = Compacting::new(open(&SimDisk::new(), &Arc::default()).unwrap());
    for _ in 0..40 {
        for _ in 0..5 {
            compacting.apply(&mut seeded.rng, 8);
            compacting.pair.store.seal_all(compacting.pair.last_index()).unwrap();
            compacting.pair.store.flush_index().unwrap();
            compacting.twin.seal_all(u64::MAX).unwrap();
            compacting.twin.flush_index().unwrap();
        }
        compacting.move_floors(&mut seeded.rng);
        let store = &compacting.pair.store;
        let oracle = &compacting.pair.oracle;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    check_page(store, oracle, store.read_floor());
                }
            });
            compact_all(store);
            done.store(true, Ordering::Relaxed);
            reader.join().unwrap();
        });
        let floor = store.read_floor();
        for _ in 0..5 {
            let after = seeded.rng.random_range(0..oracle.revision + 1);
            let previous = seeded.rng.random();
            let query = ChangesQuery { after, max_transactions: 7, max_bytes: 2000, previous };
            if after < floor {
                let read = store.changes(&query);
                assert!(matches!(read, Err(ReadError::Compacted { floor: told }) if told == floor), "{after}");
            } else {
                assert_eq!(read_all(store, &query), expected(oracle, after, previous), "{query:?}");
            }
        }
    }
    assert!(compacting.pair.store.read_floor() > 0);
}

/// Reads one page and compares it, unless the floor has overtaken it.
fn check_page(store: &Store, oracle: &Oracle, after: Revision) {
    let query = ChangesQuery { after, max_transactions: 20, max_bytes: 20_000, previous: true };
    match store.changes(&query) {
        Err(ReadError::Compacted { floor }) => assert!(floor > after),
        Err(error) => panic!("after {after}: {error}"),
        Ok(page) => {
            let until = expected(oracle, after, true).into_iter().take_while(|seen| seen.revision <= page.upto);
            assert_eq!(page.transactions, until.collect::<Vec<_>>());
        }
    }
}
