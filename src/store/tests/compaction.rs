//! Floors and compaction: beside the model, beside a member that never compacts, under power cuts and under readers.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;

use super::generate::Generator;
use super::model::{InMemory, OnDisk, Pair, Place};
use super::{DIR, Seeded, chance, open, small};
use crate::files::sim::SimDisk;
use crate::files::{Disk, RealDisk};
use crate::history::manifest::{MANIFEST, Manifest};
use crate::index::{IndexEntry, IndexKey, IndexKind, MemoryIndex};
use crate::model::{Command, Entry, EntryKind, KeySpace, LogId, Revision, WriteCommand, WriteOp};
use crate::store::{
    CompactLimits, CompactReport, FLOORS_KEY, Floors, Place as HistoryPlace, RangeQuery, ReadError, Store, StoreError,
};

/// Steps are worth it early, so that a short test makes many.
pub fn eager() -> CompactLimits {
    CompactLimits { step_bytes: 40 << 10, garbage_percent: 5, merge_segments: 3, ..CompactLimits::default() }
}

/// Compacts until nothing is worth it any more; says in how many steps.
pub fn compact_all(store: &Store) -> usize {
    for steps in 0..10_000 {
        let report = store.compact(eager(), &|_| ControlFlow::Continue(())).unwrap();
        assert!(!report.ended_early);
        if report.segments == 0 {
            return steps;
        }
    }
    panic!("compaction does not come to an end");
}

/// An entry that moves the floors of a store.
pub fn floors_entry(store: &Store, wanted: Floors) -> Option<Entry> {
    let op = store.floors_op(wanted).unwrap()?;
    Some(entry(store, vec![op]))
}

pub fn entry(store: &Store, ops: Vec<WriteOp>) -> Entry {
    let index = store.applied().map_or(0, |log_id| log_id.index + 1);
    let term = store.applied().map_or(1, |log_id| log_id.term);
    let command = Command::Write(WriteCommand { time_ms: index * 1000, guards: vec![], ops });
    Entry { log_id: LogId { term, leader: term % 3, index }, kind: EntryKind::Command, payload: command.encode() }
}

pub fn apply(store: &Store, ops: Vec<WriteOp>) {
    store.apply(&[entry(store, ops)]).unwrap();
}

pub fn put(key: &str, value: &str) -> WriteOp {
    WriteOp::Put { space: KeySpace::User, key: key.to_owned().into(), value: value.to_owned().into(), lease: 0 }
}

pub fn delete(key: &str) -> WriteOp {
    WriteOp::Delete { space: KeySpace::User, key: key.to_owned().into() }
}

/// Moves the floors of a store as far as they go.
pub fn move_floors(store: &Store) {
    let entry =
        floors_entry(store, Floors { read: Revision::MAX, delta: u64::MAX }).expect("there is something to pass");
    store.apply(&[entry]).unwrap();
}

pub fn close(store: &Store) {
    store.close(store.applied().unwrap().index).unwrap();
}

pub fn read(store: &Store, key: &str, at: Option<Revision>) -> Option<Bytes> {
    store.get(KeySpace::User, key.as_bytes(), at).unwrap().map(|found| found.value)
}

/// A store that compacts, the model, and a member that applies the same and never compacts.
pub struct Compacting {
    pub pair: Pair,
    pub twin: Store,
}

impl Compacting {
    pub fn new(store: Store) -> Compacting {
        Compacting { pair: Pair::new(store), twin: open(&SimDisk::new(), &Arc::default()).unwrap() }
    }

    pub fn apply(&mut self, rng: &mut StdRng, count: usize) {
        self.pair.apply(rng, count);
        self.follow();
    }

    /// The other member applies what it lacks, and must come to the same.
    pub fn follow(&mut self) {
        let from = self.twin.applied().map_or(0, |log_id| log_id.index as usize + 1);
        self.twin.apply(&self.pair.oracle.entries[from..]).unwrap();
        assert_eq!(self.twin.chain(), self.pair.store.chain(), "the members have come apart");
        assert_eq!(self.twin.head(), self.pair.store.head());
    }

    pub fn move_floors(&mut self, rng: &mut StdRng) {
        let (now, last) = (self.pair.store.floors(), self.pair.last_index());
        let read = rng.random_range(now.read..self.pair.oracle.revision + 2);
        let delta = rng.random_range(now.delta..last + 2);
        // At times one floor alone, and at times both as far as they go.
        let wanted = match rng.random_range(0..4) {
            0 => Floors { read, ..now },
            1 => Floors { read: Revision::MAX, delta: u64::MAX },
            _ => Floors { read, delta },
        };
        self.set_floors(wanted);
    }

    /// Moves the floors as far as asked for, on both.
    pub fn set_floors(&mut self, wanted: Floors) {
        let Some(op) = self.pair.store.floors_op(wanted).unwrap() else { return };
        let entry = self.pair.generator.following(op);
        self.pair.oracle.apply(entry.clone());
        self.pair.store.apply(&[entry]).unwrap();
        self.follow();
    }

    pub fn check_all(&self, rng: &mut StdRng) {
        self.pair.check_all(rng);
        for position in 0..=self.pair.last_index() {
            if let Some(chain) = self.pair.store.chain_at(position).unwrap() {
                assert_eq!(Some(chain), self.twin.chain_at(position).unwrap(), "position {position}");
            }
        }
        for (position, chain) in self.pair.store.common_points(u64::MAX).unwrap() {
            assert_eq!(Some(chain), self.twin.chain_at(position).unwrap(), "position {position}");
            assert_eq!(Some(chain), self.pair.store.chain_at(position).unwrap(), "position {position}");
        }
    }
}

fn run(disk: Arc<dyn Disk>, dir: &Path, place: &mut dyn Place, steps: usize) {
    let mut seeded = Seeded::new();
    let rng = &mut seeded.rng;
    let open = |kind| Store::open(disk.clone(), dir, kind, small()).unwrap();
    let mut both = Compacting::new(open(place.kind()));
    let (mut compactions, mut reclaimed) = (0, 0);
    for _ in 0..steps {
        let store = both.pair.store.clone();
        match rng.random_range(0..1000) {
            0..350 if store.has_room() => {
                let count = rng.random_range(1..12);
                both.apply(rng, count);
            }
            0..700 => both.pair.look(rng),
            700..800 => {
                store.seal(both.pair.last_index()).unwrap();
            }
            800..850 => store.flush_index().unwrap(),
            850..870 if both.pair.last_index() > 0 => {
                store.seal_all(rng.random_range(0..both.pair.last_index())).unwrap();
            }
            850..920 => {
                let report = store.compact(eager(), &|_| ControlFlow::Continue(())).unwrap();
                compactions += report.segments;
                reclaimed += report.read_bytes.saturating_sub(report.written_bytes);
            }
            920..960 if both.pair.last_index() > 0 => both.move_floors(rng),
            920..980 => both.pair.look(rng),
            980..990 => {
                drop(store);
                let Compacting { pair: Pair { store, oracle, generator }, twin } = both;
                let sealed = store.sealed();
                drop(store);
                let harm = if chance(rng, 60) { place.harm(rng) } else { "left alone" };
                let mut pair = Pair { store: open(place.kind()), oracle, generator };
                assert_eq!(pair.store.sealed(), sealed, "after the index was {harm}");
                pair.catch_up(rng);
                both = Compacting { pair, twin };
            }
            _ => both.check_all(rng),
        }
    }
    both.check_all(rng);
    assert!(compactions > 5 && reclaimed > 1000, "{compactions} segments compacted, {reclaimed} bytes reclaimed");
}

#[test]
fn a_store_that_compacts_equals_the_model_and_a_member_that_does_not() {
    for _ in 0..3 {
        run(Arc::new(SimDisk::new()), Path::new(DIR), &mut InMemory::default(), 1000);
    }
}

#[test]
fn a_store_on_files_with_sled_that_compacts_equals_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let mut place = OnDisk { dir: dir.path().join("index"), old: dir.path().join("old") };
    run(Arc::new(RealDisk), &dir.path().join("history"), &mut place, 600);
}

fn entries_of(index: &Arc<MemoryIndex>) -> Vec<(IndexKey, IndexEntry)> {
    let kind = IndexKind::Memory(index.clone());
    let [generation] = kind.generations().unwrap()[..] else { panic!("one index") };
    kind.open(generation).unwrap().scan(&[1], None, usize::MAX).unwrap()
}

/// Everything that can go is gone after compaction: versions, tombstones, frames, entries of the index.
#[test]
fn a_history_of_what_is_gone_takes_no_room() {
    let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
    let store = open(&disk, &index).unwrap();
    for round in 0..4 {
        for n in 0..150 {
            apply(&store, vec![put(&format!("k{n}"), &format!("{round}").repeat(40))]);
        }
        close(&store);
    }
    for n in 0..149 {
        apply(&store, vec![delete(&format!("k{n}"))]);
    }
    move_floors(&store);
    close(&store);
    let before = store.stats();
    assert!(compact_all(&store) > 0);
    let after = store.stats();
    // One key, the record of the floors, and what a segment needs at the least.
    assert!(after.history_bytes < 2000 && before.history_bytes > 40_000, "{before:?}\n{after:?}");
    assert_eq!(after.reclaimed_bytes, after.compact_read_bytes - after.compact_written_bytes);
    assert_eq!((after.live_keys, after.garbage_bytes), (2, 0));
    assert_eq!((read(&store, "k149", None).unwrap(), read(&store, "k7", None)), ("3".repeat(40).into(), None));
    let kept = entries_of(&index);
    assert_eq!(kept.len(), 2, "the index has forgotten what was deleted: {kept:?}");
    let (head, chain) = (store.head(), store.chain());
    drop(store);
    let rebuilt = Arc::new(MemoryIndex::default());
    let store = open(&disk, &rebuilt).unwrap();
    assert_eq!((store.head(), store.chain()), (head, chain));
    assert_eq!(entries_of(&rebuilt), kept, "an index built from compacted segments is the same");
}

#[test]
fn every_version_above_the_floor_stays_and_the_newest_below_it() {
    let store = open(&SimDisk::new(), &Arc::default()).unwrap();
    for n in 1..=400u64 {
        apply(&store, vec![put(&format!("k{}", n % 7), &format!("value {n}"))]);
        if n % 90 == 0 {
            close(&store);
        }
    }
    store.apply(&[floors_entry(&store, Floors { read: 300, delta: 0 }).unwrap()]).unwrap();
    close(&store);
    let before = store.stats().history_bytes;
    assert!(compact_all(&store) > 0);
    assert!(store.stats().history_bytes < before);
    for at in 300..=400u64 {
        for key in 0..7 {
            let newest = (0..=at).rev().find(|n| n % 7 == key).unwrap();
            assert_eq!(read(&store, &format!("k{key}"), Some(at)).unwrap(), format!("value {newest}"));
        }
    }
    let below = store.get(KeySpace::User, b"k0", Some(299));
    assert!(matches!(below, Err(ReadError::Compacted { floor: 300 })), "{below:?}");
    // Frames above the delta floor keep their place, whatever is left in them.
    let there = (0..400).filter(|position| store.frame_at(*position).unwrap().is_some()).count();
    assert_eq!(there, 400);
    let left: usize = (0..300).map(|position| store.frame_at(position).unwrap().unwrap().ops().count()).sum();
    assert_eq!(left, 7);
}

/// A tombstone must not go before the versions it hides: when the index is built again they would come back.
#[test]
fn what_was_deleted_never_comes_back() {
    let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
    let store = open(&disk, &index).unwrap();
    // A large old segment that is hardly worth a step, and a small one that is all tombstones.
    for n in 0..300 {
        apply(&store, vec![put(&format!("k{n:03}"), &"v".repeat(300))]);
    }
    close(&store);
    for n in 0..4 {
        apply(&store, vec![delete(&format!("k{n:03}"))]);
    }
    move_floors(&store);
    close(&store);
    let limits =
        CompactLimits { step_bytes: 1 << 20, garbage_percent: 50, merge_segments: 1000, ..CompactLimits::default() };
    for _ in 0..20 {
        store.compact(limits, &|_| ControlFlow::Continue(())).unwrap();
        let again = open(&disk.process_kill(), &Arc::default()).unwrap();
        for n in 0..4 {
            assert_eq!(read(&again, &format!("k{n:03}"), None), None, "k{n:03} has come back");
        }
        assert_eq!(again.stats().live_keys, store.stats().live_keys);
        assert_eq!(read(&again, "k004", None).unwrap().len(), 300);
    }
}

/// An index that lags behind the history is brought up to it, unless deletions that it has not seen are gone.
#[test]
fn an_old_index_is_used_only_while_no_deletion_after_it_is_gone() {
    let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
    let store = open(&disk, &index).unwrap();
    for n in 0..50 {
        apply(&store, vec![put(&format!("k{n}"), "value")]);
    }
    close(&store);
    let old = index.copy();
    for n in 0..49 {
        apply(&store, vec![delete(&format!("k{n}"))]);
    }
    move_floors(&store);
    close(&store);
    let check = |disk: &SimDisk, is_used: bool| {
        let old = Arc::new(old.copy());
        let generations = || IndexKind::Memory(old.clone()).generations().unwrap();
        let before = generations();
        let again = open(&disk.process_kill(), &old).unwrap();
        assert_eq!(generations() == before, is_used);
        assert_eq!((read(&again, "k7", None), again.stats().live_keys), (None, 2));
    };
    assert!(store.floors().delta > 60, "the delta floor has passed the old index");
    check(&disk, true);
    assert!(compact_all(&store) > 0);
    check(&disk, false);
}

/// The rule by which members agree: a tombstone below both floors counts as absent, whether it is still there or not.
#[test]
fn a_key_created_again_looks_the_same_on_a_member_that_compacted() {
    let stores = [(); 2].map(|()| open(&SimDisk::new(), &Arc::default()).unwrap());
    for store in &stores {
        apply(store, vec![put("a", "1")]);
        apply(store, vec![delete("a")]);
        apply(store, vec![put("b", "1")]);
        move_floors(store);
        close(store);
    }
    assert!(compact_all(&stores[0]) > 0);
    for store in &stores {
        apply(store, vec![put("a", "2")]);
        apply(store, vec![put("a", "3"), put("c", "1")]);
        let created = store.frame_at(4).unwrap().unwrap().ops().next().unwrap().unwrap();
        assert_eq!(created.previous(), 0);
        close(store);
    }
    assert_eq!(stores[0].chain(), stores[1].chain());
    assert_eq!(read(&stores[0], "a", Some(3)), None);
    assert_eq!(stores[0].stats().live_keys, stores[1].stats().live_keys);
}

#[test]
fn floors_follow_their_record_and_never_go_down_or_beyond() {
    let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
    let store = open(&disk, &index).unwrap();
    let record = |read: u64, delta: u64| {
        let value = format!(r#"{{"read_floor":{read},"delta_floor":{delta}}}"#);
        vec![WriteOp::Put { space: KeySpace::System, key: FLOORS_KEY.into(), value: value.into(), lease: 0 }]
    };
    for n in 0..5 {
        apply(&store, vec![put("a", &n.to_string())]);
    }
    assert_eq!(store.floors(), Floors { read: 0, delta: 0 });
    apply(&store, record(3, 2));
    assert_eq!(store.floors(), Floors { read: 3, delta: 2 });
    apply(&store, record(1, 4));
    assert_eq!(store.floors(), Floors { read: 3, delta: 4 });
    apply(&store, record(1000, 1000));
    assert_eq!(store.floors(), Floors { read: 7, delta: 6 }, "no further than what came before the record");
    let before = store.head();
    let malformed = WriteOp::Put { space: KeySpace::System, key: FLOORS_KEY.into(), value: "{}".into(), lease: 0 };
    let refused = store.apply(&[entry(&store, vec![malformed])]);
    assert!(matches!(refused, Err(StoreError::Entry { .. })), "{refused:?}");
    assert_eq!(store.head(), before);
    close(&store);
    drop(store);
    let store = open(&disk, &index).unwrap();
    assert_eq!(store.floors(), Floors { read: 7, delta: 6 });
    assert_eq!(store.floors_op(Floors { read: 7, delta: 6 }).unwrap(), None, "nothing would move");
    assert_eq!(store.head().tombstone_floor(), 0, "none of these records named the revision at the delta floor");
    move_floors(&store);
    assert_eq!((store.floors(), store.head().tombstone_floor()), (Floors { read: 8, delta: 7 }, 8));
}

#[test]
fn a_time_has_its_place_in_tails_and_segments() {
    let store = open(&SimDisk::new(), &Arc::default()).unwrap();
    assert_eq!(store.at_time(u64::MAX).unwrap(), None);
    // Entry n stands at n seconds.
    for n in 0..600u64 {
        apply(&store, if n % 3 == 0 { vec![] } else { vec![put(&format!("k{}", n % 50), "value")] });
        if n % 130 == 0 && n < 400 {
            close(&store);
        }
    }
    let expected = |seconds: u64| {
        let revision = (0..=seconds).filter(|n| n % 3 != 0).count() as u64;
        Some(HistoryPlace { position: seconds, revision })
    };
    for seconds in 0..600 {
        assert_eq!(store.at_time(seconds * 1000).unwrap(), expected(seconds));
        assert_eq!(store.at_time(seconds * 1000 + 999).unwrap(), expected(seconds));
    }
    assert_eq!(store.at_time(u64::MAX).unwrap(), expected(599));
    store.apply(&[floors_entry(&store, Floors { read: 100, delta: 300 }).unwrap()]).unwrap();
    close(&store);
    assert!(compact_all(&store) > 0);
    for seconds in 300..600 {
        assert_eq!(store.at_time(seconds * 1000).unwrap(), expected(seconds), "after compaction");
    }
}

#[test]
fn chain_hashes_at_fixed_places_are_kept_for_ever() {
    let store = open(&SimDisk::new(), &Arc::default()).unwrap();
    let mut ends = vec![];
    for n in 0..9000u64 {
        apply(&store, if n % 10 == 0 { vec![put("a", "value")] } else { vec![] });
        if n % 1500 == 1499 {
            close(&store);
            ends.push(n);
        }
    }
    let chains: Vec<_> = (0..9000).map(|position| store.chain_at(position).unwrap().unwrap()).collect();
    move_floors(&store);
    close(&store);
    assert!(compact_all(&store) > 0);
    let gone = (0..9000).filter(|position| store.frame_at(*position).unwrap().is_none()).count();
    assert!(gone > 8900, "{gone} frames are gone");
    let points = store.common_points(u64::MAX).unwrap();
    assert_eq!(points.last().copied(), store.chain());
    for position in [0, 4096, 8192].into_iter().chain(ends) {
        let chain = chains[position as usize];
        assert_eq!(store.chain_at(position).unwrap(), Some(chain), "position {position}");
        assert!(points.contains(&(position, chain)), "position {position}");
    }
    let upto = store.common_points(5000).unwrap();
    assert!(upto.iter().all(|(position, _)| *position <= 5000) && upto.contains(&(4096, chains[4096])));
}

pub fn sample(seeded: &mut Seeded, disk: &SimDisk, index: &Arc<MemoryIndex>) -> Compacting {
    let mut both = Compacting::new(open(disk, index).unwrap());
    for _ in 0..5 {
        both.apply(&mut seeded.rng, 30);
        both.pair.store.close(both.pair.last_index()).unwrap();
    }
    let wanted = Floors { read: both.pair.oracle.revision - 20, delta: both.pair.last_index() - 25 };
    both.set_floors(wanted);
    both.pair.store.close(both.pair.last_index()).unwrap();
    both
}

#[test]
fn a_cut_at_every_operation_of_compaction_loses_nothing() {
    let mut seeded = Seeded::new();
    let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
    let Compacting { pair: Pair { store, oracle, .. }, twin } = sample(&mut seeded, &disk, &index);
    drop(store);
    let mut cuts = 0;
    for operations in 0.. {
        let (disk, index) = (disk.process_kill(), Arc::new(index.copy()));
        let store = open(&disk, &index).unwrap();
        disk.crash_after(operations);
        let mut result = Ok(CompactReport::default());
        for _ in 0..3 {
            result = result.and_then(|_| store.compact(eager(), &|_| ControlFlow::Continue(())));
        }
        drop(store);
        for (nth, state) in super::power::states(&disk, seeded.seed ^ operations).into_iter().enumerate() {
            cuts += 1;
            let index = if nth % 3 == 0 { Arc::default() } else { Arc::new(index.copy()) };
            let store = open(&state, &index).unwrap_or_else(|e| panic!("operation {operations}, state {nth}: {e}"));
            super::power::assert_no_leftovers(&state);
            let pair = Pair { store, oracle: oracle.clone(), generator: Generator::new() };
            Compacting { pair, twin: twin.clone() }.check_all(&mut seeded.rng);
        }
        if !disk.has_crashed() {
            result.unwrap();
            break;
        }
        // A file that was replaced and could not be removed is removed at the next open.
        assert!(matches!(result, Ok(_) | Err(StoreError::Io { .. } | StoreError::Stopped(_))), "{result:?}");
    }
    assert!(cuts > 50, "only {cuts} states were looked at");
}

/// A snapshot and a range that began before go on with the old segments, which stay until the last of them is done.
#[test]
fn readers_that_began_before_a_compaction_finish_on_the_old_segments() {
    let mut seeded = Seeded::new();
    let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
    let both = sample(&mut seeded, &disk, &index);
    let all = |store: &Store| {
        let mut snapshot = store.snapshot().unwrap();
        let mut bytes = Vec::new();
        while let Some(chunk) = snapshot.next_chunk().unwrap() {
            bytes.extend_from_slice(&chunk);
        }
        bytes
    };
    let expected = all(&both.pair.store);
    let mut snapshot = both.pair.store.snapshot().unwrap();
    let mut bytes = snapshot.next_chunk().unwrap().unwrap().to_vec();
    assert!(compact_all(&both.pair.store) > 0);
    let files = disk.list(Path::new(DIR)).unwrap();
    while let Some(chunk) = snapshot.next_chunk().unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    assert!(bytes == expected, "the snapshot is of the moment when it began");
    assert!(all(&both.pair.store).len() < expected.len());
    drop(snapshot);
    let left = disk.list(Path::new(DIR)).unwrap();
    assert!(left.len() < files.len(), "{files:?}, then {left:?}");
    let manifest = Manifest::load(&disk, Path::new(DIR)).unwrap().unwrap();
    assert!(left.iter().all(|name| name == MANIFEST || manifest.segments.iter().any(|segment| segment.file == *name)));
}

/// Readers at the newest revision, and readers pinned at one, beside a writer whose floors follow closely and a compaction
/// that does all it can. Whatever is read is whole; a pinned reader may be told that it was overtaken, and only that.
#[test]
fn readers_beside_compaction_see_whole_transactions_or_are_told() {
    const KEYS: usize = 12;
    const ROUNDS: u64 = 400;
    let store = open(&SimDisk::new(), &Arc::default()).unwrap();
    let ops = |n: u64| (0..KEYS).map(|key| put(&format!("k{key:02}"), &n.to_string())).collect();
    apply(&store, ops(0));
    let (done, overtaken, pages) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for limit in [usize::MAX, 5, 1] {
            let (store, done, overtaken, pages) = (&store, &done, &overtaken, &pages);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) || pages.load(Ordering::Relaxed) == 0 {
                    let mut query = RangeQuery { limit, ..RangeQuery::all(KeySpace::User) };
                    let mut values: Vec<Bytes> = Vec::new();
                    let whole = loop {
                        let page = match store.range(&query) {
                            Ok(page) => page,
                            Err(ReadError::Compacted { floor }) => {
                                assert!(query.at.is_some_and(|at| at < floor));
                                break false;
                            }
                            Err(error) => panic!("{error}"),
                        };
                        pages.fetch_add(1, Ordering::Relaxed);
                        query.at = Some(page.revision);
                        query.after = page.items.last().map(|item| item.key.clone());
                        values.extend(page.items.into_iter().map(|item| item.value));
                        if !page.more {
                            break true;
                        }
                    };
                    if !whole {
                        overtaken.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    assert_eq!(values.len(), KEYS);
                    assert!(values.iter().all(|value| *value == values[0]), "{values:?}");
                    assert!(store.get(KeySpace::User, b"k05", None).unwrap().is_some());
                }
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) || store.needs_work() {
                store.seal_all(u64::MAX).unwrap();
                store.flush_index().unwrap();
                std::thread::yield_now();
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) || store.stats().compactions == 0 {
                store.compact(eager(), &|_| ControlFlow::Continue(())).unwrap();
                std::thread::yield_now();
            }
        });
        for n in 1..=ROUNDS {
            while !store.has_room() {
                std::thread::yield_now();
            }
            apply(&store, ops(n));
            if n % 3 == 0 {
                move_floors(&store);
            }
        }
        close(&store);
        done.store(true, Ordering::Relaxed);
    });
    assert!(store.stats().compactions > 0 && pages.into_inner() > 0);
    assert_eq!(read(&store, "k00", None).unwrap(), ROUNDS.to_string());
}
