//! Reads: the newest version of a key, its version at an older revision, and ranges at one pinned revision.
//!
//! A read finds the newest version of the key, first in what is in memory and then in the index, and walks from version
//! to version along their previous revisions until it is at or below the revision asked for. Whatever newer version the
//! index holds by then, the walk leads to the same one. A version that is missing on the way is damage.
//!
//! Newest values come from the tails, from a cache bounded in bytes, or from a segment. What is cached or returned from
//! a block of a segment is copied when it is small beside the block, so that it does not keep the block in memory.

use bytes::Bytes;

use super::state::{Body, FrameSource, index_end, index_key, missing};
use super::{Inner, KeyValue, RangePage, RangeQuery, ReadError, StoreError};
use crate::history::{Frame, FrameOp};
use crate::index::IndexEntry;
use crate::model::{KeyMeta, KeySpace, Revision};

/// How many keys a range looks at in one step, at most.
const SCAN_ENTRIES: usize = 512;

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
            Some(at) => Ok(at),
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
        // Without a revision the newest version is right, however new.
        let pinned = match at {
            None => Revision::MAX,
            Some(_) => self.pin(&body, at)?,
        };
        let Some(newest) = body.newest(&index_key)? else { return Ok(None) };
        let Some(version) = self.version(&body, space, key, newest, pinned)? else { return Ok(None) };
        let value = if with_value { self.value(&body, &index_key, &version)? } else { Bytes::new() };
        Ok(Some(KeyValue { key: Bytes::copy_from_slice(key), value, meta: version.meta }))
    }

    /// The version of a key at a revision, found from its newest; none when the key did not exist then.
    fn version(
        &self,
        body: &Body,
        space: KeySpace,
        key: &[u8],
        newest: IndexEntry,
        pinned: Revision,
    ) -> Result<Option<Version>, StoreError> {
        if newest.mod_revision <= pinned {
            return Ok(newest.meta().map(|meta| Version { meta, value: None }));
        }
        let mut revision = newest.mod_revision;
        loop {
            let frame = body.frame(revision, &self.tables)?;
            let op = op_of(&frame, space, key)?;
            if revision <= pinned {
                return Ok(match op {
                    FrameOp::Delete { .. } => None,
                    FrameOp::Put { value, create_revision, version, lease, .. } => {
                        let meta = KeyMeta { create_revision, mod_revision: revision, version, lease };
                        Some(Version { meta, value: Some(compact(value, &frame)) })
                    }
                });
            }
            match op.previous() {
                0 => return Ok(None),
                previous if previous < revision => revision = previous,
                previous => {
                    let what = format!("revision {revision} of a key names {previous} as the one before it");
                    return Err(StoreError::Corrupt { file: "the history".into(), offset: 0, what });
                }
            }
        }
    }

    fn value(&self, body: &Body, index_key: &[u8], version: &Version) -> Result<Bytes, StoreError> {
        if let Some(value) = &version.value {
            return Ok(value.clone());
        }
        let revision = version.meta.mod_revision;
        let (space, key) = (KeySpace::from_byte(index_key[0]).expect("index keys begin with a space"), &index_key[1..]);
        let source = match body.frame_source(revision) {
            Some(FrameSource::Segment(segment)) => {
                // The revision makes the entry right or useless; nobody needs to remove what was replaced.
                if let Some((_, value)) = body.values.get(index_key, |(cached, _)| *cached == revision) {
                    return Ok(value);
                }
                FrameSource::Segment(segment)
            }
            Some(source) => source,
            None => return Err(missing(revision)),
        };
        let frame = source.frame(revision, &self.tables)?;
        let FrameOp::Put { value, .. } = op_of(&frame, space, key)? else {
            return Err(lost(revision));
        };
        if matches!(source, FrameSource::Segment(_)) {
            let value = compact(value, &frame);
            body.values.put(index_key.into(), (revision, value.clone()), index_key.len() + value.len());
            return Ok(value);
        }
        Ok(value)
    }

    pub(super) fn read_range(&self, query: &RangeQuery) -> Result<RangePage, ReadError> {
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
                let Some(version) = self.version(&body, query.space, key, newest, pinned)? else { continue };
                if page.items.len() == limit || (bytes >= query.max_bytes && !page.items.is_empty()) {
                    page.more = true;
                    return Ok(page);
                }
                let value = if query.keys_only { Bytes::new() } else { self.value(&body, &index_key, &version)? };
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

fn op_of(frame: &Frame, space: KeySpace, key: &[u8]) -> Result<FrameOp, StoreError> {
    let revision = frame.head().revision;
    match frame.find(space, key) {
        Ok(Some(op)) => Ok(op),
        Ok(None) => Err(lost(revision)),
        Err(e) => {
            let what = format!("the frame of revision {revision}: {e}");
            Err(StoreError::Corrupt { file: "the history".into(), offset: 0, what })
        }
    }
}

/// A value that may be kept: a copy, unless it is most of the frame it lies in and the frame is large enough to be alone
/// in the buffer it was read into.
fn compact(value: Bytes, frame: &Frame) -> Bytes {
    /// Frames from this size on are read into a buffer of their own (see the blocks of a segment).
    const ALONE_BYTES: usize = 4096;
    let alone = frame.bytes().len() >= ALONE_BYTES && value.len() * 2 >= frame.bytes().len();
    if alone { value } else { Bytes::copy_from_slice(&value) }
}
