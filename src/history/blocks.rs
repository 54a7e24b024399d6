//! [`Blocks`]: the blocks of segments that one reader has read lately, and how many bytes it has read from the disk.
//!
//! A block holds a dozen small frames, so a reader that looks up one key after the other, in the order in which they were
//! written or nearly so, would read and check each block a dozen times. The default keeps nothing: reads of single keys have
//! caches of their own. Bounded in bytes. Proven by the tests below and by `store/tests/scrub.rs`.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

/// Larger blocks hold one large frame, which nobody asks for twice.
const LARGEST: usize = 64 << 10;

/// The id of a segment and the number of a block in it.
type Which = (u64, usize);

/// What a reader keeps of the blocks it has read.
#[derive(Debug, Default)]
pub struct Blocks {
    kept: HashMap<Which, Bytes>,
    /// The newest last.
    order: VecDeque<Which>,
    kept_bytes: usize,
    most_bytes: usize,
    read_bytes: u64,
}

impl Blocks {
    /// Keeps so many bytes of blocks.
    pub fn keeping(most_bytes: usize) -> Blocks {
        Blocks { most_bytes, ..Blocks::default() }
    }

    /// How many bytes were read from files.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// A block that is kept, or what `read` gives of it.
    pub fn get<E>(&mut self, segment: u64, block: usize, read: impl FnOnce() -> Result<Bytes, E>) -> Result<Bytes, E> {
        if let Some(bytes) = self.kept.get(&(segment, block)) {
            return Ok(bytes.clone());
        }
        let bytes = read()?;
        self.read_bytes += bytes.len() as u64;
        if self.most_bytes > 0 && bytes.len() <= LARGEST.min(self.most_bytes) {
            self.kept_bytes += bytes.len();
            while self.kept_bytes > self.most_bytes
                && let Some(oldest) = self.order.pop_front()
            {
                self.kept_bytes -= self.kept.remove(&oldest).map_or(0, |bytes| bytes.len());
            }
            self.order.push_back((segment, block));
            self.kept.insert((segment, block), bytes.clone());
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_blocks_are_read_once_and_large_ones_again() {
        let mut blocks = Blocks::keeping(LARGEST);
        let mut reads = Vec::new();
        for (segment, block, len) in [
            (1, 0, LARGEST / 2),
            (1, 1, LARGEST / 2),
            (1, 0, LARGEST / 2),
            (2, 0, 10),
            (1, 0, LARGEST / 2),
            (3, 0, LARGEST + 1),
        ] {
            let found = blocks.get(segment, block, || {
                reads.push((segment, block));
                Ok::<_, ()>(Bytes::from(vec![segment as u8; len]))
            });
            assert_eq!(found.unwrap(), vec![segment as u8; len]);
        }
        assert!(blocks.get(3, 0, || Err("it is read again")).is_err());
        assert_eq!(reads, [(1, 0), (1, 1), (2, 0), (1, 0), (3, 0)], "the one that came first goes");
        assert_eq!(blocks.read_bytes(), (LARGEST / 2 * 5 + 10 + 1) as u64);
        let mut none = Blocks::default();
        assert!(none.get(1, 0, || Ok::<_, ()>(Bytes::new())).is_ok());
        assert!(none.get(1, 0, || Err("it is read again")).is_err());
    }
}
