//! Deltas: they bring a member up to date from where it stands, over breaks, and refuse what does not fit.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::compaction::{Compacting, compact_all, eager};
use super::copies::{install, stream};
use super::generate::Generator;
use super::model::Pair;
use super::power::{assert_no_leftovers, states};
use super::{DIR, Seeded, open};
use crate::files::Disk;
use crate::files::sim::SimDisk;
use crate::index::{IndexKind, MemoryIndex};
use crate::model::{Command, Entry, EntryKind, KeySpace, LogId, WriteCommand, WriteOp};
use crate::store::{DeltaAnswer, DeltaRequest, Floors, RangeQuery, SnapshotReader, Store, StoreConfig, StoreError};

pub fn request(store: &Store) -> DeltaRequest {
    store.delta_position(u64::MAX).unwrap()
}

pub fn chunks(mut reader: SnapshotReader) -> Vec<Bytes> {
    let mut chunks = Vec::new();
    while let Some(chunk) = reader.next_chunk().unwrap() {
        chunks.push(chunk);
    }
    chunks
}

/// Brings a store up to another in one go; says how many bytes it took.
fn catch_up(from: &Store, to: &Store) -> usize {
    let bytes = chunks(from.copy_for(&request(to)).unwrap()).concat();
    install(to, &bytes, 1000).unwrap();
    bytes.len()
}

/// A sender that has compacted, and a member that stopped following it on the way.
struct Away {
    sender: Compacting,
    disk: SimDisk,
    index: Arc<MemoryIndex>,
}

impl Away {
    fn new(seeded: &mut Seeded, entries: usize, later: usize) -> Away {
        let rng = &mut seeded.rng;
        let mut sender = Compacting::new(open(&SimDisk::new(), &Arc::default()).unwrap());
        let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
        let receiver = open(&disk, &index).unwrap();
        for _ in 0..entries / 20 {
            sender.apply(rng, 20);
            sender.pair.store.close(sender.pair.last_index()).unwrap();
        }
        for batch in sender.pair.oracle.entries.chunks(33) {
            receiver.apply(batch).unwrap();
            receiver.close(receiver.applied().unwrap().index).unwrap();
        }
        let mut away = Away { sender, disk, index };
        away.go_on(seeded, later, receiver.applied().unwrap().index);
        away
    }

    /// The sender goes on, moves its floors, and compacts.
    fn go_on(&mut self, seeded: &mut Seeded, entries: usize, delta_floor: u64) {
        for _ in 0..entries / 20 {
            self.sender.apply(&mut seeded.rng, 20);
            self.sender.pair.store.close(self.sender.pair.last_index()).unwrap();
        }
        let revision = self.sender.pair.oracle.revision;
        self.sender.set_floors(Floors { read: revision.saturating_sub(10), delta: delta_floor });
        self.sender.pair.store.close(self.sender.pair.last_index()).unwrap();
        compact_all(&self.sender.pair.store);
        self.sender.apply(&mut seeded.rng, 5);
    }

    fn receiver(&self) -> Store {
        open(&self.disk, &self.index).unwrap()
    }

    /// Checks that a store holds what the sender holds, now, after a restart, and when both go on.
    fn check(&mut self, seeded: &mut Seeded, store: Store, disk: &SimDisk) {
        let check = |away: &Away, store: Store, seeded: &mut Seeded| {
            assert_eq!(store.head(), away.sender.pair.store.head());
            let pair = Pair { store, oracle: away.sender.pair.oracle.clone(), generator: Generator::new() };
            Compacting { pair, twin: away.sender.twin.clone() }.check_all(&mut seeded.rng);
        };
        check(self, store.clone(), seeded);
        assert_no_leftovers(disk);
        check(self, open(&disk.process_kill(), &Arc::default()).unwrap(), seeded);
        let from = self.sender.pair.oracle.entries.len();
        self.sender.apply(&mut seeded.rng, 30);
        store.apply(&self.sender.pair.oracle.entries[from..]).unwrap();
        check(self, store.clone(), seeded);
        store.close(store.applied().unwrap().index).unwrap();
        compact_all(&store);
        check(self, store, seeded);
    }
}

#[test]
fn a_delta_brings_a_member_up_to_date() {
    let mut seeded = Seeded::new();
    for later in [0, 20, 200] {
        let mut away = Away::new(&mut seeded, 200, later);
        let store = away.receiver();
        let live = store.stats().live_keys;
        let full = stream(&away.sender.pair.store).len();
        let bytes = catch_up(&away.sender.pair.store, &store);
        assert!(bytes < full, "{bytes} bytes, {full} for all; {live} keys before");
        let disk = away.disk.clone();
        away.check(&mut seeded, store, &disk);
    }
}

/// What it is for: of a large store that changed little, little travels.
#[test]
fn a_delta_of_one_percent_is_a_small_part_of_a_full_copy() {
    const KEYS: u64 = 10_000;
    let open = |disk: &SimDisk| {
        let kind = IndexKind::Memory(Arc::default());
        Store::open(Arc::new(disk.clone()), Path::new(DIR), kind, StoreConfig::default()).unwrap()
    };
    let (sender, receiver) = (open(&SimDisk::new()), open(&SimDisk::new()));
    let entry = |index: u64, ops: Vec<WriteOp>| {
        let command = Command::Write(WriteCommand { time_ms: index, guards: vec![], ops });
        Entry { log_id: LogId { term: 1, leader: 1, index }, kind: EntryKind::Command, payload: command.encode() }
    };
    let put = |index: u64, key: u64| {
        let value = vec![index as u8; 1024];
        let key = format!("key/{key:05}").into();
        entry(index, vec![WriteOp::Put { space: KeySpace::User, key, value: value.into(), lease: 0 }])
    };
    let first: Vec<Entry> = (0..KEYS).map(|n| put(n, n)).collect();
    for batch in first.chunks(2000) {
        for store in [&sender, &receiver] {
            store.apply(batch).unwrap();
            store.close(store.applied().unwrap().index).unwrap();
        }
    }
    // A hundred keys are written ten times each, which only compaction makes little again.
    let changes: Vec<Entry> = (0..1000).map(|n| put(KEYS + n, n % 100 * 97)).collect();
    sender.apply(&changes).unwrap();
    let floors = Floors { read: sender.revision(), delta: KEYS - 1 };
    let op = sender.floors_op(floors).unwrap().unwrap();
    sender.apply(&[entry(KEYS + 1000, vec![op])]).unwrap();
    sender.close(KEYS + 1000).unwrap();
    while sender.compact(eager(), &|_| ControlFlow::Continue(())).unwrap().segments > 0 {}
    let full = chunks(sender.snapshot().unwrap()).concat().len();
    let bytes = catch_up(&sender, &receiver);
    assert!(bytes * 100 < full * 3, "the delta has {bytes} bytes, a full copy {full}");
    assert_eq!((receiver.head(), receiver.chain()), (sender.head(), sender.chain()));
    let all = |store: &Store| store.range(&RangeQuery::all(KeySpace::User)).unwrap().items;
    let (sent, got) = (all(&sender), all(&receiver));
    assert!(sent.len() == KEYS as usize && sent == got, "the contents differ");
    assert_eq!(receiver.stats().live_keys, sender.stats().live_keys);
}

#[test]
fn a_copy_that_is_cut_goes_on_where_it_was_cut() {
    let mut seeded = Seeded::new();
    for full in [false, true] {
        let mut resumed = 0;
        let whole = {
            let away = Away::new(&mut seeded, 60, 400);
            let store = if full { open(&SimDisk::new(), &Arc::default()).unwrap() } else { away.receiver() };
            chunks(away.sender.pair.store.copy_for(&request(&store)).unwrap()).len()
        };
        assert!(whole > 3, "{whole} chunks");
        for cut in 0..whole {
            let mut away = Away::new(&mut seeded, 60, 400);
            let (disk, index) =
                if full { (SimDisk::new(), Arc::default()) } else { (away.disk.clone(), away.index.clone()) };
            let store = open(&disk, &index).unwrap();
            let pieces = chunks(away.sender.pair.store.copy_for(&request(&store)).unwrap());
            let all: usize = pieces.iter().map(Bytes::len).sum();
            let mut installer = store.begin_install().unwrap();
            for piece in pieces.iter().take(cut) {
                installer.push(piece).unwrap();
            }
            drop(installer);
            // At times the member is restarted, and at times the sender has gone on meanwhile.
            let before = store.head();
            let store = if cut % 2 == 0 { store } else { open(&disk, &index).unwrap() };
            assert_eq!(store.head(), before, "a part of a copy is no content");
            let staged = request(&store).staged;
            if cut % 3 == 0 {
                let floor = staged.map_or(request(&store).at.next_position, |staged| staged.next_position);
                away.go_on(&mut seeded, 40, floor.saturating_sub(1));
            }
            let reader = away.sender.pair.store.copy_for(&request(&store)).unwrap();
            let goes_on = staged.is_some_and(|staged| reader.from() == staged);
            let rest = chunks(reader).concat();
            if goes_on {
                resumed += 1;
                assert!(cut % 3 == 0 || rest.len() < all, "{} of {all} bytes after a cut", rest.len());
            }
            install(&store, &rest, 777).unwrap();
            assert_eq!(store.stats().staging_bytes, 0);
            away.check(&mut seeded, store, &disk);
        }
        assert!(resumed > 0, "no copy went on where it was cut; full: {full}");
    }
}

#[test]
fn what_does_not_fit_is_refused_with_its_reason() {
    let mut seeded = Seeded::new();
    let away = Away::new(&mut seeded, 100, 100);
    let (sender, store) = (&away.sender.pair.store, away.receiver());
    let at = request(&store).at;
    assert_eq!(sender.floors().delta, at.next_position - 1, "exactly at the floor is not below it");
    assert!(matches!(sender.delta(at).unwrap(), DeltaAnswer::Reader(_)));
    let mut other = at;
    other.chain.0[3] ^= 1;
    assert!(matches!(sender.delta(other).unwrap(), DeltaAnswer::Diverged));
    let mut below = at;
    below.next_position -= 1;
    assert!(matches!(sender.delta(below).unwrap(), DeltaAnswer::BelowFloor { floor } if floor == at.next_position - 1));
    let mut ahead = sender.head().point();
    assert!(matches!(sender.delta(ahead).unwrap(), DeltaAnswer::Reader(_)), "nothing is missing");
    ahead.next_position += 1;
    let applied = sender.applied();
    assert!(matches!(sender.delta(ahead).unwrap(), DeltaAnswer::Ahead { applied: at } if at == applied));
    // Whoever cannot have a delta gets a full copy.
    let from = |at| sender.copy_for(&DeltaRequest { at, staged: None }).unwrap().from().next_position;
    assert_eq!([at, other, below, ahead].map(from), [at.next_position, 0, 0, 0]);
    // A delta for another member.
    let bytes = chunks(sender.copy_for(&request(&store)).unwrap()).concat();
    let elsewhere = open(&SimDisk::new(), &Arc::default()).unwrap();
    elsewhere.apply(&away.sender.pair.oracle.entries[..50]).unwrap();
    elsewhere.close(49).unwrap();
    for target in [&elsewhere, &open(&SimDisk::new(), &Arc::default()).unwrap()] {
        let head = target.head();
        let refused = install(target, &bytes, 1000).unwrap_err();
        assert!(matches!(refused, StoreError::Snapshot { .. }), "{refused:?}");
        assert_eq!(target.head(), head);
    }
    // The same member, which has moved on since it asked. (While it receives, it may: see `overtaken`.)
    let at = at.next_position as usize;
    let mut installer = store.begin_install().unwrap();
    installer.push(&bytes).unwrap();
    let prepared = installer.finish().unwrap();
    store.apply(&away.sender.pair.oracle.entries[at..at + 5]).unwrap();
    store.close(at as u64 + 4).unwrap();
    drop(prepared);
    let refused = install(&store, &bytes, 1000).unwrap_err();
    assert!(matches!(refused, StoreError::Snapshot { .. }), "{refused:?}");
    super::power::assert_no_leftovers(&away.disk);
    catch_up(sender, &store);
    assert_eq!(store.chain(), sender.chain());
    assert_eq!(store.stats().staging_bytes, 0, "what was kept of it is of no use");
}

#[test]
fn a_damaged_delta_is_refused_and_changes_nothing() {
    let mut seeded = Seeded::new();
    let mut away = Away::new(&mut seeded, 60, 20);
    let store = away.receiver();
    let bytes = chunks(away.sender.pair.store.copy_for(&request(&store)).unwrap()).concat();
    let head = store.head();
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        assert!(install(&store, &flipped, 500).is_err(), "byte {at}");
        store.discard_staging().unwrap();
    }
    assert_eq!(store.head(), head);
    // A frame that is left out on the way is missed, although holes are allowed.
    let pieces = chunks(away.sender.pair.store.copy_for(&request(&store)).unwrap());
    let length = u32::from_le_bytes(*pieces[1].first_chunk().unwrap()) as usize + 8;
    let shorter = [&pieces[0][..], &pieces[1][length..], &pieces[2..].concat()].concat();
    let refused = install(&store, &shorter, 1 << 20).unwrap_err();
    assert!(matches!(refused, StoreError::Snapshot { .. }), "{refused:?}");
    store.discard_staging().unwrap();
    install(&store, &bytes, 500).unwrap();
    let disk = away.disk.clone();
    away.check(&mut seeded, store, &disk);
}

#[test]
fn a_cut_at_every_operation_of_a_delta_leaves_the_old_or_the_new() {
    let mut seeded = Seeded::new();
    let away = Away::new(&mut seeded, 60, 120);
    let receiver = away.receiver();
    let old = away.sender.pair.oracle.entries[..receiver.applied().unwrap().index as usize + 1].to_vec();
    let pieces = chunks(away.sender.pair.store.copy_for(&request(&receiver)).unwrap());
    drop(receiver);
    let mut old_oracle = super::oracle::Oracle::default();
    old.into_iter().for_each(|entry| old_oracle.apply(entry));
    let (mut olds, mut news, mut kept) = (0, 0, 0);
    for operations in 0.. {
        let (disk, index) = (away.disk.process_kill(), Arc::new(away.index.copy()));
        let store = open(&disk, &index).unwrap();
        disk.crash_after(operations);
        let result = install(&store, &pieces.concat(), 3000);
        let installed = store.applied() == away.sender.pair.store.applied();
        assert_eq!(installed, result.is_ok());
        drop(store);
        for (nth, state) in states(&disk, seeded.seed ^ operations).into_iter().enumerate() {
            let index = if nth % 3 == 0 { Arc::default() } else { Arc::new(index.copy()) };
            let store = open(&state, &index).unwrap_or_else(|e| panic!("operation {operations}, state {nth}: {e}"));
            assert_no_leftovers(&state);
            let is_new = store.chain() == away.sender.pair.store.chain();
            assert!(is_new || !installed, "operation {operations}, state {nth}: it was confirmed, and is lost");
            if is_new {
                news += 1;
                Pair { store, oracle: away.sender.pair.oracle.clone(), generator: Generator::new() }
                    .check_all(&mut seeded.rng);
                continue;
            }
            olds += 1;
            kept += u32::from(store.stats().staging_bytes > 0);
            let pair = Pair { store, oracle: old_oracle.clone(), generator: Generator::new() };
            pair.check_all(&mut seeded.rng);
            if nth as u64 % 4 == operations % 4 {
                catch_up(&away.sender.pair.store, &pair.store);
                let oracle = away.sender.pair.oracle.clone();
                Pair { oracle, ..pair }.check_all(&mut seeded.rng);
            }
        }
        if !disk.has_crashed() {
            result.unwrap();
            break;
        }
    }
    assert!(olds > 10 && news > 5 && kept > 0, "{olds} old, {news} new, {kept} with a part that is kept");
    away.sender.check_all(&mut seeded.rng);
}

#[test]
fn a_reader_sees_the_state_before_a_delta_or_the_one_after_whole() {
    let mut seeded = Seeded::new();
    let away = Away::new(&mut seeded, 100, 100);
    let sender = &away.sender.pair.store;
    let pieces = chunks(sender.copy_for(&request(&away.receiver())).unwrap()).concat();
    let all = |store: &Store| {
        let page = store.range(&RangeQuery::all(KeySpace::User)).unwrap();
        (page.revision, page.items)
    };
    for _ in 0..10 {
        let disk = away.disk.process_kill();
        let store = open(&disk, &Arc::default()).unwrap();
        let (before, after) = (all(&store), all(sender));
        let mut old_copy = store.snapshot().unwrap();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut news = 0;
                while news < 3 {
                    let seen = all(&store);
                    assert!(seen == before || seen == after, "a mixture of two states was read");
                    news += u32::from(seen == after);
                }
            });
            install(&store, &pieces, 5000).unwrap();
            reader.join().unwrap();
        });
        // A snapshot that began before goes on, on segments that both share.
        let mut last = None;
        while let Some(chunk) = old_copy.next_chunk().unwrap() {
            last = Some(chunk);
        }
        assert!(last.is_some());
        drop(old_copy);
        assert_no_leftovers(&disk);
        assert_eq!(disk.list(Path::new(DIR)).unwrap().len() as u64, store.stats().segments + 1);
    }
}

#[test]
fn a_delta_into_sled_keeps_one_index_that_is_used_again() {
    let mut seeded = Seeded::new();
    let mut away = Away::new(&mut seeded, 100, 100);
    let dir = tempfile::tempdir().unwrap();
    let kind = IndexKind::Sled(dir.path().to_owned());
    let disk = away.disk.clone();
    let store = super::open_with(&disk, kind.clone()).unwrap();
    let before = kind.generations().unwrap();
    catch_up(&away.sender.pair.store, &store);
    let after = kind.generations().unwrap();
    assert!(after.len() == 1 && after != before, "{before:?}, then {after:?}");
    store.close(store.applied().unwrap().index).unwrap();
    drop(store);
    let store = super::open_with(&disk, kind.clone()).unwrap();
    assert_eq!(kind.generations().unwrap(), after, "the index was good and is used");
    away.check(&mut seeded, store, &disk);
}

/// A part that is kept and then damaged on the disk must not stop the member for ever.
#[test]
fn a_kept_part_that_is_damaged_is_dropped() {
    let mut seeded = Seeded::new();
    let mut away = Away::new(&mut seeded, 60, 400);
    let store = away.receiver();
    let pieces = chunks(away.sender.pair.store.copy_for(&request(&store)).unwrap());
    let mut installer = store.begin_install().unwrap();
    for piece in &pieces[..pieces.len() - 2] {
        installer.push(piece).unwrap();
    }
    drop(installer);
    let staged = store.inner.staging.lock().clone().expect("some of it is kept");
    let file = Path::new(DIR).join(&staged.segments[0].file);
    away.disk.flip_byte(&file, 100, 1).unwrap();
    let rest = chunks(away.sender.pair.store.copy_for(&request(&store)).unwrap()).concat();
    let refused = install(&store, &rest, 1000).unwrap_err();
    assert!(matches!(&refused, StoreError::Corrupt { file: named, .. } if Path::new(named) == file), "{refused:?}");
    assert_eq!(request(&store).staged, None);
    catch_up(&away.sender.pair.store, &store);
    let disk = away.disk.clone();
    away.check(&mut seeded, store, &disk);
}
