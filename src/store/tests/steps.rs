//! Single steps of compaction: the pace that ends them, walks over many versions, floors that move meanwhile, and a disk
//! that is full or nearly so.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::compaction::{apply, close, compact_all, delete, eager, floors_entry, move_floors, put, read, sample};
use super::{DIR, Seeded, open};
use crate::files::Disk;
use crate::files::sim::SimDisk;
use crate::history::manifest::Manifest;
use crate::index::{IndexKind, MemoryIndex};
use crate::model::Revision;
use crate::store::{CompactLimits, Floors, Store, StoreError};

#[test]
fn a_full_disk_ends_a_step_and_harms_nothing() {
    let mut seeded = Seeded::new();
    let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
    let mut both = sample(&mut seeded, &disk, &index);
    let files = disk.list(Path::new(DIR)).unwrap();
    disk.limit_writes(Some(500));
    let full = both.pair.store.compact(eager(), &|_| ControlFlow::Continue(()));
    assert!(matches!(full, Err(StoreError::Io { .. })), "{full:?}");
    disk.limit_writes(None);
    assert_eq!(disk.list(Path::new(DIR)).unwrap(), files);
    both.apply(&mut seeded.rng, 10);
    assert!(compact_all(&both.pair.store) > 0, "the store goes on");
    both.check_all(&mut seeded.rng);
    // A failed sync is another matter: what the disk has is unknown.
    let disk = SimDisk::new();
    let both = sample(&mut seeded, &disk, &Arc::default());
    disk.fail_sync(1);
    let failed = both.pair.store.compact(eager(), &|_| ControlFlow::Continue(()));
    assert!(matches!(failed, Err(StoreError::Io { .. })), "{failed:?}");
    let stopped = both.pair.store.compact(eager(), &|_| ControlFlow::Continue(()));
    assert!(matches!(stopped, Err(StoreError::Stopped(_))), "{stopped:?}");
    both.check_all(&mut seeded.rng);
}

#[test]
fn a_step_that_the_pace_ends_leaves_no_trace() {
    let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
    let config = crate::store::StoreConfig { tail_bytes: 2 << 20, ..crate::store::StoreConfig::default() };
    let kind = IndexKind::Memory(index.clone());
    let store = Store::open(Arc::new(disk.clone()), Path::new(DIR), kind, config).unwrap();
    for n in 0..300 {
        apply(&store, vec![put(&format!("k{}", n % 10), &"v".repeat(20_000))]);
    }
    move_floors(&store);
    close(&store);
    let files = disk.list(Path::new(DIR)).unwrap();
    let limits = CompactLimits::default();
    let report = store.compact(limits, &|_| ControlFlow::Break(())).unwrap();
    assert!(report.ended_early && report.segments == 0);
    assert_eq!(disk.list(Path::new(DIR)).unwrap(), files);
    let told = AtomicU64::new(0);
    let pace = |bytes| {
        told.fetch_add(bytes, Ordering::Relaxed);
        ControlFlow::Continue(())
    };
    let report = store.compact(limits, &pace).unwrap();
    assert!(report.segments > 0 && !report.ended_early);
    let told = told.into_inner();
    assert!(told > 4 << 20 && told <= report.read_bytes + report.written_bytes, "{told} bytes of {report:?}");
    assert_eq!(read(&store, "k3", None).unwrap().len(), 20_000);
}

/// A store whose oldest frame is of a key with many versions above the read floor, and then one that was deleted.
fn walked_first(disk: &SimDisk) -> Store {
    let store = open(disk, &Arc::default()).unwrap();
    apply(&store, vec![put("hot", "first")]);
    apply(&store, vec![put("k", "value")]);
    apply(&store, vec![delete("k")]);
    store.apply(&[floors_entry(&store, Floors { read: Revision::MAX, delta: 0 }).unwrap()]).unwrap();
    for n in 0..600 {
        apply(&store, vec![put("hot", &n.to_string())]);
        if !store.has_room() {
            close(&store);
        }
    }
    close(&store);
    store
}

/// Finding out what can go may read many versions of a key, and takes its time like all else.
#[test]
fn the_pace_ends_a_walk_over_the_versions_of_a_key() {
    let disk = SimDisk::new();
    let store = walked_first(&disk);
    let (files, told) = (disk.list(Path::new(DIR)).unwrap(), AtomicU64::new(0));
    let pace = |bytes| {
        assert_eq!(told.fetch_add(bytes, Ordering::Relaxed), 0, "it is told once and ends the step");
        ControlFlow::Break(())
    };
    let report = store.compact(eager(), &pace).unwrap();
    assert!(report.ended_early && told.into_inner() > 0, "{report:?}");
    assert_eq!(disk.list(Path::new(DIR)).unwrap(), files);
    assert!(compact_all(&store) > 0);
}

/// A key that is created again during a step, over floors that move during it, takes its tombstone out. What the segment
/// says of missing tombstones must cover that one.
#[test]
fn a_segment_knows_of_tombstones_that_floors_passed_during_its_step() {
    let disk = SimDisk::new();
    let store = walked_first(&disk);
    let moved = AtomicBool::new(false);
    let pace = |_| {
        if !moved.swap(true, Ordering::Relaxed) {
            move_floors(&store);
            apply(&store, vec![put("k", "again")]);
            close(&store);
        }
        ControlFlow::Continue(())
    };
    let report = store.compact(eager(), &pace).unwrap();
    assert!(report.segments > 0 && moved.into_inner());
    assert_eq!(store.frame_at(2).unwrap().unwrap().ops().count(), 0, "the tombstone is gone");
    let segments = Manifest::load(&disk, Path::new(DIR)).unwrap().unwrap().segments;
    assert_eq!(segments[0].tombstones_gone_to, store.sealed_floors().delta);
    assert_eq!(read(&open(&disk.process_kill(), &Arc::default()).unwrap(), "k", None).unwrap(), "again");
}

/// A step on a disk that is nearly full fits in what there is, makes room, and is not taken for the sake of order.
#[test]
fn a_step_takes_no_more_room_than_there_is() {
    let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
    let store = open(&disk, &index).unwrap();
    for round in 0..8 {
        for n in 0..60 {
            // Half of the keys are written again and again.
            let key = if n % 2 == 0 { format!("k{n}") } else { format!("r{round}/{n}") };
            apply(&store, vec![put(&key, &"v".repeat(100))]);
        }
        close(&store);
    }
    move_floors(&store);
    close(&store);
    let before = store.stats();
    let largest = Manifest::load(&disk, Path::new(DIR)).unwrap().unwrap().segments;
    let largest = largest.iter().map(|segment| segment.bytes).max().unwrap();
    let tight = CompactLimits { room_bytes: largest * 3 / 4, ..eager() };
    let mut steps = 0;
    loop {
        // What the MANIFEST takes comes on top: it is one of the things that room is kept for.
        disk.limit_writes(Some(tight.room_bytes + 10_000));
        let report = store.compact(tight, &|_| ControlFlow::Continue(())).unwrap();
        if report.segments == 0 {
            assert!(report.lacks_room, "to merge what is left there would have to be more room");
            break;
        }
        assert!(
            report.written_bytes < report.read_bytes && report.written_bytes < tight.room_bytes + 1000,
            "{report:?}"
        );
        steps += 1;
    }
    let after = store.stats();
    assert!(steps > 3 && after.history_bytes < before.history_bytes * 3 / 4, "{steps} steps: {before:?}, {after:?}");
    disk.limit_writes(None);
    assert!(compact_all(&store) > 0, "with room they are merged");
    assert_eq!(read(&store, "r3/7", None).unwrap().len(), 100);
}

/// An estimate may be wrong. A step that turns out to need more room than there is ends, and is not tried for ever.
#[test]
fn a_step_that_needs_more_room_than_expected_leaves_no_trace() {
    let disk = SimDisk::new();
    let store = open(&disk, &Arc::default()).unwrap();
    for n in 0..50 {
        apply(&store, vec![put(&format!("k{n}"), "value")]);
        apply(&store, vec![delete(&format!("k{n}"))]);
    }
    move_floors(&store);
    close(&store);
    let files = disk.list(Path::new(DIR)).unwrap();
    // A segment has more than its frames, and the estimate of what stays knows nothing of that.
    let tight = CompactLimits { room_bytes: 40, ..eager() };
    let report = store.compact(tight, &|_| ControlFlow::Continue(())).unwrap();
    assert!(report.lacks_room && report.ended_early && report.segments == 0, "{report:?}");
    assert_eq!(disk.list(Path::new(DIR)).unwrap(), files);
    for _ in 0..20 {
        assert!(store.compact(tight, &|_| ControlFlow::Continue(())).unwrap().lacks_room);
    }
    let operations = disk.operations();
    assert!(store.compact(tight, &|_| ControlFlow::Continue(())).unwrap().lacks_room);
    assert_eq!(disk.operations(), operations, "it is not begun again and again");
    assert!(compact_all(&store) > 0);
    assert_eq!(read(&store, "k7", None), None);
}
