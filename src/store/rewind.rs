//! Rewind: taking the history of an abandoned timeline over, up to a point that the new timeline has too, so that another
//! member has to send only what comes after it.
//!
//! As in a [rescue](super::rescue), what is taken becomes the staged part of a full copy: it is no content before a copy
//! that goes on from its end is installed, and the sender of that copy compares the chain hash there. Segments that end at
//! or before the point are linked, not read; the one that the point lies in is written anew up to it. One MANIFEST commits
//! all of it. The old directory is only read.
//!
//! **Why what is taken is right.** The sender has applied the same things up to the point (the chain hash says so) and sends
//! what it applied after it. What is taken must then be what *some* member of the new timeline could have at that point:
//!
//! 1. *Versions.* Compaction here has kept every version above the old read floor and the newest at or below it. While
//!    that floor is not above the point's revision, these are versions of the shared part, whatever was written after the
//!    point. With a higher floor, versions of the shared part may have given way to stranded ones: refused.
//! 2. *Floors.* What is taken may lack what the old floors had passed, so nobody may promise less of it. The floors of the
//!    old head go with it (cut to the point, behind which nothing is taken), and when the sender's are lower, in versions,
//!    in positions or in what counts as a forgotten tombstone, it is refused.
//! 3. *Tombstones.* A deletion below both floors counts as if the key had never been. A stranded write that created the
//!    key again therefore names no version before it, and compaction, which follows that name, may drop the deletion
//!    before the older versions in segments that it has not come to. On the old timeline the stranded write covers them;
//!    without it an old version would come back. So every key that a stranded write created out of nothing must have no
//!    living version in what is taken; else it is refused. Where no tombstone is gone there is nothing to look for.
//! 4. *Thinned frames* keep their place and chain hash, so a segment that holds some is taken like any other. The end must
//!    be a frame, whose log id and clock are known: when compaction has dropped the one at the point, the last frame
//!    before it is the end, and the sender sends more.
//!
//! Refused means: nothing is taken, and the sender sends all. The state besides the keys (cluster, timelines, feature
//! level, a later membership) is left out: the sender's header promises it, and every new timeline begins with a membership.
//!
//! After a crash either all of it is staged or nothing is, and a second call begins anew. Proven by `store/tests/rewind.rs`.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::install::Files;
use super::state::index_key;
use super::{Store, StoreError};
use crate::files;
use crate::history::sealed::Item;
use crate::history::{
    Frame, FrameOp, Head, HistoryError, Manifest, Point, Sealed, Segment, SegmentInfo, SegmentWriter, Staging,
    TableCache,
};
use crate::index::IndexKey;
use crate::model::Revision;

/// So many bytes of keys that stranded writes created are looked for.
const CREATED_BYTES: usize = 64 << 20;

/// What a member promises of a copy that it sends: how much of the past is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Promised {
    /// Its read floor.
    pub read_floor: Revision,
    /// Its delta floor.
    pub delta_floor: u64,
    /// Up to which revision deletions count as if they had never been.
    pub tombstone_floor: Revision,
}

/// What a rewind came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rewound {
    /// Where what is staged ends; none when nothing was taken.
    pub until: Option<Point>,
    /// Why nothing was taken.
    pub refused: Option<String>,
    /// So many segments were taken as they are, without reading them.
    pub linked: usize,
    /// Their bytes.
    pub linked_bytes: u64,
    /// Bytes that had to be written, because the point lies within a segment or the file system refused to link.
    pub written_bytes: u64,
}

impl Rewound {
    fn refused(why: impl Into<String>) -> Rewound {
        Rewound { refused: Some(why.into()), ..Rewound::default() }
    }
}

/// The history of the abandoned timeline.
struct Old<'o> {
    dir: &'o Path,
    head: Head,
    sealed: Sealed,
    tables: TableCache,
}

impl Store {
    /// What a copy sent by this member promises, now or later: floors never go down.
    pub fn promises(&self) -> Promised {
        let head = self.head();
        Promised { read_floor: head.read_floor, delta_floor: head.delta_floor, tombstone_floor: head.tombstone_floor() }
    }

    /// Takes the history in `old` over up to `upto`, which the sender of the rest has too. This store must be empty; what
    /// is staged in it gives way. The old history must hold all that its member had applied.
    pub fn rewind(&self, old: &Path, upto: Point, sender: &Promised) -> Result<Rewound, StoreError> {
        if self.applied().is_some() {
            return Ok(Rewound::refused("this store is not empty"));
        }
        self.avoid_ids_of(old)?;
        self.discard_staging()?;
        let taken = self.rewound(old, upto, sender);
        match taken {
            // The old files are of no use to anybody else.
            Err(StoreError::Corrupt { file, what, .. }) if Path::new(&file).starts_with(old) => {
                Ok(Rewound::refused(format!("the old history is damaged: {file}: {what}")))
            }
            taken => taken,
        }
    }

    fn rewound(&self, dir: &Path, upto: Point, sender: &Promised) -> Result<Rewound, StoreError> {
        let inner = &self.inner;
        let Some(manifest) = Manifest::load(inner.disk.as_ref(), dir)? else {
            return Ok(Rewound::refused("the old history has no MANIFEST"));
        };
        let sealed = Sealed::from_infos(&inner.disk, dir, &manifest.segments)?;
        let tables = TableCache::new(inner.config.table_cache_bytes, true);
        let old = Old { dir, head: manifest.head, sealed, tables };
        let Some(last) = upto.next_position.checked_sub(1) else {
            return Ok(Rewound::refused("the timelines have nothing in common"));
        };
        match old.sealed.chain_at(last, &old.tables)? {
            Some(chain) if chain == upto.chain => {}
            _ => return Ok(Rewound::refused(format!("the old history does not hold the common position {last}"))),
        }
        let Some(frame) = old.last_frame(last)? else {
            return Ok(Rewound::refused("nothing is left of the old history before the common point"));
        };
        if let Some(why) = old.unfit(upto, sender)? {
            return Ok(Rewound::refused(why));
        }
        self.stage_of(&old, &frame)
    }

    /// Stages the frames up to this one.
    fn stage_of(&self, old: &Old<'_>, last: &Frame) -> Result<Rewound, StoreError> {
        let inner = &self.inner;
        let mut files = Files { inner: inner.clone(), infos: Vec::new() };
        let mut rewound = Rewound { until: Some(last.end()), ..Rewound::default() };
        for segment in old.sealed.segments() {
            let info = segment.info();
            if info.first_position > last.position() {
                break;
            }
            if info.end() == last.end() || info.last_position < last.position() {
                self.link(old.dir, info, &mut rewound)?;
                files.infos.push(info.clone());
            } else {
                let info = self.beginning_of(old, segment, last)?;
                rewound.written_bytes += info.bytes;
                files.infos.push(info);
            }
        }
        inner.sync_dir().map_err(|e| inner.fail(e))?;
        let staging = Staging { base: Point::default(), head: old.head_at(last), segments: files.infos.clone() };
        let _work = inner.work.lock();
        inner.check_not_failed()?;
        // From here on the files belong to the MANIFEST, even if its commit fails half-way.
        files.infos.clear();
        inner.replace_staging(Some(staging))?;
        Ok(rewound)
    }

    /// Takes a whole segment over under its own name: its id is in the file, and no segment of this store has it.
    fn link(&self, old: &Path, info: &SegmentInfo, rewound: &mut Rewound) -> Result<(), StoreError> {
        let inner = &self.inner;
        let (from, to) = (old.join(&info.file), inner.dir.join(&info.file));
        let name = to.display().to_string();
        match inner.disk.remove(&to) {
            // An attempt that died may have left it; no MANIFEST names it.
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(HistoryError::io("removing", name)(e).into());
            }
            _ => {}
        }
        let copied = files::link_or_copy(inner.disk.as_ref(), &from, &to).map_err(HistoryError::io("linking", name))?;
        if copied {
            rewound.written_bytes += info.bytes;
        } else {
            rewound.linked += 1;
            rewound.linked_bytes += info.bytes;
        }
        Ok(())
    }

    /// Writes a segment anew, up to a frame within it.
    fn beginning_of(&self, old: &Old<'_>, segment: &Arc<Segment>, last: &Frame) -> Result<SegmentInfo, StoreError> {
        let inner = &self.inner;
        let id = inner.next_segment_id.fetch_add(1, Ordering::Relaxed);
        let before = old.sealed.segments().iter().rfind(|other| other.info().end() == segment.info().start());
        let clock_ms = before.map_or(Ok(0), |before| before.clock_after(&old.tables))?;
        let mut writer = SegmentWriter::create(&inner.disk, &inner.dir, id, segment.info().start(), clock_ms)?;
        let mut items = Sealed::of(vec![segment.clone()]).items(0);
        while let Some(item) = items.next_item(&old.tables)? {
            match item {
                Item::Frame(frame) if frame.position() <= last.position() => writer.push(&frame)?,
                Item::Point(point) if point.next_position <= last.position() => writer.point(point),
                Item::Frame(_) | Item::Point(_) => break,
            }
        }
        let mut info = inner.finish_segment(writer)?;
        (info.thinned_to, info.tombstones_gone_to) = (segment.info().thinned_to, segment.info().tombstones_gone_to);
        Ok(info)
    }
}

impl Old<'_> {
    /// The last frame at or before a position that was not dropped.
    fn last_frame(&self, position: u64) -> Result<Option<Frame>, StoreError> {
        for segment in self.sealed.segments().iter().rev() {
            if segment.info().first_position > position {
                continue;
            }
            if let Some(frame) = segment.frame_at_position(position, &self.tables)? {
                return Ok(Some(frame));
            }
            for block in (0..segment.blocks()).rev() {
                let frames = segment.block(block, &self.tables)?;
                if let Some(frame) = frames.into_iter().rfind(|frame| frame.position() <= position) {
                    return Ok(Some(frame));
                }
            }
        }
        Ok(None)
    }

    /// The state at a frame, as far as it goes on from it: see the top of this file.
    fn head_at(&self, last: &Frame) -> Head {
        let (fixed, old) = (last.head(), &self.head);
        Head {
            applied: Some(fixed.log_id),
            chain: last.chain(),
            revision: fixed.revision,
            clock_ms: fixed.clock_ms,
            membership: old.membership.clone().filter(|membership| membership.log_id.index <= last.position()),
            read_floor: old.read_floor,
            delta_floor: old.delta_floor.min(last.position()),
            delta_revision: old.delta_revision.min(fixed.revision),
            ..Head::default()
        }
    }

    /// Why nothing may be taken of what lies before the point; none when it may.
    fn unfit(&self, upto: Point, sender: &Promised) -> Result<Option<String>, StoreError> {
        let read_floor = self.head.read_floor;
        if read_floor > upto.revision {
            let common = upto.revision;
            return Ok(Some(format!("its read floor, {read_floor}, is above the common revision {common}")));
        }
        let delta_floor = self.head.delta_floor.min(upto.next_position - 1);
        let lower = read_floor > sender.read_floor
            || delta_floor > sender.delta_floor
            || self.head.tombstone_floor() > sender.tombstone_floor;
        if lower {
            return Ok(Some(format!(
                "its floors, {read_floor} and {delta_floor}, are above those of the new timeline, {} and {}",
                sender.read_floor, sender.delta_floor
            )));
        }
        let taken = || self.sealed.segments().iter().map(|segment| segment.info());
        if !taken().any(|info| info.first_position < upto.next_position && info.tombstones_gone_to > 0) {
            return Ok(None);
        }
        let Some(created) = self.created_after(upto.next_position)? else {
            return Ok(Some("too many keys were created after the common point to look for each".into()));
        };
        Ok(self.comes_back(upto, created)?.then(|| "a key that was deleted long ago would come back".into()))
    }

    /// The keys that stranded frames created as if they had never been; none when they are too many.
    fn created_after(&self, position: u64) -> Result<Option<BTreeSet<IndexKey>>, StoreError> {
        let (mut created, mut bytes) = (BTreeSet::new(), 0);
        let mut scan = self.sealed.scan(position);
        while let Some(frame) = scan.next_frame(&self.tables)? {
            for op in frame.ops() {
                let op = op.map_err(|e| self.damaged(&frame, &e.to_string()))?;
                if matches!(op, FrameOp::Put { previous: 0, .. }) {
                    let key: IndexKey = index_key(op.key().0, op.key().1).into();
                    bytes += key.len() + size_of::<IndexKey>();
                    created.insert(key);
                }
            }
            if bytes > CREATED_BYTES {
                return Ok(None);
            }
        }
        Ok(Some(created))
    }

    /// Whether one of these keys lives in what would be taken. Only a version that a forgotten deletion ended can.
    fn comes_back(&self, upto: Point, created: BTreeSet<IndexKey>) -> Result<bool, StoreError> {
        let floor = self.head.tombstone_floor();
        if created.is_empty() {
            return Ok(false);
        }
        // Nothing that was superseded at or below the floor is left in a segment that was thinned up to it.
        let thinned = |segment: &&Arc<Segment>| segment.info().thinned_to >= floor;
        let segments = self.sealed.segments().iter().skip_while(thinned).cloned().collect();
        let mut scan = Sealed::of(segments).scan(0);
        let mut living = BTreeSet::new();
        while let Some(frame) = scan.next_frame(&self.tables)? {
            if frame.head().revision > floor || frame.position() >= upto.next_position {
                break;
            }
            for op in frame.ops() {
                let op = op.map_err(|e| self.damaged(&frame, &e.to_string()))?;
                let key: IndexKey = index_key(op.key().0, op.key().1).into();
                match op {
                    FrameOp::Put { .. } if created.contains(&key) => drop(living.insert(key)),
                    FrameOp::Put { .. } => {}
                    FrameOp::Delete { .. } => drop(living.remove(&key)),
                }
            }
        }
        Ok(!living.is_empty())
    }

    fn damaged(&self, frame: &Frame, what: &str) -> StoreError {
        let what = format!("the frame of position {}: {what}", frame.position());
        StoreError::Corrupt { file: self.dir.display().to_string(), offset: 0, what }
    }
}
