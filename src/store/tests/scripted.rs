//! Single facts about the store, by hand.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;

use super::super::apply::MAX_RANGE_DELETE_KEYS;
use super::{DIR, open, small};
use crate::files::sim::SimDisk;
use crate::history::{Frame, Manifest};
use crate::index::{IndexKind, MemoryIndex};
use crate::model::{
    Command, Entry, EntryKind, KeyMeta, KeySpace, LogId, OpResult, Outcome, Revision, WriteCommand, WriteOp,
    new_random_id,
};
use crate::store::{CLUSTER_KEY, RangeQuery, ReadError, Store, StoreConfig, StoreError};

fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(name: &str, value: &str) -> WriteOp {
    WriteOp::Put { space: KeySpace::User, key: key(name), value: key(value), lease: 0 }
}

fn delete(name: &str) -> WriteOp {
    WriteOp::Delete { space: KeySpace::User, key: key(name) }
}

fn entry(index: u64, command: &Command) -> Entry {
    let log_id = LogId { term: 1, leader: 1, index };
    Entry { log_id, kind: EntryKind::Command, payload: command.encode() }
}

fn write(index: u64, ops: Vec<WriteOp>) -> Entry {
    entry(index, &Command::Write(WriteCommand { time_ms: 0, guards: vec![], ops }))
}

fn memory() -> Store {
    open(&SimDisk::new(), &Arc::default()).unwrap()
}

fn next(store: &Store) -> u64 {
    store.applied().map_or(0, |log_id| log_id.index + 1)
}

fn apply(store: &Store, ops: Vec<WriteOp>) -> Outcome {
    store.apply(&[write(next(store), ops)]).unwrap().remove(0)
}

fn value(store: &Store, name: &str, at: Option<Revision>) -> Option<Bytes> {
    store.get(KeySpace::User, name.as_bytes(), at).unwrap().map(|found| found.value)
}

#[test]
fn founding_names_the_cluster_and_its_first_timeline_once() {
    let store = memory();
    let (cluster, timeline) = (new_random_id(), new_random_id());
    let found = |cluster| Command::Found { time_ms: 9, cluster, timeline };
    assert_eq!(store.apply(&[entry(0, &found(cluster))]).unwrap(), [Outcome::None]);
    assert_eq!((store.revision(), store.cluster(), store.clock_ms()), (1, Some(cluster), 9));
    let timelines = store.timelines();
    assert_eq!((timelines.len(), timelines[0].number, timelines[0].id), (1, 1, timeline));
    assert_eq!(store.get(KeySpace::System, CLUSTER_KEY, None).unwrap().unwrap().value, cluster.0.as_slice());
    assert_eq!(store.get(KeySpace::User, CLUSTER_KEY, None).unwrap(), None);
    store.apply(&[entry(1, &found(new_random_id()))]).unwrap();
    assert_eq!((store.revision(), store.cluster()), (1, Some(cluster)));
}

#[test]
fn a_key_written_twice_in_one_transaction_keeps_the_last() {
    let store = memory();
    apply(&store, vec![put("a", "0")]);
    let outcome = apply(&store, vec![put("a", "1"), put("a", "2"), put("b", "1"), delete("b"), delete("c")]);
    let meta = |version| KeyMeta { create_revision: 1, mod_revision: 2, version, lease: 0 };
    let created = KeyMeta { create_revision: 2, mod_revision: 2, version: 1, lease: 0 };
    let results = vec![
        OpResult::Put { meta: meta(2), previous: Some(1) },
        OpResult::Put { meta: meta(3), previous: Some(2) },
        OpResult::Put { meta: created, previous: None },
        OpResult::Deleted { count: 1, previous: Some(2) },
        OpResult::Deleted { count: 0, previous: None },
    ];
    assert_eq!(outcome, Outcome::Written { revision: 2, results });
    assert_eq!(value(&store, "a", None).unwrap(), "2");
    assert_eq!(value(&store, "a", Some(1)).unwrap(), "0");
    assert_eq!(value(&store, "b", None), None);
    let previous: Vec<Revision> = store.frame_at(1).unwrap().unwrap().ops().map(|op| op.unwrap().previous()).collect();
    assert_eq!(previous, [1, 1, 0, 0], "all name the version before the transaction");
    // Deleted and written again in one transaction: a new life of the key.
    apply(&store, vec![delete("a"), put("a", "3")]);
    let found = store.get_meta(KeySpace::User, b"a", None).unwrap().unwrap();
    assert_eq!((found.create_revision, found.version), (3, 1));
}

#[test]
fn a_range_delete_of_too_many_keys_does_nothing_on_any_member() {
    let store = memory();
    let total = MAX_RANGE_DELETE_KEYS + 1;
    for chunk in (0..total).collect::<Vec<_>>().chunks(10_000) {
        apply(&store, chunk.iter().map(|n| put(&format!("{n:06}"), "")).collect());
        store.seal_all(u64::MAX).unwrap();
        store.flush_index().unwrap();
    }
    let revision = store.revision();
    let all = || WriteOp::DeleteRange { space: KeySpace::User, start: Bytes::new(), end: None };
    // What the transaction did before the deletion is undone with it.
    assert_eq!(apply(&store, vec![put("x", "1"), all()]), Outcome::TooLarge { revision });
    assert_eq!((store.revision(), value(&store, "x", None)), (revision, None));
    assert_eq!(value(&store, "000000", None), Some(Bytes::new()));
    apply(&store, vec![delete("000000")]);
    let Outcome::Written { results, .. } = apply(&store, vec![all()]) else { panic!("not written") };
    assert_eq!(results, [OpResult::Deleted { count: MAX_RANGE_DELETE_KEYS as u64, previous: None }]);
}

#[test]
fn what_changes_nothing_makes_no_revision() {
    let store = memory();
    let nothing = OpResult::Deleted { count: 0, previous: None };
    assert_eq!(apply(&store, vec![delete("a")]), Outcome::Written { revision: 0, results: vec![nothing] });
    assert_eq!(apply(&store, vec![]), Outcome::Written { revision: 0, results: vec![] });
    assert_eq!((store.revision(), store.applied().unwrap().index), (0, 1));
    assert!(store.chain().is_some());
}

#[test]
fn entries_must_follow_each_other() {
    let store = memory();
    apply(&store, vec![put("a", "1")]);
    let put = || vec![put("a", "2")];
    let mut older = write(1, put());
    older.log_id.term = 0;
    for batch in [vec![write(0, put())], vec![write(2, put())], vec![write(1, put()), write(1, put())], vec![older]] {
        assert!(matches!(store.apply(&batch), Err(StoreError::NotNext { .. })), "{batch:?}");
        assert_eq!((store.revision(), store.applied().unwrap().index), (1, 0), "nothing of the batch was applied");
    }
    let unknown = Entry { payload: Bytes::from_static(&[1, 99]), ..write(1, vec![]) };
    let error = store.apply(&[unknown]).unwrap_err();
    assert!(matches!(error, StoreError::Entry { log_id, .. } if log_id.index == 1));
    assert_eq!(store.applied().unwrap().index, 0);
}

#[test]
fn a_record_of_the_system_that_cannot_be_read_stops_apply_and_leaves_no_trace() {
    let store = memory();
    let op = WriteOp::Put { space: KeySpace::System, key: CLUSTER_KEY.into(), value: key("short"), lease: 0 };
    assert!(matches!(store.apply(&[write(0, vec![op])]), Err(StoreError::Entry { .. })));
    assert_eq!((store.applied(), store.revision(), store.cluster()), (None, 0, None));
    assert_eq!(store.get(KeySpace::System, CLUSTER_KEY, None).unwrap(), None);
}

#[test]
fn room_ends_when_both_tails_are_full_and_comes_back() {
    let store = memory();
    let wakes = Arc::new(AtomicU64::new(0));
    let counted = wakes.clone();
    store.set_waker(Box::new(move || {
        counted.fetch_add(1, Ordering::Relaxed);
    }));
    let big = "x".repeat(1000);
    while store.has_room() {
        apply(&store, vec![put("a", &big)]);
        assert!(store.applied().unwrap().index < 100, "memory is not bounded");
    }
    assert!(store.needs_work() && wakes.swap(0, Ordering::Relaxed) == 1);
    assert!(store.stats().tail_bytes < 3 * small().tail_bytes as u64);
    let last = store.applied().unwrap().index;
    assert!(!store.seal(0).unwrap(), "the first entry alone is durable");
    assert!(!store.has_room());
    assert!(store.seal(last).unwrap());
    assert!(store.has_room() && wakes.load(Ordering::Relaxed) == 1);
    assert!(store.seal(last).unwrap(), "the second tail was frozen as soon as the first was sealed");
    store.flush_index().unwrap();
    assert!(!store.needs_work());
    assert_eq!((store.sealed(), value(&store, "a", None).unwrap()), (store.applied(), key(&big)));
}

#[test]
fn changes_alone_can_use_up_the_room() {
    let store = memory();
    let mut written = 0;
    while store.has_room() {
        apply(&store, vec![put(&format!("{written}"), "")]);
        store.seal(written).unwrap();
        written += 1;
        assert!(written < 10_000, "memory is not bounded");
    }
    let stats = store.stats();
    assert!(stats.overlay_bytes <= small().overlay_bytes as u64 + 200, "{stats:?}");
    store.flush_index().unwrap();
    assert!(store.has_room());
    assert_eq!(store.range(&RangeQuery::all(KeySpace::User)).unwrap().items.len() as u64, written);
}

#[test]
fn a_revision_below_the_read_floor_is_refused() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = open(&disk, &index).unwrap();
    for n in 0..5 {
        apply(&store, vec![put("a", &n.to_string())]);
    }
    store.close(4).unwrap();
    drop(store);
    let mut manifest = Manifest::load(&disk, Path::new(DIR)).unwrap().unwrap();
    manifest.head.read_floor = 3;
    manifest.commit(&disk, Path::new(DIR)).unwrap();
    let store = open(&disk, &index).unwrap();
    assert_eq!(store.read_floor(), 3);
    let below = store.get(KeySpace::User, b"a", Some(2));
    assert!(matches!(below, Err(ReadError::Compacted { floor: 3 })), "{below:?}");
    let below = store.range(&RangeQuery { at: Some(2), ..RangeQuery::all(KeySpace::User) });
    assert!(matches!(below, Err(ReadError::Compacted { floor: 3 })), "{below:?}");
    assert_eq!(value(&store, "a", Some(3)).unwrap(), "2");
}

#[test]
fn newest_values_of_segments_are_kept() {
    let store = memory();
    apply(&store, vec![put("a", "1"), put("b", &"b".repeat(5000))]);
    store.close(0).unwrap();
    for _ in 0..3 {
        assert_eq!(value(&store, "a", None).unwrap(), "1");
        assert_eq!(value(&store, "b", None).unwrap().len(), 5000);
    }
    let stats = store.stats();
    assert_eq!((stats.value_cache_hits, stats.value_cache_misses), (2, 4), "b is too large for the small cache");
}

/// A writer puts the same number into many keys, one transaction after the other, and the store seals and flushes all
/// the while. Whoever reads a range, or pages through it at one revision, must see one number everywhere.
#[test]
fn readers_beside_the_writer_see_whole_transactions() {
    const KEYS: usize = 12;
    const ROUNDS: u64 = 400;
    let store = memory();
    let ops = |n: u64| (0..KEYS).map(|key| put(&format!("k{key:02}"), &n.to_string())).collect();
    apply(&store, ops(0));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = |limit: usize| {
            let (store, done) = (&store, &done);
            move || {
                let mut pages = 0u64;
                while !done.load(Ordering::Relaxed) || pages == 0 {
                    let mut query = RangeQuery { limit, ..RangeQuery::all(KeySpace::User) };
                    let mut values: BTreeMap<Bytes, Bytes> = BTreeMap::new();
                    loop {
                        let page = store.range(&query).unwrap();
                        pages += 1;
                        query.at = Some(page.revision);
                        query.after = page.items.last().map(|item| item.key.clone());
                        values.extend(page.items.into_iter().map(|item| (item.key, item.value)));
                        if !page.more {
                            break;
                        }
                    }
                    assert_eq!(values.len(), KEYS);
                    let expected = (query.at.unwrap() - 1).to_string();
                    assert!(values.values().all(|value| *value == expected), "{values:?} at {:?}", query.at);
                    let one = store.get(KeySpace::User, b"k05", query.at).unwrap().unwrap();
                    assert_eq!(one.value, expected);
                }
            }
        };
        for limit in [usize::MAX, 5, 1] {
            scope.spawn(reader(limit));
        }
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) || store.needs_work() {
                store.seal(u64::MAX).unwrap();
                store.flush_index().unwrap();
                std::thread::yield_now();
            }
        });
        for n in 1..=ROUNDS {
            while !store.has_room() {
                std::thread::yield_now();
            }
            apply(&store, ops(n));
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(store.stats().seals > 5);
}

#[test]
fn a_frame_keeps_no_memory_of_the_entry() {
    let store = memory();
    let entry = write(0, vec![put("a", "value")]);
    let payload = entry.payload.clone();
    store.apply(&[entry]).unwrap();
    assert!(payload.is_unique(), "the store keeps the buffer that the entry came in");
    assert!(Frame::parse(&payload).is_err());
}

#[test]
fn an_index_that_does_not_agree_with_the_history_is_built_again() {
    let write_some = |disk: &SimDisk, index: &Arc<MemoryIndex>, mark: &str| {
        let store = open(disk, index).unwrap();
        for n in 0..40 {
            apply(&store, vec![put(&format!("k{n}"), mark)]);
        }
        store.close(store.applied().unwrap().index).unwrap();
    };
    let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
    write_some(&disk, &index, "1");
    let old = index.copy();
    write_some(&disk, &index, "2");
    let foreign = Arc::new(MemoryIndex::default());
    write_some(&SimDisk::new(), &foreign, "another history");
    let ahead = index.copy();
    let holes = index.copy();
    holes.damage(|key| key.ends_with(b"7"));
    let emptied = index.copy();
    emptied.damage(|_| true);
    let cases = [
        ("good", index.copy(), false),
        ("an old copy", old, false),
        ("full of holes", holes, true),
        ("emptied", emptied, true),
        ("of another history", foreign.copy(), true),
        ("lost", MemoryIndex::default(), true),
    ];
    for (what, index, rebuilt) in cases {
        let index = Arc::new(index);
        let generations = || IndexKind::Memory(index.clone()).generations().unwrap();
        let before = generations();
        let store = open(&disk, &index).unwrap();
        assert_eq!(generations() != before, rebuilt, "{what}");
        assert_eq!(generations().len(), 1, "{what}");
        for n in 0..40 {
            assert_eq!(value(&store, &format!("k{n}"), None).unwrap(), "2", "{what}");
        }
    }
    // The history lost its end (a disk put back from a copy, say), and the index did not.
    let shorter = SimDisk::new();
    write_some(&shorter, &Arc::default(), "1");
    let ahead = Arc::new(ahead);
    let store = open(&shorter, &ahead).unwrap();
    assert_eq!((value(&store, "k7", None).unwrap(), store.stats().live_keys), (key("1"), 40));
}

/// A flush goes to the index in several batches. One that stops between two of them leaves an index that is neither old
/// nor new, and yet good: its record stands at the old position, and the replay from there gives the rest.
#[test]
fn a_flush_that_stops_half_way_leaves_an_index_that_is_used() {
    const KEYS: u64 = 1500;
    let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
    let open_large = |index: &Arc<MemoryIndex>| {
        let kind = IndexKind::Memory(index.clone());
        Store::open(Arc::new(disk.clone()), Path::new(DIR), kind, StoreConfig::default()).unwrap()
    };
    let store = open_large(&index);
    let write_all = |mark: &str, from: u64, to: u64| {
        let ops = |n: u64| if n % 5 == 4 { delete(&format!("k{}", n - 1)) } else { put(&format!("k{n}"), mark) };
        let entries: Vec<Entry> = (from..to).map(|n| write(next(&store) + n - from, vec![ops(n)])).collect();
        store.apply(&entries).unwrap();
    };
    write_all("old", 0, KEYS);
    store.close(store.applied().unwrap().index).unwrap();
    write_all("new", KEYS / 2, 2 * KEYS);
    index.fail_after(1);
    let error = store.close(store.applied().unwrap().index).unwrap_err();
    assert!(matches!(error, StoreError::Index(_)), "{error:?}");
    let left = store.close_to_reopen(store.applied().unwrap().index, "it is opened anew");
    assert!(matches!(left, Err(StoreError::Stopped(_))), "an index that is written in part is left to nobody");
    let expected = store.range(&RangeQuery::all(KeySpace::User)).unwrap();
    let (live_keys, sealed) = (store.stats().live_keys, store.sealed());
    drop(store);
    let index = Arc::new(index.copy());
    let generations = IndexKind::Memory(index.clone()).generations().unwrap();
    let store = open_large(&index);
    assert_eq!(IndexKind::Memory(index.clone()).generations().unwrap(), generations, "it was not built again");
    assert_eq!(store.range(&RangeQuery::all(KeySpace::User)).unwrap(), expected);
    assert_eq!((store.stats().live_keys, store.sealed()), (live_keys, sealed));
    drop(store);
    // And the digest that the replay kept is right again.
    drop(open_large(&index));
    assert_eq!(IndexKind::Memory(index.clone()).generations().unwrap(), generations, "it was not built again");
}

/// Whoever still reads the old store looks into an index that goes on without it.
#[test]
fn a_store_that_left_its_index_to_another_takes_nothing_for_damage() {
    let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
    let old = open(&disk, &index).unwrap();
    let told = Arc::new(AtomicBool::new(false));
    let hook = told.clone();
    old.set_damage_hook(Box::new(move |_| hook.store(true, Ordering::Relaxed)));
    apply(&old, vec![put("k", "old")]);
    let kept = old.close_to_reopen(next(&old) - 1, "it is opened anew").unwrap();
    let kind = IndexKind::Memory(index);
    let new = Store::open_with(Some(kept), Arc::new(disk), Path::new(DIR), kind, small()).unwrap();
    assert_eq!(value(&new, "k", None).as_deref(), Some(&b"old"[..]));
    apply(&new, vec![put("k", "new")]);
    new.seal_all(next(&new) - 1).unwrap();
    new.flush_index().unwrap();
    let found = old.get(KeySpace::User, b"k", None);
    assert!(!matches!(&found, Ok(Some(found)) if found.value != "old"), "{found:?}");
    assert!(!told.load(Ordering::Relaxed), "it is no damage");
    assert_eq!(value(&new, "k", None).as_deref(), Some(&b"new"[..]));
}
