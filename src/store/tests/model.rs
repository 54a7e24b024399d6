//! Generated steps on a store beside the [`Oracle`]: after every step, whatever is read is what the oracle says.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;

use super::generate::{self, Generator};
use super::oracle::Oracle;
use super::{Seeded, chance, small};
use crate::files::sim::SimDisk;
use crate::files::{Disk, RealDisk};
use crate::index::{IndexKind, MemoryIndex};
use crate::model::{Outcome, Revision};
use crate::store::{KeyValue, RangePage, RangeQuery, ReadError, Store, StoreError};

/// A store and what it must hold.
pub struct Pair {
    pub store: Store,
    pub oracle: Oracle,
    pub generator: Generator,
}

impl Pair {
    pub fn new(store: Store) -> Pair {
        Pair { store, oracle: Oracle::default(), generator: Generator::new() }
    }

    /// Applies new entries to both and compares the outcomes.
    pub fn apply(&mut self, rng: &mut StdRng, count: usize) {
        let from = self.oracle.entries.len();
        for _ in 0..count {
            let entry = self.generator.entry(rng, self.oracle.revision);
            self.oracle.apply(entry);
        }
        let outcomes = self.store.apply(&self.oracle.entries[from..]).unwrap();
        self.check_outcomes(from, &outcomes);
    }

    fn check_outcomes(&self, from: usize, outcomes: &[Outcome]) {
        assert_eq!(outcomes.len(), self.oracle.entries.len() - from);
        for (at, outcome) in outcomes.iter().enumerate() {
            assert_eq!(*outcome, self.oracle.expected[from + at].outcome, "entry {}", from + at);
        }
    }

    /// Applies again what a restart left out, in batches, and compares the outcomes with those of the first time.
    pub fn catch_up(&mut self, rng: &mut StdRng) {
        let mut from = self.store.sealed().map_or(0, |log_id| log_id.index as usize + 1);
        assert_eq!(self.store.applied(), self.store.sealed());
        while from < self.oracle.entries.len() {
            let to = self.oracle.entries.len().min(from + rng.random_range(1..40));
            let outcomes = self.store.apply(&self.oracle.entries[from..to]).unwrap();
            for (at, outcome) in outcomes.iter().enumerate() {
                assert_eq!(*outcome, self.oracle.expected[from + at].outcome, "entry {}", from + at);
            }
            from = to;
        }
    }

    pub fn last_index(&self) -> u64 {
        (self.oracle.entries.len() as u64).saturating_sub(1)
    }

    /// One look at something by chance.
    pub fn look(&self, rng: &mut StdRng) {
        let from = if chance(rng, 90) { self.oracle.read_floor } else { 0 };
        let at = chance(rng, 60).then(|| rng.random_range(from..self.oracle.revision + 2));
        let pinned = at.unwrap_or(self.oracle.revision);
        if pinned > self.oracle.revision {
            let result = self.store.get(generate::space(rng), b"a", at);
            assert!(matches!(result, Err(ReadError::Future { current }) if current == self.oracle.revision));
            return;
        }
        if chance(rng, 70) {
            self.look_at_key((generate::space(rng), generate::key(rng)), at, pinned);
        } else {
            self.look_at_range(rng, at, pinned);
        }
    }

    fn look_at_key(&self, key: super::oracle::ModelKey, at: Option<Revision>, pinned: Revision) {
        if pinned < self.oracle.read_floor {
            let found = self.store.get(key.0, &key.1, at);
            assert!(
                matches!(found, Err(ReadError::Compacted { floor }) if floor == self.oracle.read_floor),
                "{found:?}"
            );
            return;
        }
        let expected = self.oracle.at(&key, pinned);
        let found = self.store.get(key.0, &key.1, at).unwrap();
        let found = found.map(|found| (found.meta, found.value));
        assert_eq!(found, expected, "{key:?} at {at:?}");
        let meta = self.store.get_meta(key.0, &key.1, at).unwrap();
        assert_eq!(meta, expected.map(|(meta, _)| meta), "{key:?} at {at:?}");
    }

    fn look_at_range(&self, rng: &mut StdRng, at: Option<Revision>, pinned: Revision) {
        let mut query = RangeQuery {
            start: if chance(rng, 30) { Bytes::new() } else { generate::key(rng) },
            end: chance(rng, 60).then(|| generate::key(rng)),
            at,
            limit: if chance(rng, 30) { usize::MAX } else { rng.random_range(1..8) },
            max_bytes: if chance(rng, 70) { usize::MAX } else { rng.random_range(0..300) },
            keys_only: chance(rng, 30),
            ..RangeQuery::all(generate::space(rng))
        };
        if pinned < self.oracle.read_floor {
            let found = self.store.range(&query);
            assert!(
                matches!(found, Err(ReadError::Compacted { floor }) if floor == self.oracle.read_floor),
                "{found:?}"
            );
            return;
        }
        let expected = self.oracle.range(query.space, &query.start, query.end.as_ref(), pinned);
        let mut found = Vec::new();
        loop {
            let RangePage { items, more, revision } = self.store.range(&query).unwrap();
            assert_eq!(revision, pinned);
            assert!(items.len() <= query.limit && (!more || !items.is_empty()));
            query.after = items.last().map(|item| item.key.clone());
            query.at = Some(revision);
            found.extend(items);
            if !more {
                break;
            }
        }
        let value = |value| if query.keys_only { Bytes::new() } else { value };
        let expected: Vec<KeyValue> =
            expected.into_iter().map(|(key, meta, v)| KeyValue { key, value: value(v), meta }).collect();
        assert_eq!(found, expected, "{query:?}");
    }

    /// Compares everything: all frames, the state, the newest versions of all keys, and many of their older ones.
    pub fn check_all(&self, rng: &mut StdRng) {
        let (store, oracle) = (&self.store, &self.oracle);
        assert_eq!(store.applied(), oracle.entries.last().map(|entry| entry.log_id));
        assert_eq!(store.revision(), oracle.revision);
        assert_eq!(store.clock_ms(), oracle.clock_ms);
        assert_eq!(store.membership(), oracle.membership);
        assert_eq!(store.cluster(), oracle.cluster);
        assert_eq!(store.stats().live_keys, oracle.live_keys());
        for (key, versions) in &oracle.versions {
            self.look_at_key(key.clone(), None, Revision::MAX);
            // A key has hundreds of versions and each look walks to it, so only some are looked at.
            for _ in 0..3 {
                let revision = &versions[rng.random_range(0..versions.len())].0;
                self.look_at_key(key.clone(), Some(*revision), *revision);
                self.look_at_key(key.clone(), Some(revision - 1), revision - 1);
            }
        }
        let (floors, mut chain) = (store.floors(), Some(crate::model::ChainHash::default()));
        assert_eq!((floors.read, floors.delta), (oracle.read_floor, oracle.delta_floor));
        for (at, (entry, expected)) in oracle.entries.iter().zip(&oracle.expected).enumerate() {
            let Some(frame) = store.frame_at(at as u64).unwrap() else {
                assert!(
                    (at as u64) < floors.delta && expected.revision <= floors.read,
                    "the frame of {at} is not there"
                );
                chain = store.chain_at(at as u64).unwrap();
                assert!(store.clock_at(at as u64).unwrap().is_none_or(|clock_ms| clock_ms <= expected.clock_ms));
                continue;
            };
            assert_eq!(frame.head().log_id, entry.log_id);
            assert_eq!(frame.head().kind, entry.kind);
            assert_eq!(frame.head().revision, expected.revision);
            assert_eq!(frame.head().clock_ms, expected.clock_ms);
            assert_eq!(store.clock_at(at as u64).unwrap(), Some(expected.clock_ms));
            assert_eq!(frame.head().makes_revision, !expected.ops.is_empty());
            let ops = frame.ops().collect::<Result<Vec<_>, _>>().unwrap();
            if frame.is_thinned() {
                assert!(expected.revision <= floors.read && ops.len() < expected.ops.len());
                let mut of_the_whole = expected.ops.iter();
                assert!(ops.iter().all(|op| of_the_whole.any(|whole| whole == op)), "{ops:?} of {:?}", expected.ops);
            } else {
                assert_eq!(ops, expected.ops);
                assert!(chain.is_none_or(|chain| frame.chain() == frame.chain_after(chain)));
            }
            assert_eq!(store.chain_at(at as u64).unwrap(), Some(frame.chain()));
            chain = Some(frame.chain());
        }
        let last = |entry: &crate::model::Entry| (entry.log_id.index, chain.expect("the last frame is always there"));
        assert_eq!(store.chain(), oracle.entries.last().map(last));
        assert_eq!(store.chain_at(oracle.entries.len() as u64).unwrap(), None);
    }
}

/// Something in which a store's index lies, and how a test harms it while the store is closed.
pub trait Place {
    fn kind(&self) -> IndexKind;
    /// Forgets the index, or swaps an old one in, or damages it; says what it did.
    fn harm(&mut self, rng: &mut StdRng) -> &'static str;
}

#[derive(Default)]
pub struct InMemory {
    pub index: Arc<MemoryIndex>,
    old: Option<MemoryIndex>,
}

impl Place for InMemory {
    fn kind(&self) -> IndexKind {
        IndexKind::Memory(self.index.clone())
    }

    fn harm(&mut self, rng: &mut StdRng) -> &'static str {
        match rng.random_range(0..6) {
            0 => {
                self.index = Arc::default();
                "lost"
            }
            1 => {
                self.old = Some(self.index.copy());
                "copied"
            }
            2 => match self.old.take() {
                Some(old) => {
                    self.index = Arc::new(old);
                    "replaced by an old copy"
                }
                None => "left alone",
            },
            3 => {
                self.index.damage(|_| true);
                "emptied"
            }
            4 => {
                let byte = [b'a', b'b', 0xff][rng.random_range(0..3)];
                self.index.damage(|key| key.last() == Some(&byte));
                "full of holes"
            }
            _ => "left alone",
        }
    }
}

pub struct OnDisk {
    pub dir: PathBuf,
    pub old: PathBuf,
}

impl Place for OnDisk {
    fn kind(&self) -> IndexKind {
        IndexKind::Sled(self.dir.clone())
    }

    fn harm(&mut self, rng: &mut StdRng) -> &'static str {
        let files: Vec<PathBuf> = files_below(&self.dir).into_iter().filter(|f| !f.is_dir()).collect();
        let Some(file) = files.get(rng.random_range(0..files.len().max(1))) else { return "left alone" };
        let len = fs::metadata(file).unwrap().len();
        match rng.random_range(0..7) {
            0 => {
                fs::remove_dir_all(&self.dir).unwrap();
                "lost"
            }
            1 => {
                let _first_time = fs::remove_dir_all(&self.old);
                copy_dir(&self.dir, &self.old);
                "copied"
            }
            2 if self.old.exists() => {
                fs::remove_dir_all(&self.dir).unwrap();
                copy_dir(&self.old, &self.dir);
                "replaced by an old copy"
            }
            3 => {
                let cut = rng.random_range(0..len + 1);
                fs::OpenOptions::new().write(true).open(file).unwrap().set_len(cut).unwrap();
                "cut"
            }
            4 if len > 0 => {
                let mut content = fs::read(file).unwrap();
                let at = rng.random_range(0..len) as usize;
                let end = content.len().min(at + 4096);
                content[at..end].fill(0);
                fs::write(file, content).unwrap();
                "zeroed in part"
            }
            5 => {
                fs::remove_file(file).unwrap();
                "without one of its files"
            }
            _ => "left alone",
        }
    }
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut all: Vec<PathBuf> = paths.flat_map(|path| [files_below(&path), vec![path]].concat()).collect();
    all.sort();
    all
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &target)
        } else {
            let _bytes = fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn run(disk: Arc<dyn Disk>, dir: &Path, place: &mut dyn Place, steps: usize) {
    let mut seeded = Seeded::new();
    let rng = &mut seeded.rng;
    let open = |kept, kind| Store::open_with(kept, disk.clone(), dir, kind, small()).unwrap();
    let mut pair = Pair::new(open(None, place.kind()));
    let (mut seals, mut restarts, mut reopened) = (0, 0, 0);
    for _ in 0..steps {
        match rng.random_range(0..1000) {
            0..350 if pair.store.has_room() => {
                let count = rng.random_range(1..12);
                pair.apply(rng, count);
            }
            0..820 => pair.look(rng),
            820..900 => {
                let durable = rng.random_range(0..pair.last_index() + 1);
                let durable = if chance(rng, 70) { pair.last_index() } else { durable };
                if pair.store.seal(durable).unwrap() {
                    seals += 1;
                    assert!(pair.store.sealed().unwrap().index <= durable);
                }
            }
            900..960 => pair.store.flush_index().unwrap(),
            960..970 => pair.store.seal_all(pair.last_index()).unwrap(),
            970..982 => {
                restarts += 1;
                let sealed = pair.store.sealed();
                let Pair { store, oracle, generator } = pair;
                drop(store);
                let harm = if chance(rng, 60) { place.harm(rng) } else { "left alone" };
                pair = Pair { store: open(None, place.kind()), oracle, generator };
                assert_eq!(pair.store.sealed(), sealed, "after the index was {harm}");
                pair.catch_up(rng);
            }
            982..994 => {
                reopened += 1;
                let durable = rng.random_range(0..pair.last_index() + 1);
                let kept = pair.store.close_to_reopen(durable, "it is opened anew").unwrap();
                assert!(matches!(pair.store.flush_index(), Err(StoreError::Stopped(_))));
                let sealed = pair.store.sealed();
                // Whoever still holds the old one is no hindrance.
                let Pair { store: _old, oracle, generator } = pair;
                pair = Pair { store: open(Some(kept), place.kind()), oracle, generator };
                assert_eq!(pair.store.sealed(), sealed);
                pair.catch_up(rng);
            }
            _ => pair.check_all(rng),
        }
    }
    pair.check_all(rng);
    assert!(seals > 0 && restarts > 0 && reopened > 0, "{seals} seals, {restarts} restarts, {reopened} reopened");
}

#[test]
fn a_store_in_memory_equals_the_model() {
    for _ in 0..2 {
        let mut place = InMemory::default();
        run(Arc::new(SimDisk::new()), Path::new(super::DIR), &mut place, 1200);
    }
}

#[test]
fn a_store_on_files_with_sled_equals_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let mut place = OnDisk { dir: dir.path().join("index"), old: dir.path().join("old") };
    run(Arc::new(RealDisk), &dir.path().join("history"), &mut place, 1200);
}
