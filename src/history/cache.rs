//! [`ByteCache`]: a map bounded in bytes that keeps what was used lately.
//!
//! Two generations: new and used entries go to the young one; when it holds half of the bound it becomes the old one,
//! and what was in the old one and was not used meanwhile is gone. Every step is O(1), and there is nothing to tune.
//! Entries may be dropped at any time, so a cache never decides anything.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

const SHARDS: usize = 16;
/// What an entry costs besides what its weight says, roughly.
const ENTRY_BYTES: usize = 96;

/// A cache that is bounded in bytes and shared by threads.
#[derive(Debug)]
pub struct ByteCache<K, V> {
    shards: Vec<Mutex<Shard<K, V>>>,
    hasher: RandomState,
    hits: AtomicU64,
    misses: AtomicU64,
}

#[derive(Debug)]
struct Shard<K, V> {
    young: HashMap<K, (V, usize)>,
    old: HashMap<K, (V, usize)>,
    young_bytes: usize,
    old_bytes: usize,
    generation_bytes: usize,
}

impl<K: Hash + Eq, V: Clone> ByteCache<K, V> {
    /// Makes a cache of at most `limit_bytes`. Few large entries want one shard, many small ones several.
    pub fn new(limit_bytes: usize, few_large_entries: bool) -> Self {
        let shards = if few_large_entries { 1 } else { SHARDS };
        let shard = |_| {
            Mutex::new(Shard {
                young: HashMap::new(),
                old: HashMap::new(),
                young_bytes: 0,
                old_bytes: 0,
                generation_bytes: limit_bytes / shards / 2,
            })
        };
        ByteCache {
            shards: (0..shards).map(shard).collect(),
            hasher: RandomState::new(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    fn shard<Q: Hash + ?Sized>(&self, key: &Q) -> &Mutex<Shard<K, V>> {
        &self.shards[self.hasher.hash_one(key) as usize % self.shards.len()]
    }

    /// What is kept under `key`, if it passes `valid`.
    pub fn get<Q>(&self, key: &Q, valid: impl Fn(&V) -> bool) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let mut shard = self.shard(key).lock();
        let mut found = shard.young.get(key).map(|(value, _)| value.clone());
        if found.is_none()
            && let Some((key, (value, bytes))) = shard.old.remove_entry(key)
        {
            shard.old_bytes -= bytes;
            found = Some(value.clone());
            shard.put(key, value, bytes);
        }
        let found = found.filter(valid);
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Keeps a value that weighs `bytes`. What is too large for the cache is not kept.
    pub fn put(&self, key: K, value: V, bytes: usize) {
        let mut shard = self.shard(&key).lock();
        if let Some((_, bytes)) = shard.old.remove(&key) {
            shard.old_bytes -= bytes;
        }
        shard.put(key, value, bytes + ENTRY_BYTES);
    }

    /// How many look-ups found something, and how many did not.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }

    /// How many bytes are kept now.
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock()).map(|shard| shard.young_bytes + shard.old_bytes).sum()
    }
}

impl<K: Hash + Eq, V> Shard<K, V> {
    fn put(&mut self, key: K, value: V, bytes: usize) {
        if bytes > self.generation_bytes {
            return;
        }
        if self.young_bytes + bytes > self.generation_bytes {
            self.old = mem::take(&mut self.young);
            self.old_bytes = mem::take(&mut self.young_bytes);
        }
        self.young_bytes += bytes;
        if let Some((_, replaced)) = self.young.insert(key, (value, bytes)) {
            self.young_bytes -= replaced;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_its_bound_and_what_is_used() {
        let cache: ByteCache<u64, u64> = ByteCache::new(100 * (ENTRY_BYTES + 100), true);
        for key in 0..1000 {
            cache.put(key, key * 2, 100);
            assert!(cache.bytes() <= 100 * (ENTRY_BYTES + 100), "{} bytes", cache.bytes());
            assert_eq!(cache.get(&0, |_| true), Some(0), "an entry in steady use was dropped at {key}");
        }
        assert_eq!(cache.get(&500, |_| true), None);
        assert_eq!(cache.get(&999, |_| true), Some(1998));
        assert_eq!(cache.get(&999, |value| *value == 0), None);
        cache.put(5000, 1, 1 << 20);
        assert_eq!(cache.get(&5000, |_| true), None, "larger than the whole cache");
        assert_eq!(cache.hits_and_misses(), (1001, 3));
    }
}
