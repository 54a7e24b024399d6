//! [`Sealed`]: the segments that the MANIFEST names, found by position or by revision.

use std::path::Path;
use std::sync::Arc;

use super::frame::Frame;
use super::manifest::{MANIFEST, Manifest};
use super::segment::{SUFFIX, Segment, SegmentScan, TableCache};
use super::{ChainHash, HistoryError};
use crate::files::Disk;
use crate::model::Revision;

/// The sealed part of the history. Immutable: a seal makes a new one that shares the segments.
#[derive(Debug, Clone, Default)]
pub struct Sealed {
    segments: Vec<Arc<Segment>>,
}

impl Sealed {
    /// Opens the history in `dir`: reads the MANIFEST (or writes the first one), removes what it does not name, checks
    /// all segments' ends and tables, and the newest segment fully.
    pub fn open(disk: &Arc<dyn Disk>, dir: &Path, tables: &TableCache) -> Result<(Sealed, Manifest), HistoryError> {
        let dir_name = dir.display().to_string();
        disk.create_dir_all(dir).map_err(HistoryError::io("making", dir_name.clone()))?;
        let names = disk.list(dir).map_err(HistoryError::io("listing", dir_name.clone()))?;
        let manifest = match Manifest::load(disk.as_ref(), dir)? {
            Some(manifest) => manifest,
            None if names.iter().any(|name| name.ends_with(SUFFIX)) => {
                let file = dir.join(MANIFEST).display().to_string();
                return Err(HistoryError::corrupt(file, 0, "there are segments, and it is missing"));
            }
            None => {
                let manifest = Manifest { next_segment_id: 1, ..Manifest::default() };
                manifest.commit(disk.as_ref(), dir)?;
                manifest
            }
        };
        remove_leftovers(disk.as_ref(), dir, &manifest, &names)?;
        let sealed = Sealed::from_manifest(disk, dir, &manifest)?;
        if let Some(newest) = sealed.segments.last() {
            newest.verify(tables)?;
        }
        Ok((sealed, manifest))
    }

    /// Opens the segments that a MANIFEST names.
    pub fn from_manifest(disk: &Arc<dyn Disk>, dir: &Path, manifest: &Manifest) -> Result<Sealed, HistoryError> {
        let open = |info| Segment::open(disk, dir, info).map(Arc::new);
        Ok(Sealed { segments: manifest.segments.iter().map(open).collect::<Result<_, _>>()? })
    }

    /// The same with one more segment at its end.
    pub fn with(&self, segment: Arc<Segment>) -> Sealed {
        let mut segments = self.segments.clone();
        segments.push(segment);
        Sealed { segments }
    }

    /// The segments, in order.
    pub fn segments(&self) -> &[Arc<Segment>] {
        &self.segments
    }

    /// How many bytes the segments take.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.info().bytes).sum()
    }

    /// The segment that holds a revision, when one does.
    pub fn segment_of_revision(&self, revision: Revision) -> Option<&Arc<Segment>> {
        let at = self.segments.partition_point(|segment| segment.info().last_revision < revision);
        self.segments.get(at).filter(|segment| segment.info().revision_before < revision)
    }

    /// The segment that holds a position, when one does.
    pub fn segment_of_position(&self, position: u64) -> Option<&Arc<Segment>> {
        let at = self.segments.partition_point(|segment| segment.info().last_position < position);
        self.segments.get(at).filter(|segment| segment.info().first_position <= position)
    }

    /// The chain hash at a sealed position; none when no segment holds it.
    pub fn chain_at(&self, position: u64, tables: &TableCache) -> Result<Option<ChainHash>, HistoryError> {
        let Some(segment) = self.segment_of_position(position) else { return Ok(None) };
        if segment.info().last_position == position {
            return Ok(Some(segment.info().chain_after));
        }
        Ok(segment.frame_at_position(position, tables)?.map(|frame| frame.chain()))
    }

    /// Reads all sealed frames from a position on, in order.
    pub fn scan(&self, from: u64) -> SealedScan {
        let at = self.segments.partition_point(|segment| segment.info().last_position < from);
        SealedScan { segments: self.segments.clone(), next: at, from, current: None }
    }
}

/// Reads sealed frames one after the other, over all segments.
#[derive(Debug)]
pub struct SealedScan {
    segments: Vec<Arc<Segment>>,
    next: usize,
    from: u64,
    current: Option<SegmentScan>,
}

impl SealedScan {
    /// The next frame; none at the end.
    pub fn next_frame(&mut self, tables: &TableCache) -> Result<Option<Frame>, HistoryError> {
        loop {
            if let Some(scan) = &mut self.current {
                if let Some(frame) = scan.next_frame()? {
                    return Ok(Some(frame));
                }
                self.current = None;
            }
            let Some(segment) = self.segments.get(self.next) else { return Ok(None) };
            self.current = Some(segment.scan(self.from, tables)?);
            self.next += 1;
        }
    }
}

/// Removes the files of an unfinished seal, install or MANIFEST, and of replaced segments.
fn remove_leftovers(disk: &dyn Disk, dir: &Path, manifest: &Manifest, names: &[String]) -> Result<(), HistoryError> {
    let mut removed = false;
    for name in names {
        let named = manifest.segments.iter().any(|segment| segment.file == *name);
        if !named && (name.ends_with(SUFFIX) || *name == format!("{MANIFEST}.new")) {
            let path = dir.join(name);
            match disk.remove(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(HistoryError::io("removing", path.display().to_string())(e));
                }
                _ => removed = true,
            }
        }
    }
    if removed {
        disk.sync_dir(dir).map_err(HistoryError::io("syncing", dir.display().to_string()))?;
    }
    Ok(())
}
