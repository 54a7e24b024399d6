//! [`KeyFilter`]: says of most keys that were never written that they were not, without a look-up.
//!
//! A look-up of a missing key in the index costs as much as one of a key that is there, and creating a key always begins
//! with one. The filter is a Bloom filter of a fixed size, in blocks of 64 bytes so that a question costs one cache line.
//! Keys are added before readers can see them and never removed; so "absent" is always true, and "maybe" only means the
//! look-up is made. With more keys than it is made for (about one per byte) it answers "maybe" more often, nothing else.

use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bits set for a key, one in each of so many words of a block.
const PROBES: usize = 6;
const BLOCK_WORDS: usize = 8;

/// A filter over index keys.
pub(super) struct KeyFilter {
    words: Vec<AtomicU64>,
}

impl KeyFilter {
    /// An empty filter of about `bytes`; of none at all for 0, and then everything may be there.
    pub fn new(bytes: usize) -> KeyFilter {
        let blocks = bytes / (8 * BLOCK_WORDS);
        KeyFilter { words: (0..blocks * BLOCK_WORDS).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The block of a key, and the bits to probe.
    fn place(&self, key: &[u8]) -> (&[AtomicU64], u64) {
        let mut hasher = DefaultHasher::new();
        hasher.write(key);
        let hash = hasher.finish();
        let blocks = self.words.len() / BLOCK_WORDS;
        let block = ((u128::from(hash) * blocks as u128) >> 64) as usize;
        // The high bits chose the block; other bits choose within it.
        (&self.words[block * BLOCK_WORDS..][..BLOCK_WORDS], hash.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Adds a key.
    pub fn add(&self, key: &[u8]) {
        if self.words.is_empty() {
            return;
        }
        let (block, bits) = self.place(key);
        for (probe, word) in block.iter().enumerate().take(PROBES) {
            let mask = 1 << (bits >> (6 * probe) & 63);
            if word.load(Ordering::Relaxed) & mask == 0 {
                word.fetch_or(mask, Ordering::Relaxed);
            }
        }
    }

    /// False when the key was never added.
    pub fn may_hold(&self, key: &[u8]) -> bool {
        if self.words.is_empty() {
            return true;
        }
        let (block, bits) = self.place(key);
        let mut words = block.iter().enumerate().take(PROBES);
        words.all(|(probe, word)| word.load(Ordering::Relaxed) & (1 << (bits >> (6 * probe) & 63)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_is_ever_missed_and_few_are_suspected() {
        let filter = KeyFilter::new(64 << 10);
        let key = |n: u32| format!("some/prefix/{n}").into_bytes();
        (0..40_000).for_each(|n| filter.add(&key(n)));
        assert!((0..40_000).all(|n| filter.may_hold(&key(n))));
        let suspected = (40_000..80_000).filter(|n| filter.may_hold(&key(*n))).count();
        assert!(suspected < 2_000, "{suspected} of 40,000");
        assert!(KeyFilter::new(0).may_hold(b"anything"));
    }
}
