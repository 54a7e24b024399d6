//! Installs: receiving a copy beside what is there, then taking it over in one step.
//!
//! The stream goes into new segment files while it comes in; every frame's checksum, order and chain are checked, the
//! digests show that nothing is missing, and the state in the header must be the one that the frames lead to. Finished
//! segments are kept over breaks (see [`staging`](super::staging)), and a later stream goes on after them.
//!
//! A stream that goes on where another was cut may come from another sender, which has applied less: it must promise
//! floors that are no lower, because what came before may lack what the other one's floors had passed.
//!
//! [`Inner::install`] makes a new index beside the old one, commits one MANIFEST, and swaps the content that readers see.
//! The index of a delta is a copy of the old one with the changes of the delta; that of a full copy is built from it. What
//! this member has sealed since a delta began gives way to the delta, which has the same chain hash where that ends. A
//! crash before the MANIFEST leaves the old content, and after it the new; leftovers go at the next open.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::parse::{CopyParser, Piece};
use super::staging::HeldBase;
use super::state::Body;
use super::stream::Header;
use super::{Inner, StoreError, recover, system};
use crate::history::segment::follow;
use crate::history::{Frame, Head, Point, Sealed, SegmentInfo, SegmentWriter, Staging};

/// Receives a copy. Dropping it removes its files, except those that are kept for the next one.
pub struct Installer {
    inner: Arc<Inner>,
    parser: CopyParser,
    /// The state that the header promises.
    promised: Head,
    /// Where the copy begins, this stream and earlier ones together.
    base: Point,
    held: Option<HeldBase>,
    /// The state that the frames lead to so far, with the floors that were promised.
    head: Head,
    writer: Option<SegmentWriter>,
    /// What is kept of the copy.
    staged: Option<Staging>,
}

impl std::fmt::Debug for Installer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Installer")
            .field("at", &self.head.applied)
            .field("parser", &self.parser)
            .finish_non_exhaustive()
    }
}

/// A received and checked copy, not yet in use. Dropping it removes its files, except those that are kept.
pub struct PreparedInstall {
    base: Point,
    _held: Option<HeldBase>,
    head: Head,
    staged: Option<Staging>,
    files: Files,
}

impl std::fmt::Debug for PreparedInstall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PreparedInstall").field("head", &self.head).finish_non_exhaustive()
    }
}

impl PreparedInstall {
    /// The state that it leads to, besides the keys.
    pub fn meta(&self) -> &Head {
        &self.head
    }
}

/// Finished segments that no MANIFEST names yet.
pub(super) struct Files {
    pub inner: Arc<Inner>,
    pub infos: Vec<SegmentInfo>,
}

impl Drop for Files {
    fn drop(&mut self) {
        for info in &self.infos {
            let path = self.inner.dir.join(&info.file);
            if let Err(error) = self.inner.disk.remove(&path) {
                // The next open removes it.
                tracing::warn!(file = %path.display(), %error, "could not remove a segment that came to nothing");
            }
        }
    }
}

impl Installer {
    pub(super) fn new(inner: Arc<Inner>) -> Installer {
        Installer {
            inner,
            parser: CopyParser::new(),
            promised: Head::default(),
            base: Point::default(),
            held: None,
            head: Head::default(),
            writer: None,
            staged: None,
        }
    }

    /// How many bytes were taken in so far.
    pub fn received_bytes(&self) -> u64 {
        self.parser.received_bytes()
    }

    /// The state that the copy's header promises, once the header came.
    pub fn meta(&self) -> Option<&Head> {
        self.parser.has_header().then_some(&self.promised)
    }

    /// Takes the bytes that follow, cut anywhere. After an error nothing more is taken.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.parser.push(bytes);
        let result = self.consume();
        if result.is_err() {
            self.parser.fail();
        }
        result
    }

    fn consume(&mut self) -> Result<(), StoreError> {
        while let Some(piece) = self.parser.next()? {
            match piece {
                Piece::Header(header) => self.begin(*header)?,
                Piece::Frame(frame) => self.frame(&frame)?,
                Piece::Point(point) => self.point(point)?,
                Piece::Mark => self.keep()?,
                Piece::Footer(chain) if chain == self.head.chain => {}
                Piece::Footer(_) => return Err(self.damaged("its footer names another chain hash than its last frame")),
            }
        }
        Ok(())
    }

    fn damaged(&self, what: impl Into<String>) -> StoreError {
        self.parser.damaged(what)
    }

    /// Finds what the copy goes on from: what is kept of an earlier one, this history, or nothing.
    fn begin(&mut self, header: Header) -> Result<(), StoreError> {
        let Header { head: promised, from } = header;
        let inner = self.inner.clone();
        let _work = inner.work.lock();
        let sealed_head = self.inner.body().state.read().sealed_head.clone();
        let staging = self.inner.staging.lock().clone();
        let staging = staging.filter(|staging| staging.base == Point::default() || staging.base == sealed_head.point());
        match staging {
            Some(staging) if staging.head.point() == from => {
                (self.base, self.head, self.staged) = (staging.base, staging.head.clone(), Some(staging));
            }
            _ if from == Point::default() => {}
            _ if from == sealed_head.point() => (self.base, self.head) = (from, (*sealed_head).clone()),
            _ => {
                let at = sealed_head.point().next_position;
                let what = format!("it begins at position {}, and this history ends at {at}", from.next_position);
                return Err(self.damaged(what));
            }
        }
        if promised.next_position() < self.head.next_position() {
            return Err(self.damaged("it ends before it begins"));
        }
        if promised.read_floor < self.head.read_floor || promised.delta_floor < self.head.delta_floor {
            return Err(self.damaged("its floors are lower than those of what it would go on after"));
        }
        // Kept with the parts that are staged. Records of floors among the frames change nothing any more.
        self.head.read_floor = promised.read_floor;
        (self.head.delta_floor, self.head.delta_revision) = (promised.delta_floor, promised.delta_revision);
        self.held = (self.base != Point::default()).then(|| self.inner.hold(self.base));
        self.promised = promised;
        Ok(())
    }

    /// The segment that is being written, which may have to be begun.
    fn writer(&mut self) -> Result<&mut SegmentWriter, StoreError> {
        if self.writer.is_none() {
            let id = self.inner.next_segment_id.fetch_add(1, Ordering::Relaxed);
            let (start, clock_ms) = (self.head.point(), self.head.clock_ms);
            let writer = SegmentWriter::create(&self.inner.disk, &self.inner.dir, id, start, clock_ms)?;
            self.writer = Some(writer);
        }
        Ok(self.writer.as_mut().expect("it was just begun"))
    }

    /// Finishes the segment that is being written, when there is one.
    fn finish_writer(&mut self) -> Result<Option<SegmentInfo>, StoreError> {
        let Some(writer) = self.writer.take() else { return Ok(None) };
        let mut info = self.inner.finish_segment(writer)?;
        // The sender may have dropped them.
        info.tombstones_gone_to = self.promised.delta_floor;
        Ok(Some(info))
    }

    fn frame(&mut self, frame: &Frame) -> Result<(), StoreError> {
        let mut at = self.writer.as_ref().map_or(self.head.point(), SegmentWriter::end);
        follow(&mut at, frame, true).map_err(|what| self.damaged(what))?;
        let writer = self.writer()?;
        writer.push(frame)?;
        system::advance(&mut self.head, frame, true).map_err(|e| self.damaged(e.to_string()))
    }

    fn point(&mut self, point: Point) -> Result<(), StoreError> {
        let at = self.writer.as_ref().map_or(self.head.point(), SegmentWriter::end);
        follow_point(at, point).map_err(|what| self.damaged(what))?;
        self.writer()?.point(point);
        Ok(())
    }

    /// What was pushed so far is right, as the caller knows: keeps it when it is enough for a segment.
    pub(super) fn mark(&mut self) -> Result<(), StoreError> {
        self.keep()
    }

    /// The same, also when it is little.
    pub(super) fn keep_some(&mut self) -> Result<(), StoreError> {
        self.keep_at_least(self.inner.config.tail_bytes as u64 / 8)
    }

    /// Keeps all that came so far, however little, if it ends with a frame. Says where what is kept ends.
    pub(super) fn keep_now(mut self) -> Result<Option<Point>, StoreError> {
        self.keep_at_least(0)?;
        Ok(self.staged.as_ref().map(|staged| staged.head.point()))
    }

    /// Keeps what came so far, when it is enough for a segment.
    fn keep(&mut self) -> Result<(), StoreError> {
        self.keep_at_least(self.inner.config.tail_bytes as u64)
    }

    fn keep_at_least(&mut self, enough: u64) -> Result<(), StoreError> {
        // It must end with a frame, whose state is known.
        let point = self.head.point();
        if !self.writer.as_ref().is_some_and(|writer| writer.bytes() >= enough && writer.end() == point) {
            return Ok(());
        }
        let mut files = Files { inner: self.inner.clone(), infos: Vec::new() };
        files.infos.extend(self.finish_writer()?);
        self.inner.sync_dir().map_err(|e| self.inner.fail(e))?;
        for info in files.infos.clone() {
            self.staged = Some(self.inner.stage(self.base, self.staged.as_ref(), info, &self.head)?);
        }
        files.infos.clear();
        Ok(())
    }

    /// Ends the stream, which must be complete, and makes what was received durable.
    pub fn finish(mut self) -> Result<PreparedInstall, StoreError> {
        if !self.parser.is_done() {
            return Err(self.damaged("it ends too early"));
        }
        take_over_records(&mut self.head, &self.promised);
        if self.head != self.promised {
            // What it went on after may be to blame: the next copy must not go on after it too.
            if self.staged.is_some() {
                self.inner.discard_staging()?;
            }
            return Err(self.damaged("its frames lead to another state than its header promises"));
        }
        let mut files = Files { inner: self.inner.clone(), infos: Vec::new() };
        files.infos.extend(self.finish_writer()?);
        self.inner.sync_dir().map_err(|e| self.inner.fail(e))?;
        Ok(PreparedInstall { base: self.base, _held: self.held, head: self.head, staged: self.staged, files })
    }
}

/// Whether a kept point may come here.
pub(super) fn follow_point(at: Point, point: Point) -> Result<(), &'static str> {
    match point.next_position <= at.next_position || point.revision < at.revision {
        true => Err("the point does not follow"),
        false => Ok(()),
    }
}

/// Takes over what the head remembers of records that compaction may have taken out: those that were deleted, and those
/// that were replaced by one that says less.
pub(super) fn take_over_records(head: &mut Head, promised: &Head) {
    if head.cluster.is_none() {
        head.cluster = promised.cluster;
    }
    if head.timelines.is_empty() {
        head.timelines.clone_from(&promised.timelines);
    }
    head.feature_level = head.feature_level.max(promised.feature_level);
}

/// Whether an error is about this file.
fn names(error: &StoreError, name: &str) -> bool {
    matches!(error, StoreError::Corrupt { file, .. } if file.ends_with(name))
}

impl Inner {
    pub(super) fn install(self: &Arc<Self>, mut prepared: PreparedInstall) -> Result<(), StoreError> {
        let _applying = self.applying.lock();
        let _work = self.work.lock();
        self.check_not_failed()?;
        let old = self.body();
        let delta = prepared.base != Point::default();
        let before = self.segments_before(prepared.base)?;
        if *self.staging.lock() != prepared.staged && prepared.staged.is_some() {
            return Err(StoreError::Snapshot { offset: 0, what: "what was kept of it is gone".into() });
        }
        if delta && old.state.read().head.next_position() > prepared.head.next_position() {
            return Err(StoreError::Snapshot { offset: 0, what: "it ends before what is applied".into() });
        }
        let staged = prepared.staged.iter().flat_map(|staging| &staging.segments);
        let received: Vec<SegmentInfo> = staged.chain(&prepared.files.infos).cloned().collect();
        let generation = old.generation() + 1;
        let opened = Sealed::from_infos(&self.disk, &self.dir, &received).map_err(StoreError::from).and_then(|new| {
            if delta {
                self.check_agrees(&old, prepared.base, &new)?;
            }
            let sealed = Sealed::of(before).followed_by(&new);
            let body = self.installed(&old, delta, generation, &sealed, &prepared.head);
            Ok((sealed, body.inspect_err(|_| self.remove_index(generation))?))
        });
        let (sealed, body) = match opened {
            // What was kept may be what is damaged; the next copy must not go on after it.
            Err(error @ StoreError::Corrupt { .. }) if prepared.staged.is_some() => {
                self.replace_staging(None)?;
                return Err(error);
            }
            Err(error) if !received.iter().any(|info| names(&error, &info.file)) => return self.noticed(Err(error)),
            opened => opened?,
        };
        // From here on the files belong to the MANIFEST, even if its commit fails half-way.
        mem::take(&mut prepared.files.infos);
        self.commit(sealed.infos(), &prepared.head, None).map_err(|e| self.fail(e))?;
        let unused = self.staging.lock().take().filter(|_| prepared.staged.is_none());
        self.remove_staged(unused, None);
        let old = mem::replace(&mut *self.body.write(), Arc::new(body));
        old.replaced_by(&sealed);
        drop(old);
        self.wake();
        Ok(())
    }

    /// What was sealed since a delta began is in the delta too, and in the index that is copied.
    fn check_agrees(&self, old: &Body, base: Point, delta: &Sealed) -> Result<(), StoreError> {
        let at = old.state.read().sealed_head.point();
        let Some(position) = at.next_position.checked_sub(1).filter(|_| at != base) else { return Ok(()) };
        match delta.chain_at(position, &self.tables)? {
            Some(chain) if chain == at.chain => Ok(()),
            found => {
                let theirs = found.map_or("none".into(), |chain| chain.to_string());
                let what =
                    format!("the chain hash of position {position} is {} here and {theirs} in the copy", at.chain);
                Err(StoreError::Corrupt { file: "the history".into(), offset: 0, what })
            }
        }
    }

    /// The content that a copy makes.
    fn installed(
        &self,
        old: &Body,
        delta: bool,
        generation: u64,
        sealed: &Sealed,
        head: &Head,
    ) -> Result<Body, StoreError> {
        if delta {
            // All that is sealed must be in the index that is copied.
            while self.flush_oldest(old)? {}
        }
        let copied = delta.then_some(old);
        let (sealed, head) = (sealed.clone(), head.clone());
        recover::new_body(&self.kind, generation, copied, sealed, head, &self.tables, &self.config)
    }

    fn remove_index(&self, generation: u64) {
        if let Err(error) = self.kind.remove(generation) {
            tracing::warn!(%error, "could not remove an index that was not finished");
        }
    }
}
