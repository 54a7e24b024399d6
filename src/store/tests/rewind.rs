//! Rewinds: what is taken of an old history and gone on with by a copy of the new timeline is what that timeline holds;
//! what could be wrong is refused; and a power cut at every operation leaves all of it or nothing.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use rand::Rng;
use rand::rngs::StdRng;

use super::compaction::{Compacting, apply, close, compact_all, delete, eager, floors_entry, put, read};
use super::generate::Generator;
use super::power::{assert_no_leftovers, states};
use super::{DIR, Seeded, chance, open, small};
use crate::files::Disk;
use crate::files::sim::SimDisk;
use crate::history::Point;
use crate::history::manifest::{MANIFEST, Manifest};
use crate::index::{IndexKind, MemoryIndex};
use crate::model::{KeySpace, LogId, Revision};
use crate::store::{CompactLimits, DigestRange, Floors, Rewound, Store, StoreError};

/// Where the old history lies when it was set aside.
const OLD: &str = "/member/old";

fn open_in(disk: &SimDisk, dir: &str) -> Result<Store, StoreError> {
    let index = IndexKind::Memory(Arc::new(MemoryIndex::default()));
    Store::open(Arc::new(disk.clone()), Path::new(dir), index, small())
}

fn digest(store: &Store, at: Revision) -> [u8; 32] {
    let mut on = |_| ControlFlow::Continue(());
    store.digest(at, &DigestRange::default(), u64::MAX, u64::MAX, &mut on).unwrap().unwrap().digest
}

fn point(store: &Store, position: u64) -> Point {
    store.frame_at(position).unwrap().expect("a member that does not compact has every frame").end()
}

/// A member of the old timeline, and one of the new, each beside a twin that does not compact.
struct Timelines {
    disk: SimDisk,
    old: Compacting,
    new: Compacting,
    /// The last common position.
    fork: u64,
}

fn work(both: &mut Compacting, rng: &mut StdRng, rounds: usize, floors: bool) {
    for _ in 0..rounds {
        let count = rng.random_range(1..40);
        both.apply(rng, count);
        if floors && chance(rng, 40) {
            both.move_floors(rng);
        }
        if chance(rng, 70) {
            close(&both.pair.store);
        }
        if chance(rng, 40) {
            compact_all(&both.pair.store);
        } else if chance(rng, 40) {
            both.pair.store.compact(eager(), &|_| ControlFlow::Continue(())).unwrap();
        }
    }
}

impl Timelines {
    fn new(rng: &mut StdRng) -> Timelines {
        let disk = SimDisk::new();
        let mut old = Compacting::new(open_in(&disk, OLD).unwrap());
        let rounds = rng.random_range(1..6);
        work(&mut old, rng, rounds, true);
        let shared = old.pair.oracle.entries.len();
        let mut new = Compacting::new(open(&SimDisk::new(), &Arc::default()).unwrap());
        for entry in old.pair.oracle.entries.clone() {
            new.pair.oracle.apply(entry.clone());
            new.pair.store.apply(&[entry]).unwrap();
        }
        new.pair.generator = Generator::after(old.pair.oracle.entries[shared - 1].log_id);
        let begins = new.pair.generator.membership();
        new.pair.oracle.apply(begins.clone());
        new.pair.store.apply(&[begins]).unwrap();
        new.follow();
        let (rounds, floors) = (rng.random_range(0..4), chance(rng, 40));
        work(&mut old, rng, rounds, floors);
        close(&old.pair.store);
        let (rounds, floors) = (rng.random_range(0..4), chance(rng, 70));
        work(&mut new, rng, rounds, floors);
        Timelines { disk, old, new, fork: shared as u64 - 1 }
    }

    /// The last point in common, or an earlier one that is known to both.
    fn common(&self, rng: &mut StdRng) -> Point {
        let at = if chance(rng, 70) { self.fork } else { rng.random_range(0..self.fork + 1) };
        let known = |at: &u64| self.old.pair.store.chain_at(*at).unwrap().is_some();
        let at = (0..=at).rev().find(known).unwrap_or(self.fork);
        point(&self.old.twin, at)
    }
}

/// Receives what is missing from the member of the new timeline, and gives the bytes.
fn receive(from: &Store, to: &Store) -> u64 {
    let mut reader = from.copy_for(&to.delta_position(0).unwrap()).unwrap();
    let mut installer = to.begin_install().unwrap();
    while let Some(chunk) = reader.next_chunk().unwrap() {
        installer.push(&chunk).unwrap();
    }
    let bytes = installer.received_bytes();
    to.install(installer.finish().unwrap()).unwrap();
    bytes
}

fn assert_same(member: &Store, new: &Compacting) {
    assert_eq!(member.head(), new.pair.store.head());
    for at in new.pair.oracle.read_floor..=new.pair.oracle.revision {
        assert_eq!(digest(member, at), digest(&new.twin, at), "revision {at}");
    }
}

#[test]
fn what_is_taken_and_gone_on_with_is_what_the_new_timeline_holds() {
    let mut seeded = Seeded::new();
    let (mut taken, mut refused, mut linked, mut rewritten, mut deltas) = (0, 0, 0, 0, 0);
    for _ in 0..40 {
        let rng = &mut seeded.rng;
        let lines = Timelines::new(rng);
        let common = lines.common(rng);
        let new = &lines.new.pair.store;
        let member = open_in(&lines.disk, DIR).unwrap();
        let rewound = member.rewind(Path::new(OLD), common, &new.promises()).unwrap();
        let old = lines.old.pair.store.head();
        let staged = member.delta_position(0).unwrap().staged;
        assert_eq!(staged, rewound.until);
        match (&rewound.refused, rewound.until) {
            (None, Some(until)) => {
                taken += 1;
                assert!(until.next_position <= common.next_position && old.read_floor <= common.revision);
                assert_eq!(until, point(&lines.new.twin, until.next_position - 1));
                linked += rewound.linked;
                rewritten += usize::from(rewound.written_bytes > 0);
            }
            (Some(_), None) => refused += 1,
            other => panic!("{other:?}"),
        }
        drop(member);
        // The old member's store still reads its own files, and a restart keeps what is staged.
        let member = open_in(&lines.disk, DIR).unwrap();
        assert_eq!(member.delta_position(0).unwrap().staged, rewound.until);
        receive(new, &member);
        deltas += usize::from(member.stats().staging_bytes == 0 && rewound.until.is_some());
        assert_same(&member, &lines.new);
        close(&member);
        drop(member);
        assert_same(&open_in(&lines.disk, DIR).unwrap(), &lines.new);
        assert_no_leftovers(&lines.disk);
        for file in lines.disk.list(Path::new(OLD)).unwrap() {
            assert!(!lines.disk.content(&Path::new(OLD).join(file)).unwrap().is_empty());
        }
        lines.old.check_all(rng);
    }
    assert!(taken > 5 && refused > 0 && linked > 5 && rewritten > 0 && deltas > 5);
}

/// Writes `count` keys that stay, enough for a segment of their own.
fn filler(store: &Store, name: &str, count: usize) {
    for n in 0..count {
        apply(store, vec![put(&format!("{name}{n}"), &"x".repeat(100))]);
    }
    close(store);
}

/// A key is deleted, forgotten, and created again after the fork: compaction drops the deletion and has not come to the
/// segment with the first version yet.
#[test]
fn a_deletion_that_only_a_stranded_write_covers_is_not_forgotten() {
    for stranded in [false, true] {
        let disk = SimDisk::new();
        let old = open_in(&disk, OLD).unwrap();
        apply(&old, vec![put("gone", "back from the dead")]);
        filler(&old, "first", 30);
        apply(&old, vec![delete("gone")]);
        for n in 0..60 {
            apply(&old, vec![put("often", &format!("{n}{}", "y".repeat(90)))]);
        }
        close(&old);
        let floors = Floors { read: old.revision(), delta: old.applied().unwrap().index };
        old.apply(&[floors_entry(&old, floors).unwrap()]).unwrap();
        filler(&old, "last", 5);
        let (applied, common) = (old.applied().unwrap(), old.head().point());
        let new = open(&SimDisk::new(), &Arc::default()).unwrap();
        {
            let mut reader = old.snapshot().unwrap();
            let mut installer = new.begin_install().unwrap();
            while let Some(chunk) = reader.next_chunk().unwrap() {
                installer.push(&chunk).unwrap();
            }
            new.install(installer.finish().unwrap()).unwrap();
        }
        let mut generator = Generator::after(applied);
        new.apply(&[generator.membership()]).unwrap();
        if stranded {
            apply(&old, vec![put("gone", "again")]);
        }
        filler(&old, "stranded", 5);
        let limits = CompactLimits { garbage_percent: 60, merge_segments: 1000, step_bytes: 6 << 10, ..eager() };
        while old.compact(limits, &|_| ControlFlow::Continue(())).unwrap().segments > 0 {}
        close(&old);
        assert_eq!(read(&old, "gone", None).is_some(), stranded);
        let member = open_in(&disk, DIR).unwrap();
        let rewound = member.rewind(Path::new(OLD), common, &new.promises()).unwrap();
        let why = rewound.refused.unwrap_or_default();
        assert_eq!(why.contains("would come back"), stranded, "{why}");
        receive(&new, &member);
        assert_eq!(read(&member, "gone", None), None);
        assert_eq!(digest(&member, new.revision()), digest(&new, new.revision()));
    }
}

/// A sample with several segments that are linked and one that is cut.
fn sample(rng: &mut StdRng) -> (Timelines, Point) {
    loop {
        let lines = Timelines::new(rng);
        let common = point(&lines.old.twin, lines.fork);
        let member = open_in(&lines.disk.process_kill(), DIR).unwrap();
        let rewound = member.rewind(Path::new(OLD), common, &lines.new.pair.store.promises()).unwrap();
        if rewound.linked > 1 && rewound.written_bytes > 0 {
            return (lines, common);
        }
    }
}

#[test]
fn where_the_file_system_refuses_links_the_segments_are_copied() {
    let mut seeded = Seeded::new();
    let (lines, common) = sample(&mut seeded.rng);
    let new = &lines.new.pair.store;
    let mut came = Vec::new();
    for links in [true, false] {
        let disk = lines.disk.process_kill();
        if !links {
            disk.refuse_links();
        }
        let member = open_in(&disk, DIR).unwrap();
        let rewound = member.rewind(Path::new(OLD), common, &new.promises()).unwrap();
        assert_eq!(rewound.linked > 0, links);
        came.push(Rewound { linked: 0, linked_bytes: 0, written_bytes: 0, ..rewound });
        receive(new, &member);
        assert_same(&member, &lines.new);
    }
    assert_eq!(came[0], came[1]);
}

#[test]
fn a_cut_at_every_operation_leaves_all_of_it_or_nothing() {
    let mut seeded = Seeded::new();
    let (lines, common) = sample(&mut seeded.rng);
    let new = &lines.new.pair.store;
    let (mut all, mut nothing) = (0, 0);
    for operations in 0.. {
        let disk = lines.disk.process_kill();
        disk.crash_after(operations);
        let done = open_in(&disk, DIR).and_then(|member| member.rewind(Path::new(OLD), common, &new.promises()));
        for (nth, state) in states(&disk, seeded.seed ^ operations).into_iter().enumerate() {
            let member = open_in(&state, DIR).unwrap_or_else(|e| panic!("operation {operations}, state {nth}: {e}"));
            assert_no_leftovers(&state);
            let staged = member.delta_position(0).unwrap().staged;
            assert!(staged.is_some() || done.is_err(), "operation {operations}, state {nth}: it is lost");
            *(if staged.is_some() { &mut all } else { &mut nothing }) += 1;
            if staged.is_none() || nth % 2 == 0 {
                let again = member.rewind(Path::new(OLD), common, &new.promises()).unwrap();
                assert_eq!((again.refused, again.until.is_some()), (None, true));
            }
            receive(new, &member);
            assert_eq!(digest(&member, new.revision()), digest(&lines.new.twin, new.revision()));
            assert_no_leftovers(&state);
            let old = open_in(&state, OLD).unwrap();
            assert_eq!(old.head(), lines.old.pair.store.head(), "what was set aside is as it was");
        }
        if !disk.has_crashed() {
            done.unwrap();
            break;
        }
    }
    assert!(all > 5 && nothing > 20, "{all} and {nothing}");
}

#[test]
fn damage_of_the_old_history_is_never_content() {
    let mut seeded = Seeded::new();
    let samples: Vec<_> = (0..6).map(|_| sample(&mut seeded.rng)).collect();
    let old = Path::new(OLD);
    let files = |lines: &Timelines| lines.disk.list(old).unwrap();
    let files =
        samples.iter().flat_map(|sample| files(&sample.0).into_iter().map(move |name| (sample, old.join(name))));
    let (mut refused, mut later) = (0, 0);
    for ((lines, common), file) in files {
        let (new, common) = (&lines.new.pair.store, *common);
        let len = lines.disk.content(&file).unwrap().len() as u64;
        for at in [10, 70, len / 3, len / 2, len - 100, len - 3] {
            let disk = lines.disk.process_kill();
            disk.flip_byte(&file, at.min(len - 1), 8).unwrap();
            let member = open_in(&disk, DIR).unwrap();
            let rewound = member.rewind(old, common, &new.promises()).unwrap();
            if rewound.refused.is_some() {
                refused += 1;
                assert_eq!(rewound.until, None);
            }
            // What was linked is read when the copy is installed; what is damaged of it goes, and all is sent.
            let mut reader = new.copy_for(&member.delta_position(0).unwrap()).unwrap();
            let mut installer = member.begin_install().unwrap();
            while let Some(chunk) = reader.next_chunk().unwrap() {
                installer.push(&chunk).unwrap();
            }
            if let Err(error) = member.install(installer.finish().unwrap()) {
                later += 1;
                assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
                assert_eq!(member.delta_position(0).unwrap().staged, None);
                receive(new, &member);
            }
            assert_eq!(digest(&member, new.revision()), digest(&lines.new.twin, new.revision()));
        }
    }
    assert!(refused > 3 && later > 0, "{refused} {later}");
}

#[test]
fn a_store_that_holds_something_and_a_wrong_point_are_refused() {
    let mut seeded = Seeded::new();
    let (lines, common) = sample(&mut seeded.rng);
    let promises = lines.new.pair.store.promises();
    let refused = |store: &Store, point| store.rewind(Path::new(OLD), point, &promises).unwrap().refused.unwrap();
    let member = open_in(&lines.disk, DIR).unwrap();
    let stranded = point(&lines.new.twin, lines.fork + 1);
    assert!(refused(&member, stranded).contains("does not hold the common position"));
    assert!(refused(&member, Point::default()).contains("nothing in common"));
    assert!(refused(&lines.new.pair.store, common).contains("not empty"));
    let manifest = Manifest::load(&lines.disk, Path::new(DIR)).unwrap().unwrap();
    assert_eq!((manifest.segments.len(), manifest.staging), (0, None));
    assert!(lines.disk.list(Path::new(DIR)).unwrap() == [MANIFEST]);
    assert_eq!(lines.new.pair.store.applied().map(|id: LogId| id.index), Some(lines.new.pair.last_index()));
    assert!(lines.new.pair.store.get(KeySpace::User, b"a", None).is_ok());
}
