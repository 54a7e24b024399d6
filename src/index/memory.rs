//! The in-memory twin of the sled index, for tests: it can be lost, emptied, copied and cut at will.

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
        let copy = |tree: &Arc<MemoryTree>| Arc::new(MemoryTree(RwLock::new(tree.0.read().clone())));
        let generations = self.generations.lock().iter().map(|(number, tree)| (*number, copy(tree))).collect();
        MemoryIndex { generations: Mutex::new(generations) }
    }

    /// Removes every entry for which `gone` says so, without touching the record: damage, for tests.
    pub fn damage(&self, gone: impl Fn(&[u8]) -> bool) {
        for tree in self.generations.lock().values() {
            tree.0.write().entries.retain(|key, _| !gone(key));
        }
    }
}

/// One in-memory index.
#[derive(Debug, Default)]
pub struct MemoryTree(RwLock<Content>);

#[derive(Debug, Clone, Default)]
struct Content {
    entries: BTreeMap<IndexKey, IndexEntry>,
    meta: Option<IndexMeta>,
}

impl Index for MemoryTree {
    fn get(&self, key: &[u8]) -> Result<Option<IndexEntry>, IndexError> {
        Ok(self.0.read().entries.get(key).copied())
    }

    fn scan(&self, start: &[u8], end: Option<&[u8]>, limit: usize) -> Result<Vec<(IndexKey, IndexEntry)>, IndexError> {
        if end.is_some_and(|end| end <= start) {
            return Ok(Vec::new());
        }
        let bounds = (Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded));
        let content = self.0.read();
        let range = content.entries.range::<[u8], _>(bounds);
        Ok(range.take(limit).map(|(key, entry)| (key.clone(), *entry)).collect())
    }

    fn write(&self, batch: &[(&[u8], IndexEntry)], meta: &IndexMeta) -> Result<(), IndexError> {
        let mut content = self.0.write();
        content.entries.extend(batch.iter().map(|(key, entry)| (IndexKey::from(*key), *entry)));
        content.meta = Some(*meta);
        Ok(())
    }

    fn meta(&self) -> Result<Option<IndexMeta>, IndexError> {
        Ok(self.0.read().meta)
    }
}
