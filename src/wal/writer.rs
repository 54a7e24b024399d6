//! The wal's one writer: a thread that turns what waits in the queue into batches, and syncs each once.
//!
//! ```text
//!   append, save_vote, truncate_after, purge ─► queue ─► one batch: one write, one fdatasync ─► done of all of them
//! ```
//!
//! The next batch is encoded only when the one before is durable; what arrived meanwhile shares it. The first failure of
//! a write or a sync ends the thread: everything that waits gets the error, nothing is tried again.

use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use super::error::WalError;
use super::record::{
    RECORD_ENTRY, RECORD_HEADER_BYTES, RECORD_PURGE, RECORD_TRUNCATE, RECORD_VOTE, Salt, encode_entry_into,
    encoded_entry_bytes, put_log_id, put_option, put_record, put_vote,
};
use super::segment::{
    BATCH_HEADER_BYTES, BatchHeader, LogState, SEGMENT_HEADER_BYTES, SegmentHeader, next_index, segment_name,
    spare_name,
};
use super::view::{Mark, MarkPlacer, Segment};
use super::{Done, Shared, WalConfig};
use crate::files::{Disk, DiskFile};
use crate::model::{Entry, LogId, Vote};

/// A batch takes no more jobs once it has this many bytes; a single job may be larger.
pub(super) const BATCH_BYTES: usize = 4 << 20;
/// By how much a segment file that was not recycled is extended with zeros at a time.
const GROW_BYTES: u64 = 4 << 20;
/// The room of a vote, a truncation or a purge in a batch, at most.
const SMALL_RECORD_BYTES: usize = RECORD_HEADER_BYTES + 32;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Something that the writer shall make durable.
pub(super) enum Job {
    Append(Vec<Entry>, Done),
    Vote(Vote, Done),
    Truncate(Option<LogId>, Done),
    Purge(LogId),
}

impl Job {
    /// How many bytes the job takes in a batch, at most.
    pub fn bytes(&self) -> usize {
        match self {
            Job::Append(entries, _) => entries.iter().map(|e| RECORD_HEADER_BYTES + encoded_entry_bytes(e)).sum(),
            _ => SMALL_RECORD_BYTES,
        }
    }

    /// Tells whoever waits.
    pub fn finish(self, result: &Result<(), WalError>) {
        match self {
            Job::Append(_, done) | Job::Vote(_, done) | Job::Truncate(_, done) => done(result.clone()),
            Job::Purge(_) => {}
        }
    }
}

/// What a batch changes in the view once it is durable, in the order of the file.
enum Change {
    Mark(Mark),
    Written(u64),
    Truncated(u64),
    Purged(LogId),
}

/// The segment that is being written.
struct Current {
    id: u64,
    epoch: u64,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    offset: u64,
    file_bytes: u64,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    config: WalConfig,
    current: Current,
    spares: Vec<String>,
    /// What is durable, in the order of the files.
    durable: LogState,
    next_batch: u64,
    placer: MarkPlacer,
    // Reused from batch to batch.
    buf: Vec<u8>,
    jobs: Vec<Job>,
    jobs_bytes: usize,
    changes: Vec<Change>,
}

/// What the writer starts from.
pub(super) struct Start {
    pub segment: u64,
    pub previous_end: u64,
    pub state: LogState,
    pub next_batch: u64,
    pub spares: Vec<String>,
}

impl Writer {
    /// Makes the segment that this run begins with, and the writer for it.
    pub fn start(
        shared: Arc<Shared>,
        disk: Arc<dyn Disk>,
        dir: &Path,
        config: WalConfig,
        start: Start,
    ) -> Result<Writer, WalError> {
        let mut spares = start.spares;
        let header = SegmentHeader {
            id: start.segment,
            epoch: rand::random(),
            cluster: config.cluster,
            member: config.member,
            first_batch: start.next_batch,
            previous_end: start.previous_end,
            state: start.state,
        };
        let current = make_segment(disk.as_ref(), dir, &header, &mut spares)?;
        let writer = Writer {
            shared,
            disk,
            dir: dir.to_path_buf(),
            config,
            current,
            spares,
            durable: start.state,
            next_batch: start.next_batch,
            placer: MarkPlacer::default(),
            buf: Vec::new(),
            jobs: Vec::new(),
            jobs_bytes: 0,
            changes: Vec::new(),
        };
        writer.shared.inner.lock().view.segments.push_back(writer.current.in_view());
        Ok(writer)
    }

    /// Writes batches until the wal is closed or something fails.
    pub fn run(mut self) {
        let mut wrote = false;
        loop {
            let (committed, closing) = match self.take_jobs() {
                Ok(taken) => taken,
                Err(e) => return self.fail(e),
            };
            // The last, empty batch of a clean stop carries the newest committed id, and proves that the batch before
            // it was whole.
            if closing && !(wrote || committed != self.durable.committed) {
                return;
            }
            if let Err(e) = self.write_batch(committed) {
                return self.fail(e);
            }
            wrote = true;
            if closing {
                return;
            }
        }
    }

    /// Waits for jobs and takes as many as fit into a batch. Also returns the committed id that its header may carry,
    /// and whether the wal is closing and everything has been taken.
    fn take_jobs(&mut self) -> Result<(Option<LogId>, bool), WalError> {
        let mut inner = self.shared.inner.lock();
        while inner.queue.is_empty() && !inner.closing && inner.failure.is_none() {
            self.shared.work.wait(&mut inner);
        }
        if let Some(failure) = &inner.failure {
            return Err(failure.clone());
        }
        self.jobs_bytes = 0;
        while self.jobs_bytes < BATCH_BYTES
            && let Some((bytes, job)) = inner.queue.pop_front()
        {
            self.jobs_bytes += bytes;
            self.jobs.push(job);
        }
        inner.queue_bytes -= self.jobs_bytes;
        self.shared.room.notify_all();
        let committed = inner.view.durable_committed();
        let newer = next_index(committed) > next_index(self.durable.committed);
        let committed = if newer { committed } else { self.durable.committed };
        Ok((committed, self.jobs.is_empty()))
    }

    fn write_batch(&mut self, committed: Option<LogId>) -> Result<(), WalError> {
        let bytes = (BATCH_HEADER_BYTES + self.jobs_bytes) as u64;
        let is_first = self.current.offset == SEGMENT_HEADER_BYTES as u64;
        let roll = !is_first && self.current.offset + bytes > self.config.segment_bytes;
        if roll {
            self.roll()?;
        }
        let after = self.encode(committed);
        let end = self.current.offset + self.buf.len() as u64;
        self.current.grow(end, self.config.segment_bytes)?;
        let path = &self.current.path;
        self.current.file.write_all_at(&self.buf, self.current.offset).map_err(WalError::io("write", path))?;
        let begun = Instant::now();
        self.current.file.sync().map_err(WalError::io("sync", path))?;
        let sync_nanos = begun.elapsed().as_nanos() as u64;
        let purged = after.purged != self.durable.purged;
        (self.durable, self.current.offset) = (after, end);
        self.next_batch += 1;
        self.publish(sync_nanos);
        if purged || roll {
            self.recycle()?;
        }
        Ok(())
    }

    /// Encodes the jobs as one batch into `buf` and their effect on the view into `changes`. Returns the state after it.
    fn encode(&mut self, committed: Option<LogId>) -> LogState {
        let salt = Salt { epoch: self.current.epoch, segment: self.current.id, batch: self.next_batch };
        let mut after = LogState { committed, ..self.durable };
        let mut records = 0;
        self.buf.clear();
        self.buf.shrink_to(2 * BATCH_BYTES);
        self.buf.resize(BATCH_HEADER_BYTES, 0);
        let out = &mut self.buf;
        for job in &self.jobs {
            match job {
                Job::Append(entries, _) => {
                    records += entries.len() as u32;
                    for entry in entries {
                        let offset = self.current.offset + out.len() as u64;
                        if self.placer.wants(offset) {
                            let (first, batch) = (entry.log_id.index, self.next_batch);
                            self.changes.push(Change::Mark(Mark { first, offset, batch, batch_end: 0 }));
                        }
                        put_record(out, &salt, RECORD_ENTRY, |out| encode_entry_into(entry, out));
                    }
                    after.last = entries.last().map(|entry| entry.log_id).or(after.last);
                    self.changes.push(Change::Written(next_index(after.last)));
                }
                Job::Vote(vote, _) => {
                    records += 1;
                    put_record(out, &salt, RECORD_VOTE, |out| put_vote(out, vote));
                    after.vote = Some(*vote);
                }
                Job::Truncate(last, _) => {
                    records += 1;
                    put_record(out, &salt, RECORD_TRUNCATE, |out| put_option(out, last.as_ref(), put_log_id));
                    after.last = *last;
                    self.changes.push(Change::Truncated(next_index(*last)));
                    self.placer.interrupt();
                }
                Job::Purge(upto) => {
                    records += 1;
                    put_record(out, &salt, RECORD_PURGE, |out| put_log_id(out, upto));
                    after.purged = Some(*upto);
                    if next_index(after.last) <= upto.index {
                        after.last = Some(*upto);
                    }
                    self.changes.push(Change::Purged(*upto));
                    self.placer.interrupt();
                }
            }
        }
        let records_bytes = (out.len() - BATCH_HEADER_BYTES) as u64;
        let header = BatchHeader { batch: self.next_batch, records, records_bytes, committed };
        header.encode_into(salt.epoch, salt.segment, self.current.offset, out);
        after
    }

    /// Tells everyone that the batch is durable.
    fn publish(&mut self, sync_nanos: u64) {
        let batch_end = self.current.offset;
        {
            let mut inner = self.shared.inner.lock();
            let inner = &mut *inner;
            let view = &mut inner.view;
            if let Some(segment) = view.segments.back_mut() {
                segment.end = batch_end;
            }
            for change in self.changes.drain(..) {
                match change {
                    Change::Mark(mark) => {
                        if let Some(segment) = view.segments.back_mut() {
                            segment.marks.push(Mark { batch_end, ..mark });
                        }
                    }
                    Change::Written(next) => view.written_next = next,
                    Change::Truncated(next) => {
                        view.pending_truncations.pop_front();
                        view.truncate_written(next);
                    }
                    Change::Purged(upto) => view.written_next = view.written_next.max(upto.index + 1),
                }
            }
            view.evict(self.config.memory_bytes);
            inner.stats.batches += 1;
            inner.stats.syncs += 1;
            inner.stats.sync_nanos_sum += sync_nanos;
            inner.stats.sync_nanos_max = inner.stats.sync_nanos_max.max(sync_nanos);
        }
        for job in self.jobs.drain(..) {
            job.finish(&Ok(()));
        }
    }

    /// Begins the next segment. All batches so far are durable.
    fn roll(&mut self) -> Result<(), WalError> {
        let header = SegmentHeader {
            id: self.current.id + 1,
            epoch: rand::random(),
            cluster: self.config.cluster,
            member: self.config.member,
            first_batch: self.next_batch,
            previous_end: self.current.offset,
            state: self.durable,
        };
        self.current = make_segment(self.disk.as_ref(), &self.dir, &header, &mut self.spares)?;
        self.placer = MarkPlacer::default();
        let mut inner = self.shared.inner.lock();
        let view = &mut inner.view;
        if let Some(closed) = view.segments.back_mut() {
            closed.end_next = view.written_next;
        }
        view.segments.push_back(self.current.in_view());
        Ok(())
    }

    /// Lets go of segments that hold nothing but purged entries. The purge is durable by now.
    fn recycle(&mut self) -> Result<(), WalError> {
        let first = next_index(self.durable.purged);
        let mut freed = Vec::new();
        {
            let mut inner = self.shared.inner.lock();
            let segments = &mut inner.view.segments;
            while segments.len() > 1 && segments.front().is_some_and(|segment| segment.end_next <= first) {
                freed.extend(segments.pop_front());
            }
        }
        if freed.is_empty() {
            return Ok(());
        }
        for segment in freed {
            let path = self.dir.join(segment_name(segment.id));
            let spare = spare_name(segment.id);
            let file_bytes = segment.file.len().map_err(WalError::io("measure", &path))?;
            // A reader that still holds the file must not see it overwritten; an odd length is not worth keeping.
            let reusable = Arc::strong_count(&segment.file) == 1 && file_bytes <= self.config.segment_bytes;
            if reusable && self.spares.len() < self.config.spare_segments && !self.spares.contains(&spare) {
                let to = self.dir.join(&spare);
                self.disk.rename(&path, &to).map_err(WalError::io("rename", &path))?;
                self.spares.push(spare);
            } else {
                self.disk.remove(&path).map_err(WalError::io("remove", &path))?;
            }
        }
        // The new names must be durable before a spare is written: a segment's name must not lead to another's header.
        self.disk.sync_dir(&self.dir).map_err(WalError::io("sync", &self.dir))
    }

    /// Stops the wal: everything that waits, and everything that comes, gets the error.
    fn fail(mut self, error: WalError) {
        let waiting = {
            let mut inner = self.shared.inner.lock();
            inner.queue_bytes = 0;
            let error = inner.failure.get_or_insert(error).clone();
            self.shared.room.notify_all();
            (mem::take(&mut inner.queue), Err(error))
        };
        let (queue, error) = waiting;
        for job in self.jobs.drain(..).chain(queue.into_iter().map(|(_, job)| job)) {
            job.finish(&error);
        }
    }
}

/// A writer that panics must not leave anyone waiting.
impl Drop for Writer {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        let queue = {
            let mut inner = self.shared.inner.lock();
            inner.failure.get_or_insert(WalError::Panicked);
            self.shared.room.notify_all();
            mem::take(&mut inner.queue)
        };
        for job in self.jobs.drain(..).chain(queue.into_iter().map(|(_, job)| job)) {
            job.finish(&Err(WalError::Panicked));
        }
    }
}

impl Current {
    fn in_view(&self) -> Segment {
        Segment {
            id: self.id,
            epoch: self.epoch,
            file: self.file.clone(),
            end: self.offset,
            end_next: u64::MAX,
            marks: Vec::new(),
        }
    }

    /// Sees to it that the file reaches at least to `end`, and some way beyond, so that most batches do not change its
    /// length. The sync of the batch covers the zeros too.
    fn grow(&mut self, end: u64, segment_bytes: u64) -> Result<(), WalError> {
        if end <= self.file_bytes {
            return Ok(());
        }
        let target = end.max((self.file_bytes + GROW_BYTES).min(segment_bytes));
        let mut at = end;
        while at < target {
            let n = ((target - at) as usize).min(ZEROS.len());
            self.file.write_all_at(&ZEROS[..n], at).map_err(WalError::io("extend", &self.path))?;
            at += n as u64;
        }
        self.file_bytes = target;
        Ok(())
    }
}

/// Makes a segment out of a spare or a new file: header, sync, name, sync of the name, in this order. A segment of the
/// same id is replaced, whole.
fn make_segment(
    disk: &dyn Disk,
    dir: &Path,
    header: &SegmentHeader,
    spares: &mut Vec<String>,
) -> Result<Current, WalError> {
    let (spare, file) = match spares.pop() {
        Some(name) => {
            let path = dir.join(name);
            let file = disk.open(&path).map_err(WalError::io("open", &path))?;
            (path, file)
        }
        None => {
            let path = dir.join(spare_name(header.id));
            let file = disk.create(&path).map_err(WalError::io("create", &path))?;
            (path, file)
        }
    };
    file.write_all_at(&header.encode(), 0).map_err(WalError::io("write", &spare))?;
    file.sync().map_err(WalError::io("sync", &spare))?;
    let path = dir.join(segment_name(header.id));
    disk.rename(&spare, &path).map_err(WalError::io("rename", &spare))?;
    disk.sync_dir(dir).map_err(WalError::io("sync", dir))?;
    let file_bytes = file.len().map_err(WalError::io("measure", &path))?;
    let offset = SEGMENT_HEADER_BYTES as u64;
    Ok(Current { id: header.id, epoch: header.epoch, path, file, offset, file_bytes })
}
