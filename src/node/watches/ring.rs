//! [`Ring`]: the newest changes, encoded, bounded in bytes.

use std::collections::VecDeque;
use std::sync::Arc;

use super::encode::Batch;
use crate::model::Revision;

/// The newest changes. What falls out of it is in the history.
#[derive(Debug)]
pub struct Ring {
    batches: VecDeque<Arc<Batch>>,
    /// The first batch comes after this revision.
    start: Revision,
    /// The last batch goes up to this revision.
    end: Revision,
    bytes: usize,
    limit_bytes: usize,
}

/// What the ring has after a revision.
#[derive(Debug)]
pub enum Found {
    /// Batches that follow each other; the first one holds what follows the revision.
    Batches(Vec<Arc<Batch>>),
    /// Nothing: there is nothing newer yet.
    Nothing,
    /// The ring begins behind it.
    Gone,
}

impl Ring {
    /// An empty ring that takes at most so many bytes.
    pub fn new(limit_bytes: usize) -> Ring {
        Ring { batches: VecDeque::new(), start: 0, end: 0, bytes: 0, limit_bytes }
    }

    /// Up to which revision it goes.
    pub fn end(&self) -> Revision {
        self.end
    }

    /// How many bytes it takes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Forgets everything and begins anew behind a revision.
    pub fn restart(&mut self, at: Revision) {
        self.batches.clear();
        (self.start, self.end, self.bytes) = (at, at, 0);
    }

    /// Adds the batch that follows, and drops the oldest ones that have no room beside it.
    pub fn push(&mut self, batch: Arc<Batch>) {
        debug_assert_eq!(batch.after, self.end);
        self.end = batch.upto;
        self.bytes += batch.bytes();
        self.batches.push_back(batch);
        while self.bytes > self.limit_bytes {
            let Some(oldest) = self.batches.pop_front() else { break };
            self.start = oldest.upto;
            self.bytes -= oldest.bytes();
        }
    }

    /// The batches behind a revision, at most `max`.
    pub fn after(&self, revision: Revision, max: usize) -> Found {
        if revision >= self.end {
            return Found::Nothing;
        }
        if revision < self.start {
            return Found::Gone;
        }
        let first = self.batches.partition_point(|batch| batch.upto <= revision);
        Found::Batches(self.batches.range(first..).take(max).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ChangesPage;

    fn batch(after: Revision, upto: Revision) -> Arc<Batch> {
        let page = ChangesPage { transactions: Vec::new(), upto };
        Arc::new(Batch::encode(after, &page, false, |_, _| true))
    }

    #[test]
    fn the_ring_gives_what_follows_and_forgets_the_oldest() {
        let one = batch(10, 12).bytes();
        let mut ring = Ring::new(3 * one);
        ring.restart(10);
        for after in (10..20).step_by(2) {
            ring.push(batch(after, after + 2));
            assert!(ring.bytes() <= 3 * one);
        }
        // The batches up to 16, 18 and 20 are left.
        assert_eq!((ring.start, ring.end()), (14, 20));
        assert!(matches!(ring.after(13, 9), Found::Gone));
        assert!(matches!(ring.after(20, 9), Found::Nothing) && matches!(ring.after(99, 9), Found::Nothing));
        for (revision, max, expected) in
            [(14, 9, &[16, 18, 20][..]), (15, 9, &[16, 18, 20]), (16, 9, &[18, 20]), (14, 2, &[16, 18]), (19, 9, &[20])]
        {
            let Found::Batches(found) = ring.after(revision, max) else { panic!("nothing after {revision}") };
            assert_eq!(found.iter().map(|batch| batch.upto).collect::<Vec<_>>(), expected, "after {revision}");
        }
        ring.restart(30);
        assert!(matches!(ring.after(19, 9), Found::Gone) && matches!(ring.after(30, 9), Found::Nothing));
    }

    #[test]
    fn a_batch_that_is_larger_than_the_ring_is_not_kept() {
        let mut ring = Ring::new(10);
        ring.push(batch(0, 5));
        assert_eq!((ring.start, ring.end(), ring.bytes()), (5, 5, 0));
        assert!(matches!(ring.after(4, 9), Found::Gone));
    }
}
