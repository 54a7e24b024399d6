//! Reading the wal's directory at the start: what the log is, where it ends, and whether anything is damaged.
//!
//! The segments that count are the last run of consecutive ids. Anything before a gap was purged in a run that a crash
//! interrupted between two removals, which the rest proves by saying that all it lacks is purged; if it does not say
//! so, a segment is missing and the log is damaged.
//!
//! A segment with a successor ends exactly where the successor's header says; everything before must be whole. The last
//! segment ends at its first bad frame, but only when no valid batch of this segment follows anywhere in the file: a
//! batch is written when the one before is durable, so a later batch proves that the bad frame was once good.
//!
//! Nothing is written here. `Wal::open` then makes the kept part of the last batch durable again and starts a new
//! segment whose header fixes the end that was found.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::WalConfig;
use super::error::WalError;
use super::record::{RECORD_HEADER_BYTES, Record, RecordHeader, Salt};
use super::segment::{
    BATCH_HEADER_BYTES, BatchHeader, FileName, HeaderError, SEGMENT_HEADER_BYTES, SegmentHeader, next_index,
    parse_name, segment_name,
};
use super::view::{Mark, MarkPlacer, Segment, View};
use crate::files::{Disk, DiskFile};
use crate::model::{Entry, LogId};

/// What was found.
pub(super) struct Recovered {
    pub view: View,
    pub next_batch: u64,
    /// The last batch's kept bytes and their place: they may have been read from a cache and not from the medium.
    pub last_batch: Option<(u64, Bytes)>,
    /// The header of the last segment, and whether any batch in it counts.
    pub last_header: Option<SegmentHeader>,
    pub last_segment_is_empty: bool,
    pub spares: Vec<String>,
    /// Segments before a gap: purged, and not removed in time.
    pub leftovers: Vec<String>,
}

/// Reads the directory.
pub(super) fn recover(disk: &dyn Disk, dir: &Path, config: &WalConfig) -> Result<Recovered, WalError> {
    let (mut ids, mut spares) = (Vec::new(), Vec::new());
    for name in disk.list(dir).map_err(WalError::io("list", dir))? {
        match parse_name(&name) {
            FileName::Segment(id) => ids.push(id),
            FileName::Spare => spares.push(name),
            FileName::Foreign => {}
        }
    }
    ids.sort_unstable();
    let gap = ids.windows(2).rposition(|pair| pair[0] + 1 != pair[1]).map_or(0, |at| at + 1);
    let run = ids.split_off(gap);
    let mut recovery =
        Recovery { dir, config, view: View::default(), base_next: 0, next_batch: 0, placer: MarkPlacer::default() };
    let files = run.iter().map(|id| recovery.open_segment(disk, *id)).collect::<Result<Vec<_>, _>>()?;
    if let Some((first, _)) = files.first() {
        recovery.begin(first);
    }
    let (mut last_batch, mut last_segment_is_empty) = (None, true);
    for (at, (header, file)) in files.iter().enumerate() {
        let end = files.get(at + 1).map(|(successor, _)| successor.previous_end);
        let first_batch = recovery.next_batch;
        last_batch = recovery.replay_segment(header, file.clone(), end)?;
        last_segment_is_empty = recovery.next_batch == first_batch;
    }
    if next_index(recovery.view.state.purged) < recovery.base_next {
        let first = run.first().copied().unwrap_or(0);
        let missing = dir.join(segment_name(first.wrapping_sub(1)));
        return Err(WalError::corrupt(&missing, 0, "this segment is missing and holds entries that are not purged"));
    }
    Ok(Recovered {
        view: recovery.view,
        next_batch: recovery.next_batch,
        last_batch,
        last_header: files.into_iter().next_back().map(|(header, _)| header),
        last_segment_is_empty,
        spares,
        leftovers: ids.into_iter().map(segment_name).collect(),
    })
}

struct Recovery<'a> {
    dir: &'a Path,
    config: &'a WalConfig,
    view: View,
    /// The log below this index lay in segments that are no longer there.
    base_next: u64,
    next_batch: u64,
    placer: MarkPlacer,
}

impl Recovery<'_> {
    fn path(&self, id: u64) -> PathBuf {
        self.dir.join(segment_name(id))
    }

    /// Opens a segment and checks its header.
    fn open_segment(&self, disk: &dyn Disk, id: u64) -> Result<(SegmentHeader, Arc<dyn DiskFile>), WalError> {
        let path = self.path(id);
        let file = disk.open(&path).map_err(WalError::io("open", &path))?;
        let mut content = [0; SEGMENT_HEADER_BYTES];
        let read = file.read_at(&mut content, 0).map_err(WalError::io("read", &path))?;
        let content = &content[..read];
        let header = SegmentHeader::decode(content).map_err(|e| match e {
            HeaderError::Damaged => WalError::corrupt(&path, 0, "the segment's header is damaged"),
            HeaderError::Malformed(e) => WalError::corrupt(&path, 0, e.to_string()),
            HeaderError::Version(found) => WalError::UnknownVersion { file: path.clone(), found },
        })?;
        let (cluster, member) = (self.config.cluster, self.config.member);
        if (header.cluster, header.member) != (cluster, member) {
            let (found_cluster, found_member) = (header.cluster, header.member);
            return Err(WalError::WrongIdentity { file: path, found_cluster, found_member, cluster, member });
        }
        if header.id != id {
            return Err(WalError::corrupt(&path, 0, format!("the header is that of segment {:016x}", header.id)));
        }
        Ok((header, file))
    }

    /// Starts from what the first segment says about those before it.
    fn begin(&mut self, header: &SegmentHeader) {
        self.view.state = header.state;
        self.base_next = next_index(header.state.last);
        self.view.written_next = self.base_next;
        self.next_batch = header.first_batch;
    }

    /// Replays one segment, up to `end` or, in the last one, up to where it is whole. Returns the last batch's bytes.
    fn replay_segment(
        &mut self,
        header: &SegmentHeader,
        file: Arc<dyn DiskFile>,
        end: Option<u64>,
    ) -> Result<Option<(u64, Bytes)>, WalError> {
        let path = self.path(header.id);
        let len = file.len().map_err(WalError::io("measure", &path))?;
        let mut content = vec![0; len as usize];
        file.read_exact_at(&mut content, 0).map_err(WalError::io("read", &path))?;
        let content = &Bytes::from(content);
        let found = self.view.state;
        let said = header.state;
        if (said.vote, said.purged, said.last) != (found.vote, found.purged, found.last)
            || header.first_batch != self.next_batch
        {
            return Err(WalError::corrupt(&path, 0, "the header contradicts the segments before"));
        }
        self.see_committed(said.committed, &path, 0)?;
        if let Some(previous) = self.view.segments.back_mut() {
            previous.end_next = self.view.written_next;
        }
        let start = SEGMENT_HEADER_BYTES as u64;
        let segment = Segment { id: header.id, epoch: header.epoch, file, end: start, end_next: 0, marks: Vec::new() };
        self.view.segments.push_back(segment);
        self.placer = MarkPlacer::default();
        let mut last_batch = None;
        let mut at = SEGMENT_HEADER_BYTES;
        loop {
            if end.is_some_and(|end| at as u64 >= end) {
                break;
            }
            let batch = self.replay_batch(header, &path, content, at, end)?;
            if batch.end > at {
                last_batch = Some((at as u64, content.slice(at..batch.end)));
                at = batch.end;
            }
            if !batch.whole {
                break;
            }
        }
        if end.is_some_and(|end| at as u64 != end) {
            return Err(WalError::corrupt(&path, at as u64, "the segment does not end where its successor says"));
        }
        if let Some(segment) = self.view.segments.back_mut() {
            segment.end = at as u64;
        }
        Ok(last_batch)
    }

    /// Replays the batch at `at`, as far as it is whole. `end` is where the segment is known to end, if it is.
    fn replay_batch(
        &mut self,
        segment: &SegmentHeader,
        path: &Path,
        content: &Bytes,
        at: usize,
        end: Option<u64>,
    ) -> Result<ReplayedBatch, WalError> {
        let limit = end.map_or(content.len(), |end| content.len().min(end as usize));
        let expected = self.next_batch;
        let bytes = content.get(at..limit).unwrap_or_default();
        let header = BatchHeader::parse(bytes, segment.epoch, segment.id, at as u64);
        let Some(header) = header.filter(|header| header.batch == expected) else {
            check_torn(segment, path, content, at, "the header of a batch is damaged", end)?;
            return Ok(ReplayedBatch { end: at, whole: false });
        };
        self.see_committed(header.committed, path, at as u64)?;
        self.next_batch = header.batch + 1;
        let salt = Salt { epoch: segment.epoch, segment: segment.id, batch: header.batch };
        let mut place = at + BATCH_HEADER_BYTES;
        let batch_end = place as u64 + header.records_bytes;
        for _ in 0..header.records {
            let Some((record, body)) = parse_record(content, place, limit.min(batch_end as usize), &salt) else {
                // A successor that says that the segment ends here has seen this batch torn, and cut it.
                if end != Some(place as u64) {
                    check_torn(segment, path, content, place, "a record is damaged", end)?;
                }
                return Ok(ReplayedBatch { end: place, whole: false });
            };
            let damaged = |what: String| WalError::corrupt(path, place as u64, what);
            let decoded = record.decode(&body).map_err(|e| damaged(e.to_string()))?;
            let mark = Mark { first: 0, offset: place as u64, batch: header.batch, batch_end };
            self.apply(decoded, mark).map_err(damaged)?;
            place += record.record_bytes();
        }
        if place as u64 != batch_end {
            return Err(WalError::corrupt(path, place as u64, "a batch is longer than its records"));
        }
        Ok(ReplayedBatch { end: place, whole: true })
    }

    /// A committed id is never beyond what was durable before the batch that carries it.
    fn see_committed(&mut self, committed: Option<LogId>, path: &Path, offset: u64) -> Result<(), WalError> {
        if next_index(committed) > self.view.next() {
            return Err(WalError::corrupt(path, offset, "the committed id is beyond the log"));
        }
        if next_index(committed) > next_index(self.view.state.committed) {
            self.view.state.committed = committed;
        }
        Ok(())
    }

    fn apply(&mut self, record: Record, mark: Mark) -> Result<(), String> {
        match record {
            Record::Entry(entry) => self.apply_entry(entry, mark)?,
            Record::Vote(vote) => self.view.state.vote = Some(vote),
            Record::Truncate(last) => {
                let next = next_index(last);
                if next < next_index(self.view.state.committed) || next > self.view.next() {
                    return Err(format!("a truncation to {next}, which is not in the log or below what is committed"));
                }
                self.view.truncate(last);
                self.view.truncate_written(next);
                self.base_next = self.base_next.min(next);
                self.placer.interrupt();
            }
            Record::Purge(upto) => {
                self.view.purge(upto);
                self.view.written_next = self.view.next();
                if next_index(Some(upto)) >= self.view.next() {
                    self.base_next = next_index(Some(upto));
                }
                self.placer.interrupt();
            }
        }
        Ok(())
    }

    fn apply_entry(&mut self, entry: Entry, mark: Mark) -> Result<(), String> {
        let (index, next) = (entry.log_id.index, self.view.next());
        if index != next {
            return Err(format!("entry {index} where {next} should follow"));
        }
        if self.placer.wants(mark.offset)
            && let Some(segment) = self.view.segments.back_mut()
        {
            segment.marks.push(Mark { first: index, ..mark });
        }
        // The payload is copied, so that a few entries do not hold a whole segment in memory.
        self.view.push(Entry { payload: Bytes::copy_from_slice(&entry.payload), ..entry });
        self.view.written_next = self.view.next();
        self.view.evict(self.config.memory_bytes);
        Ok(())
    }
}

struct ReplayedBatch {
    end: usize,
    whole: bool,
}

/// The record at `place` and its body, if it is whole, ends at or before `limit`, and belongs to the batch of `salt`.
fn parse_record(content: &Bytes, place: usize, limit: usize, salt: &Salt) -> Option<(RecordHeader, Bytes)> {
    let header = RecordHeader::parse(content.get(place..limit)?)?;
    let end = place.checked_add(header.record_bytes()).filter(|end| *end <= limit)?;
    let body = content.slice(place + RECORD_HEADER_BYTES..end);
    header.vouches_for(&body, salt).then_some((header, body))
}

/// Decides what a bad frame at `at` is: the end of the log, if this is the last segment and no batch follows; else
/// damage.
fn check_torn(
    segment: &SegmentHeader,
    path: &Path,
    content: &Bytes,
    at: usize,
    what: &str,
    end: Option<u64>,
) -> Result<(), WalError> {
    if end.is_some() {
        return Err(WalError::corrupt(path, at as u64, what));
    }
    let epoch = segment.epoch.to_le_bytes();
    let rest = content.get(at..).unwrap_or_default();
    let later = rest.windows(epoch.len()).enumerate().filter(|(_, window)| *window == epoch);
    for (distance, _) in later {
        let place = at + distance;
        if let Some(header) = BatchHeader::parse(&rest[distance..], segment.epoch, segment.id, place as u64) {
            let what = format!("{what}, and batch {} at byte {place} proves that it was once whole", header.batch);
            return Err(WalError::corrupt(path, at as u64, what));
        }
    }
    Ok(())
}
