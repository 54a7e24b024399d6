//! When entries were committed, by this leader's own clock: how old is what a member lacks?
//!
//! The leader notes at every look how far is committed. An entry was committed after the last look that did not show it,
//! so its age counts from that look: an upper bound, too high by one pause between two looks at most. Memory is bounded:
//! when the list is full every second note of its older half goes, which makes the bound coarser for what is old.
//!
//! What was committed before this member led is not here; its age comes from the time inside the frame.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// So many notes are kept.
const KEPT: usize = 4096;

/// The list.
#[derive(Debug, Default)]
pub struct Commits {
    notes: VecDeque<Note>,
    looked: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Note {
    /// Committed so far.
    index: u64,
    /// The look before the one that showed it.
    after: Instant,
}

impl Commits {
    /// A look: so far is committed.
    pub fn note(&mut self, index: u64, now: Instant) {
        let after = self.looked.replace(now).unwrap_or(now);
        if self.notes.back().is_some_and(|last| index <= last.index) {
            return;
        }
        if self.notes.len() == KEPT {
            self.thin();
        }
        self.notes.push_back(Note { index, after });
    }

    /// How long ago the entry at `index` was committed, at most; none when that was before the first look, or is not yet.
    pub fn age(&self, index: u64, now: Instant) -> Option<Duration> {
        let at = self.notes.partition_point(|note| note.index < index);
        // The first note may be of entries that were there long before.
        if at == 0 {
            return None;
        }
        self.notes.get(at).map(|note| now.saturating_duration_since(note.after))
    }

    /// Merges every second note of the older half into the one behind it, which takes its earlier time.
    fn thin(&mut self) {
        let older = self.notes.len() / 2;
        let mut kept = VecDeque::with_capacity(KEPT);
        // The first stays: it says where the list begins.
        let mut at = 1;
        kept.push_back(self.notes[0]);
        while at + 1 < older {
            kept.push_back(Note { index: self.notes[at + 1].index, after: self.notes[at].after });
            at += 2;
        }
        kept.extend(self.notes.range(at..));
        self.notes = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_counts_from_the_last_look_that_did_not_show_the_entry() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut commits = Commits::default();
        commits.note(10, at(0));
        commits.note(10, at(100));
        commits.note(15, at(200));
        commits.note(15, at(300));
        commits.note(20, at(400));
        let age = |index| commits.age(index, at(500)).map(|age| age.as_millis());
        assert_eq!(age(10), None, "it may have been there long before");
        assert_eq!((age(11), age(15)), (Some(400), Some(400)));
        assert_eq!((age(16), age(20)), (Some(200), Some(200)));
        assert_eq!(age(21), None, "it is not committed");
    }

    #[test]
    fn what_is_thinned_never_looks_younger() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut commits = Commits::default();
        let total = KEPT as u64 * 3;
        for n in 0..total {
            commits.note(n, at(n));
            assert!(commits.notes.len() <= KEPT);
        }
        let now = at(total);
        let mut last = Duration::MAX;
        for n in 1..total {
            let age = commits.age(n, now).unwrap();
            assert!(age >= Duration::from_millis(total - n), "entry {n} looks younger than it is");
            assert!(age <= last, "a later entry looks older");
            last = age;
        }
        assert_eq!(commits.age(total - 1, now), Some(Duration::from_millis(2)), "what is new is exact");
    }
}
