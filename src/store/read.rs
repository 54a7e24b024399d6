//! Reads: the newest version of a key, its version at an older revision, and ranges at one pinned revision.
//!
//! A read finds the newest version of the key, first in what is in memory and then in the index, and walks from version
//! to version along their previous revisions until it is at or below the revision asked for. Whatever newer version the
//! index holds by then, the walk leads to the same one.
//!
//! Above the read floor nothing is ever missing on the way: compaction keeps every version above the floor and the newest
//! at or below it, and a walk that is pinned at or above the floor ends there. Only a tombstone may be gone, and that it
//! was one is seen in the version after it. So what is missing is damage, unless the floor has overtaken the read while
//! it ran; then the read ends as compacted.
//!
//! Newest values come from the tails, from a cache bounded in bytes, or from a segment. What is cached or returned from
//! a block of a segment is copied when it is small beside the block, so that it does not keep the block in memory.

use bytes::Bytes;

use super::state::{Body, FrameSource, index_end, index_key, missing};
use super::timelines::check_not_left;
use super::{Inner, KeyValue, RangePage, RangeQuery, ReadError, StoreError};
use crate::history::{Blocks, Frame, FrameOp};
use crate::index::IndexEntry;
use crate::model::{KeyMeta, KeySpace, Revision};

/// How many keys a range looks at in one step, at most.
const SCAN_ENTRIES: usize = 512;

/// How often a range that asked for no revision begins again when the floor has overtaken it.
const RANGE_ATTEMPTS: usize = 5;

/// A version of a key, as its frame has it.
pub(super) struct Link {
    /// The last operation on the key.
    pub op: FrameOp,
    /// Whether the version before it, if there was one, is a tombstone.
    pub after_tombstone: bool,
}

/// A version of a key, and its value when it was read on the way.
struct Version {
    meta: KeyMeta,
    value: Option<Bytes>,
}

impl Inner {
    /// The revision that a read is pinned to: the one asked for, or all of the newest.
    pub(super) fn pin(&self, body: &Body, at: Option<Revision>) -> Result<Revision, ReadError> {
        let state = body.state.read();
        let (current, floor) = (state.head.revision, state.head.read_floor);
        match at {
            None => Ok(current),
            Some(at) if at > current => Err(ReadError::Future { current }),
            Some(at) if at < floor => Err(ReadError::Compacted { floor }),
            Some(at) => check_not_left(&state.head, at).map(|()| at),
        }
    }

    pub(super) fn read(
        &self,
        space: KeySpace,
        key: &[u8],
        at: Option<Revision>,
        with_value: bool,
    ) -> Result<Option<KeyValue>, ReadError> {
        let body = self.body();
        let index_key = index_key(space, key);
        let at = at.map(|at| self.pin(&body, Some(at))).transpose()?;
        loop {
            let Some(newest) = body.newest(&index_key)? else { return Ok(None) };
            // Without a revision the newest version is right, however new.
            let pinned = at.unwrap_or(newest.mod_revision);
            match self.read_from(&body, &index_key, newest, pinned, with_value) {
                // It was the newest and was replaced meanwhile, and its value is gone already.
                Err(ReadError::Compacted { .. }) if at.is_none() && body.newest(&index_key)? != Some(newest) => {}
                Err(ReadError::Compacted { .. }) if at.is_none() => return Err(missing(pinned).into()),
                found => return found,
            }
        }
    }

    /// A key's version at a revision, and its value when it was read on the way.
    pub(super) fn found(
        &self,
        body: &Body,
        index_key: &[u8],
        newest: IndexEntry,
        pinned: Revision,
        blocks: &mut Blocks,
    ) -> Result<Option<(KeyMeta, Option<Bytes>)>, ReadError> {
        Ok(self.version(body, index_key, newest, pinned, blocks)?.map(|version| (version.meta, version.value)))
    }

    fn read_from(
        &self,
        body: &Body,
        index_key: &[u8],
        newest: IndexEntry,
        pinned: Revision,
        with_value: bool,
    ) -> Result<Option<KeyValue>, ReadError> {
        let mut blocks = Blocks::default();
        let Some(version) = self.version(body, index_key, newest, pinned, &mut blocks)? else { return Ok(None) };
        let value = if with_value { self.value(body, index_key, &version, pinned)? } else { Bytes::new() };
        Ok(Some(KeyValue { key: Bytes::copy_from_slice(&index_key[1..]), value, meta: version.meta }))
    }

    /// The version of a key at a revision, found from its newest; none when the key did not exist then.
    fn version(
        &self,
        body: &Body,
        index_key: &[u8],
        newest: IndexEntry,
        pinned: Revision,
        blocks: &mut Blocks,
    ) -> Result<Option<Version>, ReadError> {
        if newest.mod_revision <= pinned {
            return Ok(newest.meta().map(|meta| Version { meta, value: None }));
        }
        let mut revision = newest.mod_revision;
        loop {
            let Some((frame, link)) = self.link_among(body, index_key, revision, blocks)? else {
                return Err(gone(body, revision, pinned));
            };
            if revision <= pinned {
                return Ok(match link.op {
                    FrameOp::Delete { .. } => None,
                    FrameOp::Put { value, create_revision, version, lease, .. } => {
                        let meta = KeyMeta { create_revision, mod_revision: revision, version, lease };
                        Some(Version { meta, value: Some(compact(value, &frame)) })
                    }
                });
            }
            match link.op.previous() {
                0 => return Ok(None),
                // It may have been dropped, as tombstones are below both floors.
                previous if previous <= pinned && link.after_tombstone => return Ok(None),
                previous => revision = previous,
            }
        }
    }

    /// The version of a key that a revision made; none when compaction has dropped it.
    pub(super) fn link(
        &self,
        body: &Body,
        index_key: &[u8],
        revision: Revision,
    ) -> Result<Option<(Frame, Link)>, StoreError> {
        self.link_among(body, index_key, revision, &mut Blocks::default())
    }

    /// The same, for who reads many and keeps blocks.
    pub(super) fn link_among(
        &self,
        body: &Body,
        index_key: &[u8],
        revision: Revision,
        blocks: &mut Blocks,
    ) -> Result<Option<(Frame, Link)>, StoreError> {
        let Some(frame) = body.frame(revision, &self.tables, blocks)? else { return Ok(None) };
        let damaged = |what: String| StoreError::Corrupt { file: "the history".into(), offset: 0, what };
        let (space, key) = split(index_key);
        let mut found: Option<Link> = None;
        for op in frame.ops() {
            let op = op.map_err(|e| damaged(format!("the frame of revision {revision}: {e}")))?;
            if op.key().0 != space || op.key().1 != key {
                continue;
            }
            if op.previous() >= revision {
                let previous = op.previous();
                return Err(damaged(format!("revision {revision} of a key names {previous} as the one before it")));
            }
            let created = matches!(op, FrameOp::Put { create_revision, .. } if create_revision == revision);
            let after_tombstone = found.map_or(created, |before| before.after_tombstone);
            found = Some(Link { op, after_tombstone });
        }
        Ok(found.map(|link| (frame, link)))
    }

    /// The value of a newest version, for apply.
    pub(super) fn newest_value(&self, body: &Body, index_key: &[u8], meta: KeyMeta) -> Result<Bytes, StoreError> {
        let found = self.value(body, index_key, &Version { meta, value: None }, meta.mod_revision);
        found.map_err(|error| match error {
            ReadError::Store(error) => error,
            // Compaction keeps the newest version, and only apply replaces it.
            ReadError::Compacted { .. } | ReadError::Future { .. } | ReadError::Diverged { .. } => {
                missing(meta.mod_revision)
            }
        })
    }

    fn value(&self, body: &Body, index_key: &[u8], version: &Version, pinned: Revision) -> Result<Bytes, ReadError> {
        if let Some(value) = &version.value {
            return Ok(value.clone());
        }
        let revision = version.meta.mod_revision;
        let sealed = match body.frame_source(revision) {
            Some(FrameSource::Segment(_)) => true,
            Some(FrameSource::Memory(_)) => false,
            None => return Err(gone(body, revision, pinned)),
        };
        // The revision makes the entry right or useless; nobody needs to remove what was replaced.
        if sealed && let Some((_, value)) = body.values.get(index_key, |(cached, _)| *cached == revision) {
            return Ok(value);
        }
        let (frame, value) = match self.link(body, index_key, revision)? {
            Some((frame, Link { op: FrameOp::Put { value, .. }, .. })) => (frame, value),
            Some(_) => return Err(lost(revision).into()),
            None => return Err(gone(body, revision, pinned)),
        };
        if sealed {
            let value = compact(value, &frame);
            body.values.put(index_key.into(), (revision, value.clone()), index_key.len() + value.len());
            return Ok(value);
        }
        Ok(value)
    }

    pub(super) fn read_range(&self, query: &RangeQuery) -> Result<RangePage, ReadError> {
        let mut attempts = RANGE_ATTEMPTS;
        loop {
            let page = self.read_page(query);
            attempts -= 1;
            // Without a revision asked for, a newer one is as good.
            let again = query.at.is_none() && attempts > 0 && matches!(page, Err(ReadError::Compacted { .. }));
            if !again {
                return page;
            }
        }
    }

    fn read_page(&self, query: &RangeQuery) -> Result<RangePage, ReadError> {
        let body = self.body();
        let pinned = self.pin(&body, query.at)?;
        let mut page = RangePage { items: Vec::new(), more: false, revision: pinned };
        let mut start = index_key(query.space, &query.start);
        if let Some(after) = &query.after {
            start = start.max(index_key(query.space, &[after, [0].as_slice()].concat()));
        }
        let end = index_end(query.space, query.end.as_deref());
        let limit = query.limit.max(1);
        let mut bytes = 0usize;
        loop {
            let wanted = (limit - page.items.len()).saturating_add(1).clamp(2, SCAN_ENTRIES);
            let chunk = body.scan(&start, &end, wanted)?;
            for (index_key, newest) in chunk.entries {
                let key = &index_key[1..];
                let mut blocks = Blocks::default();
                let Some(version) = self.version(&body, &index_key, newest, pinned, &mut blocks)? else { continue };
                if page.items.len() == limit || (bytes >= query.max_bytes && !page.items.is_empty()) {
                    page.more = true;
                    return Ok(page);
                }
                let value =
                    if query.keys_only { Bytes::new() } else { self.value(&body, &index_key, &version, pinned)? };
                bytes += key.len() + value.len();
                page.items.push(KeyValue { key: Bytes::from(index_key).slice(1..), value, meta: version.meta });
            }
            match chunk.next {
                Some(next) => start = next,
                None => return Ok(page),
            }
        }
    }
}

fn lost(revision: Revision) -> StoreError {
    let what = format!("the frame of revision {revision} does not hold the version that a key refers to");
    StoreError::Corrupt { file: "the history".into(), offset: 0, what }
}

/// The error of a read that misses a version on its way.
pub(super) fn gone(body: &Body, revision: Revision, pinned: Revision) -> ReadError {
    let floor = body.state.read().head.read_floor;
    if pinned < floor { ReadError::Compacted { floor } } else { missing(revision).into() }
}

fn split(index_key: &[u8]) -> (KeySpace, &[u8]) {
    (KeySpace::from_byte(index_key[0]).expect("index keys begin with a space"), &index_key[1..])
}

/// A value that may be kept: a copy, unless it is most of the frame it lies in and the frame is large enough to be alone
/// in the buffer it was read into.
fn compact(value: Bytes, frame: &Frame) -> Bytes {
    /// Frames from this size on are read into a buffer of their own (see the blocks of a segment).
    const ALONE_BYTES: usize = 4096;
    let alone = frame.bytes().len() >= ALONE_BYTES && value.len() * 2 >= frame.bytes().len();
    if alone { value } else { Bytes::copy_from_slice(&value) }
}
