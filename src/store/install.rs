//! Installs: receiving a snapshot beside what is there, then replacing everything by it in one step.
//!
//! The stream goes into new segment files while it comes in; every frame's checksum, order and chain are checked, and
//! the state in the header must be the one that the frames lead to. Nothing names these files until
//! [`Inner::install`], which builds a new index beside the old one, commits one MANIFEST, and swaps the content that
//! readers see. A crash before the MANIFEST leaves the old content, and after it the new; leftovers go at the next open.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};

use super::snapshot::{FOOTER_BYTES, check_footer, decode_header, header_len};
use super::{Inner, StoreError, recover, system};
use crate::history::segment::follow;
use crate::history::{Frame, Head, HistoryError, Manifest, Point, Sealed, SegmentInfo, SegmentWriter};

/// Receives a snapshot. Dropping it removes its files.
pub struct Installer {
    inner: Arc<Inner>,
    received: BytesMut,
    /// How many bytes were taken out of `received`.
    offset: u64,
    stage: Stage,
    /// The state that the header promises.
    promised: Head,
    /// The state that the frames lead to so far.
    head: Head,
    frames: u64,
    writer: Option<SegmentWriter>,
    files: Files,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Header,
    Frames,
    Done,
    Failed,
}

impl std::fmt::Debug for Installer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Installer").field("at", &self.head.applied).field("stage", &self.stage).finish_non_exhaustive()
    }
}

/// A received and checked snapshot, not yet in use. Dropping it removes its files.
pub struct PreparedInstall {
    head: Head,
    files: Files,
}

impl std::fmt::Debug for PreparedInstall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PreparedInstall").field("head", &self.head).finish_non_exhaustive()
    }
}

impl PreparedInstall {
    /// The state that it holds, besides the keys.
    pub fn meta(&self) -> &Head {
        &self.head
    }
}

/// Finished segments that no MANIFEST names yet.
struct Files {
    inner: Arc<Inner>,
    infos: Vec<SegmentInfo>,
}

impl Drop for Files {
    fn drop(&mut self) {
        for info in &self.infos {
            let path = self.inner.dir.join(&info.file);
            if let Err(error) = self.inner.disk.remove(&path) {
                // The next open removes it.
                tracing::warn!(file = %path.display(), %error, "could not remove a segment of an unfinished install");
            }
        }
    }
}

impl Installer {
    pub(super) fn new(inner: Arc<Inner>) -> Installer {
        let files = Files { inner: inner.clone(), infos: Vec::new() };
        Installer {
            inner,
            received: BytesMut::new(),
            offset: 0,
            stage: Stage::Header,
            promised: Head::default(),
            head: Head::default(),
            frames: 0,
            writer: None,
            files,
        }
    }

    /// How many bytes were taken in so far.
    pub fn received_bytes(&self) -> u64 {
        self.offset + self.received.len() as u64
    }

    /// The state that the snapshot's header promises, once the header came.
    pub fn meta(&self) -> Option<&Head> {
        matches!(self.stage, Stage::Frames | Stage::Done).then_some(&self.promised)
    }

    /// Takes the bytes that follow, cut anywhere. After an error nothing more is taken.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.received.extend_from_slice(bytes);
        let result = self.consume();
        if result.is_err() {
            self.stage = Stage::Failed;
        }
        result
    }

    fn consume(&mut self) -> Result<(), StoreError> {
        loop {
            match self.stage {
                Stage::Failed => return Err(self.damaged("an error came before")),
                Stage::Done if self.received.is_empty() => return Ok(()),
                Stage::Done => return Err(self.damaged("there are bytes behind its end")),
                Stage::Header => {
                    let len = header_len(&self.received).map_err(|what| self.damaged(what))?;
                    let Some(bytes) = len.and_then(|len| self.take(len)) else { return Ok(()) };
                    self.promised = decode_header(&bytes).map_err(|what| self.damaged(what))?;
                    self.stage = Stage::Frames;
                }
                Stage::Frames => {
                    let Some(length) = self.received.first_chunk::<4>() else { return Ok(()) };
                    if *length == [0; 4] {
                        let Some(bytes) = self.take(FOOTER_BYTES) else { return Ok(()) };
                        check_footer(&bytes, self.frames, self.head.point()).map_err(|what| self.damaged(what))?;
                        self.stage = Stage::Done;
                        continue;
                    }
                    let len = match Frame::peek_len(&self.received) {
                        Some(len) => len.map_err(|e| self.damaged(e.to_string()))?,
                        None => return Ok(()),
                    };
                    let Some(bytes) = self.take(len) else { return Ok(()) };
                    self.frame(&bytes)?;
                }
            }
        }
    }

    fn take(&mut self, len: usize) -> Option<Bytes> {
        if self.received.len() < len {
            return None;
        }
        self.offset += len as u64;
        Some(self.received.split_to(len).freeze())
    }

    fn damaged(&self, what: impl Into<String>) -> StoreError {
        StoreError::Snapshot { offset: self.offset, what: what.into() }
    }

    fn frame(&mut self, bytes: &Bytes) -> Result<(), StoreError> {
        let frame = Frame::parse(bytes).map_err(|e| self.damaged(e.to_string()))?;
        let start = self.head.point();
        let mut at: Point = start;
        follow(&mut at, &frame).map_err(|what| self.damaged(what))?;
        system::advance(&mut self.head, &frame, true).map_err(|e| self.damaged(e.to_string()))?;
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => {
                let id = self.inner.next_segment_id.fetch_add(1, Ordering::Relaxed);
                SegmentWriter::create(&self.inner.disk, &self.inner.dir, id, start)?
            }
        };
        writer.push(bytes, at.revision, at.chain)?;
        if writer.bytes() >= self.inner.config.tail_bytes as u64 {
            self.files.infos.push(writer.finish()?);
        } else {
            self.writer = Some(writer);
        }
        self.frames += 1;
        Ok(())
    }

    /// Ends the stream, which must be complete, and makes what was received durable.
    pub fn finish(mut self) -> Result<PreparedInstall, StoreError> {
        if self.stage != Stage::Done {
            return Err(self.damaged("it ends too early"));
        }
        // The floors cannot be seen in the frames.
        self.head.read_floor = self.promised.read_floor;
        self.head.delta_floor = self.promised.delta_floor;
        if self.head != self.promised {
            return Err(self.damaged("its frames lead to another state than its header promises"));
        }
        if let Some(writer) = self.writer.take() {
            self.files.infos.push(writer.finish()?);
        }
        let dir = self.inner.dir.display().to_string();
        self.inner.disk.sync_dir(&self.inner.dir).map_err(HistoryError::io("syncing", dir))?;
        Ok(PreparedInstall { head: self.head, files: self.files })
    }
}

impl Inner {
    pub(super) fn install(self: &Arc<Self>, mut prepared: PreparedInstall) -> Result<(), StoreError> {
        let _applying = self.applying.lock();
        let _work = self.work.lock();
        self.check_not_failed()?;
        let old = self.body();
        let manifest = Manifest {
            segments: prepared.files.infos.clone(),
            head: prepared.head.clone(),
            next_segment_id: self.next_segment_id.load(Ordering::Relaxed),
        };
        let sealed = Sealed::from_manifest(&self.disk, &self.dir, &manifest)?;
        let generation = old.generation() + 1;
        let body = recover::new_body(&self.kind, generation, sealed, prepared.head.clone(), &self.tables, &self.config)
            .inspect_err(|_| self.remove_index(generation))?;
        // From here on the files belong to the MANIFEST, even if its commit fails half-way.
        mem::take(&mut prepared.files.infos);
        manifest.commit(self.disk.as_ref(), &self.dir).map_err(|e| self.fail(e))?;
        let old = mem::replace(&mut *self.body.write(), Arc::new(body));
        old.replaced();
        drop(old);
        self.wake();
        Ok(())
    }

    fn remove_index(&self, generation: u64) {
        if let Err(error) = self.kind.remove(generation) {
            tracing::warn!(%error, "could not remove an index that was not finished");
        }
    }
}
