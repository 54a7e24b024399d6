//! A power cut at every operation of seals, flushes and installs, each with several resulting states of the disk.
//!
//! Whatever the cut leaves: the store opens, it stands at or behind what was confirmed as sealed, what is not named is
//! gone from the directory, and after the wal was applied again it equals the model.

use std::path::Path;
use std::sync::Arc;

use super::generate::Generator;
use super::model::Pair;
use super::oracle::Oracle;
use super::{DIR, Seeded, open};
use crate::files::Disk;
use crate::files::sim::SimDisk;
use crate::history::manifest::{MANIFEST, Manifest};
use crate::index::MemoryIndex;
use crate::model::LogId;
use crate::store::{Store, StoreError};

/// How many states are drawn from each cut, besides the two extremes and a killed process.
const STATES: u64 = 5;

pub fn states(disk: &SimDisk, seed: u64) -> Vec<SimDisk> {
    let mut states: Vec<SimDisk> = (0..STATES).map(|n| disk.power_cut(seed.wrapping_add(n))).collect();
    states.extend([disk.power_cut_keep_nothing(), disk.power_cut_keep_all(), disk.process_kill()]);
    states
}

pub fn assert_no_leftovers(disk: &SimDisk) {
    let mut names = disk.list(Path::new(DIR)).unwrap();
    names.retain(|name| name != MANIFEST);
    let manifest = Manifest::load(disk, Path::new(DIR)).unwrap().expect("an open store has a MANIFEST");
    let mut named: Vec<String> = manifest.all_segments().map(|segment| segment.file.clone()).collect();
    named.sort();
    assert_eq!(names, named);
}

fn oracle_of(seeded: &mut Seeded, entries: usize) -> (Oracle, Generator) {
    let (mut oracle, mut generator) = (Oracle::default(), Generator::new());
    for _ in 0..entries {
        oracle.apply(generator.entry(&mut seeded.rng, oracle.revision));
    }
    (oracle, generator)
}

/// Applies all entries with seals and flushes in between, until it is done or the power goes. `sealed` is what was
/// confirmed as sealed.
fn work(
    disk: &SimDisk,
    index: &Arc<MemoryIndex>,
    oracle: &Oracle,
    sealed: &mut Option<LogId>,
) -> Result<(), StoreError> {
    let store = open(disk, index)?;
    for batch in oracle.entries.chunks(7) {
        store.apply(batch)?;
        let durable = store.applied().unwrap().index;
        let result = store.seal(durable).and_then(|_| if durable % 3 == 0 { store.flush_index() } else { Ok(()) });
        *sealed = store.sealed();
        result?;
    }
    let result = store.close(store.applied().unwrap().index);
    *sealed = store.sealed();
    result
}

#[test]
fn a_cut_at_every_operation_of_seals_loses_nothing_that_was_sealed() {
    let mut seeded = Seeded::new();
    let (oracle, _) = oracle_of(&mut seeded, 150);
    let mut cuts = 0;
    for operations in 0.. {
        let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
        let mut sealed = None;
        disk.crash_after(operations);
        let result = work(&disk, &index, &oracle, &mut sealed);
        if !disk.has_crashed() {
            result.unwrap();
            break;
        }
        assert!(matches!(result, Err(StoreError::Io { .. })), "{result:?}");
        for (nth, state) in states(&disk, seeded.seed ^ operations).into_iter().enumerate() {
            cuts += 1;
            let index = if nth % 3 == 0 { Arc::default() } else { Arc::new(index.copy()) };
            let store = open(&state, &index).unwrap_or_else(|e| panic!("operation {operations}, state {nth}: {e}"));
            assert!(store.sealed() >= sealed, "operation {operations}, state {nth}");
            assert_no_leftovers(&state);
            let mut pair = Pair { store, oracle: oracle.clone(), generator: Generator::new() };
            pair.catch_up(&mut seeded.rng);
            if nth as u64 % STATES == operations % STATES {
                pair.check_all(&mut seeded.rng);
            }
        }
    }
    assert!(cuts > 100, "only {cuts} states were looked at");
}

#[test]
fn a_cut_at_every_operation_of_an_install_leaves_the_old_or_the_new() {
    let mut seeded = Seeded::new();
    let (old, _) = oracle_of(&mut seeded, 40);
    let (new, _) = oracle_of(&mut seeded, 90);
    let source = open(&SimDisk::new(), &Arc::default()).unwrap();
    source.apply(&new.entries).unwrap();
    let (mut olds, mut news) = (0, 0);
    for operations in 0.. {
        let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
        let store = open(&disk, &index).unwrap();
        store.apply(&old.entries).unwrap();
        store.close(39).unwrap();
        disk.crash_after(operations);
        let result = super::copies::copy(&source, &store);
        let installed = store.applied() == source.applied();
        assert_eq!(installed, result.is_ok());
        drop(store);
        for (nth, state) in states(&disk, seeded.seed ^ operations).into_iter().enumerate() {
            let index = if nth % 3 == 0 { Arc::default() } else { Arc::new(index.copy()) };
            let store = open(&state, &index).unwrap_or_else(|e| panic!("operation {operations}, state {nth}: {e}"));
            assert_no_leftovers(&state);
            let is_new = store.chain() == source.chain();
            assert!(
                is_new || !installed,
                "operation {operations}, state {nth}: the install was confirmed, and is lost"
            );
            *(if is_new { &mut news } else { &mut olds }) += 1;
            let oracle = if is_new { new.clone() } else { old.clone() };
            Pair { store, oracle, generator: Generator::new() }.check_all(&mut seeded.rng);
        }
        if !disk.has_crashed() {
            result.unwrap();
            break;
        }
    }
    assert!(olds > 10 && news > 10, "{olds} old and {news} new");
}

#[test]
fn after_a_failed_sync_or_a_full_disk_nothing_is_sealed_any_more() {
    let mut seeded = Seeded::new();
    let (oracle, _) = oracle_of(&mut seeded, 60);
    for fault in 0..3 {
        let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
        let store = open(&disk, &index).unwrap();
        store.apply(&oracle.entries).unwrap();
        match fault {
            2 => disk.limit_writes(Some(100)),
            nth => disk.fail_sync(nth + 1),
        }
        let error = store.seal_all(59).unwrap_err();
        assert!(matches!(error, StoreError::Io { .. }), "{error:?}");
        disk.limit_writes(None);
        let error = store.seal_all(59).unwrap_err();
        assert!(matches!(error, StoreError::Stopped(_)), "{error:?}");
        assert_eq!(store.sealed(), None);
        assert!(matches!(store.apply(&[]), Err(StoreError::Stopped(_))));
        assert_eq!(store.revision(), oracle.revision, "what was applied can still be read");
        drop(store);
        let state = disk.power_cut(seeded.seed);
        let mut pair =
            Pair { store: open(&state, &index).unwrap(), oracle: oracle.clone(), generator: Generator::new() };
        pair.catch_up(&mut seeded.rng);
        pair.check_all(&mut seeded.rng);
        assert_no_leftovers(&state);
    }
}

#[test]
fn nothing_is_sealed_before_it_is_durable() {
    let mut seeded = Seeded::new();
    let (oracle, _) = oracle_of(&mut seeded, 60);
    let store: Store = open(&SimDisk::new(), &Arc::default()).unwrap();
    store.apply(&oracle.entries).unwrap();
    store.seal_all(10).unwrap();
    assert!(store.sealed().is_none_or(|log_id| log_id.index <= 10));
    store.seal_all(59).unwrap();
    assert_eq!(store.sealed(), store.applied());
}
