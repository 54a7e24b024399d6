//! Sealing full tails and moving their changes to the index; both run in the background, off the path of any reply.
//!
//! Seal: write the segment, sync it, sync the directory, commit the MANIFEST, then show readers the segment in place of
//! the tail. A tail is sealed only when its entries are durable in this member's wal. After a failed write or sync the
//! store seals nothing any more: what is on the disk is unknown, so the member must stop.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::state::Body;
use super::{Inner, StoreError};
use crate::history::frame::Frame;
use crate::history::{Head, HistoryError, Manifest, Point, Segment, SegmentInfo, SegmentWriter, Staging, Tail};

impl Inner {
    /// Seals the full tail when all of it is durable in the wal; says whether it did.
    pub(super) fn seal(&self, durable_index: u64) -> Result<bool, StoreError> {
        let sealed = {
            let _work = self.work.lock();
            self.seal_locked(&self.body(), durable_index)?
        };
        if sealed {
            self.wake();
        }
        Ok(sealed)
    }

    /// Seals everything that is durable in the wal, full or not.
    pub(super) fn seal_all(&self, durable_index: u64) -> Result<(), StoreError> {
        {
            let _work = self.work.lock();
            let body = self.body();
            while self.seal_locked(&body, durable_index)? {}
            {
                let mut state = body.state.write();
                if !state.open.is_empty() && state.unsealed().is_none() {
                    state.freeze();
                }
            }
            self.seal_locked(&body, durable_index)?;
        }
        self.wake();
        Ok(())
    }

    fn seal_locked(&self, body: &Body, durable_index: u64) -> Result<bool, StoreError> {
        self.check_not_failed()?;
        let (at, tail, head, sealed) = {
            let state = body.state.read();
            let Some((at, tail, head)) = state.unsealed() else { return Ok(false) };
            (at, tail, head, state.sealed.clone())
        };
        if head.next_position() > durable_index.saturating_add(1) {
            return Ok(false);
        }
        let started = Instant::now();
        let clock_ms = body.state.read().sealed_head.clock_ms;
        let segment = self.write_segment(&tail, clock_ms, sealed.infos(), &head).map_err(|e| self.fail(e))?;
        let sealed = Arc::new(sealed.with(segment));
        let dropped = {
            let mut state = body.state.write();
            state.sealed = sealed;
            state.sealed_head = head;
            let dropped = state.frozen[at].tail.take();
            state.freeze_if_full(&self.config);
            dropped
        };
        // Tens of thousands of frames are freed here, outside the lock.
        drop((dropped, tail));
        self.counters.seals.fetch_add(1, Ordering::Relaxed);
        self.counters.seal_nanos.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
        Ok(true)
    }

    fn write_segment(
        &self,
        tail: &Tail,
        clock_ms: u64,
        mut segments: Vec<SegmentInfo>,
        head: &Head,
    ) -> Result<Arc<Segment>, HistoryError> {
        let id = self.next_segment_id.fetch_add(1, Ordering::Relaxed);
        let mut writer = SegmentWriter::create(&self.disk, &self.dir, id, tail.start(), clock_ms)?;
        for bytes in tail.frames() {
            // Checked again: what was damaged in memory must not become a segment.
            let frame =
                Frame::parse(bytes).map_err(|e| HistoryError::corrupt("the tail in memory", 0, e.to_string()))?;
            writer.push(&frame)?;
        }
        let info = writer.finish()?;
        self.sync_dir()?;
        segments.push(info.clone());
        // What is kept of a delta begins where the sealed history ended until now. Nobody can go on with it, except whoever
        // is receiving it already.
        let goes_on = |base| base == Point::default() || self.held_bases.lock().contains(&base);
        let (kept, dropped): (Option<Staging>, Option<Staging>) = match self.staging.lock().clone() {
            Some(staging) if !goes_on(staging.base) => (None, Some(staging)),
            kept => (kept, None),
        };
        self.commit(segments, head, kept.clone())?;
        *self.staging.lock() = kept;
        self.remove_staged(dropped, None);
        Segment::open(&self.disk, &self.dir, &info).map(Arc::new)
    }

    /// Finishes a segment that no MANIFEST names yet. When its sync fails nothing is written any more, on no file: what
    /// the disk did is unknown. Any other error leaves things as they were.
    pub(super) fn finish_segment(&self, writer: SegmentWriter) -> Result<SegmentInfo, StoreError> {
        writer.finish().map_err(|error| self.not_written(error))
    }

    /// What it means that a new segment could not be written.
    pub(super) fn not_written(&self, error: HistoryError) -> StoreError {
        match error {
            HistoryError::Io { doing: "syncing", .. } => self.fail(error),
            error => error.into(),
        }
    }

    /// Makes the names of finished segments durable.
    pub(super) fn sync_dir(&self) -> Result<(), HistoryError> {
        let dir = self.dir.display().to_string();
        self.disk.sync_dir(&self.dir).map_err(HistoryError::io("syncing", dir))
    }

    /// Commits a MANIFEST. The caller holds `work`, and fails the store when this fails.
    pub(super) fn commit(
        &self,
        segments: Vec<SegmentInfo>,
        head: &Head,
        staging: Option<Staging>,
    ) -> Result<(), HistoryError> {
        let next_segment_id = self.next_segment_id.load(Ordering::Relaxed);
        let manifest = Manifest { segments, head: head.clone(), next_segment_id, staging };
        manifest.commit(self.disk.as_ref(), &self.dir)
    }

    /// Moves the changes of sealed tails to the index.
    pub(super) fn flush_index(&self) -> Result<(), StoreError> {
        let mut moved = false;
        {
            let _work = self.work.lock();
            self.check_not_failed()?;
            let body = self.body();
            while self.flush_oldest(&body)? {
                moved = true;
            }
        }
        if moved {
            self.wake();
        }
        Ok(())
    }

    pub(super) fn flush_oldest(&self, body: &Body) -> Result<bool, StoreError> {
        let (changes, end) = {
            let state = body.state.read();
            match state.frozen.front() {
                Some(frozen) if frozen.tail.is_none() => (frozen.changes.clone(), frozen.head.point()),
                _ => return Ok(false),
            }
        };
        changes.write_to(body.index(), &mut body.index_meta.lock(), end).map_err(|e| self.fail(e))?;
        let dropped = {
            let mut state = body.state.write();
            let dropped = state.frozen.pop_front();
            state.freeze_if_full(&self.config);
            dropped
        };
        drop((dropped, changes));
        Ok(true)
    }

    /// Remembers that a write failed, so that none is tried after it.
    pub(super) fn fail(&self, error: impl Into<StoreError>) -> StoreError {
        let error = error.into();
        self.failed.lock().get_or_insert_with(|| error.to_string());
        error
    }

    pub(super) fn check_not_failed(&self) -> Result<(), StoreError> {
        match &*self.failed.lock() {
            Some(error) => Err(StoreError::Stopped(error.clone())),
            None => Ok(()),
        }
    }
}
