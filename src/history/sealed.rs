//! [`Sealed`]: the segments that the MANIFEST names, found by position or by revision.

use std::path::Path;
use std::sync::Arc;

use super::frame::Frame;
use super::manifest::{MANIFEST, Manifest};
use super::segment::{SUFFIX, Segment, SegmentInfo, SegmentScan, TableCache};
use super::{ChainHash, HistoryError, POINT_EVERY, Point};
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
        let sealed = Sealed::from_infos(disk, dir, &manifest.segments)?;
        if let Some(newest) = sealed.segments.last() {
            newest.verify(tables)?;
        }
        Ok((sealed, manifest))
    }

    /// Opens the segments that a MANIFEST names.
    pub fn from_infos(disk: &Arc<dyn Disk>, dir: &Path, infos: &[SegmentInfo]) -> Result<Sealed, HistoryError> {
        let open = |info| Segment::open(disk, dir, info).map(Arc::new);
        Ok(Sealed { segments: infos.iter().map(open).collect::<Result<_, _>>()? })
    }

    /// These segments, which follow each other.
    pub fn of(segments: Vec<Arc<Segment>>) -> Sealed {
        Sealed { segments }
    }

    /// The same with one more segment at its end.
    pub fn with(&self, segment: Arc<Segment>) -> Sealed {
        let mut segments = self.segments.clone();
        segments.push(segment);
        Sealed { segments }
    }

    /// These segments and then others.
    pub fn followed_by(&self, later: &Sealed) -> Sealed {
        Sealed { segments: [self.segments.as_slice(), later.segments.as_slice()].concat() }
    }

    /// The same with one segment in the place of the adjacent ones in `old`; none when they are not here (any more).
    pub fn replaced(&self, old: &[Arc<Segment>], new: Arc<Segment>) -> Option<Sealed> {
        let begin = old.first()?;
        let first = self.segments.iter().position(|segment| Arc::ptr_eq(segment, begin))?;
        let there = self.segments.get(first..first + old.len())?;
        if !there.iter().zip(old).all(|(there, old)| Arc::ptr_eq(there, old)) {
            return None;
        }
        let mut segments = self.segments.clone();
        segments.splice(first..first + old.len(), [new]);
        Some(Sealed { segments })
    }

    /// What the MANIFEST says of all segments.
    pub fn infos(&self) -> Vec<SegmentInfo> {
        self.segments.iter().map(|segment| segment.info().clone()).collect()
    }

    /// The segments, in order.
    pub fn segments(&self) -> &[Arc<Segment>] {
        &self.segments
    }

    /// Whether the frames from a position on lack a deletion that whoever stands there has not seen.
    pub fn lacks_tombstones_from(&self, position: u64) -> bool {
        let lacks = |info: &SegmentInfo| info.last_position >= position && info.tombstones_gone_to >= position;
        position > 0 && self.segments.iter().any(|segment| lacks(segment.info()))
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

    /// Where the clock stood at the end of the segment before the one that holds, or would hold, a position; none when there is
    /// none before it. No entry from there on is older.
    pub fn clock_before(&self, position: u64, tables: &TableCache) -> Result<Option<u64>, HistoryError> {
        let at = self.segments.partition_point(|segment| segment.info().last_position < position);
        let before = at.checked_sub(1).and_then(|before| self.segments.get(before));
        before.map(|segment| segment.clock_after(tables)).transpose()
    }

    /// The chain hash at a sealed position; none when no segment holds it.
    pub fn chain_at(&self, position: u64, tables: &TableCache) -> Result<Option<ChainHash>, HistoryError> {
        match self.segment_of_position(position) {
            Some(segment) => segment.chain_at(position, tables),
            None => Ok(None),
        }
    }

    /// The points that are kept for ever, and the ends of the segments, up to a position; in order.
    pub fn points(&self, upto: u64, tables: &TableCache) -> Result<Vec<Point>, HistoryError> {
        let mut points: Vec<Point> = Vec::new();
        for segment in &self.segments {
            let info = segment.info();
            if segment.keeps_points() {
                points.extend(segment.points());
            } else {
                let mut at = info.first_position.next_multiple_of(POINT_EVERY);
                while at <= info.last_position.min(upto) {
                    points.extend(segment.frame_at_position(at, tables)?.map(|frame| frame.end()));
                    at += POINT_EVERY;
                }
            }
            if points.last().is_none_or(|last| last.next_position < info.end().next_position) {
                points.push(info.end());
            }
            if info.last_position >= upto {
                break;
            }
        }
        points.retain(|point| point.next_position <= upto.saturating_add(1));
        Ok(points)
    }

    /// The place behind the last sealed frame at or before a time; the beginning when there is none.
    pub fn at_time(&self, clock_ms: u64, tables: &TableCache) -> Result<Point, HistoryError> {
        let (mut low, mut high) = (0, self.segments.len());
        while low < high {
            let middle = low.midpoint(high);
            let before = self.segments[middle].clock_after(tables)? <= clock_ms;
            if before { low = middle + 1 } else { high = middle }
        }
        match (self.segments.get(low), low.checked_sub(1).map(|last| self.segments[last].info().end())) {
            (Some(segment), _) => segment.at_time(clock_ms, tables),
            (None, last) => Ok(last.unwrap_or_default()),
        }
    }

    /// Reads all sealed frames from a position on, in order.
    pub fn scan(&self, from: u64) -> SealedScan {
        let at = self.segments.partition_point(|segment| segment.info().last_position < from);
        SealedScan { segments: self.segments.clone(), next: at, from, current: None }
    }

    /// Reads all sealed frames from a position on, and the kept points of positions that have no frame any more.
    pub fn items(&self, from: u64) -> SealedItems {
        let points = self.segments.iter().flat_map(|segment| segment.points().iter().copied());
        let points: Vec<Point> = points.filter(|point| point.next_position > from).collect();
        SealedItems { scan: self.scan(from), points: points.into_iter().peekable(), frame: None }
    }
}

/// A piece of the history as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A frame.
    Frame(Frame),
    /// What is known of a position that has no frame any more.
    Point(Point),
}

/// Reads frames and points one after the other, over all segments.
#[derive(Debug)]
pub struct SealedItems {
    scan: SealedScan,
    points: std::iter::Peekable<std::vec::IntoIter<Point>>,
    frame: Option<Frame>,
}

impl SealedItems {
    /// The next item; none at the end.
    pub fn next_item(&mut self, tables: &TableCache) -> Result<Option<Item>, HistoryError> {
        if self.frame.is_none() {
            self.frame = self.scan.next_frame(tables)?;
        }
        let next = self.frame.as_ref().map_or(u64::MAX, |frame| frame.position() + 1);
        // A frame has its chain hash with it.
        while self.points.next_if(|point| point.next_position == next).is_some() {}
        match self.points.next_if(|point| point.next_position < next) {
            Some(point) => Ok(Some(Item::Point(point))),
            None => Ok(self.frame.take().map(Item::Frame)),
        }
    }
}

impl Sealed {
    /// Reads all sealed frames from about the one on that follows a revision, in order; the first ones may be older.
    pub fn scan_about(&self, revision: Revision, tables: &TableCache) -> Result<SealedScan, HistoryError> {
        let at = self.segments.partition_point(|segment| segment.info().last_revision <= revision);
        let current = self.segments.get(at).map(|segment| segment.scan_about(revision, tables)).transpose()?;
        Ok(SealedScan { segments: self.segments.clone(), next: at + 1, from: 0, current })
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
        let named = manifest.all_segments().any(|segment| segment.file == *name);
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
