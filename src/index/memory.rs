//! The in-memory twin of the sled index, for tests: it can be lost, copied, damaged and made to fail at will.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::{Index, IndexEntry, IndexError, IndexKey, IndexMeta};

/// Where in-memory indexes lie; it outlives the store, as a directory would.
#[derive(Debug, Default)]
pub struct MemoryIndex {
    pub(super) generations: Mutex<BTreeMap<u64, Arc<MemoryTree>>>,
}

impl MemoryIndex {
    /// An independent copy of everything, as of now.
    pub fn copy(&self) -> MemoryIndex {
        let copy = |tree: &Arc<MemoryTree>| {
            Arc::new(MemoryTree { content: RwLock::new(tree.content.read().clone()), ..MemoryTree::default() })
        };
        let generations = self.generations.lock().iter().map(|(number, tree)| (*number, copy(tree))).collect();
        MemoryIndex { generations: Mutex::new(generations) }
    }

    /// Lets so many more writes succeed; every later one fails. A copy has no such fault.
    pub fn fail_after(&self, writes: u64) {
        for tree in self.generations.lock().values() {
            *tree.writes_left.lock() = Some(writes);
        }
    }

    /// Removes every entry for which `gone` says so, without touching the record: damage, for tests.
    pub fn damage(&self, gone: impl Fn(&[u8]) -> bool) {
        for tree in self.generations.lock().values() {
            tree.content.write().entries.retain(|key, _| !gone(key));
        }
    }
}

/// One in-memory index.
#[derive(Debug, Default)]
pub struct MemoryTree {
    content: RwLock<Content>,
    /// How many more writes succeed, when a test has asked for a failure.
    writes_left: Mutex<Option<u64>>,
}

#[derive(Debug, Clone, Default)]
struct Content {
    entries: BTreeMap<IndexKey, IndexEntry>,
    meta: Option<IndexMeta>,
}

impl Index for MemoryTree {
    fn get(&self, key: &[u8]) -> Result<Option<IndexEntry>, IndexError> {
        Ok(self.content.read().entries.get(key).copied())
    }

    fn scan(&self, start: &[u8], end: Option<&[u8]>, limit: usize) -> Result<Vec<(IndexKey, IndexEntry)>, IndexError> {
        if end.is_some_and(|end| end <= start) {
            return Ok(Vec::new());
        }
        let bounds = (Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded));
        let content = self.content.read();
        let range = content.entries.range::<[u8], _>(bounds);
        Ok(range.take(limit).map(|(key, entry)| (key.clone(), *entry)).collect())
    }

    fn write(&self, batch: &[(&[u8], IndexEntry)], meta: &IndexMeta) -> Result<(), IndexError> {
        match &mut *self.writes_left.lock() {
            Some(0) => return Err(IndexError::Backend("a test asked for this".into())),
            Some(left) => *left -= 1,
            None => {}
        }
        let mut content = self.content.write();
        content.entries.extend(batch.iter().map(|(key, entry)| (IndexKey::from(*key), *entry)));
        content.meta = Some(*meta);
        Ok(())
    }

    fn remove(&self, keys: &[&[u8]], meta: &IndexMeta) -> Result<(), IndexError> {
        let mut content = self.content.write();
        for key in keys {
            content.entries.remove(*key);
        }
        content.meta = Some(*meta);
        Ok(())
    }

    fn settle(&self) -> Result<(), IndexError> {
        Ok(())
    }

    fn meta(&self) -> Result<Option<IndexMeta>, IndexError> {
        Ok(self.content.read().meta)
    }
}
