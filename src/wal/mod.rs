//! The write-ahead log: Raft's entries and vote, durable before anyone is told so.
//!
//! In the path of a write it stands between openraft and the disk: `raft` hands entries over, they are readable at
//! once, and `done` is called after the one `fdatasync` that covers everything that was waiting. It knows nothing of
//! openraft, tokio or what an entry means.
//!
//! ```text
//!   callers ──► View (memory: recent entries, vote, ids) ──► queue ──► Writer (one thread) ──► segment files
//!      ▲                      │                                            │
//!      └── entries ◄──────────┴── older entries, from the files            └── done(Ok) after the sync
//! ```
//!
//! What is durable once `done(Ok)` was called, and after any crash: the entries, the vote, the truncation; all that was
//! handed over before; and nothing that was refused. What was handed over and not confirmed may be there or not, as a
//! prefix in the order of the calls. The committed id is kept without a sync of its own, so that it may be older after a
//! crash; it is never beyond the last entry. A purge may come back undone after a crash.
//!
//! Invariants:
//!
//! - A batch is written only when the one before is durable, and a truncation stands before the entries that replace
//!   what it cut: what survives a crash is a prefix of what was written.
//! - Damage is an error that names file and byte, except inside the last batch of the last segment, where it is what a
//!   crash leaves behind (`recover`). A clean stop ends with an empty batch, so that then nothing can be cut in silence.
//! - No byte of a batch is ever written twice and no segment is continued after a restart: each run begins a new
//!   segment, whose header says where the one before ends and whose random epoch is in every checksum. So what a cut
//!   batch or an earlier use of the file left behind is never read again. (At a restart the last batch's kept bytes are
//!   written over themselves, because a failed sync may have left them in a cache only.)
//! - After a failed write or sync the wal has stopped: whatever waits and whatever comes gets the error.
//! - Names: a segment's header is durable before its name, the name before its first batch; a purge is durable before
//!   its segments go; a spare's name is durable before it is written again.
//!
//! Memory is bounded by `memory_bytes` and [`QUEUE_BYTES`], whatever the length of the log.
//!
//! What it does not do: it does not look into payloads, does not decide what may be purged, does not know whether the
//! directory should have held a log (an empty one is a new one), and does not defend against a disk that damages
//! sectors beside those it writes. Proven by `wal::tests`: damage at every byte, power cuts at every operation, a model.

mod error;
mod reader;
pub mod record;
mod recover;
mod segment;
#[cfg(test)]
mod tests;
mod view;
mod writer;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex, MutexGuard};

pub use error::WalError;
use reader::Cursor;
use recover::{Recovered, recover};
use segment::{LogState, next_index, segment_name};
use view::View;
use writer::{Job, Start, Writer};

use crate::files::Disk;
use crate::model::{ClusterId, Entry, LogId, MemberId, Vote};

/// How many bytes may wait for the writer; a caller that would add more waits first.
pub const QUEUE_BYTES: usize = 64 << 20;
/// How many calls may wait for the writer.
pub const QUEUE_JOBS: usize = 64 << 10;

/// How a wal is set up.
#[derive(Debug, Clone)]
pub struct WalConfig {
    /// How long a segment file may grow; only a batch that is longer gets a longer one.
    pub segment_bytes: u64,
    /// How many bytes of recent entries stay in memory. Entries that are not durable yet stay whatever their number.
    pub memory_bytes: usize,
    /// How many files of purged segments are kept for reuse.
    pub spare_segments: usize,
    /// The cluster that this wal belongs to.
    pub cluster: ClusterId,
    /// The member that this wal belongs to.
    pub member: MemberId,
}

impl WalConfig {
    /// The defaults for a member of a cluster.
    pub fn new(cluster: ClusterId, member: MemberId) -> WalConfig {
        WalConfig { segment_bytes: 64 << 20, memory_bytes: 64 << 20, spare_segments: 2, cluster, member }
    }
}

/// What the wal remembers besides the entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WalState {
    /// The last vote saved.
    pub vote: Option<Vote>,
    /// An id known to be committed; never beyond `last`.
    pub committed: Option<LogId>,
    /// The last purged entry.
    pub purged: Option<LogId>,
    /// The last entry, or the purged id if there is none after it.
    pub last: Option<LogId>,
}

/// Figures for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WalStats {
    /// Segment files in use.
    pub segments: usize,
    /// Bytes written in them; what a byte budget for the log counts.
    pub bytes: u64,
    /// Bytes of entries in memory.
    pub memory_bytes: usize,
    /// Bytes that wait for the writer.
    pub queue_bytes: usize,
    /// The index of the first entry that is not purged.
    pub first_index: u64,
    /// Batches written since the start.
    pub batches: u64,
    /// Syncs of batches since the start.
    pub syncs: u64,
    /// Entries accepted since the start.
    pub entries_appended: u64,
    /// How long the syncs took, all together.
    pub sync_nanos_sum: u64,
    /// How long the longest sync took.
    pub sync_nanos_max: u64,
}

/// What is called when something is durable, or will never be. It is called on the wal's thread (or, when the wal has
/// stopped, on the caller's): it must not block, and must not call `append`, `save_vote` or `truncate_after`, which may
/// wait for that thread.
pub type Done = Box<dyn FnOnce(Result<(), WalError>) + Send>;

/// The write-ahead log of one member. Clones share one log; dropping the last one closes it.
#[derive(Clone)]
pub struct Wal {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    dir: PathBuf,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What callers and the writer share.
#[derive(Default)]
struct Shared {
    inner: Mutex<Inner>,
    /// There is work for the writer.
    work: Condvar,
    /// There is room in the queue.
    room: Condvar,
}

#[derive(Default)]
struct Inner {
    view: View,
    queue: VecDeque<(usize, Job)>,
    queue_bytes: usize,
    failure: Option<WalError>,
    closing: bool,
    stats: WalStats,
}

impl Inner {
    fn check_running(&self) -> Result<(), WalError> {
        match &self.failure {
            Some(failure) => Err(failure.clone()),
            None if self.closing => Err(WalError::Closed),
            None => Ok(()),
        }
    }
}

impl Wal {
    /// Opens the log in `dir`, or makes a new one if there is none, and brings it to a state that no later crash can
    /// change: only then is anything it reports final.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, config: WalConfig) -> Result<Wal, WalError> {
        disk.create_dir_all(dir).map_err(WalError::io("make", dir))?;
        // The names may stem from a process that was killed before it synced them. A spare that is a segment again after
        // a power cut must not have been written in between.
        disk.sync_dir(dir).map_err(WalError::io("sync", dir))?;
        let recovered = recover(disk.as_ref(), dir, &config)?;
        settle_last_batch(&recovered, dir)?;
        let Recovered { mut view, next_batch, last_header, last_segment_is_empty, mut spares, leftovers, .. } =
            recovered;
        for name in leftovers.iter().cloned().chain(spares.drain(config.spare_segments.min(spares.len())..)) {
            let path = dir.join(name);
            disk.remove(&path).map_err(WalError::io("remove", &path))?;
        }
        let (segment, previous_end) = match last_header {
            None => (1, 0),
            Some(header) if last_segment_is_empty => {
                view.segments.pop_back();
                (header.id, header.previous_end)
            }
            Some(header) => (header.id + 1, view.segments.back().map_or(0, |segment| segment.end)),
        };
        if let Some(closed) = view.segments.back_mut() {
            closed.end_next = view.written_next;
        }
        let shared = Arc::new(Shared::default());
        let state = view.state;
        shared.inner.lock().view = view;
        let start = Start { segment, previous_end, state, next_batch, spares };
        let writer = Writer::start(shared.clone(), disk, dir, config, start)?;
        let thread = thread::Builder::new().name("wal".into()).spawn(move || writer.run());
        let thread = Mutex::new(Some(thread.map_err(WalError::io("start the writer of", dir))?));
        Ok(Wal { handle: Arc::new(Handle { shared, dir: dir.to_path_buf(), thread }) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.handle.shared.inner.lock()
    }

    /// What the wal remembers, durable or not.
    pub fn state(&self) -> WalState {
        let LogState { vote, committed, purged, last } = self.lock().view.state;
        WalState { vote, committed, purged, last }
    }

    /// Adds entries after the last. They are readable when this returns, and durable when `done` is told so. A hole, or
    /// a term that runs backwards, is an error that stops the wal. Waits while the queue is full.
    pub fn append(&self, entries: Vec<Entry>, done: Done) {
        self.submit(Job::Append(entries, done), |inner, job| {
            let Job::Append(entries, _) = job else { return Ok(()) };
            let (mut next, mut term) = (inner.view.next(), inner.view.state.last.map_or(0, |last| last.term));
            for LogId { term: entry_term, index, .. } in entries.iter().map(|entry| entry.log_id) {
                if index != next || entry_term < term {
                    return Err(format!(
                        "entry {index} of term {entry_term} where {next} of term {term} should follow"
                    ));
                }
                (next, term) = (next + 1, entry_term);
            }
            for entry in entries {
                inner.view.push(entry.clone());
            }
            inner.stats.entries_appended += entries.len() as u64;
            Ok(())
        });
    }

    /// Remembers a vote. Waits while the queue is full.
    pub fn save_vote(&self, vote: Vote, done: Done) {
        self.submit(Job::Vote(vote, done), |inner, _| {
            inner.view.state.vote = Some(vote);
            Ok(())
        });
    }

    /// Ends the log after `last`, which must be in it (`None`: before its first entry). To cut below what is committed
    /// or purged is an error that stops the wal. Waits while the queue is full.
    pub fn truncate_after(&self, last: Option<LogId>, done: Done) {
        self.submit(Job::Truncate(last, done), |inner, _| {
            let view = &mut inner.view;
            let floor = next_index(view.state.committed).max(view.first());
            let known = last.is_none_or(|last| view.log_id_at(last.index) == Some(last));
            if next_index(last) < floor || !known {
                let last = last.map_or("nothing".into(), |last| last.to_string());
                return Err(format!("truncation to {last}, with everything below index {floor} committed or purged"));
            }
            view.truncate(last);
            view.pending_truncations.push_back(next_index(last));
            Ok(())
        });
    }

    /// Forgets the entries up to `upto`, at once for readers; files follow when the purge is durable. `upto` may lie
    /// beyond the last entry (a snapshot was installed): the log then goes on, empty, after it. Never waits.
    pub fn purge(&self, upto: LogId) {
        let mut inner = self.lock();
        if inner.check_running().is_err() || upto.index < inner.view.first() {
            return;
        }
        if upto.index < inner.view.next() && inner.view.log_id_at(upto.index) != Some(upto) {
            inner.failure = Some(WalError::Misuse(format!("purge up to {upto}, which is not in the log")));
        } else {
            inner.view.purge(upto);
            let job = Job::Purge(upto);
            let bytes = job.bytes();
            match inner.queue.back_mut() {
                Some((_, Job::Purge(waiting))) => *waiting = upto,
                _ => {
                    inner.queue.push_back((bytes, job));
                    inner.queue_bytes += bytes;
                }
            }
        }
        self.handle.shared.work.notify_one();
    }

    /// Notes that the log is committed up to an entry. It is kept with the next batch, and there never beyond what was
    /// durable before that batch. An id that is not in this log, or older than the one known, is passed over.
    pub fn set_committed(&self, committed: LogId) {
        let view = &mut self.lock().view;
        if next_index(view.state.committed) <= committed.index && view.log_id_at(committed.index) == Some(committed) {
            view.state.committed = Some(committed);
        }
    }

    /// Like [`Wal::entries`], but never reads a file: `None` when the first entry is no longer in memory.
    pub fn entries_in_memory(&self, from: u64, to: u64, max_bytes: usize) -> Result<Option<Vec<Entry>>, WalError> {
        let inner = self.lock();
        inner.check_running()?;
        let view = &inner.view;
        let mut found = Found { entries: Vec::new(), bytes: 0, max_bytes };
        let to = to.min(view.next());
        if from >= to {
            return Ok(Some(Vec::new()));
        }
        if from < view.first() {
            return Err(WalError::Purged { first: view.first() });
        }
        if from < view.tail_first() {
            return Ok(None);
        }
        let _full = view.tail_from(from, to).try_for_each(|entry| found.push(entry.clone()));
        Ok(Some(found.entries))
    }

    /// The entries from `from` up to but without `to`, as far as the log reaches, in order. Stops after `max_bytes` of
    /// encoded entries, but gives at least one if there is one.
    pub fn entries(&self, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Entry>, WalError> {
        let mut found = Found { entries: Vec::new(), bytes: 0, max_bytes };
        let mut at = from;
        loop {
            let (mut cursor, until) = {
                let inner = self.lock();
                inner.check_running()?;
                let view = &inner.view;
                let to = to.min(view.next());
                if at >= to {
                    return Ok(found.entries);
                }
                if at < view.first() {
                    return Err(WalError::Purged { first: view.first() });
                }
                if at >= view.tail_first() {
                    let _full = view.tail_from(at, to).try_for_each(|entry| found.push(entry.clone()));
                    return Ok(found.entries);
                }
                let Some((segment, mark, until)) = view.find(at) else {
                    let what = format!("entry {at} is in no segment");
                    return Err(WalError::corrupt(&self.handle.dir, 0, what));
                };
                let path = self.handle.dir.join(segment_name(segment.id));
                let cursor = Cursor::new(path, segment.file.clone(), segment.epoch, segment.id, &mark);
                (cursor, until.min(to).min(view.tail_first()))
            };
            while at < until {
                let entry = self.note_damage(cursor.next_entry())?;
                match entry.log_id.index {
                    index if index < at => {}
                    index if index == at => {
                        if found.push(entry).is_err() {
                            return Ok(found.entries);
                        }
                        at += 1;
                    }
                    index => {
                        let what = format!("entry {index} where {at} should stand");
                        return self.note_damage(Err(WalError::corrupt(&cursor.path, 0, what)));
                    }
                }
            }
        }
    }

    /// The log id at an index: an entry's, or the purged one; `None` for what is not in the log. Never reads a file.
    pub fn log_id_at(&self, index: u64) -> Result<Option<LogId>, WalError> {
        let inner = self.lock();
        inner.check_running()?;
        Ok(inner.view.log_id_at(index))
    }

    /// The index of the last entry that is durable. Entries after it may be lost in a crash.
    pub fn durable_index(&self) -> Option<u64> {
        self.lock().view.durable_next().checked_sub(1)
    }

    /// The index of the first entry that is not purged.
    pub fn first_index(&self) -> u64 {
        self.lock().view.first()
    }

    /// Roughly how many bytes the entries from `from` on have, up to but without `to`, as far as the log holds them. Never
    /// reads a file.
    pub fn bytes_between(&self, from: u64, to: u64) -> u64 {
        self.lock().view.bytes_between(from, to)
    }

    /// Figures for metrics.
    pub fn stats(&self) -> WalStats {
        let inner = self.lock();
        WalStats {
            segments: inner.view.segments.len(),
            bytes: inner.view.segments.iter().map(|segment| segment.end).sum(),
            memory_bytes: inner.view.tail_bytes,
            queue_bytes: inner.queue_bytes,
            first_index: inner.view.first(),
            ..inner.stats
        }
    }

    /// The largest index up to which the log may be purged so that the segments after it hold at least `keep_bytes`;
    /// `None` when there is nothing to purge. Segments are given back whole, so this is always the end of one.
    pub fn purgeable_index(&self, keep_bytes: u64) -> Option<u64> {
        let inner = self.lock();
        let mut segments = inner.view.segments.iter().rev();
        // The newest segment is being written and is never given back.
        let mut kept = segments.next()?.end;
        for segment in segments {
            if kept >= keep_bytes {
                return segment.end_next.checked_sub(1).filter(|index| *index >= inner.view.first());
            }
            kept += segment.end;
        }
        None
    }

    /// Why the wal has stopped, if it has.
    pub fn failure(&self) -> Option<WalError> {
        self.lock().failure.clone()
    }

    /// Writes what waits, ends the log cleanly and stops the thread. Later calls get `Closed`.
    pub fn close(&self) -> Result<(), WalError> {
        self.handle.close()
    }

    /// Applies a job to the view and queues it, in one step. A refused or misused one is told so through its `done`.
    fn submit(&self, job: Job, apply: impl FnOnce(&mut Inner, &Job) -> Result<(), String>) {
        let bytes = job.bytes();
        let refused = {
            let mut inner = self.lock();
            while inner.check_running().is_ok()
                && !inner.queue.is_empty()
                && (inner.queue_bytes + bytes > QUEUE_BYTES || inner.queue.len() >= QUEUE_JOBS)
            {
                self.handle.shared.room.wait(&mut inner);
            }
            let accepted = inner.check_running().and_then(|()| {
                apply(&mut inner, &job).map_err(|what| inner.failure.insert(WalError::Misuse(what)).clone())
            });
            match accepted {
                Ok(()) => {
                    inner.queue_bytes += bytes;
                    inner.queue.push_back((bytes, job));
                    None
                }
                Err(e) => Some((job, Err(e))),
            }
        };
        self.handle.shared.work.notify_one();
        if let Some((job, error)) = refused {
            job.finish(&error);
        }
    }

    /// Damage that a reader meets stops the wal like any other.
    fn note_damage<T>(&self, result: Result<T, WalError>) -> Result<T, WalError> {
        if let Err(damage @ WalError::Corrupt { .. }) = &result {
            self.lock().failure.get_or_insert_with(|| damage.clone());
            self.handle.shared.work.notify_one();
        }
        result
    }
}

/// Entries gathered under a limit.
struct Found {
    entries: Vec<Entry>,
    bytes: usize,
    max_bytes: usize,
}

/// The limit is reached.
struct Full;

impl Found {
    fn push(&mut self, entry: Entry) -> Result<(), Full> {
        self.bytes += record::encoded_entry_bytes(&entry);
        if self.bytes > self.max_bytes && !self.entries.is_empty() {
            return Err(Full);
        }
        self.entries.push(entry);
        Ok(())
    }
}

/// Makes what was kept of the last batch durable. It may have been read from a cache whose sync failed, or was never
/// asked for, in the run before; writing the same bytes again makes the next sync honest.
fn settle_last_batch(recovered: &Recovered, dir: &Path) -> Result<(), WalError> {
    let Some(segment) = recovered.view.segments.back() else { return Ok(()) };
    let path = dir.join(segment_name(segment.id));
    if let Some((offset, bytes)) = &recovered.last_batch {
        segment.file.write_all_at(bytes, *offset).map_err(WalError::io("write", &path))?;
    }
    segment.file.sync().map_err(WalError::io("sync", &path))
}

impl Handle {
    fn close(&self) -> Result<(), WalError> {
        self.shared.inner.lock().closing = true;
        self.shared.work.notify_one();
        self.shared.room.notify_all();
        let thread = self.thread.lock().take();
        // The last handle may go in a `done`, on the writer's thread, which then ends by itself.
        if let Some(thread) = thread.filter(|handle| handle.thread().id() != thread::current().id()) {
            thread.join().map_err(|_| WalError::Panicked)?;
        }
        self.shared.inner.lock().failure.clone().map_or(Ok(()), Err)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Nobody is left to tell: whoever wanted to know has called `close`.
        let _unheard = self.close();
    }
}
