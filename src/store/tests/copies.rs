//! Snapshots and installs: whole, over existing data, cut, damaged, and while others read.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rand::Rng;

use super::generate::Generator;
use super::model::Pair;
use super::oracle::Oracle;
use super::{DIR, Seeded, open};
use crate::files::Disk;
use crate::files::sim::SimDisk;
use crate::index::{IndexKind, MemoryIndex};
use crate::model::KeySpace;
use crate::store::stream::Header;
use crate::store::{CopyCheck, Head, RangeQuery, Store, StoreError};

/// All bytes of a snapshot.
pub fn stream(store: &Store) -> Vec<u8> {
    let mut snapshot = store.snapshot().unwrap();
    let mut bytes = Vec::new();
    while let Some(chunk) = snapshot.next_chunk().unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    // The estimate leaves out the head, and counts the tables of the segments.
    let (estimate, len) = (snapshot.len_bytes() as f64, bytes.len() as f64);
    assert!(bytes.len() < 5000 || (0.5..2.0).contains(&(estimate / len)), "{estimate} of {len} bytes");
    bytes
}

/// Installs a snapshot of one store in another.
pub fn copy(from: &Store, to: &Store) -> Result<(), StoreError> {
    install(to, &stream(from), usize::MAX)
}

pub fn install(store: &Store, bytes: &[u8], piece: usize) -> Result<(), StoreError> {
    let mut installer = store.begin_install()?;
    for piece in bytes.chunks(piece) {
        installer.push(piece)?;
    }
    store.install(installer.finish()?)
}

/// What the check without a store says of a snapshot.
fn check(bytes: &[u8], piece: usize) -> Result<Head, StoreError> {
    let mut check = CopyCheck::new();
    for piece in bytes.chunks(piece) {
        check.push(piece)?;
    }
    assert_eq!(check.bytes(), bytes.len() as u64);
    check.finish()
}

fn pair(seeded: &mut Seeded, disk: &SimDisk, entries: usize) -> Pair {
    let mut pair = Pair::new(open(disk, &Arc::default()).unwrap());
    for _ in 0..entries / 5 {
        pair.apply(&mut seeded.rng, 5);
        let durable = seeded.rng.random_range(0..pair.last_index() + 1);
        pair.store.seal(durable).unwrap();
        if durable % 2 == 0 {
            pair.store.flush_index().unwrap();
        }
    }
    pair
}

#[test]
fn an_installed_snapshot_equals_its_source_and_goes_on_like_it() {
    let mut seeded = Seeded::new();
    for entries in [0, 5, 200] {
        let mut source = pair(&mut seeded, &SimDisk::new(), entries);
        let bytes = stream(&source.store);
        for piece in [1, 100, usize::MAX] {
            // Over other data, some of it sealed.
            let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
            let other = pair(&mut seeded, &disk, 60);
            install(&other.store, &bytes, piece).unwrap();
            assert_eq!(other.store.head(), source.store.head());
            assert_eq!(check(&bytes, piece).unwrap(), source.store.head());
            let mut copy = Pair { store: other.store, oracle: source.oracle.clone(), generator: Generator::new() };
            copy.check_all(&mut seeded.rng);
            assert_eq!(stream(&copy.store), bytes);
            // And once more after a restart, without an index.
            copy.store = open(&disk, &index).unwrap();
            copy.catch_up(&mut seeded.rng);
            copy.check_all(&mut seeded.rng);
            if piece == 100 {
                let from = source.oracle.entries.len();
                source.apply(&mut seeded.rng, 30);
                copy.store.apply(&source.oracle.entries[from..]).unwrap();
                assert_eq!(copy.store.head(), source.store.head());
                break;
            }
        }
    }
}

#[test]
fn a_snapshot_is_of_one_moment_while_the_store_goes_on() {
    let mut seeded = Seeded::new();
    let disk = SimDisk::new();
    let mut source = pair(&mut seeded, &disk, 60);
    // So that the snapshot has a segment to hold, whatever was generated.
    source.store.seal_all(source.last_index()).unwrap();
    let expected = stream(&source.store);
    let mut snapshot = source.store.snapshot().unwrap();
    let mut bytes = snapshot.next_chunk().unwrap().unwrap().to_vec();
    source.apply(&mut seeded.rng, 40);
    source.store.close(source.last_index()).unwrap();
    // The whole content is replaced, and the segments that the snapshot reads are still there for it.
    copy(&pair(&mut seeded, &SimDisk::new(), 10).store, &source.store).unwrap();
    while let Some(chunk) = snapshot.next_chunk().unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    assert_eq!(bytes, expected);
    let files = disk.list(Path::new(DIR)).unwrap().len();
    drop(snapshot);
    let left = disk.list(Path::new(DIR)).unwrap().len();
    assert!(left < files && left as u64 == source.store.stats().segments + 1, "{files} files before, {left} after");
}

#[test]
fn a_damaged_or_cut_snapshot_is_refused_and_leaves_no_trace() {
    let mut seeded = Seeded::new();
    let bytes = stream(&pair(&mut seeded, &SimDisk::new(), 15).store);
    let disk = SimDisk::new();
    let target = pair(&mut seeded, &disk, 20);
    let (head, files) = (target.store.head(), disk.list(Path::new(DIR)).unwrap());
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        let refused = install(&target.store, &flipped, 1000).unwrap_err();
        let by_check = check(&flipped, 1000).unwrap_err();
        assert_eq!(by_check.to_string(), refused.to_string(), "byte {at}");
        if at % 7 == 0 {
            assert!(check(&bytes[..at], 1000).is_err(), "cut at {at}");
            assert!(install(&target.store, &bytes[..at], 1000).is_err(), "cut at {at}");
        }
    }
    let longer = [bytes.as_slice(), b"x"].concat();
    assert!(matches!(install(&target.store, &longer, 1000), Err(StoreError::Snapshot { .. })));
    assert_eq!(target.store.head(), head);
    target.store.discard_staging().unwrap();
    assert_eq!(disk.list(Path::new(DIR)).unwrap(), files);
    install(&target.store, &bytes, 1000).unwrap();
}

#[test]
fn an_installer_that_is_dropped_removes_its_files_except_those_it_keeps() {
    let mut seeded = Seeded::new();
    // Half of it is more than a part that is kept, whatever the seed.
    let bytes = stream(&pair(&mut seeded, &SimDisk::new(), 250).store);
    let disk = SimDisk::new();
    let store = open(&disk, &Arc::default()).unwrap();
    let files = disk.list(Path::new(DIR)).unwrap();
    let mut installer = store.begin_install().unwrap();
    installer.push(&bytes[..bytes.len() / 2]).unwrap();
    assert!(disk.list(Path::new(DIR)).unwrap().len() > files.len());
    assert!(installer.meta().is_some() && installer.received_bytes() == bytes.len() as u64 / 2);
    drop(installer);
    super::power::assert_no_leftovers(&disk);
    let kept = store.stats().staging_bytes;
    assert!(kept > 0 && kept < bytes.len() as u64 / 2 + 500, "{kept} of {} bytes", bytes.len());
    store.discard_staging().unwrap();
    assert_eq!(disk.list(Path::new(DIR)).unwrap(), files);
    let mut installer = store.begin_install().unwrap();
    installer.push(&bytes).unwrap();
    drop(installer.finish().unwrap());
    super::power::assert_no_leftovers(&disk);
    store.discard_staging().unwrap();
    assert_eq!(disk.list(Path::new(DIR)).unwrap(), files);
}

#[test]
fn an_install_into_sled_keeps_one_index() {
    let mut seeded = Seeded::new();
    let source = pair(&mut seeded, &SimDisk::new(), 100);
    let dir = tempfile::tempdir().unwrap();
    let kind = IndexKind::Sled(dir.path().to_owned());
    let disk = SimDisk::new();
    let store = super::open_with(&disk, kind.clone()).unwrap();
    store.apply(&Oracle::clone(&pair(&mut seeded, &SimDisk::new(), 50).oracle).entries).unwrap();
    store.close(49).unwrap();
    let before = kind.generations().unwrap();
    copy(&source.store, &store).unwrap();
    let after = kind.generations().unwrap();
    assert!(after.len() == 1 && after != before, "{before:?}, then {after:?}");
    let copy = Pair { store, oracle: source.oracle.clone(), generator: Generator::new() };
    copy.check_all(&mut seeded.rng);
    drop(copy);
    let store = super::open_with(&disk, kind.clone()).unwrap();
    assert_eq!(kind.generations().unwrap(), after, "the index was good and is used");
    Pair { store, ..source }.check_all(&mut seeded.rng);
}

#[test]
fn batches_and_seals_do_not_change_the_chain() {
    let mut seeded = Seeded::new();
    let one = pair(&mut seeded, &SimDisk::new(), 200);
    let other = open(&SimDisk::new(), &Arc::default()).unwrap();
    let mut left = one.oracle.entries.as_slice();
    while !left.is_empty() {
        let (batch, rest) = left.split_at(left.len().min(seeded.rng.random_range(1..50)));
        other.apply(batch).unwrap();
        if seeded.rng.random() {
            other.close(other.applied().unwrap().index).unwrap();
        }
        left = rest;
    }
    assert_eq!(one.store.chain(), other.chain());
    assert_eq!(stream(&one.store), stream(&other));
}

#[test]
fn a_reader_sees_the_old_content_or_the_new_one_whole() {
    let mut seeded = Seeded::new();
    let contents = [pair(&mut seeded, &SimDisk::new(), 60), pair(&mut seeded, &SimDisk::new(), 60)];
    let streams = contents.each_ref().map(|pair| stream(&pair.store));
    let expected = contents.each_ref().map(|pair| (pair.oracle.revision, pair.oracle.all(KeySpace::User)));
    let store = open(&SimDisk::new(), &Arc::default()).unwrap();
    install(&store, &streams[0], 1 << 20).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen = [0, 0];
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) || seen == [0, 0] {
                        let page = store.range(&RangeQuery::all(KeySpace::User)).unwrap();
                        let which = expected.iter().position(|e| *e == (page.revision, page.items.clone()));
                        seen[which.expect("a mixture of two contents was read")] += 1;
                    }
                    seen
                })
            })
            .collect();
        for round in 0..20 {
            install(&store, &streams[(round + 1) % 2], 1 << 20).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for reader in readers {
            let seen: [u32; 2] = reader.join().unwrap();
            assert!(seen[0] + seen[1] > 0);
        }
    });
    let key = Bytes::from_static(b"no such key");
    assert_eq!(store.get(KeySpace::User, &key, None).unwrap(), None);
}

#[test]
fn a_header_that_belongs_to_other_frames_is_refused() {
    let mut seeded = Seeded::new();
    let streams = [10, 15].map(|entries| stream(&pair(&mut seeded, &SimDisk::new(), entries).store));
    let headers = streams.each_ref().map(|bytes| Header::len(bytes).unwrap().unwrap());
    let mixed = [&streams[0][..headers[0]], &streams[1][headers[1]..]].concat();
    let store = open(&SimDisk::new(), &Arc::default()).unwrap();
    let error = install(&store, &mixed, 1000).unwrap_err();
    assert!(matches!(error, StoreError::Snapshot { .. }), "{error:?}");
    assert_eq!(store.applied(), None);
}
