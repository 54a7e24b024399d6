//! [`Overlay`]: changes of keys that the index does not hold yet, in the order of the keys.
//!
//! There is one for the open tail and one for every frozen tail, so that a frozen one is exactly what its frames
//! changed. Each entry remembers what the index will hold for the key just before the overlay is written to it; so the
//! digest beside the index is kept without reading.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;

use crate::history::Point;
use crate::index::{Index, IndexEntry, IndexError, IndexKey, IndexMeta};

/// What an entry costs besides its key, roughly.
const ENTRY_BYTES: usize = 160;
/// How many entries go to the index in one step. Readers of the index wait for a step.
const BATCH_ENTRIES: usize = 512;

/// Ordered changes.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    entries: BTreeMap<IndexKey, Change>,
    bytes: usize,
}

#[derive(Debug, Clone, Copy)]
struct Change {
    base: Base,
    now: IndexEntry,
}

/// What the index holds for a key just before an overlay is written to it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Base {
    Known(Option<IndexEntry>),
    /// A tombstone below both floors, or nothing: compaction may take it away at any time. The index knows.
    AskIndex,
}

impl Overlay {
    /// The newest version of a key, when it changed here.
    pub fn get(&self, key: &[u8]) -> Option<IndexEntry> {
        self.entries.get(key).map(|change| change.now)
    }

    /// Sets the newest version of a key; `base` is its version until now, here or below.
    pub fn set(&mut self, key: IndexKey, now: IndexEntry, base: Base) {
        match self.entries.entry(key) {
            Entry::Occupied(mut occupied) => occupied.get_mut().now = now,
            Entry::Vacant(vacant) => {
                self.bytes += vacant.key().len() + ENTRY_BYTES;
                vacant.insert(Change { base, now });
            }
        }
    }

    /// How many bytes of memory it takes, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many keys changed.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The first changes with keys from `start` on, up to and without `end`.
    pub fn range(&self, start: &[u8], end: &[u8]) -> impl Iterator<Item = (&IndexKey, IndexEntry)> {
        let bounds = (Bound::Included(start), Bound::Excluded(end.max(start)));
        self.entries.range::<[u8], _>(bounds).map(|(key, change)| (key, change.now))
    }

    /// Writes everything to the index, after which the index stands at `end`.
    pub fn write_to(&self, index: &dyn Index, meta: &mut IndexMeta, end: Point) -> Result<(), IndexError> {
        let mut batch: Vec<(&[u8], IndexEntry)> = Vec::with_capacity(BATCH_ENTRIES.min(self.len()));
        let mut left = self.entries.len();
        for (key, change) in &self.entries {
            let base = match change.base {
                Base::Known(base) => base,
                Base::AskIndex => index.get(key)?,
            };
            if let Some(base) = base {
                meta.contents.remove(key, &base);
            }
            meta.contents.add(key, &change.now);
            batch.push((key, change.now));
            left -= 1;
            if batch.len() == BATCH_ENTRIES && left > 0 {
                index.write(&batch, meta)?;
                batch.clear();
            }
        }
        // Only the last batch moves the position: until then a replay from the old one gives what is missing.
        (meta.next_position, meta.revision, meta.chain) = (end.next_position, end.revision, end.chain);
        index.write(&batch, meta)
    }
}
