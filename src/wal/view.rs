//! What the wal knows in memory: the log as its callers see it, and where older entries lie in the files.
//!
//! Callers change the log here at once; the writer's thread follows and says how far the files have come. In between,
//! `written_next` and the pending truncations tell which part of the log the files hold already: only that part may
//! leave memory or be called durable.
//!
//! Memory is bounded whatever the log's length: recent entries by bytes, terms by their number, and the places of
//! older entries by one mark for about every [`MARK_EVERY_BYTES`] of file.

use std::collections::VecDeque;
use std::sync::Arc;

use super::record::encoded_entry_bytes;
use super::segment::{LogState, next_index};
use crate::files::DiskFile;
use crate::model::{Entry, LogId};

/// How far apart marks are: what a reader may have to skip.
pub(super) const MARK_EVERY_BYTES: u64 = 64 << 10;
/// So many entries are counted one by one.
const COUNTED_ENTRIES: u64 = 4096;
/// What an entry costs in memory besides its payload.
const ENTRY_OVERHEAD_BYTES: usize = size_of::<Entry>();

/// The place of an entry in a segment file. The entries after it follow, in order, up to the next mark.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    /// The index of the entry.
    pub first: u64,
    /// Where its record begins.
    pub offset: u64,
    /// The batch that it is in, and where that batch ends.
    pub batch: u64,
    pub batch_end: u64,
}

/// Decides which entries of a segment get a mark: the first, the first after a truncation or a purge, and one for about
/// every [`MARK_EVERY_BYTES`].
#[derive(Debug, Default)]
pub(super) struct MarkPlacer {
    last_offset: Option<u64>,
}

impl MarkPlacer {
    /// Whether the entry at `offset` shall have a mark; it is then taken to have one.
    pub fn wants(&mut self, offset: u64) -> bool {
        let due = self.last_offset.is_none_or(|last| offset - last >= MARK_EVERY_BYTES);
        if due {
            self.last_offset = Some(offset);
        }
        due
    }

    /// The next entry does not follow the one before it in the file.
    pub fn interrupt(&mut self) {
        self.last_offset = None;
    }
}

/// A segment file that is in use.
pub(super) struct Segment {
    pub id: u64,
    pub epoch: u64,
    pub file: Arc<dyn DiskFile>,
    /// Where the last batch ends.
    pub end: u64,
    /// The index after the last live entry in this segment and all before it. Only meaningful for closed segments.
    pub end_next: u64,
    pub marks: Vec<Mark>,
}

/// The log.
#[derive(Default)]
pub(super) struct View {
    pub state: LogState,
    /// The first log id of each run of entries with the same term and leader.
    runs: Vec<LogId>,
    /// The newest entries, without a gap up to the last.
    tail: VecDeque<Entry>,
    pub tail_bytes: usize,
    /// The index after the last entry that is durable in the files, in the order of the files.
    pub written_next: u64,
    /// For each truncation that is accepted and not yet durable, the index after the last entry that it keeps.
    pub pending_truncations: VecDeque<u64>,
    pub segments: VecDeque<Segment>,
}

pub(super) fn memory_bytes(entry: &Entry) -> usize {
    encoded_entry_bytes(entry) + ENTRY_OVERHEAD_BYTES
}

impl View {
    /// The index of the first entry that is not purged.
    pub fn first(&self) -> u64 {
        next_index(self.state.purged)
    }

    /// The index after the last entry.
    pub fn next(&self) -> u64 {
        next_index(self.state.last)
    }

    /// The index of the oldest entry in memory.
    pub fn tail_first(&self) -> u64 {
        self.next() - self.tail.len() as u64
    }

    /// The index after the last entry that is in this log and durable.
    pub fn durable_next(&self) -> u64 {
        self.pending_truncations.iter().fold(self.written_next, |next, kept| next.min(*kept))
    }

    /// The log id at an index: an entry's, or the purged one.
    pub fn log_id_at(&self, index: u64) -> Option<LogId> {
        if let Some(id) = self.state.purged.into_iter().chain(self.state.last).find(|id| id.index == index) {
            return Some(id);
        }
        if index < self.first() || index >= self.next() {
            return None;
        }
        let run = self.runs.partition_point(|run| run.index <= index).checked_sub(1)?;
        Some(LogId { index, ..self.runs[run] })
    }

    /// The committed log id, as far as it is durable here; `None` when that cannot be told.
    pub fn durable_committed(&self) -> Option<LogId> {
        let committed = self.state.committed?;
        let last_durable = self.durable_next().checked_sub(1)?;
        if committed.index <= last_durable { Some(committed) } else { self.log_id_at(last_durable) }
    }

    /// Adds an entry that follows the last.
    pub fn push(&mut self, entry: Entry) {
        let id = entry.log_id;
        debug_assert_eq!(id.index, self.next());
        if self.runs.last().is_none_or(|run| (run.term, run.leader) != (id.term, id.leader)) {
            self.runs.push(id);
        }
        self.tail_bytes += memory_bytes(&entry);
        self.tail.push_back(entry);
        self.state.last = Some(id);
    }

    /// Ends the log after `last`.
    pub fn truncate(&mut self, last: Option<LogId>) {
        let next = next_index(last);
        while self.tail.back().is_some_and(|entry| entry.log_id.index >= next) {
            self.tail_bytes -= self.tail.pop_back().map_or(0, |entry| memory_bytes(&entry));
        }
        while self.runs.last().is_some_and(|run| run.index >= next) {
            self.runs.pop();
        }
        self.state.last = last;
    }

    /// Forgets the entries up to `upto`; beyond the last entry, the log goes on empty after `upto`.
    pub fn purge(&mut self, upto: LogId) {
        if upto.index < self.first() {
            return;
        }
        if self.next() <= upto.index + 1 {
            (self.tail_bytes, self.state.last) = (0, Some(upto));
            self.tail.clear();
            self.runs.clear();
        }
        while self.tail.front().is_some_and(|entry| entry.log_id.index <= upto.index) {
            self.tail_bytes -= self.tail.pop_front().map_or(0, |entry| memory_bytes(&entry));
        }
        let passed = self.runs.partition_point(|run| run.index <= upto.index + 1);
        self.runs.drain(..passed.saturating_sub(1));
        self.state.purged = Some(upto);
        // What is purged was committed: callers purge only what they have applied or received as a snapshot.
        if next_index(self.state.committed) <= upto.index {
            self.state.committed = Some(upto);
        }
    }

    /// Lets the oldest entries leave memory until the rest fits, as far as the files have them.
    pub fn evict(&mut self, memory_bytes_max: usize) {
        let durable_next = self.durable_next();
        while self.tail_bytes > memory_bytes_max
            && self.tail.front().is_some_and(|entry| entry.log_id.index < durable_next)
        {
            self.tail_bytes -= self.tail.pop_front().map_or(0, |entry| memory_bytes(&entry));
        }
    }

    /// Entries in memory from `from` on, which is in memory, up to but without `to`.
    pub fn tail_from(&self, from: u64, to: u64) -> impl Iterator<Item = &Entry> {
        let skip = (from - self.tail_first()) as usize;
        self.tail.range(skip.min(self.tail.len())..).take(to.saturating_sub(from) as usize)
    }

    /// How many bytes the entries from `from` on have, up to but without `to`: exactly while they are few and in memory,
    /// else as far apart as their marks lie in the files.
    pub fn bytes_between(&self, from: u64, to: u64) -> u64 {
        let (from, to) = (from.max(self.first()), to.min(self.next()));
        if from >= to {
            return 0;
        }
        if from >= self.tail_first() && to - from <= COUNTED_ENTRIES {
            return self.tail_from(from, to).map(|entry| encoded_entry_bytes(entry) as u64).sum();
        }
        self.place(to).saturating_sub(self.place(from))
    }

    /// About where an entry lies, in bytes from the beginning of the first segment. What is not written yet lies at the
    /// end.
    fn place(&self, index: u64) -> u64 {
        let bytes = |segments: &mut dyn Iterator<Item = &Segment>| segments.map(|segment| segment.end).sum::<u64>();
        match self.find(index) {
            Some((found, mark, _)) if index < self.written_next => {
                bytes(&mut self.segments.iter().take_while(|segment| segment.id != found.id)) + mark.offset
            }
            _ => bytes(&mut self.segments.iter()),
        }
    }

    /// Notes that a truncation has reached the files.
    pub fn truncate_written(&mut self, next: u64) {
        self.written_next = self.written_next.min(next);
        for segment in self.segments.iter_mut().rev() {
            segment.end_next = segment.end_next.min(next);
            while segment.marks.last().is_some_and(|mark| mark.first >= next) {
                segment.marks.pop();
            }
        }
    }

    /// Where to begin reading for an entry that is not in memory: a segment, its last mark at or before the entry, and
    /// the index at which the next mark takes over.
    pub fn find(&self, index: u64) -> Option<(&Segment, Mark, u64)> {
        let mut until = u64::MAX;
        for segment in self.segments.iter().rev() {
            let at = segment.marks.partition_point(|mark| mark.first <= index);
            if let Some(mark) = segment.marks.get(at) {
                until = mark.first;
            }
            if let Some(mark) = at.checked_sub(1).and_then(|at| segment.marks.get(at)) {
                return Some((segment, *mark, until));
            }
        }
        None
    }
}
