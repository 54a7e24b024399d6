//! What was received of a copy, kept over breaks and restarts until the copy is complete.
//!
//! Finished segments of an incomplete copy are no content: a state in the middle of another member's thinned frames never
//! existed. They lie beside the segments, named by the MANIFEST's staging list, and the next copy goes on after them.
//!
//! While a delta is received, and until it is installed, this member may go on: what its log still held is applied, and
//! tails are sealed. That is the same history, so it does no harm; but the place where the delta begins must stay the end
//! of a segment ([`HeldBase`]), and the parts that are kept of it must stay too.

use std::sync::Arc;

use super::{Inner, StoreError};
use crate::history::{Head, Point, Sealed, Segment, SegmentInfo, Staging};

/// Keeps the end of a segment where a delta begins. Compaction merges nothing over it, and what is staged behind it stays.
pub(super) struct HeldBase {
    inner: Arc<Inner>,
    base: Point,
}

impl Drop for HeldBase {
    fn drop(&mut self) {
        let mut held = self.inner.held_bases.lock();
        if let Some(at) = held.iter().position(|base| *base == self.base) {
            held.swap_remove(at);
        }
    }
}

impl Inner {
    /// Keeps one more segment of a copy that begins at `base`. `expected` is what the receiver knows to be kept; when
    /// something else is, the store has moved on and the copy is of no use any more.
    pub(super) fn stage(
        &self,
        base: Point,
        expected: Option<&Staging>,
        segment: SegmentInfo,
        head: &Head,
    ) -> Result<Staging, StoreError> {
        let _work = self.work.lock();
        self.check_not_failed()?;
        self.segments_before(base)?;
        let mut staging = match expected {
            Some(expected) if self.staging.lock().as_ref() != Some(expected) => return Err(moved_on()),
            Some(expected) => expected.clone(),
            None => Staging { base, head: head.clone(), segments: Vec::new() },
        };
        staging.head = head.clone();
        staging.segments.push(segment);
        self.replace_staging(Some(staging.clone()))?;
        Ok(staging)
    }

    /// Holds the place where the sealed history ends now. The caller holds `work`.
    pub(super) fn hold(self: &Arc<Self>, base: Point) -> HeldBase {
        self.held_bases.lock().push(base);
        HeldBase { inner: self.clone(), base }
    }

    /// The segments before a copy from a point other than the beginning; it must begin where one of them ends.
    pub(super) fn segments_before(&self, base: Point) -> Result<Vec<Arc<Segment>>, StoreError> {
        let sealed = self.body().state.read().sealed.clone();
        before(&sealed, base).ok_or_else(moved_on)
    }

    /// Forgets what was received of an incomplete copy.
    pub(super) fn discard_staging(&self) -> Result<(), StoreError> {
        let _work = self.work.lock();
        self.check_not_failed()?;
        if self.staging.lock().is_none() { Ok(()) } else { self.replace_staging(None) }
    }

    /// Commits another staging list. The caller holds `work`.
    pub(super) fn replace_staging(&self, new: Option<Staging>) -> Result<(), StoreError> {
        let (infos, head) = {
            let body = self.body();
            let state = body.state.read();
            (state.sealed.infos(), state.sealed_head.clone())
        };
        self.commit(infos, &head, new.clone()).map_err(|e| self.fail(e))?;
        let old = std::mem::replace(&mut *self.staging.lock(), new.clone());
        self.remove_staged(old, new.as_ref());
        Ok(())
    }

    /// Removes the files of a staging list that the MANIFEST does not name any more.
    pub(super) fn remove_staged(&self, old: Option<Staging>, new: Option<&Staging>) {
        let kept = |info: &SegmentInfo| new.is_some_and(|new| new.segments.iter().any(|segment| segment.id == info.id));
        for info in old.into_iter().flat_map(|old| old.segments).filter(|info| !kept(info)) {
            let path = self.dir.join(&info.file);
            if let Err(error) = self.disk.remove(&path) {
                // The next open removes it.
                tracing::warn!(file = %path.display(), %error, "could not remove a segment of an unfinished copy");
            }
        }
    }
}

fn before(sealed: &Sealed, base: Point) -> Option<Vec<Arc<Segment>>> {
    let segments = sealed.segments();
    let count = match base == Point::default() {
        true => 0,
        false => segments.iter().position(|segment| segment.info().end() == base)? + 1,
    };
    Some(segments[..count].to_vec())
}

fn moved_on() -> StoreError {
    StoreError::Snapshot { offset: 0, what: "the store has moved on since the copy was asked for".into() }
}
