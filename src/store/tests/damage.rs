//! Every flipped byte and every cut of the history's files is found and named; no read ever gives a wrong value.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::compaction::Compacting;
use super::model::Pair;
use super::{DIR, Seeded, open};
use crate::files::Disk;
use crate::files::sim::SimDisk;
use crate::history::Frame;
use crate::history::frame::PREFIX_BYTES;
use crate::history::manifest::MANIFEST;
use crate::index::MemoryIndex;
use crate::model::KeySpace;
use crate::store::{CompactLimits, Floors, RangeQuery, ReadError, Store, StoreError};

/// A closed store of a few small segments, its index, and what it holds.
struct Sample {
    disk: SimDisk,
    index: MemoryIndex,
    pair: super::oracle::Oracle,
    /// Where compaction wrote a segment.
    compacted: Option<PathBuf>,
}

impl Sample {
    fn new(seeded: &mut Seeded) -> Sample {
        let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
        let mut pair = Pair::new(open(&disk, &index).unwrap());
        for _ in 0..2 {
            while pair.store.stats().tail_bytes < 2000 {
                pair.apply(&mut seeded.rng, 1);
            }
            pair.store.close(pair.last_index()).unwrap();
        }
        assert_eq!(pair.store.stats().segments, 2);
        let Pair { store, oracle, .. } = pair;
        drop(store);
        let index = Arc::into_inner(index).expect("the store is closed");
        Sample { disk, index, pair: oracle, compacted: None }
    }

    /// One segment that compaction wrote, with thinned and missing frames and with points, and one that a seal wrote.
    fn compacted(seeded: &mut Seeded) -> Sample {
        let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
        let mut both = Compacting::new(open(&disk, &index).unwrap());
        for _ in 0..3 {
            both.apply(&mut seeded.rng, 20);
            both.pair.store.close(both.pair.last_index()).unwrap();
        }
        both.set_floors(Floors { read: both.pair.oracle.revision - 5, delta: both.pair.last_index() - 8 });
        both.pair.store.close(both.pair.last_index()).unwrap();
        let limits =
            CompactLimits { step_bytes: 1 << 20, garbage_percent: 1, merge_segments: 2, ..CompactLimits::default() };
        while both.pair.store.compact(limits, &|_| ControlFlow::Continue(())).unwrap().segments > 0 {}
        both.apply(&mut seeded.rng, 3);
        both.pair.store.close(both.pair.last_index()).unwrap();
        let all = (0..60).map(|position| both.pair.store.frame_at(position).unwrap());
        assert!(all.filter(Option::is_none).count() > 5, "nothing is missing in what compaction wrote");
        let segment = both.pair.store.inner.body().state.read().sealed.segments()[0].name();
        let Pair { store, oracle, .. } = both.pair;
        drop(store);
        let index = Arc::into_inner(index).expect("the store is closed");
        Sample { disk, index, pair: oracle, compacted: Some(segment.into()) }
    }

    fn files(&self) -> Vec<PathBuf> {
        let names = self.disk.list(Path::new(DIR)).unwrap();
        assert_eq!(names.len(), 3);
        names.iter().map(|name| Path::new(DIR).join(name)).collect()
    }

    /// Opens with a copy of the index and reads everything. Whatever is read is right; says what damage was met.
    fn read_all(&self) -> Option<StoreError> {
        let store = match open(&self.disk, &Arc::new(self.index.copy())) {
            Ok(store) => store,
            Err(error) => return Some(error),
        };
        let mut met = None;
        for (key, versions) in &self.pair.versions {
            for (revision, value) in versions.iter().filter(|version| version.0 >= self.pair.read_floor) {
                match store.get(key.0, &key.1, Some(*revision)) {
                    Ok(found) => assert_eq!(found.map(|found| (found.meta, found.value)), *value),
                    Err(ReadError::Store(error)) => met = Some(error),
                    Err(error) => panic!("{error}"),
                }
            }
        }
        match store.range(&RangeQuery::all(KeySpace::User)) {
            Ok(page) => assert_eq!(page.items, self.pair.all(KeySpace::User)),
            Err(ReadError::Store(error)) => met = Some(error),
            Err(error) => panic!("{error}"),
        }
        met.or_else(|| read_snapshot(&store).err())
    }
}

fn read_snapshot(store: &Store) -> Result<(), StoreError> {
    let mut snapshot = store.snapshot()?;
    while snapshot.next_chunk()?.is_some() {}
    Ok(())
}

fn assert_named(error: Option<StoreError>, file: &Path, what: &str) {
    match error {
        Some(StoreError::Corrupt { file: named, .. }) => assert_eq!(Path::new(&named), file, "{what}"),
        other => panic!("{what} of {} gave {other:?}", file.display()),
    }
}

#[test]
fn every_flipped_byte_is_named_and_no_wrong_value_is_read() {
    let mut seeded = Seeded::new();
    let sample = Sample::new(&mut seeded);
    flip_all(&sample, &sample.files());
}

#[test]
fn every_flipped_byte_of_a_compacted_segment_is_named() {
    let mut seeded = Seeded::new();
    let sample = Sample::compacted(&mut seeded);
    let file = sample.compacted.clone().expect("there is one");
    flip_all(&sample, &[file]);
}

fn flip_all(sample: &Sample, files: &[PathBuf]) {
    assert!(sample.read_all().is_none());
    for file in files {
        let len = sample.disk.content(file).unwrap().len();
        for at in 0..len as u64 {
            let mask = 1 << (at % 8);
            sample.disk.flip_byte(file, at, mask).unwrap();
            let without_index = open(&sample.disk, &Arc::default()).err();
            assert_named(without_index, file, &format!("byte {at}, with the index lost,"));
            assert_named(sample.read_all(), file, &format!("byte {at}"));
            sample.disk.flip_byte(file, at, mask).unwrap();
        }
    }
    assert!(sample.read_all().is_none());
}

#[test]
fn every_cut_and_every_missing_file_is_named() {
    let mut seeded = Seeded::new();
    let sample = Sample::new(&mut seeded);
    for file in sample.files() {
        let content = sample.disk.content(&file).unwrap();
        let longer = [content.as_slice(), &[0]].concat();
        let cuts = (0..content.len()).map(|end| &content[..end]);
        for damaged in cuts.chain([longer.as_slice()]) {
            sample.disk.set_content(&file, damaged).unwrap();
            let error = open(&sample.disk, &Arc::new(sample.index.copy())).err();
            assert_named(error, &file, &format!("cut at {}", damaged.len()));
        }
        sample.disk.remove(&file).unwrap();
        let error = open(&sample.disk, &Arc::new(sample.index.copy())).err();
        assert_named(error, &file, "its absence");
        sample.disk.set_content(&file, &content).unwrap();
    }
    assert!(sample.read_all().is_none());
}

#[test]
fn what_the_manifest_does_not_name_is_removed() {
    let mut seeded = Seeded::new();
    let sample = Sample::new(&mut seeded);
    let before = sample.files();
    for name in ["00000000000000ff.seg", "MANIFEST.new"] {
        sample.disk.set_content(&Path::new(DIR).join(name), b"left over").unwrap();
    }
    assert!(sample.read_all().is_none());
    assert_eq!(sample.files(), before);
    assert!(before.contains(&Path::new(DIR).join(MANIFEST)));
}

/// A frame whose checksum is right and whose content is not what was applied: only the chain can tell.
#[test]
fn a_forged_frame_breaks_the_chain() {
    let mut seeded = Seeded::new();
    let sample = Sample::new(&mut seeded);
    let segments = sample.files();
    let newest = segments.iter().rfind(|file| file.extension().is_some_and(|e| e == "seg")).unwrap();
    let content = sample.disk.content(newest).unwrap();
    let mut at = 64;
    let mut forged_frames = 0;
    while let Ok((head, len)) = Frame::check(&content[at..]) {
        let mut forged = content.clone();
        let frame = &mut forged[at..at + len];
        // The last byte of the clock.
        frame[PREFIX_BYTES + 4 + 24 + 7] ^= 1;
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&frame[..4]), &frame[PREFIX_BYTES..]);
        frame[4..PREFIX_BYTES].copy_from_slice(&checksum.to_le_bytes());
        assert_ne!(Frame::check(frame).unwrap().0.clock_ms, head.clock_ms);
        sample.disk.set_content(newest, &forged).unwrap();
        match open(&sample.disk, &Arc::new(sample.index.copy())) {
            Err(StoreError::Corrupt { file, offset, .. }) => {
                assert_eq!((Path::new(&file), offset), (newest.as_path(), at as u64));
            }
            other => panic!("the forged frame at {at} gave {other:?}"),
        }
        forged_frames += 1;
        at += len;
    }
    assert!(forged_frames > 0);
}
