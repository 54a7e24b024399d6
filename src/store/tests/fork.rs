//! Forks: what is forked is what was sealed, whatever the store does afterwards, and the other way round.

use std::path::Path;
use std::sync::Arc;

use super::compaction::{Compacting, close, compact_all};
use super::{DIR, Seeded, open, small};
use crate::files::Disk;
use crate::files::sim::SimDisk;
use crate::index::{IndexKind, MemoryIndex};
use crate::store::{DigestRange, Store, StoreError};

const FORK: &str = "/member/drill-1/history";

fn open_fork(disk: &SimDisk) -> Result<Store, StoreError> {
    let index = IndexKind::Memory(Arc::new(MemoryIndex::default()));
    Store::open(Arc::new(disk.clone()), Path::new(FORK), index, small())
}

fn digest(store: &Store, at: u64) -> [u8; 32] {
    let mut on = |_| std::ops::ControlFlow::Continue(());
    store.digest(at, &DigestRange::default(), u64::MAX, u64::MAX, &mut on).unwrap().unwrap().digest
}

#[test]
fn a_fork_stays_what_it_is_while_the_store_goes_on_and_compacts() {
    let mut seeded = Seeded::new();
    let rng = &mut seeded.rng;
    let disk = SimDisk::new();
    let mut living = Compacting::new(open(&disk, &Arc::default()).unwrap());
    for _ in 0..6 {
        living.apply(rng, 60);
        living.move_floors(rng);
        close(&living.pair.store);
    }
    // Not sealed, so not in the fork.
    let sealed = living.pair.store.sealed();
    living.apply(rng, 5);
    let forked = living.pair.store.fork(Path::new(FORK), 0).unwrap();
    assert_eq!((forked.sealed, forked.copied_bytes), (living.pair.store.sealed(), 0));
    assert!(forked.linked > 1 && forked.linked_bytes > 0, "{forked:?}");
    assert!(forked.sealed >= sealed);
    let (chain, at) = (living.pair.store.chain_at(forked.sealed.unwrap().index).unwrap(), forked.revision);
    let before = digest(&living.pair.store, at);

    // The living store moves on, compacts all that was linked, and is opened anew, which removes leftovers.
    for _ in 0..4 {
        living.apply(rng, 60);
        living.move_floors(rng);
        close(&living.pair.store);
    }
    compact_all(&living.pair.store);

    let fork = open_fork(&disk).unwrap();
    assert_eq!((fork.applied(), fork.revision()), (forked.sealed, at));
    assert_eq!(fork.chain_at(forked.sealed.unwrap().index).unwrap(), chain);
    assert_eq!(digest(&fork, at), before);

    // And the fork compacts, seals and goes away without a byte of the living one changing.
    let (revision, content) = (living.pair.store.revision(), digest(&living.pair.store, living.pair.store.revision()));
    compact_all(&fork);
    drop(fork);
    for name in disk.list(Path::new(FORK)).unwrap() {
        disk.remove(&Path::new(FORK).join(name)).unwrap();
    }
    drop(living);
    let again = open(&disk, &Arc::default()).unwrap();
    assert_eq!(again.revision(), revision);
    assert_eq!(digest(&again, revision), content);
    let mut next = Some(0);
    while let Some(from) = next {
        next = again.scrub(from, &mut |_| std::ops::ControlFlow::Continue(())).unwrap().next;
    }
}

#[test]
fn a_fork_without_links_copies_no_more_than_it_may() {
    let mut seeded = Seeded::new();
    let disk = SimDisk::new();
    let mut living = Compacting::new(open(&disk, &Arc::default()).unwrap());
    living.apply(&mut seeded.rng, 200);
    close(&living.pair.store);
    let store = &living.pair.store;
    disk.refuse_links();
    match store.fork(Path::new(FORK), 10) {
        Err(StoreError::Io { source, .. }) => assert_eq!(source.kind(), std::io::ErrorKind::StorageFull),
        other => panic!("{other:?}"),
    }
    let other = Path::new(DIR).with_file_name("drill-2");
    let forked = store.fork(&other, u64::MAX).unwrap();
    assert_eq!((forked.linked, forked.copied_bytes), (0, store.stats().history_bytes));
}
