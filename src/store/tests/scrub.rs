//! A scrub finds what is wrong on the disk and names it; digests tell members apart that hold different things; and what is
//! rescued of a damaged history is right.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::compaction::{Compacting, compact_all};
use super::forge::{forge, forge_digest, frames, segments};
use super::{DIR, Seeded, open};
use crate::files::sim::SimDisk;
use crate::history::frame::PREFIX_BYTES;
use crate::history::manifest::MANIFEST;
use crate::history::{Frame, FrameOp};
use crate::index::{IndexKind, MemoryIndex};
use crate::model::{KeySpace, Revision};
use crate::store::{DigestRange, Floors, Rescued, Store, StoreError};

/// Reads everything once.
fn scrub(store: &Store) -> Result<u64, StoreError> {
    let (mut from, mut bytes) = (0, 0);
    loop {
        let step = store.scrub(from, &mut |_| ControlFlow::Continue(()))?;
        bytes += step.bytes;
        match step.next {
            Some(next) => from = next,
            None => return Ok(bytes),
        }
    }
}

/// A store of several segments, some of them compacted, and the twin that does not compact.
struct Sample {
    disk: SimDisk,
    index: Arc<MemoryIndex>,
    both: Compacting,
}

impl Sample {
    fn new(seeded: &mut Seeded) -> Sample {
        Sample::of(seeded, true)
    }

    fn of(seeded: &mut Seeded, compacted: bool) -> Sample {
        let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
        let mut both = Compacting::new(open(&disk, &index).unwrap());
        for _ in 0..4 {
            both.apply(&mut seeded.rng, 30);
            both.pair.store.close(both.pair.last_index()).unwrap();
        }
        let floors = Floors { read: both.pair.oracle.revision - 10, delta: both.pair.last_index() - 60 };
        both.set_floors(floors);
        both.pair.store.close(both.pair.last_index()).unwrap();
        if compacted {
            compact_all(&both.pair.store);
        }
        for _ in 0..2 {
            both.apply(&mut seeded.rng, 20);
            both.pair.store.close(both.pair.last_index()).unwrap();
        }
        Sample { disk, index, both }
    }

    fn store(&self) -> &Store {
        &self.both.pair.store
    }
}

#[test]
fn a_sound_store_is_read_to_the_end_and_every_flipped_byte_is_named() {
    let mut seeded = Seeded::new();
    let sample = Sample::new(&mut seeded);
    let met = Arc::new(Mutex::new(Vec::new()));
    let noted = met.clone();
    sample.store().set_damage_hook(Box::new(move |error| noted.lock().push(error.to_string())));
    let all = sample.store().stats().history_bytes;
    assert_eq!(scrub(sample.store()).unwrap(), all);
    assert!(met.lock().is_empty());
    let mut files = segments(&sample.disk, DIR);
    assert!(files.len() >= 3, "{files:?}");
    files.push(Path::new(DIR).join(MANIFEST));
    for file in files {
        let len = sample.disk.content(&file).unwrap().len() as u64;
        // Every byte of the small ones; of the larger ones also every kind of place.
        for at in (0..len).filter(|at| len < 3000 || at % 7 == 0 || *at < 80 || *at + 120 > len) {
            sample.disk.flip_byte(&file, at, 1 << (at % 8)).unwrap();
            match scrub(sample.store()) {
                Err(StoreError::Corrupt { file: named, .. }) => assert_eq!(Path::new(&named), file, "byte {at}"),
                other => panic!("byte {at} of {} gave {other:?}", file.display()),
            }
            assert_eq!(met.lock().len(), 1, "the hook is told once");
            met.lock().clear();
            sample.disk.flip_byte(&file, at, 1 << (at % 8)).unwrap();
        }
    }
    assert_eq!(scrub(sample.store()).unwrap(), all);
}

#[test]
fn a_scrub_can_be_ended_and_goes_on_while_the_store_is_written_and_compacted() {
    let mut seeded = Seeded::new();
    let mut sample = Sample::new(&mut seeded);
    let step = sample.store().scrub(0, &mut |_| ControlFlow::Break(())).unwrap();
    assert!(step.ended_early && step.next == Some(0) && step.bytes == 0);
    let mut from = 0;
    let mut steps = 0;
    loop {
        let step = sample.store().scrub(from, &mut |_| ControlFlow::Continue(())).unwrap();
        steps += 1;
        match step.next {
            Some(next) => from = next,
            None => break,
        }
        if steps < 6 {
            sample.both.apply(&mut seeded.rng, 10);
            sample.store().close(sample.both.pair.last_index()).unwrap();
            let floors = Floors { read: sample.both.pair.oracle.revision - 5, delta: 0 };
            sample.both.set_floors(floors);
            sample.store().close(sample.both.pair.last_index()).unwrap();
            compact_all(sample.store());
        }
    }
    assert!(steps > 1);
}

#[test]
fn a_segment_that_was_swapped_for_an_older_one_is_named() {
    let mut seeded = Seeded::new();
    let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
    let mut both = Compacting::new(open(&disk, &index).unwrap());
    for _ in 0..2 {
        both.apply(&mut seeded.rng, 20);
        both.pair.store.close(both.pair.last_index()).unwrap();
    }
    let old: Vec<Vec<u8>> = segments(&disk, DIR).iter().map(|file| disk.content(file).unwrap()).collect();
    both.set_floors(Floors { read: both.pair.oracle.revision - 2, delta: both.pair.last_index() - 2 });
    both.pair.store.close(both.pair.last_index()).unwrap();
    compact_all(&both.pair.store);
    let now = segments(&disk, DIR);
    let (file, good) = (&now[0], disk.content(&now[0]).unwrap());
    for older in &old {
        disk.set_content(file, older).unwrap();
        match scrub(&both.pair.store) {
            Err(StoreError::Corrupt { file: named, .. }) => assert_eq!(Path::new(&named), file),
            other => panic!("{other:?}"),
        }
    }
    disk.set_content(file, &good).unwrap();
    scrub(&both.pair.store).unwrap();
}

/// Where a value lies in a frame that writes one for a client's key, and the key.
fn value_in(frame: &Frame) -> Option<(Bytes, Bytes)> {
    let ops = frame.ops().map(Result::unwrap);
    ops.filter_map(|op| match op {
        FrameOp::Put { space: KeySpace::User, key, value, .. } if value.len() > 3 => Some((key, value)),
        _ => None,
    })
    .last()
}

/// Changes the last byte of that value, with a checksum that is right.
fn forge_value(content: &mut [u8], place: (usize, usize)) -> Option<Bytes> {
    let frame = Frame::parse(&Bytes::copy_from_slice(&content[place.0..place.0 + place.1])).unwrap();
    let (key, value) = value_in(&frame)?;
    let mut places = frame.bytes().windows(value.len()).enumerate().filter(|(_, window)| *window == value);
    // Of equal values it is not known which belongs to the key.
    let (at, _) = places.next().filter(|_| places.next().is_none())?;
    forge(content, place, |frame| frame[at + value.len() - 1] ^= 1);
    Some(key)
}

#[test]
fn a_record_that_was_changed_with_its_checksum_is_named_and_never_read() {
    let mut seeded = Seeded::new();
    let sample = Sample::new(&mut seeded);
    let mut forged = 0;
    for file in segments(&sample.disk, DIR) {
        let good = sample.disk.content(&file).unwrap();
        for place in frames(&good) {
            let mut content = good.clone();
            let frame = Frame::parse(&Bytes::copy_from_slice(&good[place.0..place.0 + place.1])).unwrap();
            if frame.is_thinned() || forge_value(&mut content, place).is_none() {
                continue;
            }
            // Even the digest of the segment is right.
            forge_digest(&mut content);
            sample.disk.set_content(&file, &content).unwrap();
            match scrub(sample.store()) {
                Err(StoreError::Corrupt { file: named, offset, .. }) => {
                    // Where frames are missing in front of it the chain of the frame itself cannot be computed.
                    assert_eq!((Path::new(&named), offset), (file.as_path(), place.0 as u64));
                    let described = sample.store().describe(&named, offset).unwrap();
                    assert_eq!(described.position, frame.position());
                    assert_eq!(described.revision, Some(frame.head().revision));
                    let keys: Vec<Bytes> = frame.ops().map(|op| op.unwrap().key().1.clone()).take(8).collect();
                    assert_eq!(described.keys, keys);
                    let store = open(&sample.disk, &Arc::new(sample.index.copy()));
                    if let Ok(store) = store {
                        let read = store.frame_at(frame.position());
                        assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{read:?}");
                    }
                    forged += 1;
                }
                Ok(_) => assert!(follows_a_gap(&good, place), "{} at {}", file.display(), place.0),
                Err(other) => panic!("{other}"),
            }
        }
        sample.disk.set_content(&file, &good).unwrap();
    }
    assert!(forged > 20, "{forged}");
}

/// Whether the frame does not follow directly on the one before it in the file.
fn follows_a_gap(content: &[u8], place: (usize, usize)) -> bool {
    let position = |(at, _): (usize, usize)| Frame::check(&content[at..]).unwrap().0.log_id.index;
    let all = frames(content);
    let at = all.iter().position(|other| *other == place).unwrap();
    at == 0 || position(all[at - 1]) + 1 != position(place)
}

fn go_on(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn digest(store: &Store, at: Revision) -> [u8; 32] {
    store.digest(at, &DigestRange::default(), u64::MAX, u64::MAX, &mut go_on).unwrap().unwrap().digest
}

#[test]
fn digests_are_equal_whatever_was_compacted_and_differ_after_any_change() {
    let mut seeded = Seeded::new();
    let mut sample = Sample::new(&mut seeded);
    let (floor, current) = (sample.store().read_floor(), sample.both.pair.oracle.revision);
    let mut seen = Vec::new();
    for at in floor..=current {
        let whole = digest(sample.store(), at);
        assert_eq!(whole, digest(&sample.both.twin, at), "revision {at}");
        seen.push(whole);
        // In pieces, and each key by itself.
        let (mut range, mut keys) = (DigestRange::default(), 0);
        loop {
            let mine = sample.store().digest(at, &range, 3, u64::MAX, &mut go_on).unwrap().unwrap();
            let bounded = DigestRange { after: range.after.clone(), upto: mine.last.clone() };
            let other = sample.both.twin.digest(at, &bounded, u64::MAX, u64::MAX, &mut go_on).unwrap().unwrap();
            assert_eq!((mine.digest, mine.keys, mine.bytes), (other.digest, other.keys, other.bytes));
            let listed = sample.store().digest_keys(at, &bounded, usize::MAX).unwrap();
            assert_eq!(listed, sample.both.twin.digest_keys(at, &bounded, usize::MAX).unwrap());
            keys += mine.keys;
            assert_eq!(listed.len() as u64, mine.keys);
            match mine.last {
                Some(last) => range.after = Some(last),
                None => break,
            }
        }
        assert_eq!(
            keys,
            sample.store().digest(at, &DigestRange::default(), u64::MAX, u64::MAX, &mut go_on).unwrap().unwrap().keys
        );
    }
    seen.dedup();
    assert!(seen.len() > 5, "every change shows");
    assert!(sample.store().digest(floor - 1, &DigestRange::default(), 1, 1, &mut go_on).is_err());
    sample.both.apply(&mut seeded.rng, 5);
    assert_eq!(digest(sample.store(), current), digest(&sample.both.twin, current), "the past does not change");
}

/// A thinned frame that was changed, with the digest of its segment: the member itself cannot know, and another can.
#[test]
fn a_thinned_record_that_was_changed_differs_from_another_members() {
    let mut seeded = Seeded::new();
    // Which frames are thinned and hold a newest version is a matter of luck.
    let found: usize = (0..8).map(|_| forge_thinned(&Sample::new(&mut seeded))).sum();
    assert!(found > 0, "no thinned frame holds a newest version");
}

fn forge_thinned(sample: &Sample) -> usize {
    let at = sample.both.pair.oracle.revision;
    let mut found = 0;
    for file in segments(&sample.disk, DIR) {
        let good = sample.disk.content(&file).unwrap();
        for place in frames(&good) {
            let mut content = good.clone();
            let frame = Frame::parse(&Bytes::copy_from_slice(&good[place.0..place.0 + place.1])).unwrap();
            if !frame.is_thinned() {
                continue;
            }
            let Some(key) = forge_value(&mut content, place) else { continue };
            forge_digest(&mut content);
            sample.disk.set_content(&file, &content).unwrap();
            scrub(sample.store()).unwrap();
            let newest = sample.store().get_meta(KeySpace::User, &key, None).unwrap();
            // The frame may write the key once more behind what was changed.
            let value = value_in(&frame).unwrap().1;
            let last = frame.find(KeySpace::User, &key).unwrap();
            let is_last = matches!(last, Some(FrameOp::Put { value: last, .. }) if last == value);
            if is_last && newest.is_some_and(|meta| meta.mod_revision == frame.head().revision) {
                // The file has another content now, which only who opens it anew sees.
                let store = open(&sample.disk, &Arc::new(sample.index.copy())).unwrap();
                assert_ne!(digest(&store, at), digest(&sample.both.twin, at));
                let list = |store: &Store| store.digest_keys(at, &DigestRange::default(), usize::MAX).unwrap();
                let (mine, theirs) = (list(&store), list(&sample.both.twin));
                let differ: Vec<_> = mine.iter().zip(&theirs).filter(|(mine, theirs)| mine != theirs).collect();
                assert_eq!(differ.len(), 1);
                assert_eq!(&differ[0].0.key[1..], &key[..]);
                found += 1;
            }
        }
        sample.disk.set_content(&file, &good).unwrap();
    }
    found
}

/// Repairs a damaged history from the twin as a member does: rescue, then what is missing.
fn repair(sample: &Sample, damaged: &SimDisk) -> (Rescued, u64) {
    const ASIDE: &str = "/member/aside";
    let disk = damaged.clone();
    for file in segments(&disk, DIR).iter().map(|file| file.as_path()).chain([&*Path::new(DIR).join(MANIFEST)]) {
        let name = file.file_name().unwrap();
        if let Ok(content) = disk.content(file) {
            crate::files::Disk::create_dir_all(&disk, Path::new(ASIDE)).unwrap();
            disk.set_content(&Path::new(ASIDE).join(name), &content).unwrap();
            crate::files::Disk::remove(&disk, file).unwrap();
        }
    }
    let store = super::open_with(&disk, IndexKind::Memory(Arc::default())).unwrap();
    store.avoid_ids_of(Path::new(ASIDE)).unwrap();
    let rescued = store.rescue(Path::new(ASIDE)).unwrap();
    let request = store.delta_position(0).unwrap();
    assert_eq!(request.staged, rescued.until);
    let mut reader = sample.store().copy_for(&request).unwrap();
    let mut installer = store.begin_install().unwrap();
    while let Some(chunk) = reader.next_chunk().unwrap() {
        installer.push(&chunk).unwrap();
    }
    let bytes = installer.received_bytes();
    store.install(installer.finish().unwrap()).unwrap();
    assert_eq!(store.head(), sample.store().head());
    let at = sample.both.pair.oracle.revision;
    assert_eq!(digest(&store, at), digest(&sample.both.twin, at));
    scrub(&store).unwrap();
    (rescued, bytes)
}

#[test]
fn what_is_rescued_is_gone_on_with_and_what_cannot_be_proven_is_not() {
    let mut seeded = Seeded::new();
    let sample = Sample::new(&mut seeded);
    let full = {
        let mut reader = sample.store().snapshot().unwrap();
        let mut bytes = 0;
        while let Some(chunk) = reader.next_chunk().unwrap() {
            bytes += chunk.len() as u64;
        }
        bytes
    };
    let files = segments(&sample.disk, DIR);
    let manifest = Path::new(DIR).join(MANIFEST);
    let delta_floor = sample.store().floors().delta;
    let mut by_delta = 0;
    for (number, file) in files.iter().chain([&manifest]).enumerate() {
        let len = sample.disk.content(file).unwrap().len() as u64;
        for at in [70, len / 2, len - 10] {
            let damaged = sample.disk.process_kill();
            damaged.flip_byte(file, at.min(len - 1), 4).unwrap();
            let (rescued, bytes) = repair(&sample, &damaged);
            assert!(rescued.damage.is_some());
            if rescued.until.is_some_and(|until| until.next_position > delta_floor) {
                by_delta += 1;
                assert!(bytes < full, "{bytes} of {full}, with damage in file {number}");
            }
        }
    }
    assert!(by_delta > 2, "{by_delta}");
    // Nothing is wrong, they say, and yet somebody found a difference: then nothing is trusted.
    let (rescued, bytes) = repair(&sample, &sample.disk.process_kill());
    assert_eq!((rescued, bytes), (Rescued::default(), full));
}

/// Below the delta floor too, as long as the sender has not compacted: then nothing that was deleted is forgotten.
#[test]
fn what_is_rescued_below_the_delta_floor_is_gone_on_with_when_no_tombstone_is_gone() {
    let mut seeded = Seeded::new();
    let sample = Sample::of(&mut seeded, false);
    let delta_floor = sample.store().floors().delta;
    let full = {
        let mut reader = sample.store().snapshot().unwrap();
        std::iter::from_fn(|| reader.next_chunk().unwrap()).map(|chunk| chunk.len() as u64).sum::<u64>()
    };
    let mut below = 0;
    for file in segments(&sample.disk, DIR) {
        let damaged = sample.disk.process_kill();
        let len = sample.disk.content(&file).unwrap().len() as u64;
        damaged.flip_byte(&file, len / 2, 4).unwrap();
        let (rescued, bytes) = repair(&sample, &damaged);
        if let Some(until) = rescued.until {
            below += usize::from(until.next_position <= delta_floor);
            assert!(bytes < full, "{bytes} of {full}");
        }
    }
    assert!(below > 0, "no damage below the floor {delta_floor}");
}

/// A forged record that the chain shows ends what is rescued in front of it.
#[test]
fn nothing_behind_a_forged_record_is_rescued() {
    let mut seeded = Seeded::new();
    let sample = Sample::new(&mut seeded);
    let file = segments(&sample.disk, DIR).pop().unwrap();
    let good = sample.disk.content(&file).unwrap();
    for place in frames(&good) {
        let damaged = sample.disk.process_kill();
        let mut content = good.clone();
        forge(&mut content, place, |frame| frame[PREFIX_BYTES + 4 + 24 + 7] ^= 1);
        forge_digest(&mut content);
        damaged.set_content(&file, &content).unwrap();
        let position = Frame::check(&good[place.0..]).unwrap().0.log_id.index;
        let (rescued, _) = repair(&sample, &damaged);
        assert!(rescued.until.is_some_and(|until| until.next_position <= position), "{rescued:?} {position}");
    }
}
