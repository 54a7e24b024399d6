//! The index on sled 0.34: the only file that names it.
//!
//! sled is an ordered, cached map here and nothing more. It is known to open silently empty or with holes after a power
//! cut, and may panic on damaged files; the record and the digest beside the entries find all of that, and the caller
//! rebuilds. Therefore nothing here is synced, and a panic at open is only an error.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::{Index, IndexEntry, IndexError, IndexKey, IndexMeta};

/// The record's key. Key spaces are numbered from 1, so it comes before all entries.
const META_KEY: &[u8] = &[0];
/// How much of the tree sled keeps in memory, at most.
const CACHE_BYTES: u64 = 64 << 20;
/// How often sled hands what it has gathered to the operating system, so that a killed process loses little.
const FLUSH_MILLISECONDS: u64 = 1000;

/// How long an index that was dropped in this process may still be held.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// An index in a directory of its own.
pub struct SledIndex {
    db: sled::Db,
}

impl SledIndex {
    /// Opens the index in `dir`, or makes a new one.
    pub fn open(dir: &Path) -> Result<SledIndex, IndexError> {
        let open = || {
            sled::Config::new()
                .path(dir)
                .mode(sled::Mode::HighThroughput)
                .cache_capacity(CACHE_BYTES)
                .flush_every_ms(Some(FLUSH_MILLISECONDS))
                .open()
        };
        let started = Instant::now();
        loop {
            match guarded(open) {
                Err(error) if is_locked(&error) && started.elapsed() < LOCK_PATIENCE => thread::sleep(LOCK_PAUSE),
                opened => return opened.map(|db| SledIndex { db }),
            }
        }
    }
}

/// Whether somebody still has the index open. sled's threads hold its files for a moment after the last handle was
/// dropped, so a member that is opened again in one process meets itself; another process is kept away by the lock on
/// the data directory. sled tells this only in words.
fn is_locked(error: &IndexError) -> bool {
    matches!(error, IndexError::Backend(words) if words.contains("could not acquire lock"))
}

/// Runs a call of sled and turns a panic into an error.
fn guarded<T>(call: impl FnOnce() -> sled::Result<T>) -> Result<T, IndexError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(IndexError::Backend(e.to_string())),
        Err(_) => Err(IndexError::Backend("sled panicked".into())),
    }
}

impl Index for SledIndex {
    fn get(&self, key: &[u8]) -> Result<Option<IndexEntry>, IndexError> {
        match guarded(|| self.db.get(key))? {
            None => Ok(None),
            Some(bytes) => Ok(Some(IndexEntry::decode(&bytes)?)),
        }
    }

    fn scan(&self, start: &[u8], end: Option<&[u8]>, limit: usize) -> Result<Vec<(IndexKey, IndexEntry)>, IndexError> {
        if end.is_some_and(|end| end <= start) {
            return Ok(Vec::new());
        }
        let range = guarded(|| {
            let range = match end {
                None => self.db.range(start..),
                Some(end) => self.db.range(start..end),
            };
            range.take(limit).collect::<sled::Result<Vec<_>>>()
        })?;
        range.iter().map(|(key, bytes)| Ok((IndexKey::from(key.as_ref()), IndexEntry::decode(bytes)?))).collect()
    }

    fn write(&self, batch: &[(&[u8], IndexEntry)], meta: &IndexMeta) -> Result<(), IndexError> {
        let mut writes = sled::Batch::default();
        for (key, entry) in batch {
            writes.insert(*key, entry.encode());
        }
        writes.insert(META_KEY, meta.encode());
        guarded(|| self.db.apply_batch(writes))
    }

    fn remove(&self, keys: &[&[u8]], meta: &IndexMeta) -> Result<(), IndexError> {
        let mut writes = sled::Batch::default();
        for key in keys {
            writes.remove(*key);
        }
        writes.insert(META_KEY, meta.encode());
        guarded(|| self.db.apply_batch(writes))
    }

    fn settle(&self) -> Result<(), IndexError> {
        guarded(|| self.db.flush()).map(|_| ())
    }

    fn meta(&self) -> Result<Option<IndexMeta>, IndexError> {
        match guarded(|| self.db.get(META_KEY))? {
            None => Ok(None),
            Some(bytes) => Ok(Some(IndexMeta::decode(&bytes)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_is_just_being_let_go_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..20 {
            let first = SledIndex::open(dir.path()).unwrap();
            let path = dir.path().to_owned();
            let second = thread::spawn(move || SledIndex::open(&path).map(drop));
            drop(first);
            assert!(second.join().unwrap().is_ok());
        }
    }
}
